"""The solutions of the relative flatness ridge along its radius."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np

from sklearn_relflat._displays.drawing import (
    BAND_STYLE,
    BLUE,
    ORANGE,
    PALETTE,
    add_legend,
    check_matplotlib,
    frame_of,
    ink,
    open_axes,
    readable_ticks,
    scale_of,
    set_scale,
    styled,
)
from sklearn_relflat._displays.labels import loss_label
from sklearn_relflat._linear.ridge import relative_flatness_path

QUANTITIES = ("coefficients", "loss")
# More lines could neither be named below the axes nor told apart.
_NAMED = 2 * len(PALETTE)


class RelativeFlatnessPathDisplay:
    """Coefficients, or loss and flatness, of the ridge along the radius.

    It is recommended to use `from_estimator` or `from_result` to create a
    `RelativeFlatnessPathDisplay`. All parameters are stored as attributes.

    Parameters
    ----------
    deltas : ndarray of shape (n_deltas,)
        Radii, increasing.
    coefs : ndarray of shape (n_coefs, n_deltas)
        Coefficients along the path.
    names : list of str
        Names of the coefficients.
    measures : Bunch, default=None
        ``loss``, ``expected_loss`` and ``relative_flatness`` along the path, for
        ``quantity="loss"``.
    delta : float, default=None
        A radius to mark.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes with the path.
    figure_ : matplotlib Figure
        Figure that contains it.
    lines_ : list of matplotlib Line2D
        A line for each coefficient; or the loss and the expected loss.
    fill_ : matplotlib Artist or None
        What the flatness adds to the loss, between these two.
    delta_line_ : matplotlib Line2D or None
        Vertical line at the radius that is marked.
    legend_ : matplotlib Legend or None
        Below the axes; the names of coefficients only where there are 10 or fewer.

    See Also
    --------
    relative_flatness_path : The computation.
    RelativeFlatnessRidgeCV : Chooses the radius by leave-one-out.

    Examples
    --------
    >>> import matplotlib.pyplot as plt
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn_relflat import RelativeFlatnessPathDisplay, RelativeFlatnessRidgeCV
    >>> X, y = load_diabetes(return_X_y=True, as_frame=True)
    >>> ridge = RelativeFlatnessRidgeCV().fit(X, y)
    >>> display = RelativeFlatnessPathDisplay.from_estimator(ridge, X, y)
    >>> plt.show()
    >>> display.delta == ridge.delta_
    True
    """

    def __init__(
        self,
        *,
        deltas: np.ndarray,
        coefs: np.ndarray,
        names: list[str],
        measures: Any = None,
        delta: float | None = None,
    ) -> None:
        self.deltas = deltas
        self.coefs = coefs
        self.names = names
        self.measures = measures
        self.delta = delta

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        y: Any,
        *,
        deltas: Any = None,
        sample_weight: Any = None,
        quantity: str = "coefficients",
        ax: Any = None,
        line_kwargs: Mapping[str, Any] | None = None,
        delta_kwargs: Mapping[str, Any] | None = None,
    ) -> Self:
        """Draw the path around the radius of a ridge.

        Parameters
        ----------
        estimator : RelativeFlatnessRidge or RelativeFlatnessRidgeCV
            Its radius is marked, that chosen by the fit if it was fitted.
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Training data.
        y : array-like of shape (n_samples,) or (n_samples, n_targets)
            Targets.
        deltas : array-like of shape (n_deltas,), default=None
            Radii; None takes 61, up to a factor of 30 from that of the estimator.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the samples.
        quantity : {"coefficients", "loss"}, default="coefficients"
            As in `plot`.
        ax : matplotlib Axes, default=None
            Axes to draw on; None makes a new figure.
        line_kwargs, delta_kwargs : dict, default=None
            As in `plot`.

        Returns
        -------
        display : RelativeFlatnessPathDisplay
            The drawn display.

        Raises
        ------
        TypeError
            If the estimator has no radius.
        """
        check_matplotlib(f"{cls.__name__}.from_estimator")
        delta = getattr(estimator, "delta_", getattr(estimator, "delta", None))
        if delta is None:
            raise TypeError(
                f"{cls.__name__}.from_estimator expects a RelativeFlatnessRidge, or a "
                f"fitted RelativeFlatnessRidgeCV, got {estimator!r}. Fit it first."
            )
        if deltas is None:
            # delta = 0 is least squares, and nowhere on a logarithmic axis.
            deltas = np.geomspace(1 / 30, 30, 61) * (delta or 0.1)
        path = relative_flatness_path(
            X,
            y,
            deltas=deltas,
            fit_intercept=estimator.fit_intercept,
            sample_weight=sample_weight,
            return_measures=True,
        )
        columns = getattr(X, "columns", None)
        return cls.from_result(
            path,
            feature_names=None if columns is None else [str(name) for name in columns],
            delta=delta,
            quantity=quantity,
            ax=ax,
            line_kwargs=line_kwargs,
            delta_kwargs=delta_kwargs,
        )

    @classmethod
    def from_result(
        cls,
        path: Any,
        *,
        feature_names: Sequence[str] | None = None,
        delta: float | None = None,
        quantity: str = "coefficients",
        ax: Any = None,
        line_kwargs: Mapping[str, Any] | None = None,
        delta_kwargs: Mapping[str, Any] | None = None,
    ) -> Self:
        """Draw a path that was computed already.

        Parameters
        ----------
        path : tuple
            What `relative_flatness_path` returned.
        feature_names : sequence of str, default=None
            Names of the features; None counts them.
        delta : float, default=None
            A radius to mark.
        quantity : {"coefficients", "loss"}, default="coefficients"
            As in `plot`; "loss" needs a path with ``return_measures=True``.
        ax : matplotlib Axes, default=None
            Axes to draw on; None makes a new figure.
        line_kwargs, delta_kwargs : dict, default=None
            As in `plot`.

        Returns
        -------
        display : RelativeFlatnessPathDisplay
            The drawn display.

        Raises
        ------
        TypeError
            If the path is none.
        """
        if not isinstance(path, tuple) or len(path) not in (3, 4):
            raise TypeError(
                f"{cls.__name__}.from_result expects what relative_flatness_path "
                f"returned, got {path!r}. For data call from_estimator."
            )
        order = np.argsort(path[0])
        coefs = path[1] if path[1].ndim == 3 else path[1][None]
        n_targets, n_features, _ = coefs.shape
        features = list(feature_names or map(str, range(n_features)))
        measures = None
        if len(path) == 4:
            measures = {name: values[order] for name, values in path[3].items()}
        display = cls(
            deltas=path[0][order],
            coefs=coefs.reshape(n_targets * n_features, -1)[:, order],
            names=[
                name if n_targets == 1 else f"{name}, target {target}"
                for target in range(n_targets)
                for name in features
            ],
            measures=measures,
            delta=delta,
        )
        return display.plot(
            ax, quantity=quantity, line_kwargs=line_kwargs, delta_kwargs=delta_kwargs
        )

    def plot(
        self,
        ax: Any = None,
        *,
        quantity: str = "coefficients",
        line_kwargs: Mapping[str, Any] | None = None,
        delta_kwargs: Mapping[str, Any] | None = None,
    ) -> Self:
        """Draw the path over the radius.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on; None makes a new figure.
        quantity : {"coefficients", "loss"}, default="coefficients"
            What to draw: the coefficients; or the mean squared error on the training
            data, and what is expected of it under perturbations of the radius, which is
            the flatness term more.
        line_kwargs : dict, default=None
            Keywords of `Axes.plot` for all lines.
        delta_kwargs : dict, default=None
            Keywords of `Axes.axvline` for the radius that is marked.

        Returns
        -------
        display : RelativeFlatnessPathDisplay
            Itself.

        Raises
        ------
        ValueError
            If the quantity is not known, or was not computed.
        """
        if quantity not in QUANTITIES:
            raise ValueError(
                f"Expected quantity to be one of {QUANTITIES}, got {quantity!r}."
            )
        if quantity == "loss" and self.measures is None:
            raise ValueError(
                'Expected a path with its losses for quantity="loss", got one without. '
                "Call relative_flatness_path with return_measures=True."
            )
        self.ax_, self.figure_ = open_axes(ax, f"{type(self).__name__}.plot")
        self.fill_ = None
        if quantity == "loss":
            self._draw_losses(line_kwargs)
        else:
            self._draw_coefs(line_kwargs)
        set_scale(self.ax_.xaxis, self.deltas)
        self.ax_.margins(x=0.0)
        self.delta_line_ = self._draw_delta(delta_kwargs)
        readable_ticks(self.ax_.xaxis)
        self.ax_.set_xlabel(r"radius $\delta$ of the perturbations (share of the norm)")
        handles, _ = self.ax_.get_legend_handles_labels()
        self.legend_ = add_legend(self.ax_, handles=handles) if handles else None
        return self

    def _draw_coefs(self, kwargs: Mapping[str, Any] | None) -> None:
        """Draw the coefficients."""
        import matplotlib as mpl

        n = len(self.coefs)
        gradient = mpl.colormaps["viridis"](np.linspace(0.1, 0.9, n))
        self.lines_ = []
        for i, (name, coef) in enumerate(zip(self.names, self.coefs, strict=True)):
            style: dict[str, Any] = {"color": gradient[i], "linewidth": 1.0}
            if n <= _NAMED:
                dashed = i >= len(PALETTE)
                style = {
                    "color": PALETTE[i % len(PALETTE)],
                    "linestyle": "--" if dashed else "-",
                    "label": name,
                }
            self.lines_ += self.ax_.plot(self.deltas, coef, **styled(style, kwargs))
        self.ax_.axhline(0.0, color=ink(self.ax_), linewidth=0.8)
        self.ax_.set_ylabel("coefficient (units of y per unit of the feature)")

    def _draw_losses(self, kwargs: Mapping[str, Any] | None) -> None:
        """Draw the loss, what is expected of it, and the flatness term between them."""
        loss, expected = self.measures["loss"], self.measures["expected_loss"]
        styles = (
            (loss, {"color": BLUE, "label": "training loss"}),
            (expected, {"color": ORANGE, "label": "expected under perturbation"}),
        )
        self.lines_ = []
        for values, style in styles:
            self.lines_ += self.ax_.plot(self.deltas, values, **styled(style, kwargs))
        self.fill_ = self.ax_.fill_between(
            self.deltas,
            loss,
            expected,
            **{"facecolor": ORANGE, "label": "flatness term", **BAND_STYLE},
        )
        set_scale(self.ax_.yaxis, [loss, expected])
        self.ax_.set_ylabel(loss_label("squared_error"))

    def _draw_delta(self, kwargs: Mapping[str, Any] | None) -> Any:
        """Mark the radius, if it has a place on the axis."""
        if self.delta is None or (self.delta == 0 and scale_of(self.deltas) == "log"):
            return None
        label = rf"$\delta$ = {self.delta:.3g}"
        style = {"color": ink(self.ax_), "linestyle": ":", "label": label}
        return self.ax_.axvline(self.delta, **styled(style, kwargs))

    def frame(self) -> Any:
        """Return the numbers of the path.

        Returns
        -------
        frame : pandas.DataFrame
            A row for each radius: ``delta``, a column for each coefficient, and the
            measures, if they are known.
        """
        columns = {"delta": self.deltas}
        columns |= dict(zip(self.names, self.coefs, strict=True))
        columns |= dict(self.measures or {})
        return frame_of(columns, f"{type(self).__name__}.frame")
