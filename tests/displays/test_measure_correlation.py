"""The picture of coefficients with their intervals."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from sklearn_relflat import MeasureCorrelationDisplay, rank_correlations
from tests.displays.looks import check_looks

SIGNED = ["kendall", "pearson", "spearman", "partial_spearman", "granulated_kendall"]


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


def made(n_resamples=50, **options):
    """Result of five measures, from the best to one that says nothing."""
    rng = np.random.default_rng(0)
    lr = np.repeat([0.01, 0.1, 1.0], 8)
    batch = np.tile([16, 32, 64, 128], 6)
    gap = np.log(lr) + rng.normal(size=24)
    runs = {
        "lr": lr,
        "batch": batch,
        "loss": rng.normal(size=24),
        "gap": gap,
        "constant": np.ones(24),
        "wrong": -gap + rng.normal(size=24),
        "noise": rng.normal(size=24),
        "good": gap + 0.2 * rng.normal(size=24),
        "fair": gap + rng.normal(size=24),
    }
    return rank_correlations(
        runs,
        ["constant", "wrong", "noise", "good", "fair"],
        "gap",
        ["lr", "batch"],
        control="loss",
        n_resamples=n_resamples,
        **options,
    )


@pytest.fixture(scope="module")
def result():
    return made()


def cell(result, measure, coefficient):
    """Row of the result."""
    (row,) = (
        row
        for row in result.rows()
        if (row["measure"], row["coefficient"]) == (measure, coefficient)
    )
    return row


@pytest.mark.parametrize(
    "coefficient", [*SIGNED, "conditional_information", "sign_error"]
)
def test_shows_one_coefficient_sorted(result, coefficient):
    display = MeasureCorrelationDisplay.from_result(result, coefficient=coefficient)
    xs, ys = display.points_[coefficient].get_data()
    names = [text.get_text() for text in display.ax_.get_yticklabels()]
    assert names == display.measures
    assert sorted(names) == ["constant", "fair", "good", "noise", "wrong"]
    np.testing.assert_array_equal(ys, range(5))
    expected = [cell(result, name, coefficient)["value"] for name in names]
    np.testing.assert_array_equal(xs, expected)
    known = xs[np.isfinite(xs)]
    steps = np.diff(known) * (1 if coefficient == "sign_error" else -1)
    assert np.all(steps >= 0)
    # The first row is at the top, and what is not defined comes last.
    assert display.ax_.yaxis_inverted()
    assert np.isfinite(xs[: len(known)]).all()
    assert len(display.text_) == 5 - len(known)
    assert display.legend_ is None
    assert "gap" in display.ax_.get_xlabel()
    assert "95%" in display.ax_.get_xlabel()


def test_intervals_are_those_of_the_bootstrap(result):
    display = MeasureCorrelationDisplay.from_result(result, coefficient="sign_error")
    (bars,) = display.intervals_["sign_error"].lines[2]
    ends = {
        round(segment[0, 1]): segment[:, 0].tolist() for segment in bars.get_segments()
    }
    for i, name in enumerate(display.measures):
        row = cell(result, name, "sign_error")
        assert ends[i] == pytest.approx([row["low"], row["high"]])


def test_all_correlations_are_side_by_side(result):
    display = MeasureCorrelationDisplay.from_result(result)
    # Kendall's is the first of them, and sorts.
    assert display.coefficients == SIGNED
    assert list(display.points_) == list(display.intervals_) == SIGNED
    assert display.measures[0] == "good"
    assert display.measures[-2:] == ["wrong", "constant"]
    rows = np.array([line.get_ydata() for line in display.points_.values()])
    assert np.all(np.diff(rows, axis=0) > 0)
    # Points of a measure stay between the lines that part it from others.
    assert np.all(abs(rows - np.arange(5)) < 0.4)
    labels = [text.get_text() for text in display.legend_.get_texts()]
    assert labels == [
        "Kendall",
        "Pearson",
        "Spearman",
        "partial Spearman",
        "granulated Kendall",
    ]
    colors = {line.get_color() for line in display.points_.values()}
    markers = {line.get_marker() for line in display.points_.values()}
    assert len(colors) == len(markers) == 5


def test_several_named(result):
    names = ["sign_error", "kendall"]
    display = MeasureCorrelationDisplay.from_result(result, coefficient=names)
    assert display.coefficients == names
    assert display.measures[0] == "good"
    assert display.ax_.get_xlim()[0] < -1


def test_only_unsigned_coefficients_do_not_show_minus_one(result):
    names = ["conditional_information", "sign_error"]
    display = MeasureCorrelationDisplay.from_result(result, coefficient=names)
    low, high = display.ax_.get_xlim()
    assert -0.1 < low < 0 < 1 < high


def test_without_intervals():
    display = MeasureCorrelationDisplay.from_result(made(n_resamples=0))
    assert display.intervals_ == {}
    assert "interval" not in display.ax_.get_xlabel()
    assert display.frame()["low"].isna().all()
    check_looks(display)


def test_result_with_unsigned_coefficients_only():
    display = MeasureCorrelationDisplay.from_result(made(coefficients=["sign_error"]))
    assert display.coefficients == ["sign_error"]
    assert display.ax_.get_xlabel().startswith("sign error with gap")


@pytest.mark.parametrize("coefficient", ["tau", ["kendall", "tau"], []])
def test_coefficient_that_is_not_there(result, coefficient):
    with pytest.raises(ValueError, match=r"expects coefficients among .*kendall.*got"):
        MeasureCorrelationDisplay.from_result(result, coefficient=coefficient)


def test_result_of_another_kind():
    with pytest.raises(TypeError, match=r"expects a result of rank_corr.*got 3.*Call"):
        MeasureCorrelationDisplay.from_result(3)


def test_keywords_arrive(result):
    figure, ax = plt.subplots()
    size = figure.get_size_inches().tolist()
    display = MeasureCorrelationDisplay.from_result(
        result,
        coefficient="kendall",
        ax=ax,
        point_kwargs={"ms": 9},
        interval_kwargs={"c": "red"},
    )
    assert display.ax_ is ax
    assert display.figure_ is figure
    assert figure.get_size_inches().tolist() == size
    assert display.points_["kendall"].get_markersize() == 9
    (bars,) = display.intervals_["kendall"].lines[2]
    assert tuple(bars.get_colors()[0][:3]) == (1, 0, 0)


def test_frame_has_the_numbers(result):
    names = ["kendall", "sign_error"]
    frame = MeasureCorrelationDisplay.from_result(result, coefficient=names).frame()
    assert frame["coefficient"].tolist() == names * 5
    for _, row in frame.iterrows():
        expected = cell(result, row["measure"], row["coefficient"])
        for key in ("value", "low", "high"):
            np.testing.assert_equal(row[key], expected[key])


@pytest.mark.parametrize("style", ["default", "dark_background"])
@pytest.mark.parametrize(
    "coefficient", [None, "kendall", ["sign_error", "conditional_information"]]
)
def test_looks(style, coefficient, result):
    with plt.style.context(style):
        display = MeasureCorrelationDisplay.from_result(result, coefficient=coefficient)
        check_looks(display)


@pytest.mark.parametrize("coefficient", [None, "pearson"])
def test_many_measures_keep_their_names_apart(coefficient):
    rng = np.random.default_rng(0)
    names = [f"measure_{i}" for i in range(30)]
    runs = {name: rng.normal(size=10) for name in [*names, "gap"]}
    found = rank_correlations(runs, names, "gap", n_resamples=10)
    check_looks(MeasureCorrelationDisplay.from_result(found, coefficient=coefficient))
