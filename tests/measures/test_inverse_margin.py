"""Margins sample by sample, and norms by the singular values."""

import math

import numpy as np
import pytest
import torch
from sklearn.datasets import load_diabetes, load_iris, make_classification
from sklearn.linear_model import LinearRegression, LogisticRegression, RidgeClassifier

from sklearn_relflat import list_layers
from sklearn_relflat._measures.inverse_margin import inverse_margin
from tests.cases import CASES

BY_ID = {case.id: case for case in CASES}
# With labels that the net predicts but for some, so that a margin is not negative.
NAMES = ["relu", "tanh", "conv2d", "nll", "weights", "tied", "attention", "dict"]


def labelled(name, n=23):
    """A net, samples, and its own predictions as labels, three of them wrong."""
    case = BY_ID[name]
    net, (X, _) = case.fitted(), case.data(n=n)
    module = case.logits_module(net).eval()
    with torch.no_grad():
        z = module(**X) if isinstance(X, dict) else module(X)
    y = z.argmax(1)
    y[:3] = (y[:3] + 1) % 3
    return net, X, y, z


def margins_of(z, y):
    """The definition, one sample at a time."""
    found = []
    for logits, label in zip(z.tolist(), y.tolist(), strict=True):
        own = logits.pop(label)
        found.append(own - max(logits))
    return sorted(found)


def matrices(net):
    """Every weight matrix once."""
    parameters = dict(net.module_.named_parameters(remove_duplicate=False))
    return [
        parameters[f"{name}.weight"].detach().flatten(1) for name in list_layers(net)
    ]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("quantile", [0.15, 0.5, 0.99])
def test_margin(name, quantile):
    net, X, y, z = labelled(name)
    gamma = margins_of(z, y)[math.ceil(quantile * len(y)) - 1]
    result = inverse_margin(net, X, y, quantile=quantile)
    assert result.value == pytest.approx(gamma**-2, rel=1e-9)
    assert result.method == "margin"
    assert result.mean_loss > 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("combine", ["product", "sum"])
@pytest.mark.parametrize("norm", ["spectral", "frobenius"])
def test_norms(name, norm, combine):
    net, X, y, z = labelled(name)
    gamma = margins_of(z, y)[math.ceil(0.3 * len(y)) - 1]
    values = [torch.linalg.svdvals(w) for w in matrices(net)]
    squares = [
        float(s[0] ** 2 if norm == "spectral" else s.square().sum()) for s in values
    ]
    expected = math.prod(squares) / gamma**2
    if combine == "sum":
        expected = len(squares) * expected ** (1 / len(squares))
    options = {"norm": norm, "combine": combine, "quantile": 0.3}
    result = inverse_margin(net, X, y, **options)
    assert result.value == pytest.approx(expected, rel=1e-9)
    assert result.method == f"{combine}_of_{norm}_norms"
    layer = list_layers(net)[0]
    single = inverse_margin(net, X, y, layer=layer, **options)
    assert single.value == pytest.approx(squares[0] / gamma**2, rel=1e-9)


def test_sum_is_the_least_over_rescaled_layers():
    """d (prod / gamma^2)^(1/d) <= sum_j ||W_j||^2 / gamma^(2/d), equal if balanced."""
    net, X, y, z = labelled("relu")
    gamma = margins_of(z, y)[math.ceil(0.3 * len(y)) - 1]
    squares = [float(w.square().sum()) for w in matrices(net)]
    value = inverse_margin(
        net, X, y, norm="frobenius", combine="sum", quantile=0.3
    ).value
    assert value < sum(squares) / gamma ** (2 / 3)
    mean = math.prod(squares) ** (1 / 3)
    assert value == pytest.approx(3 * mean / gamma ** (2 / 3))


def test_ignored_labels_do_not_count():
    case = BY_ID["ignore"]
    net, (X, _) = case.fitted(), case.data(n=40)
    z = net.module_.eval()(X).detach()
    y = z.argmax(1)
    kept = y != 1
    assert 2 < kept.sum() < 38
    expected = margins_of(z[kept], y[kept])[math.ceil(0.2 * int(kept.sum())) - 1]
    found = inverse_margin(net, X, y, quantile=0.2).value
    assert found == pytest.approx(expected**-2, rel=1e-9)


def test_positions_have_margins_of_their_own():
    case = BY_ID["dense"]
    net, (X, _) = case.fitted(), case.data()
    z = net.module_.eval()(X).detach()
    y = z.argmax(1)
    rows = z.transpose(1, 2).reshape(-1, 3)
    expected = margins_of(rows, y.reshape(-1))[math.ceil(0.1 * 44) - 1]
    assert inverse_margin(net, X, y).value == pytest.approx(expected**-2, rel=1e-9)


def test_several_labels_have_the_worst_margin():
    case = BY_ID["multilabel"]
    net, (X, y) = case.fitted(), case.data()
    z = net.module_.eval()(X).detach()
    y = (z > 0).to(y.dtype)
    worst = sorted(min(abs(v) for v in row) for row in z.tolist())
    for targets in (y, y.long()):
        found = inverse_margin(net, X, targets, quantile=0.5).value
        assert found == pytest.approx(worst[5] ** -2, rel=1e-9)


def test_scikit_learn_classifiers():
    X, y = load_iris(return_X_y=True)
    names = np.array(["a", "b", "c"])[y]
    for model in (LogisticRegression(C=100, max_iter=9000), RidgeClassifier()):
        scores = model.fit(X, names).decision_function(X)
        expected = margins_of(scores, y)[74]
        found = inverse_margin(model, X, names, quantile=0.5).value
        assert found == pytest.approx(expected**-2, rel=1e-9)
    X, y = make_classification(n_samples=60, class_sep=3, random_state=0)
    for model in (LogisticRegression(), RidgeClassifier()):
        scores = model.fit(X, y).decision_function(X)
        expected = np.sort(np.where(y == 1, scores, -scores))[5]
        assert inverse_margin(model, X, y).value == pytest.approx(expected**-2)


def test_weights_of_samples_are_repetitions():
    net, X, y, _ = labelled("relu")
    counts = torch.arange(len(y)) % 3
    repeated = torch.arange(len(y)).repeat_interleave(counts)
    for quantile in (0.2, 0.5, 0.75):
        weighted = inverse_margin(
            net, X, y, quantile=quantile, sample_weight=counts.numpy()
        )
        plain = inverse_margin(net, X[repeated], y[repeated], quantile=quantile)
        assert weighted.value == pytest.approx(plain.value, rel=1e-12)


def test_share_that_is_reached_exactly():
    """Of 10 samples a tenth is one, whatever rounding says."""
    X = np.arange(1.0, 11.0)[:, None] * np.array([[-1.0], [1.0]]).repeat(5, 0)
    model = LogisticRegression().fit(X, X[:, 0] > 0)
    scores = np.sort(np.abs(model.decision_function(X)))
    for k in range(1, 10):
        found = inverse_margin(model, X, X[:, 0] > 0, quantile=k / 10).value
        assert found == pytest.approx(scores[k - 1] ** -2), k


def test_many_layers_do_not_overflow_in_between():
    """Products are taken in logarithms, and an infinite result is an error."""
    net, X, y, _ = labelled("relu")
    options = {"norm": "spectral", "quantile": 0.3}
    expected = inverse_margin(net, X, y, **options).value
    first, second, last = net.module_[0], net.module_[2], net.module_[4]
    with torch.no_grad():
        for layer, factor in ((first, 1e150), (second, 1e-150)):
            layer.weight *= factor
        first.bias *= 1e150
    found = inverse_margin(net, X, y, **options).value
    assert found == pytest.approx(expected, rel=1e-9)
    with torch.no_grad():
        second.weight *= 1e300
        second.bias *= 1e300
        last.weight *= 1e-300
    with pytest.raises(ValueError, match="finite inverse_margin, got inf"):
        inverse_margin(net, X, y, layer=["0", "2"], **options)


def test_a_weight_of_zero():
    net, X, y, _ = labelled("relu")
    with torch.no_grad():
        net.module_[0].weight.zero_()
        net.module_[4].bias[:] = torch.tensor([0.0, 0.0, 100.0])
    y[:] = 2
    assert inverse_margin(net, X, y, norm="frobenius").value == 0.0
    assert inverse_margin(net, X, y).value > 0


def test_what_has_no_margin():
    net, X, y, _ = labelled("relu")
    with pytest.raises(
        ValueError, match=r"positive margin, got -.*quantile 0\.1.*Train"
    ):
        inverse_margin(net, X, y)
    X, y = load_diabetes(return_X_y=True)
    with pytest.raises(ValueError, match=r"Expected a classifier.*LinearRegression"):
        inverse_margin(LinearRegression().fit(X, y), X, y)


def test_options_are_checked():
    X, y = load_iris(return_X_y=True)
    model = LogisticRegression(max_iter=9000).fit(X, y)
    with pytest.raises(ValueError, match=r"norm to be one of .* got 'l1'"):
        inverse_margin(model, X, y, norm="l1")
    with pytest.raises(ValueError, match=r"combine to be one of .* got 'mean'"):
        inverse_margin(model, X, y, combine="mean")
    for quantile in (0, 1, 10):
        with pytest.raises(ValueError, match=r"quantile to be between 0 and 1, got"):
            inverse_margin(model, X, y, quantile=quantile)
    with pytest.raises(ValueError, match=r"ositive .*weight.* zero"):
        inverse_margin(model, X, y, sample_weight=np.zeros(len(X)))
