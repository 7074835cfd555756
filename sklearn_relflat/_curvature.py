"""Curvature of the empirical risk in a layer's weight, summed batch by batch.

Conventions
-----------
Everything here is a quadratic form in the Hessian of a weight ``w`` (d, m): for a
factor ``L`` (d, r) with ``G = L L^T`` and scales ``sigma`` (m,),

    Q = sum_{j,t} D^2 E[L_j e_t^T / sigma_t, L_j e_t^T / sigma_t]
      = sum_{s,s',t} G_ss' H_(s,t),(s',t) / sigma_t^2 .

``L = w`` gives the relative flatness kappa, ``L = I`` the trace of the Hessian.
With ``z_i = w Phi_i`` (d, P), outputs ``f_i`` and the Hessian of the loss in the outputs
``C_i = sum_k s_ik c_ik c_ik^T``,

    Gauss-Newton part:  q_i = sum_k s_ik || L^T T_ik Phi_i^T diag(1/sigma) ||_F^2 ,
    residual:           q_i = sum_{j,t} D^2 h_i[u_jt, u_jt],  u_jt = L_j Phi_i[t] / sigma_t,

where ``T_ik`` (d, P) is the vector-Jacobian product of ``c_ik`` and ``h_i = a_i^T f_i`` with
the gradient ``a_i`` of the loss held fixed. Index letters: n samples, k factors, d
neurons, r columns of L, m features, P positions. Per-sample numbers are in the model's
dtype, sums over samples in float64 where the device has it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sklearn_relflat._layers import (
    LayerCall,
    WeightLayer,
    capture,
    check_calls,
    is_output,
)
from sklearn_relflat._linearization import (
    Linearization,
    ResidualProbe,
    chunks,
    columns_of,
    rows_of,
    slice_batch,
    unrows_of,
    wide,
)
from sklearn_relflat._models import TorchModel

# Floats that one chunk of samples may hold in unfolded features and cotangents: about
# the size at which larger chunks no longer made LeNet5 faster on a CPU; a GPU wants more.
_CHUNK_FLOATS = {"cpu": 2**23, "other": 2**28}


@dataclass(frozen=True)
class QuadraticForm:
    """A quadratic form in the Hessian of one layer's weight.

    Attributes
    ----------
    layer : WeightLayer
        The layer.
    factor : Tensor of shape (n_neurons, r)
        L, of G = L L^T.
    inverse_scale : Tensor of shape (n_features,) or None
        1 / sigma; None for ones.
    """

    layer: WeightLayer
    factor: Tensor
    inverse_scale: Tensor | None = None


def weight_form(layer: WeightLayer, scale: Tensor | None = None) -> QuadraticForm:
    """Form whose value is kappa, for features divided by `scale`."""
    weight = layer.weight
    if scale is not None:
        weight = weight * scale.to(weight.dtype)
    if weight.shape[0] < weight.shape[1]:
        # w w^T = R^T R for w^T = Q R: fewer columns, the same G.
        weight = torch.linalg.qr(weight.T, mode="r").R.T
    inverse = None if scale is None else (1.0 / scale).to(weight.dtype)
    return QuadraticForm(layer, weight.contiguous(), inverse)


def identity_form(layer: WeightLayer) -> QuadraticForm:
    """Form whose value is the trace of the layer's Hessian."""
    weight = layer.weight
    eye = torch.eye(layer.n_neurons, dtype=weight.dtype, device=weight.device)
    return QuadraticForm(layer, eye)


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

    def chunk_size(self, layers: dict[str, WeightLayer], device: torch.device) -> int:
        """Choose the chunk size, so that memory does not depend on the batch size."""
        floats = sum(
            self.n_positions[name]
            * (layer.n_features + 2 * (self.n_factors + 2) * layer.n_neurons)
            for name, layer in layers.items()
        )
        budget = _CHUNK_FLOATS["cpu" if device.type == "cpu" else "other"]
        return max(1, budget // max(1, floats))


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
# The Gauss-Newton part
# ---------------------------------------------------------------------------
def scaled(phi: Tensor, form: QuadraticForm) -> Tensor:
    """Features divided by the scales of a form."""
    return phi if form.inverse_scale is None else phi * form.inverse_scale[:, None]


def squared_norms(left: Tensor, phi: Tensor) -> Tensor:
    """Squared Frobenius norms of left Phi^T, by the cheaper of two orders.

    Parameters
    ----------
    left : Tensor of shape (n, k, r, P)
        L^T T_ik.
    phi : Tensor of shape (n, m, P)
        Scaled features.

    Returns
    -------
    norms : Tensor of shape (n, k)
        || left_ik Phi_i^T ||_F^2.
    """
    n, k, r, n_positions = left.shape
    m = phi.shape[1]
    if n_positions == 1:
        return left.square().sum((2, 3)) * phi.square().sum((1, 2))[:, None]
    flat = left.reshape(n, k * r, n_positions)
    gram_cost = n_positions * n_positions * (m + k * r)
    if gram_cost < k * r * n_positions * m:
        gram = phi.transpose(1, 2) @ phi
        products = (flat @ gram) * flat
    else:
        products = (flat @ phi.transpose(1, 2)).square()
    return products.reshape(n, k, -1).sum(2)


def _gauss_newton(
    forms: list[QuadraticForm],
    calls: dict[str, list[LayerCall]],
    cotangents: dict[str, Tensor],
    signs: Tensor | None,
    phis: dict[str, Tensor],
) -> Tensor:
    """Per-sample Gauss-Newton parts of the forms, (n_forms, n), wide."""
    values = []
    for form in forms:
        stacked = cotangents[form.layer.name]
        left = torch.einsum("dr,nkdp->nkrp", form.factor, stacked)
        phi = scaled(phis[form.layer.name], form)
        norms = wide(squared_norms(left, phi))
        values.append((norms if signs is None else norms * signs).sum(1))
    return torch.stack(values)


def stack_factors(
    lin: Linearization, pairs: list[tuple[Tensor, Tensor | None]]
) -> tuple[dict[str, Tensor], Tensor | None]:
    """Pulled-back factors, (n, k, d, P) per layer, and their signs (n, k)."""
    pulled = [lin.pull_back(c) for c, _ in pairs]
    stacked = {
        name: torch.stack([rows_of(calls, p[name]) for p in pulled], dim=1)
        for name, calls in lin.calls.items()
    }
    if all(s is None for _, s in pairs):
        return stacked, None
    ones = torch.ones(lin.n_samples, dtype=lin.weight.dtype, device=lin.weight.device)
    return stacked, torch.stack([ones if s is None else s for _, s in pairs], dim=1)


# ---------------------------------------------------------------------------
# The residual: second derivatives of the head
# ---------------------------------------------------------------------------
def _signs(shape: tuple[int, ...], like: Tensor, generator: torch.Generator) -> Tensor:
    """Independent signs +1 and -1 with equal probability."""
    bits = torch.randint(0, 2, shape, generator=generator, device=like.device)
    return (2 * bits - 1).to(like.dtype)


def _position_factor(phi: Tensor) -> Tensor:
    """Psi (n, P, q) with Psi Psi^T = Phi^T Phi and q as small as can be."""
    _, m, n_positions = phi.shape
    if n_positions == 1:
        return phi.square().sum(1, keepdim=True).sqrt()
    if m <= n_positions:
        return phi.transpose(1, 2)
    # Phi = Q R gives Phi^T Phi = R^T R without the squared condition number of a Gram.
    return torch.linalg.qr(phi, mode="r").R.transpose(1, 2)


def _features(
    form: QuadraticForm, probe: ResidualProbe, phis: dict[str, Tensor]
) -> Tensor:
    """Scaled features of a form's layer, in the graph if it is called repeatedly."""
    calls = probe.lin.calls[form.layer.name]
    if len(calls) == 1:
        return scaled(phis[form.layer.name], form)
    return scaled(columns_of(calls, live=True), form)


@torch.enable_grad()
def _exact_residual(
    form: QuadraticForm, probe: ResidualProbe, phis: dict[str, Tensor]
) -> Tensor:
    """Per-sample residual of one form, (n,), by all its second-order products."""
    name = form.layer.name
    calls = probe.lin.calls[name]
    phi = _features(form, probe, phis)
    # Only single columns of live features are directions in the weight.
    psi = _position_factor(phi) if len(calls) == 1 else phi.transpose(1, 2)
    total = torch.zeros_like(probe.lin.weight)
    for column in form.factor.T:
        for j in range(psi.shape[2]):
            rows = column[:, None] * psi[:, None, :, j]
            product = probe.product({name: unrows_of(calls, rows)})[name]
            total += wide((rows.detach() * rows_of(calls, product)).sum((1, 2)))
    return total


@torch.enable_grad()
def _sampled_residual(
    forms: list[QuadraticForm],
    probe: ResidualProbe,
    phis: dict[str, Tensor],
    generator: torch.Generator,
) -> Tensor:
    """Per-sample estimates of the forms' residuals, (n_forms, n).

    The directions of different layers are independent and of mean zero, so that the
    cross terms of one joint product vanish in the mean.
    """
    values: dict[int, Tensor] = {}
    pending = list(enumerate(forms))
    while pending:
        # A layer can take one direction at a time.
        now = {form.layer.name: (i, form) for i, form in reversed(pending)}
        pending = [pair for pair in pending if now[pair[1].layer.name][0] != pair[0]]
        rows = {
            name: _random_rows(form, _features(form, probe, phis), generator)
            for name, (_, form) in now.items()
        }
        calls = probe.lin.calls
        products = probe.product({k: unrows_of(calls[k], u) for k, u in rows.items()})
        for name, (i, _) in now.items():
            inner = rows[name].detach() * rows_of(calls[name], products[name])
            values[i] = wide(inner.sum((1, 2)))
    return torch.stack([values[i] for i in range(len(forms))])


def _random_rows(
    form: QuadraticForm, phi: Tensor, generator: torch.Generator
) -> Tensor:
    """Directions L A Phi_i / sigma with independent random signs A_i, (n, d, P)."""
    n, m, n_positions = phi.shape
    r = form.factor.shape[1]
    if n_positions == 1:
        noise = (
            _signs((n, r, 1), phi, generator) * phi.square().sum(1, keepdim=True).sqrt()
        )
    else:
        noise = _signs((n, r, m), phi, generator) @ phi
    return form.factor @ noise


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

    def add_gradients(
        self, lin: Linearization, gradients: dict[str, list[Tensor]]
    ) -> None:
        """Add one chunk's gradients in the weights, from those in the preactivations."""
        for name, parts in gradients.items():
            for call, part in zip(lin.calls[name], parts, strict=True):
                shape = [1] * part.dim()
                shape[call.batch_dim] = -1
                weighted = part * lin.weight.to(part.dtype).reshape(shape)
                gradient = wide(call.weight_gradient(weighted))
                known = self.gradients.get(name)
                self.gradients[name] = gradient if known is None else known + gradient


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
            phi = scaled(columns_of(calls), form)[:, :, 0]
            value = wide(phi).square().sum(1) * inner
            sums.add(lin, value[None, None])
            if keep:
                sums.forms[0].values.append(value * lin.weight)
            cotangent = lin.gradient().to(calls[0].preactivations.dtype)
            z = calls[0].preactivations
            sums.add_gradients(lin, {layer.name: [cotangent.reshape(z.shape)]})
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
    size = plan.chunk_size(layers, view.device)
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
    phis = {name: columns_of(calls) for name, calls in lin.calls.items()}
    probe = None
    if route.residual == "none":
        gradients = lin.pull_back(lin.gradient())
    else:
        probe = ResidualProbe(lin)
        gradients = probe.gradients
        if not sums.smooth and probe.is_piecewise_linear(generator):
            probe = None
        else:
            sums.smooth = True
    sums.add_gradients(lin, gradients)

    if route.gauss_newton == "exact":
        pairs = list(lin.view.loss.factors(lin.wide_outputs, lin.targets))
        stacked, signs = stack_factors(lin, pairs)
        draws = _gauss_newton(forms, lin.calls, stacked, signs, phis)[None]
    else:
        draws = torch.stack(
            [_one_factor(lin, forms, generator, phis) for _ in range(route.n_draws)]
        )
    if probe is None:
        return draws
    if route.residual == "exact":
        return draws + torch.stack(
            [_exact_residual(form, probe, phis) for form in forms]
        )
    return draws + torch.stack(
        [_sampled_residual(forms, probe, phis, generator) for _ in range(route.n_draws)]
    )


def _one_factor(
    lin: Linearization,
    forms: list[QuadraticForm],
    generator: torch.Generator,
    phis: dict[str, Tensor],
) -> Tensor:
    """Per-sample Gauss-Newton parts from one random factor, (n_forms, n)."""
    pair = lin.view.loss.sampled_factor(lin.wide_outputs, lin.targets, generator)
    stacked, signs = stack_factors(lin, [pair])
    return _gauss_newton(forms, lin.calls, stacked, signs, phis)
