"""Logits without their scale, so that confidence is no flatness."""

from __future__ import annotations

import torch
from torch import Tensor

from sklearn_relflat._curvature.linearization import wide
from sklearn_relflat._curvature.problem import Problem
from sklearn_relflat._measures.badness import has_accuracy

# Smaller spreads than this are those of equal logits.
_FLOOR = 1e-10


def check_normalizable(problem: Problem) -> None:
    """Raise where a model has no logits of several classes.

    Parameters
    ----------
    problem : Problem
        The model.

    Raises
    ------
    ValueError
        If it is no classifier, or judges every class on its own.
    """
    loss = problem.view.loss.name
    if loss == "binary_cross_entropy" or not has_accuracy(problem):
        raise ValueError(
            "Expected a classifier with one logit per class, to normalize the logits "
            f"of each sample, got {problem.view.estimator_name} with the loss "
            f"{loss!r}. Use normalize_logits=False."
        )


def normalized(outputs: Tensor) -> Tensor:
    """Logits of each sample, and position, with mean 0 and mean square 1.

    Parameters
    ----------
    outputs : Tensor of shape (n, K, ...)
        Raw outputs.

    Returns
    -------
    outputs : Tensor of shape (n, K, ...)
        Wide, ``(z - mean z) / sqrt(mean (z - mean z)^2)`` over the classes. Equal
        logits become zeros.

    Raises
    ------
    ValueError
        If there are fewer than two classes.
    """
    if outputs.dim() < 2 or outputs.shape[1] < 2:
        raise ValueError(
            "Expected logits of at least two classes, to normalize them, got outputs "
            f"of shape {tuple(outputs.shape)}: one logit has a sign and no more once "
            "its scale is taken away. Use normalize_logits=False."
        )
    centred = wide(outputs)
    centred = centred - centred.mean(1, keepdim=True)
    # The norm has a derivative of zero at zero, where a square root has none.
    spread = torch.linalg.vector_norm(centred, dim=1, keepdim=True)
    return centred / (spread / outputs.shape[1] ** 0.5).clamp_min(_FLOOR)
