"""Losses whose Hessian in the outputs comes from double backward."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from sklearn_relflat._losses.base import (
    Factor,
    Loss,
    class_labels,
    draw_columns,
    n_positions,
    one_hot_like,
    one_per_sample,
    root_for,
)
from sklearn_relflat._losses.cuts import cut_places
from sklearn_relflat._losses.torch_errors import raise_out_of_memory


def _overrides_torch(criterion: object) -> bool:
    """Whether a criterion is one of torch's that a user has changed."""
    kinds = type(criterion).__mro__
    torch_own = "torch.nn.modules.loss"
    return any(kind.__module__ == torch_own for kind in kinds) and (
        kinds[0].__module__ != torch_own or is_patched(criterion)
    )


def is_patched(criterion: Any) -> bool:
    """Whether a criterion computes something else than the forward of its class.

    Parameters
    ----------
    criterion : nn.Module or callable
        A criterion.

    Returns
    -------
    answer : bool
        True with a forward of the instance's own, with hooks, or called otherwise.
    """
    return isinstance(criterion, nn.Module) and bool(
        "forward" in vars(criterion)
        or criterion._forward_hooks
        or criterion._forward_pre_hooks
        or type(criterion).__call__ is not nn.Module.__call__
    )


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
        # One of torch's with a forward of the user's may reduce as it likes: what it
        # returns is asked of itself, with data.
        self._is_known = not _overrides_torch(criterion)
        self._criterion = criterion
        self._unreduced: nn.Module | None = None
        if isinstance(criterion, nn.Module):
            self._criterion = copy.deepcopy(criterion)
            if self._is_known and hasattr(criterion, "reduction"):
                unreduced: Any = copy.deepcopy(criterion)
                unreduced.reduction = "none"
                self._unreduced = unreduced

    def targets(self, outputs: Tensor, y: Tensor) -> Tensor:
        """See `Loss.targets`; also checks that the criterion averages over samples."""
        y = one_per_sample(y, outputs)
        if y.is_floating_point():
            y = y.to(outputs.dtype)
        if y.squeeze().shape == outputs.squeeze().shape:
            y = y.reshape(outputs.shape)  # (n,) against (n, 1) would broadcast.
        if not self._is_known:
            self._ask_reduction(outputs[:1], y[:1])
        with torch.no_grad():
            whole = self._call(self._criterion, outputs, y)
            values = self.value(outputs, y)
        parts = values.sum() if self.reduction == "sum" else values.mean()
        if whole.numel() != 1 or not torch.isclose(
            whole.to(parts).reshape(()), parts, rtol=1e-7, atol=1e-10, equal_nan=True
        ):
            raise ValueError(
                f"Expected a criterion that is the {self.reduction} over samples of a "
                f"loss of each, got {self.name!r} with {whole.tolist()!r} on a batch "
                f"whose samples give {parts.item()!r} on their own. Write it as such a "
                f"{self.reduction}, or give loss= another one, e.g. 'squared_error'."
            )
        places = cut_places(lambda f: self._call(self._criterion, f, y), outputs)
        if places:
            raise ValueError(
                f"Expected a criterion that torch differentiates, got {self.name!r}, "
                "which takes numbers out of torch's graph on which its value depends "
                f"({', '.join(places)}): its derivatives are those of another "
                "function. Give loss= one without, e.g. 'cross_entropy'."
            )
        return y

    def _ask_reduction(self, output: Tensor, target: Tensor) -> None:
        """Find whether the criterion averages or sums, from a sample and its double."""
        with torch.no_grad():
            once = self._call(self._criterion, output, target)
            twice = self._call(
                self._criterion, torch.cat([output] * 2), torch.cat([target] * 2)
            )
        if once.numel() != 1 or twice.numel() != 1:
            raise ValueError(
                f"Expected a scalar from the criterion {self.name!r}, got shape "
                f"{tuple(twice.shape)!r} for two samples. Reduce it over samples, e.g. "
                "with .mean()."
            )
        doubles = torch.isclose(twice, 2 * once, rtol=1e-6) & (once != 0)
        self.reduction = "sum" if bool(doubles) else "mean"
        self._is_known = bool(once != 0)

    @staticmethod
    def _call(criterion: Any, outputs: Tensor, targets: Tensor) -> Tensor:
        """Criterion in dtype and on the device of the outputs."""
        if isinstance(criterion, nn.Module):
            criterion.to(device=outputs.device, dtype=outputs.dtype)
        value = criterion(outputs, targets)
        if not isinstance(value, Tensor):
            raise TypeError(
                f"Expected a criterion that returns a tensor, got {value!r}. Compute "
                "it from the outputs with torch."
            )
        return value

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
        try:
            return torch.func.vmap(self._of_one)(outputs, targets)
        except RuntimeError as error:
            raise_out_of_memory(error)
            raise ValueError(
                f"Expected a criterion that torch.func.vmap can evaluate sample by "
                f"sample, got {self.name!r}, which fails with {error!s} Give it an "
                "attribute `reduction` that honours 'none'."
            ) from error

    def _autograd_hessian(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Hessian (n, D, D) in the D flattened outputs."""
        with torch.enable_grad():
            leaf = outputs.detach().clone().requires_grad_()
            total = self.value(leaf, targets).sum()
            (slope,) = torch.autograd.grad(total, leaf, create_graph=True)
            slope = slope.reshape(len(outputs), -1)
            rows = [self._row(slope[:, k], leaf) for k in range(slope.shape[1])]
        return torch.stack(rows, 1)

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
        hessian = self._autograd_hessian(outputs, targets)
        if not hessian.any() and self.value(outputs, targets).any():
            # A batch may lie where a smooth loss is linear, so look elsewhere as well.
            probes = [(scale * outputs, targets) for scale in (0.0, 0.5, 2.0)]
            if targets.shape == outputs.shape:
                probes.append((targets + 1e-3 * (outputs - targets), targets))
            if targets.is_floating_point():
                # Targets may make it linear as well, such as counts that are all zero.
                probes += [(outputs, targets + 1), (2 * outputs, targets + 1)]
            if not any(self._autograd_hessian(f, y).any() for f, y in probes):
                raise ValueError(
                    "Expected a twice differentiable loss, got the criterion "
                    f"{self.name!r}, whose second derivative is zero on these data "
                    "although its value is not. Give loss= a smooth one, for example "
                    "'squared_error' or 'cross_entropy'."
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
        k = draw_columns(values.abs(), generator)
        chosen = vectors.gather(2, k[:, None].expand(-1, vectors.shape[1], 1))[:, :, 0]
        c = chosen * values.abs().sum(1, keepdim=True).sqrt()
        return c.reshape(outputs.shape), values.gather(1, k)[:, 0].sign()

    def hessian_inner(self, outputs: Tensor, targets: Tensor, root: Tensor) -> Tensor:
        """See `Loss.hessian_inner`."""
        root = root_for(outputs, root)
        return (self._hessian(outputs, targets) * (root @ root.T)).sum((1, 2))


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
        y, logits = one_per_sample(y, outputs), self._logits(outputs)
        if logits is not outputs:
            if y.ndim == logits.ndim and y.shape[1] == 1:
                y = y[:, 0]
            if y.is_floating_point() and not (y % 1).any():
                y = y.long()  # A net with one output is trained on 0.0 and 1.0.
        return class_labels(y, logits)

    @staticmethod
    def _logits(outputs: Tensor) -> Tensor:
        """Give the outputs a class dimension, (n, K >= 2)."""
        if outputs.ndim > 1 and outputs.shape[1] > 1:
            return outputs
        column = outputs[:, None] if outputs.ndim == 1 else outputs
        return torch.cat([torch.zeros_like(column), column], 1)

    def value(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """See `Loss.value`."""
        logits = self._logits(outputs)
        error = torch.softmax(logits, 1) - one_hot_like(targets, logits)
        return error.square().reshape(len(outputs), -1).sum(1)

    def denominator(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """See `Loss.denominator`; the number of positions."""
        return outputs.new_full((len(outputs),), float(n_positions(outputs)))
