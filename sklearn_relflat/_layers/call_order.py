"""Which layer reads which: the order of the calls in one forward pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sklearn_relflat._data.inputs import own_copy
from sklearn_relflat._layers.layers import WeightLayer, weight_layers
from sklearn_relflat._losses.torch_errors import raise_out_of_memory
from sklearn_relflat._models.torch_model import TorchModel

_N_RANDOM_INPUTS = 16

# They undo a factor of what they read, and multiply by one of their own.
_NORMALIZATIONS = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)


@dataclass(frozen=True)
class CallOrder:
    """Leaf modules of a model in the order of their calls.

    Attributes
    ----------
    estimator_name : str
        For messages.
    calls : list of tuple (str, torch.nn.Module)
        Name and module of each call.
    layers : dict of str to WeightLayer
        Weight layers by name.
    """

    estimator_name: str
    calls: list[tuple[str, nn.Module]]
    layers: dict[str, WeightLayer]

    def _position(self, name: str) -> int:
        """Position of the only call of a layer."""
        modules = self.layers[name].modules
        found = [i for i, (_, m) in enumerate(self.calls) if m in modules]
        if len(found) != 1:
            raise ValueError(
                f"Expected layer {name!r} to be called once in a forward pass, got "
                f"{len(found)} calls. A weight that is applied repeatedly, or by "
                "something else than its module, cannot be rescaled here."
            )
        return found[0]

    def in_order(self) -> list[str]:
        """Names of the weight layers in the order of their calls."""
        names = self._names()
        return [names[id(module)] for _, module in self.calls if id(module) in names]

    def own_name(self, name: str) -> str:
        """Name of a layer, given any of its names."""
        for own, layer in self.layers.items():
            if name in layer.aliases:
                return own
        raise ValueError(
            f"Layer {name!r} of {self.estimator_name} does not exist. Choose one of "
            f"{list(self.layers)}."
        )

    def _names(self) -> dict[int, str]:
        """Layer names by the identity of their modules."""
        return {id(m): name for name, lay in self.layers.items() for m in lay.modules}

    def after(self, name: str) -> str:
        """Next weight layer."""
        names = self._names()
        for _, module in self.calls[self._position(name) + 1 :]:
            if id(module) in names:
                self._position(names[id(module)])
                return names[id(module)]
        raise ValueError(
            f"Expected a layer with another weight layer behind it, got {name!r} of "
            f"{self.estimator_name}: it is the last one, and nothing could undo its "
            "rescaling."
        )

    def before(self, name: str) -> str:
        """Weight layer before."""
        names = self._names()
        for _, module in reversed(self.calls[: self._position(name)]):
            if id(module) in names:
                self._position(names[id(module)])
                return names[id(module)]
        raise ValueError(
            f"Expected a layer with another weight layer in front of it, got {name!r} "
            f"of {self.estimator_name}: it reads the input, which has no weights."
        )

    def between(self, name: str) -> list[str]:
        """Kinds of the modules between a layer and the next one."""
        start, stop = self._position(name), self._position(self.after(name))
        return [type(module).__name__ for _, module in self.calls[start + 1 : stop]]

    def carrier(self, name: str) -> str:
        """Name of the module whose weight and bias multiply the layer's output."""
        start, stop = self._position(name), self._position(self.after(name))
        carrier = self.calls[start][0]
        for module_name, module in self.calls[start + 1 : stop]:
            affine = getattr(module, "weight", None) is not None
            if isinstance(module, _NORMALIZATIONS) and affine:
                carrier = module_name
        return carrier


def trace_calls(view: TorchModel, inputs: Any) -> CallOrder:
    """Order of the calls in one forward pass."""
    layers = weight_layers(view)
    owned = {id(m) for layer in layers.values() for m in layer.modules}
    calls: list[tuple[str, nn.Module]] = []
    handles = [
        module.register_forward_hook(
            lambda module, args, output, name=name: calls.append((name, module))
        )
        for name, module in view.module.named_modules()
        if id(module) in owned or not any(True for _ in module.children())
    ]
    try:
        with view.measuring(), torch.no_grad():
            view.outputs(own_copy(inputs))
    finally:
        for handle in handles:
            handle.remove()
    return CallOrder(view.estimator_name, calls, layers)


def probe_inputs(view: TorchModel, X: Any) -> Any:
    """Take inputs to compare models on: of some samples, or random."""
    if X is not None:
        return next(iter(view.batches(X))).inputs
    layers = list(weight_layers(view).values())
    if not layers:
        raise TypeError(f"{view.estimator_name} has no weight layer to rescale.")
    generator = torch.Generator().manual_seed(0)
    shape = (_N_RANDOM_INPUTS, layers[0].n_features)
    inputs = torch.randn(shape, generator=generator, dtype=torch.float64)
    inputs = inputs.to(device=view.device, dtype=view.dtype)
    try:
        if not isinstance(layers[0].modules[0], nn.Linear):
            raise ValueError(f"the first layer is {layers[0].name!r}")
        with view.measuring(), torch.no_grad():
            view.outputs(own_copy(inputs))
    except (ValueError, TypeError, RuntimeError, IndexError) as error:
        raise_out_of_memory(error)
        raise ValueError(
            f"Expected X, samples on which to compare {view.estimator_name} with its "
            f"copy: random rows of {shape[1]} numbers are no input of it ({error})."
        ) from error
    return inputs
