"""Sums over pairs of perturbations, sample by sample: means and true variances.

Conventions: c_ik is the change of the loss of sample i in pair k, q_ik its second-order
part with the known expectation e_i (a control variate). The estimate of sample i is the
mean over k of ``r_ik = c_ik - beta_k (q_ik - e_i)``. The coefficient beta_k of a pair
is the best one for the other groups of pairs, so that it is independent of the pair,
and the spread of r_ik the true one: one coefficient for all, from the same draws,
covered 0.92 where 0.95 was claimed.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

_POWERS = ("c", "cc", "q", "qq", "cq")
# Groups of pairs that lend each other their coefficients.
_MAX_GROUPS = 8


@dataclass
class BatchSums:
    """Pairs of one batch, on the model's device.

    Attributes
    ----------
    base, denominator, weight : Tensor of shape (n,)
        Loss without perturbation, and how it counts.
    n_features : int
        Features m.
    n_groups : int
        Groups of pairs.
    expected : Tensor of shape (n,) or None
        Expectation of the second order, if there is one.
    """

    base: Tensor
    denominator: Tensor
    weight: Tensor
    n_features: int
    n_groups: int = 1
    expected: Tensor | None = None
    _powers: list[list[Tensor]] = field(default_factory=list)
    _pairs: list[Tensor] = field(default_factory=list)

    def expect(self, expected: Tensor, n_pairs: int) -> None:
        """Use a control variate.

        Parameters
        ----------
        expected : Tensor of shape (n,)
            Expectations of the second order.
        n_pairs : int
            Pairs that are going to be added.
        """
        self.expected = expected
        self.n_groups = min(_MAX_GROUPS, n_pairs)

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
        terms = [change, change**2, control, control**2, change * control]
        group = len(self._pairs) % self.n_groups
        if group == len(self._powers):
            self._powers.append(terms)
        else:
            known = self._powers[group]
            self._powers[group] = [a + b for a, b in zip(known, terms, strict=True)]
        self._pairs.append(torch.stack([change, control]) @ self.weight)

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
        columns = zip(_POWERS, zip(*self._powers, strict=True), strict=True)
        arrays = {name: _host(torch.stack(parts)) for name, parts in columns}
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
    arrays : dict of str to ndarray of shape (n_samples,) or (n_groups, n_samples)
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
            name: np.concatenate([part.arrays[name] for part in parts], axis=-1)
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
        n_groups = len(sums["c"])
        groups = np.arange(n) % n_groups
        sizes = np.bincount(groups, minlength=n_groups)[:, None]
        expected, beta = sums["expected"], np.zeros((n_groups, 1))
        if np.isfinite(expected).all():
            beta = self._coefficients(share, sizes)
        else:
            expected = np.zeros_like(expected)
        total_r = sums["c"] - beta * (sums["q"] - sizes * expected)
        squares = (
            sums["cc"]
            - 2 * beta * (sums["cq"] - expected * sums["c"])
            + beta**2 * (sums["qq"] - 2 * expected * sums["q"] + sizes * expected**2)
        )
        change = total_r.sum(axis=0) / n
        spread = np.maximum(squares.sum(axis=0) - n * change**2, 0.0)
        spread *= self._beta_inflation(share, beta, spread)
        offset = beta[groups, 0] * float((share * expected).sum())
        by_pair = (self.pairs[:, 0] - beta[groups, 0] * self.pairs[:, 1]) / total
        return change, spread / (n * (n - 1)), by_pair + offset

    def _beta_inflation(
        self, share: np.ndarray, beta: np.ndarray, spread: np.ndarray
    ) -> float:
        """Factor of the variance for what the coefficients themselves are unsure of."""
        n_groups, total = len(beta), float((share**2 * spread).sum())
        if n_groups < 2 or not total > 0:
            return 1.0
        sums = {name: self.arrays[name].sum(axis=0) for name in ("q", "qq")}
        pooled = float((share**2 * (sums["qq"] - sums["q"] ** 2 / self.n_pairs)).sum())
        # The jackknife: each coefficient leaves one group out.
        variance = (n_groups - 1) * float(beta.var())
        return 1.0 + variance * pooled / total

    def _coefficients(self, share: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """Coefficient of each group, the best one for all others: (n_groups, 1)."""
        others = {
            name: self.arrays[name].sum(0) - self.arrays[name] for name in _POWERS
        }
        rest = sizes.sum() - sizes
        if rest.min() < 2:
            return np.zeros(sizes.shape)
        spread_qq = others["qq"] - others["q"] ** 2 / rest
        spread_cq = others["cq"] - others["c"] * others["q"] / rest
        pooled = (share**2 * spread_qq).sum(axis=1, keepdims=True)
        found = (share**2 * spread_cq).sum(axis=1, keepdims=True)
        return np.where(pooled > 0, found / np.where(pooled > 0, pooled, 1.0), 0.0)


def _host(values: Tensor) -> np.ndarray:
    """Copy to an array of float64."""
    return values.detach().cpu().double().numpy()
