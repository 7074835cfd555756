"""Which candidates the demo compares, and with what statistics."""

from typing import Any

import numpy as np
from scipy import stats

from sklearn_relflat._demo.experiment import Demo

N_RESAMPLES = 2000


def accurate_candidates(demo: Demo) -> list[int]:
    """Return the candidates within the tolerance of the best accuracy."""
    accuracy = np.array([c.cv_accuracy for c in demo.candidates])
    return np.flatnonzero(accuracy >= accuracy.max() - demo.config.tol - 1e-12).tolist()


def roles(demo: Demo) -> dict[str, tuple[int, str]]:
    """Candidates that are compared, by letter: the index and what it stands for."""
    candidates = demo.candidates
    everything = list(range(len(candidates)))
    accurate = accurate_candidates(demo)

    def by_accuracy(i: int) -> float:
        return candidates[i].cv_accuracy

    def by_kappa(i: int) -> float:
        return candidates[i].cv_flatness

    chosen = f"flattest accurate one (of {len(accurate)}), chosen by FlattestWithin"
    found = {
        "A": (demo.chosen, chosen),
        "B": (max(everything, key=by_accuracy), "most accurate"),
        "C": (max(accurate, key=by_kappa), "sharpest accurate one"),
        "D": (max(everything, key=by_kappa), "sharpest of all"),
    }
    risks = [candidate.scores.smoothed_risk for candidate in candidates]
    if np.isfinite(risks).any():
        smallest = "one with the smallest smoothed risk of all, without folds"
        found["E"] = (int(np.nanargmin(risks)), smallest)
    return found


def letters(demo: Demo) -> dict[int, str]:
    """Letters of the candidates that have a role, by index."""
    found: dict[int, str] = {}
    for letter, (index, _) in roles(demo).items():
        found[index] = found.get(index, "") + letter
    return found


def spearman(x: Any, y: Any, seed: int = 0) -> tuple[float, float, float]:
    """Spearman's rank correlation with a bootstrap interval of 95 %.

    Parameters
    ----------
    x, y : array-like of shape (n,)
        Pairs of values.
    seed : int, default=0
        Seed of the bootstrap over the pairs.

    Returns
    -------
    rho, low, high : float
        The correlation and the percentiles 2.5 and 97.5 of its resamples. It is taken
        for 0 where all x, or all y, are the same.

    Examples
    --------
    >>> rho, low, high = spearman(range(9), [1, 0, 3, 2, 5, 4, 7, 6, 8])
    >>> round(rho, 3), low < rho < high
    (0.933, True)
    """
    pairs = [np.asarray(values, dtype=float) for values in (x, y)]
    interval = stats.bootstrap(
        pairs,
        _rank_correlation,
        paired=True,
        vectorized=True,
        n_resamples=N_RESAMPLES,
        method="percentile",
        random_state=np.random.default_rng(seed),
    ).confidence_interval
    rho = _rank_correlation(pairs[0], pairs[1])
    return float(rho), float(interval.low), float(interval.high)


def _rank_correlation(x: Any, y: Any, axis: int = -1) -> Any:
    """Rank correlation along an axis; 0 where all values are the same."""
    ranks = [stats.rankdata(values, axis=axis) for values in (x, y)]
    left, right = (r - r.mean(axis=axis, keepdims=True) for r in ranks)
    scale = np.sqrt((left**2).sum(axis=axis) * (right**2).sum(axis=axis))
    covariance = (left * right).sum(axis=axis)
    return np.divide(covariance, scale, out=np.zeros_like(scale), where=scale > 0)


def paired_difference(x: Any, y: Any) -> tuple[float, float]:
    """Mean of x - y and its standard error, for two values per sample.

    Parameters
    ----------
    x, y : array-like of shape (n,)
        Values of the same samples.

    Returns
    -------
    mean, error : float
        The mean difference and its standard error.

    Examples
    --------
    >>> mean, error = paired_difference([1, 3, 2, 4], [0, 1, 1, 2])
    >>> mean, round(3 * error**2, 6)
    (1.5, 0.25)
    """
    difference = np.asarray(x, dtype=float) - np.asarray(y, dtype=float)
    error = difference.std(ddof=1) / np.sqrt(len(difference))
    return float(difference.mean()), float(error)


def clear_sign(mean: float, error: float) -> int:
    """Sign of a difference, or 0 if it is within two standard errors of zero.

    Parameters
    ----------
    mean, error : float
        The difference and its standard error.

    Returns
    -------
    sign : {-1, 0, 1}
        The sign.

    Examples
    --------
    >>> clear_sign(-0.5, 0.1), clear_sign(0.5, 0.3)
    (-1, 0)
    """
    return 0 if abs(mean) <= 2 * error else int(np.sign(mean))
