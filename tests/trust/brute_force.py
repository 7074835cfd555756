"""Relative flatness by brute force, in float64, from the user's own module."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextmanager
def plain_attention():
    """Fused attention has no second derivative."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


def risk_of(
    module: nn.Module,
    X: Tensor,
    batch_size: int,
    weight: Tensor,
    terms: Callable[[Tensor, int], tuple[Tensor, Tensor]],
    reduction: str,
) -> Tensor:
    """Empirical risk, with the batches that a net makes of the data.

    `terms` maps outputs of a sample, as a batch of one, and its number to the value and
    denominator of its loss.
    """
    total, mass = 0.0, 0.0
    for start in range(0, len(X), batch_size):
        outputs = module(X[start : start + batch_size].clone())
        outputs = outputs[0] if isinstance(outputs, tuple) else outputs
        for i in range(len(outputs)):
            value, denominator = terms(outputs[i : i + 1], start + i)
            total = total + weight[start + i] * value
            mass = mass + weight[start + i] * denominator
    return total if reduction == "sum" else total / mass


def hessian_of(risk: Tensor, weight: nn.Parameter) -> Tensor:
    """Second derivatives in a parameter by double backward, (d, m, d, m)."""
    d, m = len(weight), weight[0].numel()
    (gradient,) = torch.autograd.grad(
        risk, weight, create_graph=True, allow_unused=True, materialize_grads=True
    )
    rows = []
    for entry in gradient.reshape(-1):
        if entry.requires_grad:
            (row,) = torch.autograd.grad(
                entry, weight, retain_graph=True, allow_unused=True,
                materialize_grads=True,
            )  # fmt: skip
        else:
            row = torch.zeros_like(weight)
        rows.append(row.reshape(-1))
    return torch.stack(rows).reshape(d, m, d, m)


def kappa_of(weight: Tensor, hessian: Tensor) -> tuple[float, float]:
    """kappa_Tr, and the size of its terms."""
    w = weight.detach().flatten(1)
    gram = w @ w.T
    diagonal = torch.einsum("sata->st", hessian)
    sizes = torch.einsum("sata->st", hessian.abs())
    return float((gram * diagonal).sum()), float((gram.abs() * sizes).sum())
