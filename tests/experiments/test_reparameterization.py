"""The same networks with other weights, and what the measures make of them."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from sklearn_relflat.experiments import figure5, reparameterization
from sklearn_relflat.experiments._figure5_summary import measures_of
from sklearn_relflat.experiments._images import load_images
from sklearn_relflat.experiments._lenet import lenet_for
from sklearn_relflat.experiments._reparameterization_summary import (
    DRAWN,
    NO_MEASURES,
    by_theory,
    summary_of,
)

TINY = replace(
    reparameterization.PRESETS["quick"], n_train=150, n_test=200, thresholds=(0.5,)
)
TASK = reparameterization.tasks(TINY)[-1]


@pytest.fixture(scope="module")
def records():
    return reparameterization.measure(TASK, TINY, 0, None)


# ---------------------------------------------------------------------------
# One run
# ---------------------------------------------------------------------------
def test_every_hyperparameter_varies():
    config = reparameterization.PRESETS["full"]
    tasks = reparameterization.tasks(config)
    assert len(tasks) == 48
    for name in figure5.HYPERPARAMETERS:
        assert len({task[name] for task in tasks}) > 1


def test_the_function_does_not_move(records):
    assert [record["weights"] for record in records] == [
        "as trained",
        "layers",
        "neurons",
    ]
    for record in records[1:]:
        assert record["gap"] == records[0]["gap"] > 0
        assert record["output_change"] < 1e-5
        assert record["loss_change"] < 1e-5
        assert record["gap_change"] < 1e-5


def test_relative_flatness_stays_and_the_trace_moves_by_the_square(records):
    before, after, _ = records
    factor = after["largest_factor"]
    assert 5 <= after["smallest_factor"] == factor <= 25
    for column in ("k_ce_fc2", "k_ce_fc3", "ks_ce_fc2", "ks_se_fc3"):
        assert after[column] == pytest.approx(before[column], rel=1e-5)
        assert after["changes"][column] < 1e-5
    # The fourth layer is divided, the fifth multiplied: its curvature is divided.
    assert after["tr_fc2"] == pytest.approx(before["tr_fc2"] * factor**2, rel=1e-3)
    assert after["tr_fc3"] == pytest.approx(before["tr_fc3"] / factor**2, rel=1e-3)
    assert after["wn_fc2"] == pytest.approx(before["wn_fc2"] / factor**2, rel=1e-3)
    expected = factor**2 - 1
    assert after["changes"]["tr_fc2"] == pytest.approx(expected, rel=1e-2)


def test_neurons_are_divided_and_multiplied(records):
    after = records[2]
    assert 1 / 25 <= after["smallest_factor"] <= 1 / 5
    assert 5 <= after["largest_factor"] <= 25
    assert after["changes"]["k_ce_fc3"] > 1
    assert after["changes"]["k_ce_fc2"] < 1e-5
    assert after["changes"]["ks_ce_fc3"] < 1e-5


def test_measures_do_what_theory_says(records):
    measures = measures_of(records, [*figure5.HYPERPARAMETERS, *NO_MEASURES])
    assert set(DRAWN) < set(measures)
    effects = {"layers": set(), "neurons": set()}
    for record in records[1:]:
        for name in measures:
            effect = by_theory(name, record["weights"])
            change = record["changes"][name]
            effects[record["weights"]].add(effect)
            if effect == "moves":
                assert change > 0.1, name
            else:
                assert change < 1e-4, name
    for found in effects.values():
        assert found == {"untouched", "invariant", "moves"}


def test_factors_are_those_of_the_weights():
    images = load_images("digits", 150, 200, None)
    torch.manual_seed(0)
    net = lenet_for("digits")
    own = {name: p.detach().clone() for name, p in net.named_parameters()}
    twins = reparameterization.rescaled_twins(net, (5.0, 25.0), images, 0)
    for twin, factors in twins.values():
        divided = torch.tensor(factors, dtype=torch.float32)
        torch.testing.assert_close(
            twin.fc2.weight.detach() * divided[:, None], own["fc2.weight"]
        )
        torch.testing.assert_close(twin.fc2.bias.detach() * divided, own["fc2.bias"])
        torch.testing.assert_close(
            twin.fc3.weight.detach() / divided, own["fc3.weight"]
        )
        torch.testing.assert_close(twin.fc1.weight.detach(), own["fc1.weight"])
    many = twins["neurons"][1]
    assert len(set(many)) == 24
    assert (many > 1).sum() == 12
    for name, parameter in net.named_parameters():
        assert torch.equal(parameter, own[name])


def test_factors_depend_on_the_run(records):
    task = reparameterization.tasks(TINY)[-2]
    other = reparameterization.measure(task, TINY, 0, None)
    assert other[1]["largest_factor"] != records[1]["largest_factor"]
    assert other[2]["largest_factor"] != records[2]["largest_factor"]


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"learning_rates": ((1e12, 1e12),) * 2}, "diverged"),
        ({"max_epochs": 1, "thresholds": (1e-9,)}, "missed"),
    ],
)
def test_what_is_not_reached_is_recorded(changes, status):
    config = replace(TINY, **changes)
    task = reparameterization.tasks(config)[0]
    (record,) = reparameterization.measure(task, config, 0, None)
    assert record["weights"] == "as trained"
    assert record["status"] == status
    assert "changes" not in record


# ---------------------------------------------------------------------------
# Summary
# ---------------------------------------------------------------------------
def made_up_records():
    """Eight runs; kappa tells the gap, and the trace until it is turned round."""
    records = []
    for i in range(8):
        gap = 1.0 + (3 * i) % 8
        run = {"run": i, "status": "reached", "train_loss": 0.09 + 0.001 * (i % 3)}
        run |= {"test_loss": gap, "test_error": 0.5, "gap": gap}
        values = {"ks_ce_fc3": gap, "tr_fc3": gap, "wn_fc1": 5.0 - gap}
        records.append(run | {"weights": "as trained"} | values)
        moved = {"layers": 10 - gap, "neurons": 2 * gap}
        for weights, trace in moved.items():
            change = abs(trace / gap - 1)
            records.append(
                run
                | {"weights": weights, "smallest_factor": 5.0 + i}
                | {"largest_factor": 6.0 + i, "output_change": 1e-7 * i}
                | {"loss_change": 2e-7, "gap_change": 3e-8}
                | (values | {"tr_fc3": trace})
                | {"changes": {"ks_ce_fc3": 0.0, "tr_fc3": change, "wn_fc1": 1e-9}}
            )
    failed = {"run": 8, "weights": "as trained", "status": "missed"}
    return [*records, failed | {"train_loss": 0.3}]


def test_the_summary_of_made_up_records():
    summary = summary_of(made_up_records(), ["run"], 0)
    (counts,) = summary["runs"]
    assert (counts["trainings"], counts["reached"], counts["missed"]) == (9, 8, 1)
    assert counts["gap_range"] == [1.0, 8.0]
    layers, neurons = summary["function"]
    assert layers["factors"] == [5.0, 13.0]
    assert layers["largest_output_change"] == pytest.approx(7e-7)
    assert layers["largest_change_of_untouched_measures"] == 1e-9
    assert neurons["rescaled"] == "neurons"
    kappa, trace, norm = summary["correlations"]["layers"]
    assert (kappa["by_theory"], trace["by_theory"]) == ("invariant", "moves")
    assert norm["by_theory"] == "untouched"
    for name in ("spearman", "kendall", "pearson"):
        assert kappa[f"{name}_before"] == kappa[f"{name}_after"] == 1
        assert trace[f"{name}_before"] == 1
        assert trace[f"{name}_after"] == norm[f"{name}_after"] == -1
        assert trace[f"{name}_after_interval"] == [-1, -1]
    assert (kappa["difference"], kappa["difference_interval"]) == (0, [0, 0])
    assert (trace["difference"], trace["difference_interval"]) == (-2, [-2, -2])
    gaps = np.arange(1.0, 9.0)
    expected = np.median(np.abs((10 - gaps) / gaps - 1))
    assert trace["median_change"] == pytest.approx(expected, rel=1e-2)
    assert trace["largest_change"] == 8
    doubled = summary["correlations"]["neurons"][1]
    assert (doubled["spearman_after"], doubled["median_change"]) == (1, 1)
    rows = summary["layers_rescaled"]
    assert [row["measure"] for row in rows] == [
        "relative flatness std, cross-entropy, fc3",
        "Hessian trace, fc3",
    ]
    assert rows[1]["after_minus_before"] == "-2.00 (-2.00 to -2.00)"


def test_a_run_counts_before_and_after_or_not_at_all():
    records = made_up_records()
    records[1]["tr_fc3"] = None
    records[1]["changes"]["tr_fc3"] = None
    found = summary_of(records, ["run"], 0)["correlations"]
    kappa, trace, _ = found["layers"]
    assert (kappa["n"], trace["n"]) == (8, 7)
    assert found["neurons"][1]["n"] == 8


def test_too_few_runs_have_no_correlations():
    summary = summary_of(made_up_records()[:9], ["run"], 0)
    assert summary["runs"][0]["reached"] == 3
    assert not summary["correlations"]
    assert not summary["function"]


def test_the_figure_has_a_line_for_each_measure():
    pytest.importorskip("matplotlib")
    figure = reparameterization.draw(summary_of(made_up_records(), ["run"], 0))
    left, right = figure.axes
    assert [label.get_text() for label in left.get_yticklabels()] == [
        "relative flatness std, cross-entropy, fc3",
        "Hessian trace, fc3",
    ]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "as trained",
        "layers rescaled",
        "neurons rescaled",
    ]
    assert len(right.lines) == 3
