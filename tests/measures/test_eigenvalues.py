"""The first eigenvalues of the Hessian, and products that keep the gradient's graph."""

import functools

import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression
from torch import nn

from sklearn_relflat import hessian_eigenvalues, hessian_max_eigenvalue, hessian_trace
from sklearn_relflat._curvature.problem import open_problem
from sklearn_relflat._measures import hessian_products
from sklearn_relflat._measures.hessian_products import HessianProducts
from sklearn_relflat._measures.weight_space import WeightSpace
from tests.cases import CASES
from tests.measure_oracles import joint_hessian, same, snapshot

BY_ID = {case.id: case for case in CASES}
NETS = [("relu", "0"), ("tanh", "all"), ("mse", "all"), ("conv2d", "all")]
every_net = pytest.mark.parametrize(("name", "layer"), NETS)
ORDER = {
    "largest": lambda v: v[::-1],
    "smallest": lambda v: v,
    "magnitude": lambda v: v[np.argsort(-abs(v))],
}


@functools.cache
def brute_force(name, layer):
    case = BY_ID[name]
    names = list(case.layers) if layer == "all" else [layer]
    return joint_hessian(case, names).numpy()


@pytest.fixture
def opened():
    """A problem's products, by case and layer."""
    contexts = []

    def enter(net, X, y, layer):
        context = open_problem(
            net,
            X,
            y,
            layer=layer,
            loss=None,
            sample_weight=None,
            random_state=0,
            trusted=False,
        )
        contexts.append(context)
        return HessianProducts(WeightSpace(context.__enter__()))

    yield enter
    for context in contexts:
        context.__exit__(None, None, None)


@every_net
@pytest.mark.parametrize("which", list(ORDER))
def test_against_the_whole_matrix(name, layer, which):
    case, matrix = BY_ID[name], brute_force(name, layer)
    found = hessian_eigenvalues(
        case.fitted(), *case.data(), k=4, which=which, layer=layer, rtol=1e-8,
        random_state=0,
    )  # fmt: skip
    expected = ORDER[which](np.linalg.eigvalsh(matrix))[:4]
    scale = abs(np.linalg.eigvalsh(matrix)).max()
    if which == "magnitude":
        np.testing.assert_allclose(abs(found.values), abs(expected), atol=1e-9 * scale)
    else:
        np.testing.assert_allclose(found.values, expected, atol=1e-9 * scale)
    vectors = np.concatenate([v.reshape(4, -1) for v in found.vectors.values()], axis=1)
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(4), atol=1e-10)
    residuals = np.linalg.norm(
        vectors @ matrix - found.values[:, None] * vectors, axis=1
    )
    assert (residuals <= found.residuals + 1e-12 * scale).all()
    assert (found.residuals <= 1.1e-8 * abs(found.values) + 1e-12 * scale).all()
    assert found.method == ("dense" if len(matrix) <= 32 else "lanczos")


def test_a_repeated_eigenvalue_is_found_as_often_as_it_occurs():
    """Three outputs with the squared error: every eigenvalue is there three times."""
    X = np.random.default_rng(0).normal(size=(60, 20))
    model = LinearRegression().fit(X, X[:, :3])
    found = hessian_eigenvalues(model, X, X[:, :3], k=4, random_state=0)
    single = np.linalg.eigvalsh(2 / (3 * len(X)) * X.T @ X)[::-1]
    np.testing.assert_allclose(found.values, single[[0, 0, 0, 1]], rtol=1e-5)
    assert found.method == "lanczos"


def test_single_precision():
    case = BY_ID["conv2d"]
    matrix = brute_force("conv2d", "all")
    net, (X, y) = case.fitted(torch.float32), case.data(torch.float32)
    found = hessian_eigenvalues(net, X, y, k=3, layer="all", rtol=1e-12, random_state=0)
    expected = np.linalg.eigvalsh(matrix)[::-1][:3]
    np.testing.assert_allclose(found.values, expected, rtol=1e-5)
    assert (found.residuals >= np.finfo(np.float32).eps * expected[0]).all()


def test_the_largest_is_the_first():
    case = BY_ID["tanh"]
    net, (X, y) = case.fitted(), case.data()
    first = hessian_eigenvalues(net, X, y, layer="all", rtol=1e-6, random_state=0)
    top = hessian_max_eigenvalue(net, X, y, layer="all", rtol=1e-6, random_state=0)
    assert (first.values[0], first.n_products) == (top.value, top.n_products)
    assert first.residuals[0] == top.tolerance
    assert first.mean_loss == pytest.approx(top.mean_loss)
    assert f"{top.n_products} products" in repr(top)
    assert 1 < top.n_products < brute_force("tanh", "all").shape[0]


def test_the_model_is_left_alone_and_seeds_decide():
    case = BY_ID["tanh"]
    net, (X, y) = case.fitted(), case.data()
    before = snapshot(net)
    found = [
        hessian_eigenvalues(net, X, y, k=2, layer="all", random_state=seed, rtol=0.1)
        for seed in (0, 0, 1)
    ]
    assert same(before, snapshot(net))
    assert found[0].values.tolist() == found[1].values.tolist()
    assert found[0].values.tolist() != found[2].values.tolist()


def test_the_result_as_text_array_and_table():
    case = BY_ID["mse"]
    found = hessian_eigenvalues(case.fitted(), *case.data(), k=6, layer="all")
    assert np.asarray(found).tolist() == found.values.tolist()
    assert len(found) == 6
    assert "all layers" in repr(found)
    assert ", ..." in repr(found)
    assert found.frame()["eigenvalue"].tolist() == found.values.tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "Expected k to be a positive integer, got 0"),
        ({"k": 10_000}, "Expected k to be at most the number of weights"),
        ({"which": "LA"}, r"Expected which to be one of .* got 'LA'"),
        ({"rtol": "no"}, "Expected rtol to be a positive number, got 'no'"),
        ({"max_iter": 0}, "Expected max_iter to be a positive integer, got 0"),
        (
            {"k": 3, "max_iter": 5, "rtol": 1e-9},
            "largest 3 eigenvalues did not converge",
        ),
    ],
)
def test_options_are_checked(options, message):
    case = BY_ID["conv2d"]
    with pytest.raises(ValueError, match=message):
        hessian_eigenvalues(case.fitted(), *case.data(), layer="all", **options)


def test_weights_that_overflow_are_refused():
    case = BY_ID["mse"]
    net, (X, y) = case.fitted(), case.data()
    with torch.no_grad():
        net.module_[0].weight.fill_(1e300)
    with pytest.raises(ValueError, match="finite"):
        hessian_eigenvalues(net, X, y, layer="all")


# ---------------------------------------------------------------------------
# Products
# ---------------------------------------------------------------------------
@every_net
@pytest.mark.parametrize("budget", [0, 2**29])
def test_products_with_and_without_a_kept_graph(
    name, layer, budget, opened, monkeypatch
):
    monkeypatch.setitem(hessian_products._KEPT_BYTES, "cpu", budget)
    case, matrix = BY_ID[name], brute_force(name, layer)
    hessian = opened(case.fitted(), *case.data(), layer)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        vector = hessian.normal(generator)
        expected = torch.from_numpy(matrix) @ vector
        torch.testing.assert_close(hessian(vector), expected, rtol=1e-9, atol=1e-12)
    assert hessian.n_products == 3
    assert (hessian._kept is not None) == bool(budget)
    assert hessian.mean_loss == pytest.approx(hessian.space.risk(hessian.space.weights))


def test_what_lies_before_the_layer_runs_once():
    calls = {"first": 0, "last": 0}

    class Counting(nn.Linear):
        def __init__(self, name, *shape):
            super().__init__(*shape)
            self.name = name

        def forward(self, x):
            calls[self.name] += 1
            return super().forward(x)

    module = nn.Sequential(
        Counting("first", 6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(),
        Counting("last", 8, 3),
    ).double()  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(50, 6, dtype=torch.float64, generator=generator)
    y = torch.arange(50) % 3
    counts, n_products = [], []
    for rtol in (0.5, 1e-9):
        calls.update(first=0, last=0)
        found = hessian_max_eigenvalue(
            module, X, y, loss="cross_entropy", layer="2", rtol=rtol, random_state=0
        )
        counts.append(dict(calls))
        n_products.append(found.n_products)
    assert n_products[0] < n_products[1]
    assert counts[0] == counts[1]


def test_a_graph_that_cannot_be_used_twice_is_built_again():
    """An operation whose second derivative can be taken once in each forward pass."""

    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, log):
            ctx.save_for_backward(x)
            ctx.log = log
            return x**3

        @staticmethod
        def backward(ctx, g):
            (x,) = ctx.saved_tensors
            return Slope.apply(g, x, ctx.log), None

    class Slope(torch.autograd.Function):
        @staticmethod
        def forward(ctx, g, x, log):
            ctx.save_for_backward(g, x)
            ctx.uses, ctx.log = 0, log
            return 3 * x**2 * g

        @staticmethod
        def backward(ctx, gg):
            ctx.uses += 1
            if ctx.uses > 1:
                ctx.log.append("used again")
                raise RuntimeError("This graph is gone.")
            g, x = ctx.saved_tensors
            return 3 * x**2 * gg, 6 * x * g * gg, None

    class Cube(nn.Module):
        def __init__(self, log):
            super().__init__()
            self.log = log

        def forward(self, x):
            return Once.apply(x, self.log) if self.log is not None else x**3

    generator = torch.Generator().manual_seed(0)
    X = torch.randn(30, 5, dtype=torch.float64, generator=generator)
    y = torch.arange(30) % 3
    values, log = [], []
    for each in (None, log):
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(5, 9), Cube(each), nn.Linear(9, 3)).double()
        found = hessian_max_eigenvalue(
            module, X, y, loss="cross_entropy", layer="0", random_state=0
        )
        values.append(found.value)
    assert log == ["used again"]
    assert values[0] == pytest.approx(values[1], rel=1e-10)


def test_all_eigenvalues_sum_to_the_trace():
    case = BY_ID["tanh"]
    trace = hessian_trace(case.fitted(), *case.data(), layer="all")
    found = hessian_eigenvalues(
        case.fitted(), *case.data(), layer="all", k=trace.n_weights
    )
    assert found.method == "dense"
    assert found.values.sum() == pytest.approx(trace.value, rel=1e-9)
