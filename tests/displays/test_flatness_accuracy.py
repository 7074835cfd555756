"""The picture of a search."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import same_color
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.preprocessing import StandardScaler

from sklearn_relflat import (
    FlatnessAccuracyDisplay,
    FlattestWithin,
    RelativeFlatnessScorer,
    SmoothedRiskScorer,
    SmoothedRiskSearchCV,
    WholeSample,
)
from sklearn_relflat._displays.labels import shortened
from tests.displays.looks import check_looks

GRID = {"C": [0.001, 0.01, 0.1, 1.0, 100.0, 10000.0]}
SCORING = {
    "accuracy": "accuracy",
    "neg_log_loss": "neg_log_loss",
    "relative_flatness": RelativeFlatnessScorer(),
    "neg_smoothed_risk": SmoothedRiskScorer(radius=0.5, n_draws=4),
}


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


def data():
    X, y = load_breast_cancer(return_X_y=True)
    return StandardScaler().fit_transform(X)[:150], y[:150]


@pytest.fixture(scope="module")
def ruled():
    """A search whose rule admits some, compares fewer and chooses one."""
    return GridSearchCV(
        LogisticRegression(max_iter=10000),
        GRID,
        scoring=SCORING,
        return_train_score=True,
        refit=FlattestWithin(tol=0.03, loss_tol=2.0),
    ).fit(*data())


@pytest.fixture(scope="module")
def smoothed():
    return SmoothedRiskSearchCV(
        LogisticRegression(max_iter=10000), GRID, n_references=2
    ).fit(*data())


def points(container):
    """Positions of the markers, in order of the first coordinate."""
    return sorted(zip(*map(list, container.lines[0].get_data()), strict=True))


def test_rule_admits_and_chooses(ruled):
    results, rule = ruled.cv_results_, ruled.refit
    score = results["mean_test_accuracy"]
    kappa = -results["mean_train_relative_flatness"]
    loss = -results["mean_train_neg_log_loss"]
    accurate = score >= score.max() - rule.tol - 1e-9
    ranked = sorted(np.flatnonzero(accurate), key=lambda i: loss[i])
    middle = ranked[(len(ranked) - 1) // 2 : len(ranked) // 2 + 1]
    median = loss[max(middle, key=lambda i: score[i])]
    ratio = np.maximum(loss / median, median / loss)
    # The rule leaves some out for either reason.
    assert 0 < (accurate & (ratio <= 3.0)).sum() < accurate.sum() < len(score)
    admitted = accurate & (ratio <= 3.0)
    display = FlatnessAccuracyDisplay.from_estimator(ruled)
    assert points(display.errorbar_) == sorted(
        zip(kappa[admitted], score[admitted], strict=True)
    )
    assert points(display.others_) == sorted(
        zip(kappa[~admitted], score[~admitted], strict=True)
    )
    low, high = display.candidates.band
    assert (low, high) == pytest.approx((score.max() - 0.03, score.max()))
    x, y = display.chosen_.get_data()
    assert (x[0], y[0]) == (kappa[ruled.best_index_], score[ruled.best_index_])
    assert admitted[ruled.best_index_]
    label = display.legend_.get_texts()[-1].get_text()
    assert label == f"chosen: C = {ruled.best_params_['C']:g}"


def test_error_bars_are_standard_errors_over_folds(ruled):
    results = ruled.cv_results_
    folds = [results[f"split{k}_test_accuracy"] for k in range(5)]
    flat = [results[f"split{k}_train_relative_flatness"] for k in range(5)]
    found = FlatnessAccuracyDisplay.from_estimator(ruled).candidates
    np.testing.assert_allclose(found.y_stderr, np.std(folds, 0, ddof=1) / 5**0.5)
    np.testing.assert_allclose(found.x_stderr, np.std(flat, 0, ddof=1) / 5**0.5)


def test_rule_alone_chooses_like_the_search(ruled):
    display = FlatnessAccuracyDisplay.from_cv_results(
        ruled.cv_results_, rule=ruled.refit
    )
    assert display.candidates.chosen == ruled.best_index_


def test_other_scores_have_no_band(ruled):
    display = FlatnessAccuracyDisplay.from_estimator(
        ruled, metric="neg_log_loss", flatness="neg_smoothed_risk"
    )
    results = ruled.cv_results_
    np.testing.assert_array_equal(
        display.candidates.x, -results["mean_train_neg_smoothed_risk"]
    )
    assert display.band_ is None
    assert display.others_ is None
    assert "smoothed risk on the training parts" in display.ax_.get_xlabel()
    assert "neg log loss" in display.ax_.get_ylabel()
    assert display.candidates.chosen == ruled.best_index_


def test_named_refit_is_the_metric():
    search = GridSearchCV(
        LogisticRegression(max_iter=10000),
        {"C": [0.01, 1.0]},
        scoring={"f1": "f1", "relative_flatness": RelativeFlatnessScorer()},
        return_train_score=True,
        refit="f1",
        cv=WholeSample(),
    ).fit(*data())
    display = FlatnessAccuracyDisplay.from_estimator(search)
    assert display.ax_.get_ylabel().startswith("f1")
    assert display.candidates.chosen == search.best_index_
    # One fold has no error.
    assert display.candidates.x_stderr is None
    assert display.frame()["f1_stderr"].isna().all()


def test_smoothed_risk_against_training_loss(smoothed):
    results = smoothed.cv_results_
    display = FlatnessAccuracyDisplay.from_estimator(smoothed)
    unresolved = results["is_unresolved"].copy()
    unresolved[smoothed.best_index_] = True
    assert points(display.errorbar_) == sorted(
        zip(
            results["training_loss"][unresolved],
            results["smoothed_risk"][unresolved],
            strict=True,
        )
    )
    np.testing.assert_array_equal(
        display.candidates.y_stderr, results["smoothed_risk_stderr"]
    )
    drawn = display.references_.lines[0].get_ydata()
    np.testing.assert_array_equal(drawn, results["cross_validated_loss"])
    assert np.isfinite(drawn).sum() == 2
    assert display.candidates.chosen == smoothed.best_index_
    assert display.ax_.get_xscale() == "log"
    from_results = FlatnessAccuracyDisplay.from_cv_results(results)
    assert from_results.candidates.chosen == smoothed.best_index_


def test_search_without_references():
    search = SmoothedRiskSearchCV(LogisticRegression(), {"C": [0.1, 1.0]}, radius=0.5)
    display = FlatnessAccuracyDisplay.from_estimator(search.fit(*data()))
    assert display.references_ is None
    assert "cross_validated_loss" not in display.frame()


def test_keywords_arrive(ruled):
    figure, ax = plt.subplots()
    display = FlatnessAccuracyDisplay.from_estimator(
        ruled,
        ax=ax,
        errorbar_kwargs={"c": "red"},
        band_kwargs={"fc": "green"},
        chosen_kwargs={"ms": 20},
    )
    assert display.ax_ is ax
    assert display.figure_ is figure
    assert display.errorbar_.lines[0].get_color() == "red"
    assert display.others_.lines[0].get_color() == "red"
    assert same_color(display.band_.get_facecolor()[:3], "green")
    assert display.chosen_.get_markersize() == 20


def test_what_is_no_fitted_search():
    with pytest.raises(TypeError, match=r"expects a fitted search.*got 3.*fit first"):
        FlatnessAccuracyDisplay.from_estimator(3)


def test_missing_column_is_named():
    with pytest.raises(ValueError, match=r"Expected 'mean_test_r2' .*Name the keys"):
        FlatnessAccuracyDisplay.from_cv_results(
            {"mean_test_accuracy": [1.0]}, metric="r2"
        )


def test_frame_has_the_numbers(ruled):
    display = FlatnessAccuracyDisplay.from_estimator(ruled)
    frame = display.frame()
    results = ruled.cv_results_
    assert frame["params"].tolist() == results["params"]
    np.testing.assert_array_equal(frame["accuracy"], results["mean_test_accuracy"])
    np.testing.assert_array_equal(
        frame["relative_flatness"], -results["mean_train_relative_flatness"]
    )
    assert frame["is_chosen"].to_numpy().nonzero()[0].tolist() == [ruled.best_index_]
    assert frame["is_admitted"].sum() == len(points(display.errorbar_))


def test_parameters_in_few_characters():
    assert shortened({"net__lr": 0.001, "b": True}) == "lr = 0.001, b = True"
    assert len(shortened({f"parameter_{i}": i for i in range(9)})) == 40


@pytest.mark.parametrize("style", ["default", "dark_background"])
def test_looks(style, ruled, smoothed):
    with plt.style.context(style):
        check_looks(FlatnessAccuracyDisplay.from_estimator(ruled))
        check_looks(FlatnessAccuracyDisplay.from_estimator(smoothed))
        check_looks(
            FlatnessAccuracyDisplay.from_estimator(
                ruled, metric="neg_log_loss", flatness="neg_smoothed_risk"
            )
        )
