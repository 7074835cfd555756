"""The mean loss along random directions, beside the parabola of flatness."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any, Self

import numpy as np

from sklearn_relflat._displays.drawing import (
    BAND_STYLE,
    BLUE,
    ORANGE,
    add_legend,
    check_matplotlib,
    frame_of,
    ink,
    open_axes,
    styled,
)
from sklearn_relflat._displays.labels import loss_label
from sklearn_relflat._representativeness.split_errors import own_random_state
from sklearn_relflat._robustness.feature_robustness import feature_robustness
from sklearn_relflat._robustness.matrix_distribution import check_count
from sklearn_relflat._robustness.neuron_rises import neuron_rises


class LossSurfaceDisplay:
    r"""Loss along random perturbations of features and weights, and its parabola.

    It is recommended to use `from_estimator` to create a `LossSurfaceDisplay`. All
    parameters are stored as attributes.

    Parameters
    ----------
    deltas : ndarray of shape (n_points,)
        Sizes of the perturbations relative to the features or weights, from -delta to
        delta; 0 is the model as it is.
    feature_losses : ndarray of shape (n_directions, n_points)
        Mean loss with features ``(I + delta A) phi``, for random orthogonal matrices A.
    mean : ndarray of shape (n_points,)
        Mean over the matrices A and -A, an estimate of that over all of them.
    stderr : ndarray of shape (n_points,)
        Its standard errors; infinite for a single direction.
    coefficient : float
        The parabola is ``mean_loss + coefficient * delta ** 2``; kappa / (2m).
    mean_loss : float
        Mean loss of the model as it is.
    weight_losses : ndarray of shape (n_weight_directions, n_points), default=None
        Mean loss with weights ``w_s + delta ||w_s|| u_s`` of each neuron s, for random
        unit vectors u_s. None draws none.
    loss : str, default=None
        The loss, for the axis.
    layer : str, default=None
        The layer, for the title.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes with the curves.
    figure_ : matplotlib Figure
        Figure that contains them.
    feature_lines_ : list of matplotlib Line2D
        A thin line for each direction of the features.
    weight_lines_ : list of matplotlib Line2D
        A thin line for each direction of the weights.
    mean_line_ : matplotlib Line2D
        The mean over the directions of the features.
    band_ : matplotlib Artist or None
        Within two standard errors of it; None where that is not known.
    line_ : matplotlib Line2D
        The parabola of flatness.
    legend_ : matplotlib Legend
        Below the axes.

    See Also
    --------
    FeatureRobustnessDisplay : The mean rise alone, on scales that show small sizes.
    feature_robustness : The computation.

    Notes
    -----
    A perturbation of features is one of the weight, as ``w (I + delta A) phi =
    (w + delta w A) phi``. It turns the weights of all neurons by the same matrix and
    keeps the angles between them. In the directions of the weights each neuron moves by
    as much, but on its own. In both the size is relative, so that rescaling layers
    without changing the function changes nothing.

    kappa's parabola is for the mean over feature directions; that of the weights
    begins with ``delta^2 / (2m) sum_s ||w_s||^2 Tr H_ss``, which lacks the blocks
    between neurons. In a layer of one neuron the two have the same law.

    A single line has odd orders in delta, too: it may rise faster on one side. The mean
    has none, as it is over A and -A.

    Examples
    --------
    >>> import matplotlib.pyplot as plt
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.preprocessing import StandardScaler
    >>> from sklearn_relflat import LossSurfaceDisplay
    >>> X, y = load_iris(return_X_y=True)
    >>> X = StandardScaler().fit_transform(X)
    >>> model = LogisticRegression(max_iter=1000).fit(X, y)
    >>> display = LossSurfaceDisplay.from_estimator(model, X, y, random_state=0)
    >>> plt.show()
    >>> display.feature_losses.shape
    (8, 31)
    """

    def __init__(
        self,
        *,
        deltas: np.ndarray,
        feature_losses: np.ndarray,
        mean: np.ndarray,
        stderr: np.ndarray,
        coefficient: float,
        mean_loss: float,
        weight_losses: np.ndarray | None = None,
        loss: str | None = None,
        layer: str | None = None,
    ) -> None:
        self.deltas = deltas
        self.feature_losses = feature_losses
        self.mean = mean
        self.stderr = stderr
        self.coefficient = coefficient
        self.mean_loss = mean_loss
        self.weight_losses = weight_losses
        self.loss = loss
        self.layer = layer

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        y: Any = None,
        *,
        layer: str | None = None,
        delta: float = 1.0,
        n_points: int = 31,
        n_directions: int = 8,
        weights: bool = True,
        loss: Any = None,
        sample_weight: Any = None,
        random_state: Any = None,
        ax: Any = None,
        feature_kwargs: Mapping[str, Any] | None = None,
        weight_kwargs: Mapping[str, Any] | None = None,
        mean_kwargs: Mapping[str, Any] | None = None,
        band_kwargs: Mapping[str, Any] | None = None,
        line_kwargs: Mapping[str, Any] | None = None,
    ) -> Self:
        """Evaluate the loss around a model and draw it.

        Parameters
        ----------
        estimator : estimator
            A fitted model, see `relative_flatness`; it is not changed.
        X : {array-like, sparse matrix, Tensor, Dataset, dict} of shape (n_samples, ...)
            The sample.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs), default=None
            Targets; None only where X is a data set that carries them.
        layer : str, default=None
            Name of the layer; None is the output layer. In any other layer each point
            of each line takes a forward pass.
        delta : float, default=1.0
            Largest size of the perturbations.
        n_points : int, default=31
            Points of a line, an odd number: one of them is the model itself.
        n_directions : int, default=8
            Random directions of the features, and as many of the weights.
        weights : bool, default=True
            Whether directions of the weights are drawn, too.
        loss : str, torch criterion or callable, default=None
            The loss; None is the one that the model was trained with.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the samples.
        random_state : int, RandomState instance or None, default=None
            Seed of the directions.
        ax : matplotlib Axes, default=None
            Axes to draw on; None makes a new figure.
        feature_kwargs, weight_kwargs, mean_kwargs, band_kwargs, line_kwargs : dict, \
                default=None
            As in `plot`.

        Returns
        -------
        display : LossSurfaceDisplay
            The drawn display.
        """
        check_matplotlib(f"{cls.__name__}.from_estimator")
        deltas = _grid(delta, n_points)
        check_count(n_directions, "n_directions")
        right = deltas[len(deltas) // 2 + 1 :]
        rng = own_random_state(random_state)
        shared = {"layer": layer, "loss": loss, "sample_weight": sample_weight}
        result = feature_robustness(
            estimator,
            X,
            y,
            deltas=right,
            n_matrices=2 * n_directions,
            random_state=rng,
            **shared,
        )
        # Matrices come in pairs A, -A.
        rises = result.values.T.reshape(n_directions, 2, len(right))
        weight_losses = None
        if weights:
            on_their_own = neuron_rises(
                estimator,
                X,
                y,
                deltas=right,
                n_directions=n_directions,
                rng=rng,
                **shared,
            )
            weight_losses = _both_sides(on_their_own, result.mean_loss)
        over_pairs = np.stack([result.mean, result.stderr])
        mean, stderr = _both_sides(np.stack([over_pairs, over_pairs], axis=1), 0.0)
        display = cls(
            deltas=deltas,
            feature_losses=_both_sides(rises, result.mean_loss),
            mean=result.mean_loss + mean,
            stderr=stderr,
            coefficient=result.flatness / (2 * result.n_features),
            mean_loss=result.mean_loss,
            weight_losses=weight_losses,
            loss=result.loss,
            layer=result.layer,
        )
        return display.plot(
            ax,
            feature_kwargs=feature_kwargs,
            weight_kwargs=weight_kwargs,
            mean_kwargs=mean_kwargs,
            band_kwargs=band_kwargs,
            line_kwargs=line_kwargs,
        )

    def plot(
        self,
        ax: Any = None,
        *,
        feature_kwargs: Mapping[str, Any] | None = None,
        weight_kwargs: Mapping[str, Any] | None = None,
        mean_kwargs: Mapping[str, Any] | None = None,
        band_kwargs: Mapping[str, Any] | None = None,
        line_kwargs: Mapping[str, Any] | None = None,
    ) -> Self:
        """Draw the loss over the size of the perturbation.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on; None makes a new figure.
        feature_kwargs : dict, default=None
            Keywords of `Axes.plot` for the directions of the features.
        weight_kwargs : dict, default=None
            Keywords of `Axes.plot` for the directions of the weights.
        mean_kwargs : dict, default=None
            Keywords of `Axes.plot` for the mean over those of the features.
        band_kwargs : dict, default=None
            Keywords of `Axes.fill_between` for its error.
        line_kwargs : dict, default=None
            Keywords of `Axes.plot` for the parabola.

        Returns
        -------
        display : LossSurfaceDisplay
            Itself.
        """
        self.ax_, self.figure_ = open_axes(ax, f"{type(self).__name__}.plot")
        self.weight_lines_ = self._draw_directions(
            self._weight_losses, ORANGE, "each neuron's weights", weight_kwargs
        )
        self.feature_lines_ = self._draw_directions(
            self.feature_losses, BLUE, "features", feature_kwargs
        )
        style = {"color": BLUE, "linewidth": 2.8, "label": "mean over features"}
        (self.mean_line_,) = self.ax_.plot(
            self.deltas, self.mean, **styled(style, mean_kwargs)
        )
        self.band_ = self._draw_band(band_kwargs)
        # The parabola must not stretch the axes where the loss leaves it.
        self.ax_.set_ylim(self.ax_.get_ylim())
        style = {
            "color": ink(self.ax_),
            "linestyle": "--",
            "linewidth": 1.8,
            "label": r"predicted by $\kappa$",
        }
        (self.line_,) = self.ax_.plot(
            self.deltas, self._parabola, **styled(style, line_kwargs)
        )
        self.ax_.margins(x=0.0)
        self.ax_.set_xlabel(r"size $\delta$ of the perturbation (share of the norm)")
        self.ax_.set_ylabel(f"mean {loss_label(self.loss)}")
        if self.layer is not None:
            self.ax_.set_title(f"loss around layer {self.layer!r}")
        drawn = (
            *self.feature_lines_[:1],
            *self.weight_lines_[:1],
            self.mean_line_,
            self.band_,
            self.line_,
        )
        self.legend_ = add_legend(self.ax_, handles=[a for a in drawn if a is not None])
        return self

    def _draw_directions(
        self,
        losses: np.ndarray,
        color: str,
        label: str,
        kwargs: Mapping[str, Any] | None,
    ) -> list[Any]:
        """Draw a thin line for each direction."""
        style = {"color": color, "linewidth": 0.8, "alpha": 0.9, "label": label}
        given = styled(style, kwargs)
        return [self.ax_.plot(self.deltas, row, **given)[0] for row in losses]

    def _draw_band(self, kwargs: Mapping[str, Any] | None) -> Any:
        """Shade what is within the error of the mean."""
        from matplotlib.collections import PolyCollection

        if not np.isfinite(self.stderr).all():
            return None
        style = {
            "facecolor": BLUE,
            "label": r"$\pm$ 2 standard errors",
            **BAND_STYLE,
        }
        return self.ax_.fill_between(
            self.deltas,
            self.mean - 2 * self.stderr,
            self.mean + 2 * self.stderr,
            **styled(style, kwargs, PolyCollection),
        )

    @property
    def _weight_losses(self) -> np.ndarray:
        """Losses along directions of the weights, without rows where none are."""
        if self.weight_losses is None:
            return np.empty((0, len(self.deltas)))
        return self.weight_losses

    @property
    def _parabola(self) -> np.ndarray:
        """Loss that flatness predicts."""
        return self.mean_loss + self.coefficient * self.deltas**2

    def frame(self) -> Any:
        """Return the numbers of the curves.

        Returns
        -------
        frame : pandas.DataFrame
            Columns ``delta``, ``mean``, ``stderr``, ``predicted``, and one for each
            direction, ``features_0`` and so on, ``weights_0`` and so on.
        """
        columns = {
            "delta": self.deltas,
            "mean": self.mean,
            "stderr": self.stderr,
            "predicted": self._parabola,
        }
        for name, losses in (
            ("features", self.feature_losses),
            ("weights", self._weight_losses),
        ):
            columns |= {f"{name}_{i}": row for i, row in enumerate(losses)}
        return frame_of(columns, f"{type(self).__name__}.frame")


def _grid(delta: Any, n_points: Any) -> np.ndarray:
    """Sizes from -delta to delta, with zero in the middle."""
    if not (isinstance(delta, Real) and 0 < float(delta) < np.inf):
        raise ValueError(f"Expected delta to be a positive number, got {delta!r}.")
    half, rest = divmod(int(n_points), 2) if isinstance(n_points, Integral) else (0, 0)
    if not (half and rest):
        raise ValueError(
            f"Expected n_points to be an odd integer of at least 3, got {n_points!r}: "
            "one of the points is the model itself."
        )
    right = float(delta) * np.arange(1, half + 1) / half
    return np.concatenate([-right[::-1], [0.0], right])


def _both_sides(rises: np.ndarray, base: float) -> np.ndarray:
    """Lines (n, n_points) from rises along directions and their negatives."""
    middle = np.zeros((len(rises), 1))
    return base + np.concatenate([rises[:, 1, ::-1], middle, rises[:, 0]], axis=1)
