"""Intervals of the experiments: bootstrap over independent repetitions."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.stats import rankdata

CONFIDENCE = 0.95
N_RESAMPLES = 2000


def bootstrap_interval(
    statistic: Callable[..., np.ndarray],
    *samples: Any,
    seed: int,
    n_resamples: int = N_RESAMPLES,
) -> tuple[float, list[float]]:
    """Estimate with its percentile interval, resampling repetitions together.

    Parameters
    ----------
    statistic : callable
        Of arrays (..., n), along the last axis, to (...).
    *samples : array-like of shape (n,)
        Paired numbers, one of each repetition.
    seed : int
        Seed of the resamples.
    n_resamples : int, default=2000
        Number of resamples.

    Returns
    -------
    estimate : float
        The statistic of the samples.
    interval : list of two float
        Its 95 % interval; resamples where it is not defined are left out.
    """
    arrays = [np.asarray(sample, dtype=np.float64) for sample in samples]
    n = len(arrays[0])
    chosen = np.random.default_rng(seed).integers(n, size=(n_resamples, n))
    with np.errstate(divide="ignore", invalid="ignore"):
        resampled = statistic(*(array[chosen] for array in arrays))
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.nanpercentile(resampled, [tail, 100 - tail])
    return float(statistic(*arrays)), [float(low), float(high)]


def mean_interval(values: Any, seed: int) -> tuple[float, list[float]]:
    """Mean and its interval.

    Parameters
    ----------
    values : array-like of shape (n,)
        One number of each repetition.
    seed : int
        Seed of the resamples.

    Returns
    -------
    mean : float
        The mean.
    interval : list of two float
        Its 95 % interval.
    """
    return bootstrap_interval(lambda a: a.mean(axis=-1), values, seed=seed)


def median_interval(values: Any, seed: int) -> tuple[float, list[float]]:
    """Median and its interval.

    Parameters
    ----------
    values : array-like of shape (n,)
        One number of each repetition.
    seed : int
        Seed of the resamples.

    Returns
    -------
    median : float
        The median.
    interval : list of two float
        Its 95 % interval.
    """
    return bootstrap_interval(lambda a: np.median(a, axis=-1), values, seed=seed)


def pearson(x: np.ndarray, y: np.ndarray) -> Any:
    """Pearson correlation along the last axis; NaN where one side does not vary.

    Parameters
    ----------
    x, y : ndarray of shape (..., n)
        Pairs.

    Returns
    -------
    correlation : ndarray of shape (...)
        Between -1 and 1.
    """
    x = x - x.mean(axis=-1, keepdims=True)
    y = y - y.mean(axis=-1, keepdims=True)
    scale = np.sqrt((x * x).sum(axis=-1) * (y * y).sum(axis=-1))
    return (x * y).sum(axis=-1) / scale


def spearman(x: np.ndarray, y: np.ndarray) -> Any:
    """Spearman correlation along the last axis, with mean ranks for ties.

    Parameters
    ----------
    x, y : ndarray of shape (..., n)
        Pairs.

    Returns
    -------
    correlation : ndarray of shape (...)
        Between -1 and 1.
    """
    return pearson(rankdata(x, axis=-1), rankdata(y, axis=-1))


def seed_of(*parts: Any) -> int:
    """Seed that depends on all parts, the same on every machine.

    Parameters
    ----------
    *parts : object
        Numbers and strings.

    Returns
    -------
    seed : int
        Below 2**32.
    """
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:4], "little")
