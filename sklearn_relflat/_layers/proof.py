"""The forward passes of a few samples from which a look proves what it says."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction

from sklearn_relflat._data.batches import Batch
from sklearn_relflat._data.inputs import own_copy
from sklearn_relflat._layers.autograd_graph import has_undefined_derivative
from sklearn_relflat._layers.capture import (
    Capture,
    LayerCall,
    capture,
    nodes_of,
    refused_calls,
)
from sklearn_relflat._layers.layers import WeightLayer, weights_of
from sklearn_relflat._layers.own_forward import (
    agree,
    noise_like,
    own_forward_fault,
    weight_gradient,
)
from sklearn_relflat._losses.cuts import CutFinder, is_moved
from sklearn_relflat._losses.torch_errors import raise_out_of_memory
from sklearn_relflat._models.draws import draws_noted
from sklearn_relflat._models.torch_model import TorchModel

COUPLED = (
    "samples that do not depend on each other, each in its own row of the batch, got "
    "{what} that change with the other samples of the batch (batch statistics, sorting "
    "or shuffling inside of the module, messages between samples, tokens in front of "
    "samples). Let the module treat every sample on its own, batch first, in "
    "evaluation mode"
)
RANDOM = (
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


def message(what: str, template: str) -> str:
    """Say what was expected of a model."""
    return "Expected " + template.format(what=what) + "."


def batch_first(call: LayerCall, tensor: Tensor) -> Tensor:
    """Tensor of a call with its samples in front."""
    return tensor.movedim(call.batch_dim, 0)


class Run:
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
                raise ValueError(message(self.view.estimator_name, _ESCAPED))
            return outputs, seen.snapshot(), finder

    # -----------------------------------------------------------------------
    def fault_of(self, layer: WeightLayer) -> str | None:
        """Why the calls of a layer are not w Phi + b of a weight used only there."""
        if layer.weight.is_complex():
            return "its weight is complex"
        if self.view.aliased & set(weights_of({layer.name: layer})):
            return (
                "its weight shares its memory with another tensor of the module (a "
                "second parameter, a buffer or a stored view of it), which moves with "
                "it. Let both be one parameter, or give the other a copy"
            )
        reason = self._fault_of_calls(layer) or self._fault_of_places(layer)
        # The graph of torch's own modules leads to the weight by its calls alone.
        if reason is not None or self.view.is_plain:
            return reason
        try:
            accounted = self._accounts_for_gradient(layer)
        except RuntimeError as error:
            raise_out_of_memory(error)
            return f"torch cannot differentiate the outputs in its weight ({error})"
        return None if accounted else _used_elsewhere([])

    def _fault_of_calls(self, layer: WeightLayer) -> str | None:
        """Why some call is not w Phi + b, or not in the graph."""
        calls = self.seen[layer.name]
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
        return None

    def _fault_of_places(self, layer: WeightLayer) -> str | None:
        """Why a layer acts outside of the graph, or its weight outside of its calls."""
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
        if self._is_reached_otherwise(layer):
            return _used_elsewhere(uses)
        written = self._written_functions(layer.name)
        if written and not self._true_derivatives(layer):
            self.cut.add(layer.name)
            return (
                "the derivatives that torch gives behind it are not those of what the "
                f"module computes: {', '.join(written)} has a backward that is not the "
                "derivative of its forward (straight through, gradient reversal, or "
                "numbers that were stored without their graph). Choose a layer behind, "
                "or write the derivative"
            )
        return None

    def _written_functions(self, name: str) -> list[str]:
        """Names of a user's autograd functions between a layer and the outputs."""
        stack: list[Any] = [self.outputs.grad_fn]
        known: set[Any] = {None}
        known |= {node for node, own in nodes_of(self.seen).items() if own == name}
        found = set()
        while stack:
            node = stack.pop()
            if node in known:
                continue
            known.add(node)
            if isinstance(node, BackwardCFunction):
                found.add(type(node).__name__.removesuffix("Backward"))
            stack.extend(child for child, _ in node.next_functions)
        return sorted(found)

    def _true_derivatives(self, layer: WeightLayer) -> bool:
        """Whether first and second derivatives are those of finite differences."""
        noise = noise_like(self.outputs)
        is_double = noise.dtype is torch.float64
        h, rtol = (1e-5, 1e-4) if is_double else (1e-2, 5e-2)
        ts = [
            torch.tensor(sign * h, dtype=noise.dtype, requires_grad=True)
            for sign in (-1, 0, 1)
        ]
        directions = self._steepest(layer.name, noise)
        with torch.enable_grad():
            values = [
                (self._moved_outputs(layer.name, directions, t) * noise).sum()
                for t in ts
            ]
            try:
                slopes: list[Any] = [
                    torch.autograd.grad(value, t, create_graph=is_double)[0]
                    for value, t in zip(values, ts, strict=True)
                ]
                bend = torch.zeros_like(noise.sum())
                if has_undefined_derivative(slopes):
                    return True
                if slopes[1].requires_grad:
                    (bend,) = torch.autograd.grad(
                        slopes[1], ts[1], allow_unused=True, materialize_grads=True
                    )
            except RuntimeError as error:
                # No derivative is no wrong one: who needs it says so.
                raise_out_of_memory(error)
                return True
        # In single precision, kinks are too near for differences of slopes.
        pairs = [(values, slopes[1]), (slopes, bend)][: 1 + is_double]
        for ends, found in pairs:
            expected = float(ends[2].detach() - ends[0].detach()) / (2 * h)
            size = max(abs(expected), float(found.detach().abs()))
            size += 1e-3 * float(values[1].detach().abs())
            if abs(expected - float(found.detach())) > rtol * size:
                return False
        return True

    def _steepest(self, name: str, noise: Tensor) -> list[Tensor]:
        """Directions of the gradient at each call, in which nothing cancels."""
        points = [call.preactivations for call in self.seen[name]]
        found: Any = torch.autograd.grad(
            self.outputs, points, noise, retain_graph=True, materialize_grads=True
        )
        size = torch.stack([g.abs().max() for g in found]).max()
        return [g / size if bool(size > 0) else noise_like(g) for g in found]

    def _moved_outputs(self, name: str, directions: list[Tensor], t: Tensor) -> Tensor:
        """Run the samples with the preactivations of a layer moved t times."""
        steps = iter(directions)
        with capture(
            self.view, self._layers, differentiable=False, whole_graph=True
        ) as seen:
            seen.shifts[name] = lambda z: t.to(z) * next(steps)
            return self.view.outputs(own_copy(self._few.inputs))

    def _is_reached_otherwise(self, layer: WeightLayer) -> bool:
        """Whether the graph leads to a weight past the calls of its layer."""
        # The gradient on that way may be zero for these samples, and for these alone.
        weights = weights_of({layer.name: layer})
        calls = {c.passed_on.grad_fn: c.inputs.grad_fn for c in self.seen[layer.name]}
        stack, known = [self.outputs.grad_fn], set()
        while stack:
            node = stack.pop()
            if node is None or node in known:
                continue
            known.add(node)
            if node in calls:
                stack.append(calls[node])
                continue
            if id(getattr(node, "variable", None)) in weights:
                return True
            stack.extend(child for child, _ in node.next_functions)
        return False

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
        # torch's own modules mix a batch as a whole, or from its first sample on.
        first = [] if self.view.is_plain else [0]
        for row in sorted({*first, len(self.rows) - 1}):
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
                    reasons[name] = COUPLED.format(what=f"features of layer {name!r}")
        return reasons

    def _refuse_outputs(self) -> None:
        """Say why outputs of a sample differ: chance, or the other samples."""
        with torch.no_grad():
            again = self.view.outputs(own_copy(self._few.inputs))
        is_random = not agree(again, self.outputs.detach())
        template = RANDOM if is_random else COUPLED
        raise ValueError(message(f"outputs of {self.view.estimator_name}", template))


def _used_elsewhere(uses: list[str]) -> str:
    """Say that a weight acts in another way than by its layer."""
    where = f"{', '.join(uses)}: " if uses else ""
    return (
        "the gradient that torch gives in its weight is not the one that its calls as "
        f"a module account for: the weight is used in another way as well ({where}a "
        "functional call, an embedding, a list that holds it). Give the other use a "
        "weight of its own, or choose another layer"
    )


def _same_row(row: int, alone: LayerCall, together: LayerCall) -> bool:
    """Whether one row of a call is what the sample gives alone."""
    return all(
        agree(batch_first(alone, left), batch_first(together, right)[row : row + 1])
        for left, right in (
            (alone.inputs.detach(), together.inputs.detach()),
            (alone.preactivations.detach(), together.preactivations.detach()),
        )
    )
