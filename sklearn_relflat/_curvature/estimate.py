"""Estimates of quadratic forms: picks the route, repeats passes where it samples."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy import stats
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

# Degrees of freedom from which an estimated standard error is trusted: with fewer, a
# total is made of so few draws that it is not nearly normal.
MIN_DEGREES = 24.0
# Effective number of samples (Kish) below which nothing is sampled if it can be helped.
MIN_SAMPLES = 4.0


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
    """What the passes found of one form.

    Attributes
    ----------
    method : {"closed_form", "exact", "sampled"}
        The route taken.
    total : float
        Sum over samples, the mean over draws.
    stderr : float
        Standard error of the total, widened by Student's distribution so that 1.96 of
        it make a 95 % interval; 0.0 where the total is exact.
    values : Tensor or None
        Per-sample contributions, if they were asked for.
    sums : RiskSums
        Loss, denominator and gradients.
    """

    method: str
    total: float
    stderr: float
    values: Tensor | None
    sums: RiskSums


def widening(degrees: float) -> float:
    """Factor by which an error estimated with few degrees of freedom is too small."""
    return float(stats.t.ppf(0.975, degrees) / stats.norm.ppf(0.975))


class _Draws:
    """Running mean and error of one form over repeated draws."""

    def __init__(self, form: FormSums, n_samples: int) -> None:
        self.total = form.total
        self.values = torch.cat(form.values) if form.values else None
        self.n_draws = 1
        self._n_pairs = 0
        self._variance = 0.0
        self._fourth = 0.0
        self._spread = math.sqrt(spread(form, n_samples))

    def add(self, form: FormSums) -> None:
        """Add a pass with two draws per sample."""
        share = 2 / (self.n_draws + 2)
        self.n_draws += 2
        self._n_pairs += 1
        self.total += share * (form.total - self.total)
        if self.values is not None:
            self.values += share * (torch.cat(form.values) - self.values)
        self._variance += form.draw_variance
        self._fourth += form.draw_fourth

    @property
    def degrees(self) -> float:
        """Degrees of freedom of the variance (Satterthwaite, 1946)."""
        # Each pair of a sample has one: the square of its estimate is three times too
        # large in the mean.
        return 3 * self._variance**2 / self._fourth if self._fourth else 0.0

    @property
    def stderr(self) -> float:
        """Standard error of the total: of the pairs, or the spread over samples."""
        if not self._n_pairs:
            return self._spread
        variance = self._variance / self._n_pairs / self.n_draws
        return math.sqrt(variance) * widening(max(self.degrees, 1.0))

    def is_within(self, rtol: float) -> bool:
        """Whether the error is known well, and small."""
        if math.isinf(rtol):
            return True
        known = self._n_pairs > 0 and self.degrees >= MIN_DEGREES
        # Twice as many draws will be taken.
        return known and self.stderr <= math.sqrt(2) * rtol * abs(self.total)


@dataclass(frozen=True)
class FormEstimator:
    """One evaluation: picks the routes and repeats passes where it samples."""

    view: TorchModel
    source: Any
    forms: list[QuadraticForm]
    plan: Plan
    settings: Settings
    generator: torch.Generator

    def evaluate(self) -> list[Estimate]:
        """Evaluate each form by the cheapest route that the options allow.

        Forms that take the same route share their passes. What a route costs is known
        of each form before it starts.

        Returns
        -------
        estimates : list of Estimate
            One for each form.
        """
        routes = [self._route(form) for form in self.forms]
        # Exact from a forward pass: not sampled with the others.
        closed = [
            self._may_close(form) and "sampled" in (route.gauss_newton, route.residual)
            for form, route in zip(self.forms, routes, strict=True)
        ]
        found: dict[int, Estimate] = {}
        groups = [*zip(routes, closed, strict=True)]
        for group in dict.fromkeys(groups):
            mine = [i for i, own in enumerate(groups) if own == group]
            forms = [self.forms[i] for i in mine]
            found.update(zip(mine, self._evaluate(group[0], forms), strict=True))
        return [found[i] for i in range(len(self.forms))]

    def _may_close(self, form: QuadraticForm) -> bool:
        """Whether a form may be evaluated in closed form."""
        is_output = form.layer.name == self.plan.output_layer
        return is_output and self.settings.method == "auto"

    def _route(self, form: QuadraticForm) -> Route:
        """Route of one form, other than the closed one."""
        method = self.settings.method
        gauss_newton = method
        if method == "auto":
            gauss_newton = self._affordable(self.plan.n_factors)
        if self.settings.curvature == "gauss_newton":
            return Route(gauss_newton, "none")
        if method == "auto":
            return Route(
                gauss_newton, self._affordable(self.plan.n_residual_probes(form))
            )
        return Route(gauss_newton, method)

    @staticmethod
    def _affordable(n_passes: int) -> str:
        return "exact" if n_passes <= MAX_EXACT_PASSES else "sampled"

    def _evaluate(self, route: Route, forms: list[QuadraticForm]) -> list[Estimate]:
        """Evaluate forms by one route."""
        if all(map(self._may_close, forms)):
            # A forward pass for each form, and no derivative; beside other layers, a
            # share in their passes is cheaper. Batches that the look did not see may
            # go another way.
            with suppress(NotOutputError):
                return [self._closed_form(form) for form in forms]
        sums = self._pass(route, forms)
        residual = sums.smooth and route.residual == "sampled"
        if route.gauss_newton == "sampled" or residual:
            return self._repeat(route, forms, sums)
        return self._exact("exact", sums)

    def _closed_form(self, form: QuadraticForm) -> Estimate:
        """Evaluate a form of the output layer from a forward pass."""
        sums = closed_form_sums(
            self.view,
            self.source,
            form,
            self.plan.look,
            keep=self.settings.per_sample,
        )
        return self._exact("closed_form", sums)[0]

    def _pass(self, route: Route, forms: list[QuadraticForm]) -> RiskSums:
        return curvature_sums(
            self.view,
            self.source,
            forms,
            self.plan,
            route,
            generator=self.generator,
            keep=self.settings.per_sample,
        )

    @staticmethod
    def _exact(method: str, sums: RiskSums) -> list[Estimate]:
        return [
            Estimate(
                method,
                form.total,
                0.0,
                torch.cat(form.values) if form.values else None,
                sums,
            )
            for form in sums.forms
        ]

    def _all_factors(self, route: Route, forms: list[QuadraticForm]) -> list[Estimate]:
        """Evaluate forms exactly in place of sampling them."""
        residual = "none" if route.residual == "none" else "exact"
        return self._exact("exact", self._pass(Route("exact", residual), forms))

    def _repeat(
        self, route: Route, forms: list[QuadraticForm], first: RiskSums
    ) -> list[Estimate]:
        """Repeat passes until the relative standard errors are below rtol."""
        draws = [_Draws(form, first.n_samples) for form in first.forms]
        limit = self.plan.n_factors
        if first.smooth:
            limit += sum(self.plan.n_residual_probes(form) for form in forms)
        may_be_exact = limit <= MAX_EXACT_PASSES and not math.isinf(self.settings.rtol)
        if may_be_exact and any(_is_of_few(form) for form in first.forms):
            return self._all_factors(route, forms)
        n_draws, last = 1, limit
        # Looks at the error in geometric steps, and as many draws again after the one
        # that is content: an error that is looked at until it happens to be small is
        # too small.
        next_look = 1
        while n_draws < last:
            if n_draws >= next_look and last == limit:
                next_look = min(limit, 2 * n_draws)
                if all(one.is_within(self.settings.rtol) for one in draws):
                    if math.isinf(self.settings.rtol):
                        break
                    last = next_look
            # The first pass knows the gradient.
            sums = self._pass(replace(route, n_draws=2, gradient=False), forms)
            n_draws += 2
            for one, form in zip(draws, sums.forms, strict=True):
                one.add(form)
        if may_be_exact and any(one.degrees < MIN_DEGREES for one in draws):
            # No error can be told from so few draws, and all cost no more than they.
            return self._all_factors(route, forms)
        return [
            Estimate("sampled", one.total, one.stderr, one.values, first)
            for one in draws
        ]


def _is_of_few(form: FormSums) -> bool:
    """Whether a total is that of very few samples, by their number or weights."""
    return form.weight**2 < MIN_SAMPLES * form.square_weight


def spread(form: FormSums, n_samples: int) -> float:
    """Upper bound of the variance of a total with one draw: the spread over samples."""
    if n_samples < 2 or form.weight == 0:
        return math.inf
    center = form.total / form.weight
    squares = form.squares - 2 * center * form.weighted + center**2 * form.square_weight
    return max(squares, 0.0) * n_samples / (n_samples - 1)
