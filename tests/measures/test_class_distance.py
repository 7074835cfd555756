"""Class-distance normalized variance against pairs of classes written out."""

import itertools

import numpy as np
import pytest
import torch
from sklearn.datasets import load_diabetes, load_iris
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.neural_network import MLPClassifier
from torch import nn

from sklearn_relflat._measures.class_distance import (
    class_distance_normalized_variance as cdnv,
)
from tests.cases import CASES, Case, sequential

BY_ID = {case.id: case for case in CASES}


def by_pairs(features, labels, weights=None):
    """The definition, pair by pair."""
    features = np.asarray(features).reshape(len(features), -1)
    labels = np.asarray(labels)
    weights = np.ones(len(labels)) if weights is None else np.asarray(weights)
    values = []
    for pair in itertools.combinations(np.unique(labels[weights > 0]), 2):
        means, variances = [], []
        for label in pair:
            rows = labels == label
            mean = np.average(features[rows], axis=0, weights=weights[rows])
            squares = np.square(features[rows] - mean).sum(1)
            means.append(mean)
            variances.append(np.average(squares, weights=weights[rows]))
        distance = np.square(means[0] - means[1]).sum()
        values.append(sum(variances) / (2 * distance))
    return np.mean(values)


def entering(net, module, X):
    """What enters a module, by torch's own hook."""
    seen = []
    handle = module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        net.module_.eval()(**X) if isinstance(X, dict) else net.module_.eval()(X)
    handle.remove()
    return torch.cat([x.detach().flatten(1) for x in seen], 1)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("relu", "0"),
        ("relu", "4"),
        ("tanh", "2"),
        ("nll", "2"),
        ("weights", "4"),
        ("sum", "4"),
        ("conv2d", "0"),
        ("conv2d", "3"),
        ("conv2d", "6"),
        ("tokens", "0"),
        ("recurrent", "inner"),
        ("tied", "first"),
        ("attention", "query"),
        ("encoder", "block.linear1"),
        ("dict", "head"),
        ("batch_norm", "4"),
    ],
)
@pytest.mark.parametrize("batch_size", [4, -1])
def test_pairs(name, layer, batch_size):
    case = BY_ID[name]
    net, (X, y) = case.fitted(batch_size=batch_size), case.data(n=31)
    module = net.module_.get_submodule(layer)
    features = entering(net, module, X)
    if name == "tied":
        second = entering(net, net.module_.second, X)
        features = torch.cat([features, second], 1)
    result = cdnv(net, X, y, layer=layer)
    assert result.value == pytest.approx(by_pairs(features, y), rel=1e-9)
    assert result.method == "exact"
    assert result.layer == layer
    assert result.mean_loss > 0


def test_weights_of_samples():
    case = BY_ID["relu"]
    net, (X, y) = case.fitted(), case.data(n=31)
    weight = np.random.default_rng(0).integers(0, 4, 31).astype(float)
    weight[np.asarray(y) == 2] = 0
    features = entering(net, net.module_[4], X)
    found = cdnv(net, X, y, sample_weight=weight)
    assert found.value == pytest.approx(by_pairs(features, y, weight), rel=1e-9)


def test_ignored_labels_are_no_class():
    case = BY_ID["ignore"]
    net, (X, y) = case.fitted(), case.data(n=31)
    features, kept = entering(net, net.module_[4], X), y != 1
    found = cdnv(net, X, y).value
    assert found == pytest.approx(by_pairs(features[kept], y[kept]), rel=1e-9)


def test_one_output_and_probabilities():
    net, (X, y) = BY_ID["binary"].fitted(), BY_ID["binary"].data()
    features = entering(net, net.module_[2], X)
    assert cdnv(net, X, y, layer="2").value == pytest.approx(by_pairs(features, y))
    net, (X, y) = BY_ID["probabilities"].fitted(), BY_ID["probabilities"].data()
    features = entering(net, net.module_[4], X)
    assert cdnv(net, X, y).value == pytest.approx(by_pairs(features, y.argmax(1)))


def test_scikit_learn():
    X, y = load_iris(return_X_y=True)
    names = np.array(["a", "b", "c"])[y]
    mlp = MLPClassifier((5,), solver="lbfgs", max_iter=5000, random_state=0)
    mlp.fit(X, names)
    hidden = np.maximum(X @ mlp.coefs_[0] + mlp.intercepts_[0], 0)
    assert cdnv(mlp, X, names).value == pytest.approx(by_pairs(hidden, y), rel=1e-9)
    found = cdnv(mlp, X, names, layer="coefs.0").value
    assert found == pytest.approx(by_pairs(X, y), rel=1e-9)


def test_far_from_the_origin():
    """Nothing cancels: the variance is that around the means."""
    rng = np.random.default_rng(0)
    y = np.arange(60) % 3
    X = 1e6 + 10 * y[:, None] + rng.normal(size=(60, 2))
    model = LogisticRegression().fit(X - 1e6, y)
    near, far = (cdnv(model, data, y).value for data in (X - 1e6, X))
    assert far == pytest.approx(near, rel=1e-6)


def test_collapse_is_zero():
    X = np.eye(3).repeat(4, 0)
    y = np.arange(3).repeat(4)
    assert cdnv(LogisticRegression().fit(X, y), X, y).value == 0.0


def test_what_has_no_classes():
    X, y = load_diabetes(return_X_y=True)
    with pytest.raises(ValueError, match=r"Expected a classifier.*LinearRegression"):
        cdnv(LinearRegression().fit(X, y), X, y)
    for name in ("dense", "multilabel"):
        net, (X, y) = BY_ID[name].fitted(), BY_ID[name].data()
        with pytest.raises(ValueError, match=r"one class per sample.*of shape \(\d+, "):
            cdnv(net, X, y, layer=BY_ID[name].layers[-1])
    net, (X, y) = BY_ID["relu"].fitted(), BY_ID["relu"].data()
    with pytest.raises(ValueError, match="at least two classes, got 1"):
        cdnv(net, X, torch.zeros_like(y))
    with torch.no_grad():
        net.module_[2].weight.zero_()
    with pytest.raises(ValueError, match=r"different means.*layer '4'.*another layer"):
        cdnv(net, X, y)


def test_layers_that_it_is_not_of():
    net, (X, y) = BY_ID["relu"].fitted(), BY_ID["relu"].data()
    with pytest.raises(TypeError, match="Call class_distance_normalized_variance once"):
        cdnv(net, X, y, layer=["0", "2"])
    with pytest.raises(ValueError, match=r"'all' .* does not exist"):
        cdnv(net, X, y, layer="all")


def test_features_of_another_length():
    """A layer on positions whose number differs between batches."""

    class Ragged(nn.Module):
        def __init__(self):
            super().__init__()
            self.each, self.out = nn.Linear(2, 3), nn.Linear(3, 3)

        def forward(self, x):
            keep = 4 if bool((x[:, 0, 0] > 0).all()) else 2
            return self.out(torch.relu(self.each(x[:, :keep])).mean(1))

    case = Case("ragged", Ragged, (4, 2), ("each",))
    net, (X, y) = case.fitted(batch_size=4), case.data(n=8)
    X[:4, 0, 0], X[4:, 0, 0] = 1.0, -1.0
    with pytest.raises(ValueError, match=r"as many features.*got 8 and 4"):
        cdnv(net, X, y, layer="each")
    assert cdnv(net, X, y, layer="out").value > 0


def test_scale_of_the_features():
    """One factor for all changes nothing."""
    module = sequential(lambda: nn.Linear(5, 6), nn.ReLU, lambda: nn.Linear(6, 3))
    case = Case("scaled", module, (5,), ("2",))
    net, (X, y) = case.fitted(), case.data()
    before = cdnv(net, X, y).value
    with torch.no_grad():
        net.module_[0].weight *= 1e3
        net.module_[0].bias *= 1e3
    assert cdnv(net, X, y).value == pytest.approx(before, rel=1e-9)
