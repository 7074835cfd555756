"""Quadratic forms in the Hessian of a layer's weight, per sample.

Conventions
-----------
For a factor ``L`` (d, r) with ``G = L L^T`` and scales ``sigma`` (m,), a form is

    Q = sum_{j,t} D^2 E[L_j e_t^T / sigma_t, L_j e_t^T / sigma_t]
      = sum_{s,s',t} G_ss' H_(s,t),(s',t) / sigma_t^2 .

``L = w`` gives the relative flatness kappa, ``L = I`` the trace of the Hessian. With
``z_i = w Phi_i`` (d, P), outputs ``f_i`` and the Hessian of the loss in the outputs
``C_i = sum_k s_ik c_ik c_ik^T``,

    Gauss-Newton part:  q_i = sum_k s_ik || L^T T_ik Phi_i^T diag(1/sigma) ||_F^2 ,
    residual:           q_i = sum_{j,t} D^2 h_i[u_jt, u_jt],
                        u_jt = L_j Phi_i[t] / sigma_t ,

where ``T_ik`` (d, P) is the vector-Jacobian product of ``c_ik`` and ``h_i = a_i^T f_i``
with the gradient ``a_i`` of the loss held fixed. Index letters: n samples, k factors,
d neurons, r columns of L, m features, P positions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sklearn_relflat._curvature.linearization import (
    Linearization,
    Scratch,
    blocks_of,
    budget_on,
    columns_of,
    rows_of,
    unrows_of,
    wide,
)
from sklearn_relflat._curvature.residual import ResidualProbe
from sklearn_relflat._layers.capture import LayerCall
from sklearn_relflat._layers.layers import WeightLayer

# Numbers in the features that are unfolded at once, 4 MiB of float32 on a CPU.
_COLUMN_NUMBERS = {"cpu": 2**20, "other": 2**28}


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
        1 / sigma, or 0 for a feature that is dropped; None for ones.
    """

    layer: WeightLayer
    factor: Tensor
    inverse_scale: Tensor | None = None


def inverse_scale(scale: Tensor) -> Tensor:
    """1 / sigma, where sigma = 0 drops a feature that is zero on every sample."""
    return torch.where(scale > 0, 1.0 / scale, torch.zeros_like(scale))


def weight_form(layer: WeightLayer, scale: Tensor | None = None) -> QuadraticForm:
    """Form whose value is kappa, for features divided by `scale`; 0 drops one."""
    weight = layer.weight
    if scale is not None:
        weight = weight * scale.to(weight.dtype)
    if weight.shape[0] < weight.shape[1]:
        # w w^T = R^T R for w^T = Q R: fewer columns, the same G.
        weight = torch.linalg.qr(weight.T, mode="r").R.T
    inverse = None if scale is None else inverse_scale(scale).to(weight.dtype)
    return QuadraticForm(layer, weight.contiguous(), inverse)


def identity_form(layer: WeightLayer) -> QuadraticForm:
    """Form whose value is the trace of the layer's Hessian."""
    weight = layer.weight
    eye = torch.eye(layer.n_neurons, dtype=weight.dtype, device=weight.device)
    return QuadraticForm(layer, eye)


# ---------------------------------------------------------------------------
# The Gauss-Newton part
# ---------------------------------------------------------------------------
def scaled(phi: Tensor, form: QuadraticForm) -> Tensor:
    """Features divided by the scales of a form."""
    return phi if form.inverse_scale is None else phi * form.inverse_scale[:, None]


def pull_back_factors(
    lin: Linearization,
    pairs: list[tuple[Tensor, Tensor | None]],
) -> tuple[dict[str, list[Tensor]], Tensor | None]:
    """Pull factors back to every layer.

    Parameters
    ----------
    lin : Linearization
        The forward pass.
    pairs : list of (Tensor, Tensor or None)
        Factors c_k in the outputs and their signs.

    Returns
    -------
    rows : dict of str to list of Tensor of shape (n, d, P)
        T_ik for k = 1, 2, ...
    signs : Tensor of shape (n, k) or None
        None where all signs are +1.
    """
    pulled = [lin.pull_back(c) for c, _ in pairs]
    rows = {
        name: [rows_of(calls, p[name]) for p in pulled]
        for name, calls in lin.calls.items()
    }
    if all(s is None for _, s in pairs):
        return rows, None
    ones = lin.weight.new_ones(lin.n_samples)
    return rows, torch.stack([ones if s is None else s for _, s in pairs], dim=1)


def contract_calls(
    forms: list[QuadraticForm],
    factors: list[Tensor],
    gradient: Tensor | None,
    calls: list[LayerCall],
    weight: Tensor,
    scratch: Scratch,
) -> tuple[list[Tensor], Tensor | None]:
    """Contract cotangents with the features of a layer's calls.

    In the cheapest of three orders. Where there are several positions, the features
    are unfolded for a few samples at a time: a block that leaves the cache costs more
    than its arithmetic.

    Parameters
    ----------
    forms : list of QuadraticForm
        Forms of one layer.
    factors : list of Tensor of shape (n, d, P)
        The k factors, from `pull_back_factors`.
    gradient : Tensor of shape (n, d, P) or None
        Gradient of each sample's loss, if it is wanted.
    calls : list of LayerCall
        The layer's calls.
    weight : Tensor of shape (n,)
        Sample weights of the gradient.
    scratch : Scratch
        Memory for the features.

    Returns
    -------
    norms : list of Tensor of shape (n, k)
        || L^T T_ik Phi_i^T diag(1/sigma) ||_F^2 for each form, wide.
    gradient : Tensor of shape (d, m) or None
        Weighted sum of the samples' gradients in the weight, wide.
    """
    rows = factors if gradient is None else [*factors, gradient]
    n, d, n_positions = rows[0].shape
    k, m = len(rows), forms[0].layer.n_features
    weight = weight.to(rows[0].dtype)
    if n_positions == 1:
        return _contract_vectors(forms, factors, gradient, columns_of(calls), weight)
    numbers = budget_on(weight.device, _COLUMN_NUMBERS)
    blocks = blocks_of(calls, m, numbers, scratch)
    if n_positions * (m + k * d) * len(forms) < k * d * m:
        return _contract_grams(forms, factors, gradient, blocks, weight)
    # The gradient rides along: the features are read once for all rows. The products
    # are no more numbers than rows and features, or the other order were cheaper.
    flat = scratch.empty("rows", (n, k * d, n_positions), rows[0])
    torch.cat(rows, dim=1, out=flat)
    products = scratch.empty("products", (n, k * d, m), flat)
    for part, phi in blocks:
        torch.bmm(flat[part], phi.transpose(1, 2), out=products[part])
    parts = products.split(d, dim=1)
    norms = [
        _stacked_squares(_left(form, part, scratch) for part in parts[: len(factors)])
        for form in forms
    ]
    if gradient is None:
        return norms, None
    return norms, wide((weight @ parts[-1].flatten(1)).reshape(d, m))


def _contract_vectors(
    forms: list[QuadraticForm],
    factors: list[Tensor],
    gradient: Tensor | None,
    phi: Tensor,
    weight: Tensor,
) -> tuple[list[Tensor], Tensor | None]:
    """Contract where there is one position: norms of products are those of factors."""
    norms = [
        _stacked_squares(row[..., 0] @ form.factor for row in factors)
        * _stacked_squares([scaled(phi, form)[..., 0]])
        for form in forms
    ]
    if gradient is None:
        return norms, None
    return norms, wide((gradient[..., 0] * weight[:, None]).T @ phi[..., 0])


def _contract_grams(
    forms: list[QuadraticForm],
    factors: list[Tensor],
    gradient: Tensor | None,
    blocks: Iterator[tuple[slice, Tensor]],
    weight: Tensor,
) -> tuple[list[Tensor], Tensor | None]:
    """Contract by way of Phi^T Phi, for few positions and many features."""
    norms: list[list[Tensor]] = [[] for _ in forms]
    weighted = None if gradient is None else gradient * weight[:, None, None]
    totals = []
    for part, phi in blocks:
        for form, values in zip(forms, norms, strict=True):
            local = scaled(phi, form)
            gram = local.transpose(1, 2) @ local
            lefts = [form.factor.T @ row[part] for row in factors]
            inner = [((left @ gram) * left).sum((1, 2)) for left in lefts]
            values.append(wide(torch.stack(inner, dim=1)))
        if weighted is not None:
            # Summed over the samples on the way: (n, d, m) would be too many numbers.
            total = torch.tensordot(weighted[part], phi, dims=([0, 2], [0, 2]))
            totals.append(wide(total))
    return (
        [torch.cat(values) for values in norms],
        torch.stack(totals).sum(0) if totals else None,
    )


def _left(form: QuadraticForm, gradients: Tensor, scratch: Scratch) -> Tensor:
    """L^T D diag(1/sigma) for gradients D of shape (n, d, m), as (n, r * m)."""
    n, _, m = gradients.shape
    left = scratch.empty("left", (n, form.factor.shape[1], m), gradients)
    torch.matmul(form.factor.T, gradients, out=left)
    if form.inverse_scale is not None:
        left *= form.inverse_scale
    return left.flatten(1)


def _stacked_squares(vectors: Iterable[Tensor]) -> Tensor:
    """Squared norms of k tensors of shape (n, size), as (n, k), wide."""
    # One after the other: they may share their memory.
    norms = [torch.linalg.vector_norm(values, dim=1) for values in vectors]
    return wide(torch.stack(norms, dim=1)).square()


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
def exact_residual(
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
def sampled_residual(
    forms: list[QuadraticForm],
    probe: ResidualProbe,
    phis: dict[str, Tensor],
    generator: torch.Generator,
) -> Tensor:
    """Estimate the forms' residuals from one random direction per sample and layer.

    The directions of different layers are independent and of mean zero, so that the
    cross terms of one joint product vanish in the mean.

    Parameters
    ----------
    forms : list of QuadraticForm
        The forms; those of one layer take a product each.
    probe : ResidualProbe
        Second-order products of one chunk.
    phis : dict of str to Tensor of shape (n, m, P)
        Features of each layer.
    generator : torch.Generator
        Source of the directions.

    Returns
    -------
    values : Tensor of shape (n_forms, n)
        Unbiased per-sample estimates, wide.
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
