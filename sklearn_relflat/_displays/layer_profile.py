"""Relative flatness of each layer of a model, from input to output."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np

from sklearn_relflat._displays.drawing import (
    BLUE,
    ERROR_STYLE,
    check_matplotlib,
    frame_of,
    ink,
    make_room,
    name_rows,
    open_axes,
    readable_ticks,
    set_scale,
    styled,
)
from sklearn_relflat._displays.labels import flatness_label
from sklearn_relflat._flatness.relative_flatness import layerwise_relative_flatness
from sklearn_relflat._flatness.result import LayerwiseRelativeFlatness


class LayerProfileDisplay:
    """Relative flatness of each layer, from the input at the top to the output.

    It is recommended to use `from_estimator` or `from_result` to create a
    `LayerProfileDisplay`. All parameters are stored as attributes.

    Parameters
    ----------
    layers : list of str
        Names of the layers, in the order of the model; those that were not measured
        come last.
    values : ndarray of shape (n_layers,)
        Relative flatness of each, NaN where it was not measured.
    stderr : ndarray of shape (n_layers,), default=None
        Standard errors of the sampling; None or zero where exact.
    loss : str, default=None
        The loss, for the axis.
    symbol : str, default="kappa"
        Statistic of the curvature: "kappa" or "kappa_max".
    name : str, default=None
        Name of the model, for the title.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes with the profile.
    figure_ : matplotlib Figure
        Figure that contains it.
    errorbar_ : matplotlib ErrorbarContainer
        A point for each layer that was measured, bars of two standard errors.
    text_ : list of matplotlib Text
        "not measured", for the others.

    See Also
    --------
    layerwise_relative_flatness : The computation.

    Notes
    -----
    kappa compares models in one layer. Layers differ in the number of features and
    positions that they see, so that a larger kappa need not mean a worse layer; in a
    net of ReLU units the sharpest layer is the one where the loss gives way first when
    features are perturbed in proportion to their size.

    Examples
    --------
    >>> import matplotlib.pyplot as plt
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.neural_network import MLPClassifier
    >>> from sklearn_relflat import LayerProfileDisplay
    >>> X, y = load_iris(return_X_y=True)
    >>> mlp = MLPClassifier((16, 8), solver="lbfgs", max_iter=2000, random_state=0)
    >>> display = LayerProfileDisplay.from_estimator(mlp.fit(X, y), X, y)
    >>> plt.show()
    >>> display.layers
    ['coefs.0', 'coefs.1', 'coefs.2']
    """

    def __init__(
        self,
        *,
        layers: list[str],
        values: np.ndarray,
        stderr: np.ndarray | None = None,
        loss: str | None = None,
        symbol: str = "kappa",
        name: str | None = None,
    ) -> None:
        self.layers = layers
        self.values = values
        self.stderr = stderr
        self.loss = loss
        self.symbol = symbol
        self.name = name

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        y: Any = None,
        *,
        options: Mapping[str, Any] | None = None,
        name: str | None = None,
        ax: Any = None,
        errorbar_kwargs: Mapping[str, Any] | None = None,
    ) -> Self:
        """Measure the layers of a model and draw them.

        Parameters
        ----------
        estimator : estimator
            A fitted model, see `relative_flatness`.
        X : {array-like, sparse matrix, Tensor, Dataset, dict} of shape (n_samples, ...)
            The sample, for the flatness of the paper the training sample.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs), default=None
            Targets; None only where X is a data set that carries them.
        options : dict, default=None
            Other options of `layerwise_relative_flatness`, such as
            ``{"normalize": "std"}``.
        name : str, default=None
            Name of the model, for the title.
        ax : matplotlib Axes, default=None
            Axes to draw on; None makes a new figure.
        errorbar_kwargs : dict, default=None
            As in `plot`.

        Returns
        -------
        display : LayerProfileDisplay
            The drawn display.
        """
        check_matplotlib(f"{cls.__name__}.from_estimator")
        result = layerwise_relative_flatness(estimator, X, y, **(options or {}))
        return cls.from_result(
            result, name=name, ax=ax, errorbar_kwargs=errorbar_kwargs
        )

    @classmethod
    def from_result(
        cls,
        result: LayerwiseRelativeFlatness,
        *,
        name: str | None = None,
        ax: Any = None,
        errorbar_kwargs: Mapping[str, Any] | None = None,
    ) -> Self:
        """Draw layers that were measured already.

        Parameters
        ----------
        result : dict of str to RelativeFlatness
            Of `layerwise_relative_flatness`.
        name : str, default=None
            Name of the model, for the title.
        ax : matplotlib Axes, default=None
            Axes to draw on; None makes a new figure.
        errorbar_kwargs : dict, default=None
            As in `plot`.

        Returns
        -------
        display : LayerProfileDisplay
            The drawn display.

        Raises
        ------
        TypeError
            If the result is not one of `layerwise_relative_flatness`.
        """
        if not isinstance(result, LayerwiseRelativeFlatness):
            raise TypeError(
                f"{cls.__name__}.from_result expects a result of "
                f"layerwise_relative_flatness, got {result!r}. For a fitted model call "
                "from_estimator."
            )
        measured = list(result.values())
        missing = [np.nan] * len(result.not_measured)
        display = cls(
            layers=[*result, *result.not_measured],
            values=np.array([r.value for r in measured] + missing),
            stderr=np.array([r.stderr for r in measured] + missing),
            loss=measured[0].loss if measured else None,
            symbol="kappa_max"
            if any(r.statistic == "max_eigenvalue" for r in measured)
            else "kappa",
            name=name,
        )
        return display.plot(ax, errorbar_kwargs=errorbar_kwargs)

    def plot(
        self, ax: Any = None, *, errorbar_kwargs: Mapping[str, Any] | None = None
    ) -> Self:
        """Draw a point for each layer.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on; None makes a new figure, higher where there are many
            layers.
        errorbar_kwargs : dict, default=None
            Keywords of `Axes.errorbar` for the points.

        Returns
        -------
        display : LayerProfileDisplay
            Itself.
        """
        own_figure = ax is None
        self.ax_, self.figure_ = open_axes(ax, f"{type(self).__name__}.plot")
        if own_figure:
            make_room(self.figure_, len(self.layers))
        values = np.asarray(self.values, dtype=np.float64)
        rows = np.arange(len(values), dtype=np.float64)
        style = {"color": BLUE, "marker": "o", "linestyle": "-", **ERROR_STYLE}
        self.errorbar_ = self.ax_.errorbar(
            values,
            rows,
            xerr=self._bars(),
            **styled({"linewidth": 0.8, **style}, errorbar_kwargs),
        )
        set_scale(self.ax_.xaxis, values)
        self._mark_missing(rows[~np.isfinite(values)])
        name_rows(self.ax_, self.layers, ruled=False)
        self.ax_.grid(axis="y", alpha=0.3)
        readable_ticks(self.ax_.xaxis)
        self.ax_.set_xlabel(flatness_label(self.loss, self.symbol))
        self.ax_.set_ylabel("layer")
        if self.name is not None:
            self.ax_.set_title(self.name)
        return self

    def _bars(self) -> np.ndarray | None:
        """Half lengths of the error bars, None where all is exact."""
        if self.stderr is None:
            return None
        errors = np.asarray(self.stderr, dtype=np.float64)
        return 2 * errors if (errors > 0).any() else None

    def _mark_missing(self, rows: np.ndarray) -> None:
        """Say of layers that they were not measured."""
        self.text_ = [
            self.ax_.text(
                0.5,
                row,
                "not measured",
                transform=self.ax_.get_yaxis_transform(),
                horizontalalignment="center",
                verticalalignment="center",
                fontsize="small",
                style="italic",
                color=ink(self.ax_),
                backgroundcolor=self.ax_.get_facecolor(),
            )
            for row in rows
        ]

    def frame(self) -> Any:
        """Return the numbers of the profile.

        Returns
        -------
        frame : pandas.DataFrame
            Columns ``layer``, ``relative_flatness`` and ``stderr``.
        """
        stderr = np.zeros(len(self.layers)) if self.stderr is None else self.stderr
        columns = {
            "layer": self.layers,
            "relative_flatness": self.values,
            "stderr": stderr,
        }
        return frame_of(columns, f"{type(self).__name__}.frame")
