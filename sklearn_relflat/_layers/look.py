"""A look at a few samples that proves what every measure relies on.

Three samples of the first batch are run together, with the whole graph, and one of them
alone. From these two forward passes and one backward pass it follows whether

- a layer is what it claims: its output is linear in its weight, with its features as
  the slopes;
- its weight acts only there: the gradient that torch gives in the weight is the one
  that its calls account for, so that no functional call, embedding or list shares it;
- nothing cuts the graph behind it (``no_grad``, ``detach``, re-entrant checkpoints);
- samples are independent and in order: row i inside belongs to sample i, whatever else
  is in the batch;
- the forward pass is a function.

What fails is said by layer, so that a layer can be measured although another cannot.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from sklearn_relflat._data.batches import Batch, BatchSource
from sklearn_relflat._data.inputs import leaves, own_copy
from sklearn_relflat._layers.capture import (
    LayerCall,
    is_output,
    refused_calls,
)
from sklearn_relflat._layers.layers import WeightLayer
from sklearn_relflat._layers.own_forward import (
    agree,
)
from sklearn_relflat._layers.proof import (
    COUPLED,
    RANDOM,
    Run,
    batch_first,
    message,
)
from sklearn_relflat._losses.cuts import CutFinder
from sklearn_relflat._models.state import differentiable
from sklearn_relflat._models.torch_model import TorchModel

# Samples that a look takes at the least, if there are so many.
_MIN_SAMPLES = 3


@dataclass(frozen=True)
class Look:
    """What a few samples show of a model's layers.

    Attributes
    ----------
    order : tuple of str
        The called layers in the order of their last call.
    n_calls, n_positions : dict of str to int
        Calls of each layer in one forward pass, and positions summed over them.
    output_layer : str or None
        The layer whose preactivations are the raw outputs.
    in_place : bool
        Whether the module overwrites features or preactivations of a layer.
    outputs : Tensor of shape (n_rows, ...)
        Raw outputs of the samples looked at.
    rows : tuple of int
        Their positions in the first batch.
    features : dict of str to list of Tensor
        What entered each call of the layers that were looked at.
    refusals : dict of str to str
        Why a layer cannot be measured, by its name.
    places : set of tuple of (str, str)
        Functions and layers where numbers leave the graph or a weight is used outside
        of its layer, without harm.
    cut : set of str
        Those of them whose numbers leave torch's graph on their way to the outputs.
    """

    order: tuple[str, ...]
    n_calls: dict[str, int]
    n_positions: dict[str, int]
    output_layer: str | None
    in_place: bool
    outputs: Tensor
    rows: tuple[int, ...]
    features: dict[str, list[Tensor]] = field(default_factory=dict)
    refusals: dict[str, str] = field(default_factory=dict)
    cut: set[str] = field(default_factory=set)
    places: set[tuple[str, str]] = field(default_factory=set)

    def check_places(self, found: CutFinder, layers: Iterable[str]) -> None:
        """Compare what a batch shows with the samples that were looked at.

        Parameters
        ----------
        found : CutFinder
            What was found in the forward pass of the batch.
        layers : iterable of str
            The layers that are measured.

        Raises
        ------
        ValueError
            If numbers leave the graph, or a weight is used, at another place.
        """
        for name in layers:
            cuts, uses = found.places(name)
            new = [p for p in (*cuts, *uses) if (p, name) not in self.places]
            if new:
                raise ValueError(
                    f"Layer {name!r} cannot be measured: for some samples, its weight "
                    "is used in another way than by its calls as a module, or its "
                    "outputs leave torch's graph "
                    f"({', '.join(new)}), which the first samples did not show. Let "
                    "the module treat all samples alike, or choose another layer."
                )

    def check_batch(
        self, batch: Batch, outputs: Tensor, calls: dict[str, list[LayerCall]]
    ) -> None:
        """Compare a part of the first batch with the samples that were looked at.

        Parameters
        ----------
        batch : Batch
            Consecutive samples; those behind the first batch show nothing.
        outputs : Tensor
            Their raw outputs.
        calls : dict of str to list of LayerCall
            The captured calls.

        Raises
        ------
        ValueError
            If a sample gives something else in another company.
        """
        here = [
            (i, row - batch.start)
            for i, row in enumerate(self.rows)
            if 0 <= row - batch.start < batch.n_samples
        ]
        if not here:
            return
        mine, theirs = (list(positions) for positions in zip(*here, strict=True))
        if not agree(outputs.detach()[theirs], self.outputs[mine]):
            raise ValueError(message("outputs of the model", COUPLED))
        if any(isinstance(x, PackedSequence) for _, x in leaves(batch.inputs)):
            return
        for name, own in calls.items():
            known = self.features.get(name)
            if known is None:
                continue
            rows = [batch_first(call, call.inputs.detach()) for call in own]
            if len(rows) != len(known) or not all(
                agree(there[theirs], here[mine])
                for there, here in zip(rows, known, strict=True)
            ):
                raise ValueError(message(f"features of layer {name!r}", COUPLED))


# ---------------------------------------------------------------------------
# The look
# ---------------------------------------------------------------------------
def look_at(
    view: TorchModel,
    source: BatchSource,
    layers: dict[str, WeightLayer],
    *,
    last_only: bool = False,
) -> Look:
    """Look at a few samples of the first batch.

    Parameters
    ----------
    view : TorchModel
        The model, inside its ``measuring()`` context.
    source : BatchSource
        The data.
    layers : dict of str to WeightLayer
        The layers to look at.
    last_only : bool
        Whether only the layer that is called last has to be what it claims.

    Returns
    -------
    look : Look
        What was seen; `refusals` has the layers that cannot be measured.

    Raises
    ------
    ValueError
        If the forward pass is random, or the model couples samples in its outputs.
    """
    modules = [module for layer in layers.values() for module in layer.modules]
    look: Look | None = None
    n_seen = 0
    with differentiable(modules):
        for few, rows in source.glances():
            found = _look_at_samples(view, few, rows, layers, last_only=last_only)
            if look is None:
                look = found
            else:
                look.refusals.update(found.refusals)
                look.cut.update(found.cut)
                look.places.update(found.places)
            n_seen += len(found.rows)
            # Batches of one or two samples show little each.
            if n_seen >= _MIN_SAMPLES:
                break
    assert look is not None
    if view.draws:
        _check_repeatable(view, next(iter(source)))
    return look


def _look_at_samples(
    view: TorchModel,
    few: Batch,
    rows: range,
    layers: dict[str, WeightLayer],
    *,
    last_only: bool,
) -> Look:
    """Look at a few samples of one batch."""
    run = Run(view, few, tuple(rows), layers)
    chosen = layers
    if last_only:
        chosen = {name: layers[name] for name in [*run.seen.calls][-1:]}
    refusals = dict(refused_calls(run.seen, chosen, len(rows)))
    for name, layer in chosen.items():
        reason = None if name in refusals else run.fault_of(layer)
        if reason is not None:
            refusals[name] = reason
    refusals |= run.coupled(
        {name: layer for name, layer in chosen.items() if name not in refusals}
    )
    return _summary(run, chosen, refusals)


def _summary(
    run: Run, chosen: dict[str, WeightLayer], refusals: dict[str, str]
) -> Look:
    """Sum up what was seen of the chosen layers."""
    calls, outputs = run.seen.calls, run.outputs
    sound = [name for name in calls if name in chosen and name not in refusals]
    order = tuple(name for name in calls if name in chosen)
    last = calls[order[-1]] if order else []
    return Look(
        order=order,
        n_calls={name: len(calls[name]) for name in order},
        n_positions={
            name: sum(call.n_positions for call in calls[name]) for name in sound
        },
        output_layer=(
            order[-1]
            if len(last) == 1 and order[-1] in sound and is_output(last[0], outputs)
            else None
        ),
        in_place=run.seen.is_overwritten,
        outputs=outputs.detach(),
        rows=run.rows,
        features={
            name: [batch_first(c, c.inputs.detach()) for c in calls[name]]
            for name in sound
        },
        refusals=refusals,
        cut=run.cut,
        places={
            (place, name)
            for name in sound
            for places in run.found.places(name)
            for place in places
        },
    )


def _check_repeatable(view: TorchModel, batch: Batch) -> None:
    """Raise where a whole batch has other outputs the second time."""
    with torch.no_grad():
        once, twice = (view.outputs(own_copy(batch.inputs)) for _ in range(2))
    if not agree(once, twice):
        raise ValueError(message(f"outputs of {view.estimator_name}", RANDOM))
