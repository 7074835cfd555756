"""Table of losses: value per sample, gradient and factored Hessian in the outputs.

Conventions: n samples, K outputs (classes), P positions; ``outputs`` f are raw model
outputs (logits) of shape (n,), (n, K) or (n, K, *positions), and everything else has
their dtype and device. The empirical risk over samples with weights s_i is
``sum_i s_i value_i / sum_i s_i denominator_i`` with reduction "mean" and
``sum_i s_i value_i`` with reduction "sum", equal to what the torch criterion of the
same name gives on the whole data set. Gradient and Hessian C_i of ``value_i`` are in
the flattened outputs of sample i, and ``C_i = sum_k s_ik c_ik c_ik^T``.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Factor = tuple[Tensor, Tensor | None]


def _int_dtype(y: Tensor) -> bool:
    """Whether y holds integers (booleans are not)."""
    return not (y.is_floating_point() or y.is_complex() or y.dtype == torch.bool)


def _on_device(y: Tensor, outputs: Tensor) -> Tensor:
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


def _labels(y: Tensor, outputs: Tensor, ignore_index: int | None = None) -> Tensor:
    """Class indices as int64, checked against the K outputs."""
    n_classes = outputs.shape[1]
    expected = outputs.shape[:1] + outputs.shape[2:]
    if not _int_dtype(y):
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
        raise ValueError(
            f"Expected class labels in 0..{n_classes - 1} (the model has {n_classes} "
            f"outputs), got {found}. Map the labels to 0..{n_classes - 1} first, for "
            "example with sklearn.preprocessing.LabelEncoder."
        )
    return y


def _one_hot(labels: Tensor, outputs: Tensor) -> Tensor:
    """Labels as 0/1 tensor like outputs."""
    return torch.zeros_like(outputs).scatter_(1, labels.unsqueeze(1), 1.0)


def _n_positions(outputs: Tensor) -> int:
    """Count the positions P that share the class dimension."""
    return outputs[0, 0].numel() if outputs.ndim > 1 else 1


def _sum_of_others(p: Tensor) -> Tensor:
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


def _signs(shape: tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
    """Independent signs -1 or +1 with equal probability."""
    return torch.where(_uniform(shape, generator, like) < 0.5, -1.0, 1.0).to(like)


def _draw(mass: Tensor, generator: torch.Generator) -> Tensor:
    """Draw one column per row with probability proportional to mass: (rows, 1)."""
    cumulated = mass.cumsum(1)
    level = _uniform((len(mass), 1), generator, mass) * cumulated[:, -1:]
    return (cumulated <= level).sum(1, keepdim=True).clamp_(max=mass.shape[1] - 1)


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
    def hessian_inner(self, outputs: Tensor, targets: Tensor, gram: Tensor) -> Tensor:
        """<gram, C_i> per sample, (n,), for a (K, K) gram and outputs (n, K)."""


def _gram_for(outputs: Tensor, gram: Tensor) -> Tensor:
    """Gram matrix in the dtype of the outputs, its size checked against theirs."""
    n_outputs = 1 if outputs.ndim == 1 else outputs.shape[1]
    if outputs.ndim > 2 or gram.shape != (n_outputs, n_outputs):
        raise ValueError(
            "Expected outputs of shape (n, K) and a gram matrix of shape (K, K), got "
            f"{tuple(outputs.shape)!r} and {tuple(gram.shape)!r}. Use the factors of "
            "the Hessian for outputs with positions."
        )
    return gram.to(outputs)


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
        y = _on_device(y, outputs)
        if y.is_floating_point() and y.shape == outputs.shape:
            return self._probabilities(y.to(outputs.dtype))
        return _labels(y, outputs, self.ignore_index)

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
            q = _one_hot(targets.where(kept, 0), outputs)
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
            return outputs.new_full((len(outputs),), float(_n_positions(outputs)))
        kept = targets != self.ignore_index
        weights = self._class_weight(outputs)[targets.where(kept, 0)] * kept
        return weights.reshape(len(outputs), -1).sum(1)

    def gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """See `Loss.gradient`."""
        p = torch.softmax(outputs, 1)
        q = self._distribution(outputs, targets)
        # Equal to Q p - q, without its cancellation where p and q agree in saturation.
        return p * _sum_of_others(q) - q * _sum_of_others(p)

    def n_factors(self, outputs: Tensor) -> int:
        """See `Loss.n_factors`; K - 1 for each position."""
        return (outputs.shape[1] - 1) * _n_positions(outputs)

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
        others = _sum_of_others(p)
        norms = others.square() + _sum_of_others(p.square())
        mass = p * norms
        k = _draw(mass, generator)
        tiny = torch.finfo(p.dtype).tiny
        scale = total * mass.sum(1, keepdim=True) / norms.gather(1, k).clamp(min=tiny)
        scale = scale.sqrt()
        if len(p) > len(outputs):
            # Random signs remove the cross terms between the positions of a sample.
            scale = scale * _signs((len(p), 1), generator, p)
        c = scale * (-p).scatter(1, k, others.gather(1, k))
        return c.reshape(by_position.shape).movedim(-1, 1), None

    def hessian_inner(self, outputs: Tensor, targets: Tensor, gram: Tensor) -> Tensor:
        """See `Loss.hessian_inner`."""
        gram = _gram_for(outputs, gram)
        # <G, diag(p) - p p^T> is the variance of the rows under p, which equals half
        # the mean squared distance of two of them: a sum of terms >= 0 that does not
        # cancel when the softmax saturates.
        diagonal = gram.diagonal()
        distances = diagonal[:, None] + diagonal[None, :] - gram - gram.T
        p = torch.softmax(outputs, 1)
        total = self._distribution(outputs, targets).sum(1)
        return 0.5 * total * ((p @ distances) * p).sum(1)


class PointwiseLoss(Loss):
    """A loss that sums (or averages) over the outputs of a sample: diagonal Hessian.

    Subclasses give the loss of one output and its two derivatives, elementwise.
    Reduction "mean" averages over the samples and over all the outputs of each.
    """

    one_hot = True  # Whether class labels for several outputs become 0/1 targets.

    @abstractmethod
    def _loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Loss of each output."""

    @abstractmethod
    def _slope(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """First derivative of `_loss`."""

    @abstractmethod
    def _curvature(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Second derivative of `_loss`, never negative."""

    def _check(self, outputs: Tensor, targets: Tensor) -> None:
        """Raise ValueError where values are outside of the domain of the loss."""

    def targets(self, outputs: Tensor, y: Tensor) -> Tensor:
        """See `Loss.targets`; like outputs, class labels one-hot (one versus rest)."""
        y = _on_device(y, outputs)
        labels_shape = outputs.shape[:1] + outputs.shape[2:]
        one_output = outputs.ndim == 1 or outputs.shape[1] == 1
        is_label = _int_dtype(y) and y.shape != outputs.shape
        if self.one_hot and is_label and not one_output:
            y = _one_hot(_labels(y, outputs), outputs)
        squeezed = (labels_shape, (*outputs.shape[:1], 1, *outputs.shape[1:]))
        if y.shape != outputs.shape and not (one_output and y.shape in squeezed):
            raise ValueError(
                f"Expected targets of shape {tuple(outputs.shape)!r}, that of the "
                f"outputs, got y of shape {tuple(y.shape)!r} and dtype {y.dtype!r}. "
                "Reshape y; targets are never broadcast."
            )
        y = y.to(outputs.dtype).reshape(outputs.shape)
        self._check(outputs, y)
        return y

    def _share(self, outputs: Tensor) -> float:
        """Factor of each output in the value of its sample."""
        return 1.0 if self.reduction == "sum" else 1.0 / outputs[0].numel()

    def value(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """See `Loss.value`."""
        values = self._loss(outputs, targets).reshape(len(outputs), -1)
        return self._share(outputs) * values.sum(1)

    def gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """See `Loss.gradient`."""
        return self._share(outputs) * self._slope(outputs, targets)

    def _root(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Square root of the diagonal of the Hessian, like outputs."""
        return (self._share(outputs) * self._curvature(outputs, targets)).sqrt()

    def n_factors(self, outputs: Tensor) -> int:
        """See `Loss.n_factors`; one for each output."""
        return outputs[0].numel()

    def factors(self, outputs: Tensor, targets: Tensor) -> Iterator[Factor]:
        """See `Loss.factors`; one output non-zero at a time."""
        root = self._root(outputs, targets).reshape(len(outputs), -1)
        for k in range(root.shape[1]):
            c = torch.zeros_like(root)
            c[:, k] = root[:, k]
            yield c.view_as(outputs), None

    def sampled_factor(
        self, outputs: Tensor, targets: Tensor, generator: torch.Generator
    ) -> Factor:
        """See `Loss.sampled_factor`; all factors with random signs."""
        signs = _signs(tuple(outputs.shape), generator, outputs)
        return signs * self._root(outputs, targets), None

    def hessian_inner(self, outputs: Tensor, targets: Tensor, gram: Tensor) -> Tensor:
        """See `Loss.hessian_inner`."""
        diagonal = _gram_for(outputs, gram).diagonal()
        hessian = self._share(outputs) * self._curvature(outputs, targets)
        return hessian.reshape(len(outputs), -1) @ diagonal


@dataclass(frozen=True, eq=False)
class BinaryCrossEntropy(PointwiseLoss):
    """Binary cross-entropy on logits, as torch's BCEWithLogitsLoss.

    With sigma the sigmoid and t in [0, 1] the target of an output f: the loss is
    ``w (-v t log sigma(f) - (1 - t) log sigma(-f))`` and its second derivative
    ``w (v t + 1 - t) sigma(f) sigma(-f)``.

    Parameters
    ----------
    weight : Tensor that broadcasts to the outputs of one sample, default=None
        Weight w of each output.
    pos_weight : Tensor that broadcasts to the outputs of one sample, default=None
        Weight v of the positive class of each output.
    reduction : {"mean", "sum"}, default="mean"
        As in torch; "mean" is over samples and outputs.

    Examples
    --------
    >>> import torch
    >>> loss, outputs = BinaryCrossEntropy(), torch.zeros(1, dtype=torch.float64)
    >>> targets = loss.targets(outputs, torch.tensor([1]))
    >>> loss.hessian_inner(outputs, targets, torch.eye(1)).item()
    0.25
    """

    weight: Tensor | None = None
    pos_weight: Tensor | None = None
    reduction: str = "mean"
    name = "binary_cross_entropy"

    def _check(self, outputs: Tensor, targets: Tensor) -> None:
        """Targets are probabilities, weights belong to outputs."""
        if bool(((targets < 0) | (targets > 1)).any()):
            raise ValueError(
                "Binary cross-entropy expects targets in 0..1, got values between "
                f"{targets.min().item()!r} and {targets.max().item()!r}. Map the "
                "labels to 0 and 1, e.g. with sklearn.preprocessing.LabelEncoder."
            )
        one_sample = (1, *outputs.shape[1:])
        for name in ("weight", "pos_weight"):
            tensor = getattr(self, name)
            if tensor is not None and not _broadcasts(tensor.shape, one_sample):
                raise ValueError(
                    f"Expected {name} that broadcasts to the outputs of one sample, "
                    f"{tuple(one_sample)!r}, got shape {tuple(tensor.shape)!r}. Give "
                    "weights of samples as sample_weight."
                )

    def _weights(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Weight and positive weight in the dtype of the outputs."""
        one = outputs.new_ones(())
        weight = one if self.weight is None else self.weight.to(outputs)
        positive = one if self.pos_weight is None else self.pos_weight.to(outputs)
        return weight, positive

    def _loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        weight, positive = self._weights(outputs)
        return F.binary_cross_entropy_with_logits(
            outputs, targets, weight=weight, pos_weight=positive, reduction="none"
        )

    def _slope(self, outputs: Tensor, targets: Tensor) -> Tensor:
        weight, positive = self._weights(outputs)
        up, down = torch.sigmoid(outputs), torch.sigmoid(-outputs)
        return weight * ((1 - targets) * up - positive * targets * down)

    def _curvature(self, outputs: Tensor, targets: Tensor) -> Tensor:
        weight, positive = self._weights(outputs)
        variance = torch.sigmoid(outputs) * torch.sigmoid(-outputs)
        return weight * (positive * targets + (1 - targets)) * variance


def _broadcasts(shape: tuple[int, ...], target: tuple[int, ...]) -> bool:
    """Whether a tensor of this shape broadcasts to exactly the target shape."""
    pairs = zip(reversed(shape), reversed(target), strict=False)
    return len(shape) <= len(target) and all(a in (1, b) for a, b in pairs)


@dataclass(frozen=True, eq=False)
class SquaredError(PointwiseLoss):
    """Squared error, as torch's MSELoss: C = (2/d) I for d outputs.

    Parameters
    ----------
    reduction : {"mean", "sum"}, default="mean"
        As in torch; "mean" is over samples and outputs.

    Examples
    --------
    >>> import torch
    >>> loss, outputs = SquaredError(), torch.zeros(1, 4)
    >>> targets = loss.targets(outputs, torch.ones(1, 4))
    >>> loss.hessian_inner(outputs, targets, torch.eye(4)).item()
    2.0
    """

    reduction: str = "mean"
    name = "squared_error"

    def _loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).square()

    def _slope(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return 2 * (outputs - targets)

    def _curvature(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.full_like(outputs, 2.0)


@dataclass(frozen=True, eq=False)
class Huber(PointwiseLoss):
    """Huber loss: quadratic for errors up to delta, linear beyond.

    Parameters
    ----------
    delta : float, default=1.0
        Error at which the loss becomes linear.
    scale : float, default=1.0
        Factor in front: 1 for torch's HuberLoss(delta), 1/beta for SmoothL1Loss(beta).
    reduction : {"mean", "sum"}, default="mean"
        As in torch; "mean" is over samples and outputs.
    name : str, default="huber"
        Name of the loss.

    Examples
    --------
    >>> import torch
    >>> loss, outputs = Huber(delta=1.0), torch.tensor([0.5, 3.0])
    >>> loss.value(outputs, loss.targets(outputs, torch.zeros(2))).tolist()
    [0.125, 2.5]
    """

    delta: float = 1.0
    scale: float = 1.0
    reduction: str = "mean"
    name: str = "huber"

    def _loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        loss = F.huber_loss(outputs, targets, delta=self.delta, reduction="none")
        return self.scale * loss

    def _slope(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.scale * (outputs - targets).clamp(-self.delta, self.delta)

    def _curvature(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.scale * ((outputs - targets).abs() <= self.delta).to(outputs)


@dataclass(frozen=True, eq=False)
class Poisson(PointwiseLoss):
    """Poisson negative log-likelihood of outputs that are logarithms of rates.

    Parameters
    ----------
    full : bool, default=False
        Whether to add Stirling's approximation of the constant term.
    reduction : {"mean", "sum"}, default="mean"
        As in torch; "mean" is over samples and outputs.

    Examples
    --------
    >>> import torch
    >>> loss, outputs = Poisson(), torch.zeros(1)
    >>> loss.value(outputs, loss.targets(outputs, torch.tensor([3]))).item()
    1.0
    """

    full: bool = False
    reduction: str = "mean"
    name = "poisson"
    one_hot = False

    def _check(self, outputs: Tensor, targets: Tensor) -> None:
        """Targets are counts."""
        if bool((targets < 0).any()):
            raise ValueError(
                "The Poisson loss expects targets >= 0, got "
                f"{targets.min().item()!r}. Use 'squared_error' for signed targets."
            )

    def _loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.poisson_nll_loss(
            outputs, targets, log_input=True, full=self.full, reduction="none"
        )

    def _slope(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.exp() - targets

    def _curvature(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.exp()


class AutogradLoss(Loss):
    """Any other twice differentiable criterion: its Hessian by double backward.

    Costs one backward pass through the criterion for each output, and an
    eigendecomposition per sample.

    Parameters
    ----------
    criterion : nn.Module or callable
        ``criterion(outputs, y)`` is the mean (or, if its attribute ``reduction`` says
        so, the sum) over the samples of a loss of each. A module with the attribute
        ``reduction`` is evaluated on a deep copy with reduction "none"; anything else,
        sample by sample through `torch.func.vmap`.

    Examples
    --------
    >>> import torch
    >>> loss = AutogradLoss(lambda f, y: (f - y).pow(4).mean())
    >>> outputs = torch.tensor([1.0, 2.0])
    >>> targets = loss.targets(outputs, torch.zeros(2))
    >>> loss.hessian_inner(outputs, targets, torch.eye(1)).tolist()
    [12.0, 48.0]
    """

    def __init__(self, criterion: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.name = getattr(criterion, "__name__", type(criterion).__name__)
        self.reduction = getattr(criterion, "reduction", "mean")
        self._criterion = criterion
        self._unreduced: nn.Module | None = None
        if isinstance(criterion, nn.Module):
            self._criterion = copy.deepcopy(criterion)
            if hasattr(criterion, "reduction"):
                unreduced: Any = copy.deepcopy(criterion)
                unreduced.reduction = "none"
                self._unreduced = unreduced

    def targets(self, outputs: Tensor, y: Tensor) -> Tensor:
        """See `Loss.targets`; also checks that the criterion averages over samples."""
        y = _on_device(y, outputs)
        if y.is_floating_point():
            y = y.to(outputs.dtype)
            if (
                y.numel() == outputs.numel()
                and y.squeeze().shape == outputs.squeeze().shape
            ):
                y = y.reshape(outputs.shape)
        with torch.no_grad():
            whole = self._call(self._criterion, outputs, y)
            values = self.value(outputs, y)
        parts = values.sum() if self.reduction == "sum" else values.mean()
        if whole.numel() != 1 or not torch.isclose(
            whole.reshape(()), parts, rtol=1e-4, atol=1e-6, equal_nan=True
        ):
            raise ValueError(
                f"Expected a criterion that is the {self.reduction} over samples of a "
                f"loss of each, got {self.name!r} with {whole.tolist()!r} on a batch "
                f"whose samples give {parts.item()!r} on their own. Write it as such a "
                f"{self.reduction}, or use one of {list(LOSSES)!r}."
            )
        return y

    @staticmethod
    def _call(criterion: Any, outputs: Tensor, targets: Tensor) -> Tensor:
        """Criterion in dtype and on the device of the outputs."""
        if isinstance(criterion, nn.Module):
            criterion.to(outputs)
        return criterion(outputs, targets)

    def _of_one(self, output: Tensor, target: Tensor) -> Tensor:
        """Value of one sample, as a batch of one."""
        value = self._call(self._criterion, output[None], target[None])
        if value.numel() != 1:
            raise ValueError(
                f"Expected a scalar from the criterion {self.name!r}, got shape "
                f"{tuple(value.shape)!r}. Reduce it over samples, e.g. with .mean()."
            )
        return value.reshape(())

    def value(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """See `Loss.value`."""
        if self._unreduced is not None:
            values = self._call(self._unreduced, outputs, targets)
            if values.ndim and len(values) == len(outputs):
                values = values.reshape(len(outputs), -1)
                return values.sum(1) if self.reduction == "sum" else values.mean(1)
        return torch.func.vmap(self._of_one)(outputs, targets)

    def _derivatives(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient (n, D) and Hessian (n, D, D) in the D flattened outputs."""
        with torch.enable_grad():
            leaf = outputs.detach().clone().requires_grad_()
            total = self.value(leaf, targets).sum()
            (slope,) = torch.autograd.grad(total, leaf, create_graph=True)
            slope = slope.reshape(len(outputs), -1)
            rows = [self._row(slope[:, k], leaf) for k in range(slope.shape[1])]
        return slope.detach(), torch.stack(rows, 1)

    @staticmethod
    def _row(slope: Tensor, leaf: Tensor) -> Tensor:
        """Differentiate (n, D) one component of the gradient."""
        row: Tensor | None = None
        if slope.requires_grad:
            (row,) = torch.autograd.grad(
                slope.sum(), leaf, retain_graph=True, allow_unused=True
            )
        if row is None:
            row = torch.zeros_like(leaf)
        return row.reshape(len(leaf), -1)

    def _hessian(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Hessian (n, D, D); an error where the criterion has no second derivative."""
        hessian = self._derivatives(outputs, targets)[1]
        if not hessian.any() and self.value(outputs, targets).any():
            # A batch may lie where a smooth loss is linear, so look elsewhere as well.
            probes = [scale * outputs for scale in (0.0, 0.5, 2.0)]
            if targets.shape == outputs.shape:
                probes.append(targets + 1e-3 * (outputs - targets))
            if not any(self._derivatives(probe, targets)[1].any() for probe in probes):
                raise ValueError(
                    "Expected a twice differentiable loss, got the criterion "
                    f"{self.name!r}, whose second derivative is zero on these data "
                    f"although its value is not. Use one of {list(LOSSES)!r}."
                )
        return 0.5 * (hessian + hessian.mT)

    def gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """See `Loss.gradient`."""
        with torch.enable_grad():
            leaf = outputs.detach().clone().requires_grad_()
            total = self.value(leaf, targets).sum()
            return torch.autograd.grad(total, leaf)[0]

    def n_factors(self, outputs: Tensor) -> int:
        """See `Loss.n_factors`; one for each output."""
        return outputs[0].numel()

    def factors(self, outputs: Tensor, targets: Tensor) -> Iterator[Factor]:
        """See `Loss.factors`; eigenvectors, s the sign of the eigenvalue."""
        values, vectors = torch.linalg.eigh(self._hessian(outputs, targets))
        roots = vectors * values.abs().sqrt()[:, None, :]
        for k in range(values.shape[1]):
            yield roots[:, :, k].reshape(outputs.shape), values[:, k].sign()

    def sampled_factor(
        self, outputs: Tensor, targets: Tensor, generator: torch.Generator
    ) -> Factor:
        """See `Loss.sampled_factor`; an eigenvector drawn by its |eigenvalue|."""
        values, vectors = torch.linalg.eigh(self._hessian(outputs, targets))
        k = _draw(values.abs(), generator)
        chosen = vectors.gather(2, k[:, None].expand(-1, vectors.shape[1], 1))[:, :, 0]
        c = chosen * values.abs().sum(1, keepdim=True).sqrt()
        return c.reshape(outputs.shape), values.gather(1, k)[:, 0].sign()

    def hessian_inner(self, outputs: Tensor, targets: Tensor, gram: Tensor) -> Tensor:
        """See `Loss.hessian_inner`."""
        gram = _gram_for(outputs, gram)
        return (self._hessian(outputs, targets) * gram).sum((1, 2))


class Brier(AutogradLoss):
    """Brier score: squared distance of the softmax to the one-hot label.

    One output counts as the logit of class 1 against class 0.

    Examples
    --------
    >>> import torch
    >>> loss, outputs = Brier(), torch.zeros(1, 2)
    >>> loss.value(outputs, loss.targets(outputs, torch.tensor([0]))).item()
    0.5
    """

    def __init__(self) -> None:
        self.name = "brier"
        self.reduction = "mean"

    def targets(self, outputs: Tensor, y: Tensor) -> Tensor:
        """See `Loss.targets`; class labels."""
        y, logits = _on_device(y, outputs), self._logits(outputs)
        if y.is_floating_point() and not (y % 1).any():
            y = y.long()  # A net with one output is trained on 0.0 and 1.0.
        if logits.shape[1] == 2 and outputs.numel() == len(outputs):
            y = y.reshape(len(outputs))
        return _labels(y, logits)

    @staticmethod
    def _logits(outputs: Tensor) -> Tensor:
        """Give the outputs a class dimension, (n, K >= 2)."""
        if outputs.ndim > 1 and outputs.shape[1] > 1:
            return outputs
        column = outputs.reshape(len(outputs), 1)
        return torch.cat([torch.zeros_like(column), column], 1)

    def value(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """See `Loss.value`."""
        logits = self._logits(outputs)
        error = torch.softmax(logits, 1) - _one_hot(targets, logits)
        return error.square().reshape(len(outputs), -1).sum(1)

    def denominator(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """See `Loss.denominator`; the number of positions."""
        return outputs.new_full((len(outputs),), float(_n_positions(outputs)))


def _cross_entropy(criterion: Any) -> Loss:
    """CrossEntropyLoss, or NLLLoss whose probabilities the model view undoes."""
    return CrossEntropy(
        weight=_class_weights(criterion),
        label_smoothing=getattr(criterion, "label_smoothing", 0.0),
        ignore_index=criterion.ignore_index,
        reduction=criterion.reduction,
    )


def _binary_cross_entropy(criterion: Any) -> Loss:
    """BCEWithLogitsLoss, or BCELoss whose probabilities the model view undoes."""
    return BinaryCrossEntropy(
        weight=_class_weights(criterion),
        pos_weight=_class_weights(criterion, "pos_weight"),
        reduction=criterion.reduction,
    )


def _class_weights(criterion: Any, name: str = "weight") -> Tensor | None:
    """Weights of a criterion, checked: curvature needs them finite and >= 0."""
    weight: Tensor | None = getattr(criterion, name, None)
    if weight is None:
        return None
    if not bool((torch.isfinite(weight) & (weight >= 0)).all()):
        raise ValueError(
            f"Expected finite {name} >= 0 in {type(criterion).__name__}, got "
            f"{weight.tolist()!r}."
        )
    return weight.detach()


def _smooth_l1(criterion: Any) -> Loss:
    """SmoothL1Loss(beta) is HuberLoss(beta) / beta."""
    beta = float(criterion.beta)
    if beta == 0:
        raise TypeError(_refusal("SmoothL1Loss(beta=0)", _REFUSED[nn.L1Loss]))
    return Huber(beta, 1 / beta, criterion.reduction, name="smooth_l1")


def _poisson(criterion: Any) -> Loss:
    """PoissonNLLLoss; of rates instead of their logarithms, through autograd."""
    if not criterion.log_input:
        return AutogradLoss(criterion)
    return Poisson(full=criterion.full, reduction=criterion.reduction)


LOSSES: dict[str, Callable[[], Loss]] = {
    "cross_entropy": CrossEntropy,
    "binary_cross_entropy": BinaryCrossEntropy,
    "squared_error": SquaredError,
    "huber": Huber,
    "smooth_l1": lambda: Huber(name="smooth_l1"),
    "poisson": Poisson,
    "brier": Brier,
}

_BUILDERS: dict[type, Callable[[Any], Loss]] = {
    nn.CrossEntropyLoss: _cross_entropy,
    nn.NLLLoss: _cross_entropy,
    nn.BCEWithLogitsLoss: _binary_cross_entropy,
    nn.BCELoss: _binary_cross_entropy,
    nn.MSELoss: lambda criterion: SquaredError(criterion.reduction),
    nn.HuberLoss: lambda criterion: Huber(criterion.delta, 1.0, criterion.reduction),
    nn.SmoothL1Loss: _smooth_l1,
    nn.PoissonNLLLoss: _poisson,
}

_KINKED = "is piecewise linear, so its second derivative is zero or does not exist"
_ARGUMENTS = "is not a function of the outputs and one target alone"
_REFUSED: dict[type, str] = {
    nn.L1Loss: _KINKED,
    nn.HingeEmbeddingLoss: _KINKED,
    nn.MultiMarginLoss: _KINKED,
    nn.MultiLabelMarginLoss: _KINKED,
    nn.MarginRankingLoss: _KINKED,
    nn.TripletMarginLoss: _KINKED,
    nn.TripletMarginWithDistanceLoss: _KINKED,
    nn.CosineEmbeddingLoss: _ARGUMENTS,
    nn.GaussianNLLLoss: _ARGUMENTS,
    nn.CTCLoss: _ARGUMENTS,
    nn.KLDivLoss: "is linear in the log-probabilities that it takes; use "
    "CrossEntropyLoss on logits with class probabilities as y",
}


def _refusal(name: str, reason: str) -> str:
    """Message about a criterion that has no curvature to measure."""
    supported = ", ".join(sorted(kind.__name__ for kind in _BUILDERS))
    return (
        f"Expected a twice differentiable criterion, got {name}, which {reason}. "
        f"Supported: {supported}, any other twice differentiable criterion, and the "
        f"names {list(LOSSES)!r}."
    )


def _implementation(criterion: object) -> type:
    """Class whose forward the criterion runs: a plain subclass counts as its parent."""
    forward = getattr(type(criterion), "forward", None)
    for parent in type(criterion).__mro__:
        known = parent in _BUILDERS or parent in _REFUSED
        if known and getattr(parent, "forward", None) is forward:
            return parent
    return type(criterion)


def loss_from_criterion(criterion: Callable[..., Tensor]) -> Loss:
    """Loss that a torch criterion stands for, on the raw outputs of a model.

    ``NLLLoss`` and ``BCELoss`` are taken in skorch's convention: the module returns
    probabilities, and the loss returned here is the cross-entropy of its logits.

    Parameters
    ----------
    criterion : nn.Module or callable
        A criterion ``criterion(outputs, y)``.

    Returns
    -------
    Loss
        The loss with the options of the criterion.

    Raises
    ------
    TypeError
        If the criterion is not callable or known not to be twice differentiable.
    ValueError
        If its reduction is neither "mean" nor "sum".

    Examples
    --------
    >>> from torch import nn
    >>> loss = loss_from_criterion(nn.NLLLoss(ignore_index=3))
    >>> loss.name, loss.reduction, loss.ignore_index
    ('cross_entropy', 'mean', 3)
    """
    criterion = getattr(criterion, "_orig_mod", criterion)  # of torch.compile
    name = type(criterion).__name__
    if isinstance(criterion, type) or not callable(criterion):
        raise TypeError(
            f"Expected a criterion instance or callable, got {criterion!r}. Give, for "
            "example, torch.nn.CrossEntropyLoss()."
        )
    kind = _implementation(criterion)
    if kind in _REFUSED:
        raise TypeError(_refusal(name, _REFUSED[kind]))
    reduction = getattr(criterion, "reduction", "mean")
    if reduction not in ("mean", "sum"):
        raise ValueError(
            f"Expected {name} with reduction 'mean' or 'sum', got {reduction!r}. Give "
            "loss= a criterion with reduction='mean' to measure the curvature of the "
            "mean loss."
        )
    return _BUILDERS.get(kind, AutogradLoss)(criterion)


def resolve_loss(
    loss: str | Callable[..., Tensor] | Loss | None, default: Loss | None
) -> Loss:
    """Loss that a user asked for, by name, criterion or None for the default.

    Parameters
    ----------
    loss : str, nn.Module, callable, Loss or None
        A key of `LOSSES`, a criterion, a loss, or None.
    default : Loss or None
        The loss that the model was trained with, if known.

    Returns
    -------
    Loss
        The loss to measure.

    Raises
    ------
    TypeError
        If loss is none of these, or not twice differentiable.
    ValueError
        If the name is unknown, or there is neither a loss nor a default.

    Examples
    --------
    >>> resolve_loss("brier", default=None).name
    'brier'
    """
    if loss is None:
        if default is None:
            raise ValueError(
                "Expected a loss, got None for a model that does not say which loss it "
                f"was trained with. Give loss= one of {list(LOSSES)!r} or a torch "
                "criterion."
            )
        return default
    if isinstance(loss, Loss):
        return loss
    if isinstance(loss, str):
        if loss not in LOSSES:
            raise ValueError(
                f"Expected loss to be one of {list(LOSSES)!r} or a torch criterion, "
                f"got {loss!r}."
            )
        return LOSSES[loss]()
    return loss_from_criterion(loss)
