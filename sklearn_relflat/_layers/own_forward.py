"""Modules with a forward of their own: whether they are linear in their weight."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sklearn_relflat._layers.capture import LayerCall
from sklearn_relflat._layers.kinds import computes_by_kind
from sklearn_relflat._losses.torch_errors import raise_out_of_memory
from sklearn_relflat._models.state import differentiable


def _tolerance(dtype: torch.dtype) -> float:
    """Relative difference that batches of other sizes may make by rounding."""
    # Sums are taken in another order: deep nets in float32 differ by about 1e-5.
    return 1e-3 if torch.finfo(dtype).eps > 1e-10 else 1e-8


def agree(left: Tensor, right: Tensor, scale: Tensor | None = None) -> bool:
    """Whether two tensors are equal up to rounding."""
    if left.shape != right.shape:
        return False
    if not (left.is_floating_point() or left.is_complex()):
        return torch.equal(left, right)
    if not left.numel():
        return True
    reference = right.abs() if scale is None else scale
    dtype = left.abs().dtype
    bound = _tolerance(dtype) * reference.max() + torch.finfo(dtype).tiny
    return bool((left - right).abs().max() <= bound)


def noise_like(tensor: Tensor) -> Tensor:
    """Draw the same normal numbers each time, from a stream of their own."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
    return noise.to(device=tensor.device, dtype=tensor.dtype)


def weight_gradient(call: LayerCall, pulled: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient in the weight that a call accounts for, and the size of its terms."""
    rows, phi = call.rows(pulled), call.columns()
    return (
        torch.einsum("ndp,nmp->dm", rows, phi),
        torch.einsum("ndp,nmp->dm", rows.abs(), phi.abs()),
    )


def own_forward_fault(call: LayerCall) -> str | None:
    """Why a module with a forward of its own is not linear in its weight, or None.

    Parameters
    ----------
    call : LayerCall
        A call of a layer.

    Returns
    -------
    reason : str or None
        None where ``z = w Phi + c`` holds with a c that does not depend on w, such as
        a bias or a low-rank adapter.
    """
    if computes_by_kind(call.module):
        return None
    kind = type(call.module).__name__
    weight = dict(call.module.named_parameters(recurse=False)).get("weight")
    if weight is None:
        return (
            f"{kind} has a forward of its own and a weight that is computed from other "
            "parameters"
        )
    with torch.enable_grad(), differentiable([call.module]):
        try:
            z: Any = call.module.forward(call.inputs.detach())
        except (RuntimeError, TypeError, ValueError, AttributeError) as error:
            raise_out_of_memory(error)
            return (
                f"the forward of {kind} could not be repeated on its features ({error})"
            )
        is_linear = _is_linear_in(weight, z, call)
    not_linear = (
        f"the output of {kind}, which has a forward of its own, is not linear in the "
        "weight with the layer's features as slopes, weight @ features + bias (it "
        "normalises, masks, rescales or pads inside). Let it compute its weight by a "
        "parametrization, or choose another layer"
    )
    if not agree(z.detach(), call.preactivations.detach()):
        return f"the output of {kind} is not what its forward returns for its features"
    return None if is_linear else not_linear


def _is_linear_in(weight: Tensor, z: Tensor, call: LayerCall) -> bool:
    """Whether an output is linear in a weight, with the features as slopes."""
    if not (z.requires_grad and weight.requires_grad):
        return False
    if call.columns().shape[2] != call.rows(z).shape[2]:
        return False
    cotangent = noise_like(z)
    found: Any = torch.autograd.grad(
        z, weight, cotangent, create_graph=True, allow_unused=True
    )
    (slope,) = found
    if slope is None:
        return False
    expected, size = weight_gradient(call, cotangent)
    if not agree(slope.detach().flatten(1), expected, size):
        return False
    if not slope.requires_grad:
        return True
    (second,) = torch.autograd.grad(
        slope, weight, noise_like(slope), materialize_grads=True
    )
    return not bool(second.any())


def check_own_forwards(calls: dict[str, list[LayerCall]]) -> None:
    """Raise where a module with a forward of its own is not linear in its weight.

    Parameters
    ----------
    calls : dict of str to list of LayerCall
        Calls of some layers.

    Raises
    ------
    ValueError
        Naming the layer.
    """
    for name, own in calls.items():
        for call in own:
            reason = own_forward_fault(call)
            if reason is not None:
                raise ValueError(f"Layer {name!r} cannot be measured: {reason}.")
