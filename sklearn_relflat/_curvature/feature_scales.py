"""Standard deviation of the features that enter a layer, streamed over batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sklearn_relflat._curvature.linearization import columns_of, wide
from sklearn_relflat._layers.capture import capture, check_calls
from sklearn_relflat._layers.layers import WeightLayer
from sklearn_relflat._models.torch_model import TorchModel


@dataclass
class _Moments:
    """Weighted moments that merge without cancellation (Chan et al., 1983)."""

    weight: Tensor
    mean: Tensor
    squares: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, phi: Tensor, sample_weight: Tensor | None) -> _Moments:
        """Moments of one chunk of features, (n, m, P), over samples and positions."""
        phi = wide(phi)
        n, _, n_positions = phi.shape
        if sample_weight is None:
            sample_weight = torch.ones(n, dtype=phi.dtype, device=phi.device)
        s = wide(sample_weight)[:, None, None]
        weight = s.sum() * n_positions
        # A chunk of weight zero must not contribute 0 / 0.
        mean = (s * phi).sum((0, 2)) / weight.clamp_min(torch.finfo(phi.dtype).tiny)
        squares = (s * (phi - mean[:, None]).square()).sum((0, 2))
        return cls(weight, mean, squares, phi.amin((0, 2)), phi.amax((0, 2)))

    def merge(self, other: _Moments) -> _Moments:
        """Moments of both chunks together."""
        weight = self.weight + other.weight
        step = other.mean - self.mean
        share = other.weight / weight
        return _Moments(
            weight,
            self.mean + step * share,
            self.squares + other.squares + step.square() * self.weight * share,
            torch.minimum(self.low, other.low),
            torch.maximum(self.high, other.high),
        )

    def scale(self) -> Tensor:
        """Take the population standard deviation; 1 where the feature is constant."""
        std = (self.squares / self.weight).sqrt()
        constant = (self.low == self.high) | (std == 0)
        return torch.where(constant, torch.ones_like(std), std)


def feature_scales(
    view: TorchModel, source: Any, layers: dict[str, WeightLayer]
) -> dict[str, Tensor]:
    """Measure the standard deviation of each layer's features, batch by batch.

    Parameters
    ----------
    view : TorchModel
        The model, inside its ``measuring()`` context.
    source : BatchSource
        The data.
    layers : dict of str to WeightLayer
        The layers.

    Returns
    -------
    scales : dict of str to Tensor of shape (n_features,)
        Population standard deviations (``ddof=0``) over samples, weighted by the
        sample weights, and positions; 1 for a constant feature.

    References
    ----------
    Petzka et al., Relative Flatness and Generalization, NeurIPS 2021, Theorem 4.
    """
    moments: dict[str, _Moments] = {}
    with capture(view, layers, differentiable=False) as seen:
        for batch in source:
            seen.run(view, batch.inputs)
            check_calls(seen, layers, batch.n_samples)
            for name in layers:
                new = _Moments.of(columns_of(seen[name]), batch.sample_weight)
                old = moments.get(name)
                moments[name] = new if old is None else old.merge(new)
    return {name: total.scale() for name, total in moments.items()}
