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
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from sklearn_relflat._data.batches import Batch, BatchSource
from sklearn_relflat._data.inputs import leaves, own_copy
from sklearn_relflat._layers.capture import (
    Capture,
    LayerCall,
    capture,
    is_output,
    nodes_of,
    refused_calls,
)
from sklearn_relflat._layers.cuts import CutFinder, is_moved
from sklearn_relflat._layers.layers import WeightLayer, weights_of
from sklearn_relflat._layers.own_forward import (
    agree,
    noise_like,
    own_forward_fault,
    weight_gradient,
)
from sklearn_relflat._losses.torch_errors import raise_out_of_memory
from sklearn_relflat._models.draws import draws_noted
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
            raise ValueError(_message("outputs of the model", _COUPLED))
        if any(isinstance(x, PackedSequence) for _, x in leaves(batch.inputs)):
            return
        for name, own in calls.items():
            known = self.features.get(name)
            if known is None:
                continue
            rows = [_batch_first(call, call.inputs.detach()) for call in own]
            if len(rows) != len(known) or not all(
                agree(there[theirs], here[mine])
                for there, here in zip(rows, known, strict=True)
            ):
                raise ValueError(_message(f"features of layer {name!r}", _COUPLED))


_COUPLED = (
    "samples that do not depend on each other, each in its own row of the batch, got "
    "{what} that change with the other samples of the batch (batch statistics, sorting "
    "or shuffling inside of the module, messages between samples, tokens in front of "
    "samples). Let the module treat every sample on its own, batch first, in "
    "evaluation mode"
)
_RANDOM = (
    "a forward pass that is a function of its inputs, got {what} that differ between "
    "two passes over the same samples: something is drawn at random in evaluation mode "
    "too (dropout without training=self.training, say). Make it depend on self.training"
)

_ESCAPED = (
    "a module that reaches its parts through its attributes, so that a private copy "
    "can be measured, got one in {what} that comes to its own parts by another way (a "
    "global name, or an object that is no module and holds one). Make these parts "
    "attributes of the module, or let the object be a module"
)


def _message(what: str, template: str) -> str:
    """Say what was expected of a model."""
    return "Expected " + template.format(what=what) + "."


def _batch_first(call: LayerCall, tensor: Tensor) -> Tensor:
    """Tensor of a call with its samples in front."""
    return tensor.movedim(call.batch_dim, 0)


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
    run = _Run(view, few, tuple(rows), layers)
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
    run: _Run, chosen: dict[str, WeightLayer], refusals: dict[str, str]
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
            name: [_batch_first(c, c.inputs.detach()) for c in calls[name]]
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


class _Run:
    """One forward pass of a few samples with the whole graph, and its repetitions."""

    def __init__(
        self,
        view: TorchModel,
        few: Batch,
        rows: tuple[int, ...],
        layers: dict[str, WeightLayer],
    ) -> None:
        self.view = view
        self.rows = rows
        self._few = few
        self._layers = layers
        self.outputs, self.seen, self.found = self._forward()
        self.cut: set[str] = set()

    def _forward(self, moved: str | None = None) -> tuple[Tensor, Capture, CutFinder]:
        """Run the samples together, from the parameters on in the graph."""
        with capture(
            self.view, self._layers, differentiable=False, whole_graph=True
        ) as seen:
            finder = CutFinder(
                partial(nodes_of, seen),
                moved,
                self.view.originals,
                weights_of(self._layers),
                seen.running,
            )
            with ExitStack() as stack:
                # torch's own modules neither draw nor leave the graph.
                if not self.view.is_plain:
                    stack.enter_context(finder)
                    stack.enter_context(draws_noted(self.view.draws))
                outputs = self.view.outputs(own_copy(self._few.inputs))
            if finder.uses_originals:
                raise ValueError(_message(self.view.estimator_name, _ESCAPED))
            return outputs, seen.snapshot(), finder

    # -----------------------------------------------------------------------
    def fault_of(self, layer: WeightLayer) -> str | None:
        """Why the calls of a layer are not w Phi + b of a weight used only there."""
        calls = self.seen[layer.name]
        if layer.weight.is_complex():
            return "its weight is complex"
        if not all(call.preactivations.requires_grad for call in calls):
            self.cut.add(layer.name)
            return (
                "it is called where torch keeps no graph (torch.no_grad, "
                "torch.inference_mode or a re-entrant checkpoint around it), so that "
                "nothing can be differentiated in it. Choose a layer behind, or let "
                "the module record gradients there"
            )
        for call in calls:
            reason = own_forward_fault(call)
            if reason is not None:
                return reason
        cuts, uses = self.found.places(layer.name)
        if (cuts or uses) and is_moved(self._forward(layer.name)[0], self.outputs):
            if not cuts:
                return _used_elsewhere(uses)
            self.cut.add(layer.name)
            return (
                "its outputs reach those of the model on a way that torch does not "
                f"differentiate ({', '.join(cuts)}: torch.no_grad, detach, .data, "
                ".item() or a re-entrant checkpoint behind it), so that the "
                "derivatives are those of another function. Choose a layer behind "
                "the cut, or remove it"
            )
        try:
            accounted = self._accounts_for_gradient(layer)
        except RuntimeError as error:
            raise_out_of_memory(error)
            return f"torch cannot differentiate the outputs in its weight ({error})"
        if not accounted:
            return _used_elsewhere(uses)
        return None

    def _accounts_for_gradient(self, layer: WeightLayer) -> bool:
        """Whether the calls of a layer explain the gradient in its weight."""
        if not self.outputs.requires_grad:
            return True
        calls = self.seen[layer.name]
        module: Any = layer.modules[0]
        weight = module.weight
        # A parametrized weight is computed from others.
        roots = [weight] if weight.is_leaf else [*module.parameters()]
        found: Any = torch.autograd.grad(
            self.outputs,
            [*roots, *(call.preactivations for call in calls)],
            noise_like(self.outputs),
            retain_graph=True,
            allow_unused=True,
        )
        total = torch.zeros_like(layer.weight)
        size = torch.zeros_like(total)
        for call, pulled in zip(calls, found[len(roots) :], strict=True):
            if pulled is not None:
                step, bound = weight_gradient(call, pulled)
                total, size = total + step, size + bound
        expected: Any = torch.autograd.grad(
            weight,
            roots,
            total.reshape(weight.shape),
            retain_graph=True,
            allow_unused=True,
        )
        return all(
            agree(torch.zeros_like(e) if f is None else f, e, size)
            for f, e in zip(found[: len(roots)], expected, strict=True)
            if e is not None  # a bias is no part of the weight
        )

    # -----------------------------------------------------------------------
    def coupled(self, layers: dict[str, WeightLayer]) -> dict[str, str]:
        """Why layers see samples in another order or company, by name."""
        reasons: dict[str, str] = {}
        # The largest of a batch, say, may be the same alone: two samples cannot be it.
        for row in sorted({0, len(self.rows) - 1}):
            reasons |= self._coupled_row(row, layers)
        return reasons

    def _coupled_row(self, row: int, layers: dict[str, WeightLayer]) -> dict[str, str]:
        """Why layers see one of the samples otherwise than alone, by name."""
        with (
            capture(self.view, layers, differentiable=False, whole_graph=True) as seen,
            torch.no_grad(),
        ):
            alone = self.view.outputs(self._few.take([row]).inputs)
            if not agree(alone, self.outputs.detach()[row : row + 1]):
                self._refuse_outputs()
            reasons = dict(refused_calls(seen, layers, 1))
            for name in layers:
                theirs, mine = seen.calls.get(name, []), self.seen[name]
                if name not in reasons and not (
                    len(theirs) == len(mine)
                    and all(map(partial(_same_row, row), theirs, mine))
                ):
                    reasons[name] = _COUPLED.format(what=f"features of layer {name!r}")
        return reasons

    def _refuse_outputs(self) -> None:
        """Say why outputs of a sample differ: chance, or the other samples."""
        with torch.no_grad():
            again = self.view.outputs(own_copy(self._few.inputs))
        is_random = not agree(again, self.outputs.detach())
        template = _RANDOM if is_random else _COUPLED
        raise ValueError(_message(f"outputs of {self.view.estimator_name}", template))


def _used_elsewhere(uses: list[str]) -> str:
    """Say that a weight acts in another way than by its layer."""
    where = f"{', '.join(uses)}: " if uses else ""
    return (
        "the gradient that torch gives in its weight is not the one that its calls as "
        f"a module account for: the weight is used in another way as well ({where}a "
        "functional call, an embedding, a list that holds it). Give the other use a "
        "weight of its own, or choose another layer"
    )


def _check_repeatable(view: TorchModel, batch: Batch) -> None:
    """Raise where a whole batch has other outputs the second time."""
    with torch.no_grad():
        once, twice = (view.outputs(own_copy(batch.inputs)) for _ in range(2))
    if not agree(once, twice):
        raise ValueError(_message(f"outputs of {view.estimator_name}", _RANDOM))


def _same_row(row: int, alone: LayerCall, together: LayerCall) -> bool:
    """Whether one row of a call is what the sample gives alone."""
    return all(
        agree(_batch_first(alone, left), _batch_first(together, right)[row : row + 1])
        for left, right in (
            (alone.inputs.detach(), together.inputs.detach()),
            (alone.preactivations.detach(), together.preactivations.detach()),
        )
    )
