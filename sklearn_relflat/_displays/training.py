"""The losses and the flatness of a net, epoch by epoch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Self

import numpy as np

from sklearn_relflat._data.estimator_data import final_model
from sklearn_relflat._displays.drawing import (
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    VERMILION,
    add_legend,
    check_matplotlib,
    frame_of,
    ink,
    open_axes,
    readable_ticks,
    set_scale,
    styled,
)

_LOSSES = ("train_loss", "valid_loss", "smoothed_risk")
_NAMES = {
    "train_loss": "training loss",
    "valid_loss": "validation loss",
    "train_flatness": r"$\kappa$ of training samples",
    "valid_flatness": r"$\kappa$ of validation samples",
}
_COLORS = {
    "train_loss": BLUE,
    "valid_loss": ORANGE,
    "smoothed_risk": GREEN,
    "train_flatness": BLUE,
    "valid_flatness": ORANGE,
}
_OTHER_COLORS = (PURPLE, VERMILION)
# Estimates of the risk on new data, whose smallest value is an epoch to stop at.
_RISKS = ("valid_loss", "smoothed_risk")


class TrainingDisplay:
    """Losses, smoothed risk and flatness of a net over the epochs of its training.

    It is recommended to use `from_estimator` or `from_history` to create a
    `TrainingDisplay`. All parameters are stored as attributes.

    Parameters
    ----------
    epochs : ndarray of shape (n_epochs,)
        Numbers of the epochs.
    losses : dict of str to ndarray of shape (n_epochs,)
        Losses and smoothed risks by the names of their columns.
    flatness : dict of str to ndarray of shape (n_epochs,)
        Relative flatness by the names of their columns.

    Attributes
    ----------
    axes_ : ndarray of matplotlib Axes
        The panels: the losses, and below them the flatness, as far as there are any.
    ax_ : matplotlib Axes
        The first of them.
    figure_ : matplotlib Figure
        Figure that contains them.
    lines_ : dict of str to matplotlib Line2D
        The curves, by the names of the columns.
    best_ : dict of str to matplotlib Line2D
        Marks at the smallest validation loss and smoothed risk.
    legend_ : matplotlib Legend
        Below the panels.

    See Also
    --------
    sklearn_relflat.callbacks.SmoothedRiskMonitor : Records the smoothed risk.
    sklearn_relflat.callbacks.RelativeFlatnessMonitor : Records the flatness.

    Examples
    --------
    >>> import matplotlib.pyplot as plt
    >>> import numpy as np
    >>> from skorch import NeuralNetRegressor
    >>> from torch import nn
    >>> from sklearn_relflat import TrainingDisplay
    >>> from sklearn_relflat.callbacks import SmoothedRiskMonitor
    >>> X = np.linspace(-1, 1, 20, dtype="float32")[:, None]
    >>> net = NeuralNetRegressor(
    ...     nn.Linear,
    ...     module__in_features=1,
    ...     module__out_features=1,
    ...     max_epochs=5,
    ...     train_split=None,
    ...     callbacks=[("risk", SmoothedRiskMonitor(radius=0.1))],
    ...     verbose=0,
    ... ).fit(X, X)
    >>> display = TrainingDisplay.from_history(net.history)
    >>> plt.show()
    >>> list(display.losses)
    ['train_loss', 'smoothed_risk']
    """

    def __init__(
        self,
        *,
        epochs: np.ndarray,
        losses: Mapping[str, np.ndarray],
        flatness: Mapping[str, np.ndarray],
    ) -> None:
        self.epochs = epochs
        self.losses = losses
        self.flatness = flatness

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        *,
        losses: Iterable[str] | None = None,
        flatness: Iterable[str] | None = None,
        ax: Any = None,
        line_kwargs: Mapping[str, Any] | None = None,
        best_kwargs: Mapping[str, Any] | None = None,
    ) -> Self:
        """Draw the training of a fitted net.

        Parameters
        ----------
        estimator : estimator
            A skorch net, or a pipeline or search that ends in one.
        losses, flatness : iterable of str, default=None
            As in `from_history`.
        ax : matplotlib Axes or two of them, default=None
            As in `plot`.
        line_kwargs, best_kwargs : dict, default=None
            As in `plot`.

        Returns
        -------
        display : TrainingDisplay
            The drawn display.

        Raises
        ------
        TypeError
            If there is no history.
        """
        net = final_model(getattr(estimator, "best_estimator_", estimator))
        history = getattr(net, "history", None)
        if history is None:
            raise TypeError(
                f"{cls.__name__}.from_estimator expects a fitted skorch net, with a "
                f"history, got {estimator!r}. Call its fit first."
            )
        return cls.from_history(
            history,
            losses=losses,
            flatness=flatness,
            ax=ax,
            line_kwargs=line_kwargs,
            best_kwargs=best_kwargs,
        )

    @classmethod
    def from_history(
        cls,
        history: Any,
        *,
        losses: Iterable[str] | None = None,
        flatness: Iterable[str] | None = None,
        ax: Any = None,
        line_kwargs: Mapping[str, Any] | None = None,
        best_kwargs: Mapping[str, Any] | None = None,
    ) -> Self:
        """Draw what the callbacks of a net recorded.

        Parameters
        ----------
        history : skorch.history.History or list of dict
            The ``history`` of a net.
        losses : iterable of str, default=None
            Columns for the first panel; None takes "train_loss", "valid_loss" and
            "smoothed_risk", as far as they are there.
        flatness : iterable of str, default=None
            Columns for the second panel; None takes those that end in "_flatness".
        ax : matplotlib Axes or two of them, default=None
            As in `plot`.
        line_kwargs, best_kwargs : dict, default=None
            As in `plot`.

        Returns
        -------
        display : TrainingDisplay
            The drawn display.

        Raises
        ------
        ValueError
            If a column is missing, or there is nothing to draw.
        """
        caller = f"{cls.__name__}.from_history"
        check_matplotlib(caller)
        rows = [dict(row) for row in history]
        there = list(dict.fromkeys(name for row in rows for name in row))
        if losses is None:
            losses = [name for name in _LOSSES if name in there]
        if flatness is None:
            flatness = [name for name in there if name.endswith("_flatness")]
        losses, flatness = list(losses), list(flatness)
        missing = [name for name in losses + flatness if name not in there]
        if missing or not losses + flatness:
            raise ValueError(
                f"{caller} expects columns {missing or list(_LOSSES)!r} in the history "
                f"of at least one epoch, got {there!r}. Fit the net, with a "
                "SmoothedRiskMonitor or RelativeFlatnessMonitor among its callbacks."
            )

        def column(name: str) -> np.ndarray:
            return np.array([row.get(name, np.nan) for row in rows], dtype=np.float64)

        display = cls(
            epochs=np.array([row.get("epoch", i + 1) for i, row in enumerate(rows)]),
            losses={name: column(name) for name in losses},
            flatness={name: column(name) for name in flatness},
        )
        return display.plot(ax, line_kwargs=line_kwargs, best_kwargs=best_kwargs)

    def plot(
        self,
        ax: Any = None,
        *,
        line_kwargs: Mapping[str, Any] | None = None,
        best_kwargs: Mapping[str, Any] | None = None,
    ) -> Self:
        """Draw a curve for each column.

        Parameters
        ----------
        ax : matplotlib Axes or two of them, default=None
            Axes to draw on. One is divided into the panels that are needed; None makes
            a new figure.
        line_kwargs : dict, default=None
            Keywords of `Axes.plot` for all curves.
        best_kwargs : dict, default=None
            Keywords of `Axes.plot` for the marks at the smallest values.

        Returns
        -------
        display : TrainingDisplay
            Itself.
        """
        panels = [curves for curves in (self.losses, self.flatness) if curves]
        self.axes_, self.figure_ = _panels(ax, len(panels), f"{type(self).__name__}")
        self.ax_ = self.axes_[0]
        self.lines_: dict[str, Any] = {}
        self.best_: dict[str, Any] = {}
        others = iter(_OTHER_COLORS * (len(self.losses) + len(self.flatness)))
        for panel, curves in zip(self.axes_, panels, strict=True):
            for name, values in curves.items():
                color = _COLORS.get(name) or next(others)
                self._draw(panel, name, values, color, line_kwargs, best_kwargs)
            set_scale(panel.yaxis, list(curves.values()))
            readable_ticks(panel.yaxis)
            panel.set_ylabel("loss" if curves is self.losses else r"flatness $\kappa$")
        for panel in self.axes_[:-1]:
            panel.tick_params(labelbottom=False)
        self._label_epochs()
        handles = list(self.lines_.values()) + list(self.best_.values())[:1]
        self.legend_ = add_legend(self.axes_[-1], handles=handles)
        return self

    def _draw(
        self,
        panel: Any,
        name: str,
        values: np.ndarray,
        color: str,
        line_kwargs: Mapping[str, Any] | None,
        best_kwargs: Mapping[str, Any] | None,
    ) -> None:
        """Draw a curve, and a mark where an estimate of the risk is smallest."""
        dashed = name.startswith("valid")
        style = {
            "color": color,
            "linestyle": "--" if dashed else "-",
            "label": _NAMES.get(name, name.replace("_", " ")),
        }
        (self.lines_[name],) = panel.plot(
            self.epochs, values, **styled(style, line_kwargs)
        )
        if name in _RISKS and np.isfinite(values).any():
            best = int(np.nanargmin(values))
            mark = {
                "color": ink(panel),
                "marker": "*",
                "markersize": 11.0,
                "linestyle": "",
                "label": "smallest",
            }
            (self.best_[name],) = panel.plot(
                self.epochs[[best]], values[[best]], **styled(mark, best_kwargs)
            )

    def _label_epochs(self) -> None:
        """Label the horizontal axis, with whole numbers."""
        from matplotlib.ticker import MaxNLocator

        self.axes_[-1].set_xlabel("epoch")
        for panel in self.axes_:
            panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))

    def frame(self) -> Any:
        """Return the numbers of the curves.

        Returns
        -------
        frame : pandas.DataFrame
            Column ``epoch``, and one for each curve.
        """
        columns = {"epoch": self.epochs, **self.losses, **self.flatness}
        return frame_of(columns, f"{type(self).__name__}.frame")


def _panels(ax: Any, n: int, caller: str) -> tuple[np.ndarray, Any]:
    """Axes for the panels, one above the other, and their figure."""
    check_matplotlib(f"{caller}.plot")
    import matplotlib.pyplot as plt

    if ax is None:
        figure, axes = plt.subplots(n, sharex=True, squeeze=False, layout="constrained")
        return axes[:, 0], figure
    if isinstance(ax, list | tuple | np.ndarray) and len(ax) == n:
        return np.array([open_axes(one, f"{caller}.plot")[0] for one in ax]), ax[
            0
        ].get_figure()
    ax, figure = open_axes(ax, f"{caller}.plot")
    if n == 1:
        return np.array([ax]), figure
    place = ax.get_subplotspec()
    if place is None:
        raise TypeError(
            f"{caller}.plot expects axes of a grid, to divide them into {n} panels, "
            f"got {ax!r}. Give {n} of them, or make them with: figure, ax = "
            "plt.subplots()."
        )
    ax.set_axis_off()
    grid = place.subgridspec(n, 1)
    top = figure.add_subplot(grid[0])
    below = [figure.add_subplot(grid[i], sharex=top) for i in range(1, n)]
    return np.array([top, *below]), figure
