"""The density of a Hessian's eigenvalues."""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import fill
from typing import Any, Self

import numpy as np

from sklearn_relflat._displays.drawing import (
    BAND_STYLE,
    BLUE,
    ORANGE,
    VERMILION,
    add_legend,
    check_matplotlib,
    frame_of,
    open_axes,
    styled,
)
from sklearn_relflat._displays.labels import loss_label
from sklearn_relflat._layers.names import layer_words
from sklearn_relflat._measures.spectrum import hessian_spectrum
from sklearn_relflat._measures.spectrum_result import HessianSpectrum

# Points of the curve for each width of its Gaussians, and widths beyond the extremes.
_POINTS_PER_WIDTH, _WIDTHS_BEYOND = 8, 4
_MOST_POINTS = 20_000
# Characters of the title in a line.
_TITLE = 56


class HessianSpectrumDisplay:
    """Density of the eigenvalues of a Hessian, on a logarithmic scale.

    It is recommended to use `from_estimator` or `from_result` to create a
    `HessianSpectrumDisplay`. All parameters are stored as attributes.

    Parameters
    ----------
    eigenvalues : ndarray of shape (n_points,)
        Where the density is known, increasing, in units of the loss per squared unit of
        the weights.
    density : ndarray of shape (n_points,)
        Density there; its integral is one.
    largest, smallest : float
        Largest and smallest eigenvalue, as far as they are known.
    width : float
        Standard deviation of the Gaussian that each eigenvalue is drawn as.
    n_weights : int
        Number of eigenvalues.
    stderr : ndarray of shape (n_points,), default=None
        Standard errors of the density over the random vectors; zero where all
        eigenvalues were computed. None is not known.
    loss : str, default=None
        The loss, for the title.
    layer : str, default=None
        The layer, for the title.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes with the density.
    figure_ : matplotlib Figure
        Figure that contains it.
    line_ : matplotlib Line2D
        The density.
    band_ : matplotlib Artist or None
        Within two standard errors of it; None where there is no error.
    largest_line_, smallest_line_ : matplotlib Line2D
        Vertical lines at the extremes.
    legend_ : matplotlib Legend
        Below the axes.

    See Also
    --------
    hessian_spectrum : The computation.
    hessian_eigenvalues : The first few eigenvalues, to any accuracy.

    Notes
    -----
    The scale ends where a tenth of one eigenvalue would be seen: below that the density
    between the Gaussians says nothing. Eigenvalues that are negative beyond round-off
    tell that the model is at no minimum of the mean loss of this sample.

    Examples
    --------
    >>> import matplotlib.pyplot as plt
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.neural_network import MLPClassifier
    >>> from sklearn_relflat import HessianSpectrumDisplay
    >>> X, y = load_digits(return_X_y=True)
    >>> X, y = X[:200] / 16, y[:200]
    >>> mlp = MLPClassifier((8,), solver="lbfgs", max_iter=1000, random_state=0)
    >>> display = HessianSpectrumDisplay.from_estimator(mlp.fit(X, y), X, y)
    >>> plt.show()

    Most directions are flat: the density is highest at zero.

    >>> most = display.eigenvalues[display.density.argmax()]
    >>> bool(abs(most) < display.width)
    True
    """

    def __init__(
        self,
        *,
        eigenvalues: np.ndarray,
        density: np.ndarray,
        largest: float,
        smallest: float,
        width: float,
        n_weights: int,
        stderr: np.ndarray | None = None,
        loss: str | None = None,
        layer: str | None = None,
    ) -> None:
        self.eigenvalues = eigenvalues
        self.density = density
        self.largest = largest
        self.smallest = smallest
        self.width = width
        self.n_weights = n_weights
        self.stderr = stderr
        self.loss = loss
        self.layer = layer

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        y: Any = None,
        *,
        layer: Any = None,
        width: float | None = None,
        options: Mapping[str, Any] | None = None,
        ax: Any = None,
        line_kwargs: Mapping[str, Any] | None = None,
        band_kwargs: Mapping[str, Any] | None = None,
        extreme_kwargs: Mapping[str, Any] | None = None,
    ) -> Self:
        """Compute the spectrum of a model and draw its density.

        Parameters
        ----------
        estimator : estimator
            A fitted model, see `relative_flatness`.
        X : {array-like, sparse matrix, Tensor, Dataset, dict} of shape (n_samples, ...)
            The sample.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs), default=None
            Targets; None only where X is a data set that carries them.
        layer : str or sequence of str, default=None
            Name of a layer; None is the output layer, "all" the weights of all layers
            together.
        width : float, default=None
            As in `from_result`.
        options : dict, default=None
            Other options of `hessian_spectrum`, such as ``{"n_probes": 16}``.
        ax : matplotlib Axes, default=None
            Axes to draw on; None makes a new figure.
        line_kwargs, band_kwargs, extreme_kwargs : dict, default=None
            As in `plot`.

        Returns
        -------
        display : HessianSpectrumDisplay
            The drawn display.
        """
        check_matplotlib(f"{cls.__name__}.from_estimator")
        result = hessian_spectrum(estimator, X, y, layer=layer, **(options or {}))
        return cls.from_result(
            result,
            width=width,
            ax=ax,
            line_kwargs=line_kwargs,
            band_kwargs=band_kwargs,
            extreme_kwargs=extreme_kwargs,
        )

    @classmethod
    def from_result(
        cls,
        result: HessianSpectrum,
        *,
        width: float | None = None,
        ax: Any = None,
        line_kwargs: Mapping[str, Any] | None = None,
        band_kwargs: Mapping[str, Any] | None = None,
        extreme_kwargs: Mapping[str, Any] | None = None,
    ) -> Self:
        """Draw the density of a spectrum that was computed already.

        Parameters
        ----------
        result : HessianSpectrum
            Of `hessian_spectrum`.
        width : float, default=None
            Standard deviation of the Gaussian that each eigenvalue is drawn as; None is
            a hundredth of the range.
        ax : matplotlib Axes, default=None
            Axes to draw on; None makes a new figure.
        line_kwargs, band_kwargs, extreme_kwargs : dict, default=None
            As in `plot`.

        Returns
        -------
        display : HessianSpectrumDisplay
            The drawn display.

        Raises
        ------
        TypeError
            If the result is not one of `hessian_spectrum`.
        """
        if not isinstance(result, HessianSpectrum):
            raise TypeError(
                f"{cls.__name__}.from_result expects a result of hessian_spectrum, got "
                f"{result!r}. For a fitted model call from_estimator."
            )
        width = result.width if width is None else width
        # Evaluated at one point first, which checks the width.
        result.density([result.largest], width)
        low = result.smallest - _WIDTHS_BEYOND * width
        high = result.largest + _WIDTHS_BEYOND * width
        n_points = min(int((high - low) / width * _POINTS_PER_WIDTH) + 1, _MOST_POINTS)
        eigenvalues = np.linspace(low, high, n_points)
        density, stderr = result.density(eigenvalues, width, return_stderr=True)
        display = cls(
            eigenvalues=eigenvalues,
            density=density,
            largest=result.largest,
            smallest=result.smallest,
            width=float(width),
            n_weights=result.n_weights,
            stderr=stderr,
            loss=result.loss,
            layer=result.layer,
        )
        return display.plot(
            ax,
            line_kwargs=line_kwargs,
            band_kwargs=band_kwargs,
            extreme_kwargs=extreme_kwargs,
        )

    def plot(
        self,
        ax: Any = None,
        *,
        line_kwargs: Mapping[str, Any] | None = None,
        band_kwargs: Mapping[str, Any] | None = None,
        extreme_kwargs: Mapping[str, Any] | None = None,
    ) -> Self:
        """Draw the density over the eigenvalue.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on; None makes a new figure.
        line_kwargs : dict, default=None
            Keywords of `Axes.plot` for the density.
        band_kwargs : dict, default=None
            Keywords of `Axes.fill_between` for its error.
        extreme_kwargs : dict, default=None
            Keywords of `Axes.axvline` for the largest and the smallest eigenvalue.

        Returns
        -------
        display : HessianSpectrumDisplay
            Itself.
        """
        self.ax_, self.figure_ = open_axes(ax, f"{type(self).__name__}.plot")
        style: dict[str, Any] = {"color": BLUE, "linewidth": 1.2, "label": "density"}
        (self.line_,) = self.ax_.plot(
            self.eigenvalues, self.density, **styled(style, line_kwargs)
        )
        self.band_ = self._draw_band(band_kwargs)
        self.largest_line_, self.smallest_line_ = (
            self.ax_.axvline(
                value,
                **styled(
                    {
                        "color": color,
                        "linestyle": dashes,
                        "label": f"{name}: {value:.3g}",
                    },
                    extreme_kwargs,
                ),
            )
            for name, value, color, dashes in (
                ("largest", self.largest, ORANGE, "--"),
                ("smallest", self.smallest, VERMILION, ":"),
            )
        )
        self.ax_.set_yscale("log")
        self.ax_.set_ylim(self._floor, 2 * self._top())
        self.ax_.set_xlabel(r"eigenvalue (units of the loss per weight$^2$)")
        self.ax_.set_ylabel("density (share of the eigenvalues per unit)")
        if self.layer is not None:
            words = (
                f"Hessian of the {loss_label(self.loss)} in {layer_words(self.layer)}"
            )
            # Several names, or a long one, are wider than the axes.
            self.ax_.set_title(fill(words, _TITLE))
        drawn = (self.line_, self.band_, self.largest_line_, self.smallest_line_)
        self.legend_ = add_legend(self.ax_, handles=[a for a in drawn if a is not None])
        return self

    @property
    def _floor(self) -> float:
        """Density at the middle of a Gaussian of a tenth of an eigenvalue."""
        return 0.1 / (self.n_weights * self.width * np.sqrt(2 * np.pi))

    def _draw_band(self, kwargs: Mapping[str, Any] | None) -> Any:
        """Shade what is within the error."""
        from matplotlib.collections import PolyCollection

        if self.stderr is None or not np.any(self.stderr > 0):
            return None
        style = {
            "facecolor": BLUE,
            "label": r"$\pm$ 2 standard errors",
            **BAND_STYLE,
        }
        # An end of zero or less has no place on the scale.
        ends = (
            np.maximum(self.density + sign * self.stderr, self._floor / 10)
            for sign in (-2, 2)
        )
        return self.ax_.fill_between(
            self.eigenvalues, *ends, **styled(style, kwargs, PolyCollection)
        )

    def _top(self) -> float:
        """Largest value that is drawn."""
        if self.stderr is None or self.band_ is None:
            return float(np.max(self.density))
        return float(np.max(self.density + 2 * self.stderr))

    def frame(self) -> Any:
        """Return the numbers of the curve.

        Returns
        -------
        frame : pandas.DataFrame
            Columns ``eigenvalue``, ``density`` and ``stderr``.
        """
        none = np.full(len(self.eigenvalues), np.nan)
        columns = {
            "eigenvalue": self.eigenvalues,
            "density": self.density,
            "stderr": none if self.stderr is None else self.stderr,
        }
        return frame_of(columns, f"{type(self).__name__}.frame")
