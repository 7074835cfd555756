"""Relative flatness of the output layer, from forward passes alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from sklearn_relflat._curvature.linearization import (
    LossPoint,
    budget_on,
    columns_of,
    run_layers,
    wide,
)
from sklearn_relflat._curvature.quadratic_forms import QuadraticForm, scaled
from sklearn_relflat._curvature.sums import FormSums, RiskSums
from sklearn_relflat._data.batches import Batch, BatchSource
from sklearn_relflat._layers.capture import capture, is_output
from sklearn_relflat._layers.layers import WeightLayer
from sklearn_relflat._layers.look import Look
from sklearn_relflat._models.torch_model import TorchModel

# Numbers in the outputs and last features of small batches that are treated together:
# the many small operations of a loss cost the same for 50 samples as for 5,000.
_GROUP_NUMBERS = {"cpu": 2**20, "other": 2**26}


class NotOutputError(RuntimeError):
    """The raw outputs of some batch are not the layer's preactivations."""


def closed_form_sums(
    view: TorchModel,
    source: BatchSource,
    form: QuadraticForm,
    look: Look,
    *,
    keep: bool = False,
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
    look : Look
        What a few samples showed.
    keep : bool
        Whether to keep the per-sample values.

    Returns
    -------
    sums : RiskSums
        The sums; exact.

    Raises
    ------
    NotOutputError
        If the layer is not the output layer for some batch.
    """
    layer = form.layer
    sums = RiskSums([FormSums()])
    root = wide(form.factor)
    for point, phi in _output_points(view, source, layer, look):
        inner = view.loss.hessian_inner(point.wide_outputs, point.targets, root)
        phi = wide(phi)
        value = scaled(phi, form).square().sum((1, 2)) * inner
        sums.add(point, value[None, None])
        if keep:
            sums.forms[0].values.append(value * point.weight)
        cotangent = point.gradient().reshape(point.n_samples, -1)
        cotangent = cotangent * point.weight[:, None]
        sums.add_gradient(layer.name, cotangent.T @ phi[:, :, 0])
    return sums


def _output_points(
    view: TorchModel, source: BatchSource, layer: WeightLayer, look: Look
) -> Iterator[tuple[LossPoint, Tensor]]:
    """Yield outputs and features (n, m, 1) of the layer, small batches together."""
    layers = {layer.name: layer}
    budget = budget_on(view.device, _GROUP_NUMBERS)
    parts: list[tuple[Tensor, Tensor, Batch]] = []
    numbers = 0
    with capture(view, layers, differentiable=False) as seen:
        for batch in source:
            outputs, calls = run_layers(view, batch, seen, layers, look)
            own = calls[layer.name]
            if len(own) != 1 or not is_output(own[0], outputs):
                raise NotOutputError
            phi = columns_of(calls[layer.name])
            parts.append((outputs, phi, replace(batch, inputs=None)))
            # Frees the inputs before the next ones are read: less memory, in cache.
            del batch
            numbers += outputs.numel() + phi.numel()
            if numbers >= budget:
                yield _joined(view, parts)
                parts, numbers = [], 0
    if parts:
        yield _joined(view, parts)


def _joined(
    view: TorchModel, parts: list[tuple[Tensor, Tensor, Batch]]
) -> tuple[LossPoint, Tensor]:
    """Join the outputs and features of consecutive batches."""
    outputs, features, batches = zip(*parts, strict=True)
    targets = [batch.y for batch in batches if batch.y is not None]
    weights = [b.sample_weight for b in batches if b.sample_weight is not None]
    point = LossPoint(
        view,
        torch.cat(outputs),
        torch.cat(targets) if targets else None,
        torch.cat(weights) if weights else None,
        batches[0].start,
    )
    return point, torch.cat(features)
