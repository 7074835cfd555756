"""Where a forward pass leaves the graph that its derivatives are taken in.

Ops without gradients (``no_grad``, ``inference_mode``, re-entrant checkpoints) and
detached tensors make torch's derivatives those of another function, without a word.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.overrides import TorchFunctionMode

_APPLY: Any = Function.apply
_DATA: Any = Tensor.data
# They hand the numbers of a tensor on without its graph.
_DETACHING = (
    torch.detach,
    Tensor.detach,
    _DATA.__get__,
    Tensor.numpy,
    Tensor.tolist,
    Tensor.item,
    Tensor.__float__,
    Tensor.__array__,
)


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """All tensors among the arguments of a function, also in lists."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Apply a function to the tensors among some arguments or results."""
    if isinstance(value, Tensor):
        return function(value)
    if type(value) in (list, tuple):
        return type(value)(_map_tensors(function, part) for part in value)
    return value


@dataclass
class Cut:
    """A place where dependent numbers leave the graph."""

    name: str
    origins: frozenset[str]


@dataclass(eq=False)
class CutFinder(TorchFunctionMode):
    """Notes each place where what came from some tensors leaves the graph.

    Parameters
    ----------
    nodes : callable
        Returns the nodes of the graph that the tensors have made so far, with what each
        is called.
    moved : str or None
        One of these names: what leaves the graph behind it is disturbed, to see whether
        anything comes of it.
    originals : frozenset of int
        Identities of tensors of which the module has copies.

    Attributes
    ----------
    cuts : list of Cut
        The places, in the order of the forward pass.
    uses_originals : bool
        Whether a function got one of the originals.
    """

    nodes: Callable[[], dict[Any, str]]
    moved: str | None = None
    originals: frozenset[int] = frozenset()
    uses_originals: bool = False
    cuts: list[Cut] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.originals and not self.originals.isdisjoint(
            map(id, _tensors([*args, *kwargs.values()]))
        ):
            self.uses_originals = True
        recording = torch.is_grad_enabled()
        if recording and not torch.is_inference_mode_enabled():
            # Inference tensors cannot be used in a graph, their copies can.
            args = tuple(_map_tensors(_outside_inference, arg) for arg in args)
        detaches = func in _DETACHING
        if recording and not detaches:
            return func(*args, **kwargs)
        origins = self._origins([*_tensors([*args, *kwargs.values()])])
        if detaches:
            # Of a tensor in the graph, torch warns, and makes no array.
            args = tuple(_map_tensors(Tensor.detach, arg) for arg in args)
        if not origins or _is_inside_function():
            return func(*args, **kwargs)
        self.cuts.append(Cut(getattr(func, "__name__", str(func)), origins))
        if self.moved not in origins:
            return func(*args, **kwargs)
        if detaches:
            return func(*(_map_tensors(_disturbed, arg) for arg in args), **kwargs)
        return _map_tensors(_disturbed, func(*args, **kwargs))

    def _origins(self, tensors: list[Tensor]) -> frozenset[str]:
        """Names of what some tensors depend on."""
        stack = [t.grad_fn for t in tensors if t.requires_grad and t.grad_fn]
        if not stack:
            return frozenset()
        nodes = self.nodes()
        known = set(stack)
        found = set()
        while stack:
            node = stack.pop()
            if node in nodes:
                found.add(nodes[node])
            new = {child for child, _ in node.next_functions if child} - known
            known |= new
            stack.extend(new)
        return frozenset(found)


def is_moved(outputs: Tensor, reference: Tensor) -> bool:
    """Whether outputs differ by more than a shift that cancels leaves behind."""
    difference = (outputs - reference).detach().abs().max()
    # As in a stable softmax.
    rounding = 1e3 * torch.finfo(reference.dtype).eps
    return not bool(difference <= rounding * reference.detach().abs().max())


def _is_inside_function() -> bool:
    """Whether the forward of an autograd function runs, whose backward counts."""
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_code is _APPLY.__func__.__code__:
            return True
    return False


def _outside_inference(tensor: Tensor) -> Tensor:
    """Copy a tensor of inference mode; return any other as it is."""
    return tensor.clone() if tensor.is_inference() else tensor


def _disturbed(tensor: Tensor) -> Tensor:
    """Move the numbers of a tensor by about a per cent, each in its own way."""
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return tensor
    with torch.no_grad():
        # A scalar has to move, too.
        pattern = torch.arange(1, tensor.numel() + 1, device=tensor.device)
        step = (pattern * 2.399963).sin().to(tensor.dtype).reshape(tensor.shape)
        scale = tensor.abs().mean()
        return tensor + 0.01 * step * (tensor.abs() + torch.where(scale > 0, scale, 1))
