"""Cross-entropy of a linear model plus its relative flatness, with the gradient.

Conventions
-----------
n samples, m features, K classes; s_i the sample weights, scaled to sum to one;
phi_i = x_i, as given. W of shape (K, m) has one row per class, p_i = softmax(W x_i + b)
are the probabilities and D_kl = ||w_k - w_l||^2. With G = W W^T::

    loss     E     = -sum_i s_i log p_i[y_i]
    flatness kappa = sum_i s_i ||x_i||^2 (diag(G).p_i - p_i^T G p_i)
                   = sum_i s_i ||x_i||^2 * 1/2 p_i^T D p_i
    minimise E + delta^2/(2 m) * kappa

The second form of kappa has no differences of large numbers and is never negative. Two
classes have one free row: the row of the first class is held at zero, which leaves
p(1 - p)||w||^2 for the quadratic form. The intercept b is neither penalised nor
perturbed.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from scipy.special import log_softmax
from sklearn.utils.extmath import row_norms

Array = NDArray[np.float64]


class LogisticObjective:
    """Mean cross-entropy plus strength * kappa, and its gradient."""

    def __init__(
        self,
        X: Any,
        codes: NDArray[np.intp],
        weight: Array,
        *,
        n_classes: int,
        strength: float,
        fit_intercept: bool,
    ) -> None:
        self.X = X
        self.codes = codes
        self.weight = weight
        self.strength = strength
        self.fit_intercept = fit_intercept
        self.n_classes = n_classes
        self.n_rows = 1 if n_classes == 2 else n_classes
        self.lengths = weight * row_norms(X, squared=True)
        self.one_hot = np.eye(n_classes)[codes]

    def start(self) -> Array:
        """All coefficients and intercepts zero."""
        return np.zeros(self.n_rows * (self.X.shape[1] + self.fit_intercept))

    def unpack(self, theta: Array) -> tuple[Array, Array]:
        """Free coefficients (n_rows, m) and intercepts (n_rows,)."""
        n_weights = self.n_rows * self.X.shape[1]
        coef = theta[:n_weights].reshape(self.n_rows, -1)
        intercept = theta[n_weights:] if self.fit_intercept else np.zeros(self.n_rows)
        return coef, intercept

    def parts(self, theta: Array) -> tuple[float, float, Array, Array]:
        """Loss, kappa, their probabilities (n, K) and the expected distances (n, K)."""
        coef, intercept = self.unpack(theta)
        scores = self.X @ coef.T + intercept
        if self.n_rows == 1:
            coef = np.vstack([np.zeros_like(coef), coef])
            scores = np.hstack([np.zeros_like(scores), scores])
        log_proba = log_softmax(scores, axis=1)
        proba = np.exp(log_proba)
        distances = proba @ cdist(coef, coef, "sqeuclidean")
        loss = -self.weight @ log_proba[np.arange(len(self.codes)), self.codes]
        kappa = 0.5 * self.lengths @ np.sum(proba * distances, axis=1)
        return float(loss), float(kappa), proba, distances

    def __call__(self, theta: Array) -> tuple[float, Array]:
        """Value and gradient."""
        loss, kappa, proba, distances = self.parts(theta)
        # kappa moves with the probabilities: d(p^T D p / 2)/dz = p * (D p - p^T D p).
        centred = distances - np.sum(proba * distances, axis=1, keepdims=True)
        by_score = self.weight[:, None] * (proba - self.one_hot)
        by_score += self.strength * self.lengths[:, None] * proba * centred
        # ... and with the distances: 2 M W, M the sum of diag(p) - p p^T, a Laplacian.
        pairs = proba.T @ (self.lengths[:, None] * proba)
        np.fill_diagonal(pairs, 0.0)
        laplacian = np.diag(pairs.sum(axis=1)) - pairs
        free = slice(self.n_classes - self.n_rows, None)
        coef, _ = self.unpack(theta)
        gradient = (self.X.T @ by_score[:, free]).T
        gradient += 2 * self.strength * laplacian[free, free] @ coef
        parts = [gradient.ravel()]
        if self.fit_intercept:
            parts.append(by_score[:, free].sum(axis=0))
        return loss + self.strength * kappa, np.concatenate(parts)
