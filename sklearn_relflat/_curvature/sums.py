"""Curvature of the empirical risk in a layer's weight, summed batch by batch.

The forms of `quadratic_forms` are evaluated per sample, in the model's dtype, and
summed over the data in float64 where the device has it. Memory does not grow with the
number of samples.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from sklearn_relflat._curvature.linearization import (
    Linearization,
    LossPoint,
    Scratch,
    columns_of,
    rows_of,
)
from sklearn_relflat._curvature.plan import Plan
from sklearn_relflat._curvature.quadratic_forms import (
    QuadraticForm,
    contract_calls,
    exact_residual,
    pull_back_factors,
    sampled_residual,
)
from sklearn_relflat._curvature.residual import ResidualProbe
from sklearn_relflat._data.batches import BatchSource, chunks
from sklearn_relflat._layers.capture import OverwrittenError, capture
from sklearn_relflat._models.torch_model import TorchModel

# Two more backward passes over so many samples prove that none sees another's row.
_CHECKED_SAMPLES = 128


# ---------------------------------------------------------------------------
# Sums over the data
# ---------------------------------------------------------------------------
@dataclass
class FormSums:
    """Sums of one form over the samples seen so far.

    Attributes
    ----------
    total : float
        Sum of weight times per-sample value (mean over the draws of this pass).
    weight, square_weight, weighted, squares : float
        Sums of s, s^2, s^2 q and s^2 q^2: the spread over samples.
    draw_variance, draw_fourth : float
        Estimated variance of `total` for a single draw, from pairs of draws, and the
        sum of the squares of the samples' parts of it.
    values : list of Tensor
        Per-sample values, if asked for.
    """

    total: float = 0.0
    weight: float = 0.0
    square_weight: float = 0.0
    weighted: float = 0.0
    squares: float = 0.0
    draw_variance: float = 0.0
    draw_fourth: float = 0.0
    values: list[Tensor] = field(default_factory=list)

    def add(
        self,
        total: float,
        weight: float,
        square_weight: float,
        weighted: float,
        squares: float,
        draw_variance: float,
        draw_fourth: float,
    ) -> None:
        """Add the sums of one chunk."""
        self.total += total
        self.weight += weight
        self.square_weight += square_weight
        self.weighted += weighted
        self.squares += squares
        self.draw_variance += draw_variance
        self.draw_fourth += draw_fourth


@dataclass
class RiskSums:
    """What one pass over the data found.

    Attributes
    ----------
    forms : list of FormSums
        One per form.
    loss, denominator : float
        Weighted sums of the per-sample losses and their denominators.
    n_samples : int
        Samples seen.
    gradients : dict of str to Tensor
        Sum of the weighted per-sample gradients in each layer's weight, (d, m).
    smooth : bool
        Whether the head had second derivatives anywhere.
    """

    forms: list[FormSums]
    loss: float = 0.0
    denominator: float = 0.0
    n_samples: int = 0
    gradients: dict[str, Tensor] = field(default_factory=dict)
    smooth: bool = False

    def add(self, lin: LossPoint, draws: Tensor) -> None:
        """Add one chunk, given per-sample values of shape (n_draws, n_forms, n)."""
        self.add_risk(lin)
        weight, square = lin.weight, lin.weight.square()
        means = draws.mean(0)
        variances = draws.var(0) * square if len(draws) > 1 else torch.zeros_like(means)
        table = [
            (means * weight).sum(1),
            weight.sum().expand(len(means)),
            square.sum().expand(len(means)),
            (means * square).sum(1),
            (means.square() * square).sum(1),
            variances.sum(1),
            variances.square().sum(1),
        ]
        for sums, row in zip(self.forms, torch.stack(table, 1).tolist(), strict=True):
            sums.add(*row)

    def add_risk(self, lin: LossPoint) -> None:
        """Add one chunk's loss and denominator."""
        self.loss += float(lin.loss_sum)
        self.denominator += float(lin.denominator)
        self.n_samples += lin.n_samples

    def add_gradient(self, name: str, gradient: Tensor) -> None:
        """Add one chunk's weighted sum of gradients in a layer's weight."""
        known = self.gradients.get(name)
        self.gradients[name] = gradient if known is None else known + gradient


@dataclass(frozen=True)
class Route:
    """How one pass evaluates the forms.

    Attributes
    ----------
    gauss_newton : {"exact", "sampled"}
        All factors of the loss Hessian, or one random factor per draw.
    residual : {"none", "exact", "sampled"}
        Whether and how the second derivatives of the head enter.
    n_draws : int
        Independent draws per sample, for what is sampled.
    gradient : bool
        Whether to sum the gradients in the weights, too.
    """

    gauss_newton: str = "exact"
    residual: str = "exact"
    n_draws: int = 1
    gradient: bool = True


def curvature_sums(
    view: TorchModel,
    source: BatchSource,
    forms: list[QuadraticForm],
    plan: Plan,
    route: Route,
    *,
    generator: torch.Generator,
    keep: bool = False,
) -> RiskSums:
    """One pass over the data for any forms of any layers.

    Parameters
    ----------
    view : TorchModel
        The model, inside its ``measuring()`` context.
    source : BatchSource
        The data.
    forms : list of QuadraticForm
        The forms; several may share a layer.
    plan : Plan
        From `plan_layers`.
    route : Route
        How to evaluate.
    generator : torch.Generator
        Source of randomness on the model's device.
    keep : bool
        Whether to keep the per-sample values.

    Returns
    -------
    sums : RiskSums
        The sums.
    """
    one_pass = partial(_one_pass, view, source, forms, plan, route, generator, keep)
    state = generator.get_state()
    try:
        return one_pass(copies=plan.look.in_place)
    except OverwrittenError:
        # The look at two samples did not tell that the module works in place.
        generator.set_state(state)
        return one_pass(copies=True)


def _one_pass(
    view: TorchModel,
    source: BatchSource,
    forms: list[QuadraticForm],
    plan: Plan,
    route: Route,
    generator: torch.Generator,
    keep: bool,
    *,
    copies: bool,
) -> RiskSums:
    """One pass over the data, with or without copies of what is captured."""
    layers = {form.layer.name: form.layer for form in forms}
    sums = RiskSums([FormSums() for _ in forms])
    n_factors = plan.n_factors if route.gauss_newton == "exact" else route.n_draws
    size = plan.chunk_size(layers, view.device, n_factors)
    scratch = Scratch()
    with capture(view, layers, differentiable=True, copies=copies) as seen:
        for batch in chunks(source, size):
            with torch.no_grad():
                lin = Linearization(view, batch, seen, layers, plan.look)
                if batch.start < _CHECKED_SAMPLES:
                    lin.check_rows()
                draws = _chunk_draws(lin, forms, route, generator, sums, scratch)
                for i, form in enumerate(forms):
                    lin.check_derivatives(form.layer.name, draws[:, i].T)
                sums.add(lin, draws)
            if keep:
                for form_sums, value in zip(sums.forms, draws.mean(0), strict=True):
                    form_sums.values.append(value * lin.weight)
            # The graph of one chunk makes room for that of the next.
            seen.clear()
            del lin
    return sums


def _chunk_draws(
    lin: Linearization,
    forms: list[QuadraticForm],
    route: Route,
    generator: torch.Generator,
    sums: RiskSums,
    scratch: Scratch,
) -> Tensor:
    """Per-sample values of one chunk, (n_draws, n_forms, n); gradients go to sums."""
    probe = None
    gradients = None
    if route.residual == "none" or lin.is_proven_piecewise_linear():
        if route.gradient:
            gradients = lin.pull_back(lin.gradient())
    else:
        probe = ResidualProbe(lin)
        gradients = probe.gradients if route.gradient else None
        sums.smooth = sums.smooth or not probe.is_piecewise_linear(generator)
    loss = lin.view.loss
    if route.gauss_newton == "exact":
        pairs = list(loss.factors(lin.wide_outputs, lin.targets))
    else:
        pairs = [
            loss.sampled_factor(lin.wide_outputs, lin.targets, generator)
            for _ in range(route.n_draws)
        ]
    rows, signs = pull_back_factors(lin, pairs)
    norms: dict[int, Tensor] = {}
    for name, calls in lin.calls.items():
        mine = [i for i, form in enumerate(forms) if form.layer.name == name]
        own = rows_of(calls, gradients[name]) if gradients else None
        values, gradient = contract_calls(
            [forms[i] for i in mine], rows[name], own, calls, lin.weight, scratch
        )
        norms.update(zip(mine, values, strict=True))
        if gradient is not None:
            sums.add_gradient(name, gradient)
    # (n_forms, n, k) with the signs of the factors.
    table = torch.stack([norms[i] for i in range(len(forms))])
    table = table if signs is None else table * signs
    if route.gauss_newton == "exact":
        draws = table.sum(2)[None]
    else:
        draws = table.permute(2, 0, 1)
    if probe is None or not sums.smooth:
        return draws
    phis = {name: columns_of(calls) for name, calls in lin.calls.items()}
    if route.residual == "exact":
        return draws + torch.stack(
            [exact_residual(form, probe, phis) for form in forms]
        )
    return draws + torch.stack(
        [sampled_residual(forms, probe, phis, generator) for _ in range(route.n_draws)]
    )
