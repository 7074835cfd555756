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

# Units in the last place by which a constant may be off.
_ROUNDING = 8


@dataclass
class _Moments:
    """Weighted moments that merge without cancellation (Chan et al., 1983)."""

    weight: Tensor
    mean: Tensor
    squares: Tensor
    low: Tensor
    high: Tensor
    eps: float

    @classmethod
    def of(cls, phi: Tensor, sample_weight: Tensor | None) -> _Moments:
        """Moments of one chunk of features, (n, m, P), over samples and positions."""
        eps = torch.finfo(phi.dtype).eps
        phi = wide(phi)
        n, _, n_positions = phi.shape
        if sample_weight is None:
            sample_weight = torch.ones(n, dtype=phi.dtype, device=phi.device)
        s = wide(sample_weight)[:, None, None]
        weight = s.sum() * n_positions
        # A chunk of weight zero must not contribute 0 / 0.
        mean = (s * phi).sum((0, 2)) / weight.clamp_min(torch.finfo(phi.dtype).tiny)
        squares = (s * (phi - mean[:, None]).square()).sum((0, 2))
        # Samples without weight say nothing about what varies.
        low = torch.where(s > 0, phi, torch.inf).amin((0, 2))
        high = torch.where(s > 0, phi, -torch.inf).amax((0, 2))
        return cls(weight, mean, squares, low, high, eps)

    def merge(self, other: _Moments) -> _Moments:
        """Moments of both chunks together."""
        weight = self.weight + other.weight
        step = other.mean - self.mean
        share = other.weight / weight.clamp_min(torch.finfo(weight.dtype).tiny)
        return _Moments(
            weight,
            self.mean + step * share,
            self.squares + other.squares + step.square() * self.weight * share,
            torch.minimum(self.low, other.low),
            torch.maximum(self.high, other.high),
            self.eps,
        )

    def scale(self) -> Tensor:
        """Take the population standard deviation; |c| of a feature that is c."""
        std = (self.squares / self.weight).sqrt()
        size = torch.maximum(self.low.abs(), self.high.abs())
        # A feature that some operations computed as a constant (shares that sum to
        # one, say) is off by a few units in the last place, which mean nothing.
        constant = self.high - self.low <= _ROUNDING * self.eps * size
        return torch.where(constant | (std == 0), self.mean.abs(), std)


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
        sample weights, and positions; |c| for a feature that is the constant c up to
        round-off, so that every scale is of degree one in its feature; and so 0 for a
        feature that is zero on every sample, which `weight_form` drops.

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
