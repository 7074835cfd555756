"""What the Displays share."""

import sys

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.patches import Patch

from sklearn_relflat._displays.drawing import (
    PALETTE,
    add_legend,
    check_matplotlib,
    frame_of,
    ink,
    open_axes,
    scale_of,
    set_scale,
    styled,
)
from tests.displays.looks import cut_off, overlapping, unreadable


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


@pytest.mark.parametrize("package", ["matplotlib", "pandas"])
def test_missing_package_says_how_to_get_it(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    extra, call = {
        "matplotlib": ("plot", lambda: check_matplotlib("X.plot")),
        "pandas": ("frame", lambda: frame_of({"a": [1]}, "X.plot")),
    }[package]
    message = rf'X.plot expects {package}.*pip install "sklearn_relflat\[{extra}\]"'
    with pytest.raises(ImportError, match=message):
        call()


def test_axes_are_those_given_or_new():
    figure, ax = plt.subplots()
    assert open_axes(ax, "X.plot") == (ax, figure)
    new, own = open_axes(None, "X.plot")
    assert own is not figure
    assert new.get_figure() is own


def test_axes_of_another_kind():
    with pytest.raises(TypeError, match=r"X.plot expects ax to be .*got 'left'.*with:"):
        open_axes("left", "X.plot")


@pytest.mark.parametrize(
    ("values", "scale"),
    [
        ([1.0, 2.0], "linear"),
        ([1.0, 100.0], "log"),
        ([0.0, 1.0, 100.0], "symlog"),
        ([-1.0, 100.0], "symlog"),
        ([-1.0, 2.0], "linear"),
        ([0.0, 0.0], "linear"),
        ([], "linear"),
        ([np.nan, 1.0, 100.0, np.inf], "log"),
    ],
)
def test_scale_follows_the_values(values, scale):
    _, ax = plt.subplots()
    assert scale_of(values) == scale
    assert set_scale(ax.yaxis, values) == scale
    assert (ax.get_xscale(), ax.get_yscale()) == ("linear", scale)


def test_given_keywords_come_first_under_any_name():
    assert styled({"color": "red", "alpha": 1}, {"c": "blue"}) == {
        "color": "blue",
        "alpha": 1,
    }
    assert styled({"facecolor": "red"}, {"fc": "b"}, Patch) == {"facecolor": "b"}
    assert styled({"color": "red"}, None) == {"color": "red"}


@pytest.mark.parametrize("style", ["default", "dark_background"])
@pytest.mark.parametrize("length", [3, 30, 80])
def test_legend_stays_clear_of_labels(style, length):
    with plt.style.context(style):
        ax, figure = open_axes(None, "X.plot")
        for i in range(3):
            ax.plot([0, 1], [i, i], label=f"{i}" * length)
        ax.set_xlabel("x\nin two lines")
        add_legend(ax)
        assert not overlapping(figure)
        assert not unreadable(figure)
        assert length > 50 or not cut_off(figure)


def test_legend_of_a_figure_without_layout_is_within_the_axes():
    figure, ax = plt.subplots()
    ax.plot([0, 1], [0, 1], label="line")
    legend = add_legend(ax)
    figure.draw_without_rendering()
    box, axes = legend.get_window_extent(), ax.bbox
    assert axes.x0 <= box.x0 < box.x1 <= axes.x1
    assert axes.y0 <= box.y0 < box.y1 <= axes.y1


@pytest.mark.parametrize("style", ["default", "dark_background"])
def test_ink_is_readable(style):
    with plt.style.context(style):
        ax, figure = open_axes(None, "X.plot")
        ax.text(0.5, 0.5, "text", color=ink(ax))
        assert not unreadable(figure)


def test_unreadable_text_is_found():
    figure, ax = plt.subplots()
    ax.text(0.5, 0.5, "pale", color="0.9")
    assert unreadable(figure) == ["pale"]


def test_overlap_is_found():
    figure, ax = plt.subplots()
    ax.text(0.5, 0.5, "first")
    ax.text(0.5, 0.5, "second")
    assert overlapping(figure) == [("first", "second")]


def test_palette_keeps_apart_in_grey():
    from tests.displays.looks import luminance

    first, second = map(luminance, PALETTE[:2])
    assert (second + 0.05) / (first + 0.05) > 2
