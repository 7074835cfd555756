"""RelativeFlatnessRidgeCV: against refits without one sample, and RidgeCV."""

import itertools
import pickle

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import Ridge, RidgeCV
from sklearn.utils.estimator_checks import (
    check_sample_weight_equivalence_on_sparse_data,
    parametrize_with_checks,
)

from sklearn_relflat import (
    RelativeFlatnessRidge,
    RelativeFlatnessRidgeCV,
    relative_flatness,
    relative_flatness_path,
)

DELTAS = [1.0, 0.03, 0.3, 3.0]


def make_case(n_samples, n_features, *, targets=0, weights=False, rank=None, shift=0.0):
    """Random data with columns of unequal scale and a weak signal."""
    rng = np.random.default_rng(n_samples + 7 * n_features + targets)
    X = rng.standard_normal((n_samples, n_features))
    if rank is not None:
        X[:, rank:] = X[:, :rank] @ rng.standard_normal((rank, n_features - rank))
    X *= 2.0 ** rng.uniform(-1, 1, n_features)
    X += shift
    y = rng.standard_normal((n_samples, targets) if targets else n_samples) + 2.0
    y += X[:, :1] if targets else X[:, 0]
    weight = rng.integers(0, 4, n_samples).astype(float) if weights else None
    return X, y, weight


CASES = {
    "tall": make_case(30, 4),
    "one_feature": make_case(12, 1),
    "wide": make_case(9, 25),
    "square": make_case(8, 8),
    "n_is_m_plus_1": make_case(9, 8),
    "rank_deficient": make_case(20, 6, rank=3),
    "rank_deficient_wide": make_case(9, 25, rank=3),
    "shifted": make_case(30, 4, shift=30.0),
    "weighted": make_case(30, 4, weights=True),
    "weighted_wide": make_case(9, 25, weights=True),
    "several_targets": make_case(30, 4, targets=3),
    "weighted_targets_wide": make_case(9, 25, targets=3, weights=True),
    "column_target": make_case(30, 4, targets=1),
    "two_samples": make_case(2, 3),
}


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


def smallest_norm(X, y, weight, alpha, fit_intercept):
    """Predictor of the weighted ridge regression, of smallest norm for alpha = 0."""
    weight = np.ones(len(X)) if weight is None else weight
    centre = fit_intercept * np.average(X, axis=0, weights=weight)
    y_centre = fit_intercept * np.average(y, axis=0, weights=weight)
    rows = np.sqrt(weight)[:, None] * (X - centre)
    t = (np.sqrt(weight) * (y - y_centre).T).T
    if alpha == 0:
        coef = np.linalg.pinv(rows, rcond=1e-12) @ t
    else:
        coef = np.linalg.solve(rows.T @ rows + alpha * np.eye(X.shape[1]), rows.T @ t)
    return lambda Z: (Z - centre) @ coef + y_centre


def brute_force(X, y, weight, alpha, fit_intercept):
    """Squared errors of refits without one sample, with one alpha for all of them."""
    errors = np.empty(y.shape)
    for i in range(len(X)):
        rest = np.arange(len(X)) != i
        part = None if weight is None else weight[rest]
        predictor = smallest_norm(X[rest], y[rest], part, alpha, fit_intercept)
        errors[i] = (y[i] - predictor(X[i])) ** 2
    return errors


@pytest.mark.parametrize("fit_intercept", [True, False])
def test_equals_refits_without_one_sample(case, fit_intercept):
    X, y, weight = case
    deltas = [*DELTAS, 0.0]
    model = RelativeFlatnessRidgeCV(
        deltas, fit_intercept=fit_intercept, store_cv_results=True
    ).fit(X, y, sample_weight=weight)
    assert model.cv_results_.shape == (*y.shape, len(deltas))
    *_, measures = relative_flatness_path(
        X,
        y,
        deltas=deltas,
        fit_intercept=fit_intercept,
        sample_weight=weight,
        return_measures=True,
    )
    scores = []
    for k, alpha in enumerate(measures.alphas):
        expected = brute_force(X, y, weight, alpha, fit_intercept)
        np.testing.assert_allclose(model.cv_results_[..., k], expected, rtol=1e-7)
        of_samples = expected.reshape(len(X), -1).mean(axis=1)
        scores.append(-np.average(of_samples, weights=weight))
    best = int(np.argmax(scores))
    assert model.best_score_ == pytest.approx(scores[best], rel=1e-9)
    assert scores[deltas.index(model.delta_)] == pytest.approx(scores[best], rel=1e-9)
    final = RelativeFlatnessRidge(model.delta_, fit_intercept=fit_intercept)
    final.fit(X, y, sample_weight=weight)
    np.testing.assert_allclose(model.coef_, final.coef_, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(model.intercept_, final.intercept_, rtol=1e-12)
    assert model.alpha_ == final.alpha_
    np.testing.assert_array_equal(model.predict(X).shape, y.shape)


@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("name", [name for name in CASES if name != "two_samples"])
def test_equals_ridge_cv_with_the_same_alphas(name, fit_intercept):
    X, y, weight = CASES[name]
    if weight is not None:
        # RidgeCV counts samples without a weight among those it averages over.
        X, y, weight = X[weight > 0], y[weight > 0], weight[weight > 0]
    *_, measures = relative_flatness_path(
        X,
        y,
        deltas=DELTAS,
        fit_intercept=fit_intercept,
        sample_weight=weight,
        return_measures=True,
    )
    theirs = RidgeCV(
        measures.alphas, fit_intercept=fit_intercept, store_cv_results=True
    ).fit(X, y, sample_weight=weight)
    ours = RelativeFlatnessRidgeCV(
        DELTAS, fit_intercept=fit_intercept, store_cv_results=True
    ).fit(X, y, sample_weight=weight)
    assert ours.alpha_ == pytest.approx(theirs.alpha_, rel=1e-12)
    np.testing.assert_allclose(
        ours.coef_.ravel(), theirs.coef_.ravel(), rtol=1e-8, atol=1e-10
    )
    if weight is not None:
        # Theirs have the weights in them.
        ours.cv_results_ *= weight.reshape(-1, *[1] * (ours.cv_results_.ndim - 1))
        theirs.best_score_ *= len(X) / weight.sum()
    np.testing.assert_allclose(
        ours.cv_results_.ravel(), theirs.cv_results_.ravel(), rtol=1e-6
    )
    assert ours.best_score_ == pytest.approx(theirs.best_score_, rel=1e-8)


@pytest.mark.parametrize("order", list(itertools.permutations([0.1, 0.5, 2.0])))
@pytest.mark.parametrize("y", [np.full(6, 0.1), np.zeros(6), np.full((6, 2), 1e30)])
def test_the_largest_radius_wins_ties(order, y):
    X = np.random.default_rng(0).standard_normal((6, 3))
    model = RelativeFlatnessRidgeCV(order).fit(X, y)
    assert model.delta_ == 2.0


def test_constant_features_tie():
    y = np.random.default_rng(0).standard_normal(6)
    model = RelativeFlatnessRidgeCV([0.1, 2.0, 0.0], store_cv_results=True)
    model.fit(np.full((6, 3), 0.1), y)
    assert (model.delta_, model.alpha_) == (2.0, 0.0)
    assert not model.coef_.any()
    expected = [(y[i] - np.delete(y, i).mean()) ** 2 for i in range(6)]
    np.testing.assert_allclose(model.cv_results_, np.transpose([expected] * 3))


@pytest.mark.parametrize("delta", [0.0, 0.3])
def test_one_radius(delta):
    X, y, _ = CASES["tall"]
    for deltas in ([delta], delta):
        model = RelativeFlatnessRidgeCV(deltas).fit(X, y)
        assert model.delta_ == delta
        assert not hasattr(model, "cv_results_")
        plain = RelativeFlatnessRidge(delta).fit(X, y)
        np.testing.assert_allclose(model.coef_, plain.coef_, rtol=1e-12)


@pytest.mark.parametrize("delta", [0.0, 1e-7, 0.1])
@pytest.mark.parametrize("fit_intercept", [True, False])
def test_a_sample_that_alone_determines_a_feature(delta, fit_intercept):
    X, y, _ = make_case(20, 3)
    X = np.hstack([X, np.zeros((20, 1))])
    X[5, 3] = 2.0
    model = RelativeFlatnessRidgeCV(
        [delta], fit_intercept=fit_intercept, store_cv_results=True
    ).fit(X, y)
    expected = brute_force(X, y, None, model.alpha_, fit_intercept)
    rtol = 1e-2 if delta == 1e-7 else 1e-8
    np.testing.assert_allclose(model.cv_results_[:, 0], expected, rtol=rtol)


def test_alpha_stays_that_of_the_whole_sample():
    X, y, _ = CASES["tall"]
    model = RelativeFlatnessRidgeCV([1.0]).fit(X, y)
    assert model.alpha_ == pytest.approx(np.sum((X - X.mean(axis=0)) ** 2) / 4)

    def score(fit):
        return -np.mean(
            [
                (y[i] - fit(np.delete(X, i, 0), np.delete(y, i)).predict(X[[i]])) ** 2
                for i in range(len(X))
            ]
        )

    assert model.best_score_ == pytest.approx(score(Ridge(model.alpha_).fit))
    anew = score(RelativeFlatnessRidge(1.0).fit)
    assert model.best_score_ != pytest.approx(anew, rel=1e-6)
    assert model.best_score_ == pytest.approx(anew, rel=1.0 / len(X))


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_the_choice_depends_on_no_unit(scale):
    X, y, weight = CASES["weighted"]
    model = RelativeFlatnessRidgeCV().fit(X, y, sample_weight=weight)
    rescaled = RelativeFlatnessRidgeCV().fit(
        scale * X + scale, y, sample_weight=7 * weight
    )
    assert rescaled.delta_ == model.delta_
    assert rescaled.best_score_ == pytest.approx(model.best_score_, rel=1e-8)
    np.testing.assert_allclose(rescaled.predict(scale * X + scale), model.predict(X))


def test_samples_of_weight_zero_are_absent():
    X, y, weight = CASES["weighted"]
    kept = weight > 0
    model = RelativeFlatnessRidgeCV(store_cv_results=True)
    model.fit(X, y, sample_weight=weight)
    part = RelativeFlatnessRidgeCV(store_cv_results=True)
    part.fit(X[kept], y[kept], sample_weight=weight[kept])
    assert model.best_score_ == pytest.approx(part.best_score_, rel=1e-12)
    np.testing.assert_allclose(model.cv_results_[kept], part.cv_results_)
    fit = RelativeFlatnessRidge(0.3).fit(X, y, sample_weight=weight)
    errors = (y - fit.predict(X))[~kept] ** 2
    k = list(model.deltas).index(0.3)
    np.testing.assert_allclose(model.cv_results_[~kept, k], errors)


def test_relative_flatness_is_that_of_the_chosen_model():
    X, y, _ = CASES["tall"]
    model = RelativeFlatnessRidgeCV().fit(X, y)
    plain = RelativeFlatnessRidge(model.delta_).fit(X, y)
    expected = relative_flatness(plain, X, y).value
    assert relative_flatness(model, X, y).value == pytest.approx(expected, rel=1e-12)


def test_frames_and_pickles():
    X, y, _ = CASES["tall"]
    frame = pd.DataFrame(X, columns=list("abcd"))
    model = RelativeFlatnessRidgeCV().fit(frame, pd.Series(y))
    assert model.feature_names_in_.tolist() == list("abcd")
    restored = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(restored.predict(frame), model.predict(frame))


@parametrize_with_checks(
    [
        RelativeFlatnessRidgeCV(),
        RelativeFlatnessRidgeCV([0.0, 1.0], fit_intercept=False),
    ],
    # The check spares RidgeCV its leave-one-out: it gives cv= groups of repetitions.
    expected_failed_checks=lambda estimator: {
        "check_sample_weight_equivalence_on_dense_data": "a weighted sample is left "
        "out as a whole, its repetitions are left out one by one"
    },
)
def test_scikit_learn_compatibility(estimator, check):
    if check.func is check_sample_weight_equivalence_on_sparse_data:
        pytest.skip("scikit-learn 1.6 runs this check whatever the tags say")
    check(estimator)


X_TALL, Y_TALL, _ = CASES["tall"]


@pytest.mark.parametrize(
    ("params", "data", "message"),
    [
        ({"deltas": []}, {}, "non-empty sequence of radii.*Give"),
        ({"deltas": [[0.1, 0.2]]}, {}, r"non-empty sequence.*\(1, 2\)"),
        ({"deltas": [0.1, -1.0]}, {}, "delta.*>= 0, got -1.0"),
        ({"deltas": "auto"}, {}, "delta.*got 'auto'"),
        ({"fit_intercept": "no"}, {}, "fit_intercept must be True or False.*'no'"),
        ({"store_cv_results": 1}, {}, "store_cv_results must be True or False.*1"),
        ({}, {"X": X_TALL[:1], "y": Y_TALL[:1]}, "two samples.*n_samples=1.*Use"),
        ({}, {"sample_weight": np.eye(30)[0]}, "two samples of positive weight"),
        ({}, {"y": Y_TALL[:5]}, "inconsistent numbers of samples"),
        ({}, {"X": X_TALL * 1e200}, "Frobenius norm.*Rescale X"),
    ],
)
def test_bad_input(params, data, message):
    data = {"X": X_TALL, "y": Y_TALL} | data
    with pytest.raises(ValueError, match=message):
        RelativeFlatnessRidgeCV(**params).fit(**data)


def test_sparse_data_are_refused():
    with pytest.raises(TypeError, match=r"dense data is required.*toarray"):
        RelativeFlatnessRidgeCV().fit(sp.csr_array(X_TALL), Y_TALL)
    with pytest.raises(TypeError, match="y must be a dense array"):
        RelativeFlatnessRidgeCV().fit(X_TALL, sp.csr_array(Y_TALL[:, None]))


def test_prediction_before_fit():
    with pytest.raises(NotFittedError, match="not fitted"):
        RelativeFlatnessRidgeCV().predict(X_TALL)
