"""How far the features of each class have collapsed, next to the classes' distances."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sklearn_relflat._curvature.linearization import run_layers, wide
from sklearn_relflat._curvature.problem import Problem, open_problem, risk_of
from sklearn_relflat._layers.capture import LayerCall, capture
from sklearn_relflat._layers.names import one_layer
from sklearn_relflat._layers.proof import batch_first
from sklearn_relflat._measures.badness import (
    counted,
    has_accuracy,
    labels_of,
    targets_of,
)
from sklearn_relflat._measures.measurement import (
    Measurement,
    UndefinedMeasureError,
    measured,
)

_NAME = "class_distance_normalized_variance"


def class_distance_normalized_variance(
    estimator: Any,
    X: Any,
    y: Any = None,
    *,
    layer: str | None = None,
    loss: Any = None,
    sample_weight: Any = None,
) -> Measurement:
    """Variance of the features within the classes, by the distances between them.

    Parameters
    ----------
    estimator : estimator
        A fitted classifier, see `relative_flatness`.
    X : {array-like, sparse matrix, Tensor, Dataset, dict} of shape (n_samples, ...)
        The sample.
    y : array-like of shape (n_samples,) or (n_samples, n_outputs), default=None
        Targets; None only where X is a data set that carries them.
    layer : str, default=None
        Name of the layer that the features enter; None is the output layer.
    loss : str, torch criterion or callable, default=None
        The loss, for the mean loss of the result.
    sample_weight : array-like of shape (n_samples,), default=None
        Weights of the samples, also in the means and variances.

    Returns
    -------
    result : Measurement
        The mean over pairs of classes; 0.0 is neural collapse.

    Raises
    ------
    ValueError
        If the model is no classifier of one label per sample, the sample has fewer than
        two classes, or two classes have the same mean.

    Notes
    -----
    For classes i and j with the means mu of their features phi, and the variances
    ``Var = mean ||phi - mu||^2``, it is ``(Var_i + Var_j) / (2 ||mu_i - mu_j||^2)``,
    averaged over the pairs ``i != j`` of classes in the sample. Features of several
    positions (pixels, tokens) are one long vector.

    A factor of the features does not change it, a factor for each feature does.

    References
    ----------
    .. [1] T. Galanti, A. Gyorgy, M. Hutter, "On the Role of Neural Collapse in Transfer
       Learning", ICLR 2022, definition of the CDNV.
    .. [2] V. Papyan, X. Y. Han, D. L. Donoho, "Prevalence of neural collapse during the
       terminal phase of deep learning training", PNAS 117, 2020.

    Examples
    --------
    The features of a linear model are X itself:

    >>> import numpy as np
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn_relflat import class_distance_normalized_variance
    >>> X, y = load_iris(return_X_y=True)
    >>> X, y = X[:100], y[:100]
    >>> result = class_distance_normalized_variance(
    ...     LogisticRegression().fit(X, y), X, y
    ... )
    >>> within = X[y == 0].var(axis=0).sum() + X[y == 1].var(axis=0).sum()
    >>> between = np.square(X[y == 0].mean(axis=0) - X[y == 1].mean(axis=0)).sum()
    >>> bool(np.isclose(float(result), within / (2 * between)))
    True
    """
    with open_problem(
        estimator,
        X,
        y,
        layer=one_layer(layer, _NAME),
        loss=loss,
        sample_weight=sample_weight,
    ) as problem:
        return class_distance_of(problem)


def class_distance_of(problem: Problem) -> Measurement:
    """CDNV of an open problem's layer; see `class_distance_normalized_variance`."""
    if not has_accuracy(problem):
        raise UndefinedMeasureError(
            f"Expected a classifier, for the distances between its classes, got "
            f"{problem.view.estimator_name} with the loss {problem.view.loss.name!r}."
        )
    classes, mean_loss = _class_moments(problem)
    moments = [classes[label] for label in sorted(classes)]
    if len(moments) < 2:
        raise UndefinedMeasureError(
            f"Expected samples of at least two classes, got {len(moments)}."
        )
    means = torch.stack([one.mean for one in moments])
    variances = torch.stack([one.squares / one.weight for one in moments])
    i, j = torch.triu_indices(len(moments), len(moments), 1)
    distances = (means[i] - means[j]).square().sum(1)
    if not bool((distances > 0).all()):
        raise UndefinedMeasureError(
            f"Expected classes with different means of the features, got two that have "
            f"the same in layer {problem.label!r}: all its features are zero or "
            "constant. Choose another layer."
        )
    value = ((variances[i] + variances[j]) / (2 * distances)).mean()
    return measured(problem, _NAME, float(value), method="exact", mean_loss=mean_loss)


@dataclass
class _Moments:
    """Weight, mean and summed squares of the features of one class."""

    weight: Tensor
    mean: Tensor
    squares: Tensor

    @classmethod
    def of(cls, phi: Tensor, weight: Tensor) -> _Moments:
        """Moments of some samples, (n, m), whose weights are positive."""
        total = weight.sum()
        mean = weight @ phi / total
        return cls(total, mean, weight @ (phi - mean).square().sum(1))

    def merge(self, other: _Moments) -> _Moments:
        """Moments of both together, without cancellation (Chan et al., 1983)."""
        total = self.weight + other.weight
        step = other.mean - self.mean
        between = step.square().sum() * self.weight * other.weight / total
        return _Moments(
            total,
            self.mean + step * other.weight / total,
            self.squares + other.squares + between,
        )


def _class_moments(problem: Problem) -> tuple[dict[int, _Moments], float]:
    """Moments by class, and the mean loss, from one pass over the data."""
    (name,) = problem.layers
    found: dict[int, _Moments] = {}
    total, denominator, width = 0.0, 0.0, 0
    with capture(problem.view, problem.layers, differentiable=False) as seen:
        for batch in problem.source:
            outputs, calls = run_layers(
                problem.view, batch, seen, problem.layers, problem.plan.look
            )
            value, mass, weight, _ = risk_of(problem, batch, outputs)
            total += float((weight * value).sum())
            denominator += float((weight * mass).sum())
            y = targets_of(batch)
            labels = _one_label(problem, y, outputs)
            kept = (weight > 0) & counted(problem, y).reshape(len(weight), -1).all(1)
            phi = _features(calls[name])
            width = width or phi.shape[1]
            if width != phi.shape[1]:
                raise UndefinedMeasureError(
                    f"Expected as many features for every sample, got {width} and "
                    f"{phi.shape[1]} in layer {name!r}. Name a layer behind the "
                    "pooling of the positions."
                )
            for label in labels[kept].unique().tolist():
                rows = kept & (labels == label)
                new = _Moments.of(phi[rows], weight[rows])
                found[label] = found[label].merge(new) if label in found else new
    return found, total / problem.denominator(denominator)


def _one_label(problem: Problem, y: Tensor, outputs: Tensor) -> Tensor:
    """Class of each sample, (n,)."""
    labels = labels_of(problem, y, outputs)
    if labels is None or labels.dim() > 1:
        raise UndefinedMeasureError(
            "Expected one class per sample, to tell the features of the classes "
            f"apart, got targets of shape {tuple(y.shape)}."
        )
    return labels


def _features(calls: list[LayerCall]) -> Tensor:
    """Return what enters a layer, one row per sample, wide."""
    rows = [batch_first(call, call.inputs.detach()).flatten(1) for call in calls]
    return wide(torch.cat(rows, 1))
