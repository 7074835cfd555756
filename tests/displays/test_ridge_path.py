"""The picture of the ridge path."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from sklearn.datasets import load_diabetes, load_digits
from sklearn.linear_model import Ridge

from sklearn_relflat import (
    RelativeFlatnessPathDisplay,
    RelativeFlatnessRidge,
    RelativeFlatnessRidgeCV,
    relative_flatness_path,
)
from tests.displays.looks import check_looks

DELTAS = [0.3, 0.01, 1.0]


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def data():
    return load_diabetes(return_X_y=True, as_frame=True)


def test_shows_a_line_for_each_coefficient(data):
    X, y = data
    ridge = RelativeFlatnessRidgeCV().fit(X, y)
    display = RelativeFlatnessPathDisplay.from_estimator(ridge, X, y, deltas=DELTAS)
    fits = [RelativeFlatnessRidge(delta).fit(X, y).coef_ for delta in sorted(DELTAS)]
    for i, line in enumerate(display.lines_):
        assert list(line.get_xdata()) == sorted(DELTAS)
        np.testing.assert_allclose(line.get_ydata(), [fit[i] for fit in fits])
    assert [line.get_label() for line in display.lines_] == list(X.columns)
    assert list(display.delta_line_.get_xdata()) == [ridge.delta_] * 2
    assert display.ax_.get_xscale() == "log"
    assert display.fill_ is None


def test_losses_enclose_the_flatness_term(data):
    X, y = data
    path = relative_flatness_path(X, y, deltas=DELTAS, return_measures=True)
    display = RelativeFlatnessPathDisplay.from_result(path, quantity="loss")
    order = np.argsort(DELTAS)
    loss, expected = (line.get_ydata() for line in display.lines_)
    np.testing.assert_array_equal(loss, path[3].loss[order])
    term = np.sort(DELTAS) ** 2 / (2 * 10) * path[3].relative_flatness[order]
    np.testing.assert_allclose(expected - loss, term)
    box = display.fill_.get_datalim(display.ax_.transData)
    assert (box.y0, box.y1) == (loss.min(), expected.max())
    assert r"$y^2$" in display.ax_.get_ylabel()
    assert display.delta_line_ is None


def test_several_targets_have_names(data):
    X, y = data
    both = np.column_stack([y, -y])
    path = relative_flatness_path(X, both, deltas=DELTAS)
    display = RelativeFlatnessPathDisplay.from_result(path)
    assert len(display.lines_) == 20
    assert display.names[0] == "0, target 0"
    assert display.names[-1] == "9, target 1"
    order = np.argsort(DELTAS)
    np.testing.assert_array_equal(display.coefs[13], path[1][1, 3, order])
    # More lines than can be named have no legend.
    assert display.legend_ is None


def test_default_radii_lie_around_that_of_the_estimator(data):
    display = RelativeFlatnessPathDisplay.from_estimator(
        RelativeFlatnessRidge(0.2), *data
    )
    assert display.deltas.min() < 0.2 < display.deltas.max()
    zero = RelativeFlatnessPathDisplay.from_estimator(RelativeFlatnessRidge(0), *data)
    assert zero.delta_line_ is None
    shown = RelativeFlatnessPathDisplay.from_estimator(
        RelativeFlatnessRidge(0), *data, deltas=[0.0, *DELTAS]
    )
    assert list(shown.delta_line_.get_xdata()) == [0, 0]


def test_options_of_the_fit_count(data):
    X, y = data
    weight = np.linspace(1, 2, len(y))
    display = RelativeFlatnessPathDisplay.from_estimator(
        RelativeFlatnessRidge(fit_intercept=False),
        X,
        y,
        deltas=DELTAS,
        sample_weight=weight,
    )
    expected = relative_flatness_path(
        X, y, deltas=sorted(DELTAS), fit_intercept=False, sample_weight=weight
    )
    np.testing.assert_allclose(display.coefs, expected[1])


def test_keywords_arrive(data):
    figure, ax = plt.subplots()
    display = RelativeFlatnessPathDisplay.from_estimator(
        RelativeFlatnessRidge(),
        *data,
        ax=ax,
        line_kwargs={"lw": 4},
        delta_kwargs={"c": "red"},
    )
    assert display.ax_ is ax
    assert display.figure_ is figure
    assert {line.get_linewidth() for line in display.lines_} == {4}
    assert display.delta_line_.get_color() == "red"


def test_what_cannot_be_drawn(data):
    X, y = data
    with pytest.raises(TypeError, match=r"expects a RelativeFlatnessRidge.*got Ridge"):
        RelativeFlatnessPathDisplay.from_estimator(Ridge(), X, y)
    with pytest.raises(TypeError, match=r"expects a Relative.*got .*RidgeCV.*Fit it"):
        RelativeFlatnessPathDisplay.from_estimator(RelativeFlatnessRidgeCV(), X, y)
    with pytest.raises(TypeError, match=r"flatness_path returned, got 3.*call"):
        RelativeFlatnessPathDisplay.from_result(3)
    path = relative_flatness_path(X, y, deltas=DELTAS)
    with pytest.raises(ValueError, match="return_measures=True"):
        RelativeFlatnessPathDisplay.from_result(path, quantity="loss")
    with pytest.raises(ValueError, match=r"one of .*got 'kappa'"):
        RelativeFlatnessPathDisplay.from_result(path, quantity="kappa")
    assert plt.get_fignums() == []


def test_frame_has_the_numbers(data):
    X, y = data
    frame = RelativeFlatnessPathDisplay.from_estimator(
        RelativeFlatnessRidge(), X, y, deltas=DELTAS
    ).frame()
    path = relative_flatness_path(X, y, deltas=sorted(DELTAS), return_measures=True)
    assert frame["delta"].tolist() == sorted(DELTAS)
    np.testing.assert_allclose(frame["bmi"], path[1][2])
    np.testing.assert_allclose(frame["loss"], path[3].loss)


@pytest.mark.parametrize("style", ["default", "dark_background"])
def test_looks(style, data):
    ridge = RelativeFlatnessRidge()
    with plt.style.context(style):
        for quantity in ("coefficients", "loss"):
            check_looks(
                RelativeFlatnessPathDisplay.from_estimator(
                    ridge, *data, quantity=quantity
                )
            )
        digits = load_digits(return_X_y=True)
        check_looks(RelativeFlatnessPathDisplay.from_estimator(ridge, *digits))
