"""Coefficients that say how well a measure orders runs by a target.

Each is evaluated for many samples of runs at once: ``drawn`` (n_samples, n_runs) has
the indices of the runs of each sample, and the runs themselves as one of them. All are
NaN where they are not defined: a constant column, or no pair of runs that differs in
one hyperparameter only. Nothing is flipped: a measure that falls while the target
rises has a negative coefficient, and a sign error above one half.

References
----------
.. [1] Y. Jiang, B. Neyshabur, H. Mobahi, D. Krishnan, S. Bengio, "Fantastic
   Generalization Measures and Where to Find Them", ICLR 2020.
.. [2] G. K. Dziugaite et al., "In Search of Robust Measures of Generalization", NeurIPS
   2020.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.sparse import csr_array
from scipy.stats import rankdata

from sklearn_relflat._evidence.pairs import RunPairs


@dataclass(frozen=True, eq=False)
class Samples:
    """Samples of runs.

    Attributes
    ----------
    drawn : ndarray of shape (n_samples, n_runs)
        Indices of the runs.
    target : ndarray of shape (n_runs,)
        What is to be predicted.
    control : ndarray of shape (n_runs, n_controls)
        What is held fixed by `partial_spearman`.
    pairs : RunPairs
        Pairs of the runs.
    """

    drawn: np.ndarray
    target: np.ndarray
    control: np.ndarray
    pairs: RunPairs

    @cached_property
    def weights(self) -> np.ndarray:
        """Weight of each pair, (n_samples, n_pairs)."""
        n = len(self.target)
        counts = np.stack([np.bincount(row, minlength=n) for row in self.drawn])
        return self.pairs.weights(counts.astype(np.float64))

    @cached_property
    def target_ranks(self) -> np.ndarray:
        """Ranks of the target within each sample."""
        return rankdata(self.target[self.drawn], axis=1)


def pearson(measure: np.ndarray, samples: Samples) -> np.ndarray:
    """Pearson's correlation; NaN where a column is constant."""
    return _correlation(measure[samples.drawn], samples.target[samples.drawn])


def spearman(measure: np.ndarray, samples: Samples) -> np.ndarray:
    """Pearson's correlation of the ranks; ties share their mean rank."""
    ranks = rankdata(measure[samples.drawn], axis=1)
    return _correlation(ranks, samples.target_ranks)


def _correlation(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Correlation of each row, NaN for a constant one."""
    x = x - x.mean(axis=1, keepdims=True)
    y = y - y.mean(axis=1, keepdims=True)
    sizes = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    return _divided((x * y).sum(axis=1), sizes)


def kendall(measure: np.ndarray, samples: Samples) -> np.ndarray:
    """Kendall's tau-b, which corrects for ties; NaN where a column is constant."""
    one, two = samples.pairs.signs(measure), samples.pairs.signs(samples.target)
    weights = samples.weights
    untied = (weights @ np.abs(one)) * (weights @ np.abs(two))
    return _divided(weights @ (one * two), np.sqrt(untied))


def partial_spearman(measure: np.ndarray, samples: Samples) -> np.ndarray:
    """Correlation of what the controls' ranks leave of the ranks of both columns.

    NaN where the controls explain a column's ranks entirely.

    Returns
    -------
    values : ndarray of shape (n_samples,)
        The coefficients, in [-1, 1], or NaN.
    """
    drawn = samples.drawn
    ranks = rankdata(samples.control[drawn], axis=1)
    design = np.concatenate([np.ones((*drawn.shape, 1)), ranks], axis=2)
    both = np.stack([rankdata(measure[drawn], axis=1), samples.target_ranks], axis=2)
    left = both - design @ (np.linalg.pinv(design) @ both)
    gone = np.linalg.norm(left, axis=1) <= 1e-9 * np.linalg.norm(both, axis=1)
    found = _correlation(left[:, :, 0], left[:, :, 1])
    return np.where(gone.any(axis=1), np.nan, found)


def granulated_kendall(measure: np.ndarray, samples: Samples) -> np.ndarray:
    """Psi of [1]_: the mean over hyperparameters of psi.

    psi of a hyperparameter is the mean, over settings of the others, of the mean
    product of signs over pairs of runs that differ in it; a tie counts 0.
    Hyperparameters without such a pair are left out.

    Returns
    -------
    values : ndarray of shape (n_samples,)
        Psi, in [-1, 1], or NaN.
    """
    product = _agreement(measure, samples)
    psi = []
    for settings in samples.pairs.settings:
        sizes = samples.weights @ settings
        means = _divided(samples.weights @ settings.multiply(product[:, None]), sizes)
        psi.append(_mean_of_defined(means))
    if not psi:
        return np.full(len(samples.drawn), np.nan)
    return _mean_of_defined(np.stack(psi, axis=1))


def sign_error(measure: np.ndarray, samples: Samples) -> np.ndarray:
    """Return the robust sign error: the largest mean of (1 - product of signs) / 2.

    An environment is a pair of settings that differ in one hyperparameter [2]_; the
    mean is over its pairs of runs, in which a tie counts one half. Pairs are not
    weighted by how certain the target's difference is.

    Returns
    -------
    values : ndarray of shape (n_samples,)
        The sign errors, in [0, 1], or NaN.
    """
    environments = samples.pairs.environments
    if environments is None:
        return np.full(len(samples.drawn), np.nan)
    error = (1 - _agreement(measure, samples)) / 2
    means = _divided(
        samples.weights @ environments.multiply(error[:, None]),
        samples.weights @ environments,
    )
    known = np.isfinite(means)
    largest = np.where(known, means, -np.inf).max(axis=1)
    return np.where(known.any(axis=1), largest, np.nan)


def conditional_information(measure: np.ndarray, samples: Samples) -> np.ndarray:
    """Least normalized information of the signs of differences.

    I(V_measure; V_target | U_S) / H(V_target | U_S), minimized over sets S of at most
    two hyperparameters [1]_, the empty one among them; U_S are the values of S in both
    runs of an ordered pair, weighted by their frequencies. Ties are left out. The
    program of the PGDL competition differs: pairs of hyperparameters only, plain means
    over U_S, and ties as a sign; its score is a percentage.

    Returns
    -------
    values : ndarray of shape (n_samples,)
        The information, in [0, 1], or NaN.
    """
    signs = [samples.pairs.signs(values) for values in (measure, samples.target)]
    kept = (signs[0] != 0) & (signs[1] != 0)
    least = np.full(len(samples.drawn), np.inf)
    if not kept.any():
        return np.full(len(least), np.nan)
    up = [np.concatenate([sign[kept], -sign[kept]]) > 0 for sign in signs]
    weights = np.tile(samples.weights[:, kept], 2)
    both = np.tile(kept, 2)
    for cells in samples.pairs.conditions:
        cell = cells[both]
        column = 4 * cell + 2 * up[0] + up[1]
        n_cells = int(cell.max()) + 1
        members = csr_array(
            (np.ones(len(cell)), (np.arange(len(cell)), column)),
            shape=(len(cell), 4 * n_cells),
        )
        joint = (weights @ members).reshape(-1, n_cells, 2, 2)
        least = np.fmin(least, _normalized_information(joint))
    return np.where(np.isfinite(least), least, np.nan)


def _normalized_information(joint: np.ndarray) -> np.ndarray:
    """I(M; T | U) / H(T | U) of weights of shape (n_samples, n_u, 2, 2)."""
    joint = _divided(joint, joint.sum(axis=(1, 2, 3), keepdims=True))
    given = _entropy(joint.sum(axis=(2, 3)))
    of_target = _entropy(joint.sum(axis=2)) - given
    information = of_target + _entropy(joint.sum(axis=3)) - _entropy(joint)
    # Rounding alone is no entropy.
    of_target = np.where(of_target > 1e-12, of_target, 0.0)
    return np.clip(_divided(information, of_target), 0.0, 1.0)


def _entropy(probabilities: np.ndarray) -> np.ndarray:
    """Entropy of each sample, in nats."""
    flat = probabilities.reshape(len(probabilities), -1)
    logs = np.log(np.where(flat > 0, flat, 1.0))
    return -(flat * logs).sum(axis=1)


def _agreement(measure: np.ndarray, samples: Samples) -> np.ndarray:
    """Product of the signs of both differences, for each pair."""
    return samples.pairs.signs(measure) * samples.pairs.signs(samples.target)


def _mean_of_defined(values: np.ndarray) -> np.ndarray:
    """Mean of each row over its numbers, NaN where there is none."""
    known = np.isfinite(values)
    return _divided(np.where(known, values, 0.0).sum(axis=1), known.sum(axis=1))


def _divided(over: np.ndarray, by: np.ndarray) -> np.ndarray:
    """Quotient, NaN where the divisor is zero."""
    by = np.asarray(by, dtype=np.float64)
    return np.where(by > 0, over / np.where(by > 0, by, 1.0), np.nan)


COEFFICIENTS = {
    "pearson": pearson,
    "spearman": spearman,
    "kendall": kendall,
    "partial_spearman": partial_spearman,
    "granulated_kendall": granulated_kendall,
    "conditional_information": conditional_information,
    "sign_error": sign_error,
}
# Those that compare runs by their hyperparameters.
OF_HYPERPARAMETERS = ("granulated_kendall", "conditional_information", "sign_error")
