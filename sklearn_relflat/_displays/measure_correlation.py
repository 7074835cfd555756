"""How well measures order runs by a target: coefficients with their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np

from sklearn_relflat._displays.drawing import (
    ERROR_STYLE,
    PALETTE,
    add_legend,
    check_matplotlib,
    frame_of,
    ink,
    make_room,
    name_rows,
    open_axes,
    styled,
)
from sklearn_relflat._evidence.rank_correlations import RankCorrelations

_NAMES = {
    "pearson": "Pearson",
    "spearman": "Spearman",
    "kendall": "Kendall",
    "partial_spearman": "partial Spearman",
    "granulated_kendall": "granulated Kendall",
    "conditional_information": "conditional information",
    "sign_error": "sign error",
}
# One has no sign, one says how bad a measure is; the others are correlations.
_WITHOUT_SIGN = ("conditional_information", "sign_error")
_MARKERS = "osD^vPX"
# Rows that the points of a measure are spread over, of those between two measures.
_SPREAD = 0.7
# A point needs less room than a name.
_POINT_ROW = 0.7


class MeasureCorrelationDisplay:
    """Coefficients of measures against a target, with bootstrap intervals.

    It is recommended to use `from_result` to create a `MeasureCorrelationDisplay`. All
    parameters are stored as attributes.

    Parameters
    ----------
    measures : list of str
        Names of the measures, from the top to the bottom.
    coefficients : list of str
        Names of the coefficients.
    values : ndarray of shape (n_measures, n_coefficients)
        The coefficients, NaN where one is not defined.
    low, high : ndarray of shape (n_measures, n_coefficients)
        Ends of their intervals, NaN where there is none.
    target : str, default=None
        What was to be predicted, for the axis.
    confidence_level : float, default=None
        Of the intervals, for the axis.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes with the coefficients.
    figure_ : matplotlib Figure
        Figure that contains them.
    points_ : dict of str to matplotlib Line2D
        Points of the measures, by coefficient.
    intervals_ : dict of str to matplotlib ErrorbarContainer
        Their intervals, by coefficient, where there are any.
    text_ : list of matplotlib Text
        "not defined", where a coefficient is not.
    legend_ : matplotlib Legend or None
        Below the axes; None for a single coefficient, which the axis names.

    See Also
    --------
    rank_correlations : The computation, and what the coefficients mean.

    Notes
    -----
    Of a good measure all coefficients are near 1, but for the sign error, near 0.
    Measures are sorted by the first coefficient, the best one at the top; nothing is
    flipped. Intervals are percentiles of the bootstrap: those of the sign error and the
    conditional information, extremes of many means, are rough and need not contain the
    point. The intervals of two measures overlap more than their difference is
    uncertain, as they are from the same runs.

    Examples
    --------
    >>> import matplotlib.pyplot as plt
    >>> import numpy as np
    >>> from sklearn_relflat import MeasureCorrelationDisplay, rank_correlations
    >>> rng = np.random.default_rng(0)
    >>> gap = rng.normal(size=30)
    >>> runs = {
    ...     "gap": gap,
    ...     "good": gap + 0.3 * rng.normal(size=30),
    ...     "poor": rng.normal(size=30),
    ... }
    >>> result = rank_correlations(runs, ["poor", "good"], "gap")
    >>> display = MeasureCorrelationDisplay.from_result(result, coefficient="kendall")
    >>> plt.show()
    >>> display.measures
    ['good', 'poor']
    """

    def __init__(
        self,
        *,
        measures: list[str],
        coefficients: list[str],
        values: np.ndarray,
        low: np.ndarray,
        high: np.ndarray,
        target: str | None = None,
        confidence_level: float | None = None,
    ) -> None:
        self.measures = measures
        self.coefficients = coefficients
        self.values = values
        self.low = low
        self.high = high
        self.target = target
        self.confidence_level = confidence_level

    @classmethod
    def from_result(
        cls,
        result: RankCorrelations,
        *,
        coefficient: str | Sequence[str] | None = None,
        ax: Any = None,
        point_kwargs: Mapping[str, Any] | None = None,
        interval_kwargs: Mapping[str, Any] | None = None,
    ) -> Self:
        """Draw coefficients that were computed.

        Parameters
        ----------
        result : RankCorrelations
            Of `rank_correlations`.
        coefficient : str or sequence of str, default=None
            Which coefficients, side by side; the first one sorts the measures. None is
            all correlations that there are, sorted by Kendall's coefficient if that is
            one of them; "conditional_information" and "sign_error" are drawn if named.
        ax : matplotlib Axes, default=None
            Axes to draw on; None makes a new figure.
        point_kwargs, interval_kwargs : dict, default=None
            As in `plot`.

        Returns
        -------
        display : MeasureCorrelationDisplay
            The drawn display.

        Raises
        ------
        TypeError
            If the result is not one of `rank_correlations`.
        ValueError
            If a coefficient is not there.
        """
        caller = f"{cls.__name__}.from_result"
        check_matplotlib(caller)
        if not isinstance(result, RankCorrelations):
            raise TypeError(
                f"{caller} expects a result of rank_correlations, got {result!r}. Call "
                "it with the table of the runs."
            )
        rows = result.rows()
        there = list(dict.fromkeys(row["coefficient"] for row in rows))
        coefficients = _chosen(coefficient, there, caller)
        measures = list(dict.fromkeys(row["measure"] for row in rows))
        cells = {(row["measure"], row["coefficient"]): row for row in rows}

        def table(key: str) -> np.ndarray:
            return np.array(
                [[cells[name, c][key] for c in coefficients] for name in measures]
            )

        # NaN is sorted to the end.
        badness = table("value")[:, 0]
        if coefficients[0] != "sign_error":
            badness = -badness
        order = np.argsort(badness, kind="stable")
        display = cls(
            measures=[measures[i] for i in order],
            coefficients=coefficients,
            values=table("value")[order],
            low=table("low")[order],
            high=table("high")[order],
            target=result.target,
            confidence_level=result.confidence_level,
        )
        return display.plot(
            ax, point_kwargs=point_kwargs, interval_kwargs=interval_kwargs
        )

    def plot(
        self,
        ax: Any = None,
        *,
        point_kwargs: Mapping[str, Any] | None = None,
        interval_kwargs: Mapping[str, Any] | None = None,
    ) -> Self:
        """Draw a row for each measure, with a point for each coefficient.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on; None makes a new figure, higher where there are many
            points.
        point_kwargs : dict, default=None
            Keywords of `Axes.plot` for the points.
        interval_kwargs : dict, default=None
            Keywords of `Axes.errorbar` for the intervals.

        Returns
        -------
        display : MeasureCorrelationDisplay
            Itself.
        """
        own_figure = ax is None
        self.ax_, self.figure_ = open_axes(ax, f"{type(self).__name__}.plot")
        n_measures, n_coefficients = self.values.shape
        if own_figure:
            per_measure = max(1.0, _POINT_ROW * n_coefficients / _SPREAD)
            make_room(self.figure_, n_measures * per_measure)
        self.points_: dict[str, Any] = {}
        self.intervals_: dict[str, Any] = {}
        self.text_: list[Any] = []
        for k, name in enumerate(self.coefficients):
            shift = _SPREAD * ((k + 0.5) / n_coefficients - 0.5)
            rows = np.arange(n_measures) + shift
            self._draw(k, name, rows, point_kwargs, interval_kwargs)
        self._label()
        self.legend_ = None
        if n_coefficients > 1:
            self.legend_ = add_legend(self.ax_, handles=[*self.points_.values()])
        return self

    def _draw(
        self,
        k: int,
        name: str,
        rows: np.ndarray,
        point_kwargs: Mapping[str, Any] | None,
        interval_kwargs: Mapping[str, Any] | None,
    ) -> None:
        """Draw one coefficient of all measures."""
        color, marker = PALETTE[k % len(PALETTE)], _MARKERS[k % len(_MARKERS)]
        low, high = self.low[:, k], self.high[:, k]
        known = np.isfinite(low) & np.isfinite(high)
        if known.any():
            # Around the middle of the interval, which need not be the point.
            style = {"color": color, "linestyle": "", **ERROR_STYLE}
            self.intervals_[name] = self.ax_.errorbar(
                ((low + high) / 2)[known],
                rows[known],
                xerr=((high - low) / 2)[known],
                **styled(style, interval_kwargs),
            )
        style = {
            "color": color,
            "marker": marker,
            "linestyle": "",
            "label": _NAMES.get(name, name),
        }
        (self.points_[name],) = self.ax_.plot(
            self.values[:, k], rows, **styled(style, point_kwargs)
        )
        self.text_ += [
            self.ax_.text(
                0.5,
                row,
                "not defined",
                transform=self.ax_.get_yaxis_transform(),
                horizontalalignment="center",
                verticalalignment="center",
                fontsize="x-small",
                style="italic",
                color=ink(self.ax_),
                backgroundcolor=self.ax_.get_facecolor(),
            )
            for row in rows[~np.isfinite(self.values[:, k])]
        ]

    def _label(self) -> None:
        """Name the axes, and set their limits."""
        unsigned = set(self.coefficients) <= set(_WITHOUT_SIGN)
        self.ax_.set_xlim(-0.05 if unsigned else -1.05, 1.05)
        self.ax_.axvline(0.0, color=ink(self.ax_), linewidth=0.8, zorder=0.9)
        name_rows(self.ax_, self.measures)
        self.ax_.set_xlabel(self._quantity())
        self.ax_.set_ylabel("measure")

    def _quantity(self) -> str:
        """Say what the horizontal axis has."""
        words = "coefficient"
        if len(self.coefficients) == 1:
            (only,) = self.coefficients
            words = _NAMES.get(only, only)
            words += "" if only in _WITHOUT_SIGN else " coefficient"
        if self.target is not None:
            words += f" with {self.target}"
        if self.confidence_level is not None and np.isfinite(self.low).any():
            words += f", {self.confidence_level:.0%} intervals"
        return words

    def frame(self) -> Any:
        """Return the numbers of the picture.

        Returns
        -------
        frame : pandas.DataFrame
            A row for each measure and coefficient, in the order of the picture:
            ``measure``, ``coefficient``, ``value``, ``low`` and ``high``.
        """
        n_measures, n_coefficients = self.values.shape
        columns = {
            "measure": np.repeat(self.measures, n_coefficients),
            "coefficient": np.tile(self.coefficients, n_measures),
            "value": self.values.ravel(),
            "low": self.low.ravel(),
            "high": self.high.ravel(),
        }
        return frame_of(columns, f"{type(self).__name__}.frame")


def _chosen(
    coefficient: str | Sequence[str] | None, there: list[str], caller: str
) -> list[str]:
    """Coefficients to draw, the one that sorts first."""
    if coefficient is None:
        signed = [name for name in there if name not in _WITHOUT_SIGN]
        # A stable sort: the others keep their order.
        return sorted(signed or there, key=lambda name: name != "kendall")
    names = [coefficient] if isinstance(coefficient, str) else list(coefficient)
    missing = [name for name in names if name not in there]
    if missing or not names:
        raise ValueError(
            f"{caller} expects coefficients among {there}, got {coefficient!r}. Name "
            "others in rank_correlations."
        )
    return names
