"""Diagonal Hessian blocks H_(s,s) of a layer's neurons, for kappa_max."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sklearn_relflat._curvature.linearization import (
    Linearization,
    columns_of,
    rows_of,
    unrows_of,
    wide,
)
from sklearn_relflat._curvature.plan import Plan
from sklearn_relflat._curvature.quadratic_forms import identity_form, pull_back_factors
from sklearn_relflat._curvature.residual import ResidualProbe
from sklearn_relflat._curvature.sums import FormSums, RiskSums
from sklearn_relflat._data.batches import chunks
from sklearn_relflat._layers.capture import capture
from sklearn_relflat._layers.layers import WeightLayer
from sklearn_relflat._models.torch_model import TorchModel

# Numbers in all blocks together: 2 GiB of float64.
_MAX_BLOCK_NUMBERS = 2**28


def neuron_blocks(
    view: TorchModel,
    source: Any,
    layer: WeightLayer,
    plan: Plan,
    *,
    curvature: str,
    generator: torch.Generator,
) -> tuple[Tensor, RiskSums]:
    """Sum the Hessian blocks of every neuron over the data.

    Parameters
    ----------
    view : TorchModel
        The model, inside its ``measuring()`` context.
    source : BatchSource
        The data.
    layer : WeightLayer
        The layer.
    plan : Plan
        From `plan_layers`.
    curvature : {"hessian", "gauss_newton"}
        Which matrix.
    generator : torch.Generator
        For the certificate that the head is piecewise linear.

    Returns
    -------
    blocks : Tensor of shape (n_neurons, n_features, n_features)
        Weighted sums over samples, not yet divided by the denominator.
    sums : RiskSums
        Loss, denominator and gradients.

    Raises
    ------
    ValueError
        If the blocks do not fit into memory.
    """
    d, m = layer.n_neurons, layer.n_features
    if d * m * m > _MAX_BLOCK_NUMBERS:
        raise ValueError(
            f"The {d} Hessian blocks of layer {layer.name!r}, of {m} x {m} numbers "
            f"each, exceed the limit of {_MAX_BLOCK_NUMBERS} numbers. Choose a smaller "
            'layer, or statistic="trace", which needs no block.'
        )
    form = identity_form(layer)
    layers = {layer.name: layer}
    sums = RiskSums([FormSums()])
    device = view.device
    blocks = wide(torch.zeros(d, m, m, device=device))
    with capture(view, layers, differentiable=True) as seen:
        for batch in chunks(source, plan.chunk_size(layers, device, plan.n_factors)):
            with torch.no_grad():
                lin = Linearization(view, batch, seen, layers, plan.look)
                lin.check_rows()
                sums.add_risk(lin)
                calls = lin.calls[layer.name]
                phi = columns_of(calls)
                pairs = list(view.loss.factors(lin.wide_outputs, lin.targets))
                probe = None
                if curvature == "gauss_newton" or lin.is_proven_piecewise_linear():
                    gradients = lin.pull_back(lin.gradient())
                else:
                    probe = ResidualProbe(lin)
                    gradients = probe.gradients
                    if not sums.smooth:
                        sums.smooth = not probe.is_piecewise_linear(generator)
                rows, signs = pull_back_factors(lin, pairs)
                # (n, k + 1, d, m): every factor's gradient, the loss's own last.
                own = rows_of(calls, gradients[layer.name])
                flat = torch.cat([*rows[layer.name], own], dim=1)
                weights = wide(flat @ phi.transpose(1, 2)).unflatten(1, (-1, d))
                sums.add_gradient(
                    layer.name, torch.einsum("n,ndm->dm", lin.weight, weights[:, -1])
                )
                blocks += _gauss_newton_blocks(weights[:, :-1], signs, lin.weight)
                if probe is not None and sums.smooth:
                    blocks += _residual_blocks(form.factor, probe, layer.name, phi)
    return blocks, sums


def _gauss_newton_blocks(
    gradients: Tensor, signs: Tensor | None, weight: Tensor
) -> Tensor:
    """Gauss-Newton blocks of one chunk from the factors' gradients (n, k, d, m)."""
    n, k = gradients.shape[:2]
    scale = weight[:, None].expand(n, k) if signs is None else weight[:, None] * signs
    left = (gradients * scale[:, :, None, None]).permute(2, 3, 0, 1).flatten(2)
    return left @ gradients.permute(2, 0, 1, 3).flatten(1, 2)


@torch.enable_grad()
def _residual_blocks(
    basis: Tensor, probe: ResidualProbe, name: str, phi: Tensor
) -> Tensor:
    """Residual blocks of one chunk, (d, m, m)."""
    calls = probe.lin.calls[name]
    repeated = len(calls) > 1
    # Directions behind one neuron: single positions, or, where later calls depend on
    # earlier ones, single features in the graph.
    directions = columns_of(calls, live=True).transpose(1, 2) if repeated else None
    phi_wide = wide(phi)
    n, m, n_positions = phi.shape
    weighted = phi_wide * probe.lin.weight[:, None, None]
    blocks = phi_wide.new_zeros(len(basis), m, m)
    for s, neuron in enumerate(basis.T):
        for j in range(m if repeated else n_positions):
            if directions is None:
                local = phi.new_zeros(n, n_positions)
                local[:, j] = 1.0
            else:
                local = directions[:, :, j]
            rows = neuron[:, None] * local[:, None]
            product = probe.product({name: unrows_of(calls, rows)})[name]
            row = wide(rows_of(calls, product)[:, s])
            gradient = (weighted @ row[:, :, None])[:, :, 0]
            if repeated:
                blocks[s, :, j] += gradient.sum(0)
            else:
                blocks[s] += gradient.T @ phi_wide[:, :, j]
    return (blocks + blocks.transpose(1, 2)) / 2
