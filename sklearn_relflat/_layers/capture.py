"""What enters and leaves weight layers in a forward pass."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from sklearn_relflat._layers.kinds import LayerKind
from sklearn_relflat._layers.layers import WeightLayer
from sklearn_relflat._models.state import frozen
from sklearn_relflat._models.torch_model import TorchModel


def _version(tensor: Tensor) -> int:
    """How often a tensor was changed in place; inference tensors do not tell."""
    return 0 if tensor.is_inference() else tensor._version


@dataclass
class LayerCall:
    """One application of a weight in a forward pass.

    Attributes
    ----------
    kind : LayerKind
        How features are unfolded.
    module : torch.nn.Module
        The module that applied it.
    inputs, preactivations : Tensor
        What entered the layer and what left it.
    passed_on : Tensor
        What the module went on with: the preactivations or a copy of them.
    version : int
        Version counter of `passed_on` at the time.
    batch_dim : int
        1 where torch keeps tokens first (inside multi-head attention), else 0.
    """

    kind: LayerKind
    module: nn.Module
    inputs: Tensor
    preactivations: Tensor
    passed_on: Tensor
    version: int
    batch_dim: int = 0

    def _batch_first(self, tensor: Tensor) -> Tensor:
        return tensor.movedim(self.batch_dim, 0)

    def columns(self, *, live: bool = False) -> Tensor:
        """Unfolded features, (n, m, P); live: in the graph, as the head sees them."""
        inputs = self.inputs if live else self.inputs.detach()
        return self.kind.columns(self.module, self._batch_first(inputs))

    def patches(self) -> Tensor:
        """Features as the kind of layer has them before they are unfolded."""
        return self.kind.patches(self.module, self._batch_first(self.inputs.detach()))

    def rows(self, tensor: Tensor) -> Tensor:
        """Tensor of the preactivations' shape as (n, d, P)."""
        return self.kind.rows(self.module, self._batch_first(tensor))

    def unrows(self, rows: Tensor) -> Tensor:
        """Tensor of shape (n, d, P) in the preactivations' own shape."""
        like = self._batch_first(self.preactivations)
        return self.kind.unrows(self.module, rows, like).movedim(0, self.batch_dim)

    @property
    def n_samples(self) -> int:
        """Size of the batch dimension."""
        return self.preactivations.shape[self.batch_dim]

    @property
    def n_positions(self) -> int:
        """Number of positions P, the columns of one sample."""
        return self.rows(self.preactivations).shape[2]


class OverwrittenError(RuntimeError):
    """A module wrote into what was captured without a copy."""


@dataclass
class Capture:
    """Calls of each captured layer in the last forward pass, in order of time.

    Attributes
    ----------
    copies : bool
        Whether features are copied, and the preactivations that the module goes on
        with.
    differentiable : bool
        Whether the outputs can be differentiated in the preactivations.
    calls : dict of str to list of LayerCall
        The calls of each layer.
    running : list of str
        Layers whose own forward is running.
    shifts : dict of str to callable
        What is added to the preactivations of a layer, as a function of them.
    odd : dict of str to str
        Layers with a call that does not take one tensor and give one, and what it was.
    """

    copies: bool
    differentiable: bool = False
    calls: dict[str, list[LayerCall]] = field(default_factory=dict)
    odd: dict[str, str] = field(default_factory=dict)
    running: list[str] = field(default_factory=list)
    shifts: dict[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)
    _watched: list[tuple[Tensor, int]] = field(default_factory=list)

    def clear(self) -> None:
        """Forget the last forward pass."""
        self.calls.clear()
        self.running.clear()
        self._watched.clear()

    def snapshot(self) -> Capture:
        """Keep what the last forward pass showed beyond the capture."""
        return replace(self, calls=dict(self.calls), _watched=list(self._watched))

    def watch(self, *tensors: Tensor) -> None:
        """Note tensors that nothing may write into from now on."""
        self._watched += [(tensor, _version(tensor)) for tensor in tensors]

    @property
    def is_overwritten(self) -> bool:
        """Whether something has written into a tensor that is watched."""
        return any(_version(tensor) != version for tensor, version in self._watched)

    def run(self, view: TorchModel, inputs: Any) -> Tensor:
        """Run a forward pass, after forgetting the last one.

        Parameters
        ----------
        view : TorchModel
            The model, whose layers this captures.
        inputs : Tensor, dict or list
            Inputs of a batch.

        Returns
        -------
        outputs : Tensor
            Raw outputs.

        Raises
        ------
        OverwrittenError
            If nothing was copied and the module works in place.
        RuntimeError
            What the module raises.
        """
        self.clear()
        # From the start, and not only from the first layer on: a block of the module's
        # own that ends behind it would put back what it found.
        if self.differentiable:
            torch.set_grad_enabled(True)
        try:
            outputs = view.outputs(inputs)
        except RuntimeError as error:
            # torch refuses to change the first captured preactivations in place.
            if self.copies or "leaf Variable" not in str(error):
                raise
            raise OverwrittenError from error
        if self.is_overwritten:
            raise OverwrittenError
        return outputs

    def shifted(self, name: str, z: Tensor) -> Tensor:
        """Preactivations of a layer with what is added to them."""
        return z + self.shifts[name](z) if name in self.shifts else z

    def __getitem__(self, name: str) -> list[LayerCall]:
        return self.calls[name]

    def add(self, name: str, call: LayerCall) -> None:
        """Note a call; the latest called layer moves to the end."""
        self.calls[name] = [*self.calls.pop(name, []), call]


_MHA_SIGNATURE = inspect.signature(F.multi_head_attention_forward)


class _AttentionProjection(TorchFunctionMode):
    """Makes the output projection of multi-head attention a captured layer.

    `nn.MultiheadAttention` never calls its `out_proj` module: it hands the weight to
    a function. The function is called with the identity instead and the projection is
    applied here, so that its features are seen like those of any other layer.
    """

    def __init__(
        self,
        weights: dict[int, tuple[str, LayerKind, nn.Module]],
        record: Callable[[str, LayerKind, nn.Module, Tensor, Tensor, int], Tensor],
    ) -> None:
        super().__init__()
        self.weights = weights
        self.record = record

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not F.multi_head_attention_forward:
            return func(*args, **kwargs)
        bound = _MHA_SIGNATURE.bind(*args, **kwargs)
        weight = bound.arguments["out_proj_weight"]
        entry = self.weights.get(id(weight))
        if entry is None:
            return func(*args, **kwargs)
        bias = bound.arguments["out_proj_bias"]
        bound.arguments["out_proj_weight"] = torch.eye(
            weight.shape[1], dtype=weight.dtype, device=weight.device
        )
        bound.arguments["out_proj_bias"] = None
        attended, attention = func(*bound.args, **bound.kwargs)
        output = F.linear(attended, weight, bias)
        # Batched attention is (tokens, samples, features) at this point.
        return self.record(*entry, attended, output, attended.dim() - 2), attention


@contextmanager
def capture(
    view: TorchModel,
    layers: dict[str, WeightLayer],
    *,
    differentiable: bool,
    copies: bool = True,
    whole_graph: bool = False,
) -> Iterator[Capture]:
    """Record the features and preactivations of layers in forward passes.

    Parameters
    ----------
    view : TorchModel
        The model.
    layers : dict of str to WeightLayer
        The layers to record.
    differentiable : bool
        Whether the outputs can be differentiated in the preactivations. What comes
        before the first captured layer is then still evaluated without a graph. With
        False no graph is built at all.
    copies : bool
        Whether what the module may overwrite is copied. Without copies, pass batches
        through ``Capture.run``, which notices it.
    whole_graph : bool
        Whether the graph is the caller's, from the parameters to the outputs: gradients
        are then on from the start, and nothing is detached.

    Yields
    ------
    capture : Capture
        Filled by each forward pass; call ``clear()`` between two of them.
    """
    seen = Capture(copies, differentiable)

    def record(
        name: str,
        kind: LayerKind,
        module: nn.Module,
        x: Tensor,
        z: Tensor,
        batch_dim: int,
    ) -> Tensor:
        if differentiable and not whole_graph and not z.requires_grad:
            # The graph begins at the first layer that is measured.
            z = z.detach().requires_grad_()
        copied = copies and (differentiable or whole_graph)
        passed_on = seen.shifted(name, z.clone() if copied else z)
        if whole_graph or not copies:
            seen.watch(x, passed_on)
        # Of an inference tensor, only a copy can be used outside of inference mode.
        kept = x.clone() if copies or x.is_inference() else x
        seen.add(
            name,
            LayerCall(kind, module, kept, z, passed_on, _version(passed_on), batch_dim),
        )
        return passed_on

    def hook_for(name: str, kind: LayerKind) -> Callable[..., Tensor]:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
            seen.running.remove(name)
            x = args[0] if args else kwargs.get("input")
            if not (isinstance(x, Tensor) and isinstance(output, Tensor)):
                seen.odd[name] = (
                    f"it takes {type(x).__name__!r} and returns "
                    f"{type(output).__name__!r} instead of one tensor each"
                )
                return output
            return record(name, kind, module, x, output, 0)

        return hook

    projections = _projections(layers)
    with ExitStack() as stack:
        for handle in _hooks(layers, hook_for, seen, own_input=whole_graph):
            stack.callback(handle.remove)
        # Without attention there is nothing to intercept, and interception costs.
        if projections:
            stack.enter_context(_AttentionProjection(projections, record))
        stack.callback(seen.clear)
        stack.enter_context(torch.set_grad_enabled(differentiable or whole_graph))
        if differentiable and view.originals:
            stack.enter_context(frozen(view.module))
        yield seen


def _projections(
    layers: dict[str, WeightLayer],
) -> dict[int, tuple[str, LayerKind, nn.Module]]:
    """Output projections of attention among some layers, by their weights."""
    return {
        id(module.weight): (layer.name, layer.kind, module)
        for layer in layers.values()
        for module in layer.modules
        if isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear)
    }


def _hooks(
    layers: dict[str, WeightLayer],
    hook_for: Callable[[str, LayerKind], Callable[..., Any]],
    seen: Capture,
    *,
    own_input: bool,
) -> Iterator[RemovableHandle]:
    """Register the hooks of some layers."""

    def before(name: str) -> Callable[..., Any]:
        """Make a hook for the start of a call."""
        return lambda module, args: seen.running.append(name)

    def copy_input(module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Give a layer its own input: what torch saves must not be overwritten."""
        seen.watch(*(arg for arg in args if isinstance(arg, Tensor)))
        return tuple(
            arg.clone() if isinstance(arg, Tensor) else arg for arg in args
        ), kwargs

    for name, layer in layers.items():
        start, stop = before(name), hook_for(name, layer.kind)
        for module in layer.modules:
            # Hooks that compute the weight are part of the layer.
            yield module.register_forward_pre_hook(start, prepend=True)
            if own_input:
                yield module.register_forward_pre_hook(copy_input, with_kwargs=True)
            # Before the user's hooks: what they do belongs to the head.
            yield module.register_forward_hook(stop, with_kwargs=True, prepend=True)


def nodes_of(seen: Capture) -> dict[Any, str]:
    """Where the layers that were called so far are in the graph."""
    return {
        call.passed_on.grad_fn: name
        for name, calls in seen.calls.items()
        for call in calls
        if call.passed_on.grad_fn is not None
    }


def refused_calls(
    seen: Capture, layers: dict[str, WeightLayer], n_samples: int
) -> Iterator[tuple[str, str]]:
    """Find layers that a forward pass did not apply sample by sample.

    Parameters
    ----------
    seen : Capture
        A captured forward pass.
    layers : dict of str to WeightLayer
        The layers that were to be captured.
    n_samples : int
        Number of samples in the batch.

    Yields
    ------
    name, reason : str
        A layer that was not called, or whose input has no batch dimension in front.
    """
    for name in layers:
        calls = seen.calls.get(name, [])
        if name in seen.odd:
            yield name, seen.odd[name]
        elif not calls:
            yield (
                name,
                "it was not called in the forward pass, so no features enter it. "
                "Choose a layer that the model calls as a module (called: "
                f"{list(seen.calls)})",
            )
        for call in calls:
            if call.preactivations.dim() < 2 or call.n_samples != n_samples:
                shape = tuple(call.inputs.shape)
                yield (
                    name,
                    f"its input is expected to have the {n_samples} samples of the "
                    f"batch as its first dimension, got shape {shape}. Reshape inside "
                    "the module so that the batch comes first",
                )
                break


def check_calls(seen: Capture, layers: dict[str, WeightLayer], n_samples: int) -> None:
    """Refuse a forward pass that did not apply the layers sample by sample.

    Parameters
    ----------
    seen : Capture
        A captured forward pass.
    layers : dict of str to WeightLayer
        The layers that were to be captured.
    n_samples : int
        Number of samples in the batch.

    Raises
    ------
    ValueError
        If a layer was not called, or its input has no batch dimension in front.
    """
    for name, reason in refused_calls(seen, layers, n_samples):
        raise ValueError(f"Layer {name!r} cannot be measured: {reason}.")


def is_output(call: LayerCall, outputs: Tensor) -> bool:
    """Whether a call's preactivations are the raw outputs, one per neuron."""
    z = call.passed_on
    if (
        call.batch_dim != 0
        # An operation in place (a final ReLU, say) would leave the address as it is.
        or _version(z) != call.version
        or outputs.dim() > 2
        or call.n_positions != 1
    ):
        return False
    return outputs is z or (
        outputs.data_ptr() == z.data_ptr()
        and outputs.numel() == z.numel()
        and torch.equal(outputs.reshape(len(z), -1), z.reshape(len(z), -1))
    )
