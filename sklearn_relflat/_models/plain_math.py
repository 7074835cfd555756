"""Forward passes by plain formulas in full precision, for this thread alone.

Fused attention has no second derivative and autocast no precision for one. torch's own
switches for both belong to the whole process; a function mode belongs to its thread.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from sklearn_relflat._models.draws import draws_from_torch


class PlainMath(TorchFunctionMode):
    """Computes attention by its formula, and nothing in half precision.

    While a function mode is active, torch's attention modules leave their fused fast
    path by themselves.

    Parameters
    ----------
    device : torch.device
        Where the model is.
    notes : list of str, default=None
        Gets the names of functions that drew from torch's global random stream.

    Examples
    --------
    >>> import torch
    >>> from torch.nn.functional import scaled_dot_product_attention as attention
    >>> q = torch.randn(2, 3, 4)
    >>> with PlainMath(torch.device("cpu")):
    ...     plain = attention(q, q, q)
    >>> torch.allclose(plain, attention(q, q, q), atol=1e-6)
    True
    """

    def __init__(self, device: torch.device, notes: list[str] | None = None) -> None:
        super().__init__()
        self._kind = device.type
        self._notes = [] if notes is None else notes

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            func = plain_attention
        elif func is Tensor.register_hook:
            # It would change gradients, and not what the module computes.
            return RemovableHandle(OrderedDict())
        elif draws_from_torch(func, args, kwargs):
            self._notes.append(func.__name__)
        if torch.is_autocast_enabled(self._kind):
            with torch.autocast(self._kind, enabled=False):
                return func(*args, **kwargs)
        return func(*args, **kwargs)


def plain_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Scaled dot product attention, differentiable any number of times.

    Parameters
    ----------
    query, key, value : Tensor of shape (..., n_queries or n_keys, n_features)
        As torch's function of this name takes them, like all parameters.
    attn_mask : Tensor or None
        Where attention may go (boolean), or what is added to the scores.
    dropout_p : float
        Share of the weights to drop.
    is_causal : bool
        Whether queries see no later keys.
    scale : float or None
        Factor of the scores; None for one over the root of the features.
    enable_gqa : bool
        Whether groups of query heads share a head of keys and values.

    Returns
    -------
    attended : Tensor of shape (..., n_queries, n_features)
        Weighted means of the values; zero where a query sees nothing.
    """
    if enable_gqa:
        n_groups = query.shape[-3] // key.shape[-3]
        key = key.repeat_interleave(n_groups, -3)
        value = value.repeat_interleave(n_groups, -3)
    if scale is None:
        scale = 1 / math.sqrt(query.shape[-1])
    scores = query @ key.transpose(-2, -1) * scale
    if is_causal:
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device)
        scores = scores.masked_fill(~seen.tril(), -torch.inf)
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attn_mask, -torch.inf)
        else:
            scores = scores + attn_mask
    blind = scores.detach().isneginf().all(-1, keepdim=True)
    weights = scores.masked_fill(blind, 0.0).softmax(-1).masked_fill(blind, 0.0)
    if dropout_p > 0:
        weights = F.dropout(weights, dropout_p)
    return weights @ value
