"""Pairs of runs: how a measure and a target order them, and what sets them apart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class RunPairs:
    """Unordered pairs of runs.

    Attributes
    ----------
    first, second : ndarray of shape (n_pairs,)
        The runs' indices.
    codes : ndarray of shape (n_runs, n_hyperparameters)
        Values of the hyperparameters as integers.
    differing : ndarray of shape (n_pairs, n_hyperparameters)
        Which hyperparameters differ.
    """

    first: np.ndarray
    second: np.ndarray
    codes: np.ndarray
    differing: np.ndarray

    def signs(self, values: np.ndarray) -> np.ndarray:
        """Signs of the differences of shape (n_pairs,), 0 for a tie."""
        return np.sign(values[self.first] - values[self.second])

    def differing_only_in(self, hyperparameter: int) -> np.ndarray:
        """Mask of the pairs that differ in this hyperparameter and no other."""
        alone = self.differing.sum(axis=1) == 1
        return alone & self.differing[:, hyperparameter]


def run_pairs(codes: np.ndarray) -> RunPairs:
    """All pairs of runs with these values of the hyperparameters."""
    first, second = np.triu_indices(len(codes), k=1)
    return RunPairs(first, second, codes, codes[first] != codes[second])


def groups_of(rows: np.ndarray) -> np.ndarray:
    """Return the number of each row among the different ones, of shape (n_rows,)."""
    if rows.shape[1] == 0:
        return np.zeros(len(rows), dtype=int)
    _, inverse = np.unique(rows, axis=0, return_inverse=True)
    return inverse.reshape(-1)
