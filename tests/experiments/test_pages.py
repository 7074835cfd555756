"""The pages on experiments report what the summaries say."""

import json
from pathlib import Path

import pytest

from sklearn_relflat.experiments._registry import load_experiment
from sklearn_relflat.experiments._report import tables

DOCS = Path(__file__).resolve().parents[2] / "docs" / "experiments"
if not DOCS.is_dir():
    pytest.skip("not in a clone of the repository", allow_module_level=True)
SUMMARIES = sorted(DOCS.glob("results/*-full.json"))


# A page may have shorter tables of its own.
TABLES = [path for path in SUMMARIES if path.with_suffix(".md").exists()]


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_the_tables_are_those_of_the_summary(path):
    summary = json.loads(path.read_text(encoding="utf-8"))["summary"]
    assert path.with_suffix(".md").read_text(encoding="utf-8") == tables(summary)


@pytest.mark.parametrize("path", SUMMARIES, ids=lambda path: path.stem)
def test_the_summary_is_of_the_preset_as_it_is(path):
    from dataclasses import asdict

    result = json.loads(path.read_text(encoding="utf-8"))
    config = asdict(load_experiment(result["experiment"]).PRESETS["full"])
    assert result["config"] == json.loads(json.dumps(config))


def test_the_page_on_theorem_5_says_what_came_out():
    path = DOCS / "results" / "theorem5-full.json"
    summary = json.loads(path.read_text(encoding="utf-8"))["summary"]
    radius = {
        (row["model"], row["layer"], row["loss"]): row["agrees_up_to_delta"]
        for row in summary["agreement"]
    }
    assert radius["logistic", "coef", "cross_entropy"] == 1
    assert radius["relu network", "coefs.2", "cross_entropy"] == 0.1
    for layer in ("coefs.0", "coefs.1"):
        assert radius["tanh network", layer, "cross_entropy"] == 0.02
        assert radius["relu network", layer, "cross_entropy"] == 0
    exact = [k for k in radius if k[2] == "squared_error"]
    assert {radius[key] for key in exact} == {2}


def test_the_page_on_figure_4_says_what_came_out():
    path = DOCS / "results" / "figure4-full.json"
    summary = json.loads(path.read_text(encoding="utf-8"))["summary"]
    assert {row["nearer"] for row in summary["errors"]} == {"neither"}
    overall = [row for row in summary["errors"] if row["separation"] == "all"]
    assert len(overall) == 4
    for row in overall:
        assert 0.0205 <= row["error_of_bound"] < 0.0245
        assert 0.0205 <= row["error_of_cross_validated_gap"] < 0.0245
        assert 0.0185 <= row["error_of_zero"] < 0.0200
        assert row["zero_interval"][0] > 0
    for loss in ("cross-entropy", "squared error"):
        rank = {
            row["estimate"]: row["spearman"]
            for row in summary["ranking"]
            if row["loss"] == loss
        }
        for name in ("bound, fixed radius", "bound, own radius"):
            assert -0.055 < rank[name] < 0.115
            assert abs(rank[name] - rank["cross validated gap"]) < 0.01
    terms = summary["terms"]
    shares = [row["bound_above_gap"] for row in terms]
    assert (min(shares), max(shares)) == (0.38, 0.68)
    apart = {
        radius: [
            row["bound"] - row["cross_validated_gap"]
            for row in terms
            if row["radius"] == radius
        ]
        for radius in ("fixed", "own")
    }
    for row in terms:
        assert 1.14 < row["flatness_term"] / row["true_robustness"] < 1.24
        if row["radius"] == "own":
            assert row["separation"] > 3 or row["flatness_term"] > row["gap"]
        elif row["loss"] == "cross-entropy" or row["separation"] <= 2:
            assert row["representativeness"] > row["flatness_term"]
    negative = [r["representativeness"] < 0 for r in terms if r["radius"] == "own"]
    assert sum(negative) > len(negative) / 2
    assert 0 < min(apart["fixed"]) <= max(apart["fixed"]) < 0.001
    assert 0.006 < max(apart["own"]) < 0.0065
