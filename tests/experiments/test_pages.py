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


def test_the_page_on_trajectories_says_what_came_out():
    path = DOCS / "results" / "trajectories-full.json"
    summary = json.loads(path.read_text(encoding="utf-8"))["summary"]
    ranks = {
        (row["network"], row["perturbed"]): row["spearman"]
        for row in summary["prediction"]
    }
    assert ranks["cnn", "fc1, isotropic"] > 0.9
    assert abs(ranks["cnn", "input, isotropic"]) < 0.2
    assert ranks["cnn", "fc3, isotropic"] < -0.5
    regrets = {(row["network"], row["rule"]): row for row in summary["stopping"]}
    page = (DOCS / "trajectories.md").read_text(encoding="utf-8")
    for network, rules in {
        "cnn": ("smoothed risk, fc1, isotropic", "last epoch"),
        "mlp": ("smoothed risk, input, isotropic", "last epoch"),
    }.items():
        for rule in (*rules, "validation on 10%", "validation on 20%"):
            row = regrets[network, rule]
            low, high = row["interval"]
            cells = f"{row['regret']:.2f} [{low:.2f}, {high:.2f}] | {row['worst']:.2f}"
            assert f"| {cells} |" in page
    # As good as a validation sample for the one network, and not for the other.
    validation = regrets["cnn", "validation on 20%"]["regret"]
    assert regrets["cnn", "smoothed risk, fc1, isotropic"]["regret"] < validation
    own = regrets["mlp", "smoothed risk, input, isotropic"]["regret"]
    assert own > regrets["mlp", "validation on 20%"]["regret"]
    for layer in ("fc1", "input"):
        network = "cnn" if layer == "fc1" else "mlp"
        for shape in ("within class", "covariance"):
            row = regrets[network, f"smoothed risk, {layer}, {shape}"]
            assert set(row["epochs"]) == {1}


def test_the_page_on_reparameterization_says_what_came_out():
    path = DOCS / "results" / "reparameterization-full.json"
    summary = json.loads(path.read_text(encoding="utf-8"))["summary"]
    assert summary["runs"][0]["reached"] == summary["runs"][0]["trainings"] == 48
    for row in summary["function"]:
        assert row["largest_output_change"] < 5e-7
        assert row["largest_gap_change"] < 3e-7
        assert row["largest_change_of_untouched_measures"] < 1.1e-6
    layers, neurons = (
        {row["column"]: row for row in summary["correlations"][name]}
        for name in ("layers", "neurons")
    )
    for row in (*layers.values(), *neurons.values()):
        if row["by_theory"] == "moves":
            assert row["median_change"] > 0.9
        else:
            assert row["largest_change"] < 1.1e-6
            assert row["difference_interval"] == [0, 0]
            assert row["spearman_before"] == row["spearman_after"]
    lost = {"pb": (-0.89, -0.42), "tr_all": (-0.83, -0.26), "eig": (-0.59, -0.22)}
    for column, expected in lost.items():
        row = layers[column]
        found = round(row["spearman_before"], 2), round(row["spearman_after"], 2)
        assert found == expected
        assert abs(found[1]) < abs(found[0]) / 2 + 0.01
    moved = {name for name, row in layers.items() if is_off_zero(row)}
    assert moved == {"pb", "eig", "tr_all", "tr_fc2", "tr_fc3"}
    moved = {name for name, row in neurons.items() if is_off_zero(row)}
    assert moved == {"pb", "sam", "wn_all", "wn_fc3", "s_fc3"}
    for column, sign in (("ks_ce_fc3", -1), ("ks_se_fc3", 1)):
        row = layers[column]
        assert round(row["spearman_after"], 2) == sign * 0.57
        assert round(row["partial_spearman_after"], 2) == sign * 0.52
        assert all(sign * end > 0 for end in row["spearman_after_interval"])


def is_off_zero(row):
    low, high = row["difference_interval"]
    return low > 0 or high < 0
