"""The layers to measure, and the sizes that decide how."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sklearn_relflat._curvature.linearization import budget_on
from sklearn_relflat._curvature.quadratic_forms import QuadraticForm
from sklearn_relflat._data.batches import BatchSource
from sklearn_relflat._data.inputs import is_finite
from sklearn_relflat._layers.layers import (
    WeightLayer,
    find_layer,
    unsupported_layers,
    weight_layers,
)
from sklearn_relflat._layers.look import Look, look_at
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
    look : Look
        What a few samples showed.
    n_factors : int
        Factors of the loss Hessian in the outputs of one sample.
    """

    look: Look
    n_factors: int

    @property
    def n_calls(self) -> dict[str, int]:
        """Calls of each layer in one forward pass."""
        return self.look.n_calls

    @property
    def output_layer(self) -> str | None:
        """The layer whose preactivations are the raw outputs."""
        return self.look.output_layer

    def n_residual_probes(self, form: QuadraticForm) -> int:
        """Second-order products that the exact residual of a form takes."""
        name, m = form.layer.name, form.layer.n_features
        columns = m if self.n_calls[name] > 1 else min(self.look.n_positions[name], m)
        return form.factor.shape[1] * columns

    def chunk_size(
        self, layers: dict[str, WeightLayer], device: torch.device, n_factors: int
    ) -> int:
        """Choose the chunk size, so that memory does not depend on the batch size."""
        numbers = sum(
            # Of a layer that is not what it claims, positions are not known.
            self.look.n_positions.get(name, 1)
            * (layer.n_features + 2 * (n_factors + 2) * layer.n_neurons)
            for name, layer in layers.items()
        )
        budget = budget_on(device, _CHUNK_NUMBERS)
        return max(1, budget // max(1, numbers))


def plan_layers(
    view: TorchModel,
    source: BatchSource,
    names: Sequence[str | None] | None,
    *,
    trusted: bool = True,
) -> tuple[dict[str, WeightLayer], Plan, dict[str, str]]:
    """Find layers by name, and look at a few samples.

    Parameters
    ----------
    view : TorchModel
        The model, inside its ``measuring()`` context.
    source : BatchSource
        The data.
    names : sequence of str, or [None], or None
        [None] is the output layer, None all of them.
    trusted : bool
        Whether layers that are not what they claim are refused or, of all layers, left
        out. If not, they are there with their reasons.

    Returns
    -------
    layers : dict of str to WeightLayer
        In the order of the names.
    plan : Plan
        What was seen of them.
    refusals : dict of str to str
        Reasons of the layers that cannot be measured, by name.

    Raises
    ------
    TypeError
        If a layer is not supported, or none can be measured.
    ValueError
        If there is no such layer, or it is not what it claims.
    """
    known = weight_layers(view)
    unsupported = unsupported_layers(view)
    if not known and trusted:
        raise TypeError(
            f"{view.estimator_name} has no weight layer that can be measured. "
            f"Found: {unsupported}."
        )
    look = None
    if names is None:
        layers = known
    elif list(names) == [None] and view.default_layer is None:
        look = look_at(view, source, known, last_only=True)
        if not known:
            raise TypeError(
                f"{view.estimator_name} has no output layer of a kind that is known "
                f"({unsupported}). Name a layer, a parameter, or all of them."
            )
        name = look.order[-1] if look.order else next(iter(known))
        layers = {name: known[name]}
    else:
        wanted = [view.default_layer if name is None else name for name in names]
        if not trusted:
            # Of measures in parameters, which need no layer of a known kind.
            aliases = {alias for layer in known.values() for alias in layer.aliases}
            wanted = [name for name in wanted if name in aliases]
        layers = {
            layer.name: layer for layer in (find_layer(view, n, known) for n in wanted)
        }
    for layer in layers.values():
        _check_weight(view, layer)
    if look is None:
        look = look_at(view, source, layers)
    refusals = look.refusals
    if names is None:
        refusals = unsupported | refusals
    if trusted:
        layers = _trusted(view, layers, refusals, everything=names is None)
    plan = Plan(look, view.loss.n_factors(look.outputs))
    return layers, plan, refusals


def _check_weight(view: TorchModel, layer: WeightLayer) -> None:
    """Raise where a weight is not finite."""
    if not is_finite(layer.weight):
        raise ValueError(
            f"Expected finite weights, got NaN or infinity in layer {layer.name!r} "
            f"of {view.estimator_name}. Train it with a smaller learning rate."
        )


def _trusted(
    view: TorchModel,
    layers: dict[str, WeightLayer],
    refusals: dict[str, str],
    *,
    everything: bool,
) -> dict[str, WeightLayer]:
    """Layers that can be measured; those asked for by name must be among them."""
    sound = {name: layer for name, layer in layers.items() if name not in refusals}
    if everything and not sound:
        raise TypeError(
            f"{view.estimator_name} has no weight layer that can be measured: "
            f"{refusals}."
        )
    if not everything:
        for name in layers:
            if name in refusals:
                raise ValueError(
                    f"Layer {name!r} of {view.estimator_name} cannot be measured: "
                    f"{refusals[name]}."
                )
    return sound
