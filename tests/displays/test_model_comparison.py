"""The picture of models side by side."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import scale

from sklearn_relflat import ModelComparisonDisplay, compare_models
from sklearn_relflat._displays.labels import name_in_short
from tests.displays.looks import check_looks

X, y = load_breast_cancer(return_X_y=True)
X = scale(X)


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


def made(Cs=(0.01, 1, 100), with_test=True, name="C = {:g}"):
    models = {name.format(C): LogisticRegression(C=C).fit(X[:200], y[:200]) for C in Cs}
    more = {"X_test": X[200:], "y_test": y[200:]} if with_test else {}
    return compare_models(models, X[:200], y[:200], **more)


@pytest.fixture(scope="module")
def result():
    return made()


@pytest.mark.parametrize("with_test", [True, False])
def test_points_and_errors_are_those_of_the_result(with_test):
    result = made(with_test=with_test)
    display = ModelComparisonDisplay.from_result(result)
    rows = result.rows()
    columns = ["training_loss", "smoothed_risk", *["test_loss"] * with_test]
    assert list(display.points_) == columns
    for column in columns:
        x, place = display.points_[column].get_data()
        np.testing.assert_array_equal(x, [row[column] for row in rows])
        np.testing.assert_array_equal(np.round(place), [0, 1, 2])
    (bars,) = display.errors_["smoothed_risk"].lines[2]
    for row, bar in zip(rows, bars.get_segments(), strict=True):
        half = 2 * np.hypot(row["difference_stderr"], row["difference_samples_stderr"])
        middle = row["smoothed_risk"]
        np.testing.assert_allclose(bar[:, 0], [middle - half, middle + half])
    assert ("test_loss" in display.errors_) == with_test


def test_the_best_model_is_marked(result):
    display = ModelComparisonDisplay.from_result(result)
    at = [row["model"] for row in result.rows()].index(result.best)
    risk = result.rows()[at]["smoothed_risk"]
    np.testing.assert_array_equal(display.best_.get_xdata(), [risk, risk])
    labels = display.ax_.get_yticklabels()
    assert [label.get_fontweight() == "bold" for label in labels] == [
        i == at for i in range(3)
    ]
    assert labels[at].get_text() == f"{result.best} *"
    # Its bar has no length.
    (bars,) = display.errors_["smoothed_risk"].lines[2]
    np.testing.assert_array_equal(bars.get_segments()[at][:, 0], [risk, risk])


def test_keywords_and_axes_of_the_user(result):
    _, ax = plt.subplots()
    display = ModelComparisonDisplay.from_result(
        result, ax=ax, point_kwargs={"ms": 12}, error_kwargs={"capsize": 9}
    )
    assert display.ax_ is ax
    assert display.points_["smoothed_risk"].get_markersize() == 12
    assert display.errors_["smoothed_risk"].lines[1][0].get_markersize() == 18


def test_other_things_are_refused():
    with pytest.raises(TypeError, match="a result of compare_models, got 3"):
        ModelComparisonDisplay.from_result(3)


def test_frame(result):
    frame = ModelComparisonDisplay.from_result(result).frame()
    assert list(frame) == [
        "model",
        "training_loss",
        "smoothed_risk",
        "smoothed_risk_stderr",
        "test_loss",
        "test_loss_stderr",
    ]
    assert frame["model"].tolist() == [row["model"] for row in result.rows()]
    expected = [row["test_loss_stderr"] for row in result.rows()]
    assert frame["test_loss_stderr"].tolist() == expected


@pytest.mark.parametrize("style", ["default", "dark_background"])
def test_looks(style, result):
    with plt.style.context(style):
        check_looks(ModelComparisonDisplay.from_result(result))


def test_many_models_with_long_names_keep_apart():
    found = made(
        np.geomspace(1e-3, 1e3, 20),
        name="logisticregression__C={:g}, scaled, liblinear",
    )
    check_looks(ModelComparisonDisplay.from_result(found))


def test_names_in_short():
    assert (
        name_in_short("net__lr=0.1, scale__with_mean=False")
        == "lr=0.1, with_mean=False"
    )
    assert name_in_short("my__model") == "my__model"
    long = "a" * 30 + "b" * 30
    assert name_in_short(long, 13) == "aaaaa...bbbbb"
