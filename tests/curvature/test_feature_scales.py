"""Scales of features: deviations, sizes of constants, and dead features."""

import copy

import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression, LogisticRegression
from skorch import NeuralNetClassifier
from torch import nn

from sklearn_relflat import invariance_report, relative_flatness
from sklearn_relflat._curvature.feature_scales import feature_scales
from sklearn_relflat._layers.layers import weight_layers
from sklearn_relflat._models.view import as_torch_model
from tests.oracles import kappa_max, kappa_trace, layer_hessian, normalized, scales


def scales_of(X, sample_weight=None, dtype=torch.float64, batch_size=4):
    """Scales of the features that enter a net of one linear layer."""
    net = NeuralNetClassifier(
        nn.Linear(X.shape[1], 2), criterion=nn.CrossEntropyLoss, batch_size=batch_size
    ).initialize()
    net.module_.to(dtype)
    view = as_torch_model(net)
    source = view.batches(torch.tensor(X, dtype=dtype), None, sample_weight)
    with view.measuring():
        (scale,) = feature_scales(view, source, weight_layers(view)).values()
    return scale.numpy()


@pytest.mark.parametrize("batch_size", [1, 4, -1])
def test_deviations_sizes_of_constants_and_zeros(batch_size):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(11, 5)) * [1.0, 1e-3, 1.0, 1.0, 1e6]
    X[:, 2] = -3.5
    X[:, 3] = 0.0
    expected = X.std(axis=0)
    expected[2], expected[3] = 3.5, 0.0
    found = scales_of(X, batch_size=batch_size)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert found[3] == 0.0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_constant_up_to_round_off_is_one(dtype):
    eps = torch.finfo(dtype).eps
    X = np.ones((12, 2))
    X[::3, 0] += 2 * eps
    X[:, 1] += 1e3 * eps * np.arange(12)
    found = scales_of(X, dtype=dtype)
    assert found[0] == pytest.approx(1.0, rel=1e-6)
    # What varies more than round-off is no constant, however little that is.
    assert found[1] == pytest.approx(X[:, 1].std(), rel=0.01)


def test_samples_without_weight_say_nothing():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(9, 3))
    X[:, 1], X[:, 2] = 2.0, 0.0
    X[:5, 1:] = rng.normal(size=(5, 2))
    weight = np.r_[np.zeros(5), 1.0, 2.0, 3.0, 4.0]
    mean = np.average(X, axis=0, weights=weight)
    std = np.sqrt(np.average((X - mean) ** 2, axis=0, weights=weight))
    found = scales_of(X, weight, batch_size=3)
    np.testing.assert_allclose(found, [std[0], 2.0, 0.0], rtol=1e-12)


def test_shares_and_their_sum():
    rng = np.random.default_rng(0)
    P = rng.random((500, 3))
    P /= P.sum(1, keepdims=True)
    y = (P[:, 0] > P[:, 1]).astype(int)
    Z = np.c_[P, P.sum(axis=1)]
    assert 0 < np.ptp(Z[:, 3]) < 1e-15
    exact = np.c_[P, np.ones(500)]
    model = LogisticRegression(max_iter=1000).fit(Z, y)
    found = relative_flatness(model, Z, y, normalize="std").value
    expected = relative_flatness(model, exact, y, normalize="std").value
    assert found == pytest.approx(expected, rel=1e-9)


def test_least_squares_by_hand():
    rng = np.random.default_rng(1)
    X = rng.normal(size=(30, 4))
    X[:, 1], X[:, 2] = -4.0, 0.0
    y = rng.normal(size=30)
    model = LinearRegression(fit_intercept=False).fit(X, y)
    model.coef_ = model.coef_ + 1.0  # also on the dead feature
    sigma = np.array([X[:, 0].std(), 4.0, 0.0, X[:, 3].std()])
    kept = sigma > 0
    w, phi = model.coef_ * sigma, X[:, kept] / sigma[kept]
    expected = 2 * np.sum(w**2) * np.mean(np.sum(phi**2, axis=1))
    for method in ("auto", "exact"):
        found = relative_flatness(model, X, y, normalize="std", method=method)
        assert found.value == pytest.approx(expected, rel=1e-12)


# ---------------------------------------------------------------------------
# Invariance where neurons are dead, constant or padded
# ---------------------------------------------------------------------------
def dead_and_constant_net(activation=nn.ReLU):
    """A net with a dead and a constant hidden neuron, in float64."""
    module = nn.Sequential(nn.Linear(4, 6), activation(), nn.Linear(6, 3))
    with torch.no_grad():
        module[0].weight[1] = 0.0
        module[0].bias[1] = -1.0 if activation is nn.ReLU else 0.0
        module[0].weight[2] = 0.0
        module[0].bias[2] = 0.7
    net = NeuralNetClassifier(
        module, criterion=nn.CrossEntropyLoss, train_split=None, batch_size=5
    ).initialize()
    net.module_.double()
    return net, torch.randn(12, 4, dtype=torch.float64), torch.arange(12) % 3


def rescaled(net, factors):
    """A copy whose ReLU neurons are multiplied, and undone by the next layer."""
    other = copy.deepcopy(net)
    with torch.no_grad():
        other.module_[0].weight *= factors[:, None]
        other.module_[0].bias *= factors
        other.module_[2].weight /= factors
    return other


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"method": "exact"},
        {"curvature": "gauss_newton"},
        {"statistic": "max_eigenvalue"},
        {"per_sample": True},
        {"method": "sampled", "random_state": 0},
    ],
    ids=str,
)
def test_rescaling_dead_and_constant_neurons_changes_nothing(options):
    net, X, y = dead_and_constant_net()
    factors = torch.tensor([1.0, 1e-3, 50.0, 2.0, 0.1, 7.0], dtype=torch.float64)
    results = [
        relative_flatness(model, X, y, layer="2", normalize="std", **options)
        for model in (net, rescaled(net, factors))
    ]
    assert np.isfinite(results[0].value)
    assert results[1].value == pytest.approx(results[0].value, rel=1e-9)
    if results[0].per_sample is not None:
        np.testing.assert_allclose(results[1].per_sample, results[0].per_sample)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
def test_outgoing_weights_of_a_dead_neuron_do_not_matter(activation):
    net, X, y = dead_and_constant_net(activation)
    loud = copy.deepcopy(net)
    with torch.no_grad():
        loud.module_[2].weight[:, 1] *= 100
    values = [
        relative_flatness(model, X, y, layer="2", normalize="std").value
        for model in (net, loud)
    ]
    assert values[1] == pytest.approx(values[0], rel=1e-12)


@pytest.mark.parametrize("statistic", ["trace", "max_eigenvalue"])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
def test_dropped_features_against_brute_force(activation, statistic):
    net, X, y = dead_and_constant_net(activation)
    module = net.module_
    with torch.no_grad():
        phi = module[:2](X)
    assert (scales(phi) == 0).sum() == 1
    hessian = layer_hessian(module, "2", lambda f: nn.functional.cross_entropy(f(X), y))
    changed = normalized(module[2].weight, hessian, scales(phi))
    expected = (kappa_trace if statistic == "trace" else kappa_max)(*changed)
    found = relative_flatness(
        net, X, y, layer="2", normalize="std", statistic=statistic
    )
    assert found.value == pytest.approx(float(expected), rel=1e-9)


def test_padded_borders():
    module = nn.Sequential(
        nn.Conv1d(2, 3, 1),
        nn.ReLU(),
        nn.Conv1d(3, 2, 3, stride=4, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(2, 3),
    )
    net = NeuralNetClassifier(
        module, criterion=nn.CrossEntropyLoss, train_split=None
    ).initialize()
    net.module_.double()
    # One position, whose left neighbour is always padding.
    X, y = torch.rand(9, 2, 3, dtype=torch.float64), torch.arange(9) % 3
    before = relative_flatness(net, X, y, layer="2", normalize="std").value
    with torch.no_grad():
        net.module_[2].weight[:, :, 0] *= 100
    after = relative_flatness(net, X, y, layer="2", normalize="std").value
    assert np.isfinite(before)
    assert after == pytest.approx(before, rel=1e-9)


def test_the_report_shows_it_unmoved():
    net, X, y = dead_and_constant_net()
    table = invariance_report(
        net, X, y, measures=["relative_flatness_std"], n_copies=2, random_state=0
    )
    rows = table[table.measure == "relative_flatness_std"]
    assert len(rows) == 2
    assert not rows.moved_by_layers.any()
    assert not rows.moved_by_neurons.any()
