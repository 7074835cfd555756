"""Interface of a loss: value per sample, gradient and factored Hessian in the outputs.

Conventions: n samples, K outputs (classes), P positions; ``outputs`` f are raw model
outputs (logits) of shape (n,), (n, K) or (n, K, *positions), and everything else has
their dtype and device. The empirical risk over samples with weights s_i is
``sum_i s_i value_i / sum_i s_i denominator_i`` with reduction "mean" and
``sum_i s_i value_i`` with reduction "sum", equal to what the torch criterion of the
same name gives on the whole data set. Gradient and Hessian C_i of ``value_i`` are in
the flattened outputs of sample i, and ``C_i = sum_k s_ik c_ik c_ik^T``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor

Factor = tuple[Tensor, Tensor | None]


class UnseenLabelsError(ValueError):
    """Targets have a class that the model does not know."""


class Loss(ABC):
    """Base class of all losses: what the curvature code needs to know of a loss.

    Attributes
    ----------
    name : str
        Name of the loss, a key of `LOSSES` or the name of the user's criterion.
    reduction : {"mean", "sum"}
        How the values per sample form the empirical risk.
    """

    name: str
    reduction: str

    @abstractmethod
    def targets(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Validate y against the outputs and encode it for the other methods.

        Parameters
        ----------
        outputs : Tensor of shape (n,), (n, K) or (n, K, *positions)
            Raw outputs of the model.
        y : Tensor of shape (n, ...)
            Class indices (integers) or floating targets.

        Returns
        -------
        Tensor
            The targets on the device of the outputs.

        Raises
        ------
        ValueError
            If dtype, shape or values of y do not fit the outputs.
        """

    @abstractmethod
    def value(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Loss per sample, (n,): the numerator; differentiable in the outputs."""

    def denominator(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Weight per sample, (n,), by whose sum reduction "mean" divides."""
        return outputs.new_ones(len(outputs))

    @abstractmethod
    def gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Gradient of the value of each sample in its outputs, like outputs."""

    @abstractmethod
    def n_factors(self, outputs: Tensor) -> int:
        """Count the pairs that `factors` yields for such outputs."""

    @abstractmethod
    def factors(self, outputs: Tensor, targets: Tensor) -> Iterator[Factor]:
        """Yield (c, s) with C_i = sum_k s_ik c_ik c_ik^T; s None means +1."""

    @abstractmethod
    def sampled_factor(
        self, outputs: Tensor, targets: Tensor, generator: torch.Generator
    ) -> Factor:
        """One random (c, s) with E[s_i c_i c_i^T] = C_i, independent over samples."""

    @abstractmethod
    def hessian_inner(self, outputs: Tensor, targets: Tensor, root: Tensor) -> Tensor:
        """<B B^T, C_i> per sample, (n,), for a root B (K, r) and outputs (n, K)."""


def is_integer(y: Tensor) -> bool:
    """Whether y holds integers (booleans are not)."""
    return not (y.is_floating_point() or y.is_complex() or y.dtype == torch.bool)


def one_per_sample(y: Tensor, outputs: Tensor) -> Tensor:
    """Targets on the device of the outputs, one per sample."""
    if y.ndim == 0 or len(y) != len(outputs):
        raise ValueError(
            f"Expected one target per sample, {len(outputs)} in this batch, got y of "
            f"shape {tuple(y.shape)!r}. Pass X and y of the same length."
        )
    if y.is_floating_point() and not bool(torch.isfinite(y).all()):
        raise ValueError(
            "Expected finite targets, got NaN or infinity in y. Remove or impute them."
        )
    return y.to(outputs.device)


def class_labels(y: Tensor, outputs: Tensor, ignore_index: int | None = None) -> Tensor:
    """Class indices as int64, checked against the K outputs."""
    n_classes = outputs.shape[1]
    expected = outputs.shape[:1] + outputs.shape[2:]
    if not is_integer(y):
        raise ValueError(
            f"Expected integer class labels, got y of dtype {y.dtype!r}. Cast y to "
            "int64, or give class probabilities of the same shape as the outputs, "
            f"{tuple(outputs.shape)!r}."
        )
    if y.shape != expected:
        raise ValueError(
            f"Expected class labels of shape {tuple(expected)!r} for outputs of shape "
            f"{tuple(outputs.shape)!r}, got {tuple(y.shape)!r}. Reshape y."
        )
    y = y.long()
    unseen = (y < 0) | (y >= n_classes)
    if ignore_index is not None:
        unseen &= y != ignore_index
    if bool(unseen.any()):
        found = ", ".join(str(label) for label in sorted(set(y[unseen].tolist()))[:5])
        raise UnseenLabelsError(
            f"Expected class labels in 0..{n_classes - 1} (the model has {n_classes} "
            f"outputs), got {found}. Map the labels to 0..{n_classes - 1} first, for "
            "example with sklearn.preprocessing.LabelEncoder."
        )
    return y


def one_hot_like(labels: Tensor, outputs: Tensor) -> Tensor:
    """Labels as 0/1 tensor like outputs."""
    return torch.zeros_like(outputs).scatter_(1, labels.unsqueeze(1), 1.0)


def n_positions(outputs: Tensor) -> int:
    """Count the positions P that share the class dimension."""
    return outputs[0, 0].numel() if outputs.ndim > 1 else 1


def sum_of_others(p: Tensor) -> Tensor:
    """Sum of p_j over j != k for each k along dim 1, accurate where p is saturated."""
    # sum(p) - p_k cancels only for the largest entry, whose rest is summed on its own.
    top = p.argmax(1, keepdim=True)
    rest = p.scatter(1, top, 0.0).sum(1, keepdim=True)
    return (p.sum(1, keepdim=True) - p).scatter(1, top, rest)


def _uniform(
    shape: tuple[int, ...], generator: torch.Generator, like: Tensor
) -> Tensor:
    """Uniform numbers drawn on the generator's device, brought to that of like."""
    drawn = torch.rand(
        shape, generator=generator, dtype=like.dtype, device=generator.device
    )
    return drawn.to(like.device)


def random_signs(
    shape: tuple[int, ...], generator: torch.Generator, like: Tensor
) -> Tensor:
    """Independent signs -1 or +1 with equal probability."""
    return torch.where(_uniform(shape, generator, like) < 0.5, -1.0, 1.0).to(like)


def draw_columns(mass: Tensor, generator: torch.Generator) -> Tensor:
    """Draw one column per row with probability proportional to mass: (rows, 1)."""
    cumulated = mass.cumsum(1)
    level = _uniform((len(mass), 1), generator, mass) * cumulated[:, -1:]
    return (cumulated <= level).sum(1, keepdim=True).clamp_(max=mass.shape[1] - 1)


def root_for(outputs: Tensor, root: Tensor) -> Tensor:
    """Root of a Gram matrix in the dtype of the outputs, its size checked."""
    n_outputs = 1 if outputs.ndim == 1 else outputs.shape[1]
    if outputs.ndim > 2 or root.ndim != 2 or len(root) != n_outputs:
        raise ValueError(
            "Expected outputs of shape (n, K) and the root of a Gram matrix of shape "
            f"(K, r), got {tuple(outputs.shape)!r} and {tuple(root.shape)!r}. Use the "
            "factors of the Hessian for outputs with positions."
        )
    return root.to(outputs)
