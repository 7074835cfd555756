"""Table of losses: by name, and from the criterion that a model was trained with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sklearn_relflat._losses.autograd import AutogradLoss, Brier, is_patched
from sklearn_relflat._losses.base import Factor, Loss
from sklearn_relflat._losses.cross_entropy import CrossEntropy
from sklearn_relflat._losses.pointwise import (
    BinaryCrossEntropy,
    Huber,
    PointwiseLoss,
    Poisson,
    SquaredError,
)

__all__ = [
    "LOSSES",
    "AutogradLoss",
    "BinaryCrossEntropy",
    "Brier",
    "CrossEntropy",
    "Factor",
    "Huber",
    "Loss",
    "PointwiseLoss",
    "Poisson",
    "SquaredError",
    "loss_from_criterion",
    "resolve_loss",
]


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
    own = kind not in _BUILDERS or is_patched(criterion)
    asked = own and issubclass(kind, tuple(_BUILDERS))
    if reduction not in ("mean", "sum") and not asked:
        raise ValueError(
            f"Expected {name} with reduction 'mean' or 'sum', got {reduction!r}. Give "
            "loss= a criterion with reduction='mean' to measure the curvature of the "
            "mean loss."
        )
    return AutogradLoss(criterion) if own else _BUILDERS[kind](criterion)


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
