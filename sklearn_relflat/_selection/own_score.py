"""The score of a model itself, with its standard error over the samples."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.base import is_classifier, is_regressor

# Rounding that tells a score of single precision from the one that is known.
_SAME = 1e-5


@dataclass(frozen=True)
class OwnScore:
    """A score with its standard error; NaN for what is not known.

    Attributes
    ----------
    value, stderr : float
        The score, and its standard error over the samples.
    note : str
        Why one of them is missing.
    """

    value: float
    stderr: float
    note: str = ""


def own_score(model: Any, X: Any, y: Any, sample_weight: Any = None) -> OwnScore:
    """Score a fitted model by its own ``score``.

    Parameters
    ----------
    model : estimator
        A fitted model.
    X : array-like of shape (n_samples, ...)
        Samples.
    y : array-like of shape (n_samples,) or (n_samples, n_outputs) or None
        Targets.
    sample_weight : array-like of shape (n_samples,), default=None
        Weights of the samples.

    Returns
    -------
    score : OwnScore
        The error is that of accuracy or R^2, whichever of them the score is.

    Examples
    --------
    Accuracy p has the standard error of a share:

    >>> import numpy as np
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> X, y = load_iris(return_X_y=True)
    >>> score = own_score(LogisticRegression(max_iter=1000).fit(X, y), X, y)
    >>> p = score.value
    >>> bool(np.isclose(score.stderr, np.sqrt(p * (1 - p) / 149)))
    True
    """
    if y is None:
        return OwnScore(math.nan, math.nan, "no score without y")
    if not hasattr(model, "score"):
        kind = type(model).__name__
        return OwnScore(math.nan, math.nan, f"{kind} has no method score")
    weight = None if sample_weight is None else np.asarray(sample_weight, dtype=float)
    try:
        value = _scored(model, X, y, weight)
        terms = _terms(model, np.asarray(y), np.asarray(model.predict(X)), weight)
    except (AttributeError, TypeError, ValueError) as error:
        return OwnScore(math.nan, math.nan, f"no score: {error}")
    if terms is None or abs(terms[0] - value) > _SAME * (1 + abs(value)):
        return OwnScore(value, math.nan, "no error of a score of the model's own kind")
    return OwnScore(value, terms[1])


def _scored(model: Any, X: Any, y: Any, weight: np.ndarray | None) -> float:
    """Score, with weights if there are any."""
    if weight is None:
        return float(model.score(X, y))
    return float(model.score(X, y, sample_weight=weight))


def _terms(
    model: Any, y: np.ndarray, predicted: np.ndarray, weight: np.ndarray | None
) -> tuple[float, float] | None:
    """Accuracy or R^2, with its standard error over the samples."""
    share = np.full(len(y), 1.0 / len(y)) if weight is None else weight / weight.sum()
    if is_classifier(model):
        hits = (predicted.reshape(len(y), -1) == y.reshape(len(y), -1)).all(axis=1)
        value = float(share @ hits)
        influence = hits - value
    elif is_regressor(model):
        y = y.reshape(len(y), -1).astype(float)
        residual = (y - predicted.reshape(y.shape)) ** 2
        deviation = (y - share @ y) ** 2
        total = share @ deviation
        if not np.all(total > 0):
            return None
        lost = (share @ residual) / total
        value = float(np.mean(1.0 - lost))
        # Of a ratio a / b, the linear part is (da - (a / b) db) / b.
        influence = ((lost * deviation - residual) / total).mean(axis=1)
    else:
        return None
    error = mean_error(influence, weight)
    return (value, error) if math.isfinite(error) else None


def mean_error(values: np.ndarray, weight: Any = None) -> float:
    """Return the standard error of a mean, of independent values.

    Parameters
    ----------
    values : ndarray of shape (n,)
        Values.
    weight : array-like of shape (n,), default=None
        Their weights.

    Returns
    -------
    error : float
        Infinite for fewer than two values that count.
    """
    share = np.ones(len(values)) if weight is None else np.asarray(weight, dtype=float)
    share = share / share.sum()
    n = np.count_nonzero(share)
    if n < 2:
        return math.inf
    spread = float((share**2) @ (values - share @ values) ** 2)
    return math.sqrt(spread * n / (n - 1))
