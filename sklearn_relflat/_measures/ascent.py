"""The largest rise of a loss in a ball around the weights, by projected ascent."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral

from sklearn_relflat._curvature.problem import Problem
from sklearn_relflat._measures.measurement import Measurement, measured
from sklearn_relflat._measures.weight_space import (
    Point,
    WeightSpace,
    check_rho,
    dot,
    times,
)


@dataclass(frozen=True)
class Ascent:
    """Projected gradient ascent in a ball around the weights.

    Attributes
    ----------
    norm : {"l2", "linf"}
        A key of `_STEPS`.
    magnitude_aware : bool
        Whether the axes of the ball are the absolute values of the weights.
    rho : float
        Radius of the ball.
    n_steps : int
        Steps of length rho.
    m : int or None
        Samples in the batches that have a worst case of their own; None for all.
    """

    norm: str
    magnitude_aware: bool
    rho: float
    n_steps: int
    m: int | None

    def rise(
        self, problem: Problem, measure: str, *, normalize_logits: bool
    ) -> Measurement:
        """Measure the rise at the highest point that was found.

        Parameters
        ----------
        problem : Problem
            The model and its data.
        measure : str
            What the result is called.
        normalize_logits : bool
            Whether the loss is that of normalized logits.

        Returns
        -------
        result : Measurement
            Of the whole sample, or the mean over batches of m samples.
        """
        self._check()
        space = WeightSpace(problem, normalize_logits=normalize_logits)
        whole = self.m is None
        rises, base, denominator = 0.0, 0.0, 0.0
        for part in [space] if self.m is None else space.parts(self.m):
            low, high, mass = self._climb(part)
            rises += high - low
            base += low
            denominator += mass
        if not whole:
            # The parts were read once, and used in every step and at its end.
            for _ in range(self.n_steps):
                problem.source.count_pass()
        scale = problem.denominator(denominator)
        method = "one_step" if self.n_steps == 1 else "projected_ascent"
        return measured(
            problem,
            measure,
            rises / scale,
            method=method if whole else f"{method}_by_batch",
            mean_loss=base / scale,
        )

    def _check(self) -> None:
        """Raise where an option is not valid."""
        check_rho(self.rho)
        for name, value in (("n_steps", self.n_steps), ("m", self.m)):
            if value is None and name == "m":
                continue
            if not (isinstance(value, Integral) and value > 0):
                raise ValueError(
                    f"Expected {name} to be a positive integer, got {value!r}."
                )

    def _climb(self, space: WeightSpace) -> tuple[float, float, float]:
        """Sum of losses at the weights and at the top, and what they are divided by."""
        axes = space.axes(magnitude_aware=self.magnitude_aware)
        base, denominator, gradient = space.gradient(space.weights)
        top = base
        # In units of rho: the ball has radius one.
        step = space.zeros()
        for k in range(self.n_steps):
            slope = times(gradient, axes)
            if dot(slope, slope) == 0:
                slope = space.normal(space.problem.generator())
            step = _STEPS[self.norm](step, slope)
            scaled = {name: self.rho * s for name, s in times(step, axes).items()}
            point = space.moved(_narrow(space, scaled))
            if k == self.n_steps - 1:
                total, _ = space.totals(point)
            else:
                total, _, gradient = space.gradient(point)
            top = max(top, total)
        return base, top, denominator


def _step_in_ball(step: Point, slope: Point) -> Point:
    """One step of length one along the slope, projected onto the unit ball."""
    norm = math.sqrt(dot(slope, slope))
    step = {name: s + slope[name] / norm for name, s in step.items()}
    length = max(1.0, math.sqrt(dot(step, step)))
    return {name: s / length for name, s in step.items()}


def _step_in_cube(step: Point, slope: Point) -> Point:
    """One step to a corner of the unit cube, projected onto the cube."""
    return {name: (s + slope[name].sign()).clamp(-1, 1) for name, s in step.items()}


_STEPS: dict[str, Callable[[Point, Point], Point]] = {
    "l2": _step_in_ball,
    "linf": _step_in_cube,
}


def _narrow(space: WeightSpace, point: Point) -> Point:
    """Point in the dtype of the weights."""
    return {name: p.to(space.weights[name].dtype) for name, p in point.items()}
