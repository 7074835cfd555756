"""SAM and ASAM sharpness against gradients written out, and against exact maxima."""

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from sklearn.datasets import load_diabetes
from sklearn.linear_model import LinearRegression, Ridge

from sklearn_relflat import list_layers
from sklearn_relflat._measures.sharpness import asam_sharpness, sam_sharpness
from tests.cases import CASES
from tests.measure_oracles import risk_at

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


@pytest.mark.parametrize("measure", [sam_sharpness, asam_sharpness])
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


@pytest.mark.parametrize("measure", [sam_sharpness, asam_sharpness])
def test_options_are_checked(measure):
    X, y = load_diabetes(return_X_y=True)
    model = LinearRegression().fit(X, y)
    for rho in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="Expected rho to be a positive number"):
            measure(model, X, y, rho=rho)
    for n_steps in (0, 1.5):
        with pytest.raises(ValueError, match="n_steps to be a positive integer"):
            measure(model, X, y, n_steps=n_steps)


def test_overflow_in_the_ball():
    X, y = load_diabetes(return_X_y=True)
    model = Ridge(alpha=0.1).fit(X, y)
    with pytest.raises(ValueError, match=r"finite loss, got inf.* a smaller perturb"):
        sam_sharpness(model, X, y, rho=1e200)
