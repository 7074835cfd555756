"""Weighted, centred least squares with a penalty relative to the size of the data."""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg
import scipy.sparse
from numpy.typing import ArrayLike, NDArray
from scipy.sparse.linalg import LinearOperator, lsqr
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.sparsefuncs import mean_variance_axis, min_max_axis

from sklearn_relflat._linear_checks import check_sample_weight

Array = NDArray[np.float64]


@dataclass(frozen=True)
class LeastSquares:
    """Least squares after weighting and centring: the rows are sqrt(s_i) phi_i."""

    features: Any  # (n, m), an array or, for sparse X, a linear operator
    targets: Array  # (n, t)
    norm: float  # Frobenius norm of the features
    feature_means: Array  # (m,)
    target_means: Array  # (t,)
    total_weight: float


def _dense_features(
    X: Array, weight: Array, centre: bool
) -> tuple[Array, float, Array]:
    """Weighted, centred features, their Frobenius norm and the column means."""
    root = np.sqrt(weight)[:, None]
    if not centre:
        features = root * X
        return features, float(scipy.linalg.norm(features)), np.zeros(X.shape[1])
    means = np.average(X, axis=0, weights=weight)
    features = X - means
    # The mean of a constant column is off by round-off, and the scale-free penalty
    # would not keep that remainder from looking like a feature.
    features[:, X.min(axis=0) == X.max(axis=0)] = 0.0
    features *= root
    return features, float(scipy.linalg.norm(features)), means


def _sparse_features(
    X: Any, weight: Array, centre: bool
) -> tuple[LinearOperator, float, Array]:
    """As _dense_features, as an operator that subtracts the means implicitly."""
    n_samples, n_features = X.shape
    root = np.sqrt(weight)
    means = np.zeros(n_features)
    variances = np.zeros(n_features)
    if centre:
        low, high = min_max_axis(X, axis=0)
        if (low == high).any():
            X = (X @ scipy.sparse.diags_array((low != high) * 1.0)).tocsr()
        means, variances = mean_variance_axis(X, axis=0, weights=weight)
    rows = scipy.sparse.diags_array(root) @ X
    columns = rows.T.tocsr()
    operator = LinearOperator(
        (n_samples, n_features),
        dtype=np.float64,
        matvec=lambda v: rows @ v - root * (means @ v),
        rmatvec=lambda u: columns @ u - means * (root @ u),
        matmat=lambda V: rows @ V - np.outer(root, means @ V),
    )
    norm = (
        np.sqrt(weight.sum() * variances.sum())
        if centre
        else scipy.linalg.norm(rows.data)
    )
    return operator, float(norm), means


def least_squares(
    X: Any, y: Any, sample_weight: ArrayLike | None, fit_intercept: bool
) -> LeastSquares:
    """Weight and centre validated data."""
    if scipy.sparse.issparse(y):
        raise TypeError("y must be a dense array, got a sparse one. Use y.toarray().")
    weight = check_sample_weight(sample_weight, X.shape[0])
    used = weight > 0
    X, weight = X[used], weight[used]
    targets = np.asarray(y, dtype=np.float64).reshape(len(y), -1)[used]
    build = _sparse_features if scipy.sparse.issparse(X) else _dense_features
    features, norm, feature_means = build(X, weight, fit_intercept)
    target_means = np.zeros(targets.shape[1])
    if fit_intercept:
        target_means = np.average(targets, axis=0, weights=weight)
    if not np.isfinite(norm * norm):
        raise ValueError(
            "The squared Frobenius norm of X must be a finite float64, got the norm "
            f"{norm!r}. Rescale X: the fitted function does not depend on its scale."
        )
    targets = np.sqrt(weight)[:, None] * (targets - target_means)
    return LeastSquares(
        features, targets, norm, feature_means, target_means, float(weight.sum())
    )


def _solve_svd(problem: LeastSquares, dampings: Array) -> Array:
    """Coefficients (m, t, n_deltas) for all dampings from one SVD."""
    U, s, Vt = scipy.linalg.svd(problem.features, full_matrices=False)
    # Directions below round-off carry no information, whatever delta is.
    s = s[s > np.finfo(float).eps * max(problem.features.shape) * problem.norm]
    U, Vt = U[:, : s.size], Vt[: s.size]
    s = s / problem.norm
    filters = s[:, None] / (s[:, None] ** 2 + dampings**2)
    scores = (U.T @ problem.targets)[:, :, None] * filters[:, None, :]
    return np.tensordot(Vt, scores, axes=(0, 0)) / problem.norm


def _solve_lsqr(problem: LeastSquares, dampings: Array) -> Array:
    """As _solve_svd, by LSQR (X is only multiplied) for each target and damping."""
    n_features, n_targets = problem.features.shape[1], problem.targets.shape[1]
    coefs = np.zeros((n_features, n_targets, dampings.size))
    operator = problem.features * (1.0 / problem.norm)
    for t, k in np.ndindex(n_targets, dampings.size):
        # Zero tolerances: stop at machine precision, as a direct solver would.
        coef, reason = lsqr(
            operator,
            problem.targets[:, t],
            damp=dampings[k],
            atol=0.0,
            btol=0.0,
            conlim=0.0,
            iter_lim=1000 + 20 * min(operator.shape),
        )[:2]
        if reason == 7:
            warnings.warn(
                "LSQR did not reach machine precision on the sparse X with "
                f"delta={dampings[k] * np.sqrt(n_features)!r}. Increase delta or "
                "rescale the columns of X (MaxAbsScaler keeps it sparse).",
                ConvergenceWarning,
                stacklevel=4,
            )
        coefs[:, t, k] = coef / problem.norm
    return coefs


def solve(problem: LeastSquares, deltas: Array) -> Array:
    """Ridge coefficients (m, t, n_deltas), one for each radius."""
    n_features = problem.features.shape[1]
    if problem.norm == 0.0:
        return np.zeros((n_features, problem.targets.shape[1], deltas.size))
    solver = _solve_svd if isinstance(problem.features, np.ndarray) else _solve_lsqr
    return solver(problem, deltas / np.sqrt(n_features))
