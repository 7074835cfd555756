"""Losses that add up over the outputs of a sample: their Hessian is diagonal."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from sklearn_relflat._losses.base import (
    Factor,
    Loss,
    class_labels,
    is_integer,
    one_hot_like,
    one_per_sample,
    random_signs,
    root_for,
)


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
        y = one_per_sample(y, outputs)
        labels_shape = outputs.shape[:1] + outputs.shape[2:]
        one_output = outputs.ndim == 1 or outputs.shape[1] == 1
        is_label = is_integer(y) and y.shape != outputs.shape
        if self.one_hot and is_label and not one_output:
            y = one_hot_like(class_labels(y, outputs), outputs)
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
        signs = random_signs(tuple(outputs.shape), generator, outputs)
        return signs * self._root(outputs, targets), None

    def hessian_inner(self, outputs: Tensor, targets: Tensor, root: Tensor) -> Tensor:
        """See `Loss.hessian_inner`."""
        diagonal = root_for(outputs, root).square().sum(1)
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
        likely = positive * targets * _minus_log_sigmoid(outputs)
        return weight * (likely + (1 - targets) * _minus_log_sigmoid(-outputs))

    def _slope(self, outputs: Tensor, targets: Tensor) -> Tensor:
        weight, positive = self._weights(outputs)
        up, down = torch.sigmoid(outputs), torch.sigmoid(-outputs)
        return weight * ((1 - targets) * up - positive * targets * down)

    def _curvature(self, outputs: Tensor, targets: Tensor) -> Tensor:
        weight, positive = self._weights(outputs)
        variance = torch.sigmoid(outputs) * torch.sigmoid(-outputs)
        return weight * (positive * targets + (1 - targets)) * variance


def _minus_log_sigmoid(x: Tensor) -> Tensor:
    """Minus the logarithm of the sigmoid, to the last digit that of torch."""
    # torch's own starts its threads for every few numbers, and waits for them where
    # other processes have the cores.
    return torch.logaddexp(x.new_zeros(()), -x)


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
