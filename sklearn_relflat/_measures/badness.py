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


def _hits(problem: Problem, y: Tensor, outputs: Tensor) -> Tensor:
    """Which predictions are right, (n,) or (n, *positions)."""
    n = len(outputs)
    if outputs.numel() == n:  # one output: its sign decides
        return (outputs.reshape(n) > 0) == (y.reshape(n) > 0.5)
    if not y.is_floating_point():
        return outputs.argmax(1) == y
    if problem.single_label or problem.view.loss.name == "cross_entropy":
        return outputs.argmax(1) == y.argmax(1)
    # Several labels per sample: all have to be right, as in accuracy_score.
    return ((outputs > 0) == (y > 0.5)).flatten(1).all(1)


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
    y = batch.y
    if y is None:
        raise ValueError(
            "Expected y, the labels, got None. Pass y, or a data set that yields "
            "(X, y)."
        )
    n = len(outputs)
    hits = _hits(problem, y, outputs).reshape(n, -1)
    # What has overflowed predicts nothing.
    hits &= torch.isfinite(outputs).reshape(n, -1).all(1, keepdim=True)
    counted = torch.ones_like(hits)
    if not y.is_floating_point():
        ignored = y == getattr(problem.view.loss, "ignore_index", -100)
        counted = ~ignored.reshape(n, -1)
    return wide(~hits & counted).sum(1), wide(counted).sum(1)


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
