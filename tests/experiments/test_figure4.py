"""The experiment `figure4`: what it measures, and its errors by hand."""

from dataclasses import replace

import numpy as np
import pytest

from sklearn_relflat import density_radius, generalization_bound
from sklearn_relflat.experiments import figure4
from sklearn_relflat.experiments._two_classes import (
    CROSS_ENTROPY,
    SQUARED_ERROR,
    draw_classes,
    fit_linear,
    mean_loss,
)

CONFIG = replace(figure4.PRESETS["quick"], n_samples=100)
TASK = {"separation": 1.0, "set": 0}


@pytest.fixture(scope="module")
def records():
    return figure4.measure(TASK, CONFIG, 0, None)


def test_the_records_are_those_of_the_public_functions(records):
    number = figure4.seed_of(0, *TASK.values())
    X, y = draw_classes("make_classification", 1100, 1.0, number)
    own = density_radius(X[:100]).radius
    keys = [(r["loss"], r["radius"], r["delta"]) for r in records]
    assert keys == [
        (CROSS_ENTROPY, "fixed", 0.1),
        (CROSS_ENTROPY, "own", own),
        (SQUARED_ERROR, "fixed", 0.1),
        (SQUARED_ERROR, "own", own),
    ]
    for record in records:
        loss = record["loss"]
        model, targets = fit_linear(loss, CONFIG.penalty, X[:100], y[:100])
        expected = generalization_bound(
            model,
            X[:100],
            targets,
            delta=record["delta"],
            n_splits=CONFIG.n_splits,
            random_state=number,
        )
        for name in ("bound", "representativeness", "cross_validated_gap", "kappa"):
            assert record[name] == pytest.approx(expected[name], rel=1e-9)
        gap = mean_loss(model, loss, X[100:], y[100:])
        gap -= mean_loss(model, loss, X[:100], y[:100])
        assert record["gap"] == pytest.approx(gap)


def test_terms_add_up(records):
    for r in records:
        terms = r["representativeness"] + r["flatness_term"]
        assert r["bound"] == pytest.approx(terms)
        truth = r["true_representativeness"] + r["true_robustness"]
        assert r["gap"] == pytest.approx(truth)


def test_data_sets_differ_by_seed_number_and_separation(records):
    others = [
        figure4.measure(TASK, CONFIG, 1, None),
        figure4.measure({**TASK, "set": 1}, CONFIG, 0, None),
        figure4.measure({**TASK, "separation": 1.5}, CONFIG, 0, None),
    ]
    assert len({r[0]["train_loss"] for r in (records, *others)}) == 4


def made_up(bounds, gaps):
    base = dict.fromkeys(figure4._TERMS, 0.0)
    return [
        base
        | {
            "separation": separation,
            "set": number,
            "loss": CROSS_ENTROPY,
            "radius": radius,
            "delta": 0.1,
            "kappa": -gap,
            "gap": gap,
            "bound": bound if radius == "fixed" else -bound,
            "cross_validated_gap": gap + 0.5,
        }
        for separation in (1.0, 2.0)
        for radius in ("fixed", "own")
        for number, (bound, gap) in enumerate(zip(bounds, gaps, strict=True))
    ]


@pytest.fixture(scope="module")
def summary():
    config = replace(CONFIG, losses=(CROSS_ENTROPY,), separations=(1.0, 2.0))
    records = made_up([1.0, 2.25, 2.75, 4.0], [1.0, 2.0, 3.0, 4.0])
    return figure4.summarize(records, config, 0)


def test_errors_by_hand(summary):
    assert [row["separation"] for row in summary["errors"]] == [1.0, 2.0, "all"] * 2
    for row in summary["errors"][:3]:
        assert row["error_of_bound"] == 0.125
        assert row["error_of_cross_validated_gap"] == 0.5
        assert row["error_of_zero"] == 2.5
        assert row["bound_minus_cross_validated"] == -0.375
        assert row["interval"][0] < -0.375 < row["interval"][1] < 0
        assert row["nearer"] == "bound"
        assert row["bound_minus_zero"] == pytest.approx(0.125 - 2.5, abs=0.01)
        assert row["zero_interval"][1] < 0
        assert row["sets"] == (8 if row["separation"] == "all" else 4)


def test_the_nearer_one_is_named_only_where_it_is():
    config = replace(CONFIG, losses=(CROSS_ENTROPY,), separations=(1.0, 2.0))
    gaps = [1.0, 2.0, 3.0, 4.0]
    for errors, named in (([1.0, 0.9, 0.8, 0.9], "cross-validated"), ([0, 1], None)):
        bounds = np.array(gaps) + np.resize(errors, 4)
        summary = figure4.summarize(made_up(bounds.tolist(), gaps), config, 0)
        expected = named or "neither"
        assert {row["nearer"] for row in summary["errors"][:3]} == {expected}


def test_ranking_by_hand(summary):
    found = {row["estimate"]: row for row in summary["ranking"]}
    signs = {name: row["spearman"] for name, row in found.items()}
    assert signs == {
        "bound, fixed radius": 1.0,
        "bound, own radius": -1.0,
        "cross validated gap": 1.0,
        "kappa": -1.0,
    }
    for name, row in found.items():
        assert row["spearman_by_separation"] == [signs[name]] * 2
        assert row["sets"] == 8


def test_the_bound_is_counted_where_it_is_above(summary):
    # One of four is below the gap, and of those with the other sign, all.
    assert [row["bound_above_gap"] for row in summary["terms"]] == [0.75, 0.75, 0, 0]
    assert {row["gap"] for row in summary["terms"]} == {2.5}


def test_the_figure_has_a_panel_for_each_radius(summary):
    pytest.importorskip("matplotlib")
    axes = figure4.draw(summary).axes
    assert len(axes) == 2
    heights = [patch.get_height() for patch in axes[0].patches]
    assert heights == [0.0] * 4
    truth, bound, _ = axes[0].containers[-3:]
    assert truth.lines[0].get_ydata().tolist() == [2.5, 2.5]
    assert bound.lines[0].get_ydata().tolist() == [2.5, 2.5]
