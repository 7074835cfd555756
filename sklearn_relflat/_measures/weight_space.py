"""The empirical risk as a function of the weights of some layers.

A perturbed model is never made: each forward pass gets the perturbed weights through
``torch.func.functional_call``, and the user's parameters are read only. Points of the
space are dicts of tensors by parameter name, in the parameters' own shapes and dtype;
sums over samples are taken in float64 where the device has it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from sklearn_relflat._curvature.linearization import wide
from sklearn_relflat._curvature.problem import CountedBatches, Problem, risk_of
from sklearn_relflat._data.batches import Batch, HeldBatches, groups
from sklearn_relflat._data.inputs import is_finite
from sklearn_relflat._layers.autograd_graph import has_undefined_derivative
from sklearn_relflat._layers.capture import capture
from sklearn_relflat._layers.kinds import how_to_remove
from sklearn_relflat._losses.torch_errors import raise_out_of_memory
from sklearn_relflat._measures.logits import check_normalizable, normalized
from sklearn_relflat._measures.reach import check_reach
from sklearn_relflat._models.torch_model import TorchModel

Point = dict[str, Tensor]

# Samples that are followed through the model, to see where they leave torch's graph.
_FEW_SAMPLES = 3

_NO_SECOND_DERIVATIVE = (
    "The second derivative of the model in its weights is needed, and torch could not "
    "form it: {}. Replace the operation, or use hessian_trace with "
    'curvature="gauss_newton", which needs first derivatives only.'
)


class _Forward(nn.Module):
    """Raw outputs of a view as a module, so that its weights can be replaced."""

    def __init__(self, view: TorchModel) -> None:
        super().__init__()
        self.inner = view.module
        # A plain attribute: `view` is no module, and its forward is not `inner`'s.
        self.view = view

    def forward(self, inputs: Any) -> Tensor:
        """Return the raw outputs."""
        return self.view.outputs(inputs)


@dataclass
class Slopes:
    """Gradient of the risk of some samples in the weights, as a graph.

    Attributes
    ----------
    leaves : dict of str to Tensor
        The weights, where the graph begins.
    gradients : dict of str to Tensor
        The gradient, not divided by the number of samples.
    total, denominator : float
        Sum of losses, and what it is divided by.
    """

    leaves: Point
    gradients: Point
    total: float
    denominator: float

    @cached_property
    def _live(self) -> Point:
        """Parts that change with the weights: a constant gradient carries no graph."""
        live = {name: g for name, g in self.gradients.items() if g.requires_grad}
        if live and has_undefined_derivative(live.values()):
            raise ValueError(_NO_SECOND_DERIVATIVE.format("once_differentiable"))
        return live

    def times(self, vector: Point, *, again: bool = False) -> Point:
        """Hessian of the sum of losses times a vector.

        Parameters
        ----------
        vector : dict of str to Tensor
            A direction.
        again : bool
            Whether the graph is kept for another product.

        Returns
        -------
        product : dict of str to Tensor
            Without the names in which everything is linear.

        Raises
        ------
        ValueError
            If torch has no second derivative for an operation of the model.
        """
        live = self._live
        if not live:
            return {}
        with torch.enable_grad():
            inner = [(g * vector[name].to(g.dtype)).sum() for name, g in live.items()]
            try:
                return _grad(torch.stack(inner).sum(), self.leaves, retain_graph=again)
            except RuntimeError as error:
                raise_out_of_memory(error)
                raise ValueError(_NO_SECOND_DERIVATIVE.format(error)) from error


def times(point: Point, axes: Point | None) -> Point:
    """Point times the axes of a ball or of a noise, None for all of length one."""
    if axes is None:
        return point
    return {name: p * axes[name] for name, p in point.items()}


def check_rho(rho: float) -> None:
    """Raise where the size of a perturbation is not valid."""
    if not (rho > 0 and math.isfinite(rho)):
        raise ValueError(f"Expected rho to be a positive number, got {rho!r}.")


class WeightSpace:
    """Risk, gradient and Hessian products around the weights of a model.

    Parameters
    ----------
    problem : Problem
        The model, its data and its layers.
    normalize_logits : bool, default=False
        Whether the risk is that of normalized logits.

    Attributes
    ----------
    weights : dict of str to Tensor
        The model's own weights, detached, by parameter name.

    Raises
    ------
    TypeError
        If a weight is no parameter of its own.
    ValueError
        If a weight shares its memory with something else.
    """

    def __init__(self, problem: Problem, *, normalize_logits: bool = False) -> None:
        if normalize_logits:
            check_normalizable(problem)
        self.problem = problem
        self._normalize_logits = normalize_logits
        self._forward = _Forward(problem.view)
        weights = problem.weights
        for name, part in weights.items():
            if not part:
                raise TypeError(
                    f"The weight of layer {name!r} is computed from other parameters, "
                    "so that it cannot be perturbed. "
                    f"{how_to_remove(problem.layers[name].modules[0])}, in a copy of "
                    "the model, and measure the copy."
                )
            if any(
                id(parameter) in problem.view.aliased for parameter in part.values()
            ):
                raise ValueError(
                    f"Expected weights with memory of their own, got layer {name!r}, "
                    "which shares it with another tensor of the module (a second "
                    "parameter, a buffer or a stored view of it). Let both be one "
                    "parameter, or give the other a copy."
                )
        self.weights: Point = {
            f"inner.{name}": parameter.detach()
            for part in weights.values()
            for name, parameter in part.items()
        }
        self._is_reached = False

    @property
    def is_output_layer(self) -> bool:
        """Whether the raw outputs are linear in these weights."""
        problem = self.problem
        (output,) = [problem.plan.output_layer]
        return list(problem.layers) == [output] and len(self.weights) == 1

    @property
    def n_weights(self) -> int:
        """Dimension of the space."""
        return sum(w.numel() for w in self.weights.values())

    def axes(self, *, magnitude_aware: bool) -> Point | None:
        """Absolute values of the weights, or None for axes of length one."""
        if not magnitude_aware:
            return None
        return {name: w.abs() for name, w in self.weights.items()}

    def outputs(self, point: Point, inputs: Any) -> Tensor:
        """Return the outputs of the model with other weights."""
        raw = torch.func.functional_call(self._forward, point, (inputs,))
        return self._finished(raw)

    def _finished(self, outputs: Tensor) -> Tensor:
        """Raw outputs, or what becomes of them before the loss."""
        return normalized(outputs) if self._normalize_logits else outputs

    def outputs_at(self, batch: Batch) -> Callable[[Point], Tensor]:
        """Prepare the outputs of one batch as a function of the weights.

        Parameters
        ----------
        batch : Batch
            The samples.

        Returns
        -------
        outputs : callable
            Maps a point to outputs. Where the output layer alone is measured, the
            network runs once, and each call is one product with its features.
        """
        if not self.is_output_layer:
            return lambda point: self.outputs(point, batch.inputs)
        view, layers = self.problem.view, self.problem.layers
        (name,) = layers
        with capture(view, layers, differentiable=False) as seen:
            shape = view.outputs(batch.inputs).shape
            call = seen[name][0]
            phi = call.columns()[:, :, 0]
            bias = dict(call.module.named_parameters()).get("bias")

        def outputs(point: Point) -> Tensor:
            """Multiply the features by other weights."""
            (weight,) = point.values()
            z = phi @ weight.flatten(1).T
            z = z if bias is None else z + bias.detach()
            return self._finished(z.reshape(shape))

        return outputs

    def moved(self, step: Point) -> Point:
        """Weights plus a step."""
        return {name: w + step[name] for name, w in self.weights.items()}

    # -----------------------------------------------------------------------
    # Sums over the data
    # -----------------------------------------------------------------------
    def _chunk_risk(self, point: Point, batch: Batch) -> tuple[Tensor, float]:
        """Weighted loss sum and denominator of one chunk."""
        outputs = self.outputs(point, batch.inputs)
        value, denominator, weight, _ = risk_of(self.problem, batch, outputs)
        total = (weight * value).sum()
        if not bool(torch.isfinite(total)):
            raise ValueError(
                f"Expected a finite loss, got {float(total.detach())!r} in the samples "
                f"from {batch.start} on. If it is finite at the model's own weights, "
                "choose a smaller perturbation."
            )
        return total, float((weight * denominator).sum())

    def parts(self, size: int) -> Iterator[WeightSpace]:
        """Spaces of the same weights and consecutive samples, a few at a time."""
        self.check_reached()
        for group in groups(self.problem.source, size):
            part = copy.copy(self)
            source = CountedBatches(HeldBatches(group))
            part.problem = replace(self.problem, source=source)
            yield part

    def risk(self, point: Point) -> float:
        """Empirical risk at a point."""
        total, denominator = self.totals(point)
        return total / self.problem.denominator(denominator)

    def totals(self, point: Point) -> tuple[float, float]:
        """Sum of the losses at a point, and of what it is divided by."""
        total, denominator = 0.0, 0.0
        with torch.no_grad():
            for batch in self.problem.source:
                part, part_denominator = self._chunk_risk(point, batch)
                total += float(part.detach())
                denominator += part_denominator
        return total, denominator

    def gradient(self, point: Point) -> tuple[float, float, Point]:
        """Sum of the losses at a point, what it is divided by, and its gradient.

        Parameters
        ----------
        point : dict of str to Tensor
            The weights.

        Returns
        -------
        total, denominator : float
            The empirical risk is their quotient, or the first for a sum.
        gradient : dict of str to Tensor
            Gradient of the total, in the dtype for sums.
        """
        self.check_reached()
        total, denominator = 0.0, 0.0
        sums = self.zeros()
        for batch in self.problem.chunks():
            leaves = _leaves(point)
            with torch.enable_grad():
                part, part_denominator = self._chunk_risk(leaves, batch)
                gradients = _grad(part, leaves)
            total += float(part.detach())
            denominator += part_denominator
            for name, gradient in gradients.items():
                sums[name] += gradient
        self.check_finite(sums, "first", point)
        return total, denominator, sums

    def slopes(self, batch: Batch) -> Slopes:
        """Gradient of a chunk's risk at the model's own weights, with its graph."""
        leaves = _leaves(self.weights)
        with torch.enable_grad():
            total, denominator = self._chunk_risk(leaves, batch)
            gradients = _grad(total, leaves, create_graph=True)
        return Slopes(leaves, gradients, float(total.detach()), denominator)

    def check_finite(self, sums: Point, order: str, point: Point) -> None:
        """Raise where derivatives at a point are not finite, naming the samples."""
        if all(is_finite(part) for part in sums.values()):
            return
        bad = self._samples_without_derivatives(point)
        where = f"samples {bad}" if bad else "in the sum over samples"
        raise ValueError(
            f"The {order} derivatives in the weights of layer {self.problem.label!r} "
            f"are not finite, although the loss is ({where}): they overflow, or do "
            "not exist there, as that of a square root at 0. Leave these samples out, "
            "or let the module stay off such points."
        )

    def _samples_without_derivatives(self, point: Point, most: int = 5) -> list[int]:
        """First samples whose own derivatives at a point are not finite."""
        bad: list[int] = []
        for batch in self.problem.source:
            for i in range(batch.n_samples):
                one = batch.take([i])
                leaves = _leaves(point)
                with torch.enable_grad():
                    part, _ = self._chunk_risk(leaves, one)
                    gradients = _grad(part, leaves, create_graph=True)
                products = Slopes(leaves, gradients, 0.0, 0.0).times(self.weights)
                parts = [*gradients.values(), *products.values()]
                if not all(is_finite(value) for value in parts):
                    bad.append(batch.start + i)
                if len(bad) == most:
                    return bad
        return bad

    def check_reached(self) -> None:
        """Raise where a weight changes the outputs on a way that has no derivative."""
        if self._is_reached:
            return
        look = self.problem.plan.look
        for name in sorted(look.cut & set(self.problem.weights)):
            raise ValueError(
                f"Layer {name!r} cannot be differentiated: "
                f"{self.problem.refusals[name]}."
            )
        first = self.problem.source.first(_FEW_SAMPLES)
        check_reach(self.outputs, self.weights, first.inputs)
        self._is_reached = True

    # -----------------------------------------------------------------------
    # Vectors
    # -----------------------------------------------------------------------
    def zeros(self) -> Point:
        """Zero vector, in the dtype for sums."""
        return {name: torch.zeros_like(wide(w)) for name, w in self.weights.items()}

    def normal(self, generator: torch.Generator) -> Point:
        """Vector of independent standard normal numbers, in the weights' dtype."""
        return {
            name: torch.randn(
                w.shape, generator=generator, dtype=w.dtype, device=w.device
            )
            for name, w in self.weights.items()
        }

    def flatten(self, point: Point) -> Tensor:
        """Point as one vector in the dtype for sums, on the model's device."""
        return torch.cat([wide(point[name]).flatten() for name in self.weights])

    def unflatten(self, vector: Tensor) -> Point:
        """Inverse of `flatten`, in the weights' dtype."""
        parts = vector.split([w.numel() for w in self.weights.values()])
        return {
            name: part.reshape(w.shape).to(device=w.device, dtype=w.dtype)
            for (name, w), part in zip(self.weights.items(), parts, strict=True)
        }


def _leaves(point: Point) -> Point:
    """Point as leaves of a new graph."""
    return {name: w.detach().requires_grad_() for name, w in point.items()}


def _grad(
    total: Tensor,
    leaves: Point,
    *,
    create_graph: bool = False,
    retain_graph: bool = False,
) -> Point:
    """Gradient in the leaves; zero where the total does not depend on one."""
    gradients = torch.autograd.grad(
        total,
        list(leaves.values()),
        create_graph=create_graph,
        retain_graph=create_graph or retain_graph,
        allow_unused=True,
        materialize_grads=True,
    )
    return dict(zip(leaves, gradients, strict=True))


def dot(left: Point, right: Point) -> float:
    """Inner product of two points."""
    return sum(float((wide(left[name]) * wide(right[name])).sum()) for name in left)
