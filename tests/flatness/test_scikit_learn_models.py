"""Relative flatness of scikit-learn models against the brute-force Hessian."""

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.datasets import load_iris
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.frozen import FrozenEstimator
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import (
    ARDRegression,
    BayesianRidge,
    ElasticNet,
    ElasticNetCV,
    HuberRegressor,
    Lars,
    LarsCV,
    Lasso,
    LassoCV,
    LassoLars,
    LassoLarsCV,
    LinearRegression,
    LogisticRegression,
    LogisticRegressionCV,
    MultiTaskElasticNetCV,
    MultiTaskLassoCV,
    PoissonRegressor,
    Ridge,
    RidgeClassifier,
    RidgeCV,
    SGDClassifier,
    SGDRegressor,
)
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.model_selection import GridSearchCV
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC, LinearSVR
from torch import nn

from sklearn_relflat import (
    RelativeFlatnessLogisticRegression,
    RelativeFlatnessRidge,
    RelativeFlatnessRidgeCV,
    layerwise_relative_flatness,
    relative_flatness,
)
from tests.oracles import kappa_max, kappa_trace, layer_hessian, normalized, scales

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 4))
THREE = np.array(["a", "b", "c"])[np.arange(40) % 3]
TWO = np.array(["no", "yes"])[(X[:, 0] + RNG.normal(size=40) > 0).astype(int)]
REAL = X @ RNG.normal(size=4) + RNG.normal(size=40)
PLANE = X @ RNG.normal(size=(4, 2)) + RNG.normal(size=(40, 2))
FLAGS = (RNG.normal(size=(40, 3)) > 0).astype(int)
COUNTS = RNG.poisson(np.exp(0.3 * X[:, 0])).astype(float)
OUTLIERS = REAL + 20 * (RNG.random(40) < 0.1)
BINARY = nn.BCEWithLogitsLoss()


def columns(values):
    return torch.tensor(np.asarray(values, float).reshape(len(values), -1))


def indices(model, labels):
    return torch.tensor(np.searchsorted(model.classes_, labels))


def one_hot(model, labels):
    return nn.functional.one_hot(indices(model, labels)).double()


def linear(weight, bias):
    layer = nn.Linear(weight.shape[1], weight.shape[0]).double()
    layer.weight.data = torch.tensor(weight)
    layer.bias.data = torch.tensor(np.broadcast_to(bias, len(weight)).copy())
    return layer


def linear_oracle(model):
    return nn.Sequential(linear(np.atleast_2d(model.coef_), model.intercept_)), ["coef"]


ACTIVATIONS = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "logistic": nn.Sigmoid,
    "identity": nn.Identity,
}


def perceptron_oracle(model):
    modules = []
    for weight, bias in zip(model.coefs_, model.intercepts_, strict=True):
        modules += [linear(weight.T.copy(), bias), ACTIVATIONS[model.activation]()]
    names = [f"coefs.{i}" for i in range(len(model.coefs_))]
    return nn.Sequential(*modules[:-1]), names


def perceptron(cls, **options):
    return cls(
        hidden_layer_sizes=(5, 3),
        max_iter=30,
        random_state=0,
        solver="lbfgs",
        **options,
    )


HUBER = HuberRegressor(epsilon=1.5, alpha=0.0, tol=1e-9, max_iter=10_000)


def huber_objective(outputs, targets):
    """The first part of what HuberRegressor minimises, at the scale that it found."""
    z = (targets - outputs) / HUBER.scale_
    far = 2 * HUBER.epsilon * z.abs() - HUBER.epsilon**2
    return HUBER.scale_ * torch.where(z.abs() < HUBER.epsilon, z**2, far).mean()


CROSS = nn.CrossEntropyLoss()
SQUARES = nn.MSELoss()
# Model, target, criterion, encoded target.
MODELS = [
    (LinearRegression(), REAL, SQUARES, columns),
    (LinearRegression(), PLANE, SQUARES, columns),
    (Ridge(3.0), REAL, SQUARES, columns),
    (RidgeCV(), PLANE, SQUARES, columns),
    (RelativeFlatnessRidge(0.3), REAL, SQUARES, columns),
    (RelativeFlatnessRidgeCV(), PLANE, SQUARES, columns),
    (Lasso(0.1), REAL, SQUARES, columns),
    (LassoCV(), REAL, SQUARES, columns),
    (ElasticNet(0.1), PLANE, SQUARES, columns),
    (ElasticNetCV(), REAL, SQUARES, columns),
    (MultiTaskLassoCV(), PLANE, SQUARES, columns),
    (MultiTaskElasticNetCV(), PLANE, SQUARES, columns),
    (Lars(), PLANE, SQUARES, columns),
    (LarsCV(), REAL, SQUARES, columns),
    (LassoLars(0.1), REAL, SQUARES, columns),
    (LassoLarsCV(), REAL, SQUARES, columns),
    (BayesianRidge(), REAL, SQUARES, columns),
    (ARDRegression(), REAL, SQUARES, columns),
    (HUBER, OUTLIERS, huber_objective, columns),
    (PoissonRegressor(), COUNTS, nn.PoissonNLLLoss(), columns),
    (LinearDiscriminantAnalysis(), THREE, CROSS, indices),
    (LinearDiscriminantAnalysis(), TWO, BINARY, lambda y: columns(y == "yes")),
    (SGDRegressor(random_state=0), REAL, SQUARES, columns),
    (RidgeClassifier(), TWO, SQUARES, lambda y: columns(2 * (y == "yes") - 1)),
    (LogisticRegression(), TWO, BINARY, lambda y: columns(y == "yes")),
    (LogisticRegression(), THREE, CROSS, indices),
    (
        RelativeFlatnessLogisticRegression(0.3),
        TWO,
        BINARY,
        lambda y: columns(y == "yes"),
    ),
    (RelativeFlatnessLogisticRegression(0.3), THREE, CROSS, indices),
    (
        SGDClassifier(loss="log_loss", random_state=0),
        TWO,
        BINARY,
        lambda y: columns(y == "yes"),
    ),
    (SGDClassifier(loss="log_loss", random_state=0), THREE, BINARY, one_hot),
    *(
        (perceptron(MLPClassifier, activation=activation), THREE, CROSS, indices)
        for activation in ACTIVATIONS
    ),
    (perceptron(MLPClassifier), TWO, BINARY, lambda y: columns(y == "yes")),
    (perceptron(MLPClassifier), FLAGS, BINARY, columns),
    (perceptron(MLPRegressor, activation="tanh"), PLANE, SQUARES, columns),
    (perceptron(MLPRegressor), REAL, SQUARES, columns),
]


# An undertrained perceptron is as good a test as a trained one.
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("normalize", [None, "std"])
@pytest.mark.parametrize(
    ("model", "y", "criterion", "encode"),
    MODELS,
    ids=[f"{type(row[0]).__name__}-{i}" for i, row in enumerate(MODELS)],
)
def test_equals_definition(model, y, criterion, encode, normalize):
    model.fit(X, y)
    is_perceptron = hasattr(model, "coefs_")
    module, names = (perceptron_oracle if is_perceptron else linear_oracle)(model)
    target = encode(model, y) if encode in (indices, one_hot) else encode(y)
    inputs = torch.tensor(X)

    def risk(call):
        return criterion(call(inputs), target)

    table = layerwise_relative_flatness(model, X, y, normalize=normalize)
    assert list(table) == names
    for i, (name, result) in enumerate(table.items()):
        index = str(2 * i)
        weight = module[2 * i].weight
        hessian = layer_hessian(module, index, risk)
        if normalize == "std":
            with torch.no_grad():
                phi = module[: 2 * i](inputs)
            weight, hessian = normalized(weight, hessian, scales(phi))
        expected = kappa_trace(weight, hessian)
        assert result.value == pytest.approx(expected, rel=1e-9), name
        assert result.mean_loss == pytest.approx(risk(module).item(), rel=1e-9)
        largest = relative_flatness(
            model, X, y, layer=name, normalize=normalize, statistic="max_eigenvalue"
        )
        assert largest.value == pytest.approx(kappa_max(weight, hessian), rel=1e-9)


def test_the_huber_loss_is_the_one_that_was_minimised():
    model = HUBER.fit(X, OUTLIERS)
    assert 0 < len(model.outliers_[model.outliers_]) < len(X)
    coef = torch.tensor(model.coef_, requires_grad=True)
    outputs = torch.tensor(X) @ coef + model.intercept_
    huber_objective(outputs, torch.tensor(OUTLIERS)).backward()
    assert coef.grad.abs().max() < 1e-4
    loss = relative_flatness(model, X, OUTLIERS).mean_loss
    assert loss + model.scale_ == pytest.approx(_huber_total(model), rel=1e-9)


def _huber_total(model):
    """Objective of HuberRegressor per sample, its constant included."""
    residual = np.abs(OUTLIERS - model.predict(X)) / model.scale_
    far = 2 * model.epsilon * residual - model.epsilon**2
    loss = np.where(residual < model.epsilon, residual**2, far)
    return np.mean(model.scale_ + model.scale_ * loss)


@pytest.mark.parametrize(
    ("model", "other", "y", "loss"),
    [
        (LinearSVC(), LogisticRegression(), THREE, "cross_entropy"),
        (LinearSVC(loss="hinge"), LogisticRegression(), TWO, "binary_cross_entropy"),
        (LinearSVR(), Ridge(), REAL, "squared_error"),
    ],
    ids=["classes", "two classes", "regression"],
)
def test_support_vector_machines_with_a_named_loss(model, other, y, loss):
    model.fit(X, y)
    other.fit(X, y)
    other.coef_, other.intercept_ = model.coef_, model.intercept_
    expected = relative_flatness(other, X, y, loss=loss)
    result = relative_flatness(model, X, y, loss=loss)
    assert result.value == pytest.approx(expected.value, rel=1e-12)
    assert result.mean_loss == pytest.approx(expected.mean_loss, rel=1e-12)


def test_kernel_ridge_has_kernel_rows_as_features():
    model = KernelRidge(kernel="rbf", gamma=0.3).fit(X, REAL)
    phi = rbf_kernel(X, X, gamma=0.3)
    expected = 2 * np.sum(model.dual_coef_**2) * np.mean(np.sum(phi**2, axis=1))
    result = relative_flatness(model, X, REAL)
    assert result.layer == "dual_coef"
    assert result.value == pytest.approx(expected, rel=1e-9)


def test_cross_validated_logistic_regression():
    X, y = load_iris(return_X_y=True)
    options = {"max_iter": 2000, "Cs": [1.0], "cv": 3, "scoring": "accuracy"}
    if "use_legacy_attributes" in LogisticRegressionCV().get_params():
        options |= {"use_legacy_attributes": False, "l1_ratios": (0.0,)}
    model = LogisticRegressionCV(**options).fit(X, y)
    plain = LogisticRegression(max_iter=2000).fit(X, y)
    plain.coef_, plain.intercept_ = model.coef_, model.intercept_
    expected = relative_flatness(plain, X, y).value
    assert relative_flatness(model, X, y).value == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("encode", [sparse.csr_matrix, sparse.csc_array])
def test_sparse_input(encode):
    model = LogisticRegression().fit(X, THREE)
    expected = relative_flatness(model, X, THREE).value
    result = relative_flatness(model, encode(X), THREE)
    assert result.value == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    "wrap",
    [
        FrozenEstimator,
        lambda model: make_pipeline("passthrough", model).fit(X, THREE),
        lambda model: GridSearchCV(model, {"C": [1.0]}, cv=2).fit(X, THREE),
        lambda model: FrozenEstimator(make_pipeline(FrozenEstimator(model))),
    ],
    ids=["frozen", "pipeline", "search", "nested"],
)
def test_wrappers_are_looked_through(wrap):
    model = LogisticRegression(C=1.0).fit(X, THREE)
    expected = relative_flatness(model, X, THREE).value
    assert relative_flatness(wrap(model), X, THREE).value == pytest.approx(expected)


def test_a_pipeline_measures_the_transformed_features():
    pipeline = make_pipeline(StandardScaler(), LogisticRegression()).fit(
        7 * X + 3, THREE
    )
    transformed = pipeline[:-1].transform(7 * X + 3)
    expected = relative_flatness(pipeline[-1], transformed, THREE).value
    result = relative_flatness(pipeline, 7 * X + 3, THREE)
    assert result.value == pytest.approx(expected, rel=1e-12)


def test_class_weights_weigh_the_samples():
    weights = {"a": 1.0, "b": 0.2, "c": 3.0}
    model = LogisticRegression(class_weight=weights).fit(X, THREE)
    plain = LogisticRegression(class_weight=None).fit(X, THREE)
    plain.coef_, plain.intercept_ = model.coef_, model.intercept_
    expected = relative_flatness(
        plain, X, THREE, sample_weight=[weights[label] for label in THREE]
    )
    result = relative_flatness(model, X, THREE)
    assert result.value == pytest.approx(expected.value, rel=1e-12)


def test_the_logistic_regression_knows_its_flatness():
    for y in (TWO, THREE):
        model = RelativeFlatnessLogisticRegression(0.3).fit(X, y)
        result = relative_flatness(model, X, y)
        assert result.value == pytest.approx(model.relative_flatness_, rel=1e-9)
