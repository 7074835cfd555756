"""How much of the local density around a sample carries another label."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import logsumexp
from scipy.stats import norm

from sklearn_relflat._density.feature_metric import FeatureMetric

# Samples whose surroundings are looked at, and how many at a time.
_MAX_QUERIES = 1000
_STEP = 250


@dataclass(frozen=True)
class OtherLabels:
    """Share of the density's mass that carries another label.

    Attributes
    ----------
    share, low, high : float
        Mean over samples, with an interval of about 95 %.
    by_chance : float
        What the share would be if labels had nothing to do with the features.
    n_queries : int
        Samples that were looked at.
    """

    share: float
    low: float
    high: float
    by_chance: float
    n_queries: int


def other_labels(
    Z: np.ndarray,
    labels: np.ndarray,
    radius: float,
    *,
    shape: str = "isotropic",
    sample_weight: np.ndarray | None = None,
) -> OtherLabels:
    """Look for other labels around each sample, by the density of all other samples.

    Parameters
    ----------
    Z : ndarray of shape (n_samples, n_features)
        Features.
    labels : ndarray of shape (n_samples,) or (n_samples, n_outputs)
        Labels.
    radius : float
        Radius of the local densities, as `density_radius` finds it.
    shape : str, default="isotropic"
        Their shape.
    sample_weight : ndarray of shape (n_samples,), default=None
        Weights of the samples.

    Returns
    -------
    found : OtherLabels
        The share. The interval is Wilson's for a share of as many independent samples:
        a mean of numbers between 0 and 1 varies at most as much as that.

    Raises
    ------
    ValueError
        If all features are zero.

    Notes
    -----
    The mass at sample i that comes from sample j is the weight of j times the Gaussian
    of covariance ``(radius ||z_j||)^2 / m`` around z_j, at z_i. The sample itself is
    left out, copies of it are not: one with another label is what is looked for.

    Examples
    --------
    >>> import numpy as np
    >>> Z = np.array([[1.0, 0.0], [1.1, 0.0], [0.0, 5.0], [0.0, 5.5]])
    >>> round(other_labels(Z, np.array([0, 0, 1, 1]), 0.2).share, 3)
    0.0
    >>> round(other_labels(Z, np.array([0, 1, 0, 1]), 0.2).share, 3)
    1.0
    """
    codes = np.unique(labels, axis=0, return_inverse=True)[1].reshape(len(Z))
    points = FeatureMetric.fit(Z, shape, codes).whitened(Z)
    weight = np.ones(len(Z)) if sample_weight is None else sample_weight
    norms = np.sqrt((points**2).sum(axis=1))
    if not norms.any():
        raise ValueError(
            f"Expected features that are not all zero, got {len(Z)} samples of "
            f"{Z.shape[1]} features that are: perturbations are relative to their "
            "norms, and there are no local densities. Choose another layer."
        )
    norms = norms.clip(norms[norms > 0].min(), None)
    m = points.shape[1]
    with np.errstate(divide="ignore"):
        offset = np.log(weight) - m * np.log(norms)
    rows = np.flatnonzero(weight > 0)
    if len(rows) > _MAX_QUERIES:
        rng = np.random.RandomState(0)
        rows = np.sort(rng.choice(rows, _MAX_QUERIES, replace=False))
    centred = points - points.mean(axis=0)
    squares = (centred**2).sum(axis=1)
    shares = []
    for start in range(0, len(rows), _STEP):
        part = rows[start : start + _STEP]
        distances = squares[part, None] + squares - 2.0 * centred[part] @ centred.T
        mass = offset - distances.clip(0) * m / (2.0 * (radius * norms) ** 2)
        mass[np.arange(len(part)), part] = -np.inf
        mass -= logsumexp(mass, axis=1, keepdims=True)
        shares.append((np.exp(mass) * (codes[part, None] != codes)).sum(axis=1))
    counted = weight[rows] / weight[rows].sum()
    share = float(counted @ np.concatenate(shares))
    low, high = _wilson(share, 1.0 / float((counted**2).sum()))
    frequency = np.bincount(codes, weights=weight) / weight.sum()
    return OtherLabels(share, low, high, 1.0 - float((frequency**2).sum()), len(rows))


def labels_are_classes(labels: Any) -> bool:
    """Whether targets can be compared as labels: one or a few for each sample.

    Parameters
    ----------
    labels : ndarray of shape (n_samples, ...) or None
        Targets of a classifier.

    Returns
    -------
    are_classes : bool
        False for a label for each position (pixel, token).
    """
    if labels is None:
        return False
    return labels.ndim == 1 or (labels.ndim == 2 and labels.dtype.kind == "f")


def _wilson(share: float, n: float) -> tuple[float, float]:
    """Return Wilson's interval of a share of n independent samples."""
    z = float(norm.ppf(0.975))
    center = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    # A share of exactly 0 or 1 keeps its own end, which rounding would move.
    return min(max(center - half, 0.0), share), max(min(center + half, 1.0), share)
