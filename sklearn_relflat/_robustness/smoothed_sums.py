"""Sums over pairs of perturbations, sample by sample: means and true variances.

Conventions: c_ik is the change of the loss of sample i in pair k, q_ik its second-order
part with the known expectation e_i (a control variate). With one coefficient beta for
all samples the estimate of sample i is ``mean_k c_ik - beta (mean_k q_ik - e_i)``.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

_POWERS = ("c", "cc", "q", "qq", "cq")


@dataclass
class BatchSums:
    """Pairs of one batch, on the model's device.

    Attributes
    ----------
    base, denominator, weight : Tensor of shape (n,)
        Loss without perturbation, and how it counts.
    n_features : int
        Features m.
    expected : Tensor of shape (n,) or None
        Expectation of the second order, if there is one.
    """

    base: Tensor
    denominator: Tensor
    weight: Tensor
    n_features: int
    expected: Tensor | None = None
    _powers: dict[str, Tensor] = field(default_factory=dict)
    _pairs: list[Tensor] = field(default_factory=list)

    def add(self, change: Tensor, control: Tensor | None) -> None:
        """Add one pair.

        Parameters
        ----------
        change : Tensor of shape (n,)
            Changes of the loss, means over the pair.
        control : Tensor of shape (n,) or None
            Their second order.
        """
        if control is None:
            self.expected = None
            control = torch.zeros_like(change)
        terms = (change, change**2, control, control**2, change * control)
        for name, term in zip(_POWERS, terms, strict=True):
            known = self._powers.get(name)
            self._powers[name] = term if known is None else known + term
        weighted = torch.stack([change, control]) @ self.weight
        self._pairs.append(weighted)

    def known(self, change: Tensor) -> SmoothedSums:
        """Return the sums where the expectation of the change is known.

        Parameters
        ----------
        change : Tensor of shape (n,)
            Expected changes of the loss.

        Returns
        -------
        sums : SmoothedSums
            Without pairs.
        """
        return self._sums({"known": _host(change)}, np.empty((0, 2)))

    def drawn(self) -> SmoothedSums:
        """Return the sums of what was added.

        Returns
        -------
        sums : SmoothedSums
            On the CPU.
        """
        arrays = {name: _host(values) for name, values in self._powers.items()}
        expected = self.expected
        arrays["expected"] = (
            np.full(len(self.base), np.nan) if expected is None else _host(expected)
        )
        return self._sums(arrays, _host(torch.stack(self._pairs)))

    def _sums(self, arrays: dict[str, np.ndarray], pairs: np.ndarray) -> SmoothedSums:
        """Add what all sums have."""
        for name in ("base", "denominator", "weight"):
            arrays[name] = _host(getattr(self, name))
        return SmoothedSums(arrays, pairs, self.n_features)


@dataclass(frozen=True)
class SmoothedSums:
    """Pairs of all samples.

    Attributes
    ----------
    arrays : dict of str to ndarray of shape (n_samples,)
        Sums over pairs, by what is summed.
    pairs : ndarray of shape (n_pairs, 2)
        Weighted sums over samples of changes and controls, for each pair.
    n_features : int
        Features m.
    """

    arrays: dict[str, np.ndarray]
    pairs: np.ndarray
    n_features: int

    @classmethod
    def joined(cls, parts: list[SmoothedSums]) -> SmoothedSums:
        """Join the sums of consecutive batches.

        Parameters
        ----------
        parts : list of SmoothedSums
            Of the same pairs.

        Returns
        -------
        sums : SmoothedSums
            Of all samples.
        """
        names = set.intersection(*(set(part.arrays) for part in parts))
        arrays = {
            name: np.concatenate([part.arrays[name] for part in parts])
            for name in names
        }
        pairs = np.sum([part.pairs for part in parts], axis=0)
        return cls(arrays, pairs, parts[0].n_features)

    def with_more(self, other: SmoothedSums) -> SmoothedSums:
        """Add more pairs of the same samples.

        Parameters
        ----------
        other : SmoothedSums
            Of other pairs.

        Returns
        -------
        sums : SmoothedSums
            Of both.
        """
        added = {name: self.arrays[name] + other.arrays[name] for name in _POWERS}
        return SmoothedSums(
            {**self.arrays, **added},
            np.concatenate([self.pairs, other.pairs]),
            self.n_features,
        )

    @property
    def n_pairs(self) -> int:
        """Number of pairs."""
        return len(self.pairs)

    @property
    def is_known(self) -> bool:
        """Whether the expectations are known and nothing was drawn."""
        return "known" in self.arrays

    @property
    def base(self) -> np.ndarray:
        """Loss of each sample without perturbation."""
        return self.arrays["base"]

    @property
    def denominator(self) -> np.ndarray:
        """Denominator of each sample's loss."""
        return self.arrays["denominator"]

    @property
    def weight(self) -> np.ndarray:
        """Weight of each sample."""
        return self.arrays["weight"]

    def estimates(
        self, share: np.ndarray, total: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Estimate the expected change of each sample.

        Parameters
        ----------
        share : ndarray of shape (n_samples,)
            Factor of each sample in the mean.
        total : float
            What weighted sums are divided by.

        Returns
        -------
        change, variance : ndarray of shape (n_samples,)
            Estimates and the variances of their errors.
        by_pair : ndarray of shape (n_pairs,)
            Estimates of the mean from each pair alone.
        """
        if self.is_known:
            known = self.arrays["known"]
            return known, np.zeros_like(known), np.empty(0)
        n, sums = self.n_pairs, self.arrays
        mean_c, mean_q = sums["c"] / n, sums["q"] / n
        spread = {
            "cc": np.maximum(sums["cc"] - n * mean_c**2, 0.0),
            "qq": np.maximum(sums["qq"] - n * mean_q**2, 0.0),
            "cq": sums["cq"] - n * mean_c * mean_q,
        }
        beta, expected = 0.0, np.zeros_like(mean_q)
        pooled = float((share**2 * spread["qq"]).sum())
        if pooled > 0 and np.isfinite(sums["expected"]).all():
            beta = float((share**2 * spread["cq"]).sum()) / pooled
            expected = sums["expected"]
        change = mean_c - beta * (mean_q - expected)
        residual = spread["cc"] - 2 * beta * spread["cq"] + beta**2 * spread["qq"]
        variance = np.maximum(residual, 0.0) / (n * (n - 1))
        by_pair = self.pairs[:, 0] - beta * self.pairs[:, 1]
        offset = beta * float((share * expected).sum())
        return change, variance, by_pair / total + offset


def _host(values: Tensor) -> np.ndarray:
    """Copy to an array of float64."""
    return values.detach().cpu().double().numpy()
