"""Coefficients of measures with intervals, from tables of runs."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import kendalltau
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV

from sklearn_relflat import rank_correlations


def runs(n_seeds=4, seed=0):
    """Trainings over a grid, whose gap rises with the measure but for noise."""
    rng = np.random.default_rng(seed)
    return [
        {
            "lr": lr, "batch": batch, "seed": s, "loss": rng.normal(),
            "good": 10 * lr + batch / 64 + 0.3 * rng.normal(),
            "useless": rng.normal(), "gap": 10 * lr + batch / 64,
        }
        for lr in (0.1, 0.2, 0.3)
        for batch in (32, 64)
        for s in range(n_seeds)
    ]  # fmt: skip


NAMES = ["lr", "batch"]


def values(result):
    return {(r["measure"], r["coefficient"]): r["value"] for r in result.rows()}


def test_frames_columns_and_records_are_one():
    table = runs()
    options = {"control": "loss", "n_resamples": 50}
    first = rank_correlations(table, ["good", "useless"], "gap", NAMES, **options)
    frame = pd.DataFrame(table)
    for other in (frame, frame.to_dict("list")):
        again = rank_correlations(other, ["good", "useless"], "gap", NAMES, **options)
        assert again.rows() == first.rows()
    assert first.frame().shape == (14, 6)
    assert "'good' is the most telling" in first.sentence
    assert values(first)["good", "kendall"] == pytest.approx(
        kendalltau(frame["good"], frame["gap"]).statistic
    )


def test_results_of_a_search_bring_their_hyperparameters():
    X, y = load_iris(return_X_y=True)
    grid = {"C": [0.01, 1.0, 100.0], "fit_intercept": [True, False]}
    search = GridSearchCV(
        LogisticRegression(max_iter=5000), grid, return_train_score=True
    ).fit(X, y)
    result = rank_correlations(
        search.cv_results_, "mean_train_score", "mean_test_score", n_resamples=0
    )
    assert {r["coefficient"] for r in result.rows()} >= {"granulated_kendall"}
    assert values(result)["mean_train_score", "spearman"] > 0.5
    by_name = rank_correlations(
        search.cv_results_,
        "mean_train_score",
        "mean_test_score",
        ["param_C", "param_fit_intercept"],
        n_resamples=0,
    )
    assert by_name.rows() == result.rows()


def test_runs_that_diverged_are_counted():
    table = runs()
    table[0]["gap"] = math.nan
    table[1]["gap"] = None
    table[2]["useless"] = math.inf
    result = rank_correlations(table, ["good", "useless"], "gap", NAMES, n_resamples=9)
    assert (result.n_runs, result.n_dropped) == (22, 2)
    assert {r["measure"]: r["n_runs"] for r in result.rows()} == {
        "good": 22,
        "useless": 21,
    }
    assert "2 more without it" in str(result)
    kept = rank_correlations(table[2:], "good", "gap", NAMES, n_resamples=0)
    for key, value in values(kept).items():
        assert values(result)[key] == pytest.approx(value)


def test_what_is_not_defined_is_named():
    table = [{"a": i, "b": i, "m": 1.0, "gap": i} for i in range(5)]
    result = rank_correlations(table, "m", "gap", ["a", "b"], n_resamples=5)
    assert all(math.isnan(value) for value in values(result).values())
    assert len(result.notes) == 6
    assert "no two runs differ in one hyperparameter" in " ".join(result.notes)
    assert "No measure has a kendall coefficient" in result.sentence


def test_seeds_give_the_same_intervals_and_none_gives_others():
    table = runs()
    first, again, other = (
        rank_correlations(table, "good", "gap", NAMES, n_resamples=99, random_state=s)
        for s in (0, 0, 1)
    )
    assert first.rows() == again.rows()
    assert first.rows() != other.rows()


def test_intervals_cover():
    # Bivariate normal runs: the expected coefficient of Kendall is known.
    rng = np.random.default_rng(0)
    rho, n_trials, inside = 0.5, 200, 0
    exact = 2 / math.pi * math.asin(rho)
    for trial in range(n_trials):
        x, noise = rng.normal(size=(2, 60))
        table = {"m": x, "gap": rho * x + math.sqrt(1 - rho**2) * noise}
        (row,) = rank_correlations(
            table, "m", "gap", coefficients=["kendall"], n_resamples=200,
            random_state=trial,
        ).rows()  # fmt: skip
        inside += row["low"] <= exact <= row["high"]
    assert 0.89 <= inside / n_trials <= 0.99


def test_clusters_widen_the_intervals_of_runs_that_share_a_seed():
    rng = np.random.default_rng(0)
    shared = np.repeat(rng.normal(size=(2, 12)), 8, axis=1)
    noise = 0.1 * rng.normal(size=(2, 96))
    table = {"m": shared[0] + noise[0], "gap": shared[1] + noise[1]}
    table["seed"] = np.repeat(np.arange(12), 8)
    widths = [
        np.ptp([row["low"], row["high"]])
        for groups in (None, "seed")
        for row in rank_correlations(
            table, "m", "gap", groups=groups, coefficients=["spearman"]
        ).rows()
    ]
    assert widths[1] > 1.5 * widths[0]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"runs": 3}, TypeError, "a DataFrame, a list of dicts"),
        ({"measures": []}, ValueError, "at least one measure"),
        ({"measures": "other"}, ValueError, "a column 'other'"),
        ({"measures": "word"}, ValueError, "numbers in the column 'word'"),
        ({"target": "none"}, ValueError, "at least 3 runs with a finite 'none'"),
        ({"coefficients": ["tau"]}, ValueError, r"coefficients among .* got 'tau'"),
        ({"coefficients": ["partial_spearman"]}, ValueError, "control for the coeff"),
        (
            {"coefficients": ["sign_error"], "hyperparameters": None},
            ValueError,
            "hyperparameters for the coefficient",
        ),
        ({"n_resamples": -1}, ValueError, "n_resamples"),
        ({"confidence_level": 95}, ValueError, "between 0 and 1"),
    ],
)
def test_errors_say_what_to_do(change, error, message):
    table = [{**run, "word": "x", "none": None} for run in runs(2)]
    arguments = {
        "runs": table, "measures": "good", "target": "gap", "hyperparameters": NAMES,
    }  # fmt: skip
    with pytest.raises(error, match=message):
        rank_correlations(**{**arguments, **change})
