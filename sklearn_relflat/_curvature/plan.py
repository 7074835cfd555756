"""A first look at two samples: the layers to measure, their sizes and calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sklearn_relflat._curvature.linearization import budget_on
from sklearn_relflat._curvature.quadratic_forms import QuadraticForm
from sklearn_relflat._data.batches import BatchSource
from sklearn_relflat._data.inputs import is_finite
from sklearn_relflat._layers.capture import capture, check_calls, is_output
from sklearn_relflat._layers.layers import (
    WeightLayer,
    find_layer,
    unsupported_layers,
    weight_layers,
)
from sklearn_relflat._models.torch_model import TorchModel

# Numbers that one chunk of samples may hold in unfolded features and cotangents: about
# the size from which larger chunks no longer made LeNet5 faster on a CPU; a GPU wants
# more.
_CHUNK_NUMBERS = {"cpu": 2**25, "other": 2**28}


@dataclass(frozen=True)
class Plan:
    """Sizes that decide which route is the cheapest.

    Attributes
    ----------
    order : tuple of str
        The captured layers in the order of their last call.
    n_factors : int
        Factors of the loss Hessian in the outputs of one sample.
    n_calls : dict of str to int
        Calls of each layer in one forward pass.
    n_positions : dict of str to int
        Positions of each layer, summed over its calls.
    output_layer : str or None
        The layer whose preactivations are the raw outputs.
    in_place : bool
        Whether the module overwrites features or preactivations of a layer.
    """

    order: tuple[str, ...]
    n_factors: int
    n_calls: dict[str, int]
    n_positions: dict[str, int]
    output_layer: str | None
    in_place: bool

    def only(self, name: str) -> Plan:
        """Keep one of the layers."""
        return Plan(
            (name,),
            self.n_factors,
            {name: self.n_calls[name]},
            {name: self.n_positions[name]},
            name if name == self.output_layer else None,
            self.in_place,
        )

    def n_residual_probes(self, form: QuadraticForm) -> int:
        """Second-order products that the exact residual of a form takes."""
        name, m = form.layer.name, form.layer.n_features
        columns = m if self.n_calls[name] > 1 else min(self.n_positions[name], m)
        return form.factor.shape[1] * columns

    def chunk_size(
        self, layers: dict[str, WeightLayer], device: torch.device, n_factors: int
    ) -> int:
        """Choose the chunk size, so that memory does not depend on the batch size."""
        numbers = sum(
            self.n_positions[name]
            * (layer.n_features + 2 * (n_factors + 2) * layer.n_neurons)
            for name, layer in layers.items()
        )
        budget = budget_on(device, _CHUNK_NUMBERS)
        return max(1, budget // max(1, numbers))


def make_plan(
    view: TorchModel,
    source: BatchSource,
    layers: dict[str, WeightLayer],
    *,
    required: bool = True,
) -> Plan:
    """Look at two samples of the first batch.

    Parameters
    ----------
    view : TorchModel
        The model, inside its ``measuring()`` context.
    source : BatchSource
        The data.
    layers : dict of str to WeightLayer
        The layers to look at.
    required : bool
        Whether each of them has to be called.

    Returns
    -------
    plan : Plan
        What was seen.
    """
    batch = source.first(2)
    with capture(view, layers, differentiable=False, copies=False) as seen:
        outputs = view.outputs(batch.inputs)
        in_place = seen.is_overwritten
        called = {name: layer for name, layer in layers.items() if name in seen.calls}
        check_calls(seen, layers if required else called, batch.n_samples)
        n_positions = {
            name: sum(call.n_positions for call in seen[name]) for name in called
        }
        order = tuple(seen.calls)
        last = seen[order[-1]] if order else []
        output_layer = (
            order[-1] if len(last) == 1 and is_output(last[0], outputs) else None
        )
        n_calls = {name: len(seen[name]) for name in called}
    n_factors = view.loss.n_factors(outputs)
    return Plan(order, n_factors, n_calls, n_positions, output_layer, in_place)


def plan_layers(
    view: TorchModel, source: BatchSource, names: Sequence[str | None] | None
) -> tuple[dict[str, WeightLayer], Plan]:
    """Find layers by name, and look at two samples.

    Parameters
    ----------
    view : TorchModel
        The model, inside its ``measuring()`` context.
    source : BatchSource
        The data.
    names : sequence of str, or [None], or None
        [None] is the output layer, None all of them.

    Returns
    -------
    layers : dict of str to WeightLayer
        In the order of the names.
    plan : Plan
        What was seen of them.

    Raises
    ------
    TypeError
        If a layer is not supported.
    ValueError
        If there is no such layer, or its weight is not finite.
    """
    known = weight_layers(view)
    if names is None:
        refused = unsupported_layers(view)
        if refused:
            raise TypeError(
                f"{view.estimator_name} has weight layers that cannot be measured: "
                f"{refused}. Pass layers=, some of {list(known)}."
            )
        names = list(known)
    if isinstance(names, str):
        raise TypeError(
            f"Expected layers to be a list of names, got the string {names!r}. "
            f"Pass [{names!r}]."
        )
    if not known:
        raise TypeError(
            f"{view.estimator_name} has no weight layer that can be measured. "
            f"Found: {unsupported_layers(view)}."
        )
    plan = None
    if list(names) == [None]:
        names, plan = _default_layer(view, source, known)
    found = [find_layer(view, name, known) for name in names]
    for layer in found:
        if not is_finite(layer.weight):
            raise ValueError(
                f"Expected finite weights, got NaN or infinity in layer {layer.name!r} "
                f"of {view.estimator_name}. Train it with a smaller learning rate."
            )
    layers = {layer.name: layer for layer in found}
    return layers, plan or make_plan(view, source, layers)


def _default_layer(
    view: TorchModel, source: BatchSource, known: dict[str, WeightLayer]
) -> tuple[list[str], Plan | None]:
    """Name of the output layer, with its plan if finding it took a look."""
    if view.default_layer is not None:
        return [view.default_layer], None
    plan = make_plan(view, source, known, required=False)
    if not plan.order:
        return [next(iter(known))], None
    return [plan.order[-1]], plan.only(plan.order[-1])
