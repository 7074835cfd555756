"""Whether the loss of a view is the one that its net is trained with.

skorch computes the training loss in ``get_loss``, which a net may override, from all
that the module returns, with a criterion that may be anybody's. A loss of the table, on
the first output, is only its equal if it gives the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from skorch import NeuralNet
from torch import Tensor

from sklearn_relflat._data.batches import Batch
from sklearn_relflat._losses.autograd import is_patched
from sklearn_relflat._losses.base import Loss
from sklearn_relflat._losses.cuts import cut_places
from sklearn_relflat._losses.torch_errors import raise_out_of_memory
from sklearn_relflat._models.links import logits_of, with_samples
from sklearn_relflat._models.state import differentiable

# Relative differences that rounding may make, in single precision and in double.
_RTOL = (2e-5, 1e-8)
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
        alone = range(min(batch.n_samples, 4) if batch.start == 0 else 0)
        for part in ([*range(batch.n_samples)], *([row] for row in alone)):
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

        def own(outputs: list[Any]) -> Tensor:
            """Training loss of what the module returns."""
            given = type(raw)(outputs) if isinstance(raw, tuple | list) else outputs[0]
            labels = y.to(outputs[0].dtype) if y.is_floating_point() else y
            return self._net.get_loss(given, labels, X=batch.inputs, training=False)

        fixed = [p.detach() if isinstance(p, Tensor) else p for p in parts]
        with torch.enable_grad(), differentiable([self._net.module_]):
            if own(fixed).requires_grad:
                return (
                    "it depends on parameters of the module directly, not only through "
                    "its outputs"
                )
        try:
            # Where the criterion allows it, without the rounding of single precision.
            fixed = [_widened(p) for p in fixed]
            with torch.no_grad():
                own(fixed)
        except (RuntimeError, TypeError, ValueError) as error:
            raise_out_of_memory(error)
            fixed = [p.detach() if isinstance(p, Tensor) else p for p in parts]
        return self._compared(loss, own, fixed, targets)

    def _compared(
        self,
        loss: Loss,
        own: Callable[[list[Any]], Tensor],
        fixed: list[Any],
        y: Tensor,
    ) -> str | None:
        """Say what tells the two losses apart at some outputs."""
        n_samples = len(y)
        leaves = [
            p.clone().requires_grad_(p.is_floating_point())
            if isinstance(p, Tensor)
            else p
            for p in fixed
        ]
        with torch.enable_grad():
            value = own(leaves)
        first = fixed[0]
        outputs = first
        if self._link is not None:
            outputs = logits_of(self._link, lambda: first)
        ours, slope = _risk(loss, with_samples(outputs.double(), n_samples), y)
        # skorch adds a small number to probabilities before it takes their logarithm.
        rtol = 1e-3 if self._link is not None else _RTOL[value.dtype is torch.float64]
        if not torch.allclose(
            value.detach().double(), ours, rtol=rtol, atol=rtol / 1e3
        ):
            return (
                f"it is {value.item():.6g} on {n_samples} samples, where "
                f"{loss.name!r} of the first output is {ours.item():.6g}"
            )
        tensors = [p for p in leaves if isinstance(p, Tensor) and p.requires_grad]
        found: Any = torch.autograd.grad(value, tensors, allow_unused=True)
        if any(g is not None and bool(g.any()) for g in found[1:]):
            return "it depends on other outputs of the module than the first"
        slope_of_own = torch.zeros_like(first) if found[0] is None else found[0]
        size = float(slope.abs().max()) + 1e-12
        if self._link is None and not torch.allclose(
            with_samples(slope_of_own.double(), n_samples),
            slope,
            rtol=rtol,
            atol=rtol * size,
        ):
            return f"its derivative is not that of {loss.name!r} of the first output"
        places = cut_places(lambda f: own([f, *fixed[1:]]), first)
        if places:
            return (
                "it takes numbers out of torch's graph on which its value depends "
                f"({', '.join(places)}), so that its derivatives are those of another "
                "function"
            )
        return None


def _widened(value: Any) -> Any:
    """Return a tensor in double precision, and anything else as it is."""
    is_real = isinstance(value, Tensor) and value.is_floating_point()
    return value.double() if is_real else value


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


def _is_torch_own(criterion: Any) -> bool:
    """Whether a criterion is an instance of one of torch's own classes."""
    return type(criterion).__module__.startswith("torch.nn.")


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
    if own and not is_patched(criterion) and _is_torch_own(criterion):
        return None
    return TrainedLoss(shadow, link)
