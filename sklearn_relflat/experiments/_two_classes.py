"""Two classes, and the linear models of them whose flatness has a closed form."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.datasets import make_classification
from sklearn.linear_model import LogisticRegression, Ridge

from sklearn_relflat.datasets import make_gaussian_features

CROSS_ENTROPY, SQUARED_ERROR = "cross-entropy", "squared error"
N_FEATURES = 10


def draw_classes(
    source: str, n_samples: int, separation: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draw a sample of ten features.

    Parameters
    ----------
    source : {"gaussians", "make_classification"}
        The paper's four Gaussians in feature space, as features; or scikit-learn's
        clusters with three informative and four redundant features, one label in a
        hundred drawn at random.
    n_samples : int
        Samples, independent of each other: parts of them are samples of one
        distribution.
    separation : float
        Of the classes.
    seed : int
        Of distribution and samples.

    Returns
    -------
    X : ndarray of shape (n_samples, 10)
        Features.
    y : ndarray of shape (n_samples,)
        Labels, 0 or 1.
    """
    if source == "gaussians":
        data = make_gaussian_features(
            n_samples, N_FEATURES, class_sep=separation, random_state=seed
        )
        return data.features, data.y
    return make_classification(
        n_samples,
        N_FEATURES,
        n_informative=3,
        n_redundant=4,
        class_sep=separation,
        random_state=seed,
    )


def fit_linear(
    loss: str, penalty: float, X: np.ndarray, y: np.ndarray
) -> tuple[Any, np.ndarray]:
    """Fit a linear model.

    Parameters
    ----------
    loss : {"cross-entropy", "squared error"}
        Logistic regression, or ridge regression on -1 and +1.
    penalty : float
        1 / C of the first, alpha of the second.
    X : ndarray of shape (n_samples, n_features)
        Features.
    y : ndarray of shape (n_samples,)
        Labels, 0 or 1.

    Returns
    -------
    model : estimator
        The fitted model.
    targets : ndarray of shape (n_samples,)
        What it was fitted to.
    """
    if loss == CROSS_ENTROPY:
        return LogisticRegression(C=1 / penalty, tol=1e-6, max_iter=10_000).fit(X, y), y
    targets = 2.0 * y - 1.0
    return Ridge(penalty).fit(X, targets), targets


def mean_loss(model: Any, loss: str, X: np.ndarray, y: np.ndarray) -> float:
    """Loss of a model of `fit_linear`.

    Parameters
    ----------
    model : estimator
        The model.
    loss : str
        Its loss.
    X : ndarray of shape (n_samples, n_features)
        Features.
    y : ndarray of shape (n_samples,)
        Labels, 0 or 1.

    Returns
    -------
    loss : float
        Mean over the samples.
    """
    output = X @ np.ravel(model.coef_) + model.intercept_
    sign = 2.0 * y - 1.0
    if loss == CROSS_ENTROPY:
        return float(np.logaddexp(0.0, -sign * output).mean())
    return float(((sign - output) ** 2).mean())
