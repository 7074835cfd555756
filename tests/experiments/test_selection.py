"""The experiment `selection`: its rules are the public ones, its records complete."""

import warnings

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_relflat import (
    FlattestWithin,
    RelativeFlatnessScorer,
    SmoothedRiskSearchCV,
)
from sklearn_relflat.experiments import selection
from sklearn_relflat.experiments._selection_candidates import (
    KAPPAS,
    MEASURES,
    calibration_error,
    records_of,
)
from sklearn_relflat.experiments._selection_grids import (
    DATA_SETS,
    FAMILIES,
    GRIDS,
    draw_sample,
)
from sklearn_relflat.experiments._selection_rules import RULES, columns_of
from sklearn_relflat.experiments._selection_summary import clustered_interval

C = [0.01, 0.1, 1.0, 10.0, 100.0, 1000.0]
MODEL = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))


@pytest.fixture(scope="module")
def sample():
    return draw_sample("breast cancer", 80, 300, split=0, seed=0)


@pytest.fixture(scope="module")
def records(sample):
    candidates = [
        make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=2000))
        for c in C
    ]
    # The seed of its draws that a search makes of random_state=0.
    seed = int(np.random.RandomState(0).randint(2**31 - 1))
    return records_of(candidates, sample, n_folds=5, seed=seed)


@pytest.fixture(scope="module")
def columns(records):
    return columns_of(records[:-1])


def chosen(rule, columns):
    shares = RULES[rule](columns)
    assert shares.sum() == pytest.approx(1.0)
    return int(shares.argmax())


def test_the_calibrated_choice_is_that_of_the_public_search(sample, records, columns):
    search = SmoothedRiskSearchCV(MODEL, {"logisticregression__C": C})
    search.fit(sample.X, sample.y)
    assert chosen("smoothed risk, calibrated", columns) == search.best_index_
    assert records[-1]["radius_sc"] == pytest.approx(search.radius_, rel=1e-4)
    smoothed = search.cv_results_["smoothed_risk"]
    np.testing.assert_allclose(columns["sc"], smoothed, rtol=1e-4)


def test_the_density_choice_is_that_of_the_public_search(sample, columns):
    search = SmoothedRiskSearchCV(MODEL, {"logisticregression__C": C}, radius="density")
    search.fit(sample.X, sample.y)
    assert chosen("smoothed risk, density", columns) == search.best_index_
    smoothed = search.cv_results_["smoothed_risk"]
    np.testing.assert_allclose(columns["sd"], smoothed, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("0.01", {"tol": 0.01, "loss_tol": None}),
        ("1se", {"tol": "1se", "loss_tol": None}),
        ("1se, equal loss", {"tol": "1se", "loss_tol": 0.5}),
    ],
)
def test_the_flattest_is_that_of_a_grid_search(name, options, sample, columns):
    scoring = {
        "accuracy": "accuracy",
        "neg_log_loss": "neg_log_loss",
        "relative_flatness": RelativeFlatnessScorer(),
    }
    search = GridSearchCV(
        MODEL,
        {"logisticregression__C": C},
        scoring=scoring,
        refit=FlattestWithin(**options),
        return_train_score=True,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        search.fit(sample.X, sample.y)
    rule = f"least kappa, mean of folds within {name}"
    assert chosen(rule, columns) == search.best_index_
    log_loss = -search.cv_results_["mean_test_neg_log_loss"]
    np.testing.assert_allclose(columns["l"], log_loss, rtol=1e-3)


def test_a_draw_is_among_those_that_are_compared(columns):
    for tolerance in ("0.01", "1se", "1se, equal loss"):
        shares = RULES[f"random within {tolerance}"](columns)
        assert set(np.unique(shares)) <= {0.0, shares.max()}
        for measure in ("kappa", "training loss", "weight norm"):
            assert shares[chosen(f"least {measure} within {tolerance}", columns)] > 0


def test_records_are_complete(records):
    *candidates, grid = records
    wanted = {"t", "l", "sd", "sw", "sc", "L", "A", "E", "N", *MEASURES, *KAPPAS}
    for record in candidates:
        assert all(record[name] is not None for name in wanted)
    assert {"fit", "cv", "sd", "sc", "diagnosis"} <= set(grid["seconds"])
    assert grid["labels_constant"] in {"holds", "unclear", "fails"}


def test_held_out_numbers_are_those_of_the_model(sample, records):
    model = MODEL.set_params(logisticregression__C=C[2]).fit(sample.X, sample.y)
    accuracy = model.score(sample.X_test, sample.y_test)
    assert records[2]["A"] == pytest.approx(accuracy, rel=1e-4)
    p = model.predict_proba(sample.X_test)[np.arange(300), sample.y_test]
    assert records[2]["L"] == pytest.approx(-np.log(p).mean(), rel=1e-4)


def test_calibration_error_by_hand():
    # Confidences 0.9 (two samples, one right) and 0.6 (two, both right).
    p = np.array([[0.9, 0.1], [0.1, 0.9], [0.6, 0.4], [0.4, 0.6]])
    error = calibration_error(p, np.array([0, 0, 0, 1]))
    assert error == pytest.approx((2 * 0.4 + 2 * 0.4) / 4)


def test_every_grid_is_known_and_there_are_enough():
    assert len(set(GRIDS)) == len(GRIDS) >= 20
    for data_set, _, family in GRIDS:
        assert data_set in DATA_SETS
        assert len(FAMILIES[family].candidates()) >= 8
    sizes = [n for _, n, _ in GRIDS]
    assert (min(sizes), max(sizes)) == (50, 5000)


@pytest.mark.parametrize("data_set", DATA_SETS)
def test_splits_are_reproducible_and_differ(data_set):
    first, again, other = (
        draw_sample(data_set, 60, 100, split, seed=0) for split in (0, 0, 1)
    )
    np.testing.assert_array_equal(first.X, again.X)
    assert not np.array_equal(first.X, other.X)
    assert first.X.shape[0] == 60
    assert set(first.y) <= set(range(int(first.y.max()) + 1))


def test_the_interval_draws_clusters_as_a_whole():
    # One number five times is no more certain than once.
    values, clusters = np.repeat([0.0, 1.0, 2.0], 5), np.repeat(["a", "b", "c"], 5)
    mean, wide = clustered_interval([*values], [*clusters], 0)
    _, narrow = clustered_interval([*values], [*map(str, range(15))], 0)
    assert mean == 1.0
    assert wide[1] - wide[0] > 1.3 * (narrow[1] - narrow[0])
    assert clustered_interval([1.0, 2.0], ["a", "a"], 0) == (1.5, None)


def test_the_quick_preset_is_summed_up_and_drawn():
    config = selection.PRESETS["quick"]
    tasks = [t for t in selection.tasks(config) if t["split"] == 0]
    records = [
        task | record
        for task in tasks
        for record in selection.measure(task, config, 0, None)
    ]
    summary = selection.summarize(records, config, 0)
    assert summary["grids"] == summary["searches"] == 3
    rows = {row["rule"]: row for row in summary["rules"]}
    assert rows["cross-validated log-loss"]["tied"] == 3
    assert all(row["log_loss_regret"] >= 0 for row in rows.values())
    assert len(selection.draw(summary).axes) == 4
