"""Curvature of the empirical risk in a layer's weight, summed batch by batch.

The forms of `_quadratic_forms` are evaluated per sample, in the model's dtype, and
summed over the data in float64 where the device has it. Memory does not grow with the
number of samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sklearn_relflat._layers import (
    WeightLayer,
    capture,
    check_calls,
    find_layer,
    is_output,
    unsupported_layers,
    weight_layers,
)
from sklearn_relflat._linearization import (
    Linearization,
    ResidualProbe,
    chunks,
    columns_of,
    slice_batch,
    wide,
)
from sklearn_relflat._models import TorchModel
from sklearn_relflat._quadratic_forms import (
    QuadraticForm,
    contract_calls,
    exact_residual,
    pull_back_factors,
    sampled_residual,
    scaled,
)

# Numbers that one chunk of samples may hold in unfolded features and cotangents: about
# the size from which larger chunks no longer made LeNet5 faster on a CPU; a GPU wants
# more.
_CHUNK_NUMBERS = {"cpu": 2**24, "other": 2**28}


# ---------------------------------------------------------------------------
# What a first look at two samples tells
# ---------------------------------------------------------------------------
@dataclass(frozen=True)
class Plan:
    """Sizes that decide which route is the cheapest.

    Attributes
    ----------
    order : tuple of str
        The captured layers in the order of their last call.
    n_factors : int
        Factors of the loss Hessian in the outputs of one sample.
    n_calls : dict of str to int
        Calls of each layer in one forward pass.
    n_positions : dict of str to int
        Positions of each layer, summed over its calls.
    output_layer : str or None
        The layer whose preactivations are the raw outputs.
    """

    order: tuple[str, ...]
    n_factors: int
    n_calls: dict[str, int]
    n_positions: dict[str, int]
    output_layer: str | None

    def n_residual_probes(self, form: QuadraticForm) -> int:
        """Second-order products that the exact residual of a form takes."""
        name, m = form.layer.name, form.layer.n_features
        columns = m if self.n_calls[name] > 1 else min(self.n_positions[name], m)
        return form.factor.shape[1] * columns

    def chunk_size(
        self, layers: dict[str, WeightLayer], device: torch.device, n_factors: int
    ) -> int:
        """Choose the chunk size, so that memory does not depend on the batch size."""
        numbers = sum(
            self.n_positions[name]
            * (layer.n_features + 2 * (n_factors + 2) * layer.n_neurons)
            for name, layer in layers.items()
        )
        budget = _CHUNK_NUMBERS["cpu" if device.type == "cpu" else "other"]
        return max(1, budget // max(1, numbers))


def make_plan(
    view: TorchModel,
    source: Any,
    layers: dict[str, WeightLayer],
    *,
    required: bool = True,
) -> Plan:
    """Look at two samples of the first batch.

    Parameters
    ----------
    view : TorchModel
        The model, inside its ``measuring()`` context.
    source : BatchSource
        The data.
    layers : dict of str to WeightLayer
        The layers to look at.
    required : bool
        Whether each of them has to be called.

    Returns
    -------
    plan : Plan
        What was seen.
    """
    batch = slice_batch(next(iter(source)), 0, 2)
    with capture(view, layers, differentiable=False) as seen:
        outputs = view.outputs(batch.inputs)
        called = {name: layer for name, layer in layers.items() if name in seen.calls}
        check_calls(seen, layers if required else called, batch.n_samples)
        n_positions = {
            name: sum(call.columns().shape[2] for call in seen[name]) for name in called
        }
        order = tuple(seen.calls)
        last = seen[order[-1]] if order else []
        output_layer = (
            order[-1] if len(last) == 1 and is_output(last[0], outputs) else None
        )
        n_calls = {name: len(seen[name]) for name in called}
    return Plan(order, view.loss.n_factors(outputs), n_calls, n_positions, output_layer)


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
    draw_variance : float
        Estimated variance of `total` for a single draw, from pairs of draws.
    values : list of Tensor
        Per-sample values, if asked for.
    """

    total: float = 0.0
    weight: float = 0.0
    square_weight: float = 0.0
    weighted: float = 0.0
    squares: float = 0.0
    draw_variance: float = 0.0
    values: list[Tensor] = field(default_factory=list)

    def add(
        self,
        total: float,
        weight: float,
        square_weight: float,
        weighted: float,
        squares: float,
        draw_variance: float,
    ) -> None:
        """Add the sums of one chunk."""
        self.total += total
        self.weight += weight
        self.square_weight += square_weight
        self.weighted += weighted
        self.squares += squares
        self.draw_variance += draw_variance


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

    def add(self, lin: Linearization, draws: Tensor) -> None:
        """Add one chunk, given per-sample values of shape (n_draws, n_forms, n)."""
        self.add_risk(lin)
        weight, square = lin.weight, lin.weight.square()
        means = draws.mean(0)
        variances = (
            (draws.var(0) * square).sum(1)
            if len(draws) > 1
            else means.new_zeros(len(means))
        )
        table = [
            (means * weight).sum(1),
            weight.sum().expand(len(means)),
            square.sum().expand(len(means)),
            (means * square).sum(1),
            (means.square() * square).sum(1),
            variances,
        ]
        for sums, row in zip(self.forms, torch.stack(table, 1).tolist(), strict=True):
            sums.add(*row)

    def add_risk(self, lin: Linearization) -> None:
        """Add one chunk's loss and denominator."""
        self.loss += float(lin.loss_sum)
        self.denominator += float(lin.denominator)
        self.n_samples += lin.n_samples

    def add_gradient(self, name: str, gradient: Tensor) -> None:
        """Add one chunk's weighted sum of gradients in a layer's weight."""
        known = self.gradients.get(name)
        self.gradients[name] = gradient if known is None else known + gradient


def select_layers(
    view: TorchModel, source: Any, names: Sequence[str | None] | None
) -> dict[str, WeightLayer]:
    """Find layers by name.

    Parameters
    ----------
    view : TorchModel
        The model, inside its ``measuring()`` context.
    source : BatchSource
        The data.
    names : sequence of str, or [None], or None
        [None] is the output layer, None all of them.

    Returns
    -------
    layers : dict of str to WeightLayer
        In the order of the names.

    Raises
    ------
    TypeError
        If a layer is not supported.
    ValueError
        If there is no such layer, or its weight is not finite.
    """
    if names is None:
        refused = unsupported_layers(view)
        if refused:
            raise TypeError(
                f"{view.estimator_name} has weight layers that cannot be measured: "
                f"{refused}. Pass layers=, some of {list(weight_layers(view))}."
            )
        names = list(weight_layers(view))
    if isinstance(names, str):
        raise TypeError(
            f"Expected layers to be a list of names, got the string {names!r}. "
            f"Pass [{names!r}]."
        )
    if not weight_layers(view):
        raise TypeError(
            f"{view.estimator_name} has no weight layer that can be measured. "
            f"Found: {unsupported_layers(view)}."
        )
    if list(names) == [None]:
        name = view.default_layer
        if name is None:
            plan = make_plan(view, source, weight_layers(view), required=False)
            name = plan.order[-1] if plan.order else next(iter(weight_layers(view)))
        names = [name]
    found = [find_layer(view, name) for name in names]  # type: ignore[arg-type]
    for layer in found:
        if not bool(torch.isfinite(layer.weight).all()):
            raise ValueError(
                f"Expected finite weights, got NaN or infinity in layer {layer.name!r} "
                f"of {view.estimator_name}. Train it with a smaller learning rate."
            )
    return {layer.name: layer for layer in found}


def closed_form_sums(
    view: TorchModel, source: Any, form: QuadraticForm, *, keep: bool = False
) -> RiskSums:
    """Sum over an output layer's samples, from forward passes alone.

    Parameters
    ----------
    view : TorchModel
        The model, inside its ``measuring()`` context.
    source : BatchSource
        The data.
    form : QuadraticForm
        A form of the output layer.
    keep : bool
        Whether to keep the per-sample values.

    Returns
    -------
    sums : RiskSums
        The sums; exact.
    """
    layer = form.layer
    sums = RiskSums([FormSums()])
    gram = wide(form.factor)
    gram = gram @ gram.T
    with capture(view, {layer.name: layer}, differentiable=False) as seen:
        for batch in source:
            lin = Linearization(view, batch, seen, {layer.name: layer})
            calls = lin.calls[layer.name]
            inner = view.loss.hessian_inner(lin.wide_outputs, lin.targets, gram)
            raw = columns_of(calls)
            value = wide(scaled(raw, form)).square().sum((1, 2)) * inner
            sums.add(lin, value[None, None])
            if keep:
                sums.forms[0].values.append(value * lin.weight)
            cotangent = lin.gradient().reshape(lin.n_samples, -1)
            cotangent = (cotangent * lin.weight[:, None]).to(raw.dtype)
            sums.add_gradient(layer.name, wide(cotangent.T @ raw[:, :, 0]))
    return sums


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
    """

    gauss_newton: str = "exact"
    residual: str = "exact"
    n_draws: int = 1


def curvature_sums(
    view: TorchModel,
    source: Any,
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
        From `make_plan`.
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
    layers = {form.layer.name: form.layer for form in forms}
    sums = RiskSums([FormSums() for _ in forms])
    n_factors = plan.n_factors if route.gauss_newton == "exact" else route.n_draws
    size = plan.chunk_size(layers, view.device, n_factors)
    with capture(view, layers, differentiable=True) as seen:
        for batch in chunks(source, size):
            with torch.no_grad():
                lin = Linearization(view, batch, seen, layers)
                draws = _chunk_draws(lin, forms, route, generator, sums)
                sums.add(lin, draws)
            if keep:
                for form_sums, value in zip(sums.forms, draws.mean(0), strict=True):
                    form_sums.values.append(value * lin.weight)
    return sums


def _chunk_draws(
    lin: Linearization,
    forms: list[QuadraticForm],
    route: Route,
    generator: torch.Generator,
    sums: RiskSums,
) -> Tensor:
    """Per-sample values of one chunk, (n_draws, n_forms, n); gradients go to sums."""
    probe = None
    if route.residual == "none" or lin.is_proven_piecewise_linear():
        gradients = lin.pull_back(lin.gradient())
    else:
        probe = ResidualProbe(lin)
        gradients = probe.gradients
        sums.smooth = sums.smooth or not probe.is_piecewise_linear(generator)
    loss = lin.view.loss
    if route.gauss_newton == "exact":
        pairs = list(loss.factors(lin.wide_outputs, lin.targets))
    else:
        pairs = [
            loss.sampled_factor(lin.wide_outputs, lin.targets, generator)
            for _ in range(route.n_draws)
        ]
    rows, signs = pull_back_factors(lin, pairs, gradients)
    norms: dict[int, Tensor] = {}
    for name, calls in lin.calls.items():
        mine = [i for i, form in enumerate(forms) if form.layer.name == name]
        values, gradient = contract_calls(
            [forms[i] for i in mine], rows[name], calls, lin.weight
        )
        norms.update(zip(mine, values, strict=True))
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
