"""Whether the loss of a view is the one that its net is trained with.

skorch computes the training loss in ``get_loss``, which a net may override, from all
that the module returns, with a criterion that may be anybody's. A loss of the table, on
the first output, is only its equal if it gives the same numbers.
"""

from __future__ import annotations

from typing import Any

import torch
from skorch import NeuralNet
from torch import Tensor

from sklearn_relflat._data.batches import Batch
from sklearn_relflat._losses.base import Loss
from sklearn_relflat._losses.torch_errors import raise_out_of_memory
from sklearn_relflat._models.links import logits_of, with_samples
from sklearn_relflat._models.state import differentiable

_OWN_PACKAGES = ("skorch.", "sklearn_relflat.")


class TrainedLoss:
    """The training loss of a net, as its ``get_loss`` has it.

    Parameters
    ----------
    net : skorch.NeuralNet
        The net, on private modules.
    link : str or None
        What its module applies to the logits.
    """

    def __init__(self, net: NeuralNet, link: str | None) -> None:
        self._net = net
        self._link = link

    def check(self, loss: Loss, batch: Batch) -> None:
        """Raise where a loss is not the one that the net is trained with.

        Parameters
        ----------
        loss : Loss
            The loss on the first output that stands for it.
        batch : Batch
            Some samples, as the net's module takes them.

        Raises
        ------
        ValueError
            If value or gradient differ, or something else than the first output counts.
        """
        name = type(self._net).__name__
        how = (
            f"The loss that {name} is trained with (its get_loss with the criterion "
            f"{type(self._net.criterion_).__name__!r}) cannot be measured: "
        )
        way_out = (
            ". Pass loss=, a loss of the module's first output, to measure that one "
            "instead"
        )
        rows = range(min(batch.n_samples, 4))
        for part in ([*rows], *([row] for row in rows)):
            samples = batch.take(part)
            if samples.y is None:
                return
            try:
                reason = self._difference(loss, samples)
            # Whatever a user's own criterion raises on its first output alone.
            except Exception as error:
                raise_out_of_memory(error)
                raise ValueError(f"{how}{error}{way_out}.") from error
            if reason is not None:
                raise ValueError(f"{how}{reason}{way_out}.")

    def _difference(self, loss: Loss, batch: Batch) -> str | None:
        """Say what tells the two losses apart on some samples."""
        with torch.no_grad():
            raw = self._net.infer(batch.take([*range(batch.n_samples)]).inputs)
        parts = list(raw) if isinstance(raw, tuple | list) else [raw]
        first, targets = parts[0], batch.y
        assert targets is not None
        y = targets
        if y.is_floating_point() and y.numel() == first.numel():
            y = y.reshape(first.shape)
        leaves = [
            p.detach().requires_grad_(p.is_floating_point())
            if isinstance(p, Tensor)
            else p
            for p in parts
        ]
        given = type(raw)(leaves) if isinstance(raw, tuple | list) else leaves[0]
        fixed = [p.detach() if isinstance(p, Tensor) else p for p in parts]
        constant = type(raw)(fixed) if isinstance(raw, tuple | list) else fixed[0]
        with torch.enable_grad(), differentiable([self._net.module_]):
            value = self._net.get_loss(given, y, X=batch.inputs, training=False)
            if self._net.get_loss(
                constant, y, X=batch.inputs, training=False
            ).requires_grad:
                return (
                    "it depends on parameters of the module directly, not only through "
                    "its outputs"
                )
        outputs = first
        if self._link is not None:
            outputs = logits_of(self._link, lambda: first)
        n_samples = batch.n_samples
        ours, slope = _risk(loss, with_samples(outputs.double(), n_samples), targets)
        if not torch.allclose(value.detach().double(), ours, rtol=1e-3, atol=1e-6):
            return (
                f"it is {value.item():.6g} on {batch.n_samples} samples, where "
                f"{loss.name!r} of the first output is {ours.item():.6g}"
            )
        tensors = [p for p in leaves if isinstance(p, Tensor) and p.requires_grad]
        found: Any = torch.autograd.grad(value, tensors, allow_unused=True)
        if any(g is not None and bool(g.any()) for g in found[1:]):
            return "it depends on other outputs of the module than the first"
        own = torch.zeros_like(first) if found[0] is None else found[0]
        size = float(slope.abs().max()) + 1e-12
        if self._link is None and not torch.allclose(
            with_samples(own.double(), n_samples), slope, rtol=1e-3, atol=1e-3 * size
        ):
            return f"its derivative is not that of {loss.name!r} of the first output"
        return None


def _risk(loss: Loss, outputs: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Empirical risk of some samples and its gradient in the outputs."""
    targets = loss.targets(outputs, y)
    scale = loss.denominator(outputs, targets).sum()
    if loss.reduction == "sum":
        scale = torch.ones_like(scale)
    return (
        loss.value(outputs, targets).sum() / scale,
        loss.gradient(outputs, targets) / scale,
    )


def trained_loss(
    net: NeuralNet, shadow: NeuralNet, criterion: Any, link: str | None
) -> TrainedLoss | None:
    """Training loss of a net that has to be checked, or None.

    Parameters
    ----------
    net, shadow : skorch.NeuralNet
        The net, and the same on private modules.
    criterion : callable
        Its criterion, without torch.compile.
    link : str or None
        What the module applies to its logits.

    Returns
    -------
    trained : TrainedLoss or None
        None for skorch's own ``get_loss`` with one of torch's criteria.
    """
    definers = [kind for kind in type(net).__mro__ if "get_loss" in vars(kind)]
    own = "get_loss" not in vars(net) and all(
        f"{kind.__module__}.".startswith(_OWN_PACKAGES) for kind in definers
    )
    if own and type(criterion).__module__.startswith("torch.nn."):
        return None
    return TrainedLoss(shadow, link)
