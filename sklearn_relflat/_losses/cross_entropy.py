"""Cross-entropy on logits with everything that torch's criterion offers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from sklearn_relflat._losses.base import (
    Factor,
    Loss,
    class_labels,
    draw_columns,
    n_positions,
    one_hot_like,
    one_per_sample,
    random_signs,
    root_for,
    sum_of_others,
)


@dataclass(frozen=True, eq=False)
class CrossEntropy(Loss):
    """Cross-entropy on logits, everything that torch's CrossEntropyLoss offers.

    Parameters
    ----------
    weight : Tensor of shape (K,), default=None
        Weight w_k of each class.
    label_smoothing : float, default=0.0
        Share of the label that is spread over all classes.
    ignore_index : int, default=-100
        Label of samples (or positions) that count for nothing.
    reduction : {"mean", "sum"}, default="mean"
        As in torch; "mean" divides by the sum of w_y, or by the number of positions
        where targets are class probabilities.

    Notes
    -----
    With p = softmax(f), the target distribution q (one-hot or probabilities, smoothed,
    then weighted) and Q = sum_k q_k::

        value = -sum_k q_k log p_k,   gradient = Q p - q,   C = Q (diag(p) - p p^T).

    C has rank K - 1. Its Cholesky factors in closed form [1]_ (K - 1 instead of the K
    factors sqrt(Q p_k) (e_k - p)) are, with the tail sums S_k = p_k + ... + p_K,
    ``c_k = sqrt(Q p_k S_{k+1} / S_k) (e_k - p_{>k} / S_{k+1})``, k = 1..K-1, where
    p_{>k} is p with its first k entries set to zero. Nothing cancels in them, so they
    are accurate for a saturated softmax.

    The sampled factor draws k with probability proportional to p_k ||e_k - p||^2
    instead of p_k, and is sqrt(tr C) times the unit vector along e_k - p. Drawing from
    p would almost never hit the classes that carry the curvature of a confident model.
    For K = 2 it is the exact factor up to its sign.

    References
    ----------
    .. [1] K. Tanabe, M. Sagae, "An exact Cholesky decomposition and the generalized
       inverse of the variance-covariance matrix of the multinomial distribution, with
       applications", J. R. Stat. Soc. B 54, 1992.

    Examples
    --------
    Equal logits of 3 classes: log 3, and tr C = 1 - 1/3.

    >>> import torch
    >>> loss, outputs = CrossEntropy(), torch.zeros(1, 3, dtype=torch.float64)
    >>> targets = loss.targets(outputs, torch.tensor([1]))
    >>> round(loss.value(outputs, targets).item(), 6)
    1.098612
    >>> round(
    ...     sum(c.square().sum().item() for c, _ in loss.factors(outputs, targets)), 6
    ... )
    0.666667
    """

    weight: Tensor | None = None
    label_smoothing: float = 0.0
    ignore_index: int = -100
    reduction: str = "mean"
    name = "cross_entropy"

    def targets(self, outputs: Tensor, y: Tensor) -> Tensor:
        """See `Loss.targets`; class indices (n, *positions) or probabilities."""
        if outputs.ndim < 2 or outputs.shape[1] < 2:
            raise ValueError(
                "Cross-entropy expects outputs of shape (n, K) with K >= 2 classes, "
                f"got {tuple(outputs.shape)!r}. Use 'binary_cross_entropy' for one."
            )
        if self.weight is not None and self.weight.shape != outputs.shape[1:2]:
            raise ValueError(
                f"Expected one class weight for each of {outputs.shape[1]} outputs, "
                f"got weight of shape {tuple(self.weight.shape)!r}."
            )
        y = one_per_sample(y, outputs)
        if y.is_floating_point() and y.shape == outputs.shape:
            return self._probabilities(y.to(outputs.dtype))
        return class_labels(y, outputs, self.ignore_index)

    def _probabilities(self, y: Tensor) -> Tensor:
        """Class probabilities after their checks."""
        if self.ignore_index >= 0:
            raise ValueError(
                "Expected class labels with ignore_index="
                f"{self.ignore_index!r}, got class probabilities. Leave ignore_index "
                "at its default."
            )
        off = (y.sum(1) - 1).abs().max().item()
        if bool((y < 0).any()) or off > 1e-4:
            raise ValueError(
                "Expected class probabilities (>= 0, sum 1 over the classes), got a "
                f"smallest entry {y.min().item()!r} and a sum that is off by {off!r}. "
                "Normalise y, or give integer class labels."
            )
        return y

    def _class_weight(self, outputs: Tensor) -> Tensor:
        """Class weights, (K,), ones by default."""
        if self.weight is None:
            return outputs.new_ones(outputs.shape[1])
        return self.weight.to(outputs)

    def _distribution(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Target distribution q, like outputs."""
        n_classes = outputs.shape[1]
        weight = self._class_weight(outputs)
        weight = weight.reshape(-1, *[1] * (outputs.ndim - 2))
        if targets.is_floating_point():
            q = targets
        else:
            kept = targets != self.ignore_index
            q = one_hot_like(targets.where(kept, 0), outputs)
            weight = weight * kept.unsqueeze(1)
        if self.label_smoothing:
            q = (1 - self.label_smoothing) * q + self.label_smoothing / n_classes
        return q * weight

    def value(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """See `Loss.value`; summed over positions."""
        values = F.cross_entropy(
            outputs,
            targets,
            weight=None if self.weight is None else self.weight.to(outputs),
            label_smoothing=self.label_smoothing,
            ignore_index=self.ignore_index,
            reduction="none",
        )
        return values.reshape(len(outputs), -1).sum(1)

    def denominator(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """See `Loss.denominator`; the class weights, summed over positions."""
        if targets.is_floating_point():
            return outputs.new_full((len(outputs),), float(n_positions(outputs)))
        kept = targets != self.ignore_index
        weights = self._class_weight(outputs)[targets.where(kept, 0)] * kept
        return weights.reshape(len(outputs), -1).sum(1)

    def gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """See `Loss.gradient`."""
        p = torch.softmax(outputs, 1)
        q = self._distribution(outputs, targets)
        # Equal to Q p - q, without its cancellation where p and q agree in saturation.
        return p * sum_of_others(q) - q * sum_of_others(p)

    def n_factors(self, outputs: Tensor) -> int:
        """See `Loss.n_factors`; K - 1 for each position."""
        return (outputs.shape[1] - 1) * n_positions(outputs)

    def factors(self, outputs: Tensor, targets: Tensor) -> Iterator[Factor]:
        """See `Loss.factors`; one position non-zero at a time."""
        total = self._distribution(outputs, targets).sum(1).reshape(len(outputs), -1)
        p = torch.softmax(outputs, 1).reshape(*outputs.shape[:2], -1)
        tail = p.flip(1).cumsum(1).flip(1)
        tiny = torch.finfo(p.dtype).tiny  # A tail that underflows gives zero, not NaN.
        for position in range(p.shape[2]):
            for k in range(p.shape[1] - 1):
                here, after = tail[:, k, position], tail[:, k + 1, position]
                share = p[:, k + 1 :, position] / after.clamp(min=tiny)[:, None]
                ratio = after / here.clamp(min=tiny)
                scale = (total[:, position] * p[:, k, position] * ratio).sqrt()
                c = torch.zeros_like(p)
                c[:, k, position] = scale
                c[:, k + 1 :, position] = -scale[:, None] * share
                yield c.view_as(outputs), None

    def sampled_factor(
        self, outputs: Tensor, targets: Tensor, generator: torch.Generator
    ) -> Factor:
        """See `Loss.sampled_factor`; independent draws for the positions."""
        total = self._distribution(outputs, targets).sum(1).reshape(-1, 1)
        by_position = torch.softmax(outputs, 1).movedim(1, -1)
        p = by_position.reshape(-1, outputs.shape[1])
        others = sum_of_others(p)
        norms = others.square() + sum_of_others(p.square())
        mass = p * norms
        k = draw_columns(mass, generator)
        tiny = torch.finfo(p.dtype).tiny
        scale = total * mass.sum(1, keepdim=True) / norms.gather(1, k).clamp(min=tiny)
        scale = scale.sqrt()
        if len(p) > len(outputs):
            # Random signs remove the cross terms between the positions of a sample.
            scale = scale * random_signs((len(p), 1), generator, p)
        c = scale * (-p).scatter(1, k, others.gather(1, k))
        return c.reshape(by_position.shape).movedim(-1, 1), None

    def hessian_inner(self, outputs: Tensor, targets: Tensor, root: Tensor) -> Tensor:
        """See `Loss.hessian_inner`; linear in K where classes are many."""
        root = root_for(outputs, root)
        n, (n_classes, width) = len(outputs), root.shape
        # <B B^T, diag(p) - p p^T> is the variance of the rows of B under p.
        few = n_classes * (n + width) <= 2 * n * width
        variance = _variance_of_pairs if few else _variance_around_top
        total = self._distribution(outputs, targets).sum(1)
        return total * variance(torch.softmax(outputs, 1), root)


def _variance_of_pairs(p: Tensor, rows: Tensor) -> Tensor:
    """Variance of rows (K, r) under each p (n, K): half the mean squared distance."""
    # A sum of terms >= 0 that does not cancel when the softmax saturates.
    gram = rows @ rows.T
    diagonal = gram.diagonal()
    distances = diagonal[:, None] + diagonal[None, :] - 2.0 * gram
    return 0.5 * ((p @ distances) * p).sum(1)


def _variance_around_top(p: Tensor, rows: Tensor) -> Tensor:
    """Variance of rows (K, r) under each p (n, K), in O(n K r) and O(n K) memory."""
    # Around the row b_t of the most probable class: the mean squared distance to it is
    # of the order of 1 - p_t, the square of the mean's distance that is taken away of
    # its square, so that a saturated softmax loses no digits.
    rows = rows - rows.mean(0)
    top = p.argmax(1, keepdim=True)
    others = p.scatter(1, top, 0.0)
    norms = rows.square().sum(1)
    distances = norms + norms[top] - 2.0 * rows[top[:, 0]] @ rows.T
    offset = others.scatter(1, top, -others.sum(1, keepdim=True)) @ rows
    return (others * distances).sum(1) - offset.square().sum(1)
