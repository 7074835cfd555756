"""Views of models: outputs, batches, untouched state and bad input."""

import copy
import functools
import random
import warnings
from contextlib import nullcontext

import joblib
import numpy as np
import pytest
import torch
from scipy import sparse
from scipy.special import expit, softmax
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import TransformedTargetRegressor
from sklearn.datasets import make_classification, make_multilabel_classification
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.experimental import enable_halving_search_cv  # noqa: F401 - its name
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
    LassoLarsIC,
    LinearRegression,
    LogisticRegression,
    LogisticRegressionCV,
    MultiTaskElasticNet,
    MultiTaskElasticNetCV,
    MultiTaskLasso,
    MultiTaskLassoCV,
    PoissonRegressor,
    Ridge,
    RidgeClassifier,
    RidgeClassifierCV,
    RidgeCV,
    SGDClassifier,
    SGDRegressor,
)
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.model_selection import (
    FixedThresholdClassifier,
    GridSearchCV,
    HalvingGridSearchCV,
    RandomizedSearchCV,
    TunedThresholdClassifierCV,
)
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.svm import SVC, LinearSVC, LinearSVR
from sklearn.utils.class_weight import compute_class_weight, compute_sample_weight
from skorch import (
    NeuralNet,
    NeuralNetBinaryClassifier,
    NeuralNetClassifier,
    NeuralNetRegressor,
)
from skorch.helper import SliceDataset, SliceDict
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_sequence, unpack_sequence
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from sklearn_relflat import relative_flatness
from sklearn_relflat._data.batches import Batch, chunks
from sklearn_relflat._models.view import as_torch_model

N, M, K = 70, 4, 3
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, M))
LABELS = np.array(["ape", "bee", "cat"])[np.arange(N) % K]
X[np.arange(N), np.arange(N) % K] += 1.5
BINARY = np.where(np.arange(N) % 2, "yes", "no")
REAL = X @ RNG.normal(size=M) + 0.1 * RNG.normal(size=N)
REALS = X @ RNG.normal(size=(M, 2)) + 0.1 * RNG.normal(size=(N, 2))
COUNTS = RNG.poisson(2.0, size=N).astype(float)
_, MULTI = make_multilabel_classification(N, M, n_classes=3, random_state=0)
X32, XT = X.astype(np.float32), torch.tensor(X, dtype=torch.float32)
INDEX = np.arange(N) % K


def run(view, X, y=None, **kwargs):
    """Return outputs of all batches, and the batches."""
    with torch.no_grad(), view.measuring():
        batches = list(view.batches(X, y, **kwargs))
        outputs = torch.cat([view.outputs(batch.inputs) for batch in batches])
    return outputs.numpy(), batches


def all_targets(batches):
    return torch.cat([batch.y for batch in batches])


# ---------------------------------------------------------------------------
# scikit-learn models
# ---------------------------------------------------------------------------
def decision(model, X):
    return model.decision_function(X)


def predict(model, X):
    return model.predict(X)


def mlp(**kwargs):
    return MLPClassifier(
        hidden_layer_sizes=(5, 6), max_iter=30, random_state=0, **kwargs
    )


def mlp_regressor(**kwargs):
    return MLPRegressor(
        hidden_layer_sizes=(5, 6), max_iter=30, random_state=0, **kwargs
    )


SGD = SGDClassifier(loss="log_loss", random_state=0)
CASES = {
    # name: (estimator, y, estimator's own outputs, loss, layer)
    "ols": (LinearRegression(), REAL, predict, "squared_error", "coef"),
    "ols several": (LinearRegression(), REALS, predict, "squared_error", "coef"),
    "no intercept": (
        LinearRegression(fit_intercept=False),
        REALS,
        predict,
        "squared_error",
        "coef",
    ),
    "ridge": (Ridge(), REAL, predict, "squared_error", "coef"),
    "ridge cv": (RidgeCV(), REALS, predict, "squared_error", "coef"),
    "ridge classifier": (RidgeClassifier(), LABELS, decision, "squared_error", "coef"),
    "ridge binary": (RidgeClassifierCV(), BINARY, decision, "squared_error", "coef"),
    "ridge multilabel": (RidgeClassifier(), MULTI, decision, "squared_error", "coef"),
    "logistic": (LogisticRegression(), LABELS, decision, "cross_entropy", "coef"),
    "logistic binary": (
        LogisticRegression(solver="liblinear"),
        BINARY,
        decision,
        "binary_cross_entropy",
        "coef",
    ),
    "logistic no intercept": (
        LogisticRegression(fit_intercept=False),
        LABELS,
        decision,
        "cross_entropy",
        "coef",
    ),
    "sgd": (SGD, LABELS, decision, "binary_cross_entropy", "coef"),
    "sgd binary": (SGD, BINARY, decision, "binary_cross_entropy", "coef"),
    "sgd regressor": (SGDRegressor(), REAL, predict, "squared_error", "coef"),
    "mlp regressor": (mlp_regressor(), REAL, predict, "squared_error", "coefs.2"),
    "mlp several": (mlp_regressor(), REALS, predict, "squared_error", "coefs.2"),
    "kernel": (
        KernelRidge(kernel="rbf", gamma=0.3),
        REAL,
        predict,
        "squared_error",
        "dual_coef",
    ),
    "kernel several": (
        KernelRidge(kernel="poly", degree=2),
        REALS,
        predict,
        "squared_error",
        "dual_coef",
    ),
    "kernel callable": (
        KernelRidge(kernel=lambda a, b, c: a @ b + c, kernel_params={"c": 2.0}),
        REAL,
        predict,
        "squared_error",
        "dual_coef",
    ),
}

LASSO = Lasso(0.01)
for model, y in [
    (LASSO, REAL),
    (LASSO, REALS),
    (LassoCV(), REAL),
    (ElasticNet(0.01), REAL),
    (ElasticNetCV(fit_intercept=False), REAL),
    (MultiTaskLasso(0.01), REALS),
    (MultiTaskLassoCV(), REALS),
    (MultiTaskElasticNet(0.01), REALS),
    (MultiTaskElasticNetCV(), REALS),
    (Lars(), REAL),
    (Lars(fit_intercept=False), REALS),
    (LarsCV(), REAL),
    (LassoLars(0.01), REALS),
    (LassoLarsCV(), REAL),
    (LassoLarsIC(), REAL),
    (BayesianRidge(), REAL),
    (ARDRegression(), REAL),
]:
    key = f"{type(model).__name__} {np.ndim(y)}"
    CASES[key] = (model, y, predict, "squared_error", "coef")
for solver in ("svd", "lsqr", "eigen"):
    model = LinearDiscriminantAnalysis(solver=solver, priors=[0.2, 0.3, 0.5])
    CASES[f"lda {solver}"] = (model, LABELS, decision, "cross_entropy", "coef")
CASES |= {
    "lda binary": (
        LinearDiscriminantAnalysis(),
        BINARY,
        decision,
        "binary_cross_entropy",
        "coef",
    ),
    "huber": (HuberRegressor(), REAL, predict, "huber", "coef"),
    "poisson": (
        PoissonRegressor(),
        COUNTS,
        lambda model, X: np.log(model.predict(X)),
        "poisson",
        "coef",
    ),
}

if "loss" in MLPRegressor().get_params():  # since scikit-learn 1.7
    CASES["mlp poisson"] = (
        mlp_regressor(loss="poisson"),
        COUNTS,
        lambda model, X: np.log(model.predict(X)),
        "poisson",
        "coefs.2",
    )


def fitted(model, X, y):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return copy.deepcopy(model).fit(X, y)


@pytest.mark.parametrize("case", CASES)
def test_outputs_are_those_of_the_estimator(case):
    model, y, oracle, loss, layer = CASES[case]
    model = fitted(model, X, y)
    view = as_torch_model(model)
    outputs, batches = run(view, X, y)
    expected = oracle(model, X)
    np.testing.assert_allclose(outputs, expected.reshape(outputs.shape), rtol=1e-10)
    assert outputs.dtype == np.float64
    assert view.loss.name == loss
    assert view.default_layer == layer
    assert view.estimator_name == type(model).__name__
    parameters = dict(view.module.named_parameters())
    assert f"{layer}.weight" in parameters
    assert not any(p.requires_grad for p in parameters.values())
    targets = view.loss.targets(torch.from_numpy(outputs), all_targets(batches))
    assert torch.isfinite(view.loss.value(torch.from_numpy(outputs), targets)).all()


SUPPORT_VECTORS = {
    # name: (estimator, y, estimator's own outputs, a loss)
    "classes": (LinearSVC(), LABELS, decision, "cross_entropy"),
    "one versus rest": (LinearSVC(), LABELS, decision, "binary_cross_entropy"),
    "hinge": (LinearSVC(loss="hinge"), BINARY, decision, "binary_cross_entropy"),
    "crammer_singer": (
        LinearSVC(multi_class="crammer_singer"),
        LABELS,
        decision,
        "brier",
    ),
    "regression": (LinearSVR(epsilon=0.1), REAL, predict, "squared_error"),
    "no intercept": (
        LinearSVR(loss="squared_epsilon_insensitive", fit_intercept=False),
        REAL,
        predict,
        "huber",
    ),
}


@pytest.mark.parametrize("case", SUPPORT_VECTORS)
def test_support_vector_machines_are_measured_with_a_named_loss(case):
    model, y, oracle, loss = SUPPORT_VECTORS[case]
    model = fitted(model, X, y)
    message = rf"{type(model).__name__} trained with loss='{model.loss}'.*loss= one of"
    with pytest.raises(ValueError, match=message):
        as_torch_model(model)
    view = as_torch_model(model, loss=loss)
    outputs, batches = run(view, X, y)
    expected = oracle(model, X)
    np.testing.assert_allclose(outputs, expected.reshape(outputs.shape), rtol=1e-10)
    assert view.loss.name == loss
    outputs = torch.from_numpy(outputs)
    targets = view.loss.targets(outputs, all_targets(batches))
    assert torch.isfinite(view.loss.value(outputs, targets)).all()


@pytest.mark.parametrize("activation", ["identity", "logistic", "tanh", "relu"])
@pytest.mark.parametrize(
    ("y", "loss", "link"),
    [
        (LABELS, "cross_entropy", lambda z: softmax(z, axis=1)),
        (BINARY, "binary_cross_entropy", lambda z: np.hstack([expit(-z), expit(z)])),
        (MULTI, "binary_cross_entropy", expit),
    ],
    ids=["multinomial", "binary", "multilabel"],
)
def test_perceptron_probabilities(activation, y, loss, link):
    model = fitted(mlp(activation=activation), X, y)
    view = as_torch_model(model)
    outputs, batches = run(view, X, y)
    np.testing.assert_allclose(link(outputs), model.predict_proba(X), rtol=1e-9)
    assert view.loss.name == loss
    z = torch.from_numpy(outputs)
    value = view.loss.value(z, view.loss.targets(z, all_targets(batches)))
    # scikit-learn's own loss sums over the labels where torch's takes the mean.
    n_labels = 3 if y is MULTI else 1
    y_hot = MULTI if y is MULTI else (y[:, None] == model.classes_)
    p = model.predict_proba(X)
    expected = -(np.log(p) * y_hot).sum(1)
    if y is MULTI:
        expected -= (np.log(1 - p) * (1 - y_hot)).sum(1)
    np.testing.assert_allclose(value * n_labels, expected, rtol=1e-9)


def test_logistic_regression_cv():
    X_many, y_many = make_classification(90, M, n_informative=4, n_redundant=0)
    with warnings.catch_warnings():
        # Its defaults change in scikit-learn 1.10.
        warnings.simplefilter("ignore", FutureWarning)
        model = LogisticRegressionCV(Cs=2, cv=2).fit(X_many, y_many)
    view = as_torch_model(model)
    outputs, _ = run(view, X_many, y_many)
    np.testing.assert_allclose(outputs[:, 0], model.decision_function(X_many))
    assert view.loss.name == "binary_cross_entropy"


def test_parameters_share_memory_with_the_estimator():
    model = LogisticRegression().fit(X, LABELS)
    view = as_torch_model(model)
    assert np.shares_memory(view.module.coef.weight.numpy(), model.coef_)
    mlp_model = fitted(mlp(), X, LABELS)
    weight = as_torch_model(mlp_model).module.coefs[0].weight
    assert np.shares_memory(weight.numpy(), mlp_model.coefs_[0])
    assert weight.shape == (5, M)


def test_float32_coefficients_stay_float32():
    target = REAL.astype(np.float32)
    model = Ridge().fit(X32, target)
    outputs, _ = run(as_torch_model(model), X32, target)
    assert outputs.dtype == np.float32
    np.testing.assert_allclose(outputs[:, 0], model.predict(X32), rtol=1e-4)


def test_read_only_coefficients_are_copied_without_a_warning(tmp_path):
    model = fitted(mlp(), X, LABELS)
    joblib.dump(model, tmp_path / "model")
    loaded = joblib.load(tmp_path / "model", mmap_mode="r")
    assert not loaded.coefs_[0].flags.writeable
    outputs, _ = run(as_torch_model(loaded), X, LABELS)
    np.testing.assert_allclose(softmax(outputs, axis=1), model.predict_proba(X))


def test_sparsified_coefficients():
    model = LogisticRegression().fit(X, LABELS).sparsify()
    outputs, _ = run(as_torch_model(model), X, LABELS)
    np.testing.assert_allclose(outputs, model.decision_function(X))


@pytest.mark.parametrize("container", [sparse.csr_array, sparse.csc_array])
@pytest.mark.parametrize(
    ("model", "y"),
    [
        (LogisticRegression(), LABELS),
        (Ridge(), REAL),
        (mlp(), LABELS),
        (KernelRidge(kernel="rbf"), REAL),
    ],
    ids=lambda value: type(value).__name__,
)
def test_sparse_inputs(container, model, y):
    model = fitted(model, container(X), y)
    dense, _ = run(as_torch_model(model), X, y)
    outputs, _ = run(as_torch_model(model), container(X), y)
    np.testing.assert_allclose(outputs, dense, rtol=1e-10)


def test_precomputed_kernel():
    model = KernelRidge(kernel="precomputed").fit(rbf_kernel(X), REAL)
    outputs, _ = run(as_torch_model(model), rbf_kernel(X[:9], X), REAL[:9])
    np.testing.assert_allclose(outputs[:, 0], model.predict(rbf_kernel(X[:9], X)))


@pytest.mark.parametrize(
    "as_input", [torch.tensor, np.ndarray.tolist], ids=["tensor", "list"]
)
def test_other_containers_for_scikit_learn_models(as_input):
    model = LogisticRegression().fit(X, INDEX)
    outputs, batches = run(as_torch_model(model), as_input(X), as_input(INDEX))
    np.testing.assert_allclose(outputs, model.decision_function(X))
    assert torch.equal(all_targets(batches), torch.tensor(INDEX))


def test_data_frames():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(X, columns=list("abcd"))
    model = LogisticRegression().fit(frame, pandas.Series(LABELS))
    outputs, _ = run(as_torch_model(model), frame, pandas.Series(LABELS))
    np.testing.assert_allclose(outputs, model.decision_function(frame))
    with pytest.raises(ValueError, match="feature names"):
        as_torch_model(model).batches(frame[list("dcba")], LABELS)


def test_many_small_batches_of_a_wide_model():
    wide = RNG.normal(size=(150, 9000))
    model = Ridge().fit(wide, wide[:, 0])
    outputs, batches = run(as_torch_model(model), wide, wide[:, 0])
    assert [batch.n_samples for batch in batches] == [64, 64, 22]
    np.testing.assert_allclose(outputs[:, 0], model.predict(wide))


@pytest.mark.parametrize(
    ("model", "y", "expected"),
    [
        (LogisticRegression(), LABELS, INDEX),
        (LogisticRegression(), BINARY, (BINARY == "yes")[:, None]),
        (SGD, LABELS, np.eye(K)[INDEX]),
        (RidgeClassifier(), LABELS, 2 * np.eye(K)[INDEX] - 1),
        (RidgeClassifier(), BINARY, np.where(BINARY == "yes", 1, -1)[:, None]),
        (RidgeClassifier(), MULTI, 2 * MULTI - 1),
        (Ridge(), REALS, REALS),
    ],
    ids=lambda value: type(value).__name__,
)
def test_targets_are_those_of_the_training_loss(model, y, expected):
    _, batches = run(as_torch_model(model.fit(X, y)), X, y)
    np.testing.assert_array_equal(all_targets(batches), expected)


@pytest.mark.parametrize("model", [LogisticRegression(), SGD, RidgeClassifier()])
def test_another_loss_gets_class_indices(model):
    view = as_torch_model(model.fit(X, LABELS), loss="brier")
    _, batches = run(view, X, LABELS)
    np.testing.assert_array_equal(all_targets(batches), INDEX)
    assert view.loss.name == "brier"


def test_ridge_classifier_keeps_its_targets_under_the_squared_error_by_name():
    view = as_torch_model(RidgeClassifier().fit(X, LABELS), loss="squared_error")
    _, batches = run(view, X, LABELS)
    assert set(all_targets(batches).ravel().tolist()) == {-1.0, 1.0}


@pytest.mark.parametrize("class_weight", ["balanced", {"ape": 2.0, "cat": 0.5}])
def test_class_weight_multiplies_the_sample_weight(class_weight):
    model = LogisticRegression(class_weight=class_weight).fit(X[:-4], LABELS[:-4])
    own = compute_sample_weight(class_weight, LABELS)
    weight = RNG.uniform(size=N)
    of_class = compute_class_weight(
        class_weight, classes=model.classes_, y=LABELS, sample_weight=weight
    )
    weighted = of_class[np.searchsorted(model.classes_, LABELS)]
    view = as_torch_model(model)
    (batch,) = view.batches(X, LABELS)
    np.testing.assert_allclose(batch.sample_weight, own)
    (batch,) = view.batches(X, LABELS, weight)
    np.testing.assert_allclose(batch.sample_weight, weighted * weight)
    (batch,) = as_torch_model(model, loss="cross_entropy").batches(X, LABELS)
    assert batch.sample_weight is None


# ---------------------------------------------------------------------------
# Wrappers
# ---------------------------------------------------------------------------
def wrapped_models():
    scaler, model = StandardScaler(), LogisticRegression()
    grid = {"C": [0.1, 1.0]}
    pipe_grid = {"logisticregression__C": [0.1, 1.0]}
    return {
        "pipeline": make_pipeline(scaler, "passthrough", model),
        "single step": Pipeline([("model", model)]),
        "passthrough": make_pipeline("passthrough", model),
        "nested": make_pipeline(scaler, make_pipeline(scaler, model)),
        "frozen": FrozenEstimator(LogisticRegression().fit(X, LABELS)),
        "search": GridSearchCV(model, grid, cv=2),
        "halving": HalvingGridSearchCV(model, grid, cv=2, min_resources=30),
        "search in pipeline": make_pipeline(scaler, GridSearchCV(model, grid, cv=2)),
        "pipeline in search": RandomizedSearchCV(
            make_pipeline(scaler, model), pipe_grid, n_iter=1, cv=2, random_state=0
        ),
    }


@pytest.mark.parametrize("name", wrapped_models())
def test_wrappers_are_opened(name):
    model = wrapped_models()[name].fit(X, LABELS)
    view = as_torch_model(FrozenEstimator(model))
    outputs, _ = run(view, X, LABELS)
    np.testing.assert_allclose(outputs, model.decision_function(X), rtol=1e-10)
    assert view.estimator_name == "LogisticRegression"


def finished_models():
    """Wrappers that make something of their own of an inner model's outputs."""
    model = LogisticRegression()
    fitted = LogisticRegression().fit(X, BINARY)
    scaled = make_pipeline(StandardScaler(), LogisticRegression())
    fixed, tuned = FixedThresholdClassifier, TunedThresholdClassifierCV
    calibrated = functools.partial(CalibratedClassifierCV, ensemble=False, cv=3)
    return {
        "fixed threshold": fixed(model, threshold=0.2),
        "fixed threshold of a pipeline": fixed(scaled, pos_label="no"),
        "frozen": fixed(FrozenEstimator(fitted)),
        "tuned threshold": tuned(model, cv=3),
        "tuned threshold, fitted on a part": tuned(
            model, cv=0.5, refit=False, random_state=0
        ),
        "calibrated": calibrated(model),
        "calibrated pipeline": calibrated(scaled, method="isotonic"),
        "calibrated frozen": CalibratedClassifierCV(FrozenEstimator(fitted)),
    }


@pytest.mark.parametrize("name", finished_models())
def test_a_threshold_or_a_calibration_is_no_part_of_the_view(name):
    model = finished_models()[name]
    model.fit(X, BINARY)
    calibrated = isinstance(model, CalibratedClassifierCV)
    inner = model.calibrated_classifiers_[0].estimator if calibrated else None
    inner = inner if calibrated else model.estimator_
    view = as_torch_model(make_pipeline(model))
    outputs, batches = run(view, X, BINARY)
    np.testing.assert_allclose(outputs[:, 0], inner.decision_function(X), rtol=1e-10)
    np.testing.assert_array_equal(all_targets(batches)[:, 0], BINARY == "yes")
    assert view.estimator_name == "LogisticRegression"
    assert view.finished_by == type(model).__name__
    expected = relative_flatness(inner, X, BINARY)
    result = relative_flatness(model, X, BINARY)
    assert result.value == expected.value
    assert result.mean_loss == expected.mean_loss


def test_a_fixed_threshold_around_a_fitted_model_needs_no_fit():
    inner = LogisticRegression().fit(X, BINARY)
    model = FixedThresholdClassifier(inner, threshold=0.9)
    assert model.predict(X).shape == (N,)
    outputs, _ = run(as_torch_model(model), X, BINARY)
    np.testing.assert_allclose(outputs[:, 0], inner.decision_function(X))


def test_several_calibrated_classifiers():
    model = CalibratedClassifierCV(LogisticRegression(), cv=3, ensemble=True)
    model.fit(X, LABELS)
    message = r"got 3 with ensemble=True.*ensemble=False, or measure each"
    with pytest.raises(ValueError, match=message):
        as_torch_model(model)
    outputs, _ = run(as_torch_model(model.calibrated_classifiers_[0].estimator), X)
    assert outputs.shape == (N, K)


def test_a_calibrated_model_without_a_curvature():
    model = CalibratedClassifierCV(LinearSVC(), ensemble=False).fit(X, LABELS)
    with pytest.raises(ValueError, match="LinearSVC trained with loss='squared_hinge'"):
        as_torch_model(model)
    inner = model.calibrated_classifiers_[0].estimator
    expected = relative_flatness(inner, X, LABELS, loss="cross_entropy").value
    result = relative_flatness(model, X, LABELS, loss="cross_entropy").value
    assert result == expected


POSITIVE = np.exp(REAL / REAL.std())
TRANSFORMED = {
    "function": (
        TransformedTargetRegressor(Ridge(), func=np.log, inverse_func=np.exp),
        POSITIVE,
        np.log,
    ),
    "column": (
        TransformedTargetRegressor(Ridge(), func=np.log, inverse_func=np.exp),
        POSITIVE[:, None],
        np.log,
    ),
    "transformer": (
        TransformedTargetRegressor(Ridge(), transformer=StandardScaler()),
        REALS,
        lambda y: StandardScaler().fit_transform(y),
    ),
    "one dimension": (
        TransformedTargetRegressor(
            Ridge(),
            transformer=FunctionTransformer(lambda y: np.ravel(y) / 2),
            check_inverse=False,
        ),
        REAL,
        lambda y: y / 2,
    ),
    "default": (TransformedTargetRegressor(), REAL.round().astype(int), np.asarray),
    "pipeline": (
        TransformedTargetRegressor(
            make_pipeline(StandardScaler(), Ridge()), transformer=StandardScaler()
        ),
        REAL,
        lambda y: StandardScaler().fit_transform(y[:, None])[:, 0],
    ),
}


@pytest.mark.parametrize("name", TRANSFORMED)
def test_transformed_targets(name):
    model, y, transform = TRANSFORMED[name]
    model = fitted(model, X, y)
    view = as_torch_model(make_pipeline(model))
    outputs, batches = run(view, X, y)
    expected = model.regressor_.predict(X).reshape(outputs.shape)
    np.testing.assert_allclose(outputs, expected, rtol=1e-10)
    target = np.reshape(transform(y), outputs.shape)
    np.testing.assert_allclose(all_targets(batches), target, rtol=1e-12)
    assert view.finished_by == "TransformedTargetRegressor"
    inner = relative_flatness(model.regressor_, X, transform(y))
    result = relative_flatness(model, X, y)
    assert result.value == pytest.approx(inner.value, rel=1e-12)
    assert result.mean_loss == pytest.approx(inner.mean_loss, rel=1e-12)


def test_transformed_targets_of_a_net():
    net = NeuralNetRegressor(
        nn.Linear, module__in_features=M, module__out_features=2, max_epochs=1
    )
    model = TransformedTargetRegressor(
        net.set_params(verbose=0), transformer=FunctionTransformer(lambda y: y / 2)
    )
    y = REALS.astype(np.float32)
    model.set_params(check_inverse=False).fit(X32, y)
    view = as_torch_model(model)
    _, batches = run(view, X32, y)
    np.testing.assert_allclose(all_targets(batches), y / 2)
    with pytest.raises(ValueError, match=r"Expected y.*transforms it.*TensorDataset"):
        view.batches(TensorDataset(torch.tensor(X32), torch.tensor(y)))


def test_net_in_a_pipeline():
    net = make_net(nn.Linear(M, K), criterion=nn.CrossEntropyLoss)
    model = make_pipeline(StandardScaler(), net)
    model.set_params(neuralnetclassifier__max_epochs=0)
    net.initialize()
    model.steps[0] = ("standardscaler", StandardScaler().fit(X))
    outputs, _ = run(as_torch_model(model), X, INDEX)
    scaled = StandardScaler().fit_transform(X).astype(np.float32)
    np.testing.assert_allclose(softmax(outputs, 1), net.predict_proba(scaled), 1e-5)


def test_an_estimator_can_provide_its_own_view():
    class Shifted:
        def __init__(self, inner):
            self.inner = inner

        def _as_torch_model(self):
            view = as_torch_model(self.inner)
            return view.with_prepare(lambda X, y: (X - 1, np.char.lower(y)))

    inner = make_pipeline(StandardScaler(), LogisticRegression()).fit(X, LABELS)
    view = as_torch_model(FrozenEstimator(Shifted(inner)), loss="brier")
    outputs, batches = run(view, X + 1, np.char.upper(LABELS))
    np.testing.assert_allclose(outputs, inner.decision_function(X))
    np.testing.assert_array_equal(all_targets(batches), INDEX)
    assert view.loss.name == "brier"


# ---------------------------------------------------------------------------
# skorch nets
# ---------------------------------------------------------------------------
def make_net(module, kind=NeuralNetClassifier, **kwargs):
    torch.manual_seed(0)
    return kind(
        module,
        **{"train_split": None, "verbose": 0, "batch_size": 32, **kwargs},
    ).initialize()


class Dense(nn.Module):
    """Two layers and what is asked for at the end."""

    def __init__(self, n_outputs=K, end=None):
        super().__init__()
        self.hidden = nn.Linear(M, 5)
        self.out = nn.Linear(5, n_outputs)
        self.end = end or nn.Identity()

    def forward(self, X):
        return self.end(self.out(torch.tanh(self.hidden(X))))


class MethodSoftmax(nn.Module):
    def forward(self, z):
        return z.softmax(dim=-1)


class OwnSoftmax(nn.Module):
    """A softmax that no recorder knows."""

    def forward(self, z):
        z = (z - z.amax(1, keepdim=True)).exp()
        return z / z.sum(1, keepdim=True)


class FunctionalSoftmax(nn.Module):
    def forward(self, z):
        return F.softmax(z, dim=1)


def test_softmax_classifier_gives_the_very_logits():
    for end in [
        nn.Softmax(dim=1),
        nn.Softmax(-1),
        MethodSoftmax(),
        FunctionalSoftmax(),
    ]:
        net = make_net(Dense(end=end))
        view = as_torch_model(net)
        seen = []
        handle = view.module.out.register_forward_hook(
            lambda *call, seen=seen: seen.append(call[2])
        )
        outputs = view.outputs(XT)
        handle.remove()
        assert outputs is seen[0]
        assert outputs.grad_fn is not None
        assert view.loss.name == "cross_entropy"
        np.testing.assert_allclose(
            outputs.detach().softmax(1), net.predict_proba(XT), rtol=1e-6
        )


def test_softmax_that_is_not_found_gives_equivalent_logits():
    net = make_net(Dense(end=OwnSoftmax()))
    net.module_.double()
    view = as_torch_model(net)
    outputs = view.outputs(XT.double())
    logits = net.module_.out(torch.tanh(net.module_.hidden(XT.double())))
    difference = outputs - logits
    np.testing.assert_allclose((difference - difference[:, :1]).detach(), 0, atol=1e-12)

    def hessian(f):

        def mean_loss(w):
            outputs = torch.func.functional_call(net.module_, {"out.weight": w}, X64)
            return F.cross_entropy(f(outputs), torch.tensor(INDEX))

        # Reverse over reverse: torch's forward mode compiles with a deprecated tool.
        jacrev = torch.func.jacrev
        return jacrev(jacrev(mean_loss))(net.module_.out.weight.detach())

    X64 = XT.double()
    from_log = hessian(torch.log)
    net.module_.end = nn.Identity()
    torch.testing.assert_close(from_log, hessian(lambda z: z))


def test_saturated_softmax_has_finite_logits():
    module = nn.Sequential(nn.Linear(M, K), OwnSoftmax())
    net = make_net(module)
    with torch.no_grad():
        net.module_[0].weight.mul_(1e4)
    outputs, _ = run(as_torch_model(net), X32, INDEX)
    assert np.isfinite(outputs).all()


def test_attention_softmax_is_not_taken_for_the_output():
    class Attending(nn.Module):
        def __init__(self):
            super().__init__()
            self.out = nn.Linear(M, K)

        def forward(self, X):
            weights = torch.softmax(X, dim=1)
            return torch.softmax(self.out(X * weights), dim=1) * 1.0

    net = make_net(Attending())
    outputs, _ = run(as_torch_model(net), X32, INDEX)
    np.testing.assert_allclose(softmax(outputs, 1), net.predict_proba(X32), rtol=1e-5)


def test_softmax_changed_in_place_is_another_output():
    class Sharpened(nn.Module):
        def forward(self, z):
            p = z.softmax(1)
            with torch.no_grad():
                p.square_().div_(p.sum(1, keepdim=True))
            return p

    net = make_net(Dense(end=Sharpened()))
    outputs, _ = run(as_torch_model(net), X32, INDEX)
    np.testing.assert_allclose(softmax(outputs, 1), net.predict_proba(X32), rtol=1e-5)


@pytest.mark.parametrize(
    ("end", "message"),
    [
        (nn.LogSoftmax(dim=1), "log-probabilities.*softmax.*CrossEntropyLoss"),
        (nn.Identity(), "differ from one.*softmax.*CrossEntropyLoss"),
        (nn.Softmax(dim=0), "differ from one"),
    ],
)
def test_negative_log_likelihood_of_what_are_no_probabilities(end, message):
    view = as_torch_model(make_net(Dense(end=end)))
    with pytest.raises(ValueError, match=message):
        run(view, X32, INDEX)


def test_plain_net_takes_log_probabilities():
    net = make_net(Dense(end=nn.LogSoftmax(1)), NeuralNet, criterion=nn.NLLLoss)
    logits = Dense.forward(net.module_, XT)
    outputs = as_torch_model(net).outputs(XT)
    torch.testing.assert_close(outputs.log_softmax(1), logits)
    assert not torch.allclose(outputs, logits)
    net = make_net(Dense(end=nn.Softmax(1)), NeuralNet, criterion=nn.NLLLoss)
    with pytest.raises(ValueError, match=r"log-probabilities.*log_softmax"):
        as_torch_model(net).outputs(XT)


def test_cross_entropy_and_squared_error_leave_the_output_as_it_is():
    for end in (nn.Identity(), nn.Softmax(dim=1)):
        net = make_net(Dense(end=end), criterion=nn.CrossEntropyLoss)
        torch.testing.assert_close(as_torch_model(net).outputs(XT), net.module_(XT))
    net = make_net(Dense(2), NeuralNetRegressor)
    outputs, batches = run(as_torch_model(net), X32, REALS)
    np.testing.assert_allclose(outputs, net.predict(X32))
    np.testing.assert_array_equal(all_targets(batches), REALS.astype(np.float32))


@pytest.mark.parametrize("shape", ["column", "flat"])
@pytest.mark.parametrize("criterion", [nn.BCEWithLogitsLoss, nn.BCELoss])
def test_binary_net(shape, criterion):
    ends = [] if criterion is nn.BCEWithLogitsLoss else [nn.Sigmoid()]
    ends += [nn.Flatten(0)] if shape == "flat" else []
    net = make_net(
        Dense(1, nn.Sequential(*ends)), NeuralNetBinaryClassifier, criterion=criterion
    )
    y = (np.arange(N) % 2).astype(np.int32)
    view = as_torch_model(net)
    outputs, batches = run(view, X32, y)
    assert outputs.shape == (N,)
    assert view.loss.name == "binary_cross_entropy"
    np.testing.assert_allclose(expit(outputs), net.predict_proba(X32)[:, 1], rtol=1e-5)
    assert batches[0].y.dtype == torch.float32
    # The logits are found behind the sigmoid, not computed back from it.
    logits = net.module_.out(torch.tanh(net.module_.hidden(XT)))[:, 0]
    torch.testing.assert_close(view.outputs(XT), logits, rtol=0, atol=0)


def test_binary_probabilities_without_a_sigmoid():
    class Half(nn.Module):
        def forward(self, z):
            return 0.5 * (1 + torch.tanh(z / 2))

    net = make_net(Dense(1, Half()), NeuralNetBinaryClassifier, criterion=nn.BCELoss)
    outputs, _ = run(as_torch_model(net), X32, INDEX % 2)
    logits = net.module_.out(torch.tanh(net.module_.hidden(XT)))[:, 0]
    np.testing.assert_allclose(outputs, logits.detach(), rtol=1e-4, atol=1e-5)
    net = make_net(Dense(1), NeuralNetBinaryClassifier, criterion=nn.BCELoss)
    with pytest.raises(ValueError, match=r"probabilities.*BCEWithLogitsLoss"):
        run(as_torch_model(net), X32, INDEX % 2)


def test_module_with_several_outputs_and_dict_inputs():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(5, 3)
            self.out = nn.Linear(M + 3, K)

        def forward(self, dense, token):
            phi = torch.cat([dense, self.embed(token)], 1)
            return self.out(phi), phi

    net = make_net(Two, criterion=nn.CrossEntropyLoss)
    data = {"dense": X, "token": np.arange(N) % 5}
    expected = net.module_(XT, torch.arange(N) % 5)[0].detach()
    as_tensors = {key: torch.tensor(value) for key, value in data.items()}
    for inputs in (data, as_tensors, SliceDict(**data)):
        outputs, batches = run(as_torch_model(net), inputs, INDEX)
        np.testing.assert_allclose(outputs, expected, rtol=1e-6, atol=1e-7)
        assert batches[0].inputs["dense"].dtype == torch.float32
        assert batches[0].inputs["token"].dtype == torch.int64
    with pytest.raises(ValueError, match=r"one length.*'dense'.*70.*'token'.*3"):
        as_torch_model(net).batches({"dense": X, "token": np.arange(3)}, INDEX)


def test_overridden_infer_is_respected():
    class Doubling(NeuralNetClassifier):
        def infer(self, x, **fit_params):
            return 2 * super().infer(x, **fit_params)

    net = make_net(Dense(), Doubling, criterion=nn.CrossEntropyLoss)
    torch.testing.assert_close(as_torch_model(net).outputs(XT), 2 * net.module_(XT))


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_compiled_net_is_measured_uncompiled():
    net = make_net(Dense(end=nn.Softmax(1)), compile=True, compile__backend="eager")
    view = as_torch_model(net)
    assert type(view.module) is Dense
    assert type(net.module_) is not Dense
    assert view.loss.name == "cross_entropy"
    outputs, _ = run(view, X32, INDEX)
    expected = view.module(XT).detach()
    np.testing.assert_allclose(softmax(outputs, 1), expected, rtol=1e-6)
    assert list(dict(view.module.named_modules())) == ["", "hidden", "out", "end"]


def test_loss_is_that_of_the_criterion_or_the_one_asked_for():
    net = make_net(Dense(), criterion=nn.CrossEntropyLoss(label_smoothing=0.1))
    assert as_torch_model(net).loss.label_smoothing == 0.1
    assert as_torch_model(net, loss="squared_error").loss.name == "squared_error"
    # The logits are those of the net's own criterion, whatever the loss.
    net = make_net(Dense(end=nn.Softmax(1)))
    view = as_torch_model(net, loss=nn.MSELoss())
    torch.testing.assert_close(view.outputs(XT), as_torch_model(net).outputs(XT))
    net = make_net(Dense(2), NeuralNetRegressor, criterion=nn.L1Loss)
    with pytest.raises(TypeError, match="L1Loss"):
        as_torch_model(net)
    assert as_torch_model(net, loss="squared_error").loss.name == "squared_error"


@pytest.mark.parametrize(
    ("y", "kind", "criterion", "dtype"),
    [
        (INDEX.astype(np.int32), NeuralNetClassifier, nn.CrossEntropyLoss, torch.int64),
        (INDEX.astype(np.uint8), NeuralNetClassifier, nn.NLLLoss, torch.int64),
        (torch.tensor(INDEX), NeuralNet, nn.CrossEntropyLoss, torch.int64),
        (INDEX > 1, NeuralNetClassifier, nn.CrossEntropyLoss, torch.int64),
        (np.eye(K)[INDEX], NeuralNet, nn.CrossEntropyLoss, torch.float32),
        (INDEX.tolist(), NeuralNet, nn.MSELoss, torch.float32),
        (INDEX.astype(object), NeuralNetClassifier, nn.CrossEntropyLoss, torch.int64),
    ],
)
def test_targets_of_nets(y, kind, criterion, dtype):
    net = make_net(Dense(), kind, criterion=criterion)
    for batch in as_torch_model(net).batches(X32, y):
        assert batch.y.dtype == dtype
        rows = np.asarray(y)[batch.start : batch.start + batch.n_samples]
        np.testing.assert_array_equal(batch.y, rows.astype(float))


# ---------------------------------------------------------------------------
# Batches
# ---------------------------------------------------------------------------
class Pairs(Dataset):
    """A data set of one's own."""

    def __len__(self):
        return N

    def __getitem__(self, index):
        return X32[index], INDEX[index]


class OwnLoader(DataLoader):
    pass


def net_data():
    """Return net options, X and y that all mean the same batches."""
    return {
        "array": ({}, X32, INDEX),
        "float64": ({}, X, INDEX),
        "tensor": ({}, XT, torch.tensor(INDEX)),
        "reversed": ({}, X32[::-1][::-1], INDEX[::-1][::-1]),
        "big endian": ({}, X.astype(">f8"), INDEX.astype(">i4")),
        "dataset": ({}, Pairs(), None),
        "dataset and y": ({}, Pairs(), INDEX),
        "tensor dataset": ({}, TensorDataset(XT, torch.tensor(INDEX)), None),
        "subset": ({}, torch.utils.data.Subset(Pairs(), range(N)), None),
        "slice dataset": ({}, SliceDataset(Pairs()), SliceDataset(Pairs(), idx=1)),
        "loader": ({"iterator_valid": OwnLoader}, X32, INDEX),
        "valid size": ({"iterator_valid__batch_size": 32, "batch_size": 8}, X, INDEX),
    }


@pytest.mark.parametrize("name", net_data())
def test_batches_of_a_net(name):
    options, inputs, y = net_data()[name]
    net = make_net(Dense(), criterion=nn.CrossEntropyLoss, **options)
    source = as_torch_model(net).batches(inputs, y)
    assert source.n_samples == N
    assert len(source) == 3
    for _ in range(2):
        batches = list(source)
        assert [batch.start for batch in batches] == [0, 32, 64]
        assert [batch.n_samples for batch in batches] == [32, 32, 6]
        torch.testing.assert_close(torch.cat([b.inputs for b in batches]), XT)
        torch.testing.assert_close(all_targets(batches), torch.tensor(INDEX))
    next(iter(source))
    assert [batch.start for batch in source] == [0, 32, 64]


@pytest.mark.parametrize("name", net_data())
def test_a_look_at_the_first_samples(name):
    options, inputs, y = net_data()[name]
    net = make_net(Dense(), criterion=nn.CrossEntropyLoss, **options)
    source = as_torch_model(net).batches(inputs, y)
    for size in (2, 100):
        batch = source.first(size)
        n_samples = min(size, 32)
        assert (batch.start, batch.n_samples) == (0, n_samples)
        torch.testing.assert_close(batch.inputs, XT[:n_samples])
        torch.testing.assert_close(batch.y, torch.tensor(INDEX[:n_samples]))
    assert [batch.start for batch in source] == [0, 32, 64]


def test_few_samples_are_read_alone():
    read = []

    class Watched(np.ndarray):
        def __getitem__(self, rows):
            read.append(rows)
            return np.asarray(self)[rows]

    net = make_net(Dense(), criterion=nn.CrossEntropyLoss)
    source = as_torch_model(net).batches(X32.view(Watched), INDEX)
    source.first(2)
    few, rows = next(source.glances())
    assert [[*range(len(X32))[part]] for part in read] == [[0, 1], [*rows]]
    assert few.n_samples == len(rows) == 3
    assert np.array_equal(few.inputs.numpy(), X32[list(rows)])


@pytest.mark.parametrize("start", [0, 3])
def test_parts_of_a_batch(start):
    lengths = [2, 5, 1, 4, 3]
    sequences = [torch.randn(length, M) for length in lengths]
    batch = Batch(
        inputs={
            "dense": XT[:5],
            "tokens": [torch.arange(5), torch.arange(10).reshape(5, 2)],
            "packed": pack_sequence(sequences, enforce_sorted=False),
            "flag": "fast",
        },
        y=torch.tensor(INDEX[:5]),
        sample_weight=torch.arange(5.0),
        start=7,
        n_samples=5,
    )
    part = batch.slice(start, start + 2)
    rows = slice(start, start + 2)
    assert (part.start, part.n_samples) == (7 + start, 2)
    assert part.inputs["flag"] == "fast"
    assert torch.equal(part.inputs["dense"], XT[rows])
    assert torch.equal(part.inputs["tokens"][1], torch.arange(10).reshape(5, 2)[rows])
    for found, expected in zip(
        unpack_sequence(part.inputs["packed"]), sequences[rows], strict=True
    ):
        assert torch.equal(found, expected)
    assert torch.equal(part.sample_weight, torch.arange(5.0)[rows])
    assert batch.slice(4, 9).n_samples == 1


def test_chunks_of_batches_are_of_about_equal_size():
    net = make_net(Dense(), criterion=nn.CrossEntropyLoss)
    source = as_torch_model(net).batches(X32, INDEX)
    parts = list(chunks(source, 10))
    assert [part.n_samples for part in parts] == [8] * 8 + [6]
    assert [part.start for part in parts] == [*range(0, 64, 8), 64]
    torch.testing.assert_close(torch.cat([part.inputs for part in parts]), XT)


def test_a_net_on_packed_sequences():
    lengths = RNG.integers(1, 6, size=N)

    class Sequences(Dataset):
        def __len__(self):
            return N

        def __getitem__(self, index):
            return XT[index].repeat(int(lengths[index]), 1), INDEX[index]

    def collate(items):
        sequences, labels = zip(*items, strict=True)
        packed = pack_sequence(sequences, enforce_sorted=False)
        return packed, torch.tensor(labels)

    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = nn.GRU(M, 4)
            self.out = nn.Linear(4, K)

        def forward(self, sequences):
            return self.out(self.cell(sequences)[1][0])

    net = make_net(
        Recurrent,
        criterion=nn.CrossEntropyLoss,
        iterator_valid__collate_fn=collate,
    )
    result = relative_flatness(net, Sequences(), None)
    with torch.no_grad():
        packed, _ = collate([Sequences()[i] for i in range(N)])
        phi = net.module_.cell(packed)[1][0]
        p = torch.softmax(net.module_.out(phi), 1)
        weight = net.module_.out.weight
        mean = p @ weight
        spread = (p @ weight.square()).sum(1) - mean.square().sum(1)
        expected = (phi.square().sum(1) * spread).mean()
    assert result.layer == "out"
    assert result.value == pytest.approx(float(expected), rel=1e-4)


def test_one_batch_of_all_samples():
    net = make_net(Dense(), criterion=nn.CrossEntropyLoss, batch_size=-1)
    for inputs, y in [(X32, INDEX), (Pairs(), None)]:
        (batch,) = as_torch_model(net).batches(inputs, y)
        assert batch.n_samples == N


def test_targets_beside_a_data_set_replace_its_own():
    net = make_net(Dense(), criterion=nn.CrossEntropyLoss)
    batches = list(as_torch_model(net).batches(Pairs(), INDEX[::-1].copy()))
    np.testing.assert_array_equal(all_targets(batches), INDEX[::-1])


def test_data_without_targets():
    net = make_net(Dense(), criterion=nn.CrossEntropyLoss)
    view = as_torch_model(net)
    for inputs in (X32, SliceDataset(Pairs())):
        assert all(batch.y is None for batch in view.batches(inputs))
    (batch,) = as_torch_model(Ridge().fit(X, REAL)).batches(X)
    assert batch.y is None


def test_sample_weights_come_with_their_samples():
    weight = RNG.uniform(size=N)
    net = make_net(Dense(), criterion=nn.CrossEntropyLoss)
    for inputs in (X32, Pairs()):
        batches = list(as_torch_model(net).batches(inputs, INDEX, weight))
        got = torch.cat([batch.sample_weight for batch in batches])
        np.testing.assert_array_equal(got, weight)
    (batch,) = as_torch_model(Ridge().fit(X, REAL)).batches(X, REAL, weight.tolist())
    np.testing.assert_array_equal(batch.sample_weight, weight)


def test_a_module_that_works_in_place_leaves_the_data_alone():
    for end in (nn.ReLU(inplace=True), nn.Dropout(inplace=True)):
        module = nn.Sequential(nn.Identity(), end, nn.Linear(M, K))
        view = as_torch_model(make_net(module, criterion=nn.CrossEntropyLoss))
        inputs, tensor = X32.copy(), XT.clone()
        run(view, inputs, INDEX)
        run(view, tensor, INDEX)
        np.testing.assert_array_equal(inputs, X32)
        assert torch.equal(tensor, XT)


def _halved(x):
    return x.mul_(0.5)


def _with_own_forward(module):
    class Halving(nn.Flatten):
        def forward(self, x):
            return super().forward(_halved(x))

    return nn.Sequential(Halving(), *module)


def _with_hook(module):
    module[0].register_forward_pre_hook(lambda part, args: (_halved(*args),))
    return module


def _with_replaced_forward(module):
    whole = module.forward
    module.forward = lambda x: whole(_halved(x))
    return module


def _with_patched_class(module):
    class Patched(type(module)):
        pass

    # It says that it was written in torch.
    Patched.forward = functools.wraps(nn.Sequential.forward)(
        lambda self, x: nn.Sequential.forward(self, _halved(x))
    )
    module.__class__ = Patched
    return module


class HalvingNet(NeuralNet):
    def infer(self, x, **fit_params):
        return super().infer(_halved(x), **fit_params)


@pytest.mark.parametrize(
    "change",
    [
        _with_own_forward,
        _with_hook,
        _with_replaced_forward,
        _with_patched_class,
        lambda module: nn.Sequential(nn.Hardtanh(-1e9, 1e9, inplace=True), *module),
        None,
    ],
)
def test_inputs_are_shared_only_with_what_leaves_them_alone(change):
    module = nn.Sequential(nn.Flatten(), nn.Linear(M, K))
    plain = make_net(module, criterion=nn.CrossEntropyLoss)
    tensor = XT.clone()
    view = as_torch_model(plain)
    (first, *_) = view.batches(tensor, INDEX)
    assert view.is_plain
    assert first.inputs.data_ptr() == tensor.data_ptr()
    expected = relative_flatness(plain, 0.5 * XT, INDEX).value
    if change is None:
        net = HalvingNet(
            module, nn.CrossEntropyLoss, train_split=None, batch_size=32
        ).initialize()
    else:
        net = make_net(change(module), criterion=nn.CrossEntropyLoss)
        if "Hardtanh" in str(net.module_):
            expected = relative_flatness(plain, XT, INDEX).value
    assert not as_torch_model(net).is_plain
    assert relative_flatness(net, tensor, INDEX).value == pytest.approx(expected)
    assert torch.equal(tensor, XT)


@pytest.mark.parametrize(
    "module",
    [
        nn.Sequential(nn.FractionalMaxPool2d(2, 2), nn.Flatten(), nn.Linear(4, K)),
        nn.Sequential(nn.TransformerEncoderLayer(4, 1, 4), nn.Linear(4, K)),
    ],
)
def test_modules_that_draw_or_take_fused_attention_are_watched(module):
    assert not as_torch_model(make_net(module, criterion=nn.CrossEntropyLoss)).is_plain


def test_read_only_inputs():
    inputs = X32.copy()
    inputs.flags.writeable = False
    net = make_net(Dense(), criterion=nn.CrossEntropyLoss)
    outputs, _ = run(as_torch_model(net), inputs, INDEX)
    assert outputs.shape == (N, K)
    model = LogisticRegression().fit(X, LABELS)
    locked = X.copy()
    locked.flags.writeable = False
    outputs, _ = run(as_torch_model(model), locked, LABELS)
    np.testing.assert_allclose(outputs, model.decision_function(X))


# ---------------------------------------------------------------------------
# Nothing is touched
# ---------------------------------------------------------------------------
class Restless(nn.Module):
    """Changes what it can even in eval mode."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(M)
        self.drop = nn.Dropout(0.5)
        self.out = nn.Linear(M, K)
        self.register_buffer("calls", torch.zeros(1))
        self.register_buffer("last", torch.zeros(1, M))

    def forward(self, X):
        self.calls += 1
        self.last = X.detach().clone()
        random.random()
        np.random.random()  # noqa: NPY002 - the global state is what is tested
        return self.out(F.dropout(self.drop(self.norm(X)), 0.1))


def state_of(net):
    """Return everything that the user's net and the process own."""
    module = net.module_
    return {
        "state": {k: v.clone() for k, v in module.state_dict().items()},
        "ids": {k: id(v) for k, v in module.state_dict(keep_vars=True).items()},
        "grads": [
            None if p.grad is None else p.grad.clone() for p in net.module_.parameters()
        ],
        "requires": [p.requires_grad for p in module.parameters()],
        "training": [m.training for m in module.modules()],
        "hooks": [
            (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks))
            for m in module.modules()
        ],
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state(legacy=False)["state"],  # noqa: NPY002 - as above
        "random": random.getstate(),
        "fastpath": torch.backends.mha.get_fastpath_enabled(),
        "flash": torch.backends.cuda.flash_sdp_enabled(),
        "grad mode": torch.is_grad_enabled(),
        "attributes": {key: id(value) for key, value in vars(net).items()},
    }


def assert_same(before, after):
    torch.testing.assert_close(after.pop("state"), before.pop("state"), rtol=0, atol=0)
    for first, second in zip(before.pop("grads"), after.pop("grads"), strict=True):
        assert (first is None) == (second is None)
        assert first is None or torch.equal(first, second)
    assert torch.equal(before.pop("torch"), after.pop("torch"))
    np.testing.assert_equal(after.pop("numpy"), before.pop("numpy"))
    assert before == after


@pytest.fixture
def restless():
    net = make_net(Restless, criterion=nn.CrossEntropyLoss)
    net.fit(X32, INDEX)
    net.module_.train()
    net.module_.drop.eval()
    net.module_.out.bias.requires_grad_(False)
    net.module_.out.weight.grad = torch.ones(K, M)
    return net


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_nothing_is_touched(restless, error):
    before = state_of(restless)
    view = as_torch_model(restless)
    source = view.batches(Pairs(), None)
    expected = nullcontext() if error is None else pytest.raises(error)
    with expected, view.measuring():
        assert not any(module.training for module in view.module.modules())
        # Nothing of the process is switched, and nothing of the user's module.
        assert torch.backends.mha.get_fastpath_enabled()
        assert restless.module_.training
        for number, batch in enumerate(source):
            outputs = view.outputs(batch.inputs)
            torch.autograd.grad(outputs.sum(), view.module.out.weight)
            if number == 1 and error is not None:
                raise error("in the middle")
    assert_same(before, state_of(restless))


def test_nothing_is_touched_by_a_failed_entry(restless):
    restless.module_.out.bias.data[1] = float("inf")
    before = state_of(restless)
    with (
        pytest.raises(ValueError, match=r"out\.bias"),
        as_torch_model(restless).measuring(),
    ):
        pass
    assert_same(before, state_of(restless))


def test_measuring_nests_and_repeats(restless):
    view = as_torch_model(restless)
    with view.measuring(), view.measuring():
        pass
    assert restless.module_.training
    with view.measuring():
        first = [view.outputs(batch.inputs) for batch in view.batches(X32, INDEX)]
    with view.measuring():
        second = [view.outputs(batch.inputs) for batch in view.batches(X32, INDEX)]
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_measuring_works_in_inference_mode_and_under_autocast():
    net = make_net(Dense(), criterion=nn.CrossEntropyLoss)
    view = as_torch_model(net)
    with torch.inference_mode(), view.measuring():
        assert not torch.is_grad_enabled()
        with torch.enable_grad():
            for batch in view.batches(X32, INDEX):
                outputs = view.outputs(batch.inputs)
                (gradient,) = torch.autograd.grad(outputs.sum(), view.module.out.weight)
                assert gradient.abs().sum() > 0
    with torch.autocast("cpu", dtype=torch.bfloat16), view.measuring():
        assert view.outputs(XT).dtype == torch.float32
    with torch.no_grad(), view.measuring():
        assert not torch.is_grad_enabled()


def test_attention_can_be_differentiated_twice():
    module = nn.Sequential(
        nn.TransformerEncoderLayer(M, 2, 8, batch_first=True),
        nn.Flatten(),
        nn.Linear(12, K),
    )
    net = make_net(module, criterion=nn.CrossEntropyLoss)
    view = as_torch_model(net)
    tokens = RNG.normal(size=(5, 3, M))
    with view.measuring():
        for batch in view.batches(tokens, INDEX[:5]):
            weight = view.module[0].self_attn.out_proj.weight
            loss = F.cross_entropy(view.outputs(batch.inputs), batch.y)
            (gradient,) = torch.autograd.grad(loss, weight, create_graph=True)
            (second,) = torch.autograd.grad(gradient.square().sum(), weight)
            assert torch.isfinite(second).all()


def test_batch_normalisation_is_that_of_eval_mode():
    module = nn.Sequential(nn.BatchNorm1d(M), nn.Linear(M, K))
    net = make_net(module, criterion=nn.CrossEntropyLoss).partial_fit(X32, INDEX)
    assert net.module_.training
    outputs, _ = run(as_torch_model(net), X32, INDEX)
    assert net.module_.training
    np.testing.assert_allclose(softmax(outputs, 1), net.predict_proba(X32), rtol=1e-5)


# ---------------------------------------------------------------------------
# Bad input
# ---------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("model", "name"),
    [
        (LogisticRegression(), "LogisticRegression"),
        (mlp(), "MLPClassifier"),
        (KernelRidge(), "KernelRidge"),
        (NeuralNetClassifier(Dense), "NeuralNetClassifier"),
        (make_pipeline(StandardScaler(), Ridge()), "Ridge"),
        (GridSearchCV(Ridge(), {"alpha": [1.0]}), "GridSearchCV"),
        (TunedThresholdClassifierCV(LogisticRegression()), "TunedThreshold"),
        (FixedThresholdClassifier(LogisticRegression()), "LogisticRegression"),
        (TransformedTargetRegressor(Ridge()), "TransformedTargetRegressor"),
        (CalibratedClassifierCV(Ridge()), "CalibratedClassifierCV"),
        (make_net(nn.LazyLinear(3), criterion=nn.CrossEntropyLoss), "lazy.*'fit'"),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_not_fitted(model, name):
    with pytest.raises(NotFittedError, match=name):
        as_torch_model(model)


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (SVC(), TypeError, r"'SVC'.*skorch nets.*KernelRidge.*Pipeline.*FeatureSplit"),
        (nn.Linear(2, 2), ValueError, r"'Linear'.*skorch\.NeuralNetClassifier"),
        (LogisticRegression, TypeError, "the class 'LogisticRegression'"),
        (make_pipeline(StandardScaler(), "passthrough"), TypeError, "last step"),
        (make_pipeline(StandardScaler()), TypeError, "'StandardScaler'"),
        (None, TypeError, "'NoneType'"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_unsupported_models(model, error, message):
    with pytest.raises(error, match=message):
        as_torch_model(model)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (SGDClassifier(loss="hinge"), r"\['log_loss'\], got 'hinge'.*'cross_entropy'"),
        (SGDRegressor(loss="huber"), r"\['squared_error'\], got 'huber'"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_training_losses_without_a_curvature(model, message):
    model.fit(X, INDEX)
    with pytest.raises(ValueError, match=message):
        as_torch_model(model)
    assert as_torch_model(model, loss="squared_error").loss.name == "squared_error"


@pytest.mark.parametrize("how", [{"multi_class": "ovr"}, {"solver": "liblinear"}])
def test_one_versus_rest_of_older_scikit_learn(how):
    model = LogisticRegression().fit(X, LABELS)
    vars(model).update(how)
    view = as_torch_model(model)
    _, batches = run(view, X, LABELS)
    assert view.loss.name == "binary_cross_entropy"
    np.testing.assert_array_equal(all_targets(batches), np.eye(K)[INDEX])


def test_search_without_refit():
    search = GridSearchCV(Ridge(), {"alpha": [1.0]}, cv=2, refit=False).fit(X, REAL)
    with pytest.raises(ValueError, match=r"refit=False.*refit=True"):
        as_torch_model(search)


def test_multinomial_model_of_two_classes():
    model = LogisticRegression().fit(X, BINARY)
    model.multi_class = "multinomial"
    with pytest.raises(ValueError, match=r"two classes.*multi_class"):
        as_torch_model(model)


def with_bad(values, bad, index):
    values = values.copy()
    values[index] = bad
    return values


BAD_DATA = {
    # name: (X, y, sample_weight, error, message for a net, for scikit-learn)
    "nan": (
        with_bad(X, np.nan, (40, 1)),
        INDEX,
        None,
        "batch 1, first in sample 40",
        "NaN",
    ),
    "inf": (
        with_bad(X, np.inf, (3, 0)),
        INDEX,
        None,
        "batch 0, first in sample 3",
        "inf",
    ),
    "empty": (X[:0], INDEX[:0], None, "at least one sample", "0 sample"),
    "short y": (X, INDEX[:-1], None, r"shape \(69,\) for 70", "69 for 70"),
    "unseen": (X, INDEX + 1, None, r"0\.\.2.*got 3", r"unseen labels \[3\]"),
    "short weight": (
        X,
        INDEX,
        np.ones(N - 1),
        r"\(70,\).*\(69,\)",
        r"\(70,\).*\(69,\)",
    ),
    "negative weight": (X, INDEX, -np.ones(N), "at least zero.*-1.0", "at least zero"),
    "nan weight": (X, INDEX, np.full(N, np.nan), "finite sample_weight", "finite"),
    "zero weight": (X, INDEX, np.zeros(N), "zeros only", "zeros only"),
    "features": (
        X[:, :3],
        INDEX,
        None,
        "in_features=4.*X of shape|X of shape.*in_features=4",
        "expecting 4 features",
    ),
}


def measure(view, X, y, weight):
    """Do what every measure does."""
    with torch.no_grad(), view.measuring():
        for batch in view.batches(X, y, weight):
            outputs = view.outputs(batch.inputs)
            view.check_outputs(outputs, batch)
            view.loss.targets(outputs, batch.y)


@pytest.mark.parametrize("loader", [DataLoader, OwnLoader])
@pytest.mark.parametrize("name", BAD_DATA)
def test_bad_data_for_a_net(name, loader):
    net = make_net(Dense(), criterion=nn.CrossEntropyLoss, iterator_valid=loader)
    inputs, y, weight, message, _ = BAD_DATA[name]
    with pytest.raises(ValueError, match=message):
        measure(as_torch_model(net), inputs, y, weight)


@pytest.mark.parametrize("name", BAD_DATA)
def test_bad_data_for_a_scikit_learn_model(name):
    model = LogisticRegression().fit(X, INDEX)
    inputs, y, weight, _, message = BAD_DATA[name]
    with pytest.raises(ValueError, match=message):
        measure(as_torch_model(model), inputs, y, weight)


def test_large_finite_inputs_are_no_infinity():
    inputs = np.full((4, M), 3e38, dtype=np.float32)
    net = make_net(Dense(), criterion=nn.CrossEntropyLoss)
    assert len(list(as_torch_model(net).batches(inputs, INDEX[:4]))) == 1


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (LABELS, "LabelEncoder"),
        (LABELS.astype(object), "LabelEncoder"),
        (np.full(N, np.nan), "finite targets.*sample 0"),
        (INDEX * 1.0, "integer class labels"),
        (np.float64(3), "one entry per sample"),
    ],
)
def test_bad_targets_for_a_net(y, message):
    net = make_net(Dense(), criterion=nn.CrossEntropyLoss)
    with pytest.raises(ValueError, match=message):
        measure(as_torch_model(net), X32, y, None)


@pytest.mark.parametrize(
    ("model", "y", "fitted_y", "message"),
    [
        (Ridge(), REALS, REAL, r"1 outputs per sample.*\(70, 2\)"),
        (Ridge(), with_bad(REAL, np.nan, 3), REAL, "y contains NaN"),
        (mlp(), MULTI + 1, MULTI, "indicator.*zeros and ones"),
        (LogisticRegression(), MULTI, INDEX, "1d array|shape"),
        (LogisticRegression(), BINARY, LABELS, r"'ape'.*unseen labels \['no', 'yes'\]"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_bad_targets_for_scikit_learn_models(model, y, fitted_y, message):
    view = as_torch_model(fitted(model, X, fitted_y))
    with pytest.raises(ValueError, match=message):
        view.batches(X, y)


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        (sparse.csr_array(X), TypeError, r"sparse matrix.*toarray\(\)"),
        (XT.to_sparse(), TypeError, r"sparse matrix.*to_dense\(\)"),
        (np.array([["a"] * M] * N), TypeError, "numeric inputs.*Encode"),
        (np.arange(N * M).reshape(N, M), ValueError, "int64.*astype"),
        ({"x": X32}, TypeError, r"\['x'\], the keys.*X\.to_numpy\(\)"),
        (3.0, TypeError, "Expected X as an array.*'float'"),
        ({}, TypeError, "Expected X as an array.*'dict'"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_bad_inputs_for_a_net(inputs, error, message):
    net = make_net(Dense(), criterion=nn.CrossEntropyLoss)
    with pytest.raises(error, match=message):
        measure(as_torch_model(net), inputs, INDEX, None)


def test_data_set_without_a_length():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter([(X32[0], 0)])

    net = make_net(Dense(), criterion=nn.CrossEntropyLoss)
    with pytest.raises(TypeError, match=r"data set with a length.*'Stream'"):
        as_torch_model(net).batches(Stream())


@pytest.mark.filterwarnings("ignore:You set iterator_valid__shuffle")
@pytest.mark.parametrize(
    ("options", "weight", "message"),
    [
        ({"drop_last": True}, None, "drop_last=False"),
        ({"shuffle": True}, np.ones(N), "keeps the order.*shuffle=False"),
    ],
)
def test_iterators_that_lose_samples_or_their_order(options, weight, message):
    options = {f"iterator_valid__{key}": value for key, value in options.items()}
    net = make_net(Dense(), criterion=nn.CrossEntropyLoss, **options)
    with pytest.raises(ValueError, match=message):
        as_torch_model(net).batches(X32, INDEX, weight)


@pytest.mark.filterwarnings("ignore:You set iterator_valid__shuffle")
def test_shuffling_iterator_keeps_samples_and_targets_together():
    net = make_net(Dense(), criterion=nn.CrossEntropyLoss, iterator_valid__shuffle=True)
    batches = list(as_torch_model(net).batches(Pairs(), INDEX))
    inputs = torch.cat([batch.inputs for batch in batches])
    assert not torch.equal(inputs, XT)
    rows = [int(np.flatnonzero((row == X32).all(1))[0]) for row in inputs.numpy()]
    np.testing.assert_array_equal(all_targets(batches), INDEX[rows])


def test_batch_normalisation_without_running_statistics():
    module = nn.Sequential(
        nn.Linear(M, 5), nn.BatchNorm1d(5, track_running_stats=False), nn.Linear(5, K)
    )
    view = as_torch_model(make_net(module, criterion=nn.CrossEntropyLoss))
    with pytest.raises(ValueError, match=r"'1'.*track_running_stats"), view.measuring():
        pass


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite(value):
    net = make_net(Dense(), criterion=nn.CrossEntropyLoss)
    net.module_.hidden.weight.data[0, 0] = value
    with pytest.raises(ValueError, match=r"'hidden\.weight'.*NeuralNetClassifier"):
        measure(as_torch_model(net), X32, INDEX, None)
    model = Ridge().fit(X, REAL)
    model.coef_[1] = value
    with pytest.raises(ValueError, match=r"'coef\.weight' of Ridge"):
        measure(as_torch_model(model), X, REAL, None)


def test_forward_pass_that_overflows():
    class Explosive(nn.Module):
        def forward(self, z):
            return torch.exp(100 * z.abs()) + z

    net = make_net(Dense(end=Explosive()), criterion=nn.CrossEntropyLoss)
    with pytest.raises(ValueError, match=r"forward pass of sample.*largest entry of X"):
        measure(as_torch_model(net), 100 * X32, INDEX, None)


def test_other_errors_of_a_module_are_its_own():
    class Broken(nn.Module):
        def forward(self, z):
            raise RuntimeError("no such luck")

    net = make_net(Dense(end=Broken()), criterion=nn.CrossEntropyLoss)
    with pytest.raises(RuntimeError, match="no such luck"):
        as_torch_model(net).outputs(XT)

    class Wordy(nn.Module):
        def forward(self, z):
            return {"scores": z}

    net = make_net(Dense(end=Wordy()), criterion=nn.CrossEntropyLoss)
    with pytest.raises(TypeError, match=r"to return a tensor.*'dict'"):
        as_torch_model(net).outputs(XT)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_device_that_is_not_there():
    net = make_net(Dense(), criterion=nn.CrossEntropyLoss)
    net.device = "cuda"
    with pytest.raises(ValueError, match=r"device='cuda'.*set_params\(device='cpu'\)"):
        as_torch_model(net)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_net_on_the_gpu():
    net = make_net(Dense(end=nn.Softmax(1)), device="cuda")
    view = as_torch_model(net)
    before = torch.cuda.get_rng_state()
    with torch.no_grad(), view.measuring():
        torch.rand(3, device="cuda")
        for batch in view.batches(X, INDEX, np.ones(N)):
            outputs = view.outputs(batch.inputs)
            for tensor in (outputs, batch.inputs, batch.y, batch.sample_weight):
                assert tensor.device.type == "cuda"
    assert torch.equal(torch.cuda.get_rng_state(), before)
