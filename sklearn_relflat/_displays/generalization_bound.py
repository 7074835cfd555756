"""The two terms of the estimated generalization gap, beside the gap."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np

from sklearn_relflat._displays.drawing import (
    BLUE,
    ERROR_STYLE,
    GREEN,
    ORANGE,
    PURPLE,
    add_legend,
    check_matplotlib,
    frame_of,
    ink,
    open_axes,
    styled,
)
from sklearn_relflat._representativeness.generalization_bound import (
    generalization_bound,
)

_DELTAS = (0.05, 0.1, 0.2, 0.4)


class GeneralizationBoundDisplay:
    """Representativeness and flatness term stacked, beside the cross-validated gap.

    It is recommended to use `from_estimator` or `from_result` to create a
    `GeneralizationBoundDisplay`. All parameters are stored as attributes.

    Parameters
    ----------
    delta : ndarray of shape (n_deltas,)
        Radii of the perturbations.
    representativeness : ndarray of shape (n_deltas,)
        The first term at each of them; it may be negative.
    flatness_term : ndarray of shape (n_deltas,)
        The second term.
    stderr : ndarray of shape (n_deltas,)
        Standard errors of the first term, and so of the sum.
    cross_validated_gap : float
        Held-out risk minus training risk of the same splits.
    cross_validated_gap_stderr : float
        Its standard error.
    measured_gap : float, default=None
        Risk on new data minus training risk, if it is known.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes with the bars.
    figure_ : matplotlib Figure
        Figure that contains them.
    representativeness_, flatness_term_ : matplotlib BarContainer
        The two terms, stacked.
    errorbar_ : matplotlib ErrorbarContainer
        Their sum, bars of two standard errors.
    gap_ : matplotlib BarContainer
        The cross-validated gap, with two standard errors.
    measured_ : matplotlib BarContainer or None
        The gap on new data.
    legend_ : matplotlib Legend
        Below the axes.

    See Also
    --------
    generalization_bound : The computation, and what the sum does not promise.

    Examples
    --------
    >>> import matplotlib.pyplot as plt
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.linear_model import LinearRegression
    >>> from sklearn_relflat import GeneralizationBoundDisplay
    >>> X, y = load_diabetes(return_X_y=True)
    >>> model = LinearRegression().fit(X, y)
    >>> display = GeneralizationBoundDisplay.from_estimator(
    ...     model, X, y, options={"random_state": 0}
    ... )
    >>> plt.show()

    The flatness term grows as the square of the radius:

    >>> round(float(display.flatness_term[1] / display.flatness_term[0]), 9)
    4.0
    """

    def __init__(
        self,
        *,
        delta: np.ndarray,
        representativeness: np.ndarray,
        flatness_term: np.ndarray,
        stderr: np.ndarray,
        cross_validated_gap: float,
        cross_validated_gap_stderr: float,
        measured_gap: float | None = None,
    ) -> None:
        self.delta = delta
        self.representativeness = representativeness
        self.flatness_term = flatness_term
        self.stderr = stderr
        self.cross_validated_gap = cross_validated_gap
        self.cross_validated_gap_stderr = cross_validated_gap_stderr
        self.measured_gap = measured_gap

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        y: Any = None,
        *,
        delta: Any = _DELTAS,
        measured_gap: float | None = None,
        options: Mapping[str, Any] | None = None,
        ax: Any = None,
        bar_kwargs: Mapping[str, Any] | None = None,
        errorbar_kwargs: Mapping[str, Any] | None = None,
    ) -> Self:
        """Estimate the gap of a model and draw its terms.

        Parameters
        ----------
        estimator : estimator
            A fitted model, see `relative_flatness`.
        X : array-like of shape (n_samples, n_features), or what else the model takes
            Training sample.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs), default=None
            Targets; None only where X is a data set that carries them.
        delta : float or array-like of shape (n_deltas,), default=(0.05, 0.1, 0.2, 0.4)
            Radii of the perturbations.
        measured_gap : float, default=None
            Risk on new data minus training risk, if it is known.
        options : dict, default=None
            Other options of `generalization_bound`, such as ``{"n_splits": 20}``.
        ax : matplotlib Axes, default=None
            Axes to draw on; None makes a new figure.
        bar_kwargs, errorbar_kwargs : dict, default=None
            As in `plot`.

        Returns
        -------
        display : GeneralizationBoundDisplay
            The drawn display.
        """
        check_matplotlib(f"{cls.__name__}.from_estimator")
        result = generalization_bound(estimator, X, y, delta=delta, **(options or {}))
        return cls.from_result(
            result,
            measured_gap=measured_gap,
            ax=ax,
            bar_kwargs=bar_kwargs,
            errorbar_kwargs=errorbar_kwargs,
        )

    @classmethod
    def from_result(
        cls,
        result: Any,
        *,
        measured_gap: float | None = None,
        ax: Any = None,
        bar_kwargs: Mapping[str, Any] | None = None,
        errorbar_kwargs: Mapping[str, Any] | None = None,
    ) -> Self:
        """Draw terms that were estimated already.

        Parameters
        ----------
        result : Bunch
            Of `generalization_bound`.
        measured_gap : float, default=None
            Risk on new data minus training risk, if it is known.
        ax : matplotlib Axes, default=None
            Axes to draw on; None makes a new figure.
        bar_kwargs, errorbar_kwargs : dict, default=None
            As in `plot`.

        Returns
        -------
        display : GeneralizationBoundDisplay
            The drawn display.

        Raises
        ------
        TypeError
            If the result is not one of `generalization_bound`.
        """
        if not isinstance(result, Mapping) or "flatness_term" not in result:
            raise TypeError(
                f"{cls.__name__}.from_result expects a result of generalization_bound, "
                f"got {result!r}. For a fitted model call from_estimator."
            )
        stderr = np.atleast_1d(result["representativeness_stderr"])
        spread = np.atleast_1d(result["representativeness_std"])
        # Both are means over the same splits, whose overlap widens them alike.
        widening = stderr[0] / spread[0] if spread[0] else 0.0
        display = cls(
            delta=np.atleast_1d(result["delta"]),
            representativeness=np.atleast_1d(result["representativeness"]),
            flatness_term=np.atleast_1d(result["flatness_term"]),
            stderr=stderr,
            cross_validated_gap=result["cross_validated_gap"],
            cross_validated_gap_stderr=float(
                widening * result["cross_validated_gap_std"]
            ),
            measured_gap=measured_gap,
        )
        return display.plot(ax, bar_kwargs=bar_kwargs, errorbar_kwargs=errorbar_kwargs)

    def plot(
        self,
        ax: Any = None,
        *,
        bar_kwargs: Mapping[str, Any] | None = None,
        errorbar_kwargs: Mapping[str, Any] | None = None,
    ) -> Self:
        """Draw a stack for each radius, and the gaps at the right of them.

        A negative representativeness hangs below zero, and the flatness term stands on
        zero then; the sum is marked wherever it is.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on; None makes a new figure.
        bar_kwargs : dict, default=None
            Keywords of `Axes.bar` for all bars.
        errorbar_kwargs : dict, default=None
            Keywords of `Axes.errorbar` for the sums.

        Returns
        -------
        display : GeneralizationBoundDisplay
            Itself.
        """
        from matplotlib.patches import Patch

        self.ax_, self.figure_ = open_axes(ax, f"{type(self).__name__}.plot")
        places = np.arange(len(self.delta), dtype=np.float64)

        def bars(x: Any, height: Any, color: str, label: str, **kwargs: Any) -> Any:
            style = {"facecolor": color, "label": label}
            given = styled(style, bar_kwargs, Patch)
            return self.ax_.bar(x, height, **{**kwargs, **given})

        self.representativeness_ = bars(
            places, self.representativeness, BLUE, "representativeness"
        )
        self.flatness_term_ = bars(
            places,
            self.flatness_term,
            ORANGE,
            r"flatness term $\frac{\delta^2}{2m}\kappa$",
            # Two terms of one sign stand on each other.
            bottom=np.where(
                self.representativeness * self.flatness_term > 0,
                self.representativeness,
                0.0,
            ),
        )
        self.errorbar_ = self._draw_sums(places, errorbar_kwargs)
        self.gap_ = bars(
            [len(places) + 0.5],
            [self.cross_validated_gap],
            GREEN,
            "cross-validated gap",
            yerr=[2 * self.cross_validated_gap_stderr],
            ecolor=ink(self.ax_),
            capsize=ERROR_STYLE["capsize"],
        )
        self.measured_ = None
        if self.measured_gap is not None:
            self.measured_ = bars(
                [len(places) + 1.5], [self.measured_gap], PURPLE, "gap on new data"
            )
        self._label(places)
        return self

    def _draw_sums(self, places: np.ndarray, kwargs: Mapping[str, Any] | None) -> Any:
        """Mark the sums with their errors."""
        style = {
            "color": ink(self.ax_),
            "marker": "D",
            "markersize": 5.0,
            "linestyle": "",
            "label": r"sum $\pm$ 2 standard errors",
            **ERROR_STYLE,
        }
        return self.ax_.errorbar(
            places,
            self.representativeness + self.flatness_term,
            yerr=2 * self.stderr,
            **styled(style, kwargs),
        )

    def _label(self, places: np.ndarray) -> None:
        """Name the axes and the bars."""
        drawn = (
            self.representativeness_,
            self.flatness_term_,
            self.errorbar_,
            self.gap_,
            self.measured_,
        )
        gaps = [bar for bar in (self.gap_, self.measured_) if bar is not None]
        ticks = [*places, *(len(places) + 0.5 + i for i in range(len(gaps)))]
        names = [f"{delta:.3g}" for delta in self.delta] + ["gap"] * len(gaps)
        self.ax_.set_xticks(ticks, names)
        if len(ticks) > 12:
            self.ax_.tick_params(axis="x", labelrotation=90)
        self.ax_.axhline(0.0, color=ink(self.ax_), linewidth=0.8)
        self.ax_.set_xlabel(r"radius $\delta$ of the perturbations (share of the norm)")
        self.ax_.set_ylabel("generalization gap (units of the loss)")
        self.legend_ = add_legend(self.ax_, handles=[a for a in drawn if a is not None])

    def frame(self) -> Any:
        """Return the numbers of the bars.

        Returns
        -------
        frame : pandas.DataFrame
            A row for each radius: ``delta``, ``representativeness``,
            ``flatness_term``, ``bound``, ``stderr`` and, the same in all rows,
            ``cross_validated_gap``.
        """
        columns = {
            "delta": self.delta,
            "representativeness": self.representativeness,
            "flatness_term": self.flatness_term,
            "bound": self.representativeness + self.flatness_term,
            "stderr": self.stderr,
            "cross_validated_gap": np.full(len(self.delta), self.cross_validated_gap),
        }
        return frame_of(columns, f"{type(self).__name__}.frame")
