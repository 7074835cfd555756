"""Estimates of quadratic forms: picks the route, repeats passes where it samples."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from sklearn.utils import check_random_state
from torch import Tensor

from sklearn_relflat._curvature.closed_form import NotOutputError, closed_form_sums
from sklearn_relflat._curvature.plan import Plan
from sklearn_relflat._curvature.quadratic_forms import QuadraticForm
from sklearn_relflat._curvature.sums import FormSums, RiskSums, Route, curvature_sums
from sklearn_relflat._models.torch_model import TorchModel

# Backward passes (factors of the loss Hessian, or second-order products) up to which
# "auto" stays exact. A 10-class net takes 10; 1,000 classes are sampled.
MAX_EXACT_PASSES = 256


def make_generator(random_state: Any, device: torch.device) -> torch.Generator:
    """Torch generator from a scikit-learn random state.

    Parameters
    ----------
    random_state : int, RandomState instance or None
        None takes fresh entropy and leaves NumPy's global state alone.
    device : torch.device
        The generator's device.

    Returns
    -------
    generator : torch.Generator
        Seeded.
    """
    generator = torch.Generator(device=device)
    if random_state is None:
        generator.seed()
        return generator
    seed = check_random_state(random_state).randint(np.iinfo(np.int32).max)
    return generator.manual_seed(int(seed))


def denominator_of(view: TorchModel, sums: RiskSums) -> float:
    """Find what the sums are divided by, as the criterion defines it."""
    if view.loss.reduction == "sum":
        return 1.0
    if not sums.denominator > 0:
        raise ValueError(
            "Expected samples with a positive total weight, got "
            f"{sums.denominator!r}: every sample is ignored or has weight zero. Check "
            "sample_weight, the class weights and ignore_index."
        )
    return sums.denominator


@dataclass(frozen=True)
class Settings:
    """How to estimate forms.

    Attributes
    ----------
    curvature : {"hessian", "gauss_newton"}
        Which matrix.
    method : {"auto", "exact", "sampled"}
        How.
    rtol : float
        Relative standard error at which sampling stops.
    per_sample : bool
        Whether to keep per-sample values.
    """

    curvature: str = "hessian"
    method: str = "auto"
    rtol: float = 0.01
    per_sample: bool = False


@dataclass
class Estimate:
    """Means over draws of what the passes found, for each form."""

    method: str
    sums: RiskSums
    totals: list[float]
    variances: list[float]
    values: list[Tensor]


@dataclass(frozen=True)
class FormEstimator:
    """One evaluation: picks the route and repeats passes where it samples."""

    view: TorchModel
    source: Any
    forms: list[QuadraticForm]
    plan: Plan
    settings: Settings
    generator: torch.Generator

    def evaluate(self) -> Estimate:
        """Evaluate by the route that the options ask for."""
        method = self.settings.method
        if method == "auto" and [self.plan.output_layer] == [
            form.layer.name for form in self.forms
        ]:
            # Batches that the look did not see may go another way.
            with suppress(NotOutputError):
                sums = closed_form_sums(
                    self.view,
                    self.source,
                    self.forms[0],
                    self.plan.look,
                    keep=self.settings.per_sample,
                )
                return self._exact("closed_form", sums)
        gauss_newton = {"auto": self._affordable(self.plan.n_factors)}.get(
            method, method
        )
        residual = "none"
        if self.settings.curvature == "hessian":
            probes = sum(self.plan.n_residual_probes(form) for form in self.forms)
            residual = {"auto": self._affordable(probes)}.get(method, method)
        route = Route(gauss_newton, residual)
        sums = self._pass(route)
        sampled = gauss_newton == "sampled" or (sums.smooth and residual == "sampled")
        if not sampled:
            return self._exact("exact", sums)
        return self._repeat(route, sums)

    @staticmethod
    def _affordable(n_passes: int) -> str:
        return "exact" if n_passes <= MAX_EXACT_PASSES else "sampled"

    def _pass(self, route: Route) -> RiskSums:
        return curvature_sums(
            self.view,
            self.source,
            self.forms,
            self.plan,
            route,
            generator=self.generator,
            keep=self.settings.per_sample,
        )

    @staticmethod
    def _exact(method: str, sums: RiskSums) -> Estimate:
        return Estimate(
            method,
            sums,
            [form.total for form in sums.forms],
            [0.0] * len(sums.forms),
            [torch.cat(form.values) for form in sums.forms if form.values],
        )

    def _repeat(self, route: Route, first: RiskSums) -> Estimate:
        """Repeat passes until the relative standard errors are below rtol."""
        estimate = self._exact("sampled", first)
        estimate.variances = [spread(form, first.n_samples) for form in first.forms]
        limit = self.plan.n_factors
        if first.smooth:
            limit += sum(self.plan.n_residual_probes(form) for form in self.forms)
        n_draws, n_pairs = 1, 0
        single_draw = np.zeros(len(self.forms))
        while n_draws < limit and not self._converged(estimate):
            # The first pass knows the gradient.
            sums = self._pass(replace(route, n_draws=2, gradient=False))
            n_pairs += 1
            share = 2 / (n_draws + 2)
            n_draws += 2
            for i, form in enumerate(sums.forms):
                estimate.totals[i] += share * (form.total - estimate.totals[i])
                if form.values:
                    step = torch.cat(form.values) - estimate.values[i]
                    estimate.values[i] = estimate.values[i] + share * step
            # Two draws of the same sample tell the variance of the sampling alone; the
            # single draw of the first pass enters the mean but not this estimate.
            single_draw += [form.draw_variance for form in sums.forms]
            estimate.variances = (single_draw / n_pairs / n_draws).tolist()
        return estimate

    def _converged(self, estimate: Estimate) -> bool:
        return all(
            math.sqrt(variance) <= self.settings.rtol * abs(total)
            for total, variance in zip(estimate.totals, estimate.variances, strict=True)
        )


def spread(form: FormSums, n_samples: int) -> float:
    """Upper bound of the variance of a total with one draw: the spread over samples."""
    if n_samples < 2 or form.weight == 0:
        return math.inf
    center = form.total / form.weight
    squares = form.squares - 2 * center * form.weighted + center**2 * form.square_weight
    return max(squares, 0.0) * n_samples / (n_samples - 1)
