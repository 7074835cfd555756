"""Containers and numbers that people pass: right, or refused in our own words."""

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.datasets import make_classification
from sklearn.linear_model import (
    LinearRegression,
    LogisticRegression,
    Ridge,
    SGDClassifier,
)
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from skorch import NeuralNetClassifier, NeuralNetRegressor
from torch import nn

from sklearn_relflat import (
    FlattestWithin,
    RelativeFlatnessLogisticRegression,
    RelativeFlatnessRidge,
    RelativeFlatnessScorer,
    VariableKernelDensity,
    feature_robustness,
    generalization_bound,
    hessian_max_eigenvalue,
    relative_flatness,
    sam_sharpness,
)

RNG = np.random.default_rng(0)
X = RNG.normal(size=(24, 4))
Y = np.arange(24) % 2


@pytest.fixture
def net():
    torch.manual_seed(0)
    return NeuralNetClassifier(
        nn.Linear(4, 2), criterion=nn.CrossEntropyLoss, train_split=None
    ).initialize()


@pytest.mark.parametrize(
    "convert",
    [
        pd.DataFrame,
        lambda x: pd.DataFrame(x).astype(object),
        lambda x: pl.DataFrame(x, schema=list("abcd")),
        lambda x: x.astype(np.longdouble),
        lambda x: np.ma.masked_array(x, np.zeros_like(x, dtype=bool)),
        lambda x: np.asfortranarray(x)[::-1][::-1],
        lambda x: torch.tensor(x, requires_grad=True),
    ],
)
def test_containers_of_numbers(net, convert):
    x = X.astype("float32")
    expected = relative_flatness(net, x, Y)
    assert relative_flatness(net, convert(x), Y).value == pytest.approx(expected.value)


@pytest.mark.parametrize(
    ("X", "message"),
    [
        (pd.DataFrame([["a"] * 4] * 24), "Expected numeric inputs"),
        ([["a"] * 4] * 24, "Expected numeric inputs"),
        ((X.astype("float32"),), "does not take a list of 1 inputs"),
        (torch.empty(24, 4, device="meta"), "device 'meta'"),
        (np.ma.masked_array(X, X > 1), "without masked entries"),
    ],
)
def test_what_a_net_cannot_take(net, X, message):
    with pytest.raises((TypeError, ValueError), match=message):
        relative_flatness(net, X, Y)


def test_masked_and_complex_numbers_are_refused(net):
    model, y = LinearRegression().fit(X, X[:, 0]), X[:, 0]
    hidden = np.ma.masked_array(X, np.zeros_like(X, dtype=bool))
    hidden[4, 1] = np.ma.masked
    with pytest.raises(ValueError, match=r"X without masked entries.* 1 of them"):
        relative_flatness(model, hidden, y)
    with pytest.raises(ValueError, match="y without masked"):
        relative_flatness(model, X, np.ma.masked_array(y, y > 0))
    with pytest.raises(ValueError, match="real numbers as sample_weight"):
        relative_flatness(model, X, y, sample_weight=np.ones(24) * (1 + 5j))
    with pytest.raises(ValueError, match="real numbers as sample_weight"):
        relative_flatness(model, X, y, sample_weight=["a"] * 24)
    with pytest.raises(ValueError, match="Expected real targets"):
        relative_flatness(net, X.astype("float32"), torch.tensor(Y) + 3j)


@pytest.mark.parametrize("criterion", [nn.MSELoss, nn.PoissonNLLLoss])
def test_unsigned_targets_do_not_wrap_around(criterion):
    net = NeuralNetRegressor(
        nn.Linear(2, 1), criterion=criterion, train_split=None
    ).initialize()
    inputs = np.zeros((4, 2), dtype="float32")
    y = np.full((4, 1), 2**63 + 2**40, dtype=np.uint64)
    expected = relative_flatness(net, inputs, y.astype("float32")).mean_loss
    found = relative_flatness(net, inputs, y).mean_loss
    assert found == pytest.approx(expected, rel=1e-6)


def test_huge_class_labels_are_refused(net):
    y = np.full(24, 2**63 + 1, dtype=np.uint64)
    with pytest.raises(ValueError, match="integer class labels"):
        relative_flatness(net, X.astype("float32"), y)


@pytest.mark.parametrize("factor", [1e-50, 1e40])
def test_only_ratios_of_weights_count(factor):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    net = NeuralNetClassifier(module, criterion=nn.CrossEntropyLoss).initialize()
    inputs, y, weight = X.astype("float32"), np.arange(24) % 3, RNG.random(24)

    def numbers(w):
        options = {"layer": "0", "sample_weight": w}
        result = relative_flatness(net, inputs, y, **options)
        seeded = {"random_state": 0, **options}
        robust = feature_robustness(net, inputs, y, deltas=0.1, n_matrices=2, **seeded)
        return [
            result.value,
            result.gradient_norm,
            hessian_max_eigenvalue(net, inputs, y, **seeded).value,
            sam_sharpness(net, inputs, y, **options).value,
            robust.second_order[0],
        ]

    np.testing.assert_allclose(numbers(weight * factor), numbers(weight), rtol=1e-4)


def test_weights_whose_sum_overflows():
    model = LogisticRegression().fit(X, Y)
    expected = relative_flatness(model, X, Y).value
    found = relative_flatness(model, X, Y, sample_weight=np.full(24, 1e308))
    assert found.value == pytest.approx(expected)
    half = torch.ones(24, dtype=torch.bfloat16)
    assert relative_flatness(model, X, Y, sample_weight=half).value == found.value
    close = relative_flatness(model, torch.tensor(X).bfloat16(), Y)
    assert close.value == pytest.approx(expected, rel=0.02)


def test_numbers_that_are_none():
    model = LogisticRegression().fit(X, Y)
    needs_grad = torch.tensor(Y * 1.0, requires_grad=True)
    options = {"n_splits": 2, "random_state": 0}
    found = generalization_bound(model, X, needs_grad, **options)
    assert found.bound == generalization_bound(model, X, Y * 1.0, **options).bound
    with pytest.raises(ValueError, match="delta to be a positive number"):
        generalization_bound(model, X, Y, delta=1e300)
    with pytest.raises(ValueError, match="finite number"):
        RelativeFlatnessRidge(1e300).fit(X, X[:, 0])
    with pytest.raises(ValueError, match="tol must be a finite number"):
        RelativeFlatnessLogisticRegression(tol=float("nan")).fit(X, Y)
    with pytest.raises(ValueError, match="device 'meta'"):
        VariableKernelDensity().fit(torch.empty(3, 4, device="meta"))


# ---------------------------------------------------------------------------
# scikit-learn's own rules
# ---------------------------------------------------------------------------
class Select(TransformerMixin, BaseEstimator):
    """A transformer that learns nothing, and so has no fitted attribute."""

    def fit(self, X, y=None):
        return self

    def transform(self, X):
        return X[:, :4]


@pytest.mark.filterwarnings("ignore:.*no training losses to compare")
@pytest.mark.parametrize(
    "steps", [[Select()], [FunctionTransformer(lambda X: X[:, :4])], [Select(), None]]
)
def test_steps_that_learn_nothing(steps):
    data, y = make_classification(80, 6, n_informative=4, random_state=0)
    steps = ["passthrough" if step is None else step for step in steps]
    model = make_pipeline(*steps, LogisticRegression()).fit(data, y)
    expected = relative_flatness(model[-1], data[:, :4], y).value
    assert relative_flatness(model, data, y).value == expected
    search = GridSearchCV(
        model,
        {"logisticregression__C": [0.1, 1]},
        scoring={"accuracy": "accuracy", "relative_flatness": RelativeFlatnessScorer()},
        return_train_score=True,
        refit=FlattestWithin(0.1),
        error_score="raise",
    ).fit(data, y)
    assert search.best_params_["logisticregression__C"] in (0.1, 1)


def test_balanced_classes_count_weights_as_the_estimator_does():
    """At its optimum, the gradient of the estimator's own weighted loss is zero."""
    data, y = make_classification(90, 4, weights=[0.8], random_state=1)
    weight = RNG.integers(1, 4, size=90).astype(float)
    model = LogisticRegression(
        class_weight="balanced", C=1e6, max_iter=10_000, tol=1e-9
    )
    model.fit(data, y, sample_weight=weight)
    found = relative_flatness(model, data, y, sample_weight=weight)
    assert found.gradient_norm < 1e-4
    # An integer weight is a repetition, for this estimator.
    rows = np.repeat(np.arange(90), weight.astype(int))
    repeated = relative_flatness(model, data[rows], y[rows])
    assert found.value == pytest.approx(repeated.value, rel=1e-9)


def test_balanced_classes_of_an_estimator_that_counts_samples():
    data, y = make_classification(90, 4, weights=[0.8], random_state=1)
    weight = RNG.integers(1, 4, size=90).astype(float)
    model = SGDClassifier(loss="log_loss", class_weight="balanced", random_state=0)
    model.fit(data, y, sample_weight=weight)
    counts = np.bincount(y)
    own = weight * (len(y) / (2 * counts))[y]
    plain = SGDClassifier(loss="log_loss", random_state=0).fit(data, y)
    plain.coef_, plain.intercept_ = model.coef_, model.intercept_
    expected = relative_flatness(plain, data, y, sample_weight=own).value
    found = relative_flatness(model, data, y, sample_weight=weight).value
    assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kind", ["read-only", "reversed", "columns of a matrix"])
def test_memory_that_torch_cannot_take_over(kind):
    """Memory maps and views, as X and as y of a model of scikit-learn."""
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(20, 3)), rng.normal(size=(20, 2))
    if kind == "reversed":
        X, y = X[::-1, ::-1], y[::-1, 0]
    elif kind == "read-only":
        y = y[:, 0].copy()
        for array in (X, y):
            array.setflags(write=False)
    else:
        X, y = np.asfortranarray(X), y.T[1]
    model = Ridge().fit(X, y)
    expected = relative_flatness(model, X.copy(), y.copy()).value
    assert relative_flatness(model, X, y).value == pytest.approx(expected, rel=1e-12)
