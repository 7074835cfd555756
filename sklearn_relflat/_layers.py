"""Weight layers as linear maps of features: names, capture, unfolding, injection.

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

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sklearn_relflat._models import TorchModel, as_torch_model


# ---------------------------------------------------------------------------
# Kinds of layers
# ---------------------------------------------------------------------------
def _linear_columns(module: nn.Module, x: Tensor) -> Tensor:
    """Features of a linear layer, (n, *positions, m) -> (n, m, P)."""
    return x.reshape(x.shape[0], -1, x.shape[-1]).transpose(1, 2)


def _linear_rows(module: nn.Module, z: Tensor) -> Tensor:
    """Preactivations of a linear layer, (n, *positions, d) -> (n, d, P)."""
    return z.reshape(z.shape[0], -1, z.shape[-1]).transpose(1, 2)


def _linear_unrows(module: nn.Module, rows: Tensor, like: Tensor) -> Tensor:
    """Inverse of `_linear_rows` into the shape of `like`."""
    return rows.transpose(1, 2).reshape(like.shape)


def _linear_weight_gradient(module: nn.Module, x: Tensor, cotangent: Tensor) -> Tensor:
    """Weight gradient summed over samples and positions, (d, m)."""
    return cotangent.flatten(0, -2).T @ x.flatten(0, -2)


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


def _conv_columns(conv: Any, x: Tensor) -> Tensor:
    """Patches that a convolution multiplies with its kernel, (n, m, P)."""
    x = _padded(conv, x)
    n_dims = len(conv.kernel_size)
    for i in range(n_dims):
        width = conv.dilation[i] * (conv.kernel_size[i] - 1) + 1
        x = x.unfold(2 + i, width, conv.stride[i])[..., :: conv.dilation[i]]
    # (n, c, *out, *kernel) -> (n, c, *kernel, *out), the order of the flat kernel.
    order = [0, 1, *range(2 + n_dims, 2 + 2 * n_dims), *range(2, 2 + n_dims)]
    return x.permute(order).reshape(
        x.shape[0], conv.in_channels * _product(conv.kernel_size), -1
    )


def _conv_rows(conv: Any, z: Tensor) -> Tensor:
    """Preactivations of a convolution, (n, d, *out) -> (n, d, P)."""
    return z.flatten(2)


def _conv_unrows(conv: Any, rows: Tensor, like: Tensor) -> Tensor:
    """Inverse of `_conv_rows`."""
    return rows.reshape(like.shape)


_CONV_WEIGHT = {
    1: torch.nn.grad.conv1d_weight,
    2: torch.nn.grad.conv2d_weight,
    3: torch.nn.grad.conv3d_weight,
}


def _conv_weight_gradient(conv: Any, x: Tensor, cotangent: Tensor) -> Tensor:
    """Kernel gradient summed over samples and positions, (d, m)."""
    gradient = _CONV_WEIGHT[len(conv.kernel_size)](
        _padded(conv, x),
        conv.weight.shape,
        cotangent,
        stride=conv.stride,
        padding=0,
        dilation=conv.dilation,
    )
    return gradient.flatten(1)


def _product(values: Any) -> int:
    """Product of a short sequence of integers."""
    result = 1
    for value in values:
        result *= int(value)
    return result


@dataclass(frozen=True)
class LayerKind:
    """What the measures need to know of one kind of layer."""

    columns: Callable[[Any, Tensor], Tensor]
    rows: Callable[[Any, Tensor], Tensor]
    unrows: Callable[[Any, Tensor, Tensor], Tensor]
    weight_gradient: Callable[[Any, Tensor, Tensor], Tensor]


_LINEAR = LayerKind(
    _linear_columns, _linear_rows, _linear_unrows, _linear_weight_gradient
)
_CONV = LayerKind(_conv_columns, _conv_rows, _conv_unrows, _conv_weight_gradient)

#: The supported layers. A new kind of layer is one row.
LAYER_KINDS: dict[type[nn.Module], LayerKind] = {
    nn.Linear: _LINEAR,
    nn.Conv1d: _CONV,
    nn.Conv2d: _CONV,
    nn.Conv3d: _CONV,
}


def _kind(module: nn.Module) -> LayerKind | None:
    """Row of `LAYER_KINDS` for a module, or None."""
    for cls, kind in LAYER_KINDS.items():
        if isinstance(module, cls):
            return kind
    return None


def _refusal(module: nn.Module) -> str | None:
    """Reason why a module that has a weight matrix is not supported, or None."""
    weight = getattr(module, "weight", None)
    if _kind(module) is None:
        if isinstance(weight, Tensor) and weight.dim() >= 2:
            return f"{type(module).__name__} is not a supported kind of weight layer"
        return None
    if getattr(module, "groups", 1) != 1:
        return (
            f"{type(module).__name__} with groups={module.groups!r}: relative flatness "
            "is defined for a weight that acts on one common feature vector, a grouped "
            "convolution acts on several"
        )
    return None


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
        weight: Tensor = self.modules[0].weight.detach()  # type: ignore[operator, union-attr]
        return weight.flatten(1)

    @property
    def bias(self) -> Tensor | None:
        """Bias of shape (n_neurons,), detached, or None."""
        bias = self.modules[0].bias
        return None if bias is None else bias.detach()  # type: ignore[operator, union-attr]

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
        if _kind(module) is not None and _refusal(module) is None:
            groups.setdefault(_weight_key(module), []).append(
                (_plain_name(name), module)
            )
    layers = {}
    for members in groups.values():
        names = tuple(name for name, _ in members)
        kind = _kind(members[0][1])
        assert kind is not None
        layers[names[0]] = WeightLayer(
            names[0], names, tuple(module for _, module in members), kind
        )
    return layers


def unsupported_layers(view: TorchModel) -> dict[str, str]:
    """Weight layers that no measure can read, with the reason, by name."""
    reasons = {}
    for name, module in view.module.named_modules():
        reason = _refusal(module)
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


def find_layer(view: TorchModel, name: str) -> WeightLayer:
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

    def columns(self, *, live: bool = False) -> Tensor:
        """Unfolded features, (n, m, P); live: in the graph, as the head sees them."""
        inputs = self.inputs if live else self.inputs.detach()
        return self.kind.columns(self.module, self._batch_first(inputs))

    def rows(self, tensor: Tensor) -> Tensor:
        """Tensor of the preactivations' shape as (n, d, P)."""
        return self.kind.rows(self.module, self._batch_first(tensor))

    def unrows(self, rows: Tensor) -> Tensor:
        """Tensor of shape (n, d, P) in the preactivations' own shape."""
        like = self._batch_first(self.preactivations)
        return self.kind.unrows(self.module, rows, like).movedim(0, self.batch_dim)

    def weight_gradient(self, cotangent: Tensor) -> Tensor:
        """Gradient in the weight, summed over samples, (d, m)."""
        return self.kind.weight_gradient(
            self.module,
            self._batch_first(self.inputs.detach()),
            self._batch_first(cotangent),
        )

    @property
    def n_samples(self) -> int:
        """Size of the batch dimension."""
        return self.preactivations.shape[self.batch_dim]


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
        if not differentiable:
            seen.add(name, LayerCall(kind, module, x, z, z._version, batch_dim))
            return z
        # The graph begins at the first layer that is measured.
        torch.set_grad_enabled(True)
        z = z if z.requires_grad else z.detach().requires_grad_()
        # Copies, because what follows may overwrite either tensor in place.
        x = x.clone()
        seen.add(name, LayerCall(kind, module, x, z, z._version, batch_dim))
        return z.clone()

    def hook_for(name: str, kind: LayerKind) -> Callable[..., Tensor]:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> Tensor:
            x = args[0] if args else kwargs["input"]
            return record(name, kind, module, x, output, 0)

        return hook

    projections = {
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
        and call.rows(z).shape[2] == 1
        and torch.equal(outputs.reshape(n, -1), z.reshape(n, -1))
    )


@contextmanager
def inject(layer: WeightLayer, features: list[Tensor]) -> Iterator[None]:
    """Replace what enters a layer in the next forward pass.

    Parameters
    ----------
    layer : WeightLayer
        The layer.
    features : list of Tensor
        The input of each of its calls, in order of time, in the calls' own shape.

    Yields
    ------
    None
        While the replacement is in force.
    """
    queue = list(features)

    def hook(module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        new = queue.pop(0)
        if args:
            return (new, *args[1:]), kwargs
        return args, {**kwargs, "input": new}

    with ExitStack() as stack:
        for module in layer.modules:
            handle = module.register_forward_pre_hook(hook, with_kwargs=True)
            stack.callback(handle.remove)
        yield
