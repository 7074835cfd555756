"""Worst-case sharpness against gradients written out, and against exact maxima."""

import functools
import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from sklearn.datasets import load_diabetes, load_iris
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from torch import nn

from sklearn_relflat import list_layers
from sklearn_relflat._measures.linf_sharpness import linf_sharpness
from sklearn_relflat._measures.sharpness import asam_sharpness, sam_sharpness
from tests.cases import CASES, Case, sequential
from tests.measure_oracles import normalized_risk_at, risk_at

BY_ID = {case.id: case for case in CASES}
SELECTIONS = [
    ("relu", "0"),
    ("relu", "all"),
    ("tanh", "2"),
    ("weights", "all"),
    ("ignore", "2"),
    ("sum", "2"),
    ("binary", "all"),
    ("nll", "0"),
    ("mse", "all"),
    ("conv2d", "all"),
    ("batch_norm", "0"),
    ("recurrent", "all"),
    ("tied", "first"),
    ("attention", "all"),
    ("dict", "all"),
]
selections = pytest.mark.parametrize(("name", "layer"), SELECTIONS)


def problem(name, layer):
    case = BY_ID[name]
    net, (X, y) = case.fitted(), case.data()
    names = list_layers(net) if layer == "all" else [layer]
    return net, X, y, *risk_at(case, net, names, X, y)


@selections
def test_one_step(name, layer):
    """The rise along the gradient of the whole sample, to the surface of the ball."""
    net, X, y, risk, w = problem(name, layer)
    gradient = torch.func.grad(risk)(w)
    step = 0.1 * gradient / gradient.norm()
    expected = max(float(risk(w + step).detach() - risk(w).detach()), 0.0)
    result = sam_sharpness(net, X, y, layer=layer, rho=0.1)
    assert result.value == pytest.approx(expected, rel=1e-8)
    assert result.mean_loss == pytest.approx(float(risk(w).detach()), rel=1e-12)
    assert result.method == "one_step"


@selections
def test_adaptive_step(name, layer):
    """e = rho T^2 g / ||T g|| with T = |w|."""
    net, X, y, risk, w = problem(name, layer)
    gradient = torch.func.grad(risk)(w)
    step = 0.3 * w.square() * gradient / (w.abs() * gradient).norm()
    expected = max(float(risk(w + step).detach() - risk(w).detach()), 0.0)
    result = asam_sharpness(net, X, y, layer=layer, rho=0.3)
    assert result.value == pytest.approx(expected, rel=1e-8)


@selections
def test_step_to_a_corner_of_the_cube(name, layer):
    net, X, y, risk, w = problem(name, layer)
    signs = torch.func.grad(risk)(w).sign()
    for axes, options in (
        (torch.ones_like(w), {}),
        (w.abs(), {"magnitude_aware": True}),
    ):
        rise = float(risk(w + 0.01 * axes * signs).detach() - risk(w).detach())
        result = linf_sharpness(net, X, y, layer=layer, rho=0.01, **options)
        assert result.method == "magnitude_aware_" * bool(options) + "one_step"
        assert result.value == pytest.approx(max(rise, 0.0), rel=1e-8)
        assert result.mean_loss == pytest.approx(float(risk(w).detach()), rel=1e-12)


def climbed(risk, w, axes, rho, n_steps, norm):
    """Largest rise on a path of projected steps, in the coordinates of the ball."""
    e, best = torch.zeros_like(w), float(risk(w).detach())
    start = best
    for _ in range(n_steps):
        slope = axes * torch.func.grad(risk)(w + rho * axes * e).detach()
        if norm == "linf":
            e = (e + slope.sign()).clamp(-1, 1)
        else:
            e = e + slope / slope.norm()
            e = e / max(1.0, float(e.norm()))
        best = max(best, float(risk(w + rho * axes * e).detach()))
    return best - start


PATHS = [
    (sam_sharpness, "l2", False),
    (asam_sharpness, "l2", True),
    (linf_sharpness, "linf", False),
    (functools.partial(linf_sharpness, magnitude_aware=True), "linf", True),
]
paths = pytest.mark.parametrize(("measure", "norm", "adaptive"), PATHS)


@paths
@pytest.mark.parametrize("name", ["relu", "tanh", "conv2d", "weights"])
def test_several_steps(measure, norm, adaptive, name):
    net, X, y, risk, w = problem(name, "all")
    axes = w.abs() if adaptive else torch.ones_like(w)
    expected = climbed(risk, w, axes, 0.05, 4, norm)
    result = measure(net, X, y, layer="all", rho=0.05, n_steps=4)
    assert result.value == pytest.approx(expected, rel=1e-8)


def mass_of(case, y):
    """What torch's criterion divides the sum of losses by."""
    if "weight" in case.options:
        return float(case.options["weight"][y].sum())
    if "ignore_index" in case.options:
        return float((y != case.options["ignore_index"]).sum())
    return len(y)


@paths
@pytest.mark.parametrize("m", [1, 3, 100])
@pytest.mark.parametrize("name", ["relu", "weights", "conv2d", "sum", "ignore"])
def test_m_sharpness(measure, norm, adaptive, m, name):
    """Each batch of m samples has a worst case of its own; the batches of the net."""
    case = BY_ID[name]
    net, (X, y) = case.fitted(batch_size=4), case.data()
    rises, masses, losses = [], [], []
    for start in range(0, len(X), m):
        part = slice(start, start + m)
        mass = mass_of(case, y[part])
        if not mass:
            continue
        risk, w = risk_at(case, net, list_layers(net), X[part], y[part])
        axes = w.abs() if adaptive else torch.ones_like(w)
        rises.append(climbed(risk, w, axes, 0.02, 2, norm))
        masses.append(mass)
        losses.append(float(risk(w).detach()))
    result = measure(net, X, y, layer="all", rho=0.02, n_steps=2, m=m)
    if name == "sum":
        assert result.value == pytest.approx(sum(rises), rel=1e-8)
    else:
        assert result.value == pytest.approx(np.average(rises, weights=masses), 1e-8)
        mean_loss = np.average(losses, weights=masses)
        assert result.mean_loss == pytest.approx(mean_loss, rel=1e-10)
    assert result.method.endswith("projected_ascent_by_batch")
    whole = measure(net, X, y, layer="all", rho=0.02, n_steps=2)
    if m >= len(X):
        assert result.value == pytest.approx(whole.value, rel=1e-12)
    else:
        assert result.value > whole.value


class Doubling(nn.Module):
    """Writes into its inputs, or not."""

    def __init__(self, in_place):
        super().__init__()
        self.in_place = in_place

    def forward(self, x):
        return x.mul_(2) if self.in_place else 2 * x


def test_m_sharpness_of_a_module_that_writes_into_its_inputs():
    values = []
    for in_place in (False, True):
        module = sequential(
            functools.partial(Doubling, in_place), lambda: nn.Linear(5, 3)
        )
        case = Case("doubling", module, (5,), ("1",))
        net, (X, y) = case.fitted(), case.data()
        before = X.clone()
        values.append(sam_sharpness(net, X, y, m=3, n_steps=3).value)
        assert torch.equal(X, before)
    assert values[0] == values[1] > 0


def test_m_sharpness_with_weights_of_samples():
    X, y = load_iris(return_X_y=True)
    model = LogisticRegression(C=10, max_iter=5000).fit(X, y)
    weight = np.repeat([0.0, 2.0, 1.0], 50)
    found = sam_sharpness(model, X, y, m=50, sample_weight=weight)
    rises = [sam_sharpness(model, X[y == k], y[y == k], m=None).value for k in (1, 2)]
    assert found.value == pytest.approx((2 * rises[0] + rises[1]) / 3, rel=1e-9)


@pytest.mark.parametrize("n_steps", [1, 3])
def test_corners_for_least_squares(n_steps):
    """A convex loss is largest in a corner: all of them, and a separable one."""
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(30, 6)), rng.normal(size=30)
    model = Ridge(alpha=1.0, fit_intercept=False).fit(X, y)

    def risk(w):
        return np.square(X @ w - y).mean()

    corners = [
        risk(model.coef_ + 0.3 * np.array(signs))
        for signs in itertools.product([-1, 1], repeat=6)
    ]
    rise = max(corners) - risk(model.coef_)
    found = linf_sharpness(model, X, y, rho=0.3, n_steps=n_steps).value
    assert 0.5 * rise < found <= rise * (1 + 1e-9)
    # With orthogonal features every weight has its own worst sign, that of its slope.
    X = np.linalg.qr(X)[0]
    model = Ridge(alpha=1.0, fit_intercept=False).fit(X, y)
    slope = 2 * X.T @ (X @ model.coef_ - y) / 30
    exact = 0.3 * np.abs(slope).sum() + 0.3**2 * 6 / 30
    found = linf_sharpness(model, X, y, rho=0.3, n_steps=n_steps).value
    assert found == pytest.approx(exact, rel=1e-9)


@paths
@pytest.mark.parametrize("name", ["relu", "conv2d", "nll", "dense"])
def test_normalized_logits(measure, norm, adaptive, name):
    case = BY_ID[name]
    net, (X, y) = case.fitted(), case.data()
    risk, w = normalized_risk_at(case, net, list_layers(net), X, y)
    axes = w.abs() if adaptive else torch.ones_like(w)
    expected = climbed(risk, w, axes, 0.02, 2, norm)
    options = {"layer": "all", "rho": 0.02, "n_steps": 2}
    result = measure(net, X, y, **options, normalize_logits=True)
    assert result.value == pytest.approx(expected, rel=1e-7)
    assert result.mean_loss == pytest.approx(float(risk(w).detach()), rel=1e-9)
    assert result.value != pytest.approx(measure(net, X, y, **options).value, rel=1e-3)


@pytest.mark.parametrize("options", [{}, {"magnitude_aware": True}])
def test_confidence_is_no_sharpness_of_normalized_logits(options):
    """Logits times 7 are the same classifier; weights that scale move with it."""
    net, X, y, _, _ = problem("relu", "all")
    values = []
    for factor in (1.0, 7.0):
        with torch.no_grad():
            net.module_[4].weight *= factor
            net.module_[4].bias *= factor
        more = options | {"layer": ["0", "2"], "normalize_logits": True}
        values.append(linf_sharpness(net, X, y, **more).value)
        if options:
            more["layer"] = "all"
            values.append(linf_sharpness(net, X, y, **more).value)
    half = len(values) // 2
    assert values[half:] == pytest.approx(values[:half], rel=1e-9)


def test_equal_logits_have_no_scale():
    """Zeros stay zeros, in the loss and in its gradient."""
    net, X, y, _, _ = problem("relu", "all")
    with torch.no_grad():
        net.module_[4].weight.zero_()
        net.module_[4].bias.zero_()
    result = sam_sharpness(net, X, y, layer="0", normalize_logits=True, random_state=0)
    assert result.value == 0.0
    assert result.mean_loss == pytest.approx(np.log(3))


@pytest.mark.parametrize("name", ["mse", "binary", "multilabel"])
def test_no_logits_to_normalize(name):
    net, X, y, _, _ = problem(name, "0")
    with pytest.raises(ValueError, match=r"one logit per class.*normalize_logits=Fal"):
        sam_sharpness(net, X, y, layer="0", normalize_logits=True)


def test_one_logit_has_no_scale():
    X, y = load_iris(return_X_y=True)
    model = LogisticRegression(max_iter=5000).fit(X[:100], y[:100])
    with pytest.raises(ValueError, match="at least two classes"):
        sam_sharpness(
            model, X[:100], y[:100], loss="squared_error", normalize_logits=True
        )


@pytest.mark.parametrize("measure", [sam_sharpness, asam_sharpness, linf_sharpness])
@pytest.mark.parametrize("name", ["relu", "tanh", "mse"])
def test_more_steps_find_more(measure, name):
    net, X, y, _, _ = problem(name, "all")
    values = [
        measure(net, X, y, layer="all", rho=0.5, n_steps=k).value for k in (1, 2, 5, 20)
    ]
    assert values == sorted(values)


def largest_quadratic(gradient, matrix, rho):
    """Exact maximum of g.e + e.H.e / 2 in the ball, by its secular equation."""
    values, vectors = np.linalg.eigh(matrix)
    g = vectors.T @ gradient

    def excess(shift):
        return np.linalg.norm(g / (shift - values)) - rho

    top = values[-1]
    shift = brentq(excess, top + 1e-12 * top, top + np.linalg.norm(g) / rho + 1)
    e = g / (shift - values)
    return g @ e + e @ (values * e) / 2


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("rho", [0.1, 30.0])
def test_least_squares(adaptive, rho):
    """For the squared loss of a linear model the maximum is known."""
    X, y = load_diabetes(return_X_y=True)
    model = Ridge(alpha=0.1).fit(X, y)
    residual = model.predict(X) - y
    gradient, matrix = 2 * X.T @ residual / len(X), 2 * X.T @ X / len(X)
    if adaptive:
        axes = np.abs(model.coef_)
        rho = rho / 100
        gradient, matrix = axes * gradient, axes[:, None] * matrix * axes
    measure = asam_sharpness if adaptive else sam_sharpness
    result = measure(model, X, y, rho=rho, n_steps=200)
    expected = largest_quadratic(gradient, matrix, rho)
    assert result.value == pytest.approx(expected, rel=1e-6)
    assert result.method == "projected_ascent"


def test_at_a_minimum():
    """Several steps turn towards the largest curvature, whatever the first one was."""
    X, y = load_diabetes(return_X_y=True)
    model = LinearRegression().fit(X, y)
    top = np.linalg.eigvalsh(2 * (X - X.mean(0)).T @ (X - X.mean(0)) / len(X))[-1]
    result = sam_sharpness(model, X, y, rho=50, n_steps=100, random_state=0)
    assert result.value == pytest.approx(50**2 / 2 * top, rel=1e-6)


def test_gradient_of_exactly_zero():
    X = np.array([[1.0, 0.0], [0.0, 2.0], [-1.0, 0.0], [0.0, -2.0]])
    model = Ridge(alpha=1.0, fit_intercept=False).fit(X, np.zeros(4))
    # E(w) = (w_1^2 + 4 w_2^2) / 2 at w = 0: random directions, then the steep one.
    one = [
        sam_sharpness(model, X, np.zeros(4), rho=1.0, random_state=seed).value
        for seed in (0, 0, 1)
    ]
    assert one[0] == one[1] != one[2]
    assert 0.5 <= min(one) <= max(one) <= 2.0
    many = sam_sharpness(model, X, np.zeros(4), rho=1.0, n_steps=100, random_state=0)
    assert many.value == pytest.approx(2.0, rel=1e-9)
    # All weights are zero: so is the adaptive ball.
    assert asam_sharpness(model, X, np.zeros(4), random_state=0).value == 0.0


@pytest.mark.parametrize("measure", [sam_sharpness, asam_sharpness, linf_sharpness])
def test_options_are_checked(measure):
    X, y = load_diabetes(return_X_y=True)
    model = LinearRegression().fit(X, y)
    for rho in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="Expected rho to be a positive number"):
            measure(model, X, y, rho=rho)
    for n_steps in (0, 1.5):
        with pytest.raises(ValueError, match="n_steps to be a positive integer"):
            measure(model, X, y, n_steps=n_steps)
    for m in (0, 2.5):
        with pytest.raises(ValueError, match=rf"m to be a positive integer, got {m}"):
            measure(model, X, y, m=m)


def test_overflow_in_the_ball():
    X, y = load_diabetes(return_X_y=True)
    model = Ridge(alpha=0.1).fit(X, y)
    with pytest.raises(ValueError, match=r"finite loss, got inf.* a smaller perturb"):
        sam_sharpness(model, X, y, rho=1e200)
