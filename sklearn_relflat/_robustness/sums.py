"""Sums over samples of the losses at perturbed features, for many matrices at once.

A matrix A acts on the weight w of one layer: ``w A`` is kept for every matrix of a
group, and the data are read once for the group. Which forward passes that takes is up
to `_split.head`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sklearn_relflat._curvature.problem import Problem
from sklearn_relflat._progress.bar import progress_bar
from sklearn_relflat._robustness.matrix_distribution import MatrixDistribution
from sklearn_relflat._robustness.perturbations import (
    CoordinateProjections,
    HaarOrthogonal,
    RankOneDirections,
)
from sklearn_relflat._robustness.perturbed_labels import PerturbedLabels
from sklearn_relflat._split.head import Head, make_head

# Numbers in the changes w A that are held at a time; what does not fit takes another
# pass over the data.
_HELD_NUMBERS = 2**26

# Their matrices have the law of their own transposes, so that the rows of w, perturbed
# like features, have the law of w A.
_LIKE_TRANSPOSE = (HaarOrthogonal, CoordinateProjections, RankOneDirections)


@dataclass(frozen=True, eq=False)
class RobustnessSums:
    """What the samples say about a group of matrices, as means.

    Attributes
    ----------
    values : ndarray of shape (n_deltas, n_matrices)
        Rises of the mean loss.
    expansion : ndarray of shape (2, n_matrices)
        Their Taylor coefficients of first and second order, for constant labels.
    value_at_zero : float
        Rise at delta = 0: zero for constant labels.
    mean_loss : float
        Mean loss with the features as they are.
    kappa : float or None
        Relative flatness, where it was found on the way.
    """

    values: np.ndarray
    expansion: np.ndarray
    value_at_zero: float
    mean_loss: float
    kappa: float | None


@dataclass(frozen=True, eq=False)
class _Change:
    """What a matrix A, or a pair A and -A, does to a weight.

    Attributes
    ----------
    weight : Tensor of shape (d, m)
        w A.
    matrix : Tensor of shape (m, m) or None
        A, where it is needed itself.
    signs : list of float
        [1] for A alone, [1, -1] for a pair.
    """

    weight: Tensor
    matrix: Tensor | None
    signs: list[float]


def _changes(
    problem: Problem,
    distribution: MatrixDistribution,
    n_matrices: int,
    random_state: Any,
    *,
    explicit: bool,
) -> Iterator[_Change]:
    """Yield w A of each matrix, of antithetic pairs once."""
    (layer,) = problem.layers.values()
    weight = layer.weight
    by_rows = not explicit and isinstance(distribution, _LIKE_TRANSPOSE)
    if by_rows:
        found = distribution.perturb(weight, n_matrices, random_state)
    else:
        found = distribution.iter_matrices(
            n_matrices, layer.n_features, random_state, like=weight
        )
    for one in found:
        is_pair = distribution.antithetic and next(found, None) is not None
        yield _Change(
            weight=one if by_rows else weight @ one,
            matrix=one if explicit else None,
            signs=[1.0, -1.0] if is_pair else [1.0],
        )


def robustness_sums(
    problem: Problem,
    deltas: np.ndarray,
    distribution: MatrixDistribution,
    n_matrices: int,
    *,
    labels: PerturbedLabels | None = None,
    random_state: Any = None,
    verbose: int = 0,
) -> RobustnessSums:
    """Evaluate all matrices, as many at a time as are held in memory.

    Parameters
    ----------
    problem : Problem
        A model with one layer and its data.
    deltas : ndarray of shape (n_deltas,)
        Sizes of the perturbations.
    distribution : MatrixDistribution
        Where the matrices come from.
    n_matrices : int
        Number of matrices.
    labels : PerturbedLabels, default=None
        Labels of perturbed features; None for constant labels.
    random_state : int, RandomState instance or None, default=None
        Seed of the matrices.
    verbose : int, default=0
        Whether a bar counts the samples, in each pass over them.

    Returns
    -------
    sums : RobustnessSums
        Means over the samples.

    Raises
    ------
    ValueError
        If the loss is not finite for some perturbed features.
    """
    stream = _changes(
        problem, distribution, n_matrices, random_state, explicit=labels is not None
    )
    n_changes = int(distribution.draw_index(n_matrices)[-1]) + 1
    return _summed(problem, deltas, stream, labels, n_changes, verbose)


def neuron_sums(
    problem: Problem,
    deltas: np.ndarray,
    n_directions: int,
    rng: np.random.RandomState,
) -> RobustnessSums:
    """Evaluate directions in which each neuron has an orthogonal matrix of its own.

    Parameters
    ----------
    problem : Problem
        A model with one layer and its data.
    deltas : ndarray of shape (n_deltas,)
        Sizes of the perturbations, relative to each neuron's weights.
    n_directions : int
        Number of directions; each is a pair with its negative.
    rng : RandomState
        Seed of the matrices, which it is advanced by.

    Returns
    -------
    sums : RobustnessSums
        Means over the samples, of ``2 * n_directions`` changes of the weight.

    Raises
    ------
    ValueError
        If the loss is not finite for some perturbed weights.
    """
    (layer,) = problem.layers.values()
    stream = (
        _Change(
            weight=HaarOrthogonal().perturb_independent(layer.weight, rng),
            matrix=None,
            signs=[1.0, -1.0],
        )
        for _ in range(n_directions)
    )
    return _summed(problem, deltas, stream, None, n_directions)


def _summed(
    problem: Problem,
    deltas: np.ndarray,
    stream: Iterator[_Change],
    labels: PerturbedLabels | None,
    n_changes: int,
    verbose: int = 0,
) -> RobustnessSums:
    """Evaluate all changes, as many at a time as are held in memory."""
    (layer,) = problem.layers.values()
    explicit = labels is not None
    numbers = layer.n_features * (layer.n_neurons + explicit * layer.n_features)
    size = max(1, _HELD_NUMBERS // numbers)
    results = []
    with progress_bar(
        title="feature robustness",
        unit="sample",
        verbose=verbose,
        total=problem.source.n_samples * math.ceil(n_changes / size),
    ) as bar:
        while group := list(islice(stream, size)):
            sums = _Sums(problem, deltas.tolist(), group, labels)
            for batch in problem.chunks():
                with torch.no_grad():
                    sums.add(make_head(problem, batch))
                bar.update(batch.n_samples)
            results.append(sums.results())
    values = np.concatenate([result.values for result in results], axis=1)
    _check_finite(values, deltas)
    expansion = np.concatenate([result.expansion for result in results], axis=1)
    return replace(results[0], values=values, expansion=expansion)


def _check_finite(values: np.ndarray, deltas: np.ndarray) -> None:
    """Refuse a loss that overflows where features are perturbed."""
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        i, j = bad[0]
        raise ValueError(
            f"Expected a finite loss of perturbed features, got {values[i, j]} for "
            f"delta={deltas[i]:.6g} and matrix {j}. Use smaller deltas."
        )


class _Sums:
    """Sums over the samples for a group of matrices, on the model's device."""

    def __init__(
        self,
        problem: Problem,
        deltas: list[float],
        group: list[_Change],
        labels: PerturbedLabels | None,
    ) -> None:
        self._problem = problem
        self._loss = problem.view.loss
        self._deltas = deltas
        self._group = group
        self._labels = labels
        self._totals: dict[str, Tensor] = {}

    def _add(self, name: str, part: Tensor) -> None:
        """Add one chunk's part to a sum."""
        known = self._totals.get(name)
        self._totals[name] = part if known is None else known + part

    def add(self, head: Head) -> None:
        """Add one chunk of samples."""
        lin = head.lin
        self._add("loss", lin.loss_sum)
        self._add("denominator", lin.denominator)
        kappa = head.kappa_sum()
        if kappa is not None:
            self._add("kappa", kappa)
        base = self._loss.value(head.base, lin.targets)
        if self._labels is not None:
            zero = self._labelled(head, self._labels, head.features, head.base, base)
            self._add("zero", zero)
        columns: list[Tensor] = []
        coefficients: list[Tensor] = []
        for change in self._group:
            direction = head.direction(change.weight)
            sizes = [sign * delta for sign in change.signs for delta in self._deltas]
            if self._labels is None:
                sums = self._rises(head, direction, sizes, base)
            else:
                sums = self._labelled_rises(head, change, direction, sizes, base)
            columns += sums.chunk(len(change.signs), dim=-1)
            first, second = head.taylor(direction)
            coefficients += [
                torch.stack([sign * first, second]) for sign in change.signs
            ]
        self._add("rises", torch.stack(columns, -1))
        self._add("expansion", torch.stack(coefficients, -1))

    def _rises(
        self, head: Head, direction: Tensor, sizes: list[float], base: Tensor
    ) -> Tensor:
        """Sum the rises for one matrix, (1, n_sizes)."""
        targets = repeated = head.lin.targets
        rises = base.new_empty(1, len(sizes))
        for block, outputs in head.outputs(direction, sizes):
            k, n = outputs.shape[:2]
            if len(repeated) != k * n:
                repeated = targets.repeat(k, *[1] * (targets.ndim - 1))
            values = self._loss.value(outputs.flatten(0, 1), repeated)
            rises[0, block] = (values.reshape(k, n) - base) @ head.lin.weight
        return rises

    def _labelled_rises(
        self,
        head: Head,
        change: _Change,
        direction: Tensor,
        sizes: list[float],
        base: Tensor,
    ) -> Tensor:
        """Sum rises and denominators for labels that move, (2, n_sizes)."""
        labels = self._labels
        assert labels is not None
        assert change.matrix is not None
        moves = change.matrix @ head.features
        sums = []
        for block, outputs in head.outputs(direction, sizes):
            for size, one in zip(sizes[block], outputs, strict=True):
                features = head.features + size * moves
                sums.append(self._labelled(head, labels, features, one, base))
        return torch.stack(sums, 1)

    def _labelled(
        self,
        head: Head,
        labels: PerturbedLabels,
        features: Tensor,
        outputs: Tensor,
        base: Tensor,
    ) -> Tensor:
        """Sum the rise and the denominator for the labels of some features, (2,)."""
        assert head.y is not None
        targets = self._loss.targets(outputs, labels(features, head.y))
        rise = self._loss.value(outputs, targets) - base
        denominator = self._loss.denominator(outputs, targets)
        return torch.stack([rise, denominator]) @ head.lin.weight

    def results(self) -> RobustnessSums:
        """Means over the samples."""
        sums = {name: total.cpu().numpy() for name, total in self._totals.items()}
        loss = float(sums["loss"])
        denominator = self._problem.denominator(float(sums["denominator"]))
        values, at_zero = sums["rises"][0] / denominator, 0.0
        if self._labels is not None:
            # Other labels may have other class weights.
            positive = np.vectorize(self._problem.denominator)
            values = (sums["rises"][0] + loss) / positive(sums["rises"][1])
            values -= loss / denominator
            rise, weight = sums["zero"].tolist()
            at_zero = (rise + loss) / self._problem.denominator(weight)
            at_zero -= loss / denominator
        kappa = sums.get("kappa")
        return RobustnessSums(
            values,
            sums["expansion"] / denominator,
            at_zero,
            loss / denominator,
            None if kappa is None else float(kappa) / denominator,
        )
