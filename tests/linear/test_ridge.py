"""RelativeFlatnessRidge and its path: against Ridge, theory and brute force."""

import itertools
import pickle
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy.stats import ortho_group
from sklearn.base import clone
from sklearn.datasets import load_diabetes
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import get_tags
from sklearn.utils.estimator_checks import (
    check_sample_weight_equivalence_on_sparse_data,
    parametrize_with_checks,
)

from sklearn_relflat import (
    RelativeFlatnessRidge,
    relative_flatness,
    relative_flatness_path,
)


def make_case(n_samples, n_features, *, targets=0, weights=False, rank=None, shift=0.0):
    """Random data with columns of unequal scale, a third of the entries zero."""
    rng = np.random.default_rng(n_samples + 7 * n_features + targets)
    X = rng.standard_normal((n_samples, n_features))
    X *= rng.random(X.shape) < 2 / 3
    X *= 10.0 ** rng.uniform(-1, 1, n_features)
    if rank is not None:
        X[:, rank:] = X[:, :rank] @ rng.standard_normal((rank, n_features - rank))
    X += shift
    y = rng.standard_normal((n_samples, targets) if targets else n_samples) + 2.0
    y += (X[:, :1] if targets else X[:, 0]) / np.abs(X[:, 0]).max()
    weight = rng.integers(0, 4, n_samples).astype(float) if weights else None
    return X, y, weight


CASES = {
    "tall": make_case(60, 7),
    "one_feature": make_case(20, 1),
    "wide": make_case(15, 40),
    "square": make_case(12, 12),
    "rank_deficient": make_case(50, 10, rank=6),
    "shifted": make_case(60, 7, shift=30.0),
    "weighted": make_case(60, 7, weights=True),
    "weighted_wide": make_case(15, 40, weights=True),
    "several_targets": make_case(60, 7, targets=3),
    "weighted_targets_wide": make_case(15, 40, targets=3, weights=True),
    "column_target": make_case(60, 7, targets=1),
}
CONTAINERS = {
    "dense": np.asarray,
    "csr": sp.csr_array,
    "csc": sp.csc_matrix,
}


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


@pytest.fixture(params=CONTAINERS)
def container(request):
    return CONTAINERS[request.param]


def ridge_strength(X, weight, delta, fit_intercept):
    """alpha, written out: delta^2/m times the weighted squared lengths."""
    weight = np.ones(len(X)) if weight is None else weight
    centre = np.average(X, axis=0, weights=weight) if fit_intercept else 0.0
    lengths = [np.sum((row - centre) ** 2) for row in X]
    return delta**2 / X.shape[1] * np.dot(weight, lengths)


def assert_close(actual, desired, rtol=1e-12, scale=None):
    """Relative error in the norm, or in that of the terms that were added up."""
    scale = np.linalg.norm(desired) if scale is None else scale
    assert np.linalg.norm(np.asarray(actual) - desired) <= rtol * scale


def objective(X, y, coef, delta):
    """Mean squared error plus delta^2/(2m) kappa, kappa from the Hessian itself."""
    hessian = 2 * sum(np.outer(row, row) for row in X) / len(X)
    kappa = np.dot(coef, coef) * np.trace(hessian)
    return np.mean((y - X @ coef) ** 2) + delta**2 / (2 * X.shape[1]) * kappa


@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("delta", [0.03, 0.1, 1.0, 10.0])
def test_equals_ridge(case, container, delta, fit_intercept):
    X, y, weight = case
    model = RelativeFlatnessRidge(delta, fit_intercept=fit_intercept)
    model.fit(container(X), y, sample_weight=weight)
    alpha = ridge_strength(X, weight, delta, fit_intercept)
    ridge = Ridge(alpha=alpha, fit_intercept=fit_intercept, solver="svd")
    ridge.fit(X, y, sample_weight=weight)
    assert model.alpha_ == pytest.approx(alpha, rel=1e-12)
    assert_close(np.ravel(model.coef_), np.ravel(ridge.coef_))
    # mean(y) - mean(X) coef cancels where the data is far from zero.
    centre = np.average(X, axis=0, weights=weight)
    terms = np.abs(np.average(y, axis=0, weights=weight))
    terms = terms + np.abs(ridge.coef_) @ np.abs(centre)
    assert_close(model.intercept_, ridge.intercept_, scale=np.linalg.norm(terms))
    assert_close(np.ravel(model.predict(container(X))), np.ravel(ridge.predict(X)))
    assert model.predict(X).shape == y.shape
    assert model.coef_.shape == (*y.shape[1:], X.shape[1])


@pytest.mark.parametrize("fit_intercept", [True, False])
def test_delta_zero_is_least_squares_of_smallest_norm(case, fit_intercept):
    X, y, weight = case
    model = RelativeFlatnessRidge(0, fit_intercept=fit_intercept)
    model.fit(X, y, sample_weight=weight)
    root = np.sqrt(np.ones(len(X)) if weight is None else weight)
    centre = fit_intercept * np.average(X, axis=0, weights=root**2)
    y_centre = fit_intercept * np.average(y, axis=0, weights=root**2)
    pinv = np.linalg.pinv(root[:, None] * (X - centre), rcond=1e-13)
    coef = pinv @ (root * (y - y_centre).T).T
    assert model.alpha_ == 0
    assert_close(model.coef_, coef.T, rtol=1e-10)


def test_delta_zero_equals_linear_regression():
    X, y, _ = CASES["tall"]
    model = RelativeFlatnessRidge(0).fit(X, y)
    assert_close(model.coef_, LinearRegression().fit(X, y).coef_)


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 0.7, 1e3, 1e6, 1e-140])
@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("name", ["tall", "wide", "rank_deficient", "several_targets"])
def test_fitted_function_does_not_depend_on_the_scale(
    name, container, scale, fit_intercept
):
    X, y, _ = CASES[name]
    model = RelativeFlatnessRidge(0.3, fit_intercept=fit_intercept)
    expected = model.fit(container(X), y).predict(X)
    actual = model.fit(container(scale * X), y).predict(scale * X)
    assert_close(actual, expected)


def test_fitted_function_does_not_depend_on_the_origin(container):
    X, y, _ = CASES["tall"]
    shift = np.linspace(-2, 5, X.shape[1])
    model = RelativeFlatnessRidge(0.3)
    expected = model.fit(X, y).predict(X)
    assert_close(model.fit(container(X + shift), y).predict(X + shift), expected)


def test_fitted_function_does_not_depend_on_a_rotation():
    X, y, _ = CASES["tall"]
    rotation = ortho_group.rvs(X.shape[1], random_state=0)
    model = RelativeFlatnessRidge(0.3)
    expected = model.fit(X, y).predict(X)
    assert_close(model.fit(X @ rotation, y).predict(X @ rotation), expected)


@pytest.mark.parametrize("fit_intercept", [True, False])
def test_integer_weights_are_repetitions(container, fit_intercept):
    X, y, weight = CASES["weighted"]
    assert (weight == 0).any()
    index = np.repeat(np.arange(len(X)), weight.astype(int))
    model = RelativeFlatnessRidge(0.3, fit_intercept=fit_intercept)
    repeated = clone(model).fit(X[index], y[index])
    weighted = clone(model).fit(container(X), y, sample_weight=weight)
    assert_close(weighted.coef_, repeated.coef_)
    assert weighted.alpha_ == pytest.approx(repeated.alpha_, rel=1e-12)
    # Unlike a fixed alpha, a radius does not notice the scale of the weights.
    rescaled = clone(model).fit(container(X), y, sample_weight=1e-3 * weight)
    assert_close(rescaled.coef_, repeated.coef_)
    assert rescaled.alpha_ == pytest.approx(1e-3 * repeated.alpha_, rel=1e-12)


@pytest.mark.parametrize("fit_intercept", [True, False])
def test_path_equals_the_estimator(case, container, fit_intercept):
    X, y, weight = case
    deltas = [1.0, 0.03, 0.3]
    returned, coefs, intercepts = relative_flatness_path(
        container(X),
        y,
        deltas=deltas,
        fit_intercept=fit_intercept,
        sample_weight=weight,
    )
    assert returned.tolist() == deltas
    assert coefs.shape == (*y.shape[1:], X.shape[1], len(deltas))
    assert intercepts.shape == (*y.shape[1:], len(deltas))
    for k, delta in enumerate(deltas):
        model = RelativeFlatnessRidge(delta, fit_intercept=fit_intercept)
        model.fit(container(X), y, sample_weight=weight)
        assert_close(coefs[..., k], model.coef_)
        assert_close(intercepts[..., k], model.intercept_ + np.zeros(y.shape[1:]))


def test_path_measures_against_their_definitions(container):
    X, y, weight = CASES["weighted"]
    deltas = np.array([1e-4, 0.1, 1.0])
    _, coefs, intercepts, measures = relative_flatness_path(
        container(X), y, deltas=deltas, sample_weight=weight, return_measures=True
    )
    centred = X - np.average(X, axis=0, weights=weight)
    total = weight.sum()
    hessian = 2 * np.einsum("i,ij,ik->jk", weight, centred, centred) / total
    for k, delta in enumerate(deltas):
        residual = y - X @ coefs[:, k] - intercepts[k]
        kappa = coefs[:, k] @ coefs[:, k] * np.trace(hessian)
        alpha = ridge_strength(X, weight, delta, True)
        assert measures.alphas[k] == pytest.approx(alpha, rel=1e-12)
        assert measures.loss[k] == pytest.approx(weight @ residual**2 / total, rel=1e-9)
        assert measures.relative_flatness[k] == pytest.approx(kappa, rel=1e-9)
    assert measures.expected_loss == pytest.approx(
        measures.loss + deltas**2 / (2 * X.shape[1]) * measures.relative_flatness
    )


def test_path_measures_average_over_targets():
    X, Y, _ = CASES["several_targets"]
    *_, joint = relative_flatness_path(X, Y, deltas=[0.2, 1], return_measures=True)
    single = [
        relative_flatness_path(X, y, deltas=[0.2, 1], return_measures=True)[3]
        for y in Y.T
    ]
    for name in ("loss", "relative_flatness", "expected_loss"):
        assert_close(joint[name], np.mean([one[name] for one in single], axis=0))


@pytest.mark.parametrize("name", ["tall", "several_targets"])
def test_path_flatness_equals_that_of_ridge_on_centred_data(name):
    X, y, _ = CASES[name]
    X = X - X.mean(axis=0)
    *_, measures = relative_flatness_path(X, y, deltas=[0.3], return_measures=True)
    measured = relative_flatness(Ridge(measures.alphas[0]).fit(X, y), X, y)
    assert measures.relative_flatness[0] == pytest.approx(measured.value, rel=1e-10)
    assert measures.loss[0] == pytest.approx(measured.mean_loss, rel=1e-10)


def test_loss_rises_and_flatness_falls_along_the_path():
    X, y = load_diabetes(return_X_y=True)
    *_, measures = relative_flatness_path(
        X, y, deltas=np.geomspace(1e-3, 10, 30), return_measures=True
    )
    assert (np.diff(measures.loss) > 0).all()
    assert (np.diff(measures.relative_flatness) < 0).all()
    assert (np.diff(measures.expected_loss) > 0).all()


def test_minimises_the_objective():
    X, y, _ = CASES["tall"]
    coef = RelativeFlatnessRidge(0.5, fit_intercept=False).fit(X, y).coef_
    best = objective(X, y, coef, 0.5)
    rng = np.random.default_rng(0)
    for step in rng.standard_normal((50, coef.size)):
        assert objective(X, y, coef + 1e-3 * step, 0.5) > best


def test_theorem_5_is_exact_over_the_signed_permutations():
    X, y, _ = make_case(40, 3)
    group = [
        np.diag(signs) @ np.eye(3)[list(order)]
        for signs in itertools.product([-1, 1], repeat=3)
        for order in itertools.permutations(range(3))
    ]
    for delta in (0.1, 1.0, 5.0):
        copies = np.vstack([X @ (np.eye(3) + delta * O).T for O in group])
        labels = np.tile(y, len(group))
        augmented = LinearRegression(fit_intercept=False).fit(copies, labels)
        _, coefs, _, measures = relative_flatness_path(
            X, y, deltas=[delta], fit_intercept=False, return_measures=True
        )
        assert_close(coefs[:, 0], augmented.coef_)
        average = np.mean((labels - copies @ coefs[:, 0]) ** 2)
        assert measures.expected_loss[0] == pytest.approx(average, rel=1e-12)


def test_theorem_5_is_exact_over_the_haar_measure():
    X, y = load_diabetes(return_X_y=True)
    y = y - y.mean()
    delta, n_pairs, m = 0.7, 400, X.shape[1]
    _, coefs, _, measures = relative_flatness_path(
        X, y, deltas=[delta, 0.0], fit_intercept=False, return_measures=True
    )
    matrices = ortho_group.rvs(m, size=n_pairs, random_state=0)
    losses, gradients, unregularised = [], [], []
    for O in matrices:
        pair = [X @ (np.eye(m) + sign * delta * O).T for sign in (1, -1)]
        losses.append(np.mean([(y - Z @ coefs[:, 0]) ** 2 for Z in pair]))
        for store, coef in zip((gradients, unregularised), coefs.T, strict=True):
            store.append(np.mean([Z.T @ (Z @ coef - y) for Z in pair], axis=0))

    def deviation(samples, expected):
        error = np.std(samples, axis=0, ddof=1) / np.sqrt(n_pairs)
        return np.abs(np.mean(samples, axis=0) - expected) / error

    assert deviation(losses, measures.expected_loss[0]) < 4
    # The gradient of the expected loss vanishes at the ridge solution ...
    assert (deviation(gradients, 0.0) < 4).all()
    # ... and not at that of least squares.
    assert deviation(unregularised, 0.0).max() > 20


def test_large_sparse_data_are_not_made_dense():
    # Dense, X would need 16 GB and its Gram matrix 80 GB.
    rng = np.random.default_rng(0)
    where = rng.integers(20_000, size=40_000), rng.integers(100_000, size=40_000)
    X = sp.csr_array((rng.random(40_000), where), shape=(20_000, 100_000))
    y = np.asarray(X.sum(axis=1)).ravel() + np.linspace(0, 1, 20_000)
    model = RelativeFlatnessRidge(1.0).fit(X, y)
    residual = y - model.predict(X)
    # The normal equations of the centred problem.
    gradient = X.T @ residual - np.asarray(X.mean(axis=0)).ravel() * residual.sum()
    assert_close(model.alpha_ * model.coef_, gradient, rtol=1e-11)
    assert abs(residual.sum()) < 1e-9 * np.abs(residual).sum()


def test_sparse_data_that_lsqr_cannot_solve():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((300, 100)) * np.geomspace(1, 1e-6, 100)
    y = rng.standard_normal(300)
    with pytest.warns(ConvergenceWarning, match=r"delta=1e-05.*MaxAbsScaler"):
        RelativeFlatnessRidge(1e-5).fit(sp.csr_array(X), y)
    RelativeFlatnessRidge(0.01).fit(sp.csr_array(X), y)
    for delta in (0, 1e-9):
        with pytest.raises(ValueError, match="sparse X delta must be at least 1e-07"):
            RelativeFlatnessRidge(delta).fit(sp.csr_array(X), y)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e8])
@pytest.mark.parametrize("delta", [0.01, 0.1])
def test_constant_features_get_zero_coefficients(container, value, delta):
    X, y, _ = CASES["tall"]
    X = X.copy()
    X[:, 2] = value
    model = RelativeFlatnessRidge(delta).fit(container(X), y)
    assert model.coef_[2] == 0
    others = np.delete(X, 2, axis=1)
    # alpha is per feature, a constant one counts: same alpha, radius rescaled.
    radius = delta * np.sqrt(others.shape[1] / X.shape[1])
    expected = RelativeFlatnessRidge(radius).fit(others, y)
    assert_close(np.delete(model.coef_, 2), expected.coef_)


@pytest.mark.parametrize("delta", [0, 0.1])
@pytest.mark.parametrize("targets", [(), (2,)])
def test_nothing_but_constant_features(container, delta, targets):
    # Nothing to solve, so that a sparse X may have delta=0 here.
    X = container(np.full((5, 2), 0.1))
    y = np.random.default_rng(0).standard_normal((5, *targets))
    model = RelativeFlatnessRidge(delta).fit(X, y)
    assert not model.coef_.any()
    assert model.alpha_ == 0
    assert_close(model.intercept_, y.mean(axis=0))
    *_, measures = relative_flatness_path(X, y, deltas=[delta], return_measures=True)
    assert measures.relative_flatness == [0]


def test_zero_matrix_without_intercept():
    model = RelativeFlatnessRidge(fit_intercept=False).fit(np.zeros((4, 2)), np.ones(4))
    assert model.predict(np.ones((1, 2))) == [0]


def test_one_sample(container):
    model = RelativeFlatnessRidge().fit(container([[1.0, 2.0]]), [3.0])
    assert model.coef_.tolist() == [0, 0]
    assert model.intercept_ == 3
    model = RelativeFlatnessRidge(1e-7, fit_intercept=False)
    model.fit(container([[1.0, 2.0]]), [3.0])
    assert_close(model.coef_, [0.6, 1.2])


def test_frames_integers_and_single_precision():
    X, y, _ = CASES["tall"]
    frame = pd.DataFrame(X, columns=list("abcdefg"))
    model = RelativeFlatnessRidge().fit(frame, pd.Series(y))
    assert model.feature_names_in_.tolist() == list("abcdefg")
    assert model.n_features_in_ == 7
    assert_close(model.predict(frame), RelativeFlatnessRidge().fit(X, y).predict(X))
    assert RelativeFlatnessRidge().fit(X.astype("f4"), y).coef_.dtype == np.float64
    assert RelativeFlatnessRidge().fit(X.astype(int), y.astype(int)).alpha_ > 0


def test_input_is_left_alone(container):
    X, y, weight = CASES["weighted"]
    given = [container(X), y.copy(), weight.copy()]
    RelativeFlatnessRidge().fit(given[0], given[1], sample_weight=given[2])
    dense = given[0].toarray() if sp.issparse(given[0]) else given[0]
    for after, before in zip([dense, *given[1:]], CASES["weighted"], strict=True):
        assert (after == before).all()


def test_grid_search_in_a_pipeline():
    X, y = load_diabetes(return_X_y=True)
    pipeline = make_pipeline(StandardScaler(), RelativeFlatnessRidge())
    grid = {"relativeflatnessridge__delta": [0.0, 0.1, 0.3, 1.0, 3.0]}
    search = GridSearchCV(pipeline, grid, cv=5).fit(X, y)
    delta = search.best_params_["relativeflatnessridge__delta"]
    best = clone(pipeline).set_params(relativeflatnessridge__delta=delta)
    assert search.best_score_ == pytest.approx(cross_val_score(best, X, y, cv=5).mean())
    assert search.best_score_ > 0.4
    restored = pickle.loads(pickle.dumps(search))
    assert (restored.predict(X) == search.predict(X)).all()


def test_importing_the_linear_models_does_not_load_torch():
    code = (
        "import sys; from sklearn_relflat import RelativeFlatnessRidge, "
        "RelativeFlatnessLogisticRegression; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@parametrize_with_checks(
    [
        RelativeFlatnessRidge(),
        RelativeFlatnessRidge(0),
        RelativeFlatnessRidge(fit_intercept=False),
    ]
)
def test_scikit_learn_compatibility(estimator, check):
    sparse = check.func is check_sample_weight_equivalence_on_sparse_data
    if sparse and not get_tags(estimator).input_tags.sparse:
        pytest.skip("scikit-learn 1.6 runs this check whatever the tags say")
    check(estimator)


X_TALL, Y_TALL, _ = CASES["tall"]
BAD = {
    "negative_delta": ({"delta": -0.1}, {}, "delta.*>= 0, got -0.1.*delta=0"),
    "nan_delta": ({"delta": np.nan}, {}, "delta.*finite.*got nan"),
    "infinite_delta": ({"delta": np.inf}, {}, "delta.*finite.*got inf"),
    "word_delta": ({"delta": "auto"}, {}, "delta.*got 'auto'"),
    "flag": ({"fit_intercept": "no"}, {}, "fit_intercept must be True or False.*'no'"),
    "nan_X": ({}, {"X": X_TALL * np.nan}, "Input X contains NaN"),
    "inf_X": ({}, {"X": X_TALL + np.inf}, "Input X contains infinity"),
    "nan_y": ({}, {"y": Y_TALL * np.nan}, "Input y contains NaN"),
    "empty": ({}, {"X": X_TALL[:0], "y": Y_TALL[:0]}, "0 sample"),
    "short_y": ({}, {"y": Y_TALL[:5]}, "inconsistent numbers of samples"),
    "huge_X": ({}, {"X": X_TALL * 1e200}, "Frobenius norm.*Rescale X"),
    "tiny_X": ({}, {"X": X_TALL * 1e-200}, "Frobenius norm.*Rescale X"),
    "short_weight": ({}, {"sample_weight": [1.0]}, r"shape \(60,\).*got shape \(1,\)"),
    "negative_weight": ({}, {"sample_weight": -np.ones(60)}, "non-negative.*-1.0"),
    "nan_weight": ({}, {"sample_weight": np.full(60, np.nan)}, "finite.*got.*nan"),
    "zero_weight": ({}, {"sample_weight": np.zeros(60)}, "positive weight.*zeros"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    params, data, message = BAD[name]
    data = {"X": X_TALL, "y": Y_TALL} | data
    with pytest.raises(ValueError, match=message):
        RelativeFlatnessRidge(**params).fit(**data)
    path_params = {"deltas": [0.1, params.pop("delta", 1.0)], **params}
    with pytest.raises(ValueError, match=message):
        relative_flatness_path(**data, **path_params)


@pytest.mark.parametrize("deltas", [[], [[0.1, 0.2]]])
def test_bad_grid_of_radii(deltas):
    with pytest.raises(ValueError, match="non-empty sequence of radii"):
        relative_flatness_path(X_TALL, Y_TALL, deltas=deltas)


def test_sparse_targets_are_refused():
    with pytest.raises(TypeError, match="y must be a dense array"):
        RelativeFlatnessRidge().fit(X_TALL, sp.csr_array(Y_TALL[:, None]))


def test_prediction_before_fit_and_with_other_features():
    with pytest.raises(NotFittedError, match="not fitted"):
        RelativeFlatnessRidge().predict(X_TALL)
    model = RelativeFlatnessRidge().fit(X_TALL, Y_TALL)
    with pytest.raises(ValueError, match=r"X has 3 features.*expecting 7"):
        model.predict(X_TALL[:, :3])
