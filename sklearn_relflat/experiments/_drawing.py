"""How the experiments draw: for the colour-blind too, by colour and by marker."""

from __future__ import annotations

from typing import Any

import numpy as np

from sklearn_relflat._displays.drawing import BLUE, GREEN, ORANGE, PURPLE, VERMILION

#: Dark ones first, without the yellow that white hides.
OKABE_ITO = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def draw_line(
    ax: Any, x: Any, y: Any, low: Any, high: Any, i: int, **options: Any
) -> None:
    """Draw a line with bars.

    Parameters
    ----------
    ax : matplotlib Axes
        The axes.
    x, y : array-like of shape (n_points,)
        The points.
    low, high : array-like of shape (n_points,)
        Ends of the bars; NaN where there is none.
    i : int
        Number of the line.
    **options : dict
        Keywords of `Axes.errorbar`, such as its label.
    """
    ax.errorbar(x, y, _bars(y, low, high), **{**_style(i), **options})


def draw_points(
    ax: Any, x: Any, y: Any, low: Any, high: Any, i: int, **options: Any
) -> None:
    """Draw points with horizontal bars, and no line between them.

    Parameters
    ----------
    ax : matplotlib Axes
        The axes.
    x, y : array-like of shape (n_points,)
        The points.
    low, high : array-like of shape (n_points,)
        Left and right ends of the bars; NaN where there is none.
    i : int
        Number of the series.
    **options : dict
        Keywords of `Axes.errorbar`, such as its label.
    """
    style = {**_style(i), "linestyle": "none", **options}
    ax.errorbar(x, y, xerr=_bars(x, low, high), **style)


def _style(i: int) -> dict[str, Any]:
    """Colour, marker and sizes of a series."""
    return {
        "color": OKABE_ITO[i],
        "marker": MARKERS[i],
        "markersize": 4,
        "capsize": 2,
        "linewidth": 1.2,
    }


def _bars(values: Any, low: Any, high: Any) -> np.ndarray:
    """Lengths of bars to both sides, (2, n_points)."""
    values = np.asarray(values, dtype=np.float64)
    sides = np.array([values - low, high - values], dtype=np.float64)
    # An interval by percentiles need not hold the estimate.
    return np.nan_to_num(np.maximum(sides, 0))
