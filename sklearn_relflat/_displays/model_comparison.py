"""Models side by side: training loss, smoothed risk and test loss if there is one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np

from sklearn_relflat._displays.drawing import (
    BLUE,
    ERROR_STYLE,
    GREEN,
    VERMILION,
    add_legend,
    check_matplotlib,
    frame_of,
    make_room,
    name_rows,
    open_axes,
    readable_ticks,
    set_scale,
    styled,
)
from sklearn_relflat._displays.labels import loss_label, name_in_short
from sklearn_relflat._selection.compare_models import ModelComparison

_COLUMNS = {
    "training_loss": ("training loss", BLUE, "o"),
    "smoothed_risk": ("smoothed risk", VERMILION, "s"),
    "test_loss": ("test loss", GREEN, "^"),
}
# Rows between two points of a model, whose bars would lie on each other.
_SPREAD = 0.2


class ModelComparisonDisplay:
    """Training loss and smoothed risk of several models, and their test loss.

    It is recommended to use `from_result` to create a `ModelComparisonDisplay`. All
    parameters are stored as attributes.

    Parameters
    ----------
    models : list of str
        Names of the models, from the top to the bottom.
    losses : dict of str to ndarray of shape (n_models,)
        "training_loss", "smoothed_risk" and, with test data, "test_loss".
    errors : dict of str to ndarray of shape (n_models,)
        Standard errors of some of them.
    best : str
        The model to take.
    loss : str
        Name of the loss, for the axis.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes with the losses.
    figure_ : matplotlib Figure
        Figure that contains them.
    points_ : dict of str to matplotlib Line2D
        Points of the models, by column.
    errors_ : dict of str to matplotlib ErrorbarContainer
        Two standard errors to both sides, by column, where they are known.
    best_ : matplotlib Line2D
        Line at the smoothed risk of the best model.
    legend_ : matplotlib Legend
        Below the axes.

    See Also
    --------
    compare_models : The computation, and the sentence that goes with it.

    Notes
    -----
    The bars of the smoothed risk are of its difference from that of the best model,
    over samples and draws together: models whose bars reach the line are those that
    another sample of this size could put first. The best model has none. Those of the
    test loss are of itself, over the test samples.

    Examples
    --------
    >>> import matplotlib.pyplot as plt
    >>> from sklearn.datasets import load_breast_cancer
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.preprocessing import scale
    >>> from sklearn_relflat import ModelComparisonDisplay, compare_models
    >>> X, y = load_breast_cancer(return_X_y=True)
    >>> X, y = scale(X)[:200], y[:200]
    >>> models = {f"C = {C}": LogisticRegression(C=C).fit(X, y) for C in (0.01, 1, 30)}
    >>> comparison = compare_models(models, X, y)
    >>> display = ModelComparisonDisplay.from_result(comparison)
    >>> plt.show()
    >>> display.best
    'C = 1'
    """

    def __init__(
        self,
        *,
        models: list[str],
        losses: Mapping[str, np.ndarray],
        errors: Mapping[str, np.ndarray],
        best: str,
        loss: str,
    ) -> None:
        self.models = models
        self.losses = losses
        self.errors = errors
        self.best = best
        self.loss = loss

    @classmethod
    def from_result(
        cls,
        result: ModelComparison,
        *,
        ax: Any = None,
        point_kwargs: Mapping[str, Any] | None = None,
        error_kwargs: Mapping[str, Any] | None = None,
    ) -> Self:
        """Draw a comparison.

        Parameters
        ----------
        result : ModelComparison
            Of `compare_models`.
        ax : matplotlib Axes, default=None
            Axes to draw on; None makes a new figure.
        point_kwargs, error_kwargs : dict, default=None
            As in `plot`.

        Returns
        -------
        display : ModelComparisonDisplay
            The drawn display.

        Raises
        ------
        TypeError
            If the result is not one of `compare_models`.
        """
        caller = f"{cls.__name__}.from_result"
        check_matplotlib(caller)
        if not isinstance(result, ModelComparison):
            raise TypeError(
                f"{caller} expects a result of compare_models, got {result!r}. Call it "
                "with the fitted models."
            )
        rows = result.rows()

        def column(key: str) -> np.ndarray:
            return np.array([row[key] for row in rows], dtype=np.float64)

        losses = {key: column(key) for key in _COLUMNS if key in rows[0]}
        errors = {
            "smoothed_risk": np.hypot(
                column("difference_stderr"), column("difference_samples_stderr")
            )
        }
        if "test_loss" in losses:
            errors["test_loss"] = column("test_loss_stderr")
        display = cls(
            models=[row["model"] for row in rows],
            losses=losses,
            errors=errors,
            best=result.best,
            loss=result.loss,
        )
        return display.plot(ax, point_kwargs=point_kwargs, error_kwargs=error_kwargs)

    def plot(
        self,
        ax: Any = None,
        *,
        point_kwargs: Mapping[str, Any] | None = None,
        error_kwargs: Mapping[str, Any] | None = None,
    ) -> Self:
        """Draw a row for each model.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on; None makes a new figure, higher where there are many
            models.
        point_kwargs : dict, default=None
            Keywords of `Axes.plot` for the points.
        error_kwargs : dict, default=None
            Keywords of `Axes.errorbar` for the standard errors.

        Returns
        -------
        display : ModelComparisonDisplay
            Itself.
        """
        own_figure = ax is None
        self.ax_, self.figure_ = open_axes(ax, f"{type(self).__name__}.plot")
        n = len(self.models)
        if own_figure:
            make_room(self.figure_, 1.5 * n)
        rows = np.arange(n)
        self.points_: dict[str, Any] = {}
        self.errors_: dict[str, Any] = {}
        for k, (key, values) in enumerate(self.losses.items()):
            name, color, marker = _COLUMNS[key]
            places = rows + _SPREAD * (k - (len(self.losses) - 1) / 2)
            if key in self.errors:
                style = {"color": color, "linestyle": "", **ERROR_STYLE}
                self.errors_[key] = self.ax_.errorbar(
                    values,
                    places,
                    xerr=2 * np.nan_to_num(self.errors[key]),
                    **styled(style, error_kwargs),
                )
            style = {"color": color, "marker": marker, "linestyle": "", "label": name}
            (self.points_[key],) = self.ax_.plot(
                values, places, **styled(style, point_kwargs)
            )
        self._label()
        self.legend_ = add_legend(
            self.ax_, handles=[*self.points_.values(), self.best_]
        )
        return self

    def _label(self) -> None:
        """Mark the best model, and name the axes."""
        at = self.models.index(self.best)
        self.best_ = self.ax_.axvline(
            self.losses["smoothed_risk"][at],
            color=_COLUMNS["smoothed_risk"][1],
            linestyle=":",
            linewidth=1.2,
            zorder=0.9,
            label="smallest smoothed risk (*)",
        )
        names = [name_in_short(model) for model in self.models]
        names[at] += " *"
        name_rows(self.ax_, names)
        self.ax_.get_yticklabels()[at].set_fontweight("bold")
        set_scale(self.ax_.xaxis, np.concatenate([*self.losses.values()]))
        readable_ticks(self.ax_.xaxis)
        self.ax_.set_xlabel(f"mean {loss_label(self.loss)}")
        self.ax_.set_ylabel("model")

    def frame(self) -> Any:
        """Return the numbers of the picture.

        Returns
        -------
        frame : pandas.DataFrame
            A row for each model: ``model``, ``training_loss``, ``smoothed_risk``,
            ``smoothed_risk_stderr`` (of the difference from the best) and, with test
            data, ``test_loss`` and ``test_loss_stderr``.
        """
        columns: dict[str, Any] = {"model": self.models}
        for key, values in self.losses.items():
            columns[key] = values
            if key in self.errors:
                columns[f"{key}_stderr"] = self.errors[key]
        return frame_of(columns, f"{type(self).__name__}.frame")
