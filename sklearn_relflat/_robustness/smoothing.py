"""A model at perturbed features: each sample has a perturbation of its own.

Conventions: features Phi_i (m, P) of sample i become ``Phi_i + delta A_i Phi_i`` with
independent A_i, Haar on O(m) in the metric of the perturbation's shape. One pair is
A_i and -A_i. "input" names the features that enter the model, flattened, P = 1.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sklearn_relflat._curvature.linearization import columns_of, run_layers, wide
from sklearn_relflat._curvature.problem import Problem, risk_of
from sklearn_relflat._data.batches import Batch
from sklearn_relflat._data.inputs import own_copy
from sklearn_relflat._density.feature_metric import FeatureMetric
from sklearn_relflat._layers.capture import capture, is_output
from sklearn_relflat._layers.own_forward import agree
from sklearn_relflat._losses.pointwise import SquaredError
from sklearn_relflat._losses.torch_errors import raise_out_of_memory
from sklearn_relflat._measures.badness import errors
from sklearn_relflat._robustness.pair_streams import PairStreams
from sklearn_relflat._robustness.perturbations import HaarOrthogonal
from sklearn_relflat._split.prefix_memory import PrefixMemory

INPUT = "input"


class Perturbed(ABC):
    """One batch, at features of which each has its own perturbation.

    Parameters
    ----------
    batch : Batch
        The samples.

    Attributes
    ----------
    outputs : Tensor
        Raw outputs at the features as they are.
    features : Tensor of shape (n, m, P)
        The features.
    """

    outputs: Tensor
    features: Tensor

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    @abstractmethod
    def pair(self, step: Tensor, radius: float) -> Iterator[Tensor]:
        """Perturb the features in both directions.

        Parameters
        ----------
        step : Tensor of shape (n, m, P)
            Perturbations of relative size one.
        radius : float
            Their size.

        Yields
        ------
        outputs : Tensor
            Raw outputs for the perturbations, then for their negatives; the first may
            share memory with the second.
        """

    def root(self, metric: FeatureMetric) -> Tensor | None:
        """W L where the outputs are W phi + b and Sigma = L L^T, else None."""
        return None


class PerturbedInput(Perturbed):
    """Features that enter the model: forward passes of the whole of it.

    Where a linear layer comes first and nothing else takes the input, a pair goes
    through that layer once: ``W (x +- u) = W x +- W u``.
    """

    def __init__(self, problem: Problem, batch: Batch) -> None:
        super().__init__(batch)
        self._problem = problem
        self._x = x = self.features_of(problem, batch)
        self.features = x.reshape(len(x), -1, 1)
        self._first = _first_layer(problem)
        self._entering = x
        if self._first is not None:
            with torch.no_grad():
                self._entering = self._first(x)
        self._buffer = torch.empty_like(
            self._entering, memory_format=torch.contiguous_format
        )
        view = problem.view
        entering = self._entering
        self.outputs = self._run(entering if view.is_plain else own_copy(entering))
        view.check_outputs(self.outputs, batch)
        problem.plan.look.check_batch(batch, self.outputs, {})

    @staticmethod
    def features_of(problem: Problem, batch: Batch) -> Tensor:
        """Input of a batch, if it is one array that can be perturbed.

        Parameters
        ----------
        problem : Problem
            The model.
        batch : Batch
            The samples.

        Returns
        -------
        x : Tensor of shape (n, ...)
            The inputs.

        Raises
        ------
        TypeError
            If they are something else.
        """
        x = batch.inputs
        if isinstance(x, Tensor) and x.is_floating_point():
            return x
        what = f"integers ({x.dtype})" if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(
            "Expected one array of real numbers to perturb at the input of "
            f"{problem.view.estimator_name}, got {what}. Name a layer whose features "
            "are to be perturbed, see list_layers."
        )

    def _run(self, entering: Tensor) -> Tensor:
        """Raw outputs for an input, or for what the first layer makes of one."""
        view, first = self._problem.view, self._first
        if first is None:
            with torch.no_grad():
                return view.outputs(entering)
        attributes = vars(first)
        attributes["forward"] = lambda _: entering
        try:
            with torch.no_grad():
                return view.outputs(self._x)
        finally:
            del attributes["forward"]

    def pair(self, step: Tensor, radius: float) -> Iterator[Tensor]:
        """See `Perturbed.pair`."""
        moved = step.reshape(self._x.shape)
        if self._first is not None:
            with torch.no_grad():
                moved = _without_bias(self._first, moved)
        for size in (radius, -radius):
            torch.add(self._entering, moved, alpha=size, out=self._buffer)
            yield self._run(self._buffer)


def _first_layer(problem: Problem) -> Any:
    """Linear layer that alone takes the model's input, if that is plain to see."""
    view = problem.view
    if not view.is_plain:
        return None
    module: Any = view.module
    while type(module).forward is nn.Sequential.forward and len(module):
        module = module[0]
    if type(module) not in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d):
        return None
    parts = [part for _, part in view.module.named_modules(remove_duplicate=False)]
    return module if sum(part is module for part in parts) == 1 else None


def _without_bias(layer: Any, x: Tensor) -> Tensor:
    """Apply a linear layer without its bias."""
    if isinstance(layer, nn.Linear):
        return nn.functional.linear(x, layer.weight)
    return layer._conv_forward(x, layer.weight, None)


class PerturbedLayer(Perturbed):
    """Features that enter a layer: what is behind it runs again."""

    def __init__(self, problem: Problem, batch: Batch) -> None:
        super().__init__(batch)
        (self._layer,) = problem.layers.values()
        self._problem = problem
        self._memory = PrefixMemory(problem.view.module, self._layer.modules)
        self._inputs = batch.inputs
        view, layers = problem.view, problem.layers
        with (
            self._memory.recorded(),
            capture(view, layers, differentiable=False) as seen,
        ):
            fresh = replace(batch, inputs=own_copy(batch.inputs))
            self.outputs, calls = run_layers(
                view, fresh, seen, layers, problem.plan.look
            )
            self._calls = calls[self._layer.name]
            self.features = columns_of(self._calls)
            self._is_output = len(self._calls) == 1 and is_output(
                self._calls[0], self.outputs
            )
        self._check_memory()

    @property
    def is_linear(self) -> bool:
        """Whether the outputs are the layer's own, at one position."""
        return self._is_output and self.features.shape[2] == 1

    def _check_memory(self) -> None:
        """Forget what was remembered of the passes if it changes the outputs."""
        if self.is_linear:
            return
        again = self._run(None)
        if not agree(again, self.outputs):
            self._memory.forget()

    def pair(self, step: Tensor, radius: float) -> Iterator[Tensor]:
        """See `Perturbed.pair`."""
        shift = radius * (self._layer.weight.detach() @ step)
        for moved in (shift, -shift):
            if self.is_linear:
                yield self.outputs + moved.reshape(self.outputs.shape)
            else:
                yield self._run(moved)

    def _run(self, shift: Tensor | None) -> Tensor:
        """Raw outputs with something added to the preactivations, (n, d, P)."""
        view, layers = self._problem.view, self._problem.layers

        with (
            self._memory.in_force(),
            capture(view, layers, differentiable=False) as seen,
        ):
            if shift is not None:
                parts = shift.split([call.n_positions for call in self._calls], dim=2)
                shapes = (c.unrows(p) for c, p in zip(self._calls, parts, strict=True))
                # Each call of the layer takes its own, in the order of the calls.
                seen.shifts[self._layer.name] = lambda _: next(shapes)
            return seen.run(view, own_copy(self._inputs))

    def root(self, metric: FeatureMetric) -> Tensor | None:
        """See `Perturbed.root`."""
        if not self.is_linear:
            return None
        return metric.coloured_transposed(wide(self._layer.weight.detach()))


def pairs_of(
    perturbed: Perturbed, metric: FeatureMetric, streams: PairStreams
) -> Iterator[Tensor]:
    """Draw perturbations of relative size one, a pair after the other.

    Parameters
    ----------
    perturbed : Perturbed
        The batch.
    metric : FeatureMetric
        Shape of the perturbations.
    streams : PairStreams
        Numbers of the pairs.

    Yields
    ------
    step : Tensor of shape (n, m, P)
        A_i Phi_i; its negative is the other of the pair. It lasts until the next.
    """
    phi = perturbed.features
    n, m, positions = phi.shape
    if positions > 1:
        rows = phi.swapaxes(1, 2)
        reduced = HaarOrthogonal()._reduce(rows)
        for stream in streams.each():
            yield HaarOrthogonal()._act(reduced, m, stream).swapaxes(1, 2)
        return
    norms = torch.linalg.vector_norm(metric.whitened(phi[:, :, 0]), dim=1)
    turned = None
    for stream, turns in streams.shared(m):
        # On a thread of its own, ahead of time, this took longer: torch's threads wait
        # for each other, and one of them for its core.
        drawn = stream.normal(n, m)
        lengths = torch.linalg.vector_norm(drawn, dim=1)
        # In single precision all numbers can be zero where there are few.
        drawn[:, 0] += lengths == 0
        lengths = lengths + (lengths == 0)
        drawn *= (norms / lengths)[:, None]
        for turn in turns:
            if turn is None:
                step = drawn
            else:
                turned = torch.empty_like(drawn) if turned is None else turned
                step = turn.of(drawn, turned)
            yield metric.coloured(step)[:, :, None]


class Risk:
    """What is averaged over perturbations: a loss, or whether a prediction is wrong.

    Parameters
    ----------
    problem : Problem
        The model.
    is_error : bool
        Whether the error rate is meant.
    """

    def __init__(self, problem: Problem, *, is_error: bool) -> None:
        self._problem = problem
        self._is_error = is_error

    def terms(self, batch: Batch, outputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Value, denominator and weight of each sample.

        Parameters
        ----------
        batch : Batch
            The samples.
        outputs : Tensor
            Raw outputs.

        Returns
        -------
        value, denominator, weight : Tensor of shape (n,)
            As the criterion defines them.
        """
        if not self._is_error:
            return risk_of(self._problem, batch, outputs)[:3]
        wrong, counts = errors(self._problem, batch, outputs)
        weight = batch.sample_weight
        return wrong, counts, torch.ones_like(wrong) if weight is None else wide(weight)

    def curvature(
        self, perturbed: Perturbed, metric: FeatureMetric
    ) -> Curvature | None:
        """Second order of the loss in the outputs, where these are W phi + b."""
        root = None if self._is_error else perturbed.root(metric)
        if root is None:
            return None
        return Curvature(self._problem, perturbed, root, metric)


class Curvature:
    """Second-order term of the loss of an output layer, drawn and expected.

    Attributes
    ----------
    is_exact : bool
        Whether the loss has no higher orders.
    expected : Tensor of shape (n,)
        Expectation over perturbations of relative size one.
    """

    def __init__(
        self,
        problem: Problem,
        perturbed: Perturbed,
        root: Tensor,
        metric: FeatureMetric,
    ) -> None:
        loss, batch = problem.view.loss, perturbed.batch
        self._loss = loss
        self._outputs = wide(perturbed.outputs)
        self._targets = risk_of(problem, batch, perturbed.outputs)[3]
        self.is_exact = isinstance(loss, SquaredError)
        phi = wide(metric.whitened(perturbed.features[:, :, 0]))
        inner = loss.hessian_inner(self._outputs, self._targets, root)
        self.expected = phi.square().sum(1) * inner / (2 * phi.shape[1])

    def drawn(self, moved: Tensor) -> Tensor | None:
        """Half of the second derivative along a change of the outputs.

        Parameters
        ----------
        moved : Tensor
            Raw outputs at perturbed features.

        Returns
        -------
        values : Tensor of shape (n,) or None
            None where torch cannot differentiate the loss this way.
        """
        change = wide(moved) - self._outputs
        leaf = self._outputs.clone().requires_grad_()
        try:
            with torch.enable_grad():
                slope = (self._loss.gradient(leaf, self._targets) * change).sum()
                (product,) = torch.autograd.grad(slope, leaf)
        except RuntimeError as error:
            raise_out_of_memory(error)
            return None
        return 0.5 * (change * product).reshape(len(change), -1).sum(1)
