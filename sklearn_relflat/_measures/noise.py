"""Gaussian noise in the weights of a model."""

from __future__ import annotations

import math
from numbers import Integral

import numpy as np
import torch

from sklearn_relflat._curvature.linearization import wide
from sklearn_relflat._measures.badness import METRICS
from sklearn_relflat._measures.weight_space import Point, WeightSpace, times


def check_n_draws(n_draws: int) -> None:
    """Raise where there are too few draws for a standard error."""
    if not (isinstance(n_draws, Integral) and n_draws >= 2):
        raise ValueError(
            f"Expected n_draws to be an integer of at least 2, got {n_draws!r}."
        )


class Noise:
    """Badness (error or mean loss) of the model under noise of any size.

    Parameters
    ----------
    space : WeightSpace
        The weights that get the noise.
    metric : {"accuracy", "loss"}
        A key of `METRICS`.
    magnitude_aware : bool
        Whether the noise of each weight is proportional to its absolute value.
    n_draws : int
        Number of draws; all sizes share them.
    """

    def __init__(
        self, space: WeightSpace, metric: str, magnitude_aware: bool, n_draws: int
    ) -> None:
        self.problem = space.problem
        self.metric = metric
        self.space = space
        self.axes = space.axes(magnitude_aware=magnitude_aware)
        generator = self.problem.generator()
        self.seeds = torch.randint(
            2**62, (int(n_draws),), generator=generator, device=generator.device
        ).tolist()

    def unit(self) -> float:
        """Return the standard deviation of noise as large as the weights."""
        if self.axes is not None:
            return 1.0
        squares = sum(
            float(wide(w).square().sum()) for w in self.space.weights.values()
        )
        return math.sqrt(squares / self.space.n_weights) or 1.0

    def at_weights(self) -> tuple[float, float]:
        """Mean loss and badness without noise."""
        (loss,) = self._averages("loss", [self.space.weights])
        if not math.isfinite(loss):
            raise ValueError(
                f"Expected a finite mean loss, got {loss!r}. Check the targets, or "
                "train a model that does not diverge."
            )
        if self.metric == "loss":
            return loss, loss
        return loss, self._averages(self.metric, [self.space.weights])[0]

    def badness(self, sigma: float) -> np.ndarray:
        """Badness under every draw of the noise, (n_draws,); -sigma mirrors it."""
        # Draws of an output layer are small, and share the pass that finds its
        # features. Elsewhere one draw at a time is kept in memory.
        size = len(self.seeds) if self.space.is_output_layer else 1
        values: list[float] = []
        for start in range(0, len(self.seeds), size):
            seeds = self.seeds[start : start + size]
            points = [self._draw(seed, sigma) for seed in seeds]
            values += self._averages(self.metric, points)
        return np.array(values)

    def _draw(self, seed: int, sigma: float) -> Point:
        """Perturbed weights. A seed instead of the noise itself saves its memory."""
        generator = torch.Generator(device=self.problem.view.device).manual_seed(seed)
        noise = times(self.space.normal(generator), self.axes)
        return self.space.moved({name: sigma * u for name, u in noise.items()})

    def _averages(self, metric: str, points: list[Point]) -> list[float]:
        """Badness at each of some points, from one pass over the data."""
        totals, count = [0.0] * len(points), 0.0
        with torch.no_grad():
            for batch in self.problem.source:
                outputs = self.space.outputs_at(batch)
                for j, point in enumerate(points):
                    part, n = METRICS[metric](self.problem, batch, outputs(point))
                    totals[j] += float(part)
                count += float(n)
        if metric == "loss":
            return [total / self.problem.denominator(count) for total in totals]
        if not count > 0:
            raise ValueError(
                "Expected samples with a positive total weight, got 0.0: every sample "
                "is ignored or has weight zero. Check sample_weight and ignore_index."
            )
        return [total / count for total in totals]
