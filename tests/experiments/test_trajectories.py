"""The smoothed risk along a training, and stopping by it."""

from dataclasses import replace

import pytest
import torch

from sklearn_relflat.experiments import trajectories
from sklearn_relflat.experiments._trajectories_summary import summary_of

CONFIG = replace(trajectories.PRESETS["quick"], n_train=100, epochs=(1, 3))


def task(network, held_out):
    return {"run": 0, "network": network, "optimizer": "adam", "held_out": held_out}


@pytest.mark.parametrize("network", ["cnn", "mlp"])
def test_a_training_on_the_whole_sample_has_the_smoothed_risk(network):
    records = trajectories.measure(task(network, 0.0), CONFIG, 0, None)
    assert [record["epoch"] for record in records] == [1, 3]
    n_layers = len(trajectories.LAYERS[network])
    left_out = 2 if network == "cnn" else 0
    for record in records:
        risks = [name for name in record if name.startswith("s_")]
        assert len(risks) == 3 * n_layers - left_out
        assert all(record[name] > 0 for name in risks)
        assert all(record[f"r_{name[2:]}"] > 0 for name in risks)
        assert "held_out_loss" not in record


@pytest.mark.parametrize("network", ["cnn", "mlp"])
def test_a_training_with_a_validation_sample_has_its_loss(network):
    records = trajectories.measure(task(network, 0.2), CONFIG, 0, None)
    whole = trajectories.measure(task(network, 0.0), CONFIG, 0, None)
    for record, other in zip(records, whole, strict=True):
        assert record["held_out_loss"] > 0
        assert not [name for name in record if name.startswith("s_")]
        # Fewer images: another network from the same initial weights.
        assert record["test_loss"] != other["test_loss"]


def test_pooled_inputs_are_means_over_squares():
    images = trajectories.load_images("digits", 5, 5, None)
    flat = trajectories._flattened(images, 4)
    expected = images.train[:, 0, :4, :4].mean((1, 2))
    assert flat.train.shape == (5, 4)
    torch.testing.assert_close(flat.train[:, 0], expected)


def records_of(held_out, rows):
    names = ("epoch", "test_loss", "train_loss", "test_error")
    base = {"network": "mlp", "optimizer": "adam", "run": 0, "held_out": held_out}
    return [base | dict(zip(names, row, strict=True)) for row in rows]


def test_regrets_by_hand():
    whole = records_of(
        0.0, [(1, 2.0, 2.0, 0.5), (2, 1.0, 1.5, 0.4), (3, 3.0, 1.0, 0.3)]
    )
    for record, risk in zip(whole, (2.5, 1.5, 2.0), strict=True):
        record |= {"s_fc1_isotropic": risk, "r_fc1_isotropic": 0.5}
    part = records_of(0.2, [(1, 2.2, 2.0, 0.5), (2, 1.4, 1.5, 0.4), (3, 2.0, 1.0, 0.3)])
    for record, loss in zip(part, (2.0, 1.9, 1.8), strict=True):
        record["held_out_loss"] = loss
    summary = summary_of(whole + part, (0.2,), 0)
    regrets = {row["rule"]: row["regret"] for row in summary["stopping"]}
    assert regrets == {
        "smoothed risk, fc1, isotropic": 0.0,
        "training loss": 2.0,
        "last epoch": 2.0,
        "validation on 20%": 1.0,
    }
    epochs = {row["rule"]: row["epochs"] for row in summary["stopping"]}
    assert epochs["smoothed risk, fc1, isotropic"] == [2]
    (row,) = summary["prediction"]
    # Ranks 3, 1, 2 against 2, 1, 3.
    assert row["spearman"] == pytest.approx(0.5)
    assert row["radius_range"] == [0.5, 0.5]


def test_the_curves_are_drawn():
    pytest.importorskip("matplotlib")
    whole = records_of(0.0, [(1, 2.0, 2.0, 0.5), (2, 1.0, 1.5, 0.4)])
    for record, risk in zip(whole, (2.0, 1.8), strict=True):
        record |= {"s_fc1_isotropic": risk, "r_fc1_isotropic": 0.5}
    figure = trajectories.draw(summary_of(whole, (), 0))
    assert figure.axes[0].get_title() == "MLP, Adam"
