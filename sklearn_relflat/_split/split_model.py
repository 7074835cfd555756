"""A model cut at one layer: features before it, and the head behind it on its own."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sklearn_relflat._curvature.linearization import columns_of
from sklearn_relflat._data.inputs import leaves, map_tree
from sklearn_relflat._layers.capture import LayerCall, capture, check_calls, is_output
from sklearn_relflat._layers.layers import WeightLayer, find_layer, weight_layers
from sklearn_relflat._layers.own_forward import agree
from sklearn_relflat._models.torch_model import TorchModel

# Rows of features that the head runs on at once.
_HEAD_BATCH = 512


@dataclass(frozen=True)
class SplitModel:
    """Where a model is cut.

    Attributes
    ----------
    layer : str
        Name of the layer.
    n_features, n_positions : int
        Features m and positions P that enter the layer, for one sample.
    is_output : bool
        Whether the layer's preactivations are the raw outputs.
    output_shape : tuple of int
        Shape of the raw outputs of one sample.
    template : Tensor, dict or list
        Two inputs to run a head on that does not depend on them; None if there is no
        head to run.
    reason : str or None
        Why the head cannot be run on features, if it cannot.
    """

    layer: str
    n_features: int
    n_positions: int
    is_output: bool
    output_shape: tuple[int, ...]
    template: Any = None
    reason: str | None = None

    @property
    def n_columns(self) -> int:
        """Number of flattened features, m P."""
        return self.n_features * self.n_positions


def split_model(view: TorchModel, X: Any, layer: str | None) -> SplitModel:
    """Look at the first batch to find a layer's place in a model.

    Parameters
    ----------
    view : TorchModel
        The model.
    X : array-like of shape (n_samples, ...), or what else the model takes
        Samples.
    layer : str or None
        Name of the layer; None: the model's default, else the one that is called last.

    Returns
    -------
    split : SplitModel
        The place of the layer.

    Raises
    ------
    TypeError
        If the model has no layer to split at.
    """
    layers = weight_layers(view)
    if not layers:
        raise TypeError(
            f"Expected a model with a weight layer to split at, got "
            f"{view.estimator_name} without one. Layers of another kind than Linear "
            "and Conv cannot be split at."
        )
    if layer is not None:
        name = find_layer(view, layer).name
        layers = {name: layers[name]}
    batch = next(iter(view.batches(X)))
    with view.measuring(), capture(view, layers, differentiable=False) as seen:
        outputs = view.outputs(batch.inputs)
        if layer is None:
            name = view.default_layer or next(reversed(seen.calls), "")
            layers = {name: layers[name]} if name in layers else layers
        check_calls(seen, layers, batch.n_samples)
        calls = seen[name]
        is_last = len(calls) == 1 and is_output(calls[0], outputs)
        reason = _not_affine(calls)
        _, n_features, n_positions = columns_of(calls).shape
    template = None if is_last else _template(batch.inputs)
    shape = tuple(outputs.shape[1:])
    return SplitModel(name, n_features, n_positions, is_last, shape, template, reason)


def _own_bias(module: nn.Module) -> Tensor | None:
    """Bias of a module: modules that share a weight need not share it."""
    bias: Any = getattr(module, "bias", None)
    return bias.detach() if isinstance(bias, Tensor) else None


def _not_affine(calls: list[LayerCall]) -> str | None:
    """Why the preactivations are not weight @ features + bias, or None."""
    for call in calls:
        module: Any = call.module
        found = call.rows(call.preactivations.detach())
        expected = module.weight.detach().flatten(1) @ call.columns()
        bias = _own_bias(module)
        if bias is not None:
            expected = expected + bias[:, None]
        if not agree(found, expected):
            return (
                f"what {type(module).__name__} returns is not weight @ features + bias "
                "(it normalises, masks or adapts its weight, or adds to the product), "
                "so that the head cannot be run on features alone"
            )
    return None


def check_head(split: SplitModel) -> None:
    """Raise where the head behind a layer cannot be run on features.

    Parameters
    ----------
    split : SplitModel
        The place of the layer.

    Raises
    ------
    ValueError
        Saying why.
    """
    if split.reason is not None:
        raise ValueError(
            f"Expected a layer that computes weight @ features + bias, got "
            f"{split.layer!r}: {split.reason}. Choose another layer; transform works "
            "for this one."
        )


def _template(inputs: Any) -> Any:
    """Two inputs of a batch, on the CPU, that differ as much as possible."""
    tensors = [values for _, values in leaves(inputs) if isinstance(values, Tensor)]
    different = sum((v != v[:1]).reshape(len(v), -1).sum(1) for v in tensors)
    rows = [0, int(torch.as_tensor(different).argmax())]
    return map_tree(lambda values: values[rows].cpu(), inputs)


def layer_features(view: TorchModel, split: SplitModel, X: Any) -> np.ndarray:
    """Features that enter the layer, (n_samples, m P).

    Parameters
    ----------
    view : TorchModel
        The model.
    split : SplitModel
        The place of the layer.
    X : array-like of shape (n_samples, ...), or what else the model takes
        Samples.

    Returns
    -------
    features : ndarray of shape (n_samples, n_features * n_positions)
        In the order (n_features, n_positions).

    Raises
    ------
    ValueError
        If samples differ in their number of positions.
    """
    layer = {split.layer: find_layer(view, split.layer)}
    parts = []
    with view.measuring(), capture(view, layer, differentiable=False) as seen:
        for batch in view.batches(X):
            seen.run(view, batch.inputs)
            check_calls(seen, layer, batch.n_samples)
            phi = columns_of(seen[split.layer])
            if phi.shape[2] != split.n_positions:
                raise ValueError(
                    f"Expected samples with {split.n_positions} positions in layer "
                    f"{split.layer!r}, as in fit, got {phi.shape[2]}. Pad or crop the "
                    "samples to one size."
                )
            parts.append(phi.flatten(1).cpu().numpy())
    return np.concatenate(parts)


# ---------------------------------------------------------------------------
# The head on its own
# ---------------------------------------------------------------------------
@contextmanager
def _preactivations_replaced(layer: WeightLayer, rows: Tensor) -> Iterator[None]:
    """Replace the products w Phi of a layer in one forward pass by (n, d, P)."""
    # Replacing preactivations rather than inputs lets the overlapping patches of a
    # convolution hold different values; w Phi + b is defined for them, with the bias of
    # the module that is called.
    position = 0

    def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        nonlocal position
        start = position
        position += layer.kind.rows(module, output).shape[2]
        own, bias = rows[:, :, start:position], _own_bias(module)
        if bias is not None:
            own = own + bias[:, None]
        return layer.kind.unrows(module, own, output)

    with ExitStack() as stack:
        for module in layer.modules:
            # Before the user's own hooks, which belong to the head.
            handle = module.register_forward_hook(hook, prepend=True)
            stack.callback(handle.remove)
        yield
    if position != rows.shape[2]:
        raise ValueError(
            f"Expected layer {layer.name!r} to be called as a module at "
            f"{rows.shape[2]} positions, got {position}. The head behind a layer "
            "inside of multi-head attention cannot be run on its own."
        )


def head_outputs(view: TorchModel, split: SplitModel, Z: np.ndarray) -> Tensor:
    """Raw outputs of the head for given features.

    Parameters
    ----------
    view : TorchModel
        The model.
    split : SplitModel
        The place of the layer.
    Z : ndarray of shape (n_samples, n_features * n_positions)
        Features, flattened as by `layer_features`.

    Returns
    -------
    outputs : Tensor of shape (n_samples, n_outputs, ...)
        Raw outputs.

    Raises
    ------
    ValueError
        If the head depends on the model's input by another way than the layer.
    """
    check_head(split)
    layer = find_layer(view, split.layer)
    phi = torch.as_tensor(Z, dtype=view.dtype, device=view.device)
    phi = phi.reshape(len(Z), split.n_features, split.n_positions)
    rows = layer.weight @ phi
    if split.is_output:
        if layer.bias is not None:
            rows = rows + layer.bias[:, None]
        return rows.reshape(len(rows), *split.output_shape)
    with torch.no_grad(), view.measuring():
        parts = [
            _run_head(view, split, layer, part) for part in rows.split(_HEAD_BATCH)
        ]
    return torch.cat(parts)


def _run_head(
    view: TorchModel, split: SplitModel, layer: WeightLayer, rows: Tensor
) -> Tensor:
    """Raw outputs for given preactivations, the same whatever the model's input is."""
    first, second = (
        _outputs_for_template(view, split, layer, rows, row) for row in (0, 1)
    )
    tolerance = torch.finfo(view.dtype).eps ** 0.5
    if not torch.allclose(first, second, rtol=tolerance, atol=tolerance):
        raise ValueError(
            f"Expected a head behind layer {layer.name!r} that depends on the features "
            f"of this layer alone, got a {view.estimator_name} whose outputs change "
            "with its input while these features are held fixed: a connection skips "
            "the layer. Split at a layer that everything passes through, such as the "
            "output layer."
        )
    return first


def _outputs_for_template(
    view: TorchModel, split: SplitModel, layer: WeightLayer, rows: Tensor, row: int
) -> Tensor:
    """Raw outputs for given preactivations, with one row of the template as input."""
    inputs = map_tree(_repeated(row, len(rows), view.device), split.template)
    with _preactivations_replaced(layer, rows):
        return view.outputs(inputs)


def _repeated(row: int, n_samples: int, device: torch.device) -> Callable[[Any], Any]:
    """Return a function that repeats one row of a tensor as a batch."""

    def repeat(values: Tensor) -> Tensor:
        """Return a batch of its own memory: the model may write to it."""
        return (
            values[row : row + 1]
            .expand(n_samples, *values.shape[1:])
            .to(device)
            .clone()
        )

    return repeat
