"""The picture of a training."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch import NeuralNetClassifier
from torch import nn

from sklearn_relflat import TrainingDisplay
from sklearn_relflat.callbacks import RelativeFlatnessMonitor, SmoothedRiskMonitor
from tests.displays.looks import check_looks


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def pipeline():
    X, y = load_breast_cancer(return_X_y=True)
    torch.manual_seed(0)
    net = NeuralNetClassifier(
        nn.Sequential(nn.Linear(30, 8), nn.ReLU(), nn.Linear(8, 2)),
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.Adam,
        lr=0.03,
        max_epochs=8,
        callbacks=[
            ("risk", SmoothedRiskMonitor(radius=0.5, n_draws=4)),
            ("flatness", RelativeFlatnessMonitor(on="both")),
        ],
        verbose=0,
    )
    scaler = StandardScaler().set_output(transform="default")
    model = make_pipeline(scaler, net)
    return model.fit(X[:200].astype("float32"), y[:200])


def test_shows_what_was_recorded(pipeline):
    history = pipeline[-1].history
    display = TrainingDisplay.from_estimator(pipeline)
    columns = [
        "train_loss",
        "valid_loss",
        "smoothed_risk",
        "train_flatness",
        "valid_flatness",
    ]
    assert sorted(display.lines_) == sorted(columns)
    for name in columns:
        epochs, values = display.lines_[name].get_data()
        assert list(epochs) == list(history[:, "epoch"])
        assert list(values) == list(history[:, name])
    top, below = display.axes_
    assert display.ax_ is top
    assert display.lines_["smoothed_risk"].axes is top
    assert display.lines_["train_flatness"].axes is below
    assert below.get_xlabel() == "epoch"
    assert top.get_xlim() == below.get_xlim()


def test_marks_the_smallest_estimates_of_the_risk(pipeline):
    history = pipeline[-1].history
    display = TrainingDisplay.from_history(history)
    assert set(display.best_) == {"valid_loss", "smoothed_risk"}
    for name, mark in display.best_.items():
        (epoch,), (value,) = mark.get_data()
        assert value == min(history[:, name])
        assert value == history[int(epoch) - 1, name]


def test_one_panel_is_enough_for_one_kind():
    rows = [{"epoch": 1, "train_loss": 1.0}, {"epoch": 2, "train_loss": 0.5}]
    figure, ax = plt.subplots()
    display = TrainingDisplay.from_history(rows, ax=ax)
    assert list(display.axes_) == [ax]
    assert display.figure_ is figure
    assert display.best_ == {}
    other = TrainingDisplay.from_history([{"epoch": 1, "a_flatness": 1.0}])
    assert len(other.axes_) == 1
    assert "flatness" in other.ax_.get_ylabel()


def test_columns_of_other_names():
    rows = [{"epoch": i, "mine": 1.0 / i, "kappa": float(i)} for i in (1, 2, 3)]
    display = TrainingDisplay.from_history(rows, losses=["mine"], flatness=["kappa"])
    assert list(display.losses["mine"]) == [1.0, 0.5, 1 / 3]
    assert list(display.flatness["kappa"]) == [1.0, 2.0, 3.0]


def test_given_axes_are_divided_or_used(pipeline):
    figure, (left, right) = plt.subplots(1, 2)
    display = TrainingDisplay.from_estimator(pipeline, ax=left)
    assert not left.axison
    assert display.figure_ is figure
    figure.draw_without_rendering()
    for panel in display.axes_:
        assert panel.get_position().x1 < right.get_position().x0
    _, pair = plt.subplots(2)
    assert list(display.plot(pair).axes_) == list(pair)


def test_axes_that_cannot_be_divided(pipeline):
    ax = plt.figure().add_axes((0.1, 0.1, 0.8, 0.8))
    with pytest.raises(TypeError, match=r"divide them into 2 panels, got .*Give 2"):
        TrainingDisplay.from_estimator(pipeline, ax=ax)


def test_keywords_arrive(pipeline):
    display = TrainingDisplay.from_estimator(
        pipeline, line_kwargs={"lw": 4}, best_kwargs={"ms": 20}
    )
    assert {line.get_linewidth() for line in display.lines_.values()} == {4}
    assert {mark.get_markersize() for mark in display.best_.values()} == {20}


def test_missing_columns_and_histories():
    message = r"expects columns \['risk'\] .*got \['epoch'\].*SmoothedRiskMonitor"
    with pytest.raises(ValueError, match=message):
        TrainingDisplay.from_history([{"epoch": 1}], losses=["risk"])
    with pytest.raises(ValueError, match=r"at least one epoch, got \[\]"):
        TrainingDisplay.from_history([])
    with pytest.raises(TypeError, match=r"expects a fitted skorch net.*got Standard"):
        TrainingDisplay.from_estimator(StandardScaler())


def test_frame_has_the_numbers(pipeline):
    history = pipeline[-1].history
    frame = TrainingDisplay.from_estimator(pipeline).frame()
    assert frame["epoch"].tolist() == list(history[:, "epoch"])
    np.testing.assert_array_equal(frame["valid_flatness"], history[:, "valid_flatness"])
    assert len(frame.columns) == 6


@pytest.mark.parametrize("style", ["default", "dark_background"])
def test_looks(style, pipeline):
    with plt.style.context(style):
        check_looks(TrainingDisplay.from_estimator(pipeline))
        check_looks(TrainingDisplay.from_estimator(pipeline, flatness=[]))
