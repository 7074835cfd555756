"""Kinds of weight layers as linear maps of unfolded features.

Conventions
-----------
A weight layer computes ``z = w Phi + b`` with a weight matrix ``w`` of shape
``(d, m)`` and, for one sample, features ``Phi`` of shape ``(m, P)``: ``P = 1`` for a
``Linear`` layer applied once, one column per token for a token-wise ``Linear``, one
column per output pixel (an unfolded patch) for a convolution. Index letters: ``n``
samples, ``d`` neurons, ``m`` features, ``P`` positions, ``r`` rows of a cotangent.
A layer that is called several times in one forward pass, or a weight that several
modules share, has the columns of all its calls, one after the other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm


def _linear_patches(module: nn.Module, x: Tensor) -> Tensor:
    """Features of a linear layer, (n, *positions, m) -> (n, m, P)."""
    return x.reshape(x.shape[0], -1, x.shape[-1]).transpose(1, 2)


def _linear_rows(module: nn.Module, z: Tensor) -> Tensor:
    """Preactivations of a linear layer, (n, *positions, d) -> (n, d, P)."""
    return z.reshape(z.shape[0], -1, z.shape[-1]).transpose(1, 2)


def _linear_unrows(module: nn.Module, rows: Tensor, like: Tensor) -> Tensor:
    """Inverse of `_linear_rows` into the shape of `like`."""
    return rows.transpose(1, 2).reshape(like.shape)


def _padded(conv: Any, x: Tensor) -> Tensor:
    """Input of a convolution with its padding made explicit."""
    if conv.padding == "valid":
        return x
    if conv.padding == "same":
        totals = [
            d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)
        ]
        # torch puts the odd element at the end.
        pairs = [(total // 2, total - total // 2) for total in totals]
    else:
        pairs = [(p, p) for p in conv.padding]
    if not any(sum(pair) for pair in pairs):
        return x
    flat = [p for pair in reversed(pairs) for p in pair]
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    return F.pad(x, flat, mode=mode)


def _conv_patches(conv: Any, x: Tensor) -> Tensor:
    """Patches that a convolution multiplies with its kernel, as one strided view."""
    # With channels last in memory, the copy of the patches is several times slower.
    x = _padded(conv, x).contiguous()
    n_dims = len(conv.kernel_size)
    for i in range(n_dims):
        width = conv.dilation[i] * (conv.kernel_size[i] - 1) + 1
        x = x.unfold(2 + i, width, conv.stride[i])[..., :: conv.dilation[i]]
    # (n, c, *out, *kernel) -> (n, c, *kernel, *out), the order of the flat kernel.
    order = [0, 1, *range(2 + n_dims, 2 + 2 * n_dims), *range(2, 2 + n_dims)]
    return x.permute(order)


def _conv_rows(conv: Any, z: Tensor) -> Tensor:
    """Preactivations of a convolution, (n, d, *out) -> (n, d, P)."""
    return z.flatten(2)


def _conv_unrows(conv: Any, rows: Tensor, like: Tensor) -> Tensor:
    """Inverse of `_conv_rows`."""
    return rows.reshape(like.shape)


@dataclass(frozen=True)
class LayerKind:
    """What the measures need to know of one kind of layer.

    Attributes
    ----------
    patches : callable
        ``patches(module, x)``: features of shape (n, m, P), where m and P may each be
        several dimensions of a view in which numbers occur repeatedly.
    rows : callable
        ``rows(module, z)``: preactivations as (n, d, P).
    unrows : callable
        ``unrows(module, rows, like)``: the inverse, in the shape of `like`.
    """

    patches: Callable[[Any, Tensor], Tensor]
    rows: Callable[[Any, Tensor], Tensor]
    unrows: Callable[[Any, Tensor, Tensor], Tensor]

    def columns(self, module: Any, x: Tensor) -> Tensor:
        """Unfolded features of shape (n, m, P)."""
        return self.patches(module, x).reshape(len(x), module.weight[0].numel(), -1)


_LINEAR = LayerKind(_linear_patches, _linear_rows, _linear_unrows)
_CONV = LayerKind(_conv_patches, _conv_rows, _conv_unrows)

#: The supported layers. A new kind of layer is one row.
LAYER_KINDS: dict[type[nn.Module], LayerKind] = {
    nn.Linear: _LINEAR,
    nn.Conv1d: _CONV,
    nn.Conv2d: _CONV,
    nn.Conv3d: _CONV,
}


#: Modules whose weights are not called ``weight``, with what their weights are.
_OTHER_WEIGHTS: dict[type[nn.Module], str] = {
    nn.RNNBase: "its recurrent weights",
    nn.RNNCellBase: "its recurrent weights",
    nn.MultiheadAttention: "its packed input projection (out_proj is one)",
}


def layer_kind(module: nn.Module) -> LayerKind | None:
    """Row of `LAYER_KINDS` for a module, or None."""
    for cls, kind in LAYER_KINDS.items():
        if isinstance(module, cls):
            return kind
    return None


def refusal(module: nn.Module) -> str | None:
    """Reason why a module that has a weight matrix is not supported, or None."""
    weight = getattr(module, "weight", None)
    if layer_kind(module) is None:
        if isinstance(weight, Tensor) and weight.dim() >= 2:
            return f"{type(module).__name__} is not a supported kind of weight layer"
        for cls, what in _OTHER_WEIGHTS.items():
            if isinstance(module, cls):
                return (
                    f"{type(module).__name__} is not a supported kind of weight layer, "
                    f"nor is {what}"
                )
        return None
    if getattr(module, "groups", 1) != 1:
        return (
            f"{type(module).__name__} with groups={module.groups!r}: relative flatness "
            "is defined for a weight that acts on one common feature vector, a grouped "
            "convolution acts on several"
        )
    return None


def computes_by_kind(module: nn.Module) -> bool:
    """Whether a module runs torch's own forward of its kind, and so z = w Phi + b."""
    for cls in LAYER_KINDS:
        if isinstance(module, cls):
            return not {"forward", "_conv_forward"} & set(vars(module)) and all(
                getattr(type(module), name, None) is getattr(cls, name, None)
                for name in ("forward", "_conv_forward", "__call__", "_call_impl")
            )
    return False


def how_to_remove(module: nn.Module, name: str = "weight") -> str:
    """Say how what computes a parameter of a module from others is taken away.

    Parameters
    ----------
    module : torch.nn.Module
        A module whose parameter is computed before each forward pass.
    name : str, default="weight"
        The parameter.

    Returns
    -------
    advice : str
        A sentence without its full stop.
    """
    utils = "torch.nn.utils."
    if parametrize.is_parametrized(module, name):
        call = f'parametrize.remove_parametrizations(layer, "{name}")'
        return f"Remove the parametrization with {utils}{call}"
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm):
            return f"Remove the weight normalization with {utils}remove_weight_norm"
        if isinstance(hook, SpectralNorm):
            return f"Remove the spectral normalization with {utils}remove_spectral_norm"
        if isinstance(hook, BasePruningMethod):
            return (
                f'Make the pruning permanent with {utils}prune.remove(layer, "{name}")'
            )
    return f"Make the {name} a parameter of its own"
