"""What the Displays share: colours, axes, scales, legends and tables.

Conventions: a Display never sets black or white. What is neither a colour of the
palette nor the style's own is taken from the axes (`ink`), so that a style with a dark
background works. Figures that are made here have a constrained layout, which leaves
room for a legend below the axes.

References
----------
.. [1] M. Okabe, K. Ito, "Color Universal Design", 2008: colours that people with
   deficiencies of colour vision can tell apart.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# Okabe and Ito's colours [1]_ without yellow and sky blue, too faint on white. In this
# order: the first two differ also in grey.
BLUE = "#0072B2"
ORANGE = "#E69F00"
GREEN = "#009E73"
VERMILION = "#D55E00"
PURPLE = "#CC79A7"
PALETTE = (BLUE, ORANGE, GREEN, VERMILION, PURPLE)

#: How error bars are drawn; for `Axes.errorbar`.
ERROR_STYLE: dict[str, Any] = {"capsize": 3.0, "elinewidth": 1.2}

#: How the area within an error is filled; for `Axes.fill_between` and `Axes.axvspan`.
BAND_STYLE: dict[str, Any] = {"alpha": 0.25, "linewidth": 0.0}

# Height of a row with a name and of what lies around the rows, in inches.
_ROW, _AROUND = 0.22, 1.0

# From this ratio on the smaller values could not be told apart on a linear axis.
_DECADES = 30.0


# ---------------------------------------------------------------------------
# Optional packages
# ---------------------------------------------------------------------------
def check_matplotlib(caller: str) -> None:
    """Raise where matplotlib is missing, before anything is computed.

    Parameters
    ----------
    caller : str
        Who draws, such as "LayerProfileDisplay.plot".
    """
    _check_extra("matplotlib", "plot", caller)


def frame_of(columns: Mapping[str, Any], caller: str) -> Any:
    """Return columns as a data frame.

    Parameters
    ----------
    columns : dict of str to array-like of shape (n_rows,)
        Columns by their names.
    caller : str
        Who asks, such as "LayerProfileDisplay.frame".

    Returns
    -------
    frame : pandas.DataFrame
        The columns.
    """
    _check_extra("pandas", "frame", caller)
    import pandas

    return pandas.DataFrame(dict(columns))


def _check_extra(package: str, extra: str, caller: str) -> None:
    """Raise where an optional package is missing, with the way to get it."""
    try:
        importlib.import_module(package)
    except ImportError as error:
        raise ImportError(
            f"{caller} expects {package}, which is not installed. It comes with the "
            f'extra "{extra}": pip install "sklearn_relflat[{extra}]".'
        ) from error


# ---------------------------------------------------------------------------
# Axes
# ---------------------------------------------------------------------------
def open_axes(ax: Any, caller: str) -> tuple[Any, Any]:
    """Return the axes to draw on, those given or new ones, and their figure.

    Parameters
    ----------
    ax : matplotlib Axes or None
        Axes; None makes a new figure.
    caller : str
        Who draws, such as "LayerProfileDisplay.plot".

    Returns
    -------
    ax : matplotlib Axes
        The axes.
    figure : matplotlib Figure or SubFigure
        Their figure.

    Raises
    ------
    TypeError
        If `ax` is neither None nor axes.
    """
    check_matplotlib(caller)
    import matplotlib.pyplot as plt
    from matplotlib.axes import Axes

    if ax is None:
        _, ax = plt.subplots(layout="constrained")
    if not isinstance(ax, Axes):
        raise TypeError(
            f"{caller} expects ax to be matplotlib Axes or None, got {ax!r}. Make them "
            "with: figure, ax = plt.subplots()."
        )
    return ax, ax.get_figure()


def make_room(figure: Any, n_rows: float) -> None:
    """Make a figure high enough for rows with names to keep apart.

    Parameters
    ----------
    figure : matplotlib Figure
        The figure, of the display's own.
    n_rows : float
        Number of rows.
    """
    height = _ROW * n_rows + _AROUND
    figure.set_figheight(max(figure.get_figheight(), height))


def name_rows(ax: Any, names: Sequence[str], *, ruled: bool = True) -> None:
    """Name the rows 0, 1, ... of the axes from the top to the bottom.

    Parameters
    ----------
    ax : matplotlib Axes
        The axes.
    names : sequence of str
        One a row.
    ruled : bool, default=True
        Whether lines keep the rows apart, whose points lie on both sides of the tick.
    """
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.5, -0.5)
    for row in range(1, len(names) if ruled else 0):
        ax.axhline(row - 0.5, color=ink(ax), linewidth=0.6, alpha=0.3, zorder=0.9)


def ink(ax: Any) -> Any:
    """Colour that the style writes in, readable on these axes."""
    return ax.xaxis.label.get_color()


def styled(
    defaults: Mapping[str, Any], given: Mapping[str, Any] | None, artist: Any = None
) -> dict[str, Any]:
    """Keywords of an artist: the defaults, and over them what a user gave.

    Parameters
    ----------
    defaults : dict
        Keywords in full, "linewidth" and not "lw".
    given : dict or None
        Of the user; aliases are understood.
    artist : type, default=None
        Class whose aliases are meant; None is `Line2D`.

    Returns
    -------
    keywords : dict
        Both.
    """
    from matplotlib.cbook import normalize_kwargs
    from matplotlib.lines import Line2D

    return {**defaults, **normalize_kwargs(dict(given or {}), artist or Line2D)}


# ---------------------------------------------------------------------------
# Scales
# ---------------------------------------------------------------------------
def scale_of(values: Any) -> str:
    """Return "log" where values span decades, "symlog" if of both signs, or "linear".

    Parameters
    ----------
    values : array-like
        What an axis has to show; not finite ones are ignored.

    Returns
    -------
    scale : {"linear", "log", "symlog"}
        Name of the scale.
    """
    signed = np.ravel(np.asarray(values, dtype=np.float64))
    signed = signed[np.isfinite(signed)]
    sizes = np.abs(signed[signed != 0])
    if not len(sizes) or sizes.max() < _DECADES * sizes.min():
        return "linear"
    return "log" if (signed > 0).all() else "symlog"


def set_scale(axis: Any, values: Any) -> str:
    """Give an axis the scale that its values need.

    Parameters
    ----------
    axis : matplotlib Axis
        ``ax.xaxis`` or ``ax.yaxis``.
    values : array-like
        What it has to show.

    Returns
    -------
    scale : {"linear", "log", "symlog"}
        Name of the scale.
    """
    scale = scale_of(values)
    keywords = {}
    if scale == "symlog":
        sizes = np.abs(np.ravel(np.asarray(values, dtype=np.float64)))
        keywords = {"linthresh": sizes[np.isfinite(sizes) & (sizes > 0)].min()}
    getattr(axis.axes, f"set_{axis.axis_name}scale")(scale, **keywords)
    return scale


def readable_ticks(axis: Any) -> None:
    """Write the ticks of a logarithmic axis of few decades as plain numbers.

    Call it when the limits are set: they decide how many ticks fit.

    Parameters
    ----------
    axis : matplotlib Axis
        ``ax.xaxis`` or ``ax.yaxis``; another scale is left as it is.
    """
    from matplotlib.ticker import (
        LogLocator,
        MaxNLocator,
        NullFormatter,
        StrMethodFormatter,
    )

    low, high = sorted(axis.get_view_interval())
    if axis.get_scale() != "log" or high > 1e4 * low or high >= 1e6 or low < 1e-4:
        return
    if high < 5 * low:
        axis.set_major_locator(MaxNLocator(5))
    else:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 200 * low else (1,)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


# ---------------------------------------------------------------------------
# Legends
# ---------------------------------------------------------------------------
def add_legend(ax: Any, **kwargs: Any) -> Any:
    """Add a legend, below the axes where the figure's layout makes room for it.

    In a figure without a layout engine it would hang over the edge, and takes the
    emptiest place within the axes. Call it last: it stays clear of the labels that are
    there.

    Parameters
    ----------
    ax : matplotlib Axes
        The axes.
    **kwargs : dict
        Keywords of `Axes.legend`, such as the handles.

    Returns
    -------
    legend : matplotlib Legend
        The legend, in as many columns as fit.
    """
    from matplotlib.transforms import ScaledTranslation

    figure = ax.get_figure()
    if figure.get_layout_engine() is None:
        return ax.legend(loc="best", **kwargs)
    labels = ax.xaxis.get_tightbbox()
    depth = 0.0 if labels is None else (ax.bbox.y0 - labels.y0) / figure.dpi
    place = {
        "loc": "upper center",
        "bbox_to_anchor": (0.5, 0.0),
        "bbox_transform": ax.transAxes
        + ScaledTranslation(0.0, -depth, figure.dpi_scale_trans),
        "frameon": False,
        **kwargs,
    }
    n_columns = len(place.get("handles", ax.get_legend_handles_labels()[0]))
    legend = ax.legend(ncols=max(n_columns, 1), **place)
    while n_columns > 1 and legend.get_window_extent().width > ax.bbox.width:
        n_columns -= 1
        legend = ax.legend(ncols=n_columns, **place)
    return legend
