"""Hessian trace and eigenvalue, Fisher-Rao and weight norms, and what all share."""

import functools
import math
import pickle

import numpy as np
import pytest
import torch
from sklearn.datasets import load_iris
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from sklearn_relflat import list_layers, relative_flatness
from sklearn_relflat._measures.average_sharpness import average_sharpness
from sklearn_relflat._measures.by_name import MEASURES
from sklearn_relflat._measures.hessian_trace import hessian_trace
from sklearn_relflat._measures.linf_sharpness import linf_sharpness
from sklearn_relflat._measures.max_eigenvalue import hessian_max_eigenvalue
from sklearn_relflat._measures.norms import fisher_rao_norm, weight_norm
from sklearn_relflat._measures.pac_bayes import pac_bayes_flatness
from sklearn_relflat._measures.sharpness import asam_sharpness, sam_sharpness
from sklearn_relflat._models.view import lossless_view
from tests.cases import CASES, Case, sequential
from tests.measure_oracles import fisher_rao, joint_hessian, risk_at, same, snapshot

BY_ID = {case.id: case for case in CASES}
HOMOGENEOUS = Case(
    "homogeneous",
    sequential(
        lambda: nn.Linear(5, 6, bias=False),
        nn.ReLU,
        lambda: nn.Linear(6, 4, bias=False),
        lambda: nn.LeakyReLU(0.1),
        lambda: nn.Linear(4, 3, bias=False),
    ),
    (5,),
    ("0", "2", "4"),
)
# One layer of every case, and, of a few, all layers together.
SELECTIONS = [
    *[pytest.param(case.id, case.layers[0], id=case.id) for case in CASES],
    *[
        pytest.param(name, "all", id=f"{name}-all")
        for name in ("relu", "tanh", "mse", "sum", "weights", "tied", "recurrent")
    ],
    pytest.param("tanh", ["0", "4"], id="tanh-list"),
]
selections = pytest.mark.parametrize(("name", "layer"), SELECTIONS)


def is_sampled(name):
    return name.startswith(("pac_bayes", "average"))


def cheap(name, measure):
    """A measure with options that make it cheap and applicable."""
    if is_sampled(name):
        return functools.partial(measure, random_state=0, n_draws=2)
    if name.startswith("inverse_margin"):
        # Nets that are not trained are right about one of the samples.
        return functools.partial(measure, quantile=0.99)
    if name == "distance_to_initialization":
        return lambda model, *data, **options: measure(
            model, *data, **options, initial=zeros_like(model)
        )
    return measure


def zeros_like(model):
    """State of a model before training, if that were zero."""
    return {
        name: torch.zeros_like(parameter)
        for name, parameter in lossless_view(model).module.named_parameters()
    }


CHEAP = {name: cheap(name, measure) for name, measure in MEASURES.items()}
every_measure = pytest.mark.parametrize("name", list(MEASURES))
PERTURBING = {
    "hessian_max_eigenvalue": hessian_max_eigenvalue,
    "pac_bayes_flatness": pac_bayes_flatness,
    "sam_sharpness": sam_sharpness,
    "asam_sharpness": asam_sharpness,
    "linf_sharpness": linf_sharpness,
    "average_sharpness": functools.partial(average_sharpness, n_draws=2),
}
every_perturbing = pytest.mark.parametrize("name", list(PERTURBING))


def names_of(case, layer):
    net = case.fitted()
    return (
        list_layers(net)
        if layer == "all"
        else [layer] * isinstance(layer, str) or list(layer)
    )


@functools.cache
def hessian(name, names):
    return joint_hessian(BY_ID[name], list(names))


# ---------------------------------------------------------------------------
# Against the brute-force Hessian
# ---------------------------------------------------------------------------
@selections
def test_trace(name, layer):
    case = BY_ID[name]
    expected = torch.trace(hessian(name, tuple(names_of(case, layer))))
    result = hessian_trace(case.fitted(), *case.data(), layer=layer)
    assert result.value == pytest.approx(float(expected), rel=1e-9)
    assert result.stderr == 0.0


@selections
def test_max_eigenvalue(name, layer):
    case = BY_ID[name]
    matrix = hessian(name, tuple(names_of(case, layer)))
    expected = float(torch.linalg.eigvalsh(matrix)[-1])
    result = hessian_max_eigenvalue(
        case.fitted(), *case.data(), layer=layer, rtol=1e-9, random_state=0
    )
    assert result.value == pytest.approx(expected, rel=1e-7)
    assert result.method == ("dense" if len(matrix) <= 32 else "lanczos")
    assert result.tolerance <= 1e-6 * abs(expected)


@pytest.mark.parametrize("name", ["relu", "tanh", "conv2d"])
def test_single_precision(name):
    case = BY_ID[name]
    layer = case.layers[0]
    matrix = hessian(name, (layer,))
    net, (X, y) = case.fitted(torch.float32), case.data(torch.float32)
    trace = hessian_trace(net, X, y, layer=layer)
    top = hessian_max_eigenvalue(net, X, y, layer=layer, random_state=0)
    assert trace.value == pytest.approx(float(torch.trace(matrix)), rel=1e-4)
    assert top.value == pytest.approx(
        float(torch.linalg.eigvalsh(matrix)[-1]), rel=1e-4
    )


def test_sampled_trace():
    """Within four standard errors, and closer with a smaller rtol."""
    case = BY_ID["tanh"]
    net, (X, y) = case.fitted(batch_size=-1), case.data(n=300)
    exact = hessian_trace(net, X, y, layer="2", method="exact").value
    errors = []
    for seed in range(20):
        result = hessian_trace(
            net, X, y, layer="2", method="sampled", rtol=0.1, random_state=seed
        )
        assert result.method == "sampled"
        errors.append((result.value - exact) / result.stderr)
    assert max(map(abs, errors)) < 5
    assert abs(np.mean(errors)) < 4 / math.sqrt(len(errors))


def test_sampled_trace_is_reproducible():
    case = BY_ID["tanh"]
    values = [
        hessian_trace(
            case.fitted(),
            *case.data(),
            layer="all",
            method="sampled",
            random_state=seed,
        ).value
        for seed in (3, 3, 4)
    ]
    assert values[0] == values[1] != values[2]


def test_gauss_newton_trace():
    """Without second derivatives of the head, which a tanh has and a ReLU has not."""
    X, y = BY_ID["tanh"].data()
    for name in ("relu", "tanh"):
        net = BY_ID[name].fitted()
        full = hessian_trace(net, X, y, layer="0").value
        part = hessian_trace(net, X, y, layer="0", curvature="gauss_newton").value
        assert part > 0
        assert (full == pytest.approx(part, rel=1e-9)) == (name == "relu")


@pytest.mark.parametrize("name", ["relu", "tanh"])
def test_sample_weight_repeats_samples(name):
    case = BY_ID[name]
    X, y = case.data()
    counts = torch.tensor([0, 2, 1, 3, 1, 1, 1, 2, 0, 1, 1])
    repeated = torch.arange(len(X)).repeat_interleave(counts)
    for name in (
        "hessian_trace",
        "hessian_max_eigenvalue",
        "fisher_rao_norm",
        "sam_sharpness",
        "asam_sharpness",
        "linf_sharpness",
        "average_sharpness",
        "pac_bayes_flatness",
        "inverse_margin",
        "inverse_margin_spectral",
        "class_distance_normalized_variance",
    ):
        weighted = CHEAP[name](case.fitted(), X, y, sample_weight=counts.numpy())
        plain = CHEAP[name](case.fitted(), X[repeated], y[repeated])
        assert weighted.value == pytest.approx(plain.value, rel=1e-9), name


def test_flat_loss_has_no_curvature():
    """Outputs that do not depend on the layer: a Hessian of exactly zero."""
    X, y = BY_ID["relu"].data()
    net = BY_ID["relu"].fitted()
    with torch.no_grad():
        net.module_[4].weight.zero_()
    result = hessian_max_eigenvalue(net, X, y, layer="0", random_state=0)
    assert result.value == 0.0
    wide = sequential(lambda: nn.Linear(5, 20), nn.ReLU, lambda: nn.Linear(20, 3))
    net = Case("wide", wide, (5,), ("0",)).fitted()
    with torch.no_grad():
        net.module_[2].weight.zero_()
    result = hessian_max_eigenvalue(net, X, y, layer="0", random_state=0)
    assert (result.value, result.method) == (0.0, "lanczos")


def test_largest_is_not_largest_in_absolute_value():
    """Far from a minimum a negative eigenvalue may have the largest modulus."""
    case, names = BY_ID["mse"], ["0", "2"]
    net, (X, y) = case.fitted(), case.data()
    y = torch.zeros_like(y)
    y[:, 2] = 1000.0
    risk, flat = risk_at(case, net, names, X, y)
    matrix = torch.func.jacrev(torch.func.jacrev(risk))(flat).detach()
    values = torch.linalg.eigvalsh(matrix)
    assert -values[0] > values[-1] > 0
    result = hessian_max_eigenvalue(net, X, y, layer=names, random_state=0)
    assert result.value == pytest.approx(float(values[-1]), rel=1e-6)


# ---------------------------------------------------------------------------
# Fisher-Rao norm
# ---------------------------------------------------------------------------
def sample_mass(case, y):
    """Weight of each sample in the criterion's mean."""
    if case.id == "weights":
        return [float(case.options["weight"][label]) for label in y]
    if case.id == "ignore":
        return [float(label != case.options["ignore_index"]) for label in y]
    return [1.0] * len(y)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("relu", "all"),
        ("tanh", "0"),
        ("tanh", "all"),
        ("mse", ["0", "4"]),
        ("weights", "all"),
        ("ignore", "2"),
        ("sum", "2"),
        ("binary", "all"),
        ("nll", "all"),
        ("conv2d", "all"),
        ("tokens", "0"),
        ("recurrent", "all"),
        ("tied", "all"),
        ("attention", "query"),
        ("encoder", "block.self_attn.out_proj"),
    ],
)
def test_fisher_rao_in_the_weights(name, layer):
    case = BY_ID[name]
    X, y = case.data()
    expected = fisher_rao(case, names_of(case, layer), sample_mass(case, y))
    result = fisher_rao_norm(case.fitted(), X, y, layer=layer, method="weights")
    assert result.value == pytest.approx(expected, rel=1e-9)


def test_fisher_rao_formula_on_a_homogeneous_net():
    """(L + 1) sqrt(mean <dl/df, f>^2), with L + 1 = 3 weight layers."""
    X, y = HOMOGENEOUS.data()
    net = HOMOGENEOUS.fitted()
    expected = fisher_rao(HOMOGENEOUS, ["0", "2", "4"], [1.0] * len(X))
    assert fisher_rao_norm(net, X, y).value == pytest.approx(expected, rel=1e-10)
    for layer in ("0", "2", None):
        single = fisher_rao_norm(net, X, y, layer=layer)
        assert single.value == pytest.approx(expected / 3, rel=1e-10)


def test_fisher_rao_with_biases_is_another_number():
    X, y = BY_ID["relu"].data()
    net = BY_ID["relu"].fitted()
    outputs = fisher_rao_norm(net, X, y).value
    weights = fisher_rao_norm(net, X, y, method="weights").value
    assert abs(outputs / weights - 1) > 0.01


# ---------------------------------------------------------------------------
# Weight norm
# ---------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["relu", "conv2d", "tied"])
def test_weight_norm(name):
    case = BY_ID[name]
    net, (X, y) = case.fitted(), case.data()
    modules = {
        id(m.weight): m.weight for m in net.module_.modules() if hasattr(m, "weight")
    }
    total = sum(float(w.detach().square().sum()) for w in modules.values())
    assert weight_norm(net, X, y, layer="all").value == pytest.approx(total, rel=1e-12)
    last = list(modules.values())[-1].detach()
    assert weight_norm(net, X).value == pytest.approx(float(last.square().sum()))


# ---------------------------------------------------------------------------
# What all measures have in common
# ---------------------------------------------------------------------------
@pytest.fixture(scope="module")
def iris():
    X, y = load_iris(return_X_y=True)
    return StandardScaler().fit_transform(X), y


@pytest.fixture(scope="module")
def mlp(iris):
    mlp = MLPClassifier((6,), solver="lbfgs", max_iter=500, alpha=0.1, random_state=0)
    return mlp.fit(*iris)


@every_measure
def test_works_on_scikit_learn_and_pipelines(name, mlp, iris):
    X, y = load_iris(return_X_y=True)
    scaler = StandardScaler().fit(X)
    pipeline = make_pipeline(scaler, mlp)
    inner = CHEAP[name](mlp, *iris)
    assert CHEAP[name](pipeline, X, y).value == pytest.approx(inner.value, rel=1e-9)
    assert inner.n_samples == 150


@every_measure
def test_linear_model(name):
    X, y = load_iris(return_X_y=True)
    model = LogisticRegression(max_iter=1000).fit(X, y)
    coef = model.coef_.copy()
    result = CHEAP[name](model, X, y)
    assert np.isfinite(result.value)
    assert result.layer in ("coef", "all")
    assert np.array_equal(model.coef_, coef)


@every_measure
def test_does_not_depend_on_batches(name):
    case = BY_ID["conv2d"]
    X, y = case.data()
    values = [
        CHEAP[name](case.fitted(batch_size=size), X, y).value for size in (3, 11, -1)
    ]
    assert values == pytest.approx([values[0]] * 3, rel=1e-9)


@every_measure
def test_leaves_the_model_as_it_is(name):
    case = BY_ID["batch_norm"]
    X, y = case.data()
    net = case.fitted()
    net.module_.train()
    for p in net.module_.parameters():
        p.grad = torch.ones_like(p)
    before = snapshot(net)
    CHEAP[name](net, X, y)
    assert same(before, snapshot(net))


class Interrupting(nn.Module):
    """Raises in a chosen forward pass."""

    left = None

    def forward(self, x):
        if Interrupting.left is not None:
            Interrupting.left -= 1
            if Interrupting.left < 0:
                raise KeyboardInterrupt
        return x


@every_measure
def test_leaves_the_model_as_it_is_when_interrupted(name):
    module = sequential(
        lambda: nn.Linear(5, 6),
        lambda: nn.BatchNorm1d(6),
        nn.ReLU,
        lambda: nn.Linear(6, 3),
        Interrupting,
    )
    case = Case("interrupted", module, (5,), ("0",))
    X, y = case.data()
    net = case.fitted()
    net.module_.train()
    before = snapshot(net)
    # In the first pass over the data, and, of those that perturb, in a later one.
    for left in (2, 5) if name in PERTURBING else (0,):
        Interrupting.left = left
        try:
            with pytest.raises(KeyboardInterrupt):
                CHEAP[name](net, X, y)
        finally:
            Interrupting.left = None
        assert same(before, snapshot(net))


@every_measure
def test_loss_by_name(name, mlp, iris):
    result = CHEAP[name](mlp, *iris, loss="squared_error")
    assert result.loss == "squared_error"


@every_measure
def test_unknown_layer(name, mlp, iris):
    with pytest.raises(ValueError, match=r"'nope' .* does not exist. Choose one of"):
        CHEAP[name](mlp, *iris, layer="nope")


@every_measure
def test_not_finite_X(name, mlp, iris):
    X, y = iris[0].copy(), iris[1]
    X[3, 1] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        CHEAP[name](mlp, X, y)


WITHOUT_Y = {"weight_norm", "path_norm", "distance_to_initialization"}


@pytest.mark.parametrize("name", sorted(set(MEASURES) - WITHOUT_Y))
def test_needs_y(name, mlp, iris):
    with pytest.raises(ValueError, match="Expected y"):
        CHEAP[name](mlp, iris[0])


@every_perturbing
def test_refuses_computed_weights(name):
    class Parametrized(nn.Sequential):
        def __init__(self):
            super().__init__(nn.Linear(5, 3))
            nn.utils.parametrizations.weight_norm(self[0])

    case = Case("parametrized", Parametrized, (5,), ("0",))
    with pytest.raises(TypeError, match="computed from other parameters"):
        PERTURBING[name](case.fitted(), *case.data())


def test_computed_weights_have_a_trace():
    class Parametrized(nn.Sequential):
        def __init__(self):
            super().__init__(nn.Linear(5, 3))
            nn.utils.parametrizations.weight_norm(self[0])

    case = Case("parametrized", Parametrized, (5,), ("0",))
    net, (X, y) = case.fitted(), case.data()
    p = net.module_(X).softmax(1).detach()
    expected = ((p * (1 - p)).sum(1) * X.square().sum(1)).mean()
    assert hessian_trace(net, X, y).value == pytest.approx(float(expected), rel=1e-9)


def test_result():
    case = BY_ID["relu"]
    net, (X, y) = case.fitted(), case.data()
    result = hessian_trace(net, X, y, layer="2")
    assert float(result) == result.value
    assert result.layer == "2"
    assert result.n_weights == 24
    assert result.mean_loss == pytest.approx(relative_flatness(net, X, y).mean_loss)
    assert "hessian_trace" in repr(result)
    assert "cross_entropy" in repr(result)
    assert pickle.loads(pickle.dumps(result)).value == result.value
    with pytest.raises(AttributeError):
        result.value = 1.0
    several = weight_norm(net, X, layer=["0", "2"])
    assert several.layer == "0+2"
    assert "all layers" in repr(weight_norm(net, X, layer="all"))
    net, (X, y) = case.fitted(batch_size=-1), case.data(n=120)
    sampled = hessian_trace(
        net, X, y, layer="2", method="sampled", rtol=np.inf, random_state=0
    )
    assert "+-" in repr(sampled)


def test_options_are_checked():
    X, y = load_iris(return_X_y=True)
    model = LinearRegression().fit(X, y)
    with pytest.raises(ValueError, match=r"Expected rtol to be .* got 0"):
        hessian_max_eigenvalue(model, X, y, rtol=0)
    with pytest.raises(ValueError, match=r"max_iter to be .* got 1\.5"):
        hessian_max_eigenvalue(model, X, y, max_iter=1.5)
    with pytest.raises(ValueError, match=r"method to be one of .* got 'best'"):
        fisher_rao_norm(model, X, y, method="best")
    with pytest.raises(ValueError, match=r"curvature to be one of .* got 'fisher'"):
        hessian_trace(model, X, y, curvature="fisher")
    with pytest.raises(ValueError, match=r"method to be one of .* got 'best'"):
        hessian_trace(model, X, y, method="best")
    with pytest.raises(ValueError, match=r"rtol to be .* got -1"):
        hessian_trace(model, X, y, rtol=-1)
    with pytest.raises(ValueError, match="got an empty list"):
        weight_norm(model, X, layer=[])


def test_lanczos_that_does_not_converge():
    case = BY_ID["tanh"]
    with pytest.raises(ValueError, match=r"did not converge to rtol=1e-15 .* Increase"):
        hessian_max_eigenvalue(
            case.fitted(),
            *case.data(),
            layer="all",
            rtol=1e-15,
            max_iter=1,
            random_state=0,
        )


def test_no_second_derivative():
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.exp()

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, gradient):
            return gradient * ctx.saved_tensors[0].exp()

    class Exponential(nn.Module):
        def forward(self, x):
            return Once.apply(x)

    case = Case(
        "once",
        sequential(lambda: nn.Linear(5, 4), Exponential, lambda: nn.Linear(4, 3)),
        (5,),
        ("0",),
    )
    with pytest.raises(ValueError, match="second derivative of the model"):
        hessian_max_eigenvalue(case.fitted(), *case.data(), layer="0")


@pytest.mark.gpu
@every_measure
def test_gpu(name):
    case = BY_ID["conv2d"]
    X, y = case.data()
    here = case.fitted()
    there = case.fitted()
    there.set_params(device="cuda")
    there.module_.cuda()
    there.criterion_.cuda()
    expected = CHEAP[name](here, X, y).value
    value = CHEAP[name](there, X, y).value
    # Other random numbers on another device.
    if not is_sampled(name):
        assert value == pytest.approx(expected, rel=1e-8)
