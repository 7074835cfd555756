"""Coefficients that say how well a measure orders runs by a target.

All of them are NaN where they are not defined: a constant column, or no pair of runs
that differs in one hyperparameter only. Nothing is flipped: a measure that falls
while the target rises has a negative coefficient, and a sign error above one half.
"""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
from scipy.stats import kendalltau, rankdata

from sklearn_relflat._evidence.pairs import RunPairs, groups_of


def pearson(measure: np.ndarray, target: np.ndarray) -> float:
    """Pearson's correlation; NaN where a column is constant."""
    if np.ptp(measure) == 0 or np.ptp(target) == 0:
        return math.nan
    return float(np.corrcoef(measure, target)[0, 1])


def spearman(measure: np.ndarray, target: np.ndarray) -> float:
    """Pearson's correlation of the ranks; ties share their mean rank."""
    return pearson(rankdata(measure), rankdata(target))


def kendall(measure: np.ndarray, target: np.ndarray) -> float:
    """Kendall's tau-b, which corrects for ties; NaN where a column is constant."""
    if np.ptp(measure) == 0 or np.ptp(target) == 0:
        return math.nan
    return float(kendalltau(measure, target).statistic)


def partial_spearman(
    measure: np.ndarray, target: np.ndarray, control: np.ndarray
) -> float:
    """Correlation of what the control's ranks leave of the ranks of both columns.

    `control` has the shape (n_runs, n_controls). It is NaN where the control explains
    a column's ranks entirely.

    Returns
    -------
    value : float
        The coefficient, in [-1, 1], or NaN.
    """
    ranks = np.column_stack([rankdata(column) for column in control.T])
    design = np.column_stack([np.ones(len(measure)), ranks])
    both = np.column_stack([rankdata(measure), rankdata(target)])
    left = both - design @ np.linalg.lstsq(design, both, rcond=None)[0]
    sizes = np.linalg.norm(left, axis=0)
    if np.any(sizes <= 1e-9 * np.linalg.norm(both, axis=0)):
        return math.nan
    return float(left[:, 0] @ left[:, 1] / (sizes[0] * sizes[1]))


def granulated_kendall(
    measure: np.ndarray, target: np.ndarray, pairs: RunPairs
) -> float:
    """Psi of Jiang et al. (2020): the mean over hyperparameters of psi.

    psi of a hyperparameter is the mean, over settings of the others, of the mean
    product of signs over pairs of runs that differ in it; a tie counts 0.
    Hyperparameters without such a pair are left out.

    Returns
    -------
    value : float
        Psi, in [-1, 1], or NaN.
    """
    product = pairs.signs(measure) * pairs.signs(target)
    found = []
    for index in range(pairs.codes.shape[1]):
        alone = pairs.differing_only_in(index)
        if alone.any():
            others = np.delete(pairs.codes[pairs.first[alone]], index, axis=1)
            group = groups_of(others)
            means = np.bincount(group, product[alone]) / np.bincount(group)
            found.append(means.mean())
    return float(np.mean(found)) if found else math.nan


def sign_error(measure: np.ndarray, target: np.ndarray, pairs: RunPairs) -> float:
    """Return the robust sign error: the largest mean of (1 - product of signs) / 2.

    An environment is a pair of settings that differ in one hyperparameter (Dziugaite
    et al. 2020); the mean is over its pairs of runs. Pairs are not weighted by how
    certain the target's difference is.

    Returns
    -------
    value : float
        The sign error, in [0, 1], or NaN.
    """
    alone = pairs.differing.sum(axis=1) == 1
    if not alone.any():
        return math.nan
    error = (1 - pairs.signs(measure) * pairs.signs(target))[alone] / 2
    setting = groups_of(pairs.codes)
    ends = np.column_stack([setting[pairs.first], setting[pairs.second]])[alone]
    environment = groups_of(np.sort(ends, axis=1))
    return float((np.bincount(environment, error) / np.bincount(environment)).max())


def conditional_information(
    measure: np.ndarray, target: np.ndarray, pairs: RunPairs, max_conditions: int = 2
) -> float:
    """Least normalized information of the signs of differences, in [0, 1].

    I(V_measure; V_target | U_S) / H(V_target | U_S), minimized over sets S of at most
    `max_conditions` hyperparameters (Jiang et al. 2020); U_S are the values of S in
    both runs of an ordered pair. Ties are left out. The PGDL competition's score is
    100 times such a number, but its program takes the plain mean over the values of
    U_S, where this takes their frequencies as the paper does.

    Returns
    -------
    value : float
        The information, in [0, 1], or NaN.
    """
    signs = [pairs.signs(measure), pairs.signs(target)]
    kept = (signs[0] != 0) & (signs[1] != 0)
    if not kept.any():
        return math.nan
    up = [np.concatenate([s[kept], -s[kept]]) > 0 for s in signs]
    ends = [pairs.first[kept], pairs.second[kept]]
    one, two = np.concatenate(ends), np.concatenate(ends[::-1])
    n_hyperparameters = pairs.codes.shape[1]
    found = []
    for size in range(min(max_conditions, n_hyperparameters) + 1):
        for chosen in combinations(range(n_hyperparameters), size):
            codes = pairs.codes[:, list(chosen)]
            cell = groups_of(np.column_stack([codes[one], codes[two]]))
            counts = np.bincount(4 * cell + 2 * up[0] + up[1], minlength=4 * cell.max())
            counts = np.pad(counts, (0, -len(counts) % 4)).reshape(-1, 2, 2)
            found.append(_normalized_information(counts / counts.sum()))
    defined = [value for value in found if not math.isnan(value)]
    return min(defined) if defined else math.nan


def _normalized_information(joint: np.ndarray) -> float:
    """I(M; T | U) / H(T | U) of probabilities of shape (n_u, 2, 2)."""
    given = joint.sum(axis=(1, 2))
    entropy = _entropy(joint.sum(axis=1)) - _entropy(given)
    if entropy <= 1e-12:
        return math.nan
    information = (
        _entropy(joint.sum(axis=2))
        + _entropy(joint.sum(axis=1))
        - _entropy(joint)
        - _entropy(given)
    )
    return float(min(max(information / entropy, 0.0), 1.0))


def _entropy(probabilities: np.ndarray) -> float:
    """Entropy in nats."""
    positive = probabilities[probabilities > 0]
    return float(-(positive * np.log(positive)).sum())
