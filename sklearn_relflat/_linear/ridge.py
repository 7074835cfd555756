"""Ridge regression whose penalty is the relative flatness of least squares.

Conventions
-----------
n samples, m features, t targets; s_i the sample weights, S their sum. With an
intercept, phi_i = x_i - mean(x) and the targets are centred (both means weighted);
without one, phi_i = x_i. The loss is the squared error, averaged over samples (with
weights) and over targets, and coefficient matrices W have shape (m, t)::

    loss     E(W)     = 1/(t S) * sum_i s_i ||y_i - phi_i W||^2
    flatness kappa(W) = 2/(t S) * ||Phi||_F^2 ||W||_F^2
             with       ||Phi||_F^2 = sum_i s_i ||phi_i||^2
    minimise E(W) + delta^2/(2 m) * kappa(W)

Multiplied by t*S this is ridge regression with alpha = delta^2 ||Phi||_F^2 / m.
"""

from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
from sklearn.utils import Bunch, check_X_y
from sklearn.utils.validation import check_is_fitted, validate_data

from sklearn_relflat._linear.checks import check_delta, check_deltas, check_flag
from sklearn_relflat._linear.ridge_solvers import (
    Array,
    LeastSquares,
    least_squares,
    solve,
)
from sklearn_relflat._results.documented import Documented

CHECKS = {
    "accept_sparse": ("csr", "csc"),
    "dtype": np.float64,
    "multi_output": True,
    "y_numeric": True,
}


def _measure_path(problem: LeastSquares, deltas: Array, coefs: Array) -> Bunch:
    """Penalty strength, flatness, loss and expected loss for each radius."""
    n_features, n_targets, _ = coefs.shape
    scale = n_targets * problem.total_weight
    residuals = [
        problem.targets - problem.features @ coefs[:, :, k] for k in range(deltas.size)
    ]
    loss = np.array([np.sum(residual**2) for residual in residuals]) / scale
    kappa = 2 * problem.norm**2 * np.sum(coefs**2, axis=(0, 1)) / scale
    return Bunch(
        alphas=deltas**2 * problem.norm**2 / n_features,
        relative_flatness=kappa,
        loss=loss,
        expected_loss=loss + deltas**2 / (2 * n_features) * kappa,
    )


def relative_flatness_path(
    X: Any,
    y: Any,
    *,
    deltas: ArrayLike,
    fit_intercept: bool = True,
    sample_weight: ArrayLike | None = None,
    return_measures: bool = False,
) -> tuple[Any, ...]:
    """Solutions of :class:`RelativeFlatnessRidge` for many radii at once.

    A dense X is decomposed once (one singular value decomposition for all radii and
    targets); a sparse X is never made dense, and each radius is one LSQR solve.

    Parameters
    ----------
    X : {array-like, sparse matrix} of shape (n_samples, n_features)
        Training data.
    y : array-like of shape (n_samples,) or (n_samples, n_targets)
        Targets.
    deltas : array-like of shape (n_deltas,)
        Radii of the feature perturbation, each >= 0 (sparse X: > 0), in any order.
    fit_intercept : bool, default=True
        Centre X and y first.
    sample_weight : array-like of shape (n_samples,), default=None
        Weights of the samples.
    return_measures : bool, default=False
        Also return what happens to the loss and its flatness along the path.

    Returns
    -------
    deltas : ndarray of shape (n_deltas,)
        The radii, in the order given.
    coefs : ndarray of shape (n_features, n_deltas) or (n_targets, n_features, n_deltas)
        Coefficients along the path.
    intercepts : ndarray of shape (n_deltas,) or (n_targets, n_deltas)
        Intercepts along the path; zeros with ``fit_intercept=False``.
    measures : Bunch
        Only with ``return_measures=True``. Arrays of shape (n_deltas,): `alphas`, the
        equivalent ridge penalties; `relative_flatness`, kappa of the (centred) training
        data; `loss`, the mean squared error on them; `expected_loss`, that error under
        random orthogonal perturbations of radius delta of the features, which equals
        ``loss + delta**2 / (2 * n_features) * relative_flatness``.

    Raises
    ------
    ValueError
        If a radius is negative or not finite, or the data cannot be used; if X is
        sparse and a radius is zero.

    See Also
    --------
    RelativeFlatnessRidge : The estimator for one radius.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.linear_model import Ridge
    >>> from sklearn_relflat import relative_flatness_path
    >>> X, y = load_diabetes(return_X_y=True)
    >>> deltas, coefs, intercepts, measures = relative_flatness_path(
    ...     X, y, deltas=[0.1, 0.3, 1.0], return_measures=True
    ... )
    >>> coefs.shape
    (10, 3)

    Each column is a ridge solution, and both the weights and the flatness shrink:

    >>> ridge = Ridge(alpha=measures.alphas[1]).fit(X, y)
    >>> print(np.allclose(coefs[:, 1], ridge.coef_, rtol=1e-12, atol=0))
    True
    >>> print(np.all(np.diff(measures.relative_flatness) < 0))
    True
    """
    fit_intercept = check_flag("fit_intercept", fit_intercept)
    radii = check_deltas(deltas)
    X, y = check_X_y(X, y, **CHECKS)
    problem = least_squares(X, y, sample_weight, fit_intercept)
    coefs = solve(problem, radii)
    intercepts = problem.target_means[:, None] - np.tensordot(
        problem.feature_means, coefs, axes=1
    )
    coefs = coefs.transpose(1, 0, 2)
    path = (coefs, intercepts) if y.ndim > 1 else (coefs[0], intercepts[0])
    if not return_measures:
        return (radii, *path)
    return (radii, *path, _measure_path(problem, radii, coefs.transpose(1, 0, 2)))


class RidgeBase(Documented, MultiOutputMixin, RegressorMixin, BaseEstimator):
    """What the ridge estimators share: how they keep a solution and predict."""

    def _keep(
        self, problem: LeastSquares, coef: Array, delta: float, one_target: bool
    ) -> None:
        """Set the fitted attributes from coefficients of shape (m, t)."""
        coef = coef.T
        intercept = problem.target_means - coef @ problem.feature_means
        self.coef_ = coef[0] if one_target else coef
        self.intercept_: Any = 0.0
        if self.fit_intercept:
            self.intercept_ = float(intercept[0]) if one_target else intercept
        self.alpha_ = delta**2 * problem.norm**2 / coef.shape[1]

    def predict(self, X: Any) -> Array:
        """Predict the targets.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Samples.

        Returns
        -------
        y_pred : ndarray of shape (n_samples,) or (n_samples, n_targets)
            Predictions.
        """
        check_is_fitted(self)
        X = validate_data(
            self, X, accept_sparse=("csr", "csc"), dtype=np.float64, reset=False
        )
        return X @ self.coef_.T + self.intercept_


class RelativeFlatnessRidge(RidgeBase):
    r"""Least squares regularised by its relative flatness: a scale-free ridge.

    Minimises the mean squared error plus :math:`\frac{\delta^2}{2m}\kappa`, where
    :math:`\kappa` is the relative flatness of the squared loss. This is
    ``Ridge(alpha=delta**2 * norm(X)**2 / n_features)`` with the Frobenius norm of the
    data that the coefficients see (centred when there is an intercept, weighted when
    there are sample weights).

    Parameters
    ----------
    delta : float, default=0.1
        Radius of the feature perturbation relative to the length of each feature
        vector, >= 0. It has no unit: the same value means the same for data in metres
        and in millimetres. ``delta=0`` is ordinary least squares (the solution of
        smallest norm if there are several), for a dense X only.
    fit_intercept : bool, default=True
        Centre X and y first; the intercept is not penalised.

    Attributes
    ----------
    coef_ : ndarray of shape (n_features,) or (n_targets, n_features)
        Coefficients; two-dimensional whenever y is.
    intercept_ : float or ndarray of shape (n_targets,)
        Intercept; 0.0 with ``fit_intercept=False``.
    alpha_ : float
        The equivalent penalty of :class:`sklearn.linear_model.Ridge`.
    n_features_in_ : int
        Number of features seen during fit.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the features, if all of them are strings.

    See Also
    --------
    RelativeFlatnessRidgeCV : Chooses the radius by leave-one-out.
    relative_flatness_path : All solutions for a grid of radii from one decomposition.
    RelativeFlatnessLogisticRegression : The same penalty for classification.

    Notes
    -----
    For :math:`E(w) = \frac1S\sum_i s_i\,(y_i - \langle w, \phi_i\rangle)^2` the Hessian
    is :math:`\frac2S\sum_i s_i\,\phi_i\phi_i^T`, so :math:`\kappa = \frac2S
    \|\Phi\|_F^2\,\|w\|^2` with :math:`\|\Phi\|_F^2 = \sum_i s_i\|\phi_i\|^2`.
    Theorem 5 weighs it with :math:`\delta^2/(2m)`; times S, the objective is that of
    ridge regression with :math:`\alpha = \delta^2\|\Phi\|_F^2/m`. With an intercept,
    :math:`\phi_i = x_i - \bar x` (weighted mean), since the optimal intercept centres
    the data; then nothing depends on the origin of X either.

    For this loss the theorem is exact for every radius, not only for small ones: with
    O a random orthogonal matrix, :math:`\mathrm{E}_O\langle w, O\phi\rangle^2 =
    \|w\|^2\|\phi\|^2/m` and the cross term vanishes. The estimator minimises the
    expected loss under random orthogonal perturbations of its features.

    The fit runs in float64: a singular value decomposition for a dense X; for a sparse
    one LSQR with implicit centring, run to machine precision, so that X is never made
    dense. The scaled problem has a condition number of at most
    :math:`\sqrt{1 + m/\delta^2}` whatever the data, hence both agree with a direct
    solution to about 1e-13 for radii of 0.01 and more. LSQR needs a positive radius
    and warns if it did not converge. A sample of weight zero counts as absent; a single
    sample with an intercept gives zero coefficients.

    References
    ----------
    .. [1] H. Petzka, M. Kamp, L. Adilova, C. Sminchisescu, M. Boley, "Relative Flatness
       and Generalization", NeurIPS 2021, Definition 3 and Theorem 5.

    Examples
    --------
    >>> import itertools
    >>> import numpy as np
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.linear_model import LinearRegression, Ridge
    >>> from sklearn_relflat import RelativeFlatnessRidge
    >>> X, y = load_diabetes(return_X_y=True)
    >>> model = RelativeFlatnessRidge(delta=0.5).fit(X, y)
    >>> ridge = Ridge(alpha=0.5**2 * np.sum((X - X.mean(axis=0)) ** 2) / 10).fit(X, y)
    >>> print(np.allclose(model.coef_, ridge.coef_, rtol=1e-12, atol=0))
    True

    The fitted function does not depend on the scale of X:

    >>> rescaled = RelativeFlatnessRidge(delta=0.5).fit(1000 * X, y)
    >>> print(np.allclose(rescaled.predict(1000 * X), model.predict(X), rtol=1e-12))
    True

    Theorem 5 is exact here. Plain least squares on all perturbed copies (I + delta O)x,
    O running through a group of orthogonal matrices with the second moments of the Haar
    measure (the 48 signed permutations of three features), gives the same coefficients:

    >>> group = [
    ...     np.diag(signs) @ np.eye(3)[list(order)]
    ...     for signs in itertools.product([-1, 1], repeat=3)
    ...     for order in itertools.permutations(range(3))
    ... ]
    >>> X, y = X[:, [2, 3, 8]], y - y.mean()
    >>> copies = np.vstack([X @ (np.eye(3) + 0.5 * O).T for O in group])
    >>> augmented = LinearRegression(fit_intercept=False)
    >>> augmented = augmented.fit(copies, np.tile(y, len(group)))
    >>> model = RelativeFlatnessRidge(delta=0.5, fit_intercept=False).fit(X, y)
    >>> print(np.allclose(augmented.coef_, model.coef_, rtol=1e-12, atol=0))
    True
    """

    def __init__(self, delta: float = 0.1, *, fit_intercept: bool = True) -> None:
        self.delta = delta
        self.fit_intercept = fit_intercept

    def fit(self, X: Any, y: Any, sample_weight: ArrayLike | None = None) -> Self:
        """Fit the model.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Training data.
        y : array-like of shape (n_samples,) or (n_samples, n_targets)
            Targets.
        sample_weight : array-like of shape (n_samples,), default=None
            Non-negative weights; multiplying all of them by a constant changes
            nothing but `alpha_`.

        Returns
        -------
        self : RelativeFlatnessRidge
            The fitted estimator.
        """
        delta = check_delta(self.delta)
        fit_intercept = check_flag("fit_intercept", self.fit_intercept)
        X, y = validate_data(self, X, y, **CHECKS)
        problem = least_squares(X, y, sample_weight, fit_intercept)
        coef = solve(problem, np.array([delta]))[:, :, 0]
        self._keep(problem, coef, delta, np.ndim(y) == 1)
        return self

    def __sklearn_tags__(self) -> Any:
        """Declare the support for sparse input, which needs a penalty."""
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = self.delta != 0
        return tags
