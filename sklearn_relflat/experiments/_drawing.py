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
    y = np.asarray(y, dtype=np.float64)
    sides = np.array([y - low, high - y], dtype=np.float64)
    style = {
        "color": OKABE_ITO[i],
        "marker": MARKERS[i],
        "markersize": 4,
        "capsize": 2,
        "linewidth": 1.2,
    }
    # An interval by percentiles need not hold the estimate.
    bars = np.nan_to_num(np.maximum(sides, 0))
    ax.errorbar(x, y, bars, **{**style, **options})
