"""The picture of the terms of the gap."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import same_color
from sklearn.datasets import load_diabetes
from sklearn.linear_model import LinearRegression

from sklearn_relflat import GeneralizationBoundDisplay, generalization_bound
from tests.displays.looks import check_looks

DELTAS = [0.05, 0.1, 0.3]


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def fitted():
    X, y = load_diabetes(return_X_y=True)
    return LinearRegression().fit(X, y), X, y


@pytest.fixture(scope="module")
def result(fitted):
    return generalization_bound(*fitted, delta=DELTAS, n_splits=5, random_state=0)


def test_terms_are_stacked(result):
    display = GeneralizationBoundDisplay.from_result(result)
    first, second = display.representativeness_, display.flatness_term_
    np.testing.assert_allclose(
        [bar.get_height() for bar in first], result.representativeness
    )
    np.testing.assert_allclose(
        [bar.get_height() for bar in second], result.flatness_term
    )
    # One of them is negative here: the flatness term then stands on zero.
    assert result.representativeness.min() < 0 < result.representativeness.max()
    np.testing.assert_allclose(
        [bar.get_y() for bar in second], np.maximum(result.representativeness, 0)
    )
    line, _, (bars,) = display.errorbar_.lines
    np.testing.assert_allclose(line.get_ydata(), result.bound)
    lengths = [segment[1, 1] - segment[0, 1] for segment in bars.get_segments()]
    np.testing.assert_allclose(lengths, 4 * result.representativeness_stderr)


def test_gap_is_beside_them(result):
    display = GeneralizationBoundDisplay.from_result(result, measured_gap=12.0)
    (gap,), (measured,) = display.gap_, display.measured_
    assert gap.get_height() == result.cross_validated_gap
    assert measured.get_height() == 12.0
    assert gap.get_x() > display.representativeness_[-1].get_x() + 1
    names = [tick.get_text() for tick in display.ax_.get_xticklabels()]
    assert names == ["0.05", "0.1", "0.3", "gap", "gap"]
    # The mean of 5 splits that hold out 20 % each, by Nadeau and Bengio.
    factor = np.sqrt(1 / 5 + 0.2 / 0.8)
    assert display.cross_validated_gap_stderr == pytest.approx(
        factor * result.cross_validated_gap_std, rel=0.01
    )


def test_one_radius_is_enough(fitted):
    options = {"n_splits": 3, "random_state": 0}
    display = GeneralizationBoundDisplay.from_estimator(
        *fitted, delta=0.1, options=options
    )
    expected = generalization_bound(*fitted, delta=0.1, **options)
    assert display.flatness_term.tolist() == [expected.flatness_term]
    assert display.measured_ is None
    assert len(display.representativeness_) == 1


def test_keywords_arrive(result):
    figure, ax = plt.subplots()
    display = GeneralizationBoundDisplay.from_result(
        result, ax=ax, bar_kwargs={"fc": "red"}, errorbar_kwargs={"c": "green"}
    )
    assert display.ax_ is ax
    assert display.figure_ is figure
    assert same_color(display.gap_[0].get_facecolor(), "red")
    assert display.errorbar_.lines[0].get_color() == "green"


@pytest.mark.parametrize("wrong", [3, {}])
def test_result_of_another_kind(wrong):
    with pytest.raises(TypeError, match=r"result of generalization_bound, got .*call"):
        GeneralizationBoundDisplay.from_result(wrong)


def test_frame_has_the_numbers(result):
    frame = GeneralizationBoundDisplay.from_result(result).frame()
    for name in ("delta", "representativeness", "flatness_term", "bound"):
        np.testing.assert_array_equal(frame[name], result[name])
    np.testing.assert_array_equal(frame["stderr"], result.representativeness_stderr)
    assert set(frame["cross_validated_gap"]) == {result.cross_validated_gap}


@pytest.mark.parametrize("style", ["default", "dark_background"])
def test_looks(style, result, fitted):
    with plt.style.context(style):
        check_looks(GeneralizationBoundDisplay.from_result(result, measured_gap=12.0))
        many = np.geomspace(0.01, 0.3, 15)
        options = {"n_splits": 3, "random_state": 0}
        check_looks(
            GeneralizationBoundDisplay.from_estimator(
                *fitted, delta=many, options=options
            )
        )
