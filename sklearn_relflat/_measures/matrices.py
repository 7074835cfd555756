"""The weights of a model as matrices, and their norms."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sklearn_relflat._curvature.linearization import wide
from sklearn_relflat._curvature.problem import Problem

#: Square of a norm of a matrix, by the name of the norm.
SQUARED_NORMS: dict[str, Callable[[Tensor], float]] = {
    "frobenius": lambda w: float(w.square().sum()),
    "spectral": lambda w: float(torch.linalg.matrix_norm(w, 2).square()),
}


def weight_matrices(problem: Problem) -> list[Tensor]:
    """Weights of the chosen layers, wide, each as a matrix with a row per neuron.

    Parameters
    ----------
    problem : Problem
        The model and its layers.

    Returns
    -------
    matrices : list of Tensor of shape (n_neurons, n_features)
        Kernels of convolutions are flattened. A weight that several modules share, or
        that is applied several times, is there once.
    """
    return [
        wide(weight.detach()).flatten(1)
        for name, part in problem.weights.items()
        # One that is computed from other parameters has none of its own.
        for weight in (part.values() or [problem.layers[name].weight])
    ]


def check_norm(norm: str) -> None:
    """Raise where there is no such norm."""
    if norm not in SQUARED_NORMS:
        raise ValueError(
            f"Expected norm to be one of {list(SQUARED_NORMS)}, got {norm!r}."
        )
