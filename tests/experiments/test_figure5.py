"""LeNet5 to a series of training losses, and what is measured there."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from sklearn_relflat import hessian_trace, relative_flatness, smoothed_risk
from sklearn_relflat.experiments import _images, figure5
from sklearn_relflat.experiments._all_measures import (
    Columns,
    label_of,
    measure_network,
)
from sklearn_relflat.experiments._figure5_summary import measures_of, summary_of
from sklearn_relflat.experiments._images import load_images
from sklearn_relflat.experiments._lenet import (
    INITIALISATIONS,
    LeNet5,
    features_of,
    initialise,
    risk_of,
)
from sklearn_relflat.experiments._lenet_training import Recipe, train

QUICK = figure5.PRESETS["quick"]
TASK = figure5.tasks(QUICK)[0]
RECIPE = Recipe("adam", 0.01, 8, 0.0, "he", max_epochs=4, checks_per_epoch=4)


@pytest.fixture(scope="module")
def images():
    return load_images("digits", 300, 200, None)


def small_net():
    torch.manual_seed(0)
    return LeNet5(n_channels=1, size=8, kernel=3, widths=(32, 24))


def stops_of(images, thresholds, **changes):
    """Stops, and the risk of the network that came with each."""
    recipe = replace(RECIPE, **changes)
    return [
        (stop, risk_of(net, images.train, images.train_labels))
        for stop, net in train(recipe, small_net(), images, thresholds, 0)
    ]


# ---------------------------------------------------------------------------
# The factorial
# ---------------------------------------------------------------------------
def test_every_combination_is_run_once():
    config = figure5.PRESETS["full"]
    tasks = figure5.tasks(config)
    assert len(tasks) == 5 * 2 * 3 * 2 * 2 >= 110
    for name in figure5.HYPERPARAMETERS:
        counts = np.unique([task[name] for task in tasks], return_counts=True)[1]
        assert len(counts) > 1
        assert len(set(counts)) == 1


def test_the_first_tasks_are_a_factorial_of_their_own():
    tasks = figure5.tasks(figure5.PRESETS["full"])
    assert {task["initialisation"] for task in tasks[:24]} == {"default"}


# ---------------------------------------------------------------------------
# The network
# ---------------------------------------------------------------------------
def test_the_network_is_lenet5():
    net = LeNet5()
    assert sum(p.numel() for p in net.parameters()) == 62_006
    features = net.features(torch.zeros(2, 3, 32, 32))
    assert features["fc1"].shape == (2, 400)
    torch.testing.assert_close(features["outputs"], net(torch.zeros(2, 3, 32, 32)))


def test_features_are_what_enters_the_layers(images):
    net = small_net()
    (found,) = features_of(net, images.train, ("fc3",))
    expected = net.fc3(found)
    torch.testing.assert_close(net(images.train), expected)


@pytest.mark.parametrize(
    ("name", "gain"), [("he", math.sqrt(2)), ("lecun", 1.0), ("xavier", None)]
)
def test_initialisations_have_their_scale(name, gain):
    torch.manual_seed(0)
    net = LeNet5()
    initialise(net, name)
    weight = net.fc1.weight.detach()
    scale = math.sqrt(2 / (400 + 120)) if gain is None else gain / math.sqrt(400)
    assert weight.std().item() == pytest.approx(scale, rel=0.02)
    assert not net.fc1.bias.any()


def test_initialisations_differ_and_the_default_is_torchs():
    torch.manual_seed(0)
    net = LeNet5()
    before = net.fc2.weight.detach().clone()
    initialise(net, "default")
    assert torch.equal(net.fc2.weight, before)
    weights = []
    for name in INITIALISATIONS:
        initialise(net, name)
        weights.append(net.fc2.weight.detach().clone())
    for i, weight in enumerate(weights):
        assert not any(torch.equal(weight, other) for other in weights[:i])


def test_the_orthogonal_initialisation_is():
    net = LeNet5()
    initialise(net, "orthogonal")
    weight = net.fc2.weight.detach()
    torch.testing.assert_close(weight @ weight.T, torch.eye(84), atol=1e-5, rtol=0)


def test_the_risk_is_that_of_the_whole_sample(images):
    net = small_net()
    risk = risk_of(net, images.train.repeat(3, 1, 1, 1), images.train_labels.repeat(3))
    logits = net(images.train)
    expected = nn.functional.cross_entropy(logits, images.train_labels)
    assert risk.loss == pytest.approx(expected.item(), rel=1e-5)
    wrong = (logits.argmax(1) != images.train_labels).double().mean()
    assert risk.error == pytest.approx(wrong.item())


# ---------------------------------------------------------------------------
# Stopping
# ---------------------------------------------------------------------------
def test_the_network_is_handed_over_where_the_loss_first_falls_below(images):
    thresholds = (1.5, 0.8, 0.4)
    found = stops_of(images, thresholds, max_epochs=8)
    assert [stop.threshold for stop, _ in found] == list(thresholds)
    assert [stop.status for stop, _ in found] == ["reached"] * 3
    for i, (stop, risk) in enumerate(found):
        assert stop.risk == risk
        assert stop.risk.loss < stop.threshold
        assert i == 2 or stop.risk.loss >= thresholds[i + 1]
    epochs = [stop.epoch for stop, _ in found]
    assert epochs == sorted(set(epochs))


def test_two_thresholds_at_one_check_are_one_network(images):
    (first, _), (second, _) = stops_of(images, (1.5, 1.4999), checks_per_epoch=1)
    assert (first.status, second.status) == ("passed", "reached")
    assert first.risk == second.risk


def test_what_is_not_reached_is_missed(images):
    (first, _), (second, risk) = stops_of(images, (1.5, 1e-9))
    assert (first.status, second.status) == ("reached", "missed")
    assert second.risk == risk
    assert second.epoch == RECIPE.max_epochs


def test_divergence_is_told(images):
    found = stops_of(images, (1.0, 0.5), optimizer="sgd", learning_rate=1e12)
    assert [stop.status for stop, _ in found] == ["diverged"] * 2
    assert [stop.risk for stop, _ in found] == [None] * 2


def test_a_diverged_run_is_recorded():
    config = replace(QUICK, n_train=100, learning_rates=((1e12,), (0.005,)))
    records = figure5.measure(TASK, config, 0, None)
    assert [r["threshold"] for r in records] == list(config.thresholds)
    for record in records:
        assert record["status"] == "diverged"
        assert record["train_loss"] is None
        assert record["reason"] == "the loss was not finite"


def test_initial_weights_do_not_depend_on_the_other_hyperparameters(images):
    def weights(**changes):
        """First batch's network, before it has moved far."""
        recipe = replace(RECIPE, learning_rate=0.0, max_epochs=1, **changes)
        (_, net), *_ = train(recipe, small_net(), images, (1e-9,), 0)
        return net.fc1.weight.detach().clone()

    assert torch.equal(weights(), weights(optimizer="sgd", batch_size=32))
    assert not torch.equal(weights(), weights(initialisation="lecun"))


# ---------------------------------------------------------------------------
# Measures
# ---------------------------------------------------------------------------
@pytest.fixture(scope="module")
def records():
    config = replace(QUICK, thresholds=(1.0,))
    return figure5.measure(TASK, config, 0, None)


def test_a_record_is_complete(records):
    (record,) = records
    assert record["status"] == "reached"
    assert "reasons" not in record
    measures = measures_of(records, figure5.HYPERPARAMETERS)
    # Relative flatness twice, for two losses, on five layers; traces and norms of them
    # and of all; six measures of the network; six smoothed risks, two smoothed errors.
    assert len(measures) == 2 * 2 * 5 + 6 + 6 + 6 + 6 + 2
    assert all(math.isfinite(record[name]) for name in measures)
    assert record["gap"] == pytest.approx(
        record["test_loss"] - record["train_loss"], abs=1e-4
    )
    assert len({label_of(name) for name in measures}) == len(measures)


def test_the_columns_are_the_public_measures(images):
    net = small_net()
    columns = measure_network(net, images.train, images.train_labels, 100, 60)
    cheap = (net, images.train[:100], images.train_labels[:100])
    kappa = relative_flatness(
        *cheap, layer="fc2", loss="squared_error", normalize="std"
    )
    assert columns["ks_se_fc2"] == pytest.approx(kappa.value, rel=1e-4)
    trace = hessian_trace(*cheap, layer="fc3", loss="cross_entropy")
    assert columns["tr_fc3"] == pytest.approx(trace.value, rel=1e-4)
    risk = smoothed_risk(
        *cheap,
        layer="fc1",
        radius=columns["r_fc1"],
        loss="cross_entropy",
        n_draws=4,
        random_state=0,
    )
    assert columns["s_fc1"] == pytest.approx(risk.value, rel=1e-3)
    layers = ("conv1", "conv2", "fc1", "fc2", "fc3")
    total = sum(columns[f"tr_{layer}"] for layer in layers)
    assert columns["tr_all"] == pytest.approx(total, rel=1e-4)


def test_a_measure_that_fails_has_a_reason():
    def fail():
        raise ValueError("Expected something else.")

    columns = Columns()
    columns.add(["a", "b"], fail)
    columns.add(["c", "d"], lambda: [1.23456789, math.nan])
    assert columns.finished() == {
        "a": None,
        "b": None,
        "c": 1.2346,
        "d": None,
        "reasons": "a: Expected something else.; d: not finite",
    }


def test_the_images_are_standardised(monkeypatch, tmp_path):
    def load(folder, *, subset, n_samples, return_X_y):
        assert (folder, return_X_y) == (tmp_path, True)
        value = {"train": 0.493839443, "test": 1.0}[subset]
        return np.full((n_samples, 3, 32, 32), value, np.float32), np.arange(n_samples)

    monkeypatch.setattr(_images, "load_cifar10", load)
    images = load_images.__wrapped__("cifar10", 2, 3, tmp_path)
    assert images.train.shape == (2, 3, 32, 32)
    assert not images.train[:, 0].any()
    expected = (1 - 0.493839443) / 0.244076163
    assert images.test[0, 0, 0, 0].item() == pytest.approx(expected, rel=1e-6)
    assert images.test_labels.tolist() == [0, 1, 2]


def test_cifar10_needs_its_folder():
    with pytest.raises(ValueError, match="Pass --data DIR, or use --preset quick"):
        load_images("cifar10", 2, 3, None)


# ---------------------------------------------------------------------------
# Summary
# ---------------------------------------------------------------------------
def made_up_records():
    """Sixteen runs: one measure that rises with the gap, one that falls."""
    records = []
    for i, task in enumerate(
        {"optimizer": o, "batch_size": b, "initialisation": s}
        for o in ("sgd", "adam")
        for b in (32, 64)
        for s in "abcd"
    ):
        gap = 1.0 + (7 * i) % 16
        records.append(
            task
            | {"threshold": 0.5, "status": "reached", "train_loss": 0.4 + 0.001 * i}
            | {"test_loss": gap + 0.4, "test_error": 1 / gap, "gap": gap}
            | {"wn_all": gap**3, "fr": -gap, "r_fc1": 1.0}
        )
        records.append(
            task | {"threshold": 0.1, "status": "diverged", "train_loss": None}
        )
    return records


def test_the_summary_of_made_up_records():
    names = ("optimizer", "batch_size", "initialisation")
    summary = summary_of(made_up_records(), (0.5, 0.1), names, names[:2], 0)
    first, second = summary["stops"]
    assert (first["reached"], first["diverged"]) == (16, 0)
    assert (second["reached"], second["diverged"]) == (0, 16)
    assert first["gap_range"] == [1, 16]
    assert second["gap_range"] == [None, None]
    norm, fisher = summary["correlations"]["0.5"]
    assert not summary["correlations"]["0.1"]
    for row, sign in ((norm, 1), (fisher, -1)):
        assert row["n"] == 16
        assert row["spearman_gap"] == row["kendall_gap"] == sign
        assert row["granulated_kendall_gap"] == sign
        assert row["spearman_test_error"] == -sign
        assert row["spearman_gap_within_strata"] == sign
        assert row["spearman_gap_interval"] == [sign, sign]
        assert row["sign_error_gap"] == (1 - sign) / 2
    assert 0.5 < norm["pearson_gap"] < 1
    cells = {row["measure"]: row["0.5"] for row in summary["spearman_with_gap"]}
    assert cells == {
        "weight norm, all": "1.00 (1.00 to 1.00)",
        "Fisher-Rao norm": "-1.00 (-1.00 to -1.00)",
    }


def test_the_figure_has_a_panel_for_each_target():
    pytest.importorskip("matplotlib")
    names = ("optimizer", "batch_size", "initialisation")
    summary = summary_of(made_up_records(), (0.5, 0.1), names, names[:2], 0)
    figure = figure5.draw(summary)
    assert [ax.get_title() for ax in figure.axes] == [
        "test loss minus training loss",
        "test loss",
        "test error",
    ]
