"""A model as a function of the perturbation of the features that enter one layer.

Conventions
-----------
A matrix A (m, m) and a size delta turn the features Phi (m, P) of a layer with weight w
(d, m) into ``(I + delta A) Phi``. What the layer returns is then

    w (I + delta A) Phi + b = z + delta (w A) Phi = (w + delta w A) Phi + b,

so that ``w A``, the *change*, is all that is needed of a matrix: perturbed features and
a perturbed weight are the same model. Index letters: n samples, k values of delta,
d neurons, m features, P positions, j changes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from sklearn_relflat._curvature.linearization import (
    Linearization,
    budget_on,
    columns_of,
    wide,
)
from sklearn_relflat._curvature.problem import Problem
from sklearn_relflat._data.batches import Batch
from sklearn_relflat._data.inputs import own_copy
from sklearn_relflat._layers.capture import capture, is_output
from sklearn_relflat._layers.layers import WeightLayer
from sklearn_relflat._losses.torch_errors import raise_out_of_memory
from sklearn_relflat._measures.weight_space import WeightSpace
from sklearn_relflat._split.prefix_memory import PrefixMemory

# Numbers in the outputs that are evaluated at once: they should stay in a CPU's cache.
_STACKED_NUMBERS = {"cpu": 2**16, "other": 2**24}


class Head(ABC):
    """One chunk of samples, behind a layer whose features are perturbed.

    Parameters
    ----------
    problem : Problem
        A model with one layer.
    batch : Batch
        The samples.

    Attributes
    ----------
    y : Tensor of shape (n, ...)
        Labels as the batch holds them.
    lin : Linearization
        The forward pass with the features as they are: targets, weights, losses.
    """

    lin: Linearization

    def __init__(self, problem: Problem, batch: Batch) -> None:
        self.problem = problem
        self.y = batch.y

    @property
    def layer(self) -> WeightLayer:
        """The layer."""
        (layer,) = self.problem.layers.values()
        return layer

    def _linearize(self, batch: Batch) -> Linearization:
        """Run the model as it is."""
        view, layers = self.problem.view, self.problem.layers
        with capture(view, layers, differentiable=False) as seen:
            return Linearization(view, batch, seen, layers)

    @cached_property
    def features(self) -> Tensor:
        """Features that enter the layer, (n, m, P)."""
        return columns_of(self.lin.calls[self.layer.name])

    @property
    @abstractmethod
    def base(self) -> Tensor:
        """Raw outputs for delta = 0 by the route of `outputs`, wide."""

    @property
    @abstractmethod
    def _point(self) -> Tensor:
        """Where directions start from: raw outputs or the weight."""

    @abstractmethod
    def _risk(self, point: Tensor) -> Tensor:
        """Weighted sum of losses at a point, differentiable."""

    @abstractmethod
    def direction(self, change: Tensor) -> Tensor:
        """Direction in which a matrix moves the samples.

        Parameters
        ----------
        change : Tensor of shape (d, m)
            w A.

        Returns
        -------
        direction : Tensor
            What `outputs` and `taylor` take.
        """

    @abstractmethod
    def outputs(
        self, direction: Tensor, deltas: Sequence[float]
    ) -> Iterator[tuple[slice, Tensor]]:
        """Raw outputs for perturbed features, block by block.

        Parameters
        ----------
        direction : Tensor
            From `direction`.
        deltas : sequence of float
            Sizes.

        Yields
        ------
        block : slice
            Positions in `deltas`.
        outputs : Tensor of shape (k, n, ...)
            Raw outputs for these, wide.
        """

    @cached_property
    def _slope(self) -> tuple[Tensor, Tensor]:
        """Leaf of a graph, and the gradient of the risk in it."""
        leaf = self._point.detach().requires_grad_()
        return leaf, _gradient(lambda: self._risk(leaf), leaf, create_graph=True)

    def taylor(self, direction: Tensor) -> Tensor:
        """Taylor coefficients of the weighted sum of losses in delta.

        Parameters
        ----------
        direction : Tensor
            From `direction`.

        Returns
        -------
        coefficients : Tensor of shape (2,)
            Of delta and of delta^2, in the dtype for sums.
        """
        leaf, slope = self._slope
        with torch.enable_grad():
            first = (wide(slope) * wide(direction)).sum()
        # A slope that is constant carries no graph.
        if not first.requires_grad:
            return torch.stack([first, torch.zeros_like(first)])
        product = _gradient(lambda: first, leaf)
        second = (wide(product) * wide(direction)).sum() / 2
        return torch.stack([first.detach(), second])

    def kappa_sum(self) -> Tensor | None:
        """Weighted sum of the samples' relative flatness where it takes no effort."""
        return None

    def _loss(self, outputs: Tensor) -> Tensor:
        """Weighted sum of losses of raw outputs."""
        value = self.problem.view.loss.value(outputs, self.lin.targets)
        return (self.lin.weight * value).sum()


class OutputHead(Head):
    """An output layer: nothing but the loss is behind it, all is matrix products."""

    def __init__(self, problem: Problem, batch: Batch) -> None:
        super().__init__(problem, batch)
        self.lin = self._linearize(batch)
        self._flat = self.features[:, :, 0]

    @property
    def base(self) -> Tensor:
        """See `Head.base`."""
        return self.lin.wide_outputs

    @property
    def _point(self) -> Tensor:
        """See `Head._point`; the raw outputs."""
        return self.base

    def _risk(self, point: Tensor) -> Tensor:
        """See `Head._risk`."""
        return self._loss(point)

    def direction(self, change: Tensor) -> Tensor:
        """See `Head.direction`; what delta = 1 adds to the raw outputs, wide."""
        return wide(self._flat @ change.T).reshape(self.base.shape)

    def outputs(
        self, direction: Tensor, deltas: Sequence[float]
    ) -> Iterator[tuple[slice, Tensor]]:
        """See `Head.outputs`."""
        base = self.base
        sizes = base.new_tensor(deltas).reshape(-1, *[1] * base.ndim)
        most = max(1, budget_on(base.device, _STACKED_NUMBERS) // base.numel())
        # Blocks of equal size, so that targets are repeated for them once.
        step = math.ceil(len(deltas) / math.ceil(len(deltas) / most))
        for start in range(0, len(deltas), step):
            block = slice(start, min(start + step, len(deltas)))
            yield block, base + sizes[block] * direction

    def kappa_sum(self) -> Tensor | None:
        """See `Head.kappa_sum`; the closed form of an output layer."""
        inner = self.problem.view.loss.hessian_inner(
            self.base, self.lin.targets, wide(self.layer.weight)
        )
        return (self.lin.weight * inner * wide(self._flat).square().sum(1)).sum()


class NetworkHead(Head):
    """Any layer: forward passes with perturbed weights, from the layer on.

    The modules that end before the layer is called answer from memory. A layer that is
    called repeatedly perturbs its features at every call.

    Parameters
    ----------
    problem : Problem
        A model with one layer.
    batch : Batch
        The samples.

    Raises
    ------
    ValueError
        If a second forward pass has other outputs than the first one.
    """

    def __init__(self, problem: Problem, batch: Batch) -> None:
        super().__init__(problem, batch)
        self._space = WeightSpace(problem)
        ((self._name, self._weight),) = self._space.weights.items()
        self._inputs = batch.inputs
        self._memory = PrefixMemory(problem.view.module, self.layer.modules)
        with self._memory.recorded():
            self.lin = self._linearize(replace(batch, inputs=self._fresh_inputs()))
        self._base = self._checked_base()

    def _fresh_inputs(self) -> Any:
        """Copy of the inputs: the module may work in place on them."""
        return own_copy(self._inputs)

    def _run(self, weight: Tensor) -> Tensor:
        """Raw outputs with another weight of the layer, wide."""
        with self._memory.in_force():
            outputs = self._space.outputs({self._name: weight}, self._fresh_inputs())
        return wide(outputs)

    def _checked_base(self) -> Tensor:
        """Raw outputs with the layer's own weight: the same again, or an error."""
        expected = self.lin.wide_outputs
        tolerance = torch.finfo(self._weight.dtype).eps ** 0.5
        limit = tolerance * (1.0 + float(expected.abs().max()))
        for _ in range(2):
            with torch.no_grad():
                base = self._run(self._weight)
            if base.shape == expected.shape and not bool(
                ((base - expected).abs() > limit).any()
            ):
                return base
            # A module with a hook or an alias of its own is not safe to remember.
            self._memory.forget()
        raise ValueError(
            f"Expected a model that gives the same outputs twice, got a "
            f"{self.problem.view.estimator_name} whose outputs differ by up to "
            f"{float((base - expected).abs().max()):.3g} for the same inputs. Make its "
            "forward pass deterministic in eval mode, for example by "
            "F.dropout(x, training=self.training)."
        )

    @property
    def base(self) -> Tensor:
        """See `Head.base`."""
        return self._base

    @property
    def _point(self) -> Tensor:
        """See `Head._point`; the weight."""
        return self._weight

    def _risk(self, point: Tensor) -> Tensor:
        """See `Head._risk`."""
        return self._loss(self._run(point))

    def direction(self, change: Tensor) -> Tensor:
        """See `Head.direction`; the change in the shape of the weight."""
        return change.reshape(self._weight.shape)

    def outputs(
        self, direction: Tensor, deltas: Sequence[float]
    ) -> Iterator[tuple[slice, Tensor]]:
        """See `Head.outputs`; one forward pass for each delta."""
        for i, delta in enumerate(deltas):
            outputs = self._run(self._weight + delta * direction)
            yield slice(i, i + 1), outputs[None]


def make_head(problem: Problem, batch: Batch) -> Head:
    """Head behind the layer of a problem, by the cheapest route.

    Parameters
    ----------
    problem : Problem
        A model with one layer.
    batch : Batch
        The samples.

    Returns
    -------
    head : Head
        An `OutputHead` where the layer's preactivations are the raw outputs.
    """
    (name,) = problem.layers
    if problem.plan.output_layer == name:
        head = OutputHead(problem, batch)
        # The look has seen a few samples of the first batch only.
        if is_output(head.lin.calls[name][0], head.lin.outputs):
            return head
    return NetworkHead(problem, batch)


def _gradient(
    value: Callable[[], Tensor], leaf: Tensor, *, create_graph: bool = False
) -> Tensor:
    """Gradient of a value in a leaf of its graph, which is kept."""
    try:
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(
                value(),
                leaf,
                retain_graph=True,
                create_graph=create_graph,
                materialize_grads=True,
            )
    except RuntimeError as error:
        raise_out_of_memory(error)
        raise ValueError(
            "The second derivative of the model behind the layer is needed, and torch "
            f"could not form it: {error}. Replace the operation, or choose a layer "
            "behind it."
        ) from error
    return gradient
