"""Average-case sharpness against noise drawn by hand and known expectations."""

import functools

import numpy as np
import pytest
import torch
from sklearn.datasets import load_diabetes
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge

from sklearn_relflat import list_layers
from sklearn_relflat._measures.average_sharpness import average_sharpness
from sklearn_relflat._measures.compare import compare_measures
from tests.cases import CASES
from tests.measure_oracles import joint_hessian, normalized_risk_at, risk_at

BY_ID = {case.id: case for case in CASES}
adaptive = pytest.mark.parametrize("magnitude_aware", [False, True])


@functools.cache
def by_hand(name, names, rho, magnitude_aware, normalize_logits):
    """Mean rise over 2,000 draws without antithetic ones, and its standard error."""
    case = BY_ID[name]
    net, (X, y) = case.fitted(), case.data()
    at = normalized_risk_at if normalize_logits else risk_at
    risk, w = at(case, net, list(names), X, y)
    axes = w.abs() if magnitude_aware else torch.ones_like(w)
    generator = torch.Generator().manual_seed(1)
    start = float(risk(w).detach())
    with torch.no_grad():
        rises = [
            float(risk(w + rho * axes * torch.randn(w.shape, generator=generator)))
            - start
            for _ in range(2000)
        ]
    return np.mean(rises), np.std(rises, ddof=1) / np.sqrt(len(rises))


@adaptive
@pytest.mark.parametrize("normalize_logits", [False, True])
@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("relu", "all"),
        ("relu", "4"),
        ("tanh", "0"),
        ("conv2d", "all"),
        ("weights", "all"),
        ("nll", "all"),
    ],
)
def test_noise_by_hand(name, layer, normalize_logits, magnitude_aware):
    case = BY_ID[name]
    net, (X, y) = case.fitted(), case.data()
    names = list_layers(net) if layer == "all" else [layer]
    mean, error = by_hand(name, tuple(names), 0.2, magnitude_aware, normalize_logits)
    result = average_sharpness(
        net,
        X,
        y,
        layer=layer,
        rho=0.2,
        magnitude_aware=magnitude_aware,
        n_draws=300,
        normalize_logits=normalize_logits,
        random_state=0,
    )
    assert abs(result.value - mean) < 4 * np.hypot(error, result.stderr)
    # Both signs of a draw cancel what is linear.
    assert result.stderr * np.sqrt(300) < error * np.sqrt(2000)


@adaptive
@pytest.mark.parametrize("name", ["tanh", "mse", "sum", "ignore"])
def test_small_noise_shows_the_trace(name, magnitude_aware):
    """rho^2 / 2 Tr diag(c) H diag(c), also where the gradient is not zero."""
    case = BY_ID[name]
    net, (X, y) = case.fitted(), case.data()
    names = list_layers(net)
    hessian = joint_hessian(case, names).diagonal()
    _, w = risk_at(case, net, names, X, y)
    axes = w.abs() if magnitude_aware else torch.ones_like(w)
    expected = 1e-3**2 / 2 * float((axes.square() * hessian).sum())
    result = average_sharpness(
        net,
        X,
        y,
        layer="all",
        rho=1e-3,
        magnitude_aware=magnitude_aware,
        n_draws=400,
        random_state=0,
    )
    assert abs(result.value - expected) < 4 * result.stderr
    assert result.stderr < 0.2 * abs(expected)


def test_error_bars_cover():
    """Least squares: the expectation is exact at any rho."""
    X, y = load_diabetes(return_X_y=True)
    model = Ridge(alpha=0.1).fit(X, y)
    expected = 20.0**2 / 2 * 2 / len(X) * np.square(X).sum()
    scores = []
    for seed in range(40):
        result = average_sharpness(model, X, y, rho=20.0, n_draws=16, random_state=seed)
        scores.append((result.value - expected) / result.stderr)
    assert abs(np.mean(scores)) < 4 / np.sqrt(40)
    assert 0.7 < np.std(scores) < 1.6


def test_seed():
    case = BY_ID["relu"]
    net, (X, y) = case.fitted(), case.data()
    values = [
        average_sharpness(net, X, y, n_draws=2, random_state=seed).value
        for seed in (0, 0, 1)
    ]
    assert values[0] == values[1] != values[2]


def test_maximum_is_a_negative_rise():
    """Away from a minimum noise may lower the loss, and the value says so."""
    X, y = load_diabetes(return_X_y=True)
    model = LogisticRegression().fit(X, y > 100)
    model.coef_ = -50 * model.coef_
    model.intercept_[:] = 0
    result = average_sharpness(
        model, X, y > 100, loss="brier", rho=50.0, random_state=0
    )
    assert result.value < -3 * result.stderr


def test_passes_are_counted():
    case = BY_ID["relu"]
    net, (X, y) = case.fitted(), case.data()
    table = compare_measures(
        net, X, y, measures={"average_sharpness": {"n_draws": 5}}, random_state=0
    )
    assert table["passes"][0] == pytest.approx(11)
    table = compare_measures(
        net, X, y, measures={"sam_sharpness": {"m": 3}, "asam_sharpness": {}}
    )
    assert table["passes"].tolist() == pytest.approx([2, 2])


def test_options_are_checked():
    X, y = load_diabetes(return_X_y=True)
    model = LinearRegression().fit(X, y)
    for rho in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="Expected rho to be a positive number"):
            average_sharpness(model, X, y, rho=rho)
    for n_draws in (1, 2.5):
        with pytest.raises(ValueError, match="n_draws to be an integer of at least 2"):
            average_sharpness(model, X, y, n_draws=n_draws)
    with pytest.raises(ValueError, match=r"finite loss under noise.* a smaller rho"):
        average_sharpness(model, X, y, rho=1e200)
    with pytest.raises(ValueError, match="one logit per class"):
        average_sharpness(model, X, y, normalize_logits=True)
