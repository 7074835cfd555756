"""RelativeFlatnessLogisticRegression: against its definition and brute force."""

import pickle

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from scipy.optimize import check_grad
from scipy.stats import ortho_group
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_iris
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler, scale
from sklearn.utils.estimator_checks import parametrize_with_checks

from sklearn_relflat import RelativeFlatnessLogisticRegression, relative_flatness
from sklearn_relflat._linear.logistic_objective import LogisticObjective


def make_case(n_samples, n_features, n_classes, *, weights=False, shift=0.0):
    """Overlapping classes, a third of the entries zero, labels that are words."""
    rng = np.random.default_rng(n_samples + 7 * n_features + 31 * n_classes)
    X = rng.standard_normal((n_samples, n_features))
    X *= rng.random(X.shape) < 2 / 3
    X += shift
    codes = np.argmax(
        X @ rng.standard_normal((n_features, n_classes))
        + rng.gumbel(size=(n_samples, n_classes)),
        axis=1,
    )
    weight = rng.integers(0, 4, n_samples).astype(float) if weights else None
    return X, np.array(["b", "a", "d", "c"])[codes], weight


CASES = {
    "binary": make_case(80, 4, 2),
    "binary_weighted": make_case(80, 4, 2, weights=True),
    "binary_shifted": make_case(80, 4, 2, shift=1.0),
    "three_classes": make_case(90, 5, 3),
    "four_classes_weighted": make_case(120, 4, 4, weights=True),
}
CONTAINERS = {"dense": np.asarray, "csr": sp.csr_array, "csc": sp.csc_matrix}


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


@pytest.fixture(params=CONTAINERS)
def container(request):
    return CONTAINERS[request.param]


def oracle(X, y, weight, coef, intercept, classes):
    """Cross-entropy and kappa, sample by sample and class by class."""
    if len(coef) == 1:
        coef = np.vstack([np.zeros_like(coef), coef])
        intercept = np.array([0.0, intercept[0]])
    weight = np.ones(len(X)) if weight is None else weight
    loss = kappa = 0.0
    for x, label, s in zip(X, y, weight / weight.sum(), strict=True):
        scores = coef @ x + intercept
        p = np.exp(scores - scores.max())
        p /= p.sum()
        loss -= s * np.log(p[np.flatnonzero(classes == label)[0]])
        for k in range(len(coef)):
            for l in range(len(coef)):
                hessian_trace = p[k] * ((k == l) - p[l]) * np.sum(x**2)
                kappa += s * np.dot(coef[k], coef[l]) * hessian_trace
    return loss, kappa


def fit_tightly(delta, X, y, weight=None, **params):
    """A fit run to the precision of the function values."""
    params = {"tol": 1e-9, "max_iter": 20_000} | params
    model = RelativeFlatnessLogisticRegression(delta, **params)
    return model.fit(X, y, sample_weight=weight)


@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("delta", [0.0, 0.3, 2.0])
def test_fitted_loss_and_flatness_follow_their_definitions(
    case, container, delta, fit_intercept
):
    X, y, weight = case
    model = RelativeFlatnessLogisticRegression(delta, fit_intercept=fit_intercept)
    model.fit(container(X), y, sample_weight=weight)
    loss, kappa = oracle(X, y, weight, model.coef_, model.intercept_, model.classes_)
    assert model.loss_ == pytest.approx(loss, rel=1e-12)
    assert model.relative_flatness_ == pytest.approx(kappa, rel=1e-12)
    assert fit_intercept or not model.intercept_.any()


@pytest.mark.parametrize("name", ["binary", "three_classes"])
def test_flatness_equals_the_trace_of_the_brute_force_hessian(name):
    X, y, _ = CASES[name]
    model = RelativeFlatnessLogisticRegression(1.0).fit(X, y)
    features, bias = torch.tensor(X), torch.tensor(model.intercept_)
    codes = torch.tensor(np.searchsorted(model.classes_, y))

    def mean_loss(weight):
        logits = features @ weight.T + bias
        if len(weight) == 1:
            return torch.nn.functional.binary_cross_entropy_with_logits(
                logits[:, 0], codes.double()
            )
        return torch.nn.functional.cross_entropy(logits, codes)

    weight = torch.tensor(model.coef_)
    blocks = torch.autograd.functional.hessian(mean_loss, weight)
    kappa = sum(
        weight[s] @ weight[t] * torch.trace(blocks[s, :, t])
        for s in range(len(weight))
        for t in range(len(weight))
    )
    assert model.relative_flatness_ == pytest.approx(float(kappa), rel=1e-10)


@pytest.mark.parametrize("name", ["binary", "binary_shifted", "three_classes"])
def test_flatness_equals_that_of_the_same_logistic_regression(name):
    X, y, _ = CASES[name]
    model = RelativeFlatnessLogisticRegression(1.0).fit(X, y)
    same = LogisticRegression().fit(X, y)
    same.coef_, same.intercept_ = model.coef_, model.intercept_
    measured = relative_flatness(same, X, y)
    assert model.relative_flatness_ == pytest.approx(measured.value, rel=1e-10)
    assert model.loss_ == pytest.approx(measured.mean_loss, rel=1e-10)


@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("strength", [0.0, 0.5, 50.0])
def test_gradient(case, container, strength, fit_intercept):
    X, y, weight = case
    classes, codes = np.unique(y, return_inverse=True)
    weight = np.ones(len(X)) if weight is None else weight
    objective = LogisticObjective(
        container(X),
        codes,
        weight / weight.sum(),
        n_classes=classes.size,
        strength=strength,
        fit_intercept=fit_intercept,
    )
    rng = np.random.default_rng(0)
    for size in (0.1, 1.0, 3.0):
        theta = size * rng.standard_normal(objective.start().size)
        value, gradient = objective(theta)
        loss, kappa = oracle(X, y, weight, *objective.unpack(theta), classes)
        assert value == pytest.approx(loss + strength * kappa, rel=1e-12)
        steps = 1e-5 * np.eye(theta.size)
        numeric = [
            (objective(theta + step)[0] - objective(theta - step)[0]) / 2e-5
            for step in steps
        ]
        error = np.linalg.norm(gradient - numeric)
        assert error <= 1e-7 * np.linalg.norm(gradient)
        error = check_grad(
            lambda at: objective(at)[0], lambda at: objective(at)[1], theta
        )
        assert error <= 1e-5 * np.linalg.norm(gradient)


def test_saturated_probabilities_give_no_negative_flatness():
    X, y, _ = CASES["three_classes"]
    _, codes = np.unique(y, return_inverse=True)
    weight = np.full(len(X), 1 / len(X))
    objective = LogisticObjective(
        X, codes, weight, n_classes=3, strength=1.0, fit_intercept=True
    )
    direction = np.random.default_rng(0).standard_normal(objective.start().size)
    for size in (1e2, 1e4, 1e8):
        loss, kappa, *_ = objective.parts(size * direction)
        assert kappa >= 0
        assert np.isfinite([loss, *objective(size * direction)[1]]).all()


@pytest.mark.parametrize("delta", [0.0, 0.3, 1.0])
def test_the_solution_is_a_local_minimum(case, delta):
    X, y, weight = case
    model = fit_tightly(delta, X, y, weight)
    strength = delta**2 / (2 * X.shape[1])
    packed = np.concatenate([model.coef_.ravel(), model.intercept_])

    def value(theta):
        coef = theta[: model.coef_.size].reshape(model.coef_.shape)
        intercept = theta[model.coef_.size :]
        loss, kappa = oracle(X, y, weight, coef, intercept, model.classes_)
        return loss + strength * kappa

    best = value(packed)
    rng = np.random.default_rng(0)
    for step in rng.standard_normal((10, packed.size)):
        assert value(packed + 1e-3 * step) > best - 1e-12
        slope = (value(packed + 1e-5 * step) - value(packed - 1e-5 * step)) / 2e-5
        assert abs(slope) < 1e-6


@pytest.mark.parametrize("fit_intercept", [True, False])
def test_delta_zero_is_logistic_regression(case, fit_intercept):
    X, y, weight = case
    model = fit_tightly(0, X, y, weight, fit_intercept=fit_intercept)
    reference = LogisticRegression(
        C=np.inf, fit_intercept=fit_intercept, tol=1e-10, max_iter=10_000
    ).fit(X, y, sample_weight=weight)
    assert model.coef_.shape == reference.coef_.shape
    assert model.coef_ == pytest.approx(reference.coef_, abs=1e-5)
    assert model.intercept_ == pytest.approx(reference.intercept_, abs=1e-5)
    expected = reference.predict_proba(X)
    assert model.predict_proba(X) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("factor", [1e-6, 1e-3, 0.7, 1e3, 1e6, 1e-200, 1e200])
@pytest.mark.parametrize("name", ["binary", "three_classes"])
def test_fitted_function_does_not_depend_on_the_scale(name, container, factor):
    X, y, _ = CASES[name]
    model = fit_tightly(0.5, container(X), y)
    other = fit_tightly(0.5, container(factor * X), y)
    expected = model.predict_proba(X)
    assert other.predict_proba(factor * X) == pytest.approx(expected, abs=1e-6)
    assert other.relative_flatness_ == pytest.approx(model.relative_flatness_, rel=1e-5)


@pytest.mark.parametrize("name", ["binary", "three_classes"])
def test_fitted_function_does_not_depend_on_a_rotation(name):
    X, y, _ = CASES[name]
    rotation = ortho_group.rvs(X.shape[1], random_state=0)
    model = fit_tightly(0.5, X, y)
    other = fit_tightly(0.5, X @ rotation, y)
    expected = model.predict_proba(X)
    assert other.predict_proba(X @ rotation) == pytest.approx(expected, abs=1e-6)
    assert other.relative_flatness_ == pytest.approx(model.relative_flatness_, rel=1e-5)


@pytest.mark.parametrize("name", ["binary", "three_classes"])
def test_the_order_of_the_classes_does_not_matter(name):
    X, y, _ = CASES[name]
    renamed = np.vectorize({"a": "z", "b": "y", "c": "x", "d": "w"}.get)(y)
    model, other = fit_tightly(0.5, X, y), fit_tightly(0.5, X, renamed)
    expected = model.predict_proba(X)
    assert other.predict_proba(X)[:, ::-1] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", ["binary_weighted", "four_classes_weighted"])
def test_integer_weights_are_repetitions(name, container):
    X, y, weight = CASES[name]
    assert (weight == 0).any()
    index = np.repeat(np.arange(len(X)), weight.astype(int))
    repeated = fit_tightly(0.5, X[index], y[index])
    weighted = fit_tightly(0.5, container(X), y, weight)
    rescaled = fit_tightly(0.5, container(X), y, 1e-3 * weight)
    for model in (weighted, rescaled):
        assert model.coef_ == pytest.approx(repeated.coef_, abs=1e-6)
        assert model.loss_ == pytest.approx(repeated.loss_, rel=1e-9)


def test_two_classes_as_softmax_have_the_same_objective():
    X, y, _ = CASES["binary"]
    model = RelativeFlatnessLogisticRegression(1.0).fit(X, y)
    half = model.coef_ / 2, model.intercept_ / 2
    both = [np.vstack([-part, part]) for part in half]
    loss, kappa = oracle(X, y, None, both[0], both[1][:, 0], model.classes_)
    assert model.loss_ == pytest.approx(loss, rel=1e-12)
    assert model.relative_flatness_ == pytest.approx(kappa, rel=1e-12)


def test_rows_sum_to_zero_over_the_classes():
    X, y, _ = CASES["three_classes"]
    model = RelativeFlatnessLogisticRegression(0.5).fit(X, y)
    assert model.coef_.sum(axis=0) == pytest.approx(0, abs=1e-10)
    assert model.intercept_.sum() == pytest.approx(0, abs=1e-10)


def test_a_larger_radius_is_flatter_and_fits_less():
    X, y = load_breast_cancer(return_X_y=True)
    models = [
        RelativeFlatnessLogisticRegression(delta).fit(scale(X), y)
        for delta in (0.03, 0.1, 0.3, 1.0, 3.0)
    ]
    assert (np.diff([model.relative_flatness_ for model in models]) < 0).all()
    assert (np.diff([model.loss_ for model in models]) > 0).all()


def test_on_separable_data_only_a_large_radius_bounds_the_weights():
    X = np.array([[-2.0], [-1.0], [1.0], [2.0]])
    y = np.array([0, 0, 1, 1])
    weights = {
        delta: [
            RelativeFlatnessLogisticRegression(delta, tol=tol).fit(X, y).coef_[0, 0]
            for tol in (1e-4, 1e-8)
        ]
        for delta in (0.1, 3.0)
    }
    assert weights[0.1][1] > weights[0.1][0] + 5
    assert weights[3.0][1] == pytest.approx(weights[3.0][0], rel=1e-2)
    assert weights[3.0][1] < 1


def test_predictions(case, container):
    X, y, _ = case
    model = RelativeFlatnessLogisticRegression(0.5).fit(X, y)
    proba = model.predict_proba(container(X))
    assert proba.shape == (len(X), len(model.classes_))
    assert proba.sum(axis=1) == pytest.approx(1)
    assert np.exp(model.predict_log_proba(X)) == pytest.approx(proba)
    assert (model.classes_[proba.argmax(axis=1)] == model.predict(container(X))).all()
    scores = model.decision_function(container(X))
    if len(model.classes_) == 2:
        assert scores.shape == (len(X),)
        assert ((scores > 0) == (model.predict(X) == model.classes_[1])).all()
    else:
        assert scores.shape == proba.shape
    assert model.score(X, y) > 1 / len(model.classes_)


def test_extreme_scores_have_finite_log_probabilities():
    model = RelativeFlatnessLogisticRegression(1.0).fit([[-1.0], [1.0]], [0, 1])
    assert np.isfinite(model.predict_log_proba([[1e6], [-1e6]])).all()


@pytest.mark.parametrize("name", ["binary_weighted", "four_classes_weighted"])
def test_class_weight_multiplies_sample_weight(name):
    X, y, weight = CASES[name]
    by_class = {"a": 1.0, "b": 2.0, "c": 0.5, "d": 3.0}
    present = {label: by_class[label] for label in np.unique(y)}
    factor = np.vectorize(present.get)(y)
    model = fit_tightly(0.5, X, y, weight, class_weight=present)
    other = fit_tightly(0.5, X, y, weight * factor)
    assert model.coef_ == pytest.approx(other.coef_, abs=1e-6)
    totals = {label: weight[y == label].sum() for label in present}
    factor = np.array([1 / totals[label] for label in y])
    model = fit_tightly(0.5, X, y, weight, class_weight="balanced")
    other = fit_tightly(0.5, X, y, weight * factor)
    assert model.coef_ == pytest.approx(other.coef_, abs=1e-6)


def test_a_class_of_weight_zero_is_absent():
    X, y, _ = CASES["three_classes"]
    model = fit_tightly(0.5, X, y, 1.0 * (y != "a"))
    other = fit_tightly(0.5, X[y != "a"], y[y != "a"])
    assert model.classes_.tolist() == other.classes_.tolist() == ["b", "d"]
    assert (model.coef_ == other.coef_).all()


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_constant_features(container, value):
    X = container(np.full((8, 2), value))
    y = np.array([0, 0, 0, 1, 1, 1, 1, 1])
    model = fit_tightly(1.0, X, y)
    assert model.predict_proba(X)[:, 1] == pytest.approx(5 / 8, abs=1e-6)
    assert model.relative_flatness_ == pytest.approx(0, abs=1e-6)


def test_frames_names_and_single_precision():
    frame, y = load_iris(return_X_y=True, as_frame=True)
    model = RelativeFlatnessLogisticRegression(0.5).fit(frame, y)
    assert model.feature_names_in_.tolist() == frame.columns.tolist()
    assert model.n_features_in_ == 4
    X = frame.to_numpy()
    other = RelativeFlatnessLogisticRegression(0.5).fit(X, y)
    assert (model.predict_proba(frame) == other.predict_proba(X)).all()
    assert RelativeFlatnessLogisticRegression().fit(X.astype("f4"), y).loss_ < 0.2


def test_grid_search_in_a_pipeline():
    X, y = load_breast_cancer(return_X_y=True)
    pipeline = make_pipeline(StandardScaler(), RelativeFlatnessLogisticRegression())
    grid = {"relativeflatnesslogisticregression__delta": [0.1, 1.0, 3.0]}
    search = GridSearchCV(pipeline, grid, cv=3, scoring="neg_log_loss").fit(X, y)
    assert search.best_score_ > -0.15
    again = clone(search).fit(X, y)
    assert (again.predict_proba(X) == search.predict_proba(X)).all()
    restored = pickle.loads(pickle.dumps(search))
    assert (restored.predict(X) == search.predict(X)).all()


def test_too_few_iterations_warn():
    X, y, _ = CASES["three_classes"]
    model = RelativeFlatnessLogisticRegression(max_iter=2)
    with pytest.warns(ConvergenceWarning, match=r"after 2 iterations.*max_iter"):
        model.fit(X, y)
    assert model.n_iter_ == 2


@parametrize_with_checks(
    [RelativeFlatnessLogisticRegression(), RelativeFlatnessLogisticRegression(1.0)]
)
def test_scikit_learn_compatibility(estimator, check):
    check(estimator)


X_BINARY, Y_BINARY, _ = CASES["binary"]
BAD = {
    "negative_delta": ({"delta": -0.1}, {}, r"delta.*>= 0, got -0.1"),
    "nan_delta": ({"delta": np.nan}, {}, r"delta.*finite.*got nan"),
    "flag": ({"fit_intercept": 1}, {}, r"fit_intercept must be True or False.*1"),
    "max_iter": ({"max_iter": 0}, {}, "max_iter == 0, must be >= 1"),
    "tol": ({"tol": 0.0}, {}, r"tol == 0.0, must be > 0"),
    "class_weight": ({"class_weight": "even"}, {}, "class_weight.*'even'"),
    "class_weight_0": ({"class_weight": {"a": 0.0, "b": 1.0}}, {}, "positive finite"),
    "nan_X": ({}, {"X": X_BINARY * np.nan}, "Input X contains NaN"),
    "nan_y": ({}, {"y": np.full(80, np.nan)}, "Input y contains NaN"),
    "numbers": ({}, {"y": X_BINARY[:, 0]}, "Unknown label type: continuous"),
    "two_columns": ({}, {"y": np.ones((80, 2))}, r"y should be a 1d array"),
    "empty": ({}, {"X": X_BINARY[:0], "y": Y_BINARY[:0]}, "0 sample"),
    "one_sample": ({}, {"X": X_BINARY[:1], "y": Y_BINARY[:1]}, "two classes, got one"),
    "one_class": ({}, {"y": np.full(80, "a")}, "two classes, got one class, .*'a'"),
    "short_y": ({}, {"y": Y_BINARY[:5]}, "inconsistent numbers of samples"),
    "short_weight": ({}, {"sample_weight": [1.0]}, r"shape \(80,\).*shape \(1,\)"),
    "negative_weight": ({}, {"sample_weight": -np.ones(80)}, r"non-negative.*-1.0"),
    "zero_weight": ({}, {"sample_weight": np.zeros(80)}, r"positive weight.*zeros"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    params, data, message = BAD[name]
    data = {"X": X_BINARY, "y": Y_BINARY} | data
    with pytest.raises(ValueError, match=message):
        RelativeFlatnessLogisticRegression(**params).fit(**data)


def test_parameters_of_a_wrong_type():
    for params in ({"max_iter": 1.5}, {"tol": "small"}):
        with pytest.raises(TypeError, match="must be an instance of"):
            RelativeFlatnessLogisticRegression(**params).fit(X_BINARY, Y_BINARY)


def test_prediction_before_fit_and_with_other_features():
    with pytest.raises(NotFittedError, match="not fitted"):
        RelativeFlatnessLogisticRegression().predict(X_BINARY)
    model = RelativeFlatnessLogisticRegression().fit(X_BINARY, Y_BINARY)
    with pytest.raises(ValueError, match=r"X has 3 features.*expecting 4"):
        model.predict_proba(X_BINARY[:, :3])
