"""Weight layers as linear maps of features: names, capture, unfolding.

The conventions are those of `_layer_kinds`. A layer that is called several times in one
forward pass, or a weight that several modules share, has the columns of all its calls,
one after the other.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sklearn_relflat._layer_kinds import (
    LAYER_KINDS,
    LayerKind,
    Scratch,
    layer_kind,
    refusal,
)
from sklearn_relflat._models import TorchModel, as_torch_model


# ---------------------------------------------------------------------------
# Weight layers of a model
# ---------------------------------------------------------------------------
@dataclass(frozen=True)
class WeightLayer:
    """A weight matrix of a model and the modules that apply it.

    Attributes
    ----------
    name : str
        Name of the first module that owns the weight.
    aliases : tuple of str
        All names under which the weight is found, `name` first.
    modules : tuple of torch.nn.Module
        The modules that apply it; more than one for tied weights.
    kind : LayerKind
        How its features are unfolded.
    """

    name: str
    aliases: tuple[str, ...]
    modules: tuple[nn.Module, ...]
    kind: LayerKind

    @property
    def weight(self) -> Tensor:
        """Weight as a matrix of shape (n_neurons, n_features), detached."""
        module: Any = self.modules[0]
        weight: Tensor = module.weight
        return weight.detach().flatten(1)

    @property
    def bias(self) -> Tensor | None:
        """Bias of shape (n_neurons,), detached, or None."""
        module: Any = self.modules[0]
        bias: Tensor | None = module.bias
        return None if bias is None else bias.detach()

    @property
    def n_neurons(self) -> int:
        """Number of neurons d."""
        return self.weight.shape[0]

    @property
    def n_features(self) -> int:
        """Number of features m that enter the layer (of the unfolded patch)."""
        return self.weight.shape[1]


def _weight_key(module: nn.Module) -> int:
    """Identity of a weight: tied modules share it, parametrized ones do not."""
    parameter = dict(module.named_parameters(recurse=False)).get("weight")
    return id(module) if parameter is None else id(parameter)


def _plain_name(name: str) -> str:
    """Strip the prefix from a module name that `torch.compile` adds to submodules."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def weight_layers(view: TorchModel) -> dict[str, WeightLayer]:
    """Supported weight layers of a model, by name; tied weights once.

    Parameters
    ----------
    view : TorchModel
        The model.

    Returns
    -------
    layers : dict of str to WeightLayer
        In the order of ``module.named_modules()``.
    """
    groups: dict[int, list[tuple[str, nn.Module]]] = {}
    for name, module in view.module.named_modules():
        if layer_kind(module) is not None and refusal(module) is None:
            groups.setdefault(_weight_key(module), []).append(
                (_plain_name(name), module)
            )
    layers = {}
    for members in groups.values():
        names = tuple(name for name, _ in members)
        kind = layer_kind(members[0][1])
        assert kind is not None
        layers[names[0]] = WeightLayer(
            names[0], names, tuple(module for _, module in members), kind
        )
    return layers


def unsupported_layers(view: TorchModel) -> dict[str, str]:
    """Weight layers that no measure can read, with the reason, by name."""
    reasons = {}
    for name, module in view.module.named_modules():
        reason = refusal(module)
        if reason is not None:
            reasons[_plain_name(name)] = reason
    return reasons


def list_layers(estimator: Any) -> list[str]:
    """Names of the weight layers whose relative flatness can be measured.

    Parameters
    ----------
    estimator : estimator
        A fitted model that the package supports.

    Returns
    -------
    names : list of str
        Names to pass as ``layer``, in the order of the model's modules.

    Raises
    ------
    TypeError
        If the estimator is not supported.
    sklearn.exceptions.NotFittedError
        If it is not fitted.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.neural_network import MLPClassifier
    >>> from sklearn_relflat import list_layers
    >>> X, y = load_iris(return_X_y=True)
    >>> mlp = MLPClassifier((8, 4), solver="lbfgs", max_iter=2000, random_state=0)
    >>> list_layers(mlp.fit(X, y))
    ['coefs.0', 'coefs.1', 'coefs.2']
    """
    return list(weight_layers(as_torch_model(estimator)))


def find_layer(view: TorchModel, name: str | None) -> WeightLayer:
    """Weight layer of a given name.

    Parameters
    ----------
    view : TorchModel
        The model.
    name : str
        Name of a module, or of another module that shares its weight.

    Returns
    -------
    layer : WeightLayer
        The layer.

    Raises
    ------
    ValueError
        If there is no such weight layer; the message lists those there are.
    TypeError
        If the layer is of a kind that is not supported, or the name is no string.
    """
    layers = weight_layers(view)
    if not isinstance(name, str):
        raise TypeError(
            f"Expected layer to be the name of a layer or None, got {name!r}. "
            f"The layers of {view.estimator_name} are {list(layers)}."
        )
    for layer in layers.values():
        if name in layer.aliases:
            return layer
    reason = unsupported_layers(view).get(name)
    if reason is not None:
        supported = ", ".join(cls.__name__ for cls in LAYER_KINDS)
        raise TypeError(
            f"Layer {name!r} of {view.estimator_name} cannot be measured: {reason}. "
            f"Supported are {supported} (groups=1); choose one of {list(layers)}."
        )
    what = (
        "has no weight matrix"
        if name in {_plain_name(n) for n, _ in view.module.named_modules()}
        else "does not exist"
    )
    raise ValueError(
        f"Layer {name!r} of {view.estimator_name} {what}. Choose one of {list(layers)}."
    )


# ---------------------------------------------------------------------------
# Capture of a forward pass
# ---------------------------------------------------------------------------
@dataclass
class LayerCall:
    """One application of a weight in a forward pass.

    `batch_dim` is 1 where torch keeps tokens first (inside multi-head attention).
    """

    kind: LayerKind
    module: nn.Module
    inputs: Tensor
    preactivations: Tensor
    version: int
    batch_dim: int = 0

    def _batch_first(self, tensor: Tensor) -> Tensor:
        return tensor.movedim(self.batch_dim, 0)

    def columns(
        self,
        *,
        live: bool = False,
        samples: slice = slice(None),
        scratch: Scratch | None = None,
    ) -> Tensor:
        """Unfolded features, (n, m, P); live: in the graph, as the head sees them."""
        inputs = self.inputs if live else self.inputs.detach()
        inputs = self._batch_first(inputs)[samples]
        return self.kind.columns(self.module, inputs, scratch)

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


@dataclass
class Capture:
    """Calls of each captured layer in the last forward pass, in order of time."""

    calls: dict[str, list[LayerCall]] = field(default_factory=dict)

    def clear(self) -> None:
        """Forget the last forward pass."""
        self.calls.clear()

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
    view: TorchModel, layers: dict[str, WeightLayer], *, differentiable: bool
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

    Yields
    ------
    capture : Capture
        Filled by each forward pass; call ``clear()`` between two of them.
    """
    seen = Capture()

    def record(
        name: str,
        kind: LayerKind,
        module: nn.Module,
        x: Tensor,
        z: Tensor,
        batch_dim: int,
    ) -> Tensor:
        # Copies, because what follows may overwrite either tensor in place.
        x = x.clone()
        if not differentiable:
            seen.add(name, LayerCall(kind, module, x, z, z._version, batch_dim))
            return z
        # The graph begins at the first layer that is measured.
        torch.set_grad_enabled(True)
        z = z if z.requires_grad else z.detach().requires_grad_()
        seen.add(name, LayerCall(kind, module, x, z, z._version, batch_dim))
        return z.clone()

    def hook_for(name: str, kind: LayerKind) -> Callable[..., Tensor]:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> Tensor:
            x = args[0] if args else kwargs["input"]
            return record(name, kind, module, x, output, 0)

        return hook

    projections: dict[int, tuple[str, LayerKind, nn.Module]] = {
        id(module.weight): (layer.name, layer.kind, module)
        for layer in layers.values()
        for module in layer.modules
        if isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear)
    }
    with ExitStack() as stack:
        for layer in layers.values():
            for module in layer.modules:
                handle = module.register_forward_hook(
                    hook_for(layer.name, layer.kind), with_kwargs=True
                )
                stack.callback(handle.remove)
        # Without attention there is nothing to intercept, and interception costs.
        if projections:
            stack.enter_context(_AttentionProjection(projections, record))
        stack.callback(seen.clear)
        stack.enter_context(torch.no_grad())
        yield seen


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
    for name in layers:
        calls = seen.calls.get(name, [])
        if not calls:
            raise ValueError(
                f"Layer {name!r} was not called in the forward pass, so no features "
                "enter it. Choose a layer that the model calls as a module "
                f"(called: {list(seen.calls)})."
            )
        for call in calls:
            if call.n_samples != n_samples or call.preactivations.dim() < 2:
                shape = tuple(call.inputs.shape)
                raise ValueError(
                    f"Expected the input of layer {name!r} to have the {n_samples} "
                    f"samples of the batch as its first dimension, got shape {shape}. "
                    "Reshape inside the module so that the batch comes first."
                )


def is_output(call: LayerCall, outputs: Tensor) -> bool:
    """Whether a call's preactivations are the raw outputs, one per neuron."""
    z = call.preactivations
    n = z.shape[0]
    return bool(
        call.batch_dim == 0
        # An operation in place (a final ReLU, say) would leave the address as it is.
        and z._version == call.version
        and outputs.data_ptr() == z.data_ptr()
        and outputs.numel() == z.numel()
        and call.n_positions == 1
        and torch.equal(outputs.reshape(n, -1), z.reshape(n, -1))
    )
