"""Numbers of the experiments: bootstrap intervals, seeds, rounding."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np

CONFIDENCE = 0.95
N_RESAMPLES = 2000


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
    return _interval(np.mean, values, seed)


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
    return _interval(np.median, values, seed)


def clustered_interval(
    values: list[float], clusters: list[str], seed: int
) -> tuple[float, list[float] | None]:
    """Mean and its interval; all values of a cluster are drawn together.

    Parameters
    ----------
    values : list of float
        Numbers.
    clusters : list of str
        Of each.
    seed : int
        Seed of the resamples.

    Returns
    -------
    mean : float
        Of the values.
    interval : list of two float or None
        Its 95 % interval; None for a single cluster.
    """
    names, code = np.unique(clusters, return_inverse=True)
    sums, counts = np.bincount(code, weights=values), np.bincount(code)
    mean = float(np.mean(values))
    if len(names) < 2:
        return mean, None
    chosen = resamples(len(names), seed)
    return mean, percentiles(sums[chosen].sum(axis=1) / counts[chosen].sum(axis=1))


def _interval(
    statistic: Callable[..., Any], values: Any, seed: int
) -> tuple[float, list[float]]:
    """Estimate with its percentile interval; statistics are along the last axis."""
    values = np.asarray(values, dtype=np.float64)
    resampled = statistic(values[resamples(len(values), seed)], axis=-1)
    return float(statistic(values)), percentiles(resampled)


def resamples(n: int, seed: int) -> np.ndarray:
    """Draw the indices of each resample.

    Parameters
    ----------
    n : int
        Repetitions.
    seed : int
        Seed of the resamples.

    Returns
    -------
    drawn : ndarray of shape (N_RESAMPLES, n)
        Indices of repetitions.
    """
    return np.random.default_rng(seed).integers(n, size=(N_RESAMPLES, n))


def percentiles(resampled: np.ndarray) -> list[float]:
    """Find the ends of an interval.

    Parameters
    ----------
    resampled : ndarray of shape (N_RESAMPLES,)
        A statistic of each resample; those without a value are left out.

    Returns
    -------
    interval : list of two float
        The 95 % interval.
    """
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.nanpercentile(resampled, [tail, 100 - tail])
    return [float(low), float(high)]


def rounded(value: float | None, digits: int = 5) -> float | None:
    """Round to significant digits.

    Parameters
    ----------
    value : float or None
        A number.
    digits : int, default=5
        How many.

    Returns
    -------
    value : float or None
        None where it is not finite.
    """
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.{digits}g}")


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
