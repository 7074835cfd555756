"""Where a forward pass leaves the graph that its derivatives are taken in.

Ops without gradients (``no_grad``, ``inference_mode``, re-entrant checkpoints) and
detached tensors make torch's derivatives those of another function, without a word.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.overrides import TorchFunctionMode

_APPLY: Any = Function.apply
_DATA: Any = Tensor.data
# They hand the numbers of a tensor on, not as tensors.
_LEAVING = (
    Tensor.numpy,
    Tensor.tolist,
    Tensor.item,
    Tensor.__float__,
    Tensor.__array__,
)


def _allocates(name: str) -> bool:
    """Whether a function takes the shape of a tensor, and not its numbers."""
    return name.endswith("_like") or (name.startswith("new_") and name != "new_tensor")


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
    """A place where dependent numbers leave the graph, or a weight is used."""

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
    weights : dict of int to str
        Names of layers by the identities of their weights.
    running : collection of str
        The layers whose own forward is running, at any time.

    Attributes
    ----------
    cuts, uses : list of Cut
        The places, in the order of the forward pass; where a weight is used while its
        layer is not running.
    uses_originals : bool
        Whether a function got one of the originals.
    """

    nodes: Callable[[], dict[Any, str]]
    moved: str | None = None
    originals: frozenset[int] = frozenset()
    weights: dict[int, str] = field(default_factory=dict)
    running: Collection[str] = ()
    uses_originals: bool = False
    cuts: list[Cut] = field(default_factory=list)
    uses: list[Cut] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = [*_tensors([*args, *kwargs.values()])]
        name = getattr(func, "__name__", str(func))
        if func in (_DATA.__get__, _DATA.__set__):
            name = "data"
        if not self.originals.isdisjoint(map(id, tensors)):
            self.uses_originals = True
        used = self._used(func, tensors)
        # An operation in place takes them from its argument.
        behind = [t.grad_fn for t in tensors if t.requires_grad and t.grad_fn]
        if torch.is_grad_enabled() and not torch.is_inference_mode_enabled():
            # Inference tensors cannot be used in a graph, their copies can.
            args = tuple(_map_tensors(_outside_inference, arg) for arg in args)
        if self.moved in used:
            args = tuple(_map_tensors(self._weight_moved, arg) for arg in args)
        leaves = func in _LEAVING
        if leaves and behind:
            args = self._leaving(name, args, behind)
        result = func(*args, **kwargs)
        numbers = [t for t in _tensors([result]) if t.is_floating_point()]
        if used and (numbers or leaves):
            self.uses.append(Cut(name, used))
        if behind and not (all(t.requires_grad for t in numbers) or _allocates(name)):
            origins = self._note(name, behind)
            if self.moved in origins:
                return _moved_result(result, tensors)
        return result

    def _leaving(self, name: str, args: Any, behind: list[Any]) -> Any:
        """Note that numbers leave torch, and return the arguments for it."""
        # Of a tensor in the graph, torch warns, and makes no array.
        args = tuple(_map_tensors(Tensor.detach, arg) for arg in args)
        if self.moved in self._note(name, behind):
            args = tuple(_map_tensors(_disturbed, arg) for arg in args)
        return args

    def places(self, origin: str) -> tuple[list[str], list[str]]:
        """Names of the functions at cuts behind a layer, and at uses of its weight."""
        cuts, uses = (
            sorted({place.name for place in places if origin in place.origins})
            for places in (self.cuts, self.uses)
        )
        return cuts, uses

    def _note(self, name: str, behind: list[Any]) -> frozenset[str]:
        """Note a cut behind some nodes; return what they depend on."""
        if _is_inside_function():
            return frozenset()
        origins = self._origins(behind)
        if origins:
            self.cuts.append(Cut(name, origins))
        return origins

    def _used(self, func: Any, tensors: list[Tensor]) -> frozenset[str]:
        """Layers whose weights are arguments although they are not running."""
        # Attention hands the weight of its projection to this function.
        if not self.weights or func is F.multi_head_attention_forward:
            return frozenset()
        names = {self.weights[id(t)] for t in tensors if id(t) in self.weights}
        return frozenset(names.difference(self.running))

    def _weight_moved(self, tensor: Tensor) -> Tensor:
        """Disturb the weight of the layer in question."""
        mine = self.weights.get(id(tensor)) == self.moved
        return _disturbed(tensor) if mine else tensor

    def _origins(self, behind: list[Any]) -> frozenset[str]:
        """Names of what some nodes of the graph depend on."""
        nodes = self.nodes()
        stack, known = [*behind], set(behind)
        found = set()
        while stack:
            node = stack.pop()
            if node in nodes:
                found.add(nodes[node])
            new = {child for child, _ in node.next_functions if child} - known
            known |= new
            stack.extend(new)
        return frozenset(found)


def _moved_result(result: Any, arguments: list[Tensor]) -> Any:
    """Disturb what a function returns, in place where it worked in place."""
    if any(result is tensor for tensor in arguments):
        with torch.no_grad():
            return result.copy_(_disturbed(result))
    return _map_tensors(_disturbed, result)


def is_moved(outputs: Tensor, reference: Tensor) -> bool:
    """Whether outputs differ by more than a shift that cancels leaves behind."""
    difference = (outputs - reference).detach().abs().max()
    # As in a stable softmax.
    rounding = 1e3 * torch.finfo(reference.dtype).eps
    return not bool(difference <= rounding * reference.detach().abs().max())


def cut_places(function: Callable[[Tensor], Tensor], point: Tensor) -> list[str]:
    """Where a function takes numbers out of the graph on which its value depends.

    Parameters
    ----------
    function : callable
        Maps a tensor to a tensor.
    point : Tensor
        Where to evaluate it.

    Returns
    -------
    places : list of str
        Names of torch functions; empty where its derivatives are its own.
    """

    def run(moved: str | None) -> tuple[Tensor, CutFinder]:
        """Evaluate the function on a copy in the graph."""
        leaf = point.detach().clone().requires_grad_().clone()
        with CutFinder(lambda: {leaf.grad_fn: "point"}, moved) as finder:
            value = function(leaf)
        return value.detach(), finder

    with torch.enable_grad():
        value, finder = run(None)
        places, _ = finder.places("point")
        return places if places and is_moved(run("point")[0], value) else []


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
