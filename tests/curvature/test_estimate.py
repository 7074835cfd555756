"""Routes of several layers, and standard errors that are true."""

import numpy as np
import pytest
import torch
from skorch import NeuralNetClassifier
from torch import nn

from sklearn_relflat import layerwise_relative_flatness, relative_flatness
from sklearn_relflat._curvature import estimate


def mlp(activation, n_layers, width, n_classes=4):
    """A net of layers of one width."""
    layers = []
    for _ in range(n_layers):
        layers += [nn.LazyLinear(width), activation()]
    module = nn.Sequential(*layers, nn.LazyLinear(n_classes))
    module(torch.zeros(1, 6))
    return module


def convolutional():
    """Two convolutions and a head."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 3, 2), nn.ReLU(), nn.Conv1d(3, 2, 2),
        nn.ReLU(), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip


MODULES = {
    "relu": lambda: mlp(nn.ReLU, 4, 10),
    "tanh": lambda: mlp(nn.Tanh, 4, 10),
    "wide tanh": lambda: mlp(nn.Tanh, 3, 70),
    "convolutions": convolutional,
}


def fitted(module, n=60):
    """A net in float64 with data."""
    net = NeuralNetClassifier(
        module, criterion=nn.CrossEntropyLoss, train_split=None, batch_size=-1
    ).initialize()
    net.module_.double()
    return net, torch.randn(n, 6, dtype=torch.float64), torch.arange(n) % 4


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
@pytest.mark.parametrize("limit", [256, 100, 1])
@pytest.mark.parametrize("name", MODULES)
def test_all_layers_cost_no_more_than_one_by_one(name, limit, monkeypatch):
    monkeypatch.setattr(estimate, "MAX_EXACT_PASSES", limit)
    net, X, y = fitted(MODULES[name]())
    count = [0]
    real = torch.autograd.grad

    def counted(*args, **kwargs):
        count[0] += 1
        return real(*args, **kwargs)

    monkeypatch.setattr(torch.autograd, "grad", counted)
    options = {"rtol": 0.3, "random_state": 0}
    table = layerwise_relative_flatness(net, X, y, **options)
    together, count[0] = count[0], 0
    alone = {
        layer: relative_flatness(net, X, y, layer=layer, **options) for layer in table
    }
    assert together <= count[0]
    for layer, result in alone.items():
        shared = table[layer]
        if result.method != "sampled":
            # What is exact alone is so beside others, up to the closed form.
            assert shared.method in ("exact", "closed_form")
            assert shared.value == pytest.approx(result.value, rel=1e-9)
        else:
            assert shared.method == "sampled"
        assert shared.gradient_norm == pytest.approx(result.gradient_norm, rel=1e-9)
        assert shared.mean_loss == pytest.approx(result.mean_loss, rel=1e-12)


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_a_wide_layer_is_sampled_and_the_others_are_not():
    net, X, y = fitted(mlp(nn.Tanh, 3, 300), n=20)
    table = layerwise_relative_flatness(net, X, y, rtol=0.5, random_state=0)
    methods = [result.method for result in table.values()]
    # Of the first layer, features are few; the second and third are wide on both sides.
    assert methods == ["exact", "sampled", "sampled", "exact"]


# ---------------------------------------------------------------------------
# Standard errors
# ---------------------------------------------------------------------------
HARD = {
    "heavy tails": (lambda rng, n: rng.standard_t(2.5, size=(n, 6)), 60, None),
    "few samples": (lambda rng, n: rng.normal(size=(n, 6)), 6, None),
    "uneven weights": (
        lambda rng, n: rng.normal(size=(n, 6)),
        40,
        np.r_[np.full(6, 50.0), np.ones(34)],
    ),
}


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
@pytest.mark.parametrize("name", HARD)
def test_intervals_hold_the_exact_value(name):
    draw, n, weight = HARD[name]
    torch.manual_seed(1)
    net, _, _ = fitted(mlp(nn.ReLU, 2, 8, n_classes=60))
    rng = np.random.default_rng(0)
    X, y = torch.tensor(draw(rng, n)), torch.tensor(rng.integers(60, size=n))
    options = {"layer": "2", "sample_weight": weight}
    exact = relative_flatness(net, X, y, method="exact", **options).value
    hits = []
    for seed in range(100):
        result = relative_flatness(
            net, X, y, method="sampled", rtol=0.1, random_state=seed, **options
        )
        if result.stderr == 0:
            assert result.method == "exact"
            assert result.value == pytest.approx(exact, rel=1e-9)
        else:
            hits.append(abs(result.value - exact) <= 1.96 * result.stderr)
    # 100 hits of probability 0.93 or more are fewer than 82 once in 10,000 times.
    assert np.mean(hits) >= 0.82


def test_few_degrees_of_freedom_widen_an_error():
    assert estimate.widening(1) == pytest.approx(12.706 / 1.96, rel=1e-3)
    assert estimate.widening(1e6) == pytest.approx(1.0, rel=1e-4)
