"""Copies with other parameters: the same function, and what it does to the measures."""

import pickle

import numpy as np
import pytest
import torch
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import TransformedTargetRegressor
from sklearn.datasets import load_diabetes, load_iris
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler, scale
from torch import nn

from sklearn_relflat import list_layers
from sklearn_relflat._invariance.reparameterize import (
    reparameterize_layers,
    reparameterize_neurons,
)
from sklearn_relflat._invariance.rescaled_copies import output_change
from sklearn_relflat._measures.by_name import MEASURES
from tests.cases import CASES, Case, sequential
from tests.measure_oracles import same, snapshot

BY_ID = {case.id: case for case in CASES}


def normalized(make_norm):
    return sequential(
        lambda: nn.Linear(5, 6), make_norm, nn.ReLU, lambda: nn.Linear(6, 3)
    )


EXTRA = [
    Case("layer_norm", normalized(lambda: nn.LayerNorm(6)), (5,), ("0",)),
    Case("group_norm", normalized(lambda: nn.GroupNorm(2, 6)), (5,), ("0",)),
    Case("prelu", normalized(lambda: nn.PReLU(6)), (5,), ("0",)),
    Case("not_affine", normalized(lambda: nn.BatchNorm1d(6, affine=False)), (5,), ()),
]
BY_ID |= {case.id: case for case in EXTRA}
# Name of a case, layer that is rescaled, layer that reads it, neurons of the former.
PAIRS = [
    ("relu", "0", "2", 6),
    ("relu", "2", "4", 4),
    ("leaky", "0", "2", 6),
    ("inplace", "0", "2", 6),
    ("nll", "0", "2", 4),
    ("batch_norm", "0", "4", 6),
    ("layer_norm", "0", "3", 6),
    ("group_norm", "0", "3", 6),
    ("prelu", "0", "3", 6),
    ("conv2d", "0", "3", 3),
    ("conv2d", "3", "6", 4),
    ("encoder", "block.linear1", "block.linear2", 6),
    ("encoder", "block.linear2", "head", 4),
]
pairs = pytest.mark.parametrize(("name", "layer", "reader", "n_neurons"), PAIRS)
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}


def random_factors(n_neurons):
    """Factors from 1e-3 to 1e3."""
    factors = 10 ** np.random.default_rng(n_neurons).uniform(-3, 3, n_neurons)
    factors[0], factors[-1] = 1e-3, 1e3
    return factors


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("factor", [1e-3, 7.0, 1e3])
@pairs
def test_layers(name, layer, reader, n_neurons, factor, dtype):
    case = BY_ID[name]
    net, (X, _) = case.fitted(dtype), case.data(dtype)
    other = reparameterize_layers(net, {layer: factor}, X=X)
    assert output_change(net, other, X) < TOLERANCE[dtype]
    before, after = (dict(n.module_.named_parameters()) for n in (net, other))
    torch.testing.assert_close(
        after[f"{reader}.weight"], before[f"{reader}.weight"] / factor
    )


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pairs
def test_neurons(name, layer, reader, n_neurons, dtype):
    case = BY_ID[name]
    net, (X, _) = case.fitted(dtype), case.data(dtype)
    other = reparameterize_neurons(net, reader, random_factors(n_neurons), X=X)
    assert output_change(net, other, X) < TOLERANCE[dtype]
    before, after = (dict(n.module_.named_parameters()) for n in (net, other))
    moved = [k for k in before if not torch.equal(before[k], after[k])]
    assert f"{reader}.weight" in moved
    # Weight and bias of what multiplies (a bias may be zero), and what divides.
    assert len(moved) in (2, 3)


def test_several_layers_at_once():
    case = BY_ID["relu"]
    net, (X, _) = case.fitted(), case.data()
    other = reparameterize_layers(net, {"0": 100.0, "2": 0.5}, X=X)
    assert output_change(net, other, X) < 1e-10
    ratio = [other.module_[i].weight / net.module_[i].weight for i in (0, 2, 4)]
    for found, expected in zip(ratio, (100.0, 0.5 / 100.0, 2.0), strict=True):
        torch.testing.assert_close(found, torch.full_like(found, expected))
    ratio = other.module_[2].bias / net.module_[2].bias
    torch.testing.assert_close(ratio, torch.full_like(ratio, 0.5))


@pytest.mark.parametrize("given", [True, False])
def test_random_inputs_find_it_too(given):
    case = BY_ID["relu"]
    net, (X, _) = case.fitted(), case.data()
    other = reparameterize_layers(net, {"0": 3.0}, X=X if given else None)
    assert output_change(net, other) == pytest.approx(0.0, abs=1e-10)


def test_original_is_untouched():
    case = BY_ID["batch_norm"]
    net, (X, y) = case.fitted(), case.data()
    net.set_params(verbose=0).partial_fit(X, y)
    net.module_.train()
    before = snapshot(net)
    other = reparameterize_layers(net, {"0": 3.0}, X=X)
    reparameterize_neurons(net, "4", random_factors(6), X=X)
    assert same(before, snapshot(net))
    # The copy trains on its own: module, optimizer and history.
    weight = other.module_[0].weight.detach().clone()
    other.partial_fit(X, y)
    assert not torch.equal(weight, other.module_[0].weight)
    before["random"] = torch.get_rng_state()  # of dropout
    assert same(before, snapshot(net))
    assert len(other.history) > len(net.history)
    with torch.no_grad():
        for p in other.module_.parameters():
            p.zero_()
    assert same(before, snapshot(net))


# ---------------------------------------------------------------------------
# scikit-learn
# ---------------------------------------------------------------------------
@pytest.fixture(scope="module")
def iris():
    X, y = load_iris(return_X_y=True)
    return scale(X), y


@pytest.fixture(scope="module")
def mlp(iris):
    mlp = MLPClassifier((6, 5), solver="lbfgs", max_iter=500, random_state=0)
    return mlp.fit(*iris)


def test_mlp(mlp, iris):
    X, _ = iris
    before = [w.copy() for w in (*mlp.coefs_, *mlp.intercepts_)]
    factors = random_factors(5)
    other = reparameterize_neurons(mlp, "coefs.2", factors, X=X)
    np.testing.assert_allclose(other.coefs_[1], mlp.coefs_[1] * factors)
    np.testing.assert_allclose(other.intercepts_[1], mlp.intercepts_[1] * factors)
    np.testing.assert_allclose(other.coefs_[2], mlp.coefs_[2] / factors[:, None])
    np.testing.assert_allclose(
        other.predict_proba(X), mlp.predict_proba(X), rtol=1e-8, atol=1e-300
    )
    after = (*mlp.coefs_, *mlp.intercepts_)
    assert all(np.array_equal(*pair) for pair in zip(before, after, strict=True))
    assert pickle.loads(pickle.dumps(other)).score(*iris) == mlp.score(*iris)


@pytest.mark.parametrize("wrap", ["pipeline", "frozen", "search", "net", "calibrated"])
def test_wrapped(mlp, iris, wrap):
    X, y = load_iris(return_X_y=True)
    if wrap == "pipeline":
        model = make_pipeline(StandardScaler(), mlp).fit(X, y)
    elif wrap == "frozen":
        model = FrozenEstimator(make_pipeline(StandardScaler().fit(X), mlp))
    elif wrap == "search":
        inner = MLPClassifier((4,), solver="lbfgs", max_iter=2000)
        grid = {"mlpclassifier__alpha": [1.0]}
        pipeline = make_pipeline(StandardScaler(), inner)
        model = GridSearchCV(pipeline, grid, cv=2).fit(X, y)
    elif wrap == "calibrated":
        X, y = BY_ID["relu"].data(n=60)
        X, y = X.numpy(), y.numpy()
        net = BY_ID["relu"].fitted()
        net.classes = np.arange(3)
        model = CalibratedClassifierCV(FrozenEstimator(net), ensemble=False).fit(X, y)
    else:
        net = BY_ID["relu"].fitted()
        model = make_pipeline(FrozenEstimator(net))
        X = BY_ID["relu"].data()[0]
    first = list_layers(model)[0]
    other = reparameterize_layers(model, {first: 5.0}, X=X)
    assert type(other) is type(model)
    np.testing.assert_allclose(
        other.predict_proba(X), model.predict_proba(X), rtol=1e-6
    )
    norm = MEASURES["weight_norm"]
    ratio = norm(other, X, layer=first).value / norm(model, X, layer=first).value
    assert ratio == pytest.approx(25.0)


def test_regressor():
    X, y = load_diabetes(return_X_y=True)
    mlp = MLPRegressor(
        hidden_layer_sizes=(5,), solver="lbfgs", max_iter=2000, random_state=0
    )
    mlp.fit(X, y / 100)
    other = reparameterize_layers(mlp, {"coefs.0": 20.0})
    np.testing.assert_allclose(other.predict(X), mlp.predict(X), rtol=1e-9)
    scaled = TransformedTargetRegressor(mlp, transformer=StandardScaler()).fit(X, y)
    other = reparameterize_layers(scaled, {"coefs.0": 20.0})
    np.testing.assert_allclose(other.predict(X), scaled.predict(X), rtol=1e-9)


# ---------------------------------------------------------------------------
# Refusals
# ---------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("tanh", "0"),
        ("gelu", "2"),
        ("mse", "0"),
        ("binary", "0"),
        ("skip", "inner"),
        ("attention", "key"),
        ("not_affine", "0"),
    ],
)
def test_function_would_change(name, layer):
    case = BY_ID[name]
    net, (X, _) = case.fitted(), case.data()
    with pytest.raises(ValueError, match=r"outputs to stay, got a relative change of"):
        reparameterize_layers(net, {layer: 3.0}, X=X)
    other = reparameterize_layers(net, {layer: 3.0}, X=X, tol=float("inf"))
    assert output_change(net, other, X) > 1e-3


def test_message_names_what_is_in_between():
    case = BY_ID["tanh"]
    with pytest.raises(ValueError, match=r"modules: \{'0': \['Tanh'\]\}"):
        reparameterize_layers(case.fitted(), {"0": 3.0})


def test_tanh_mlp(iris):
    mlp = MLPClassifier((4,), activation="tanh", solver="lbfgs", random_state=0)
    mlp.set_params(max_iter=2000).fit(*iris)
    with pytest.raises(ValueError, match="not positively homogeneous"):
        reparameterize_neurons(mlp, "coefs.1", [1, 2, 3, 4])


def test_bad_input(mlp, iris):
    X, y = iris
    with pytest.raises(ValueError, match=r"'coefs\.9' .* does not exist"):
        reparameterize_layers(mlp, {"coefs.9": 2.0})
    with pytest.raises(ValueError, match=r"'coefs\.2' .* it is the last one"):
        reparameterize_layers(mlp, {"coefs.2": 2.0})
    with pytest.raises(ValueError, match="reads the input, which has no weights"):
        reparameterize_neurons(mlp, "coefs.0", np.ones(4))
    for factor in (0.0, -1.0, np.inf, np.nan):
        with pytest.raises(ValueError, match="Expected positive factors"):
            reparameterize_layers(mlp, {"coefs.0": factor})
    with pytest.raises(ValueError, match=r"Expected 6 factors, .* shape \(5,\)"):
        reparameterize_neurons(mlp, "coefs.1", np.ones(5))
    with pytest.raises(TypeError, match="Expected factors as a dict"):
        reparameterize_layers(mlp, 2.0)
    model = LogisticRegression(max_iter=1000).fit(X, y)
    with pytest.raises(ValueError, match="it is the last one"):
        reparameterize_layers(model, {"coef": 2.0})
    with pytest.raises(ValueError, match="factors overflow"):
        reparameterize_layers(mlp, {"coefs.0": 1e308, "coefs.1": 1e-308})


@pytest.mark.parametrize("name", ["recurrent", "tied", "encoder"])
def test_layers_that_are_not_called_once(name):
    case = BY_ID[name]
    layer = {"recurrent": "inner", "tied": "first"}.get(
        name, "block.self_attn.out_proj"
    )
    with pytest.raises(ValueError, match="to be called once in a forward pass"):
        reparameterize_layers(case.fitted(), {layer: 2.0}, X=case.data()[0])


def test_layers_that_are_no_neighbours():
    case = BY_ID["dict"]
    with pytest.raises(ValueError, match="They are no neighbours"):
        reparameterize_layers(case.fitted(), {"left": 2.0}, X=case.data()[0])


@pytest.mark.parametrize("name", ["conv2d", "dict", "tokens"])
def test_inputs_that_cannot_be_drawn(name):
    case = BY_ID[name]
    with pytest.raises(ValueError, match="Expected X, samples on which to compare"):
        reparameterize_layers(case.fitted(), {case.layers[0]: 2.0})


def test_computed_weight():
    class Parametrized(nn.Sequential):
        def __init__(self):
            super().__init__(nn.Linear(5, 3), nn.ReLU(), nn.Linear(3, 3))
            nn.utils.parametrizations.weight_norm(self[0])

    net = Case("parametrized", Parametrized, (5,), ("0",)).fitted()
    with pytest.raises(TypeError, match="'0' is computed from other parameters"):
        reparameterize_layers(net, {"0": 2.0})
