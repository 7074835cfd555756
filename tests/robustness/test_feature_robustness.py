"""Feature robustness against loops over samples, weights and theory; bad input."""

import copy
import functools
import itertools

import numpy as np
import pytest
import torch
from scipy.stats import kstest, ortho_group
from sklearn.datasets import load_diabetes, load_iris, load_wine
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LinearRegression, LogisticRegression, RidgeClassifier
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch import NeuralNet, NeuralNetClassifier
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from sklearn_relflat import relative_flatness
from sklearn_relflat._robustness import sums as sums_module
from sklearn_relflat._robustness.feature_robustness import (
    FeatureRobustness,
    feature_robustness,
)
from sklearn_relflat._robustness.perturbations import (
    GivenMatrices,
    HaarOrthogonal,
    RadialBall,
    RankOneDirections,
)
from sklearn_relflat._split.feature_split import FeatureSplit
from sklearn_relflat._split.prefix_memory import PrefixMemory
from tests.cases import CASES, sequential
from tests.oracles import layer_hessian

PAIRS = [
    pytest.param(case, layer, id=f"{case.id}-{layer}")
    for case in CASES
    for layer in case.layers
]
BY_ID = {case.id: case for case in CASES}
DELTAS = [0.5, 0.02]


def random_matrices(k, m, seed=0):
    """Matrices of spectral norm one with no symmetry."""
    matrices = np.random.default_rng(seed).normal(size=(k, m, m))
    return matrices / np.linalg.norm(matrices, 2, axis=(1, 2))[:, None, None]


def weight_of(module, name):
    return dict(module.named_parameters(remove_duplicate=False))[f"{name}.weight"]


@functools.cache
def wine():
    X, y = load_wine(return_X_y=True)
    return StandardScaler().fit_transform(X), y


@functools.cache
def trained(kind):
    """A model at a minimum of its training loss with penalty."""
    if kind == "logistic":
        return LogisticRegression(C=1, max_iter=1000, tol=1e-8).fit(*wine())
    return MLPClassifier(
        (16, 8),
        activation=kind,
        alpha=1.0,
        solver="lbfgs",
        max_iter=3000,
        random_state=0,
    ).fit(*wine())


def small_net(*, dtype=torch.float64, batch_size=4, **options):
    """Net of the case "tanh" with options."""
    case = BY_ID["tanh"]
    net = case.fitted(dtype, batch_size)
    for name, value in options.items():
        setattr(net, name, value)
    return net, *case.data(dtype)


# ----------------------------------------------------------------- against loops


def perceptron_outputs(model, phi, layer):
    """Outputs of a perceptron for features that enter a layer, or of a linear model."""
    if not hasattr(model, "coefs_"):
        return np.atleast_2d(model.coef_) @ phi + model.intercept_
    for k in range(layer, len(model.coefs_)):
        if k > layer:
            phi = np.tanh(phi)
        phi = model.coefs_[k].T @ phi + model.intercepts_[k]
    return phi


def sample_loss(model, outputs, target):
    """Cross-entropy, or squared error averaged over outputs, of one sample."""
    if hasattr(model, "classes_"):
        return (
            np.log(np.exp(outputs).sum()) - outputs[list(model.classes_).index(target)]
        )
    return np.mean((outputs - target) ** 2)


def features_of(model, X, layer):
    phi = X
    for k in range(layer):
        phi = np.tanh(phi @ model.coefs_[k] + model.intercepts_[k])
    return phi


def looped(model, X, y, layer, deltas, matrices, label=lambda phi, target: target):
    """Definition 1, written out."""
    features = features_of(model, X, layer)
    m = features.shape[1]
    values = np.zeros((len(deltas), len(matrices)))
    for i, delta in enumerate(deltas):
        for j, matrix in enumerate(matrices):
            for phi, target in zip(features, y, strict=True):
                moved = (np.eye(m) + delta * matrix) @ phi
                after = perceptron_outputs(model, moved, layer)
                before = perceptron_outputs(model, phi, layer)
                values[i, j] += sample_loss(model, after, label(moved, target))
                values[i, j] -= sample_loss(model, before, target)
    return values / len(X)


def loop_cases():
    iris, diabetes = load_iris(return_X_y=True), load_diabetes(return_X_y=True)
    X, y = iris[0][::6], np.array(["a", "b", "c"])[iris[1][::6]]
    options = {"activation": "tanh", "solver": "lbfgs", "random_state": 0}
    mlp = MLPClassifier(hidden_layer_sizes=(5, 4), max_iter=300, **options)
    regressor = MLPRegressor(hidden_layer_sizes=(5,), max_iter=50, **options)
    X_real, y_real = diabetes[0][:30] * 10, diabetes[1][:30] / 100
    return {
        "logistic": (LogisticRegression(max_iter=500).fit(X, y), X, y, "coef", 0),
        "linear": (LinearRegression().fit(X_real, y_real), X_real, y_real, "coef", 0),
        **{f"mlp-{k}": (mlp.fit(X, y), X, y, f"coefs.{k}", k) for k in range(3)},
        "regressor": (regressor.fit(X_real, y_real), X_real, y_real, "coefs.0", 0),
    }


@functools.cache
def loop_case(name):
    return loop_cases()[name]


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize(
    "name", ["logistic", "linear", "mlp-0", "mlp-1", "mlp-2", "regressor"]
)
def test_equals_a_loop_over_samples(name):
    model, X, y, layer, k = loop_case(name)
    matrices = random_matrices(3, features_of(model, X, k).shape[1])
    result = feature_robustness(
        model, X, y, deltas=DELTAS, matrices=matrices, layer=layer
    )
    expected = looped(model, X, y, k, DELTAS, matrices)
    np.testing.assert_allclose(result.values, expected, rtol=1e-9, atol=1e-12)
    assert result.layer == layer
    assert result.value_at_zero == 0.0


def moved_weight(module, name, delta, matrix):
    """Copy of a module whose weight w is w (I + delta A)."""
    other = copy.deepcopy(module)
    weight = weight_of(other, name)
    matrix = torch.eye(len(matrix), dtype=weight.dtype) + delta * torch.tensor(matrix)
    weight.data = (weight.data.flatten(1) @ matrix).reshape(weight.shape)
    return other


@pytest.mark.parametrize(("case", "layer"), PAIRS)
def test_equals_a_model_with_perturbed_weights(case, layer):
    net, (X, y) = case.fitted(), case.data()
    module = case.logits_module(net)
    matrices = random_matrices(2, weight_of(module, layer)[0].numel())
    result = feature_robustness(
        net, X, y, deltas=DELTAS, matrices=matrices, layer=layer
    )
    risk = case.risk(net, X, y)
    with torch.no_grad():
        base = risk(module).item()
        expected = [
            [risk(moved_weight(module, layer, d, A)).item() - base for A in matrices]
            for d in DELTAS
        ]
    scale = np.abs(expected).max()
    np.testing.assert_allclose(result.values, expected, rtol=1e-9, atol=1e-11 * scale)
    kappa = float(relative_flatness(net, X, y, layer=layer))
    assert result.flatness == pytest.approx(kappa, rel=1e-9)
    assert result.mean_loss == pytest.approx(base, rel=1e-9)


def moved_features(layer, delta, matrix):
    """Hooks that perturb what enters a layer: inputs, or unfolded patches."""
    A = torch.eye(len(matrix), dtype=torch.float64) + delta * torch.tensor(matrix)

    def linear(module, args):
        return (args[0] @ A.T,)

    def convolution(module, args, output):
        patches = F.unfold(
            args[0],
            module.kernel_size,
            padding=module.padding,
            stride=module.stride,
        )
        rows = module.weight.flatten(1) @ (A @ patches) + module.bias[:, None]
        return rows.reshape(output.shape)

    if isinstance(layer, nn.Linear):
        return layer.register_forward_pre_hook(linear)
    return layer.register_forward_hook(convolution)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("tanh", "2"),
        ("tokens", "0"),
        ("attention", "key"),
        ("conv2d", "0"),
        ("conv2d", "3"),
        ("recurrent", "inner"),
    ],
)
def test_equals_perturbing_what_enters_the_layer(name, layer):
    case = BY_ID[name]
    net, (X, y) = case.fitted(), case.data()
    matrices = random_matrices(2, weight_of(net.module_, layer)[0].numel())
    result = feature_robustness(
        net, X, y, deltas=DELTAS, matrices=matrices, layer=layer
    )
    risk, module = case.risk(net, X, y), net.module_
    expected = np.zeros((2, 2))
    with torch.no_grad():
        base = risk(module).item()
        for i, j in itertools.product(range(2), range(2)):
            target = module.get_submodule(layer)
            handle = moved_features(target, DELTAS[i], matrices[j])
            expected[i, j] = risk(module).item() - base
            handle.remove()
    np.testing.assert_allclose(result.values, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("relu", "4"),
        ("relu", "0"),
        ("gelu", "0"),
        ("mse", "4"),
        ("weights", "4"),
        ("conv2d_same", "2"),
        ("recurrent", "inner"),
        ("tied", "first"),
        ("encoder", "block.self_attn.out_proj"),
    ],
)
def test_taylor_coefficients_are_those_of_the_hessian(name, layer):
    case = BY_ID[name]
    net, (X, y) = case.fitted(), case.data()
    module = case.logits_module(net)
    weight = weight_of(module, layer).detach().flatten(1)
    matrices = random_matrices(3, weight.shape[1])
    result = feature_robustness(net, X, y, deltas=1e-4, matrices=matrices, layer=layer)
    changes = torch.stack([weight @ torch.tensor(A) for A in matrices])
    hessian = layer_hessian(module, layer, case.risk(net, X, y))
    second = torch.einsum("jst,stuv,juv->j", changes, hessian, changes) / 2
    np.testing.assert_allclose(result.second_order, second, rtol=1e-8, atol=1e-12)
    # The first order is what is left.
    first = (result.values[0] - 1e-8 * result.second_order) / 1e-4
    np.testing.assert_allclose(result.first_order, first, rtol=1e-4, atol=1e-6)


# --------------------------------------------------------------------- matrices


@pytest.mark.parametrize(
    ("matrices", "explicit"),
    [
        ("orthogonal", HaarOrthogonal()),
        ("ball", RadialBall()),
        ("rank_one", RankOneDirections()),
    ],
)
@pytest.mark.parametrize("layer", ["0", "4"])
def test_random_matrices_have_the_law_of_explicit_ones(matrices, explicit, layer):
    net, X, y = small_net(batch_size=11)
    m = weight_of(net.module_, layer).shape[1]
    call = functools.partial(
        feature_robustness, net, X, y, deltas=0.7, layer=layer, random_state=0
    )
    drawn = call(matrices=matrices, n_matrices=400)
    given = call(matrices=explicit.sample(400, m, random_state=1))
    assert given.draw_index.tolist() == list(range(400))
    for a, b in [
        (drawn.values[0, ::2], given.values[0, ::2]),
        (drawn.second_order[::2], given.second_order[::2]),
    ]:
        assert kstest(a, b).pvalue > 1e-3


def test_a_function_of_matrices_is_used():
    net, X, y = small_net()
    matrices = ortho_group.rvs(4, size=3, random_state=0)
    seen = []

    def function(n_matrices, n_features, rng):
        seen.append((n_matrices, n_features))
        return matrices

    called = feature_robustness(
        net, X, y, deltas=DELTAS, matrices=function, n_matrices=3
    )
    given = feature_robustness(net, X, y, deltas=DELTAS, matrices=matrices)
    np.testing.assert_array_equal(called.values, given.values)
    assert seen == [(3, 4)]
    assert (called.matrices, given.matrices) == ("CallableMatrices", "GivenMatrices")


@pytest.mark.parametrize("matrices", ["orthogonal", "ball", "rank_one", "projection"])
@pytest.mark.parametrize("layer", ["2", "4"])
def test_the_seed_decides(matrices, layer):
    net, X, y = small_net()
    call = functools.partial(
        feature_robustness,
        net,
        X,
        y,
        deltas=DELTAS,
        n_matrices=4,
        matrices=matrices,
        layer=layer,
    )
    once, twice = call(random_state=3), call(random_state=3)
    np.testing.assert_array_equal(once.values, twice.values)
    assert not np.array_equal(once.values, call(random_state=4).values)
    # The global generators are neither read nor moved.
    np.random.seed(5)  # noqa: NPY002 - the global state is what is tested
    torch.manual_seed(5)
    first = call()
    np.random.seed(5)  # noqa: NPY002
    torch.manual_seed(5)
    assert not np.array_equal(first.values, call().values)
    assert torch.rand(1) == torch.rand(1, generator=torch.manual_seed(5))


@pytest.mark.parametrize("layer", ["2", "4"])
def test_pairs_are_opposite(layer):
    net, X, y = small_net()
    result = feature_robustness(
        net, X, y, deltas=1e-3, n_matrices=5, layer=layer, random_state=0
    )
    assert result.draw_index.tolist() == [0, 0, 1, 1, 2]
    np.testing.assert_array_equal(result.first_order[:4:2], -result.first_order[1:4:2])
    np.testing.assert_array_equal(result.second_order[:4:2], result.second_order[1:4:2])
    # Odd orders cancel, so that the second one is what a pair has on average.
    pair = result.values[0, :2].mean()
    assert pair == pytest.approx(1e-6 * result.second_order[0], rel=1e-4)


@pytest.mark.parametrize("matrices", ["orthogonal", random_matrices(6, 4)])
def test_many_matrices_take_several_passes(matrices, monkeypatch):
    net, X, y = small_net()
    call = functools.partial(
        feature_robustness,
        net,
        X,
        y,
        deltas=DELTAS,
        n_matrices=6,
        matrices=matrices,
        random_state=0,
    )
    expected = call()
    monkeypatch.setattr(sums_module, "_HELD_NUMBERS", 30)
    result = call()
    np.testing.assert_allclose(result.values, expected.values, rtol=1e-12)
    np.testing.assert_allclose(result.second_order, expected.second_order, rtol=1e-12)
    assert result.flatness == expected.flatness


# ----------------------------------------------------------------------- theory


@pytest.mark.parametrize(
    ("kind", "layer"),
    [
        ("logistic", "coef"),
        ("relu", "coefs.2"),
        ("tanh", "coefs.2"),
        ("tanh", "coefs.1"),
        ("tanh", "coefs.0"),
    ],
)
def test_theorem_5(kind, layer):
    deltas = 0.05 * 0.5 ** np.arange(4)
    result = feature_robustness(
        trained(kind),
        *wine(),
        deltas=deltas,
        layer=layer,
        n_matrices=64,
        random_state=0,
    )
    kappa = float(relative_flatness(trained(kind), *wine(), layer=layer))
    term = deltas**2 / (2 * result.n_features) * kappa
    np.testing.assert_allclose(result.flatness_term, term, rtol=1e-9)
    # The mean over matrices, with its own error and nothing taken from theory.
    ratio, error = result.mean / term, result.stderr / term
    assert np.all(np.abs(ratio - 1) < 3 * error + 100 * deltas**2)
    # The same matrices on both sides: no sampling error, and only even orders.
    second = deltas**2 * result.second_order.mean()
    deviation = np.abs(result.mean / second - 1)
    assert deviation[-1] < 2e-3
    np.testing.assert_allclose(deviation[:-1] / deviation[1:], 4, rtol=0.1)


@pytest.mark.parametrize("matrices", ["orthogonal", "ball", "rank_one"])
def test_second_order_averages_to_the_flatness_term(matrices):
    model = trained("tanh")
    result = feature_robustness(
        model, *wine(), deltas=1.0, matrices=matrices, n_matrices=2000, random_state=0
    )
    assert result.second_moment is not None
    draws = result.second_order[::2]
    error = draws.std(ddof=1) / np.sqrt(len(draws))
    assert abs(draws.mean() - result.flatness_term[0]) < 4 * error
    assert error < 0.1 * result.flatness_term[0]


def signed_permutations(m):
    """A finite group of orthogonal matrices with the second moments of all."""
    return np.array(
        [
            np.diag(signs)[list(order)]
            for order in itertools.permutations(range(m))
            for signs in itertools.product([-1.0, 1.0], repeat=m)
        ]
    )


@pytest.mark.parametrize("intercept", [True, False])
def test_squared_error_is_exact(intercept):
    X, y = load_diabetes(return_X_y=True)
    X, y = 20 * X[:, [2, 3, 8]], y / 100
    model = LinearRegression(fit_intercept=intercept).fit(X, y)
    kappa = 2 * np.sum(model.coef_**2) * np.mean(np.sum(X**2, axis=1))
    deltas = np.array([0.1, 1.0, 3.0])
    expected = deltas**2 / (2 * 3) * kappa
    # The average over a group with isotropic second moments is exact ...
    group = feature_robustness(
        model, X, y, deltas=deltas, matrices=signed_permutations(3)
    )
    np.testing.assert_allclose(group.mean, expected, rtol=1e-12)
    # ... that over random matrices within its error, and without it exact again.
    haar = feature_robustness(
        model, X, y, deltas=deltas, n_matrices=2000, random_state=0
    )
    np.testing.assert_allclose(haar.expectation, expected, rtol=1e-10)
    assert np.all(haar.expectation_stderr < 1e-10 * expected)
    assert np.all(np.abs(haar.mean - expected) < 4 * haar.stderr)
    np.testing.assert_allclose(
        haar.values,
        deltas[:, None] * haar.first_order + deltas[:, None] ** 2 * haar.second_order,
        atol=1e-10 * expected.max(),
    )
    assert haar.agreement_radius == 3.0


def test_expectation_is_the_mean_with_less_noise():
    model = trained("tanh")
    call = functools.partial(
        feature_robustness, model, *wine(), deltas=[0.1, 0.03], layer="coefs.0"
    )
    few, many = (
        call(n_matrices=16, random_state=0),
        call(n_matrices=800, random_state=1),
    )
    assert np.all(few.expectation_stderr < few.stderr / 2)
    error = np.hypot(few.expectation_stderr, many.expectation_stderr)
    assert np.all(np.abs(few.expectation - many.expectation) < 4 * error)
    error = many.stderr + many.expectation_stderr
    assert np.all(np.abs(many.mean - many.expectation) < 4 * error)


def test_matrices_without_isotropic_moments_have_no_flatness_term():
    model = trained("tanh")
    result = feature_robustness(
        model, *wine(), deltas=[0.001, 0.01], matrices="projection", random_state=0
    )
    assert result.second_moment is None
    assert result.flatness_term is None
    np.testing.assert_array_equal(result.expectation, result.mean)
    np.testing.assert_array_equal(result.expectation_stderr, result.stderr)
    assert result.flatness > 0


# ------------------------------------------------------- what the result answers


def made(values, deltas, **options):
    values = np.asarray(values, dtype=float)
    n = values.shape[1]
    fields = {
        "deltas": np.asarray(deltas, dtype=float),
        "values": values,
        "draw_index": np.arange(n),
        "first_order": np.zeros(n),
        "second_order": np.zeros(n),
        "value_at_zero": 0.0,
        "flatness": 4.0,
        "flatness_stderr": 0.0,
        "second_moment": 1.0,
        "layer": "coef",
        "loss": "cross_entropy",
        "matrices": "HaarOrthogonal",
        "n_samples": 10,
        "n_features": 2,
        "mean_loss": 0.5,
    }
    return FeatureRobustness(**{**fields, **options})


def test_means_and_errors_are_over_draws():
    result = made([[1.0, 3.0, 7.0, 9.0, 5.0]], [1.0], draw_index=[0, 0, 1, 1, 2])
    assert result.mean == pytest.approx(5.0)  # of 2, 8 and 5
    assert result.stderr == pytest.approx(3.0 / np.sqrt(3))
    lone = made([[1.0, 3.0]], [1.0], draw_index=np.array([0, 0]))
    assert (lone.mean, lone.stderr) == (2.0, np.inf)
    assert lone.expectation_stderr == np.inf


def test_epsilon_covers_all_smaller_sizes_and_all_matrices():
    # Not sorted, and not monotone: the rise at 0.2 is the highest.
    result = made([[0.1, 0.3], [0.5, 0.7], [-0.2, -0.1]], [0.4, 0.2, 0.1])
    assert result.epsilon() == 0.7
    assert result.epsilon(0.4) == 0.7
    assert result.epsilon(0.2) == 0.7
    # Negative at 0.1, zero at 0.
    assert result.epsilon(0.1) == result.epsilon(0.19) == 0.0
    assert result.epsilon(average=True) == pytest.approx(0.6)
    moving = made([[0.1]], [0.1], value_at_zero=0.25)
    assert moving.epsilon() == 0.25


@pytest.mark.parametrize("delta", [0.05, 0.41, -1.0, np.nan])
def test_epsilon_is_not_extrapolated(delta):
    result = made([[0.1], [0.5]], [0.4, 0.1])
    with pytest.raises(ValueError, match=r"between 0\.1 and 0\.4, .* got"):
        result.epsilon(delta)


@pytest.mark.parametrize(
    ("excess", "expected"),
    [([0.0, 0.09, 0.11], 0.2), ([0.2, 0.0, 0.0], 0.0), ([0.0, 0.05, -0.05], 0.4)],
)
def test_agreement_radius(excess, expected):
    deltas = np.array([0.1, 0.2, 0.4])
    # kappa = 4, m = 2: the term is delta^2.
    rise = (1 + np.array(excess)) * deltas**2
    order = [2, 0, 1]
    result = made(rise[order, None], deltas[order], second_order=np.ones(1))
    np.testing.assert_allclose(result.flatness_term, deltas[order] ** 2)
    assert result.agreement_radius == expected
    # The sampling error of the second order is no disagreement.
    noisy = made(
        rise[order, None] + deltas[order, None] ** 2,
        deltas[order],
        second_order=np.full(1, 2.0),
    )
    assert noisy.agreement_radius == expected
    np.testing.assert_allclose(noisy.expectation, rise[order])


def test_repr_says_what_was_measured():
    text = repr(made([[1.0, 1.2], [2.0, 2.2]], [0.5, 1.0]))
    assert "E_F = 2.1 +- 0.1 (flatness term 1) at delta = 1 in layer 'coef'" in text
    assert "2 matrices of HaarOrthogonal, cross_entropy 0.5 on 10 samples" in text
    assert "term" not in repr(made([[1.0]], [0.5], second_moment=None))


def test_sizes_keep_their_order():
    net, X, y = small_net()
    call = functools.partial(feature_robustness, net, X, y, random_state=0)
    mixed = call(deltas=[0.3, 0.1, 0.3, 0.2])
    ordered = call(deltas=np.array([0.1, 0.2, 0.3]))
    assert mixed.deltas.tolist() == [0.3, 0.1, 0.3, 0.2]
    np.testing.assert_allclose(mixed.values, ordered.values[[2, 0, 2, 1]], rtol=1e-12)
    assert mixed.epsilon(0.2) == ordered.epsilon(0.2)
    assert mixed.agreement_radius == ordered.agreement_radius
    alone = call(deltas=0.2)
    np.testing.assert_allclose(alone.values, ordered.values[1:2], rtol=1e-12)


# ------------------------------------------------------------- data and weights


@pytest.mark.parametrize("layer", ["0", "4"])
def test_batches_do_not_matter(layer):
    results = [
        feature_robustness(
            *small_net(batch_size=size), deltas=DELTAS, layer=layer, random_state=0
        )
        for size in (3, 11)
    ]
    np.testing.assert_allclose(results[0].values, results[1].values, rtol=1e-10)
    np.testing.assert_allclose(
        results[0].second_order, results[1].second_order, rtol=1e-10
    )


@pytest.mark.parametrize("layer", ["0", "4"])
def test_weights_count_samples(layer):
    net, X, y = small_net()
    weight = np.arange(len(y)) % 3
    index = np.repeat(np.arange(len(y)), weight)
    call = functools.partial(
        feature_robustness, net, deltas=DELTAS, layer=layer, random_state=0
    )
    weighted = call(X, y, sample_weight=weight)
    repeated = call(X[index], y[index])
    np.testing.assert_allclose(weighted.values, repeated.values, rtol=1e-10)
    np.testing.assert_allclose(weighted.second_order, repeated.second_order, rtol=1e-10)
    assert weighted.flatness == pytest.approx(repeated.flatness, rel=1e-10)


def test_another_loss_is_measured():
    net, X, y = small_net()
    matrices = random_matrices(2, 4)
    result = feature_robustness(
        net, X, y, deltas=DELTAS, matrices=matrices, loss="squared_error"
    )
    one_hot = F.one_hot(y, 3).double()
    with torch.no_grad():
        base = F.mse_loss(net.module_(X), one_hot)
        moved = moved_weight(net.module_, "4", DELTAS[0], matrices[1])
        expected = F.mse_loss(moved(X), one_hot) - base
    assert result.values[0, 1] == pytest.approx(expected.item(), rel=1e-9)
    assert result.loss == "squared_error"


def test_wrapped_models_and_data():
    X, y = wine()
    names = np.array(["a", "b", "c"])[y]
    raw = load_wine(return_X_y=True)[0]
    mlp = trained("tanh")
    call = functools.partial(
        feature_robustness, deltas=DELTAS, n_matrices=4, random_state=0
    )
    expected = call(mlp, X, y).values
    pipeline = make_pipeline(StandardScaler(), copy.deepcopy(mlp))
    pipeline[0].fit(raw)
    np.testing.assert_allclose(call(pipeline, raw, y).values, expected, rtol=1e-9)
    split = FeatureSplit(
        MLPClassifier((4,), solver="lbfgs", max_iter=200, random_state=0, alpha=1.0),
        layer="coefs.0",
    ).fit(X, names)
    inner = call(split.estimator_, X, names, layer="coefs.0")
    np.testing.assert_allclose(call(split, X, names).values, inner.values, rtol=1e-9)


def test_data_sets_carry_their_targets():
    net, X, y = small_net()
    call = functools.partial(feature_robustness, net, deltas=DELTAS, random_state=0)
    result = call(TensorDataset(X, y))
    np.testing.assert_allclose(result.values, call(X, y).values, rtol=1e-12)


@pytest.mark.parametrize("layer", ["0", "4"])
def test_single_precision(layer):
    double = feature_robustness(
        *small_net(),
        deltas=0.3,
        layer=layer,
        matrices=random_matrices(3, [5, 4][layer == "4"]),
    )
    single = feature_robustness(
        *small_net(dtype=torch.float32),
        deltas=0.3,
        layer=layer,
        matrices=random_matrices(3, [5, 4][layer == "4"]),
    )
    scale = np.abs(double.values).max()
    np.testing.assert_allclose(single.values, double.values, atol=1e-4 * scale)
    np.testing.assert_allclose(single.second_order, double.second_order, rtol=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("layer", ["0", "4"])
def test_on_the_gpu(layer):
    net, X, y = small_net()
    matrices = random_matrices(3, weight_of(net.module_, layer).shape[1])
    call = functools.partial(
        feature_robustness, deltas=DELTAS, layer=layer, matrices=matrices
    )
    expected = call(net, X, y)
    net.set_params(device="cuda")
    net.module_.to("cuda")
    result = call(net, X, y)
    np.testing.assert_allclose(result.values, expected.values, rtol=1e-9, atol=1e-12)
    assert feature_robustness(net, X, y, deltas=0.1, random_state=0).mean.shape == (1,)


def test_one_sample():
    net, X, y = small_net()
    matrices = random_matrices(2, 4)
    result = feature_robustness(net, X[:1], y[:1], deltas=0.5, matrices=matrices)
    with torch.no_grad():
        moved = moved_weight(net.module_, "4", 0.5, matrices[0])
        rise = F.cross_entropy(moved(X[:1]), y[:1])
        rise -= F.cross_entropy(net.module_(X[:1]), y[:1])
    assert result.values[0, 0] == pytest.approx(rise.item(), rel=1e-9)


def test_constant_features_are_perturbed_alike():
    net, X, y = small_net()
    call = functools.partial(feature_robustness, net, deltas=0.5, random_state=0)
    repeated = call(X[:1].repeat(4, 1), y[:1].repeat(4))
    np.testing.assert_allclose(repeated.values, call(X[:1], y[:1]).values, rtol=1e-10)


def test_features_that_are_zero_cannot_be_perturbed():
    model = LogisticRegression().fit(*wine())
    result = feature_robustness(
        model, np.zeros((4, 13)), np.array([0, 1, 2, 0]), deltas=[0.1, 10.0]
    )
    np.testing.assert_array_equal(result.values, 0.0)
    assert result.flatness == result.epsilon() == 0.0


# ----------------------------------------------------------------------- labels


@pytest.mark.parametrize(
    ("kind", "layer", "m"), [("logistic", "coef", 13), ("tanh", "coefs.1", 16)]
)
def test_labels_that_do_not_change_are_constant_labels(kind, layer, m):
    X, y = wine()
    call = functools.partial(
        feature_robustness,
        trained(kind),
        X,
        y,
        deltas=DELTAS,
        layer=layer,
        matrices=random_matrices(3, m),
    )
    constant, same = call(), call(labels=lambda features: y)
    np.testing.assert_allclose(same.values, constant.values, rtol=1e-8, atol=1e-14)
    assert same.value_at_zero == pytest.approx(0.0, abs=1e-15)
    np.testing.assert_array_equal(same.second_order, constant.second_order)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("name", ["logistic", "mlp-1", "mlp-2"])
def test_labels_of_perturbed_features(name):
    model, X, y, layer, k = loop_case(name)
    features = features_of(model, X, k)
    teacher = LogisticRegression(C=0.1).fit(features, y)
    matrices = np.concatenate([A := random_matrices(2, features.shape[1]), -A])
    result = feature_robustness(
        model,
        X,
        y,
        deltas=DELTAS,
        matrices=matrices,
        layer=layer,
        labels=teacher.predict,
    )

    def label(phi, target):
        return teacher.predict(phi[None])[0]

    expected = looped(model, X, y, k, DELTAS, matrices, label)
    np.testing.assert_allclose(result.values, expected, rtol=1e-8, atol=1e-12)
    at_zero = looped(model, X, y, k, [0.0], matrices[:1], label)
    assert result.value_at_zero == pytest.approx(at_zero[0, 0], abs=1e-12)
    assert result.epsilon() >= result.value_at_zero


def test_labels_with_class_weights():
    case = BY_ID["weights"]
    net, (X, y) = case.fitted(), case.data()
    matrices = random_matrices(2, 4)

    def labels(features):
        return (features[:, 0] > 0).astype(int) + 1

    result = feature_robustness(
        net, X, y, deltas=DELTAS, matrices=matrices, labels=labels
    )
    with torch.no_grad():
        base = case.risk(net, X, y)(net.module_)
        phi = nn.Sequential(*list(net.module_)[:-1])(X)
        for i, j in itertools.product(range(2), range(2)):
            moved = phi + DELTAS[i] * phi @ torch.tensor(matrices[j]).T
            risk = case.risk(net, X, torch.tensor(labels(moved.numpy())))
            outputs = net.module_[-1](moved)
            expected = risk(lambda _: outputs) - base  # noqa: B023 - called at once
            assert result.values[i, j] == pytest.approx(expected.item(), rel=1e-8)


def test_labels_see_positions():
    case = BY_ID["tokens"]
    net, (X, y) = case.fitted(), case.data()
    shapes = set()

    def labels(features):
        shapes.add(features.shape[1:])
        return torch.zeros(len(features), dtype=torch.int64)

    feature_robustness(net, X, y, deltas=0.1, n_matrices=2, layer="0", labels=labels)
    feature_robustness(net, X, y, deltas=0.1, n_matrices=2, layer="3", labels=labels)
    assert shapes == {(4, 3), (5,)}


def test_labels_are_of_the_kind_of_y():
    X, y = wine()
    # A ridge classifier is trained on -1 and +1, whatever its labels are.
    model = RidgeClassifier().fit(X, y == 1)
    assert feature_robustness(
        model, X, y == 1, deltas=0.1, labels=lambda features: y == 1
    ).value_at_zero == pytest.approx(0.0, abs=1e-14)
    real = LinearRegression().fit(X, y)
    result = feature_robustness(real, X, y, deltas=0.1, labels=real.predict)
    # The labels of the model itself leave no loss at all.
    np.testing.assert_allclose(result.values, -result.mean_loss, rtol=1e-10)


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        ("constant", TypeError, r"labels to be None .* got 'constant'"),
        (
            lambda phi: np.zeros(3),
            ValueError,
            r"one label for each of 25 rows, .*\(3,\)",
        ),
        (lambda phi: "a", ValueError, r"one label for each of 25 rows, got shape \(\)"),
        (
            lambda phi: np.full(len(phi), "z"),
            ValueError,
            r"classes of y, \['a', 'b', 'c'\], got \['z'\]",
        ),
    ],
)
def test_wrong_labels(labels, error, message):
    model, X, y, *_ = loop_case("logistic")
    with pytest.raises(error, match=message):
        feature_robustness(model, X, y, deltas=0.1, labels=labels)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (lambda phi: np.zeros((len(phi), 2), dtype=int), r"of shape \(\d+,\), got"),
        (lambda phi: np.zeros(len(phi)), "class indices, got dtype float64"),
        (lambda phi: np.full(len(phi), 3), r"class labels in 0\.\.2"),
        (lambda phi: ["a"] * len(phi), "return numbers"),
    ],
)
def test_wrong_class_indices(labels, message):
    net, X, y = small_net()
    with pytest.raises(ValueError, match=message):
        feature_robustness(net, X, y, deltas=0.1, labels=labels)


def test_labels_of_a_layer_that_is_called_repeatedly():
    case = BY_ID["recurrent"]
    with pytest.raises(ValueError, match=r"called once, .*'inner' with 3 calls"):
        feature_robustness(
            case.fitted(), *case.data(), deltas=0.1, layer="inner", labels=len
        )


# ---------------------------------------------------------------- what is computed


class CountedLinear(nn.Linear):
    calls = 0

    def forward(self, x):
        CountedLinear.calls += 1
        return super().forward(x)


def counted_net(last):
    module = nn.Sequential(
        nn.Sequential(CountedLinear(5, 6), nn.ReLU(inplace=True)),
        CountedLinear(6, 4),
        nn.ReLU(inplace=True),
        nn.Linear(4, 4),
        nn.Tanh(),
        last,
    )
    return NeuralNetClassifier(
        lambda: module.double(), criterion=nn.CrossEntropyLoss, train_split=None
    ).initialize()


@pytest.mark.parametrize("layer", ["3", "5"])
def test_what_comes_before_the_layer_is_computed_once(layer):
    net = counted_net(nn.Linear(4, 3))
    _, X, y = small_net()
    counts = []
    for n_matrices in (2, 8):
        CountedLinear.calls = 0
        feature_robustness(net, X, y, deltas=DELTAS, n_matrices=n_matrices, layer=layer)
        counts.append(CountedLinear.calls)
    assert counts[0] == counts[1] < 20


def test_a_repeated_forward_pass_is_checked():
    class Doubled(nn.Module):
        """Its hook is part of the model, and would be applied to a memory again."""

        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(5, 4)
            self.inner.register_forward_hook(lambda module, args, out: 2 * out)
            self.middle = nn.Linear(4, 4)
            self.head = nn.Linear(4, 3)

        def forward(self, x):
            return self.head(torch.tanh(self.middle(self.inner(x))))

    net = NeuralNetClassifier(
        Doubled, criterion=nn.CrossEntropyLoss, train_split=None
    ).initialize()
    net.module_.double()
    _, X, y = small_net()
    matrices = random_matrices(2, 4)
    result = feature_robustness(
        net, X, y, deltas=0.5, matrices=matrices, layer="middle"
    )
    with torch.no_grad():
        moved = moved_weight(net.module_, "middle", 0.5, matrices[1])
        expected = F.cross_entropy(moved(X), y) - F.cross_entropy(net.module_(X), y)
    assert result.values[0, 1] == pytest.approx(expected.item(), rel=1e-9)


def test_a_random_model_is_refused():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(5, 4)
            self.head = nn.Linear(4, 3)

        def forward(self, x):
            return self.head(F.dropout(self.inner(x)))

    net = NeuralNetClassifier(Noisy, criterion=nn.CrossEntropyLoss).initialize()
    net.module_.double()
    _, X, y = small_net()
    with pytest.raises(ValueError, match="differ between two passes"):
        feature_robustness(net, X, y, deltas=0.1, layer="inner")


def test_a_model_that_works_in_place_on_its_inputs():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(5, 4)
            self.head = nn.Linear(4, 3)

        def forward(self, x):
            x += 1.0
            return self.head(torch.tanh(self.inner(x)))

    net = NeuralNetClassifier(InPlace, criterion=nn.CrossEntropyLoss).initialize()
    net.module_.double()
    _, X, y = small_net()
    before, matrices = X.clone(), random_matrices(2, 5)
    result = feature_robustness(net, X, y, deltas=0.5, matrices=matrices, layer="inner")
    assert torch.equal(X, before)
    with torch.no_grad():
        moved = moved_weight(net.module_, "inner", 0.5, matrices[1])
        rise = F.cross_entropy(moved(X.clone()), y)
        rise -= F.cross_entropy(net.module_(X.clone()), y)
    assert result.values[0, 1] == pytest.approx(rise.item(), rel=1e-9)


def test_memory_serves_operations_in_place():
    class Reused(nn.Module):
        """Writes to what an early module returned, in the second half of a pass."""

        def __init__(self, limit):
            super().__init__()
            self.skip = nn.Linear(5, 4)
            self.inner = nn.Linear(5, 4)
            self.middle = nn.Linear(4, 4)
            self.head = nn.Linear(4, 3)
            self.limit = limit

        def forward(self, x):
            skipped = self.skip(x)
            z = self.middle(self.inner(x))
            if z.abs().max() > self.limit:
                skipped.tanh_()
            return self.head(torch.tanh(z + skipped))

    _, X, y = small_net()
    matrices = random_matrices(2, 4)
    for limit in (0.0, 1e9):
        torch.manual_seed(0)
        net = NeuralNetClassifier(
            Reused, module__limit=limit, criterion=nn.CrossEntropyLoss
        ).initialize()
        net.module_.double()
        call = functools.partial(
            feature_robustness, net, X, y, matrices=matrices, layer="middle"
        )
        result = call(deltas=[0.1, 0.5])
        with torch.no_grad():
            moved = moved_weight(net.module_, "middle", 0.5, matrices[1])
            rise = F.cross_entropy(moved(X), y) - F.cross_entropy(net.module_(X), y)
        assert result.values[1, 1] == pytest.approx(rise.item(), rel=1e-9)
    net.module_.limit = 100.0
    with pytest.raises(ValueError, match="works in place on the same tensors"):
        call(deltas=1e4)


def test_a_model_without_second_derivatives():
    class Overwritten(nn.Module):
        """What the backward pass needs is overwritten."""

        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(5, 4)
            self.head = nn.Linear(4, 3)

        def forward(self, x):
            h = torch.tanh(self.inner(x))
            outputs = self.head(h)
            h.zero_()
            return outputs + h.sum(1, keepdim=True)

    net = NeuralNetClassifier(Overwritten, criterion=nn.CrossEntropyLoss).initialize()
    net.module_.double()
    _, X, y = small_net()
    with pytest.raises(ValueError, match="torch cannot differentiate"):
        feature_robustness(net, X, y, deltas=0.1, layer="inner")


def test_memory_puts_own_forward_methods_back():
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 1))
    own = module[0].forward = functools.partial(nn.Linear.forward, module[0])
    memory, x = PrefixMemory(module, [module[2]]), torch.ones(1, 2)
    with memory.recorded():
        expected = module(x)

    def interrupted():
        with memory.in_force():
            assert torch.equal(module(x), expected)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert module[0].forward is own
    assert "forward" not in vars(module[1])


def state(net):
    """Everything of a net that a measurement could leave changed."""
    module = net.module_
    return (
        {name: value.clone() for name, value in module.state_dict().items()},
        {name: (m.training, sorted(vars(m))) for name, m in module.named_modules()},
        {
            name: (len(m._forward_hooks), len(m._forward_pre_hooks))
            for name, m in module.named_modules()
        },
        {name: (p.grad, p.requires_grad) for name, p in module.named_parameters()},
    )


def assert_same_state(before, after):
    for name, value in before[0].items():
        assert torch.equal(value, after[0][name])
    assert before[1:] == after[1:]


@pytest.mark.parametrize("layer", ["0", "4"])
def test_the_model_is_left_as_it_was(layer):
    case = BY_ID["batch_norm"]
    net, (X, y) = case.fitted(), case.data()
    net.module_.train()
    before = state(net)
    feature_robustness(net, X, y, deltas=DELTAS, layer=layer)
    assert_same_state(before, state(net))

    def interrupt(features):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        feature_robustness(net, X, y, deltas=DELTAS, layer=layer, labels=interrupt)
    assert_same_state(before, state(net))
    assert torch.is_grad_enabled()


# -------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "deltas",
    [0, -0.1, [], [0.1, 0.0], [0.1, -1], [np.nan], [np.inf], [[0.1]], "small", None],
    ids=repr,
)
def test_sizes_are_positive_numbers(deltas):
    net, X, y = small_net()
    with pytest.raises(ValueError, match="Expected deltas to be positive finite"):
        feature_robustness(net, X, y, deltas=deltas)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"matrices": "gaussian"}, ValueError, "matrices to be one of .*'gaussian'"),
        ({"matrices": np.eye(3)}, ValueError, r"matrices of shape \(4, 4\)"),
        ({"matrices": np.ones((4, 4))}, ValueError, "norm at most 1"),
        ({"matrices": np.full((4, 4), np.nan)}, ValueError, "finite matrices"),
        ({"matrices": np.ones((2, 4, 3))}, ValueError, "of shape"),
        ({"matrices": lambda n, m, rng: np.eye(m)}, ValueError, "function of matrices"),
        ({"n_matrices": 0}, ValueError, "n_matrices to be a positive integer, got 0"),
        ({"n_matrices": 2.5}, ValueError, "n_matrices to be a positive integer"),
        ({"layer": "5"}, ValueError, "Choose one of"),
        ({"layer": "1"}, ValueError, "has no weight matrix"),
        ({"layer": ["0", "2"]}, TypeError, "name of one layer or None"),
        ({"layer": "all"}, ValueError, "'all' .*does not exist"),
        ({"loss": "hinge"}, ValueError, "loss to be one of"),
        ({"sample_weight": np.zeros(11)}, ValueError, "positive sample_weight"),
    ],
)
def test_wrong_options(options, error, message):
    net, X, y = small_net()
    with pytest.raises(error, match=message):
        feature_robustness(net, X, y, deltas=0.1, **options)


@pytest.mark.parametrize("layer", ["0", "4"])
def test_wrong_data(layer):
    net, X, y = small_net()
    call = functools.partial(feature_robustness, net, deltas=0.1, layer=layer)
    with pytest.raises(ValueError, match="Expected y, the targets"):
        call(X)
    with pytest.raises(ValueError, match="samples of the shape"):
        call(X[:, :4], y)
    with pytest.raises(ValueError, match="same length"):
        call(X, y[:4])
    with pytest.raises(ValueError, match=r"class labels in 0\.\.2"):
        call(X, y + 3)
    broken = X.clone()
    broken[2, 1] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        call(broken, y)
    with pytest.raises(
        ValueError, match=r"(?i)at least one|minimum of 1|0 samples|empty"
    ):
        call(X[:0], y[:0])
    net.module_[4].weight.data[0, 0] = torch.inf
    with pytest.raises(ValueError, match="finite weights"):
        call(X, y)


def test_unsupported_models():
    X, y = wine()
    with pytest.raises(TypeError, match="supported model"):
        feature_robustness(StandardScaler().fit(X), X, y, deltas=0.1)
    with pytest.raises(NotFittedError):
        feature_robustness(LogisticRegression(), X, y, deltas=0.1)


def test_a_loss_that_overflows_is_reported():
    net = NeuralNet(
        sequential(lambda: nn.Linear(5, 1)), criterion=nn.PoissonNLLLoss
    ).initialize()
    net.module_.double()
    X = 10 * torch.randn(6, 5, dtype=torch.float64, generator=torch.manual_seed(0))
    y = torch.ones(6, 1, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"got inf for delta=1e\+06 and matrix"):
        feature_robustness(net, X, y, deltas=[0.1, 1e6])


def test_a_parametrized_weight_can_be_perturbed_in_the_output_layer_only():
    net, X, y = small_net()
    for index in (2, 4):
        torch.nn.utils.parametrizations.weight_norm(net.module_[index])
    assert feature_robustness(net, X, y, deltas=0.1).mean.shape == (1,)
    with pytest.raises(TypeError, match="computed from other parameters"):
        feature_robustness(net, X, y, deltas=0.1, layer="2")


def test_given_matrices_are_all_used():
    net, X, y = small_net()
    matrices = GivenMatrices(random_matrices(5, 4))
    result = feature_robustness(net, X, y, deltas=0.1, matrices=matrices, n_matrices=2)
    assert result.values.shape == (1, 5)
