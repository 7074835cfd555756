"""One forward pass of a chunk of samples, ready for derivatives in a layer's output.

Conventions
-----------
``z_i = w Phi_i`` (d, P) are the preactivations of sample i, ``f_i`` the raw outputs,
``a_i`` the gradient of the loss in them. A cotangent is a tensor of the outputs' shape;
pulled back to a layer it has the preactivations' shape, or (n, d, P) as rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from sklearn_relflat._data.batches import Batch
from sklearn_relflat._data.inputs import is_finite
from sklearn_relflat._layers.autograd_graph import is_piecewise_linear
from sklearn_relflat._layers.capture import Capture, LayerCall, check_calls, nodes_of
from sklearn_relflat._layers.layers import WeightLayer, weights_of
from sklearn_relflat._layers.look import Look
from sklearn_relflat._layers.own_forward import (
    agree,
    check_own_forwards,
    noise_like,
)
from sklearn_relflat._losses.base import Loss
from sklearn_relflat._losses.cuts import CutFinder
from sklearn_relflat._models.torch_model import TorchModel


def wide(tensor: Tensor) -> Tensor:
    """Tensor in the dtype for sums: float64 where the device has it."""
    return tensor.to(torch.float32 if tensor.device.type == "mps" else torch.float64)


def budget_on(device: torch.device, budgets: dict[str, int]) -> int:
    """Numbers that may be held at once: on a CPU those that its caches like."""
    return budgets["cpu" if device.type == "cpu" else "other"]


# ---------------------------------------------------------------------------
# The loss at the outputs of a forward pass
# ---------------------------------------------------------------------------
def loss_terms(
    loss: Loss, outputs: Tensor, y: Tensor | None, sample_weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss of some samples, differentiable in the outputs.

    Parameters
    ----------
    loss : Loss
        The loss.
    outputs : Tensor of shape (n,) or (n, K, ...)
        Raw outputs, wide.
    y : Tensor of shape (n, ...) or None
        Targets.
    sample_weight : Tensor of shape (n,) or None
        Sample weights.

    Returns
    -------
    value, denominator, weight : Tensor of shape (n,)
        Per-sample losses, their denominators and the sample weights.
    targets : Tensor
        Encoded targets.

    Raises
    ------
    ValueError
        If there are no targets.
    """
    if y is None:
        raise ValueError(
            "Expected y, the targets of the loss, got None. Pass y, or a data set that "
            "yields (X, y)."
        )
    targets = loss.targets(outputs.detach(), y)
    weight = (
        outputs.new_ones(len(outputs)) if sample_weight is None else wide(sample_weight)
    )
    value = loss.value(outputs, targets)
    return value, loss.denominator(outputs.detach(), targets), weight, targets


class LossPoint:
    """What the loss says about the raw outputs of some samples.

    Parameters
    ----------
    view : TorchModel
        The model, whose loss counts.
    outputs : Tensor of shape (n,) or (n, K, ...)
        Raw outputs.
    y : Tensor of shape (n, ...) or None
        Targets.
    sample_weight : Tensor of shape (n,) or None
        Sample weights.
    start : int
        Position of the first sample in the data, for messages.

    Attributes
    ----------
    wide_outputs : Tensor
        The outputs in float64, without graph.
    targets : Tensor
        Encoded targets.
    weight : Tensor of shape (n,)
        Sample weights.
    loss_sum, denominator : Tensor
        Weighted sums of the per-sample losses and of their denominators.

    Raises
    ------
    ValueError
        If there are no targets, or the loss is not finite.
    """

    def __init__(
        self,
        view: TorchModel,
        outputs: Tensor,
        y: Tensor | None,
        sample_weight: Tensor | None,
        start: int,
    ) -> None:
        self.view = view
        self.n_samples = len(outputs)
        self.wide_outputs = wide(outputs.detach())
        value, denominator, self.weight, self.targets = loss_terms(
            view.loss, self.wide_outputs, y, sample_weight
        )
        self.loss_sum = (self.weight * value).sum()
        self.denominator = (self.weight * denominator).sum()
        if not math.isfinite(self.loss_sum):
            bad = (~torch.isfinite(value)).nonzero().flatten()[:5] + start
            raise ValueError(
                f"Expected a finite loss, got {float(self.loss_sum)!r} (samples "
                f"{bad.tolist()}). Check the targets of these samples, or train the "
                "model so that it does not diverge."
            )

    def gradient(self) -> Tensor:
        """Gradient of each sample's loss in its outputs."""
        return self.view.loss.gradient(self.wide_outputs, self.targets)


# ---------------------------------------------------------------------------
# One forward pass, ready for vector-Jacobian products
# ---------------------------------------------------------------------------
def run_layers(
    view: TorchModel,
    batch: Batch,
    seen: Capture,
    layers: dict[str, WeightLayer],
    look: Look | None = None,
) -> tuple[Tensor, dict[str, list[LayerCall]]]:
    """Run a forward pass that captures layers.

    Parameters
    ----------
    view : TorchModel
        The model, inside its ``measuring()`` context.
    batch : Batch
        The samples.
    seen : Capture
        Captures the layers.
    layers : dict of str to WeightLayer
        The layers.
    look : Look or None
        What a few samples showed, for this batch to agree with.

    Returns
    -------
    outputs : Tensor
        Raw outputs, finite.
    calls : dict of str to list of LayerCall
        Calls of each layer.

    Raises
    ------
    ValueError
        If an output is not finite, a layer was not applied sample by sample, or this
        batch does not show what the look showed.
    OverwrittenError
        If the module overwrites what was captured without a copy.
    """
    if look is None or view.is_plain:
        outputs = seen.run(view, batch.inputs)
    else:
        finder = CutFinder(
            partial(nodes_of, seen), weights=weights_of(layers), running=seen.running
        )
        with finder:
            outputs = seen.run(view, batch.inputs)
        look.check_places(finder, layers)
    view.check_outputs(outputs, batch)
    check_calls(seen, layers, batch.n_samples)
    calls = {name: seen[name] for name in layers}
    if look is not None:
        look.check_batch(batch, outputs, calls)
    if not view.is_plain:
        check_own_forwards(calls)
    return outputs, calls


class Linearization(LossPoint):
    """Forward pass of one chunk, with what the loss says about its outputs.

    Attributes
    ----------
    outputs : Tensor
        Raw outputs, in the graph.
    calls : dict of str to list of LayerCall
        Calls of the captured layers.
    """

    def __init__(
        self,
        view: TorchModel,
        batch: Batch,
        seen: Capture,
        layers: dict[str, WeightLayer],
        look: Look | None = None,
    ) -> None:
        self.outputs, self.calls = run_layers(view, batch, seen, layers, look)
        self.start = batch.start
        super().__init__(view, self.outputs, batch.y, batch.sample_weight, batch.start)

    def pull_back(
        self, cotangent: Tensor, *, create_graph: bool = False
    ) -> dict[str, list[Tensor]]:
        """Vector-Jacobian products of an output cotangent at every call."""
        points = [c.preactivations for calls in self.calls.values() for c in calls]
        cotangent = cotangent.to(self.outputs.dtype)
        if create_graph:
            # A cotangent in the graph makes torch mark every gradient that it cannot
            # differentiate again, see has_undefined_derivative.
            cotangent = cotangent.detach().requires_grad_()
        gradients = torch.autograd.grad(
            self.outputs,
            points,
            cotangent,
            retain_graph=True,
            create_graph=create_graph,
            materialize_grads=True,
        )
        flat = iter(gradients)
        return {name: [next(flat) for _ in calls] for name, calls in self.calls.items()}

    def check_rows(self) -> None:
        """Raise where the outputs of a sample depend on other rows of a layer.

        Cotangents that are multiplied by another number for each sample have to come
        back multiplied by it, row by row.

        Raises
        ------
        ValueError
            If they do not.
        """
        if self.n_samples < 2:
            return
        cotangent = noise_like(self.outputs)
        # No two samples share a number.
        order = torch.arange(self.n_samples, device=self.outputs.device)
        numbers = 1 + 7 * (order * 0.6180339887498949).frac().to(self.outputs.dtype)
        plain = self.pull_back(cotangent)
        scaled = self.pull_back(
            cotangent * numbers.reshape(-1, *[1] * (cotangent.dim() - 1))
        )
        for name, calls in self.calls.items():
            expected = rows_of(calls, plain[name]) * numbers[:, None, None]
            self.check_derivatives(name, expected)
            if not agree(rows_of(calls, scaled[name]), expected):
                raise ValueError(
                    f"Expected outputs of {self.view.estimator_name} that depend on "
                    f"the sample's own row of layer {name!r} alone, got outputs that "
                    "change with other rows: the module mixes, sorts or shuffles the "
                    "samples of a batch behind the layer. Let it treat every sample "
                    "on its own in evaluation mode."
                )

    def check_derivatives(self, name: str, values: Tensor) -> None:
        """Raise where derivatives are not finite although the loss is.

        Parameters
        ----------
        name : str
            The layer in which they were taken.
        values : Tensor of shape (n_samples, ...)
            Derivatives, or what was made of them, for each sample.

        Raises
        ------
        ValueError
            Naming the layer and the first samples.
        """
        if is_finite(values):
            return
        finite = torch.isfinite(values).reshape(self.n_samples, -1).all(1)
        bad = (~finite).nonzero().flatten()[:5] + self.start
        raise ValueError(
            f"The derivatives behind layer {name!r} are not finite, although the loss "
            f"is (samples {bad.tolist()}): they overflow, or do not exist there, as "
            "that of a square root at 0. Leave these samples out, let the module stay "
            "off such points (add a small number under the root), or use float64 if "
            "it is an overflow."
        )

    def is_proven_piecewise_linear(self) -> bool:
        """Whether the graph alone shows that there are no second derivatives."""
        # A weight that is applied repeatedly is not linear in itself.
        if any(len(calls) > 1 for calls in self.calls.values()):
            return False
        points = [calls[0].preactivations for calls in self.calls.values()]
        return is_piecewise_linear(self.outputs, points)


def rows_of(calls: list[LayerCall], tensors: list[Tensor]) -> Tensor:
    """Cotangents of a layer's calls side by side, (n, d, P)."""
    rows = [call.rows(tensor) for call, tensor in zip(calls, tensors, strict=True)]
    return rows[0] if len(rows) == 1 else torch.cat(rows, dim=2)


def unrows_of(calls: list[LayerCall], rows: Tensor) -> list[Tensor]:
    """Inverse of `rows_of`: one tensor per call, in the preactivations' own shape."""
    sizes = [call.n_positions for call in calls]
    parts = rows.split(sizes, dim=2)
    return [call.unrows(part) for call, part in zip(calls, parts, strict=True)]


def columns_of(calls: list[LayerCall], *, live: bool = False) -> Tensor:
    """Features of a layer's calls side by side, (n, m, P); live: in the graph."""
    parts = [call.columns(live=live) for call in calls]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


class Scratch:
    """Memory that is written again and again.

    Fresh blocks of a few megabytes come from the system page by page, which can cost
    more than what is done with them.
    """

    def __init__(self) -> None:
        self._memory: dict[str, Tensor] = {}

    def empty(self, use: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Give memory in some shape, over what was given for the same use before."""
        size = math.prod(shape)
        memory = self._memory.get(use)
        if memory is None or memory.numel() < size or memory.dtype != like.dtype:
            memory = self._memory[use] = like.new_empty(size)
        return memory[:size].view(shape)


def blocks_of(
    calls: list[LayerCall], n_features: int, numbers: int, scratch: Scratch
) -> Iterator[tuple[slice, Tensor]]:
    """Features of a layer's calls, unfolded for a few samples at a time.

    Parameters
    ----------
    calls : list of LayerCall
        The calls.
    n_features : int
        Number of features m.
    numbers : int
        Numbers that a block may hold, if that is one sample at least.
    scratch : Scratch
        Where the patches of a convolution are written.

    Yields
    ------
    samples : slice
        Which samples.
    phi : Tensor of shape (n, m, P)
        Their features, valid until the next block is read.
    """
    # Several calls of a convolution share no memory that could be written twice.
    patches = calls[0].patches() if len(calls) == 1 else columns_of(calls)
    n_samples = len(patches)
    step = max(1, numbers * n_samples // patches.numel())
    for start in range(0, n_samples, step):
        part = slice(start, min(start + step, n_samples))
        phi = patches[part]
        if phi.dim() > 3:
            phi = scratch.empty("features", phi.shape, phi).copy_(phi)
            phi = phi.view(len(phi), n_features, -1)
        yield part, phi
