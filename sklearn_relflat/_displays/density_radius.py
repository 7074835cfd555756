"""The likelihood curve that the data's own radius is the maximum of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np

from sklearn_relflat._density.density_radius import DensityRadius, density_radius
from sklearn_relflat._displays.drawing import (
    BAND_STYLE,
    BLUE,
    ORANGE,
    add_legend,
    check_matplotlib,
    frame_of,
    open_axes,
    readable_ticks,
    styled,
)
from sklearn_relflat._robustness.smoothed_result import SmoothedRisk

# Further from the best radius the likelihood falls by so much that its maximum could
# not be seen beside it.
_SHOWN = 4.0
_ERROR = r"$\pm$ 2 standard errors"


class DensityRadiusDisplay:
    """Likelihood of the data as a function of the radius of local densities.

    It is recommended to use `from_features` or `from_result` to create a
    `DensityRadiusDisplay`. All parameters are stored as attributes.

    Parameters
    ----------
    radii : ndarray of shape (n_radii,)
        Radii of the local densities, increasing.
    log_likelihoods : ndarray of shape (n_radii,)
        Mean leave-one-out log-density at each of them, in nats.
    radius : float
        The radius with the highest likelihood.
    stderr : float, default=0.0
        Its standard error.
    name : str, default=None
        What the features are, for the legend.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes with the curve.
    figure_ : matplotlib Figure
        Figure that contains it.
    line_ : matplotlib Line2D
        The curve.
    radius_line_ : matplotlib Line2D
        Vertical line at the radius.
    band_ : matplotlib Artist or None
        Radii within two standard errors of it; None without a finite error.
    legend_ : matplotlib Legend
        Below the axes.

    See Also
    --------
    density_radius : The computation.
    FeatureRobustnessDisplay : What perturbations of that radius do to the loss.

    Examples
    --------
    >>> import matplotlib.pyplot as plt
    >>> from sklearn.datasets import load_breast_cancer
    >>> from sklearn.preprocessing import StandardScaler
    >>> from sklearn_relflat import DensityRadiusDisplay
    >>> Z = StandardScaler().fit_transform(load_breast_cancer().data)
    >>> display = DensityRadiusDisplay.from_features(Z)
    >>> plt.show()

    The curve ends in a maximum, which is the radius:

    >>> best = display.log_likelihoods.argmax()
    >>> float(display.radii[best]) == display.radius
    True
    """

    def __init__(
        self,
        *,
        radii: np.ndarray,
        log_likelihoods: np.ndarray,
        radius: float,
        stderr: float = 0.0,
        name: str | None = None,
    ) -> None:
        self.radii = radii
        self.log_likelihoods = log_likelihoods
        self.radius = radius
        self.stderr = stderr
        self.name = name

    @classmethod
    def from_features(
        cls,
        Z: Any,
        y: Any = None,
        *,
        options: Mapping[str, Any] | None = None,
        name: str | None = None,
        ax: Any = None,
        line_kwargs: Mapping[str, Any] | None = None,
        radius_kwargs: Mapping[str, Any] | None = None,
        band_kwargs: Mapping[str, Any] | None = None,
    ) -> Self:
        """Choose the radius of features and draw the curve.

        Parameters
        ----------
        Z : {array-like, Tensor} of shape (n_samples, n_features)
            Features.
        y : array-like of shape (n_samples,), default=None
            Classes, for ``options={"shape": "within_class"}`` only.
        options : dict, default=None
            Other options of `density_radius`, such as ``{"n_queries": 500}``.
        name : str, default=None
            What the features are, for the legend.
        ax : matplotlib Axes, default=None
            Axes to draw on; None makes a new figure.
        line_kwargs, radius_kwargs, band_kwargs : dict, default=None
            As in `plot`.

        Returns
        -------
        display : DensityRadiusDisplay
            The drawn display.
        """
        check_matplotlib(f"{cls.__name__}.from_features")
        return cls.from_result(
            density_radius(Z, y, **(options or {})),
            name=name,
            ax=ax,
            line_kwargs=line_kwargs,
            radius_kwargs=radius_kwargs,
            band_kwargs=band_kwargs,
        )

    @classmethod
    def from_result(
        cls,
        result: DensityRadius | SmoothedRisk,
        *,
        name: str | None = None,
        ax: Any = None,
        line_kwargs: Mapping[str, Any] | None = None,
        radius_kwargs: Mapping[str, Any] | None = None,
        band_kwargs: Mapping[str, Any] | None = None,
    ) -> Self:
        """Draw the curve of a radius that is known already.

        Parameters
        ----------
        result : DensityRadius or SmoothedRisk
            Of `density_radius`, or of `smoothed_risk` with ``radius="density"``.
        name : str, default=None
            What the features are, for the legend.
        ax : matplotlib Axes, default=None
            Axes to draw on; None makes a new figure.
        line_kwargs, radius_kwargs, band_kwargs : dict, default=None
            As in `plot`.

        Returns
        -------
        display : DensityRadiusDisplay
            The drawn display.

        Raises
        ------
        TypeError
            If the result has no likelihood curve.
        """
        caller = f"{cls.__name__}.from_result"
        density = result.density if isinstance(result, SmoothedRisk) else result
        if not isinstance(density, DensityRadius):
            raise TypeError(
                f"{caller} expects a result of density_radius, or of smoothed_risk "
                f'with radius="density", got {result!r}. For features call '
                "from_features."
            )
        display = cls(
            radii=density.radii,
            log_likelihoods=density.log_likelihoods,
            radius=density.radius,
            stderr=density.stderr,
            name=name,
        )
        return display.plot(
            ax,
            line_kwargs=line_kwargs,
            radius_kwargs=radius_kwargs,
            band_kwargs=band_kwargs,
        )

    def plot(
        self,
        ax: Any = None,
        *,
        line_kwargs: Mapping[str, Any] | None = None,
        radius_kwargs: Mapping[str, Any] | None = None,
        band_kwargs: Mapping[str, Any] | None = None,
    ) -> Self:
        """Draw the likelihood over the radius.

        The limits show the radii within a factor of 4 of the best one, and the
        likelihoods down to that of the largest of these: towards small radii it falls
        without bound.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on; None makes a new figure.
        line_kwargs : dict, default=None
            Keywords of `Axes.plot` for the curve.
        radius_kwargs : dict, default=None
            Keywords of `Axes.axvline` for the radius.
        band_kwargs : dict, default=None
            Keywords of `Axes.axvspan` for its error.

        Returns
        -------
        display : DensityRadiusDisplay
            Itself.
        """
        self.ax_, self.figure_ = open_axes(ax, f"{type(self).__name__}.plot")
        label = "likelihood" if self.name is None else f"likelihood, {self.name}"
        style = {"color": BLUE, "marker": "o", "markersize": 4.0, "label": label}
        (self.line_,) = self.ax_.plot(
            self.radii, self.log_likelihoods, **styled(style, line_kwargs)
        )
        self._draw_radius(radius_kwargs, band_kwargs)
        self.ax_.set_xscale("log")
        self._set_limits()
        readable_ticks(self.ax_.xaxis)
        self.ax_.set_xlabel(
            r"radius $\delta$ of the local densities (share of the norm)"
        )
        self.ax_.set_ylabel("mean leave-one-out log-density (nats)")
        self.legend_ = add_legend(self.ax_)
        return self

    def _draw_radius(
        self,
        radius_kwargs: Mapping[str, Any] | None,
        band_kwargs: Mapping[str, Any] | None,
    ) -> None:
        """Draw the radius with its error."""
        from matplotlib.patches import Patch

        has_error = 0 < self.stderr < np.inf
        error = rf" $\pm$ {self.stderr:.1g}" if has_error else ""
        style = {
            "color": ORANGE,
            "linestyle": "--",
            "label": rf"$\delta^*$ = {self.radius:.3g}{error}",
        }
        self.radius_line_ = self.ax_.axvline(
            self.radius, **styled(style, radius_kwargs)
        )
        self.band_ = None
        if has_error:
            # In the logarithm, so that no radius below zero is drawn.
            factor = np.exp(2 * self.stderr / self.radius)
            band = {"facecolor": ORANGE, "label": _ERROR, **BAND_STYLE}
            self.band_ = self.ax_.axvspan(
                self.radius / factor,
                self.radius * factor,
                **styled(band, band_kwargs, Patch),
            )

    def _set_limits(self) -> None:
        """Show what is near the maximum."""
        radii, values = self.radii, self.log_likelihoods
        near = np.isfinite(values) & (radii <= self.radius * _SHOWN)
        near &= radii >= self.radius / _SHOWN
        larger = near & (radii > self.radius)
        floor = values[larger if larger.any() else near].min()
        high = near & (values >= floor)
        if high.sum() > 1:
            margin = 0.08 * (values[high].max() - floor)
            self.ax_.set_ylim(floor - margin, values[high].max() + margin)
            self.ax_.set_xlim(radii[high].min() / 1.3, radii[high].max() * 1.1)

    def frame(self) -> Any:
        """Return the numbers of the curve.

        Returns
        -------
        frame : pandas.DataFrame
            Columns ``radius``, ``log_likelihood`` and ``is_best``.
        """
        columns = {
            "radius": self.radii,
            "log_likelihood": self.log_likelihoods,
            "is_best": self.radii == self.radius,
        }
        return frame_of(columns, f"{type(self).__name__}.frame")
