"""The experiment `figure3`: what it measures, and its correlations by hand."""

from dataclasses import replace

import numpy as np
import pytest

from sklearn_relflat import relative_flatness, smoothed_risk
from sklearn_relflat.experiments import figure3
from sklearn_relflat.experiments._two_classes import (
    CROSS_ENTROPY,
    SQUARED_ERROR,
    draw_classes,
    fit_linear,
    mean_loss,
)

CONFIG = replace(figure3.PRESETS["quick"], train_sizes=(50,), penalties=(0.1, 10.0))
TASK = {"source": "gaussians", "separation": 1.0, "set": 0}


@pytest.fixture(scope="module")
def records():
    return figure3.measure(TASK, CONFIG, 0, None)


@pytest.mark.parametrize("loss", [CROSS_ENTROPY, SQUARED_ERROR])
def test_the_loss_is_the_one_that_the_model_was_fitted_with(loss):
    X, y = draw_classes("make_classification", 80, 1.0, 0)
    model, targets = fit_linear(loss, 1.0, X, y)
    expected = relative_flatness(model, X, targets).mean_loss
    assert mean_loss(model, loss, X, y) == pytest.approx(expected, rel=1e-9)


def test_a_penalty_makes_both_models_smaller():
    X, y = draw_classes("gaussians", 60, 1.0, 0)
    for loss in (CROSS_ENTROPY, SQUARED_ERROR):
        norms = [
            np.linalg.norm(fit_linear(loss, penalty, X, y)[0].coef_)
            for penalty in (0.1, 1.0, 10.0)
        ]
        assert norms == sorted(norms, reverse=True)


def test_each_model_of_a_source_has_a_record(records):
    found = {(r["loss"], r["penalty"]) for r in records}
    assert found == {(a, b) for a in (CROSS_ENTROPY, SQUARED_ERROR) for b in (0.1, 10)}
    other = figure3.measure({**TASK, "source": "make_classification"}, CONFIG, 0, None)
    assert {r["loss"] for r in other} == {SQUARED_ERROR}


def test_the_records_are_those_of_the_public_functions(records):
    number = figure3.seed_of(0, *TASK.values())
    X, y = draw_classes("gaussians", 1200, 1.0, number)
    for record in records:
        model, targets = fit_linear(record["loss"], record["penalty"], X[:50], y[:50])
        # That of the squared error was not drawn: it is exact.
        risk = smoothed_risk(model, X[:50], targets, random_state=number)
        assert record["smoothed"] == pytest.approx(risk.value, rel=1e-9)
        assert record["radius"] == risk.radius
        assert record["train_loss"] == pytest.approx(risk.mean_loss, rel=1e-9)
        fresh = mean_loss(model, record["loss"], X[200:], y[200:])
        assert record["gap"] == pytest.approx(fresh - risk.mean_loss)
        rest = mean_loss(model, record["loss"], X[50:200], y[50:200])
        assert record["gap_rest"] == pytest.approx(rest - risk.mean_loss)


def test_data_sets_differ_by_seed_number_and_separation(records):
    others = [
        figure3.measure(TASK, CONFIG, 1, None),
        figure3.measure({**TASK, "set": 1}, CONFIG, 0, None),
        figure3.measure({**TASK, "separation": 1.5}, CONFIG, 0, None),
    ]
    assert len({r[0]["train_loss"] for r in (records, *others)}) == 4


def made_up(orders, separations):
    """Records in which kappa follows each order, while the gap rises."""
    return [
        TASK
        | {
            "separation": separation,
            "set": number,
            "loss": CROSS_ENTROPY,
            "n_train": 50,
            "penalty": 1.0,
            "gap": float(number),
            "gap_rest": -float(number),
            "test_loss": 2.0 + number,
            "train_loss": 1.0 + number % 3,
            "kappa": float(place),
            "rise": float(place),
            "rise_fixed": float(place),
            "smoothed": -float(number),
            "smoothed_fixed": float(number),
            "radius": 0.5 * separation,
            "other_labels": 0.25 if number % 2 else 0.75,
        }
        for order, separation in zip(orders, separations, strict=True)
        for number, place in enumerate(order)
    ]


@pytest.fixture(scope="module")
def summary():
    up = [*range(30)]
    rng = np.random.default_rng(0)
    config = replace(
        CONFIG,
        cases=(("gaussians", CROSS_ENTROPY),),
        separations=(1.0, 2.0),
        penalties=(1.0,),
    )
    records = made_up([rng.permutation(30).tolist(), up], config.separations)
    return figure3.summarize(records, config, 0)


def test_a_correlation_that_rises_is_called_so(summary):
    (row,) = summary["trends"]
    for coefficient in ("spearman", "pearson"):
        assert row[coefficient][1] == 1.0
        assert abs(row[coefficient][0]) < 0.4
        assert row[f"{coefficient}_trend"] == "rises"
        low, high = row[f"{coefficient}_interval"]
        assert 0 < low < row[f"{coefficient}_change"] < high
    assert row["spearman_nil_at_the_first"] is True


def test_a_correlation_that_falls_is_called_so():
    config = replace(
        CONFIG,
        cases=(("gaussians", CROSS_ENTROPY),),
        separations=(1.0, 2.0, 3.0),
        penalties=(1.0,),
    )
    up = [*range(30)]
    records = made_up([up, up[::-1], up[::-1]], config.separations)
    (row,) = figure3.summarize(records, config, 0)["trends"]
    assert row["spearman"] == [1.0, -1.0, -1.0]
    assert row["spearman_trend"] == "falls"
    assert row["spearman_change"] == -2.0
    assert row["spearman_trend_from_the_second"] == "unclear"
    assert row["spearman_nil_at_the_first"] is False


def test_the_interval_of_a_change_by_hand():
    first = {"r": 0.5, "r_low": 0.2, "r_high": 0.6}
    last = {"r": 0.8, "r_low": 0.7, "r_high": 0.9}
    change, interval = figure3._change(first, last, "r")
    assert change == pytest.approx(0.3)
    expected = [0.3 - (0.1**2 + 0.1**2) ** 0.5, 0.3 + (0.1**2 + 0.3**2) ** 0.5]
    assert interval == pytest.approx(expected)


def test_the_smoothed_risk_is_compared_with_the_test_loss(summary):
    (row,) = summary["smoothed_risk"]
    assert row["smoothed with test_loss"] == [-1.0, -1.0]
    assert row["smoothed_fixed with test_loss"] == [1.0, 1.0]
    assert row["rise with gap"][1] == 1.0
    # The mean of -0 to -29 over that of 2 to 31.
    assert row["smoothed over test loss"] == [pytest.approx(-14.5 / 16.5, abs=5e-3)] * 2


def test_cells_by_hand(summary):
    cells = summary["cells"]
    assert cells["separation"] == [1.0, 2.0]
    assert cells["sets"] == [30, 30]
    assert cells["spearman_smoothed_test_loss"] == [-1.0, -1.0]
    assert cells["pearson_smoothed_fixed_test_loss"] == [1.0, 1.0]
    assert cells["spearman_kappa_gap_rest"][1] == -1.0
    assert cells["mean_test_loss"] == [16.5, 16.5]
    # At equal training loss kappa still follows the gap.
    assert cells["partial_spearman_kappa_gap"][1] == pytest.approx(1.0)


def test_shares_of_labels_by_hand(summary):
    (row,) = summary["labels"]
    assert row["other_labels"] == [0.5, 0.5]
    assert row["radius"] == [0.5, 1.0]
    assert all(0.25 < low < 0.5 < high < 0.75 for low, high in row["intervals"])


def test_the_figure_has_a_panel_for_each_case_and_row(summary):
    pytest.importorskip("matplotlib")
    axes = figure3.draw(summary).axes
    assert [ax.get_title() for ax in axes] == ["gaussians, cross-entropy", ""]
    (line,) = axes[0].containers
    np.testing.assert_allclose(line.lines[0].get_ydata()[1], 1.0)
