"""What "How it is built" promises: each kind of addition in under thirty lines."""

import ast
import inspect
import sys

import numpy as np
import pytest
import torch
from sklearn.linear_model import TweedieRegressor
from skorch import NeuralNetRegressor
from torch import nn

from sklearn_relflat import MeasureScorer, list_layers, relative_flatness
from sklearn_relflat._curvature.problem import open_problem
from sklearn_relflat._data.sklearn_data import RegressionTargets
from sklearn_relflat._layers import kinds
from sklearn_relflat._losses.pointwise import PointwiseLoss
from sklearn_relflat._losses.table import LOSSES
from sklearn_relflat._measures.measurement import measured
from sklearn_relflat._models import sklearn_models, sklearn_modules

X = np.random.default_rng(0).normal(size=(30, 4)).astype("float32")


def regressor(module, **options):
    """An initialized net in float64, with data."""
    net = NeuralNetRegressor(module, train_split=None, **options).initialize()
    net.module_.double()
    return net, X.astype(float), X[:, :1].astype(float)


def test_a_loss(monkeypatch):
    # <loss>
    class LogCosh(PointwiseLoss):
        """Between the squared and the absolute error."""

        name, reduction = "log_cosh", "mean"

        def _loss(self, outputs, targets):
            return torch.log(torch.cosh(outputs - targets))

        def _slope(self, outputs, targets):
            return torch.tanh(outputs - targets)

        def _curvature(self, outputs, targets):
            return 1 - torch.tanh(outputs - targets) ** 2

    monkeypatch.setitem(LOSSES, "log_cosh", LogCosh)
    # </loss>
    net, inputs, y = regressor(
        nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1))
    )
    for layer in ("0", "2"):
        found = relative_flatness(net, inputs, y, layer=layer, loss="log_cosh")

        def by_autograd(outputs, targets):
            return torch.log(torch.cosh(outputs - targets)).mean()

        expected = relative_flatness(net, inputs, y, layer=layer, loss=by_autograd)
        assert found.value == pytest.approx(expected.value, rel=1e-9)


def test_a_model_family(monkeypatch):
    # <model>
    def poisson_regression(estimator):
        """A linear predictor of the logarithm of a rate, for power=1."""
        module = sklearn_modules.linear_module(estimator)
        return sklearn_modules.sklearn_view(
            estimator, module, "coef", RegressionTargets(1), LOSSES["poisson"]
        )

    monkeypatch.setattr(
        sklearn_models,
        "ADAPTERS",
        [*sklearn_models.ADAPTERS, (TweedieRegressor, poisson_regression)],
    )
    # </model>
    y = np.random.default_rng(1).poisson(2.0, size=30)
    model = TweedieRegressor(power=1, link="log", alpha=0.0).fit(X, y)
    rate, norms = model.predict(X), np.sum(X.astype(float) ** 2, axis=1)
    expected = np.mean(rate * norms) * np.sum(model.coef_**2)
    assert relative_flatness(model, X, y).value == pytest.approx(expected, rel=1e-5)


def test_a_kind_of_layer(monkeypatch):
    # <layer>
    class Mirrored(nn.Linear):
        """A linear layer that reads its input backwards."""

        def forward(self, x):
            return super().forward(x.flip(-1))

    linear = kinds.LAYER_KINDS[nn.Linear]
    mirrored = kinds.LayerKind(
        patches=lambda module, x: linear.patches(module, x.flip(-1)),
        rows=linear.rows,
        unrows=linear.unrows,
    )
    monkeypatch.setattr(kinds, "LAYER_KINDS", {Mirrored: mirrored, **kinds.LAYER_KINDS})
    # </layer>
    net, inputs, y = regressor(
        nn.Sequential(Mirrored(4, 3), nn.Tanh(), nn.Linear(3, 1))
    )
    plain, _, _ = regressor(nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1)))
    plain.module_.load_state_dict(net.module_.state_dict())
    assert list_layers(net) == ["0", "2"]
    found = relative_flatness(net, inputs, y, layer="0").value
    backwards = np.ascontiguousarray(inputs[:, ::-1])
    assert found == relative_flatness(plain, backwards, y, layer="0").value


def test_a_measure():
    # <measure>
    def spectral_norm(
        estimator, X, y=None, *, layer=None, loss=None, sample_weight=None
    ):
        """Largest singular value of a layer's weight."""
        with open_problem(
            estimator, X, y, layer=layer, loss=loss, sample_weight=sample_weight
        ) as problem:
            (one,) = problem.layers.values()
            value = float(torch.linalg.matrix_norm(one.weight, 2))
            return measured(problem, "spectral_norm", value, method="exact")

    # </measure>
    net, inputs, y = regressor(
        nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1))
    )
    expected = torch.linalg.svdvals(net.module_[2].weight)[0].item()
    assert spectral_norm(net, inputs, y).value == pytest.approx(expected)
    assert MeasureScorer(spectral_norm)(net, inputs, y) == pytest.approx(-expected)


@pytest.mark.parametrize("what", ["loss", "model", "layer", "measure"])
def test_each_takes_under_thirty_lines(what):
    source = inspect.getsource(sys.modules[__name__])
    part = source.split(f"# <{what}>")[1].split(f"# </{what}>")[0]
    assert 5 < len(part.splitlines()) < 30
    assert ast.parse(inspect.cleandoc(part))
