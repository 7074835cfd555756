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

from sklearn_relflat._linear.checks import check_sample_weight

Array = NDArray[np.float64]

# The smallest delta / sqrt(m) for LSQR. Its inverse bounds the condition number; much
# below, steps past convergence amplify round-off in directions that X does not
# determine, and no stopping rule of LSQR notices.
_SMALLEST_DAMPING = 1e-8


@dataclass(frozen=True)
class LeastSquares:
    """Least squares after weighting and centring: the rows are sqrt(s_i) phi_i."""

    features: Any  # (n, m), an array or, for sparse X, a linear operator
    targets: Array  # (n, t)
    norm: float  # Frobenius norm of the features
    empty: NDArray[np.bool_]  # (m,), the features that are zero for every sample
    feature_means: Array  # (m,)
    target_means: Array  # (t,)
    total_weight: float


def _dense_features(
    X: Array, root: Array, means: Array, empty: NDArray[np.bool_]
) -> tuple[Array, float]:
    """Weighted, centred features and their Frobenius norm."""
    features = X - means
    # The mean of a constant column is off by round-off, and the scale-free penalty
    # would not keep that remainder from looking like a feature.
    features[:, empty] = 0.0
    features *= root[:, None]
    return features, float(scipy.linalg.norm(features.ravel()))


def _sparse_features(
    X: Any, root: Array, means: Array, empty: NDArray[np.bool_]
) -> tuple[LinearOperator, float]:
    """As _dense_features, as an operator that subtracts the means implicitly."""
    means = np.where(empty, 0.0, means)
    rows = scipy.sparse.diags_array(root) @ X @ scipy.sparse.diags_array(1.0 - empty)
    columns = rows.T.tocsr()
    operator = LinearOperator(
        X.shape,
        dtype=np.float64,
        matvec=lambda v: rows @ v.ravel() - root * (means @ v.ravel()),
        rmatvec=lambda u: columns @ u.ravel() - means * (root @ u.ravel()),
        matmat=lambda V: rows @ V - np.outer(root, means @ V),
    )
    if not means.any():
        return operator, float(scipy.linalg.norm(rows.data))
    variances = mean_variance_axis(X, axis=0, weights=root**2)[1]
    return operator, float(np.sqrt(np.sum(root**2) * variances[~empty].sum()))


def least_squares(
    X: Any, y: Any, sample_weight: ArrayLike | None, fit_intercept: bool
) -> LeastSquares:
    """Weight and centre validated data."""
    if scipy.sparse.issparse(y):
        raise TypeError("y must be a dense array, got a sparse one. Use y.toarray().")
    weight = check_sample_weight(sample_weight, X.shape[0])
    targets = np.asarray(y, dtype=np.float64).reshape(len(y), -1)
    if not weight.all():
        X, targets, weight = X[weight > 0], targets[weight > 0], weight[weight > 0]
    total, sparse = weight.sum(), scipy.sparse.issparse(X)
    low, high = min_max_axis(X, axis=0) if sparse else (X.min(axis=0), X.max(axis=0))
    feature_means, target_means = np.zeros(X.shape[1]), np.zeros(targets.shape[1])
    empty = (low == 0) & (high == 0)
    if fit_intercept:
        feature_means, target_means = (
            X.T @ (weight / total),
            targets.T @ (weight / total),
        )
        empty = low == high
    build = _sparse_features if sparse else _dense_features
    features, norm = build(X, np.sqrt(weight), feature_means, empty)
    if not np.finfo(float).tiny <= norm * norm < np.inf and not empty.all():
        raise ValueError(
            "The squared Frobenius norm of X must be a positive float64, got the norm "
            f"{norm!r}. Rescale X: the fitted function does not depend on its scale."
        )
    targets = np.sqrt(weight)[:, None] * (targets - target_means)
    return LeastSquares(
        features, targets, norm, empty, feature_means, target_means, float(total)
    )


@dataclass(frozen=True)
class Decomposition:
    """Singular value decomposition of dense features: U diag(norm * s) Vt."""

    U: Array  # (n, r)
    s: Array  # (r,), relative to the norm of the features
    Vt: Array  # (r, m)


def decompose(problem: LeastSquares) -> Decomposition:
    """Decompose dense features into the directions that carry information."""
    if problem.empty.all():
        n_samples, n_features = problem.features.shape
        return Decomposition(
            np.zeros((n_samples, 0)), np.zeros(0), np.zeros((0, n_features))
        )
    U, s, Vt = scipy.linalg.svd(problem.features, full_matrices=False)
    # Directions below round-off carry no information, whatever delta is.
    s = s[s > np.finfo(float).eps * max(problem.features.shape) * problem.norm]
    return Decomposition(U[:, : s.size], s / problem.norm, Vt[: s.size])


def solve_decomposed(
    problem: LeastSquares, parts: Decomposition, dampings: Array
) -> Array:
    """Coefficients (m, t, n_deltas) for all dampings delta / sqrt(m) from one SVD."""
    filters = parts.s[:, None] / (parts.s[:, None] ** 2 + dampings**2)
    scores = (parts.U.T @ problem.targets)[:, :, None] * filters[:, None, :]
    coefs = np.tensordot(parts.Vt, scores, axes=(0, 0))
    coefs[problem.empty] = 0.0
    return coefs / (problem.norm or 1.0)


def _solve_svd(problem: LeastSquares, dampings: Array) -> Array:
    """Coefficients (m, t, n_deltas) for all dampings from one SVD."""
    return solve_decomposed(problem, decompose(problem), dampings)


def _solve_lsqr(problem: LeastSquares, dampings: Array) -> Array:
    """As _solve_svd, by LSQR (X is only multiplied) for each target and damping."""
    n_features, n_targets = problem.features.shape[1], problem.targets.shape[1]
    if dampings.min() < _SMALLEST_DAMPING:
        raise ValueError(
            "For a sparse X delta must be at least "
            f"{_SMALLEST_DAMPING * np.sqrt(n_features):.1g}, got "
            f"{dampings.min() * np.sqrt(n_features):.3g}. Use a larger delta, or "
            "X.toarray() for least squares without a penalty."
        )
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
                f"delta={dampings[k] * np.sqrt(n_features):.3g}. Increase delta "
                "or rescale the columns of X (MaxAbsScaler keeps it sparse).",
                ConvergenceWarning,
                stacklevel=4,
            )
        coefs[:, t, k] = coef / problem.norm
    return coefs


def solve(problem: LeastSquares, deltas: Array) -> Array:
    """Ridge coefficients (m, t, n_deltas), one for each radius."""
    n_features = problem.features.shape[1]
    if problem.empty.all():
        return np.zeros((n_features, problem.targets.shape[1], deltas.size))
    solver = _solve_svd if isinstance(problem.features, np.ndarray) else _solve_lsqr
    coefs = solver(problem, deltas / np.sqrt(n_features))
    coefs[problem.empty] = 0.0
    return coefs
