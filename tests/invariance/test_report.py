"""Theorem 4 and the invariance table: which measures move and which do not."""

import functools

import numpy as np
import pytest
import torch
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import scale
from torch import nn

from sklearn_relflat._invariance.reparameterize import (
    reparameterize_layers,
    reparameterize_neurons,
)
from sklearn_relflat._invariance.report import invariance_report
from sklearn_relflat._measures.by_name import MEASURES, NEEDED_OPTIONS
from tests.cases import CASES, Case, Mean, sequential

BY_ID = {case.id: case for case in CASES}
# What a rescaling of layers, or of single neurons, leaves as it is.
UNMOVED = {
    "layers": {
        "relative_flatness",
        "relative_flatness_std",
        "fisher_rao_norm",
        "asam_sharpness",
        "linf_sharpness_magnitude",
        "average_sharpness_magnitude",
        "pac_bayes_flatness_magnitude",
        "inverse_margin",
        "path_norm",
        "class_distance_normalized_variance",
    },
    "neurons": {
        "relative_flatness_std",
        "fisher_rao_norm",
        "asam_sharpness",
        "linf_sharpness_magnitude",
        "average_sharpness_magnitude",
        "pac_bayes_flatness_magnitude",
        "inverse_margin",
        "path_norm",
    },
}
# Of all layers together, factors that move between layers cancel in these as well.
UNMOVED_TOGETHER = {
    "layers": {"inverse_margin_spectral", "inverse_margin_frobenius"},
    "neurons": set(),
}
ONE_LAYER = ("relative_flatness", "class_distance")
AUTOMATIC = [name for name in MEASURES if name not in NEEDED_OPTIONS]


def is_sampled(name):
    return name.startswith(("pac_bayes", "average"))


def rescaled(net, X, kind):
    """Copy of the net of the case "relu" with factors from 1e-3 to 1e3."""
    if kind == "layers":
        return reparameterize_layers(net, {"0": 1e3, "2": 1e-3}, X=X)
    rng = np.random.default_rng(0)
    for reader, n_neurons in (("2", 6), ("4", 4)):
        factors = 10 ** rng.uniform(-3, 3, n_neurons)
        net = reparameterize_neurons(net, reader, factors, X=X)
    return net


@functools.cache
def trained():
    """A net of ReLU units none of which is dead, with 200 samples."""
    net = BY_ID["relu"].fitted()
    rng = np.random.default_rng(1)
    X = torch.tensor(rng.normal(size=(200, 5)))
    y = torch.tensor(net.module_(X).detach().numpy()).argmax(1)
    net.set_params(lr=0.1, batch_size=50, max_epochs=1, verbose=0)
    net.partial_fit(X, y)
    first, relu, second, _, _ = net.module_
    for features in (relu(first(X)), relu(second(relu(first(X))))):
        assert (features.std(0) > 0).all()
    return net, X, y


@pytest.mark.parametrize("kind", ["layers", "neurons"])
@pytest.mark.parametrize(
    ("name", "layer"),
    [
        (name, layer)
        for name in AUTOMATIC
        for layer in ("2", "4", "all")
        if not (layer == "all" and name.startswith(ONE_LAYER))
        if not (layer != "all" and name == "path_norm")
    ],
)
def test_table(name, layer, kind):
    net, X, y = trained()
    options = {"layer": layer}
    if is_sampled(name):
        options |= {"n_draws": 4, "random_state": 0}
    before = MEASURES[name](net, X, y, **options).value
    after = MEASURES[name](rescaled(net, X, kind), X, y, **options).value
    together = UNMOVED_TOGETHER[kind] if layer == "all" else set()
    if name in UNMOVED[kind] | together:
        assert after == pytest.approx(before, rel=1e-9)
    else:
        assert abs(after / before - 1) > 0.01


@pytest.mark.parametrize("kind", ["layers", "neurons"])
def test_fisher_rao_in_the_weights_does_not_move(kind):
    net, X, y = trained()
    fisher_rao = functools.partial(MEASURES["fisher_rao_norm"], method="weights")
    before = fisher_rao(net, X, y).value
    assert fisher_rao(rescaled(net, X, kind), X, y).value == pytest.approx(before)


CONV = Case(
    "conv",
    sequential(
        lambda: nn.Conv2d(2, 3, 3, padding=1),
        nn.ReLU,
        lambda: nn.MaxPool2d(2),
        lambda: nn.Conv2d(3, 4, 2),
        lambda: nn.LeakyReLU(0.2),
        Mean,
        lambda: nn.Linear(4, 3),
    ),
    (2, 6, 6),
    ("0", "3", "6"),
)


@pytest.mark.parametrize("case", [CONV, BY_ID["batch_norm"]], ids=lambda case: case.id)
def test_report_on_nets(case):
    net, (X, y) = case.fitted(), case.data(n=40)
    measures = {name: {"n_draws": 2} if is_sampled(name) else {} for name in AUTOMATIC}
    for name in AUTOMATIC:
        if name.startswith("inverse_margin"):
            measures[name] = {"quantile": 0.99}
    table = invariance_report(net, X, y, measures=measures, n_copies=1, random_state=0)
    assert table["measure"][0] == "outputs"
    assert not table["moved_by_layers"][0]
    assert not table["moved_by_neurons"][0]
    for kind in ("layers", "neurons"):
        moved = table.groupby("measure")[f"moved_by_{kind}"].any()
        # A factor that a normalization carries is none of a weight matrix.
        together = UNMOVED_TOGETHER[kind] if case is CONV else set()
        for measure in UNMOVED[kind] | together:
            assert not moved[measure], (measure, table)
        for measure in ("hessian_trace", "weight_norm", "hessian_max_eigenvalue"):
            assert moved[measure]


@pytest.fixture(scope="module")
def mlp():
    X, y = load_iris(return_X_y=True)
    X = scale(X)
    mlp = MLPClassifier((4,), solver="lbfgs", max_iter=500, random_state=1)
    return mlp.fit(X, y), X, y


def test_report(mlp):
    names = ["relative_flatness", "hessian_trace"]
    table = invariance_report(
        *mlp, measures=names, layers=["coefs.1"], n_copies=1, random_state=0
    )
    assert table["measure"].tolist() == ["outputs", *names]
    assert table["layer"].tolist() == ["", "coefs.1", "coefs.1"]
    outputs = np.abs(mlp[0].predict_log_proba(mlp[1]))
    assert table["value"][0] > 0
    assert np.isfinite(outputs).all()
    assert table["layers"][:2].max() < 1e-9
    assert table["layers"][2] > 0.1
    assert table["neurons"][1:].min() > 0.1
    again = invariance_report(
        *mlp, measures=names, layers=["coefs.1"], n_copies=1, random_state=0
    )
    assert table.equals(again)
    other = invariance_report(
        *mlp, measures=names, layers=["coefs.1"], n_copies=1, random_state=1
    )
    assert not table.equals(other)


def test_more_copies_move_more(mlp):
    changes = [
        invariance_report(*mlp, measures=["weight_norm"], n_copies=n, random_state=3)[
            "layers"
        ].max()
        for n in (1, 5)
    ]
    # The copies of the first report are among those of the second.
    assert changes[1] >= changes[0]


def test_small_spread_moves_little(mlp):
    table = invariance_report(
        *mlp, measures=["weight_norm"], spread=1.001, random_state=0
    )
    assert 0 < table["neurons"][1:].max() < 0.01


def test_layers_to_rescale():
    net, X, y = trained()
    table = invariance_report(
        net, X, y, rescaled=["2"], measures=["weight_norm"], random_state=0
    )
    moved = dict(zip(table["layer"], table["moved_by_layers"], strict=True))
    assert moved == {"": False, "0": False, "2": True, "4": True, "all": True}


def test_not_homogeneous():
    case = BY_ID["tanh"]
    net, (X, y) = case.fitted(), case.data()
    with pytest.raises(ValueError, match="not positively homogeneous"):
        invariance_report(net, X, y, measures=["weight_norm"], random_state=0)
    table = invariance_report(
        net, X, y, measures=["weight_norm"], tol=float("inf"), random_state=0
    )
    assert table["moved_by_layers"][0]
    assert table["layers"][0] > 0.01


def test_bad_input(mlp):
    X, y = mlp[1:]
    model = LogisticRegression(max_iter=1000).fit(X, y)
    with pytest.raises(ValueError, match="at least two weight layers"):
        invariance_report(model, X, y)
    with pytest.raises(ValueError, match="n_copies to be a positive integer, got 0"):
        invariance_report(*mlp, n_copies=0)
    with pytest.raises(ValueError, match=r"spread to be a number above 1, got 1\.0"):
        invariance_report(*mlp, spread=1.0)
    with pytest.raises(ValueError, match=r"'nope' of MLPClassifier does not exist"):
        invariance_report(*mlp, rescaled=["nope"])
