"""The pages on experiments report what the summaries say."""

import json
import sys
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


def figure_3():
    """Summary of figure3, and its cells as rows."""
    path = DOCS / "results" / "figure3-full.json"
    summary = json.loads(path.read_text(encoding="utf-8"))["summary"]
    columns = summary["cells"]
    cells = [
        dict(zip(columns, values, strict=True))
        for values in zip(*columns.values(), strict=True)
    ]
    return summary, cells


def test_the_page_on_figure_3_says_how_the_correlation_changes():
    trends = figure_3()[0]["trends"]
    assert {row["spearman_trend"] for row in trends} == {"falls"}
    assert len(trends) == 36
    assert not any(row["spearman_nil_at_the_first"] for row in trends)
    first = [row["spearman"][0] for row in trends]
    assert (min(first), max(first)) == (0.40, 0.94)

    def count(name, source, trend):
        return sum(r["source"] == source and r[name] == trend for r in trends)

    assert count("spearman_trend_from_the_second", "gaussians", "falls") == 23
    name = "make_classification"
    assert count("spearman_trend_from_the_second", name, "unclear") == 12
    for column in ("pearson_trend", "pearson_trend_from_the_second"):
        assert all(row[column] != "rises" for row in trends)
    assert sum(row["pearson_trend"] == "falls" for row in trends) == 34
    assert count("pearson_trend_from_the_second", "gaussians", "falls") == 24

    def last(wanted):
        values = [row["spearman"][-1] for row in trends if wanted(row)]
        return min(values), max(values)

    assert last(lambda r: r["loss"] == "cross-entropy") == (-0.87, -0.44)
    squared = [row for row in trends if row["loss"] == "squared error"]
    trends = squared
    assert last(lambda r: r["source"] == "gaussians") == (-0.16, 0.54)
    assert last(lambda r: r["source"] != "gaussians") == (0.02, 0.35)
    for row in squared:
        if row["n_train"] == 50 and row["penalty"] < 100:
            few = row["spearman"]
            partial = row["spearman_given_the_training_loss"]
            if row["source"] == "gaussians":
                assert 0.5 < few[-1] < 0.55
                assert 0.48 <= min(partial) <= max(partial) == partial[-1] <= 0.81
            else:
                assert few[-1] == 0.35
                assert 0.05 <= few[3] <= 0.06 < 0.49 <= few[4] <= 0.51
        elif row["n_train"] == 50 and row["source"] == "gaussians":
            assert max(row["spearman_given_the_training_loss"]) < 0


def test_the_page_on_figure_3_says_what_the_smoothed_risk_tells():
    summary, cells = figure_3()
    told, apart, nearer = [], [], []
    for row in summary["smoothed_risk"]:
        smoothed, loss = (
            row[f"{name} with test_loss"] for name in ("smoothed", "train_loss")
        )
        ratios = row["smoothed over test loss"]
        if row["source"] == "make_classification":
            told += smoothed[1:]
            apart += [a - b for a, b in zip(smoothed[1:], loss[1:], strict=True)]
            assert 0.79 <= min(ratios) <= max(ratios) <= 1.1
        elif row["penalty"] < 100:
            assert 1.2 <= min(ratios[2:]) <= max(ratios[2:]) <= 4.1
        if row["source"] == "gaussians" and row["loss"] == "squared error":
            with_gap = row["train_loss with gap"]
            assert row["n_train"] < 400 or max(with_gap) <= -0.91
    assert (min(told), max(told)) == (0.42, 0.99)
    assert max(map(abs, apart)) == pytest.approx(0.09)
    for cell in cells:
        if cell["source"] == "make_classification":
            errors = [
                abs(cell[f"mean_{name}"] - cell["mean_test_loss"])
                for name in ("smoothed", "train_loss")
            ]
            nearer.append(errors[0] < errors[1])
    assert (sum(nearer), len(nearer)) == (72, 84)
    for is_strong, expected in ((False, (94, 112)), (True, (1, 56))):
        better = [
            c["spearman_smoothed_test_loss"] > c["spearman_train_loss_test_loss"]
            for c in cells
            if c["source"] == "gaussians" and (c["penalty"] == 100) == is_strong
        ]
        assert (sum(better), len(better)) == expected


def test_the_page_on_figure_3_says_what_carries_the_correlation():
    summary, cells = figure_3()
    for cell in cells:
        if cell["spearman_kappa_gap"] > 0.8:
            of_loss = abs(cell["spearman_train_loss_gap"])
            assert of_loss > cell["spearman_kappa_gap"] - 0.05
    weaker = [
        abs(c["spearman_kappa_gap_rest"]) < abs(c["spearman_kappa_gap"])
        for c in cells
        if c["n_train"] == 400 and c["source"] == "gaussians"
    ]
    assert (sum(weaker), len(weaker)) == (41, 42)
    for row in summary["labels"]:
        assert 0.365 < row["other_labels"][0] < 0.505
        assert row["other_labels"][-1] < 0.0105


def test_the_table_of_measures_and_questions():
    sys.path.insert(0, str(DOCS.parent))
    try:
        from worth_table import MEASURES, table
    finally:
        sys.path.pop(0)
    _, _, *rows, _, _ = table(DOCS / "results").splitlines()
    assert len(rows) == len(MEASURES)
    cells = {row.split(" | ")[0].removeprefix("| "): row.split(" | ") for row in rows}
    # As on the pages of the experiments.
    assert cells["PAC-Bayes flatness"][4].startswith("-0.42 (")
    assert cells["Hessian trace"][4].startswith("-0.26 (")
    squared = cells["relative flatness, std, squared error"]
    assert squared[4].startswith("0.57 (")
    path = DOCS / "results" / "figure5-full.json"
    found = json.loads(path.read_text(encoding="utf-8"))["summary"]
    (row,) = (
        row
        for row in found["spearman_with_gap"]
        if row["measure"] == "relative flatness std, squared error, fc3"
    )
    assert squared[1] == row["0.1"]


def test_the_page_on_what_it_is_worth_has_the_numbers_of_the_experiments():
    page = (DOCS.parent / "user_guide" / "what_is_it_worth.md").read_text("utf-8")

    def summary(name):
        path = DOCS / "results" / f"{name}-full.json"
        return json.loads(path.read_text(encoding="utf-8"))["summary"]

    def signed(value, digits=3):
        return f"{value:+.{digits}f}".replace("-", "\N{MINUS SIGN}")

    def with_interval(value, ends):
        return f"{signed(value)} [{signed(ends[0])}, {signed(ends[1])}]"

    selection = summary("selection")
    assert f"over {selection['searches']} searches" in page
    rules = {row["rule"]: row for row in selection["rules"]}
    row = rules["smoothed risk, calibrated"]
    found = with_interval(row["log_loss_difference"], row["log_loss_interval"])
    assert found in page
    (row,) = (
        row
        for row in selection["foretold"]
        if row["rule"] == "smoothed risk, density" and row["verdict"] == "holds"
    )
    found = with_interval(row["log_loss_difference"], row["log_loss_interval"])
    assert found in page
    draws = {
        row["measure"]: row
        for row in selection["against_random"]
        if row["tolerance"] == "1se"
    }
    row = draws["kappa, mean of folds"]
    found = with_interval(row["log_loss_difference"], row["log_loss_interval"])
    assert found in page
    row = draws["cross-validated log-loss"]
    low, high = (-end for end in row["log_loss_interval"])
    value = -row["log_loss_difference"]
    assert f"{value:.3f} nats [{high:.3f}, {low:.3f}]" in page

    stopping = {
        (row["network"], row["rule"]): row["regret"]
        for row in summary("trajectories")["stopping"]
    }
    assert f"{stopping['cnn', 'smoothed risk, fc1, isotropic']:.2f} nats" in page
    own = stopping["mlp", "smoothed risk, input, isotropic"]
    assert f"{own:.2f} against {stopping['mlp', 'validation on 20%']:.2f}" in page

    layers = {
        row["column"]: row
        for row in summary("reparameterization")["correlations"]["layers"]
    }
    assert f"correlation {signed(layers['ks_se_fc3']['spearman_before'], 2)}" in page
    assert f"it is {signed(layers['ks_ce_fc3']['spearman_before'], 2)}" in page
