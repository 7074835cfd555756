"""How bad a model is on a sample: error rate or mean loss, as sums over batches."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sklearn_relflat._curvature.linearization import wide
from sklearn_relflat._curvature.problem import Problem, risk_of
from sklearn_relflat._data.batches import Batch

_CLASSIFICATION_LOSSES = ("cross_entropy", "binary_cross_entropy")


def has_accuracy(problem: Problem) -> bool:
    """Tell whether the model predicts classes."""
    if problem.kind is not None:
        return problem.kind == "classifier"
    y = next(iter(problem.source)).y
    integer = y is not None and not y.is_floating_point()
    return integer or problem.view.loss.name in _CLASSIFICATION_LOSSES


def labels_of(problem: Problem, y: Tensor, outputs: Tensor) -> Tensor | None:
    """Classes of some samples as integers.

    Parameters
    ----------
    problem : Problem
        A classifier.
    y : Tensor of shape (n, ...)
        Targets as the loss takes them.
    outputs : Tensor of shape (n, ...)
        Raw outputs; one of a sample tells the classes 0 and 1 apart by its sign.

    Returns
    -------
    labels : Tensor of shape (n,) or (n, *positions), or None
        The most probable class where the targets are probabilities; None where a sample
        has a label for each output.
    """
    n = len(outputs)
    if outputs.numel() == n:
        return (y.reshape(n) > 0.5).long()
    if not y.is_floating_point():
        return None if y.shape == outputs.shape else y
    if problem.single_label or problem.view.loss.name == "cross_entropy":
        return y.argmax(1)
    return None


def targets_of(batch: Batch) -> Tensor:
    """Targets of a batch, or an error that says that there are none."""
    if batch.y is None:
        raise ValueError(
            "Expected y, the labels, got None. Pass y, or a data set that yields "
            "(X, y)."
        )
    return batch.y


def counted(problem: Problem, y: Tensor) -> Tensor:
    """Which targets are not to be ignored, in the shape of y."""
    if y.is_floating_point():
        return torch.ones_like(y, dtype=torch.bool)
    return y != getattr(problem.view.loss, "ignore_index", -100)


def _hits(problem: Problem, y: Tensor, outputs: Tensor) -> Tensor:
    """Which predictions are right, (n,) or (n, *positions)."""
    n, labels = len(outputs), labels_of(problem, y, outputs)
    if labels is None:
        # Several labels per sample: all have to be right, as in accuracy_score.
        return ((outputs > 0) == (y > 0.5)).flatten(1).all(1)
    if outputs.numel() == n:
        return (outputs.reshape(n) > 0) == (labels > 0)
    return outputs.argmax(1) == labels


def errors(problem: Problem, batch: Batch, outputs: Tensor) -> tuple[Tensor, Tensor]:
    """Wrong predictions and predictions of each sample, (n,) both.

    Parameters
    ----------
    problem : Problem
        A classifier.
    batch : Batch
        The samples.
    outputs : Tensor
        Their raw outputs.

    Returns
    -------
    wrong, counts : Tensor of shape (n,)
        Wide; a sample has as many predictions as positions that count.

    Raises
    ------
    ValueError
        If there are no labels.
    """
    y, n = targets_of(batch), len(outputs)
    hits = _hits(problem, y, outputs).reshape(n, -1)
    # What has overflowed predicts nothing.
    hits &= torch.isfinite(outputs).reshape(n, -1).all(1, keepdim=True)
    kept = torch.ones_like(hits)
    if not y.is_floating_point():
        kept = counted(problem, y).reshape(n, -1)
    return wide(~hits & kept).sum(1), wide(kept).sum(1)


def _error(problem: Problem, batch: Batch, outputs: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted sums of wrong predictions and of predictions."""
    wrong, counts = errors(problem, batch, outputs)
    if batch.sample_weight is None:
        return wrong.sum(), counts.sum()
    weight = wide(batch.sample_weight)
    return (weight * wrong).sum(), (weight * counts).sum()


def _loss(problem: Problem, batch: Batch, outputs: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted sums of losses and of their denominators."""
    value, denominator, weight, _ = risk_of(problem, batch, outputs)
    # An overflow is worse than any rise.
    value = torch.where(torch.isnan(value), math.inf, value)
    return (weight * value).sum(), (weight * denominator).sum()


METRICS: dict[str, Callable[[Problem, Batch, Tensor], tuple[Tensor, Tensor]]] = {
    "accuracy": _error,
    "loss": _loss,
}
