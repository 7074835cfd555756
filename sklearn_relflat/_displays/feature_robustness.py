"""The rise of the loss with the size of feature perturbations, and its prediction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np

from sklearn_relflat._density.density_radius import DensityRadius
from sklearn_relflat._displays.drawing import (
    BAND_STYLE,
    BLUE,
    ERROR_STYLE,
    GREEN,
    ORANGE,
    add_legend,
    check_matplotlib,
    frame_of,
    ink,
    open_axes,
    readable_ticks,
    set_scale,
    styled,
)
from sklearn_relflat._displays.labels import loss_label
from sklearn_relflat._robustness.feature_robustness import (
    FeatureRobustness,
    feature_robustness,
)
from sklearn_relflat._robustness.smoothed_risk import smoothed_risk

# Where neither sizes nor the data's radius are given.
_DELTAS = (0.02, 1.0)
_N_DELTAS = 10


class FeatureRobustnessDisplay:
    r"""Rise of the loss as features are perturbed, beside what flatness predicts.

    It is recommended to use `from_estimator` or `from_result` to create a
    `FeatureRobustnessDisplay`. All parameters are stored as attributes.

    Parameters
    ----------
    deltas : ndarray of shape (n_deltas,)
        Sizes of the perturbations relative to the features.
    values : ndarray of shape (n_deltas,)
        E_F at each of them, the mean rise of the loss.
    stderr : ndarray of shape (n_deltas,), default=None
        Standard errors of the values.
    coefficient : float, default=None
        The prediction is ``coefficient * delta ** 2``; kappa / (2m) for orthogonal
        perturbations. None draws none.
    agreement_radius : float, default=0.0
        Largest size up to which values and prediction agree to 10 %.
    radius : float, default=None
        The data's own radius, if it is to be marked.
    loss : str, default=None
        The loss, for the axis.
    layer : str, default=None
        The layer, for the title.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes with the curve.
    figure_ : matplotlib Figure
        Figure that contains it.
    errorbar_ : matplotlib ErrorbarContainer
        The values, bars of two standard errors.
    line_ : matplotlib Line2D or None
        The parabola that is predicted.
    radius_line_ : matplotlib Line2D or None
        Vertical line at the data's radius.
    band_ : matplotlib Artist or None
        Sizes up to which values and prediction agree.
    legend_ : matplotlib Legend
        Below the axes.

    See Also
    --------
    feature_robustness : The computation.
    DensityRadiusDisplay : Where the data's radius comes from.

    Notes
    -----
    At the data's radius the rise is what `smoothed_risk` adds to the training loss,
    but for perturbations that are drawn for each sample there and shared by all samples
    here. Where it lies far from the parabola there, flatness alone does not tell how
    the model will do on new data.

    Examples
    --------
    >>> import matplotlib.pyplot as plt
    >>> from sklearn.datasets import load_breast_cancer
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.preprocessing import StandardScaler
    >>> from sklearn_relflat import FeatureRobustnessDisplay
    >>> X, y = load_breast_cancer(return_X_y=True)
    >>> X = StandardScaler().fit_transform(X)
    >>> model = LogisticRegression(tol=1e-6, max_iter=1000).fit(X, y)
    >>> options = {"random_state": 0}
    >>> display = FeatureRobustnessDisplay.from_estimator(model, X, y, options=options)
    >>> plt.show()

    The smallest perturbations raise the loss as predicted, and the data's radius is
    beyond the sizes for which that holds:

    >>> 0 < display.agreement_radius < display.radius
    True
    """

    def __init__(
        self,
        *,
        deltas: np.ndarray,
        values: np.ndarray,
        stderr: np.ndarray | None = None,
        coefficient: float | None = None,
        agreement_radius: float = 0.0,
        radius: float | None = None,
        loss: str | None = None,
        layer: str | None = None,
    ) -> None:
        self.deltas = deltas
        self.values = values
        self.stderr = stderr
        self.coefficient = coefficient
        self.agreement_radius = agreement_radius
        self.radius = radius
        self.loss = loss
        self.layer = layer

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        y: Any = None,
        *,
        deltas: Any = None,
        radius: float | str | DensityRadius | None = "density",
        layer: str | None = None,
        options: Mapping[str, Any] | None = None,
        ax: Any = None,
        errorbar_kwargs: Mapping[str, Any] | None = None,
        line_kwargs: Mapping[str, Any] | None = None,
        radius_kwargs: Mapping[str, Any] | None = None,
        band_kwargs: Mapping[str, Any] | None = None,
    ) -> Self:
        """Measure the robustness of a model and draw it.

        Parameters
        ----------
        estimator : estimator
            A fitted model, see `relative_flatness`.
        X : {array-like, sparse matrix, Tensor, Dataset, dict} of shape (n_samples, ...)
            The sample.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs), default=None
            Targets; None only where X is a data set that carries them.
        deltas : array-like of shape (n_deltas,), default=None
            Sizes of the perturbations; None takes 10 up to twice the radius, or up to 1
            without one.
        radius : float, "density", DensityRadius or None, default="density"
            The data's radius, to be marked; "density" finds it by `density_radius` of
            the features that enter the layer, None marks none.
        layer : str, default=None
            Name of the layer; None is the output layer.
        options : dict, default=None
            Other options of `feature_robustness`, such as ``{"n_matrices": 64}``.
        ax : matplotlib Axes, default=None
            Axes to draw on; None makes a new figure.
        errorbar_kwargs, line_kwargs, radius_kwargs, band_kwargs : dict, default=None
            As in `plot`.

        Returns
        -------
        display : FeatureRobustnessDisplay
            The drawn display.
        """
        check_matplotlib(f"{cls.__name__}.from_estimator")
        given = dict(options or {})
        if isinstance(radius, str) and radius == "density":
            shared = {k: given[k] for k in ("loss", "sample_weight") if k in given}
            radius = smoothed_risk(
                estimator, X, y, layer=layer, n_draws=4, random_state=0, **shared
            ).radius
        delta = None if radius is None else float(radius)
        if deltas is None:
            low, high = _DELTAS if delta is None else (delta / 25, 2 * delta)
            deltas = np.geomspace(low, high, _N_DELTAS)
        result = feature_robustness(
            estimator, X, y, deltas=deltas, layer=layer, **given
        )
        return cls.from_result(
            result,
            radius=delta,
            ax=ax,
            errorbar_kwargs=errorbar_kwargs,
            line_kwargs=line_kwargs,
            radius_kwargs=radius_kwargs,
            band_kwargs=band_kwargs,
        )

    @classmethod
    def from_result(
        cls,
        result: FeatureRobustness,
        *,
        radius: float | DensityRadius | None = None,
        ax: Any = None,
        errorbar_kwargs: Mapping[str, Any] | None = None,
        line_kwargs: Mapping[str, Any] | None = None,
        radius_kwargs: Mapping[str, Any] | None = None,
        band_kwargs: Mapping[str, Any] | None = None,
    ) -> Self:
        """Draw a robustness that was measured already.

        Parameters
        ----------
        result : FeatureRobustness
            Of `feature_robustness`.
        radius : float or DensityRadius, default=None
            The data's radius, to be marked.
        ax : matplotlib Axes, default=None
            Axes to draw on; None makes a new figure.
        errorbar_kwargs, line_kwargs, radius_kwargs, band_kwargs : dict, default=None
            As in `plot`.

        Returns
        -------
        display : FeatureRobustnessDisplay
            The drawn display.

        Raises
        ------
        TypeError
            If the result is not one of `feature_robustness`.
        """
        if not isinstance(result, FeatureRobustness):
            raise TypeError(
                f"{cls.__name__}.from_result expects a result of feature_robustness, "
                f"got {result!r}. For a fitted model call from_estimator."
            )
        order = np.argsort(result.deltas)
        term, coefficient = result.flatness_term, None
        if term is not None:
            coefficient = float(term[0] / result.deltas[0] ** 2)
        display = cls(
            deltas=result.deltas[order],
            values=result.expectation[order],
            stderr=result.expectation_stderr[order],
            coefficient=coefficient,
            agreement_radius=0.0 if term is None else result.agreement_radius,
            radius=None if radius is None else float(radius),
            loss=result.loss,
            layer=result.layer,
        )
        return display.plot(
            ax,
            errorbar_kwargs=errorbar_kwargs,
            line_kwargs=line_kwargs,
            radius_kwargs=radius_kwargs,
            band_kwargs=band_kwargs,
        )

    def plot(
        self,
        ax: Any = None,
        *,
        errorbar_kwargs: Mapping[str, Any] | None = None,
        line_kwargs: Mapping[str, Any] | None = None,
        radius_kwargs: Mapping[str, Any] | None = None,
        band_kwargs: Mapping[str, Any] | None = None,
    ) -> Self:
        """Draw the rise of the loss over the size of the perturbations.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on; None makes a new figure.
        errorbar_kwargs : dict, default=None
            Keywords of `Axes.errorbar` for the values.
        line_kwargs : dict, default=None
            Keywords of `Axes.plot` for the prediction.
        radius_kwargs : dict, default=None
            Keywords of `Axes.axvline` for the data's radius.
        band_kwargs : dict, default=None
            Keywords of `Axes.axvspan` for the sizes of agreement.

        Returns
        -------
        display : FeatureRobustnessDisplay
            Itself.
        """
        self.ax_, self.figure_ = open_axes(ax, f"{type(self).__name__}.plot")
        style = {"color": BLUE, "marker": "o", "linestyle": "", **ERROR_STYLE}
        self.errorbar_ = self.ax_.errorbar(
            self.deltas,
            self.values,
            yerr=self._bars(),
            **styled({"label": "measured", **style}, errorbar_kwargs),
        )
        set_scale(self.ax_.xaxis, self.deltas)
        set_scale(self.ax_.yaxis, self.values)
        # What else there is must not stretch the axes.
        self.ax_.set_xlim(self.ax_.get_xlim())
        self.ax_.set_ylim(self.ax_.get_ylim())
        self.line_ = self._draw_prediction(line_kwargs)
        self.radius_line_ = self._draw_radius(radius_kwargs)
        self.band_ = self._draw_agreement(band_kwargs)
        readable_ticks(self.ax_.xaxis)
        self.ax_.set_xlabel(r"size $\delta$ of the perturbations (share of the norm)")
        self.ax_.set_ylabel(rf"rise $E_F(\delta)$ of the {loss_label(self.loss)}")
        if self.layer is not None:
            self.ax_.set_title(f"features of layer {self.layer!r}")
        drawn = (self.errorbar_, self.line_, self.radius_line_, self.band_)
        self.legend_ = add_legend(self.ax_, handles=[a for a in drawn if a is not None])
        return self

    def _bars(self) -> np.ndarray | None:
        """Half lengths of the error bars; a single draw has no error."""
        if self.stderr is None:
            return None
        errors = np.asarray(self.stderr, dtype=np.float64)
        return 2 * np.where(np.isfinite(errors), errors, np.nan)

    def _draw_prediction(self, kwargs: Mapping[str, Any] | None) -> Any:
        """Draw the parabola."""
        if self.coefficient is None:
            return None
        # Between the values, too: it is curved on a linear axis.
        sizes = np.geomspace(np.min(self.deltas), np.max(self.deltas), 200)
        style = {
            "color": ORANGE,
            "linestyle": "--",
            "label": r"predicted by $\kappa$",
        }
        (line,) = self.ax_.plot(
            sizes, self.coefficient * sizes**2, **styled(style, kwargs)
        )
        return line

    def _draw_radius(self, kwargs: Mapping[str, Any] | None) -> Any:
        """Mark the data's radius."""
        if self.radius is None:
            return None
        low, high = self.ax_.get_xlim()
        self.ax_.set_xlim(min(low, self.radius / 1.1), max(high, self.radius * 1.1))
        style = {
            "color": ink(self.ax_),
            "linestyle": ":",
            "label": rf"data's radius, $\delta^*$ = {self.radius:.3g}",
        }
        return self.ax_.axvline(self.radius, **styled(style, kwargs))

    def _draw_agreement(self, kwargs: Mapping[str, Any] | None) -> Any:
        """Shade the sizes at which the prediction holds."""
        from matplotlib.patches import Patch

        if not self.agreement_radius:
            return None
        style = {"facecolor": GREEN, "label": "agreement to 10 %", **BAND_STYLE}
        style["alpha"] = 0.15
        return self.ax_.axvspan(
            np.min(self.deltas), self.agreement_radius, **styled(style, kwargs, Patch)
        )

    def frame(self) -> Any:
        """Return the numbers of the curve.

        Returns
        -------
        frame : pandas.DataFrame
            Columns ``delta``, ``feature_robustness``, ``stderr`` and ``predicted``.
        """
        none = np.full(len(self.deltas), np.nan)
        predicted = none
        if self.coefficient is not None:
            predicted = self.coefficient * self.deltas**2
        columns = {
            "delta": self.deltas,
            "feature_robustness": self.values,
            "stderr": none if self.stderr is None else self.stderr,
            "predicted": predicted,
        }
        return frame_of(columns, f"{type(self).__name__}.frame")
