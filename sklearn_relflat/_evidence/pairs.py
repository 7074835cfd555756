"""Pairs of runs: how a measure and a target order them, and what sets them apart."""

from __future__ import annotations

from functools import cached_property
from itertools import combinations

import numpy as np
from scipy.sparse import csr_array

# As in the paper of Jiang et al. (2020).
_MAX_CONDITIONS = 2


class RunPairs:
    """All unordered pairs of runs.

    Parameters
    ----------
    codes : ndarray of shape (n_runs, n_hyperparameters)
        Values of the hyperparameters as integers.

    Attributes
    ----------
    first, second : ndarray of shape (n_pairs,)
        The runs' indices.
    """

    def __init__(self, codes: np.ndarray) -> None:
        self.codes = codes
        self.first, self.second = np.triu_indices(len(codes), k=1)
        differing = codes[self.first] != codes[self.second]
        self._alone = differing.sum(axis=1) == 1
        self._differing = differing

    def signs(self, values: np.ndarray) -> np.ndarray:
        """Signs of the differences of shape (n_pairs,), 0 for a tie."""
        return np.sign(values[self.first] - values[self.second])

    def weights(self, counts: np.ndarray) -> np.ndarray:
        """How often each pair is there when runs are: (n_samples, n_pairs)."""
        # A run that was drawn twice makes no pair with itself: it ties in everything.
        return counts[:, self.first] * counts[:, self.second]

    @cached_property
    def settings(self) -> list[csr_array]:
        """For each hyperparameter, pairs that differ in it alone, by all others.

        Matrices of shape (n_pairs, n_settings of the others), without those
        hyperparameters that have no such pair.
        """
        found = []
        for index in range(self.codes.shape[1]):
            alone = np.flatnonzero(self._alone & self._differing[:, index])
            if len(alone):
                others = np.delete(self.codes[self.first[alone]], index, axis=1)
                found.append(_membership(alone, groups_of(others), len(self.first)))
        return found

    @cached_property
    def environments(self) -> csr_array | None:
        """Pairs by the two settings that they are from, which differ in one value."""
        alone = np.flatnonzero(self._alone)
        if not len(alone):
            return None
        setting = groups_of(self.codes)
        ends = np.column_stack([setting[self.first], setting[self.second]])[alone]
        return _membership(alone, groups_of(np.sort(ends, axis=1)), len(self.first))

    @cached_property
    def conditions(self) -> list[np.ndarray]:
        """For each set of at most two hyperparameters, the cells of ordered pairs.

        A cell has the values of the set in both runs; the second half of an array is
        for the pairs in the other order.
        """
        one = np.concatenate([self.first, self.second])
        two = np.concatenate([self.second, self.first])
        n = self.codes.shape[1]
        return [
            groups_of(
                np.column_stack(
                    [self.codes[one][:, list(chosen)], self.codes[two][:, list(chosen)]]
                )
            )
            for size in range(min(_MAX_CONDITIONS, n) + 1)
            for chosen in combinations(range(n), size)
        ]


def _membership(pairs: np.ndarray, group: np.ndarray, n_pairs: int) -> csr_array:
    """Matrix (n_pairs, n_groups) of ones where a pair is in a group."""
    ones = np.ones(len(pairs))
    return csr_array((ones, (pairs, group)), shape=(n_pairs, int(group.max()) + 1))


def groups_of(rows: np.ndarray) -> np.ndarray:
    """Return the number of each row among the different ones, of shape (n_rows,)."""
    if rows.shape[1] == 0:
        return np.zeros(len(rows), dtype=int)
    _, inverse = np.unique(rows, axis=0, return_inverse=True)
    return inverse.reshape(-1)
