r"""Ridge regression that chooses its radius by leave-one-out in closed form.

Conventions
-----------
Those of :mod:`sklearn_relflat._linear.ridge`. With d = delta / sqrt(m), U the left
singular vectors of the weighted and centred features and s their singular values over
||Phi||_F, the residual operator of the ridge regression, intercept included, is::

    R = d^2 U diag(1 / (s^2 + d^2)) U^T + N,    N = I - U U^T - u u^T

where u_i = sqrt(s_i / S) with an intercept and u = 0 without one. The weighted error of
sample i, for the model fitted without it and with the same alpha, is
(R y)_i / R_ii, which is exact.
"""

from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils.validation import validate_data

from sklearn_relflat._linear.checks import (
    check_deltas,
    check_flag,
    check_sample_weight,
)
from sklearn_relflat._linear.ridge import CHECKS, RidgeBase
from sklearn_relflat._linear.ridge_solvers import (
    Array,
    Decomposition,
    LeastSquares,
    decompose,
    least_squares,
    solve_decomposed,
)

_EPS = float(np.finfo(float).eps)


def _leave_one_out(
    problem: LeastSquares, parts: Decomposition, dampings: Array, shares: Array
) -> Array:
    """Weighted leave-one-out errors (n, t, n_deltas); shares are the u_i^2."""
    n_samples, n_targets = problem.targets.shape
    scores = parts.U.T @ problem.targets
    squares = parts.U**2
    null_diagonal = 1.0 - squares.sum(axis=1) - shares
    # N is a projection, hence its row i is zero where N_ii is: what is left there is
    # round-off, which would swamp d^2 / (s^2 + d^2) for a small radius.
    round_off = 10 * _EPS * max(problem.features.shape)
    full = parts.s.size + bool(shares.any()) >= n_samples
    interpolated = full | (null_diagonal <= round_off)
    # The targets are centred, so that u u^T takes nothing more from them.
    null_part = problem.targets - parts.U @ scores
    errors = np.empty((n_samples, n_targets, dampings.size))
    for k, damping in enumerate(dampings):
        inverse = 1.0 / (parts.s**2 + damping**2)
        part = parts.U @ (inverse[:, None] * scores)
        diagonal = squares @ inverse
        # Where N does not act, d^2 cancels, and the limit for delta = 0 is that of the
        # least squares solution of smallest norm.
        errors[interpolated, :, k] = part[interpolated] / diagonal[interpolated, None]
        free = ~interpolated
        numerator = damping**2 * part[free] + null_part[free]
        denominator = damping**2 * diagonal[free] + null_diagonal[free]
        errors[free, :, k] = numerator / denominator[:, None]
    return errors


def _flattest_best(errors: Array, deltas: Array, round_off: float) -> int:
    """Position of the largest radius among those of the smallest mean error."""
    tied = errors <= errors.min() * (1 + 1e3 * _EPS) + round_off
    return int(np.argmax(np.where(tied, deltas, -1.0)))


class RelativeFlatnessRidgeCV(RidgeBase):
    r"""Relative flatness ridge that chooses its radius by leave-one-out.

    The counterpart of :class:`sklearn.linear_model.RidgeCV` for
    :class:`RelativeFlatnessRidge`: one singular value decomposition gives the solutions
    and the leave-one-out errors for all radii, without any refit.

    Parameters
    ----------
    deltas : array-like of shape (n_deltas,), default=(0.01, 0.03, 0.1, 0.3, 1.0)
        Radii of the feature perturbation to choose from, each >= 0, in any order.
    fit_intercept : bool, default=True
        Centre X and y first; the intercept is not penalised.
    store_cv_results : bool, default=False
        Whether to keep the error of every sample in `cv_results_`.

    Attributes
    ----------
    delta_ : float
        The radius with the smallest mean error; the largest of them where errors are
        equal up to round-off, because it is the flattest.
    alpha_ : float
        The equivalent penalty of :class:`sklearn.linear_model.Ridge`.
    coef_ : ndarray of shape (n_features,) or (n_targets, n_features)
        Coefficients, fitted on all samples; two-dimensional whenever y is.
    intercept_ : float or ndarray of shape (n_targets,)
        Intercept; 0.0 with ``fit_intercept=False``.
    best_score_ : float
        Negative mean squared leave-one-out error of `delta_`, averaged over samples
        (with their weights) and over targets.
    cv_results_ : ndarray of shape (n_samples, n_deltas)
        Squared leave-one-out error of each sample for each radius, without its weight;
        with ``store_cv_results=True`` only. Several targets make the shape
        (n_samples, n_targets, n_deltas).
    n_features_in_ : int
        Number of features seen during fit.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the features, if all of them are strings.

    See Also
    --------
    RelativeFlatnessRidge : The model for one radius.
    relative_flatness_path : The solutions for all radii.

    Notes
    -----
    The penalty of a radius is :math:`\alpha = \delta^2\|\Phi\|_F^2/m` with
    :math:`\|\Phi\|_F` the norm of the whole training sample, m the number of features.
    **Leaving a sample out keeps this** :math:`\alpha` **fixed**: the model without
    sample i is ``Ridge(alpha)`` on the others, centred anew, not
    ``RelativeFlatnessRidge(delta)``, whose norm would lack sample i. The two differ by
    about 1/n in the penalty. With R the operator that maps the targets to the
    residuals of the fit, the error of sample i is :math:`(Ry)_i/R_{ii}` [1]_, exactly;
    for ``delta=0`` it is the limit :math:`\alpha\to0`, which belongs to the solution of
    smallest norm.

    A weighted sample is left out as a whole, hence an integer weight is a repetition
    for the fit, but not for the choice of the radius: leaving out one of two equal
    samples is easier than leaving out both. ``RidgeCV`` does the same. A sample of
    weight zero takes part in neither; its entry of `cv_results_` is the squared error
    of the fit.

    X is dense. For a sparse one use ``GridSearchCV(RelativeFlatnessRidge(), ...)``.

    References
    ----------
    .. [1] G. Golub, M. Heath, G. Wahba, "Generalized Cross-Validation as a Method for
       Choosing a Good Ridge Parameter", Technometrics 21, 1979 (Allen's PRESS).
    .. [2] H. Petzka, M. Kamp, L. Adilova, C. Sminchisescu, M. Boley, "Relative Flatness
       and Generalization", NeurIPS 2021, Definition 3 and Theorem 5.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.linear_model import Ridge
    >>> from sklearn.model_selection import LeaveOneOut, cross_val_score
    >>> from sklearn_relflat import RelativeFlatnessRidgeCV
    >>> X, y = load_diabetes(return_X_y=True)
    >>> model = RelativeFlatnessRidgeCV(deltas=[0.01, 0.1, 1.0]).fit(X, y)
    >>> model.delta_
    0.1

    The closed form is what refits without one sample at a time give:

    >>> ridge, scoring = Ridge(model.alpha_), "neg_mean_squared_error"
    >>> refits = cross_val_score(ridge, X, y, cv=LeaveOneOut(), scoring=scoring)
    >>> print(np.isclose(model.best_score_, refits.mean(), rtol=1e-10, atol=0))
    True
    """

    def __init__(
        self,
        deltas: ArrayLike = (0.01, 0.03, 0.1, 0.3, 1.0),
        *,
        fit_intercept: bool = True,
        store_cv_results: bool = False,
    ) -> None:
        self.deltas = deltas
        self.fit_intercept = fit_intercept
        self.store_cv_results = store_cv_results

    def fit(self, X: Any, y: Any, sample_weight: ArrayLike | None = None) -> Self:
        """Choose the radius and fit the model.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Training data.
        y : array-like of shape (n_samples,) or (n_samples, n_targets)
            Targets; one radius is chosen for all of them.
        sample_weight : array-like of shape (n_samples,), default=None
            Non-negative weights; multiplying all of them by a constant changes
            nothing but `alpha_`.

        Returns
        -------
        self : RelativeFlatnessRidgeCV
            The fitted estimator.

        Raises
        ------
        ValueError
            If a parameter or the data cannot be used, or fewer than two samples have a
            weight, so that none can be left out.
        """
        deltas = check_deltas(self.deltas)
        fit_intercept = check_flag("fit_intercept", self.fit_intercept)
        store = check_flag("store_cv_results", self.store_cv_results)
        X, y = validate_data(self, X, y, **{**CHECKS, "accept_sparse": False})
        weight = check_sample_weight(sample_weight, len(X))
        kept = weight > 0
        if kept.sum() < 2:
            raise ValueError(
                "Leave-one-out expects at least two samples of positive weight, got "
                f"n_samples={kept.sum()}. Use RelativeFlatnessRidge with a radius of "
                "your choice."
            )
        problem = least_squares(X, y, weight, fit_intercept)
        parts = decompose(problem)
        dampings = deltas / np.sqrt(X.shape[1])
        coefs = solve_decomposed(problem, parts, dampings)
        shares = fit_intercept * weight[kept] / problem.total_weight
        errors = _leave_one_out(problem, parts, dampings, shares)
        means = np.sum(errors**2, axis=(0, 1)) / (
            problem.total_weight * errors.shape[1]
        )
        targets = np.asarray(y, dtype=np.float64).reshape(len(X), -1)
        size = np.average(np.mean(targets**2, axis=1), weights=weight)
        best = _flattest_best(means, deltas, (1e3 * _EPS) ** 2 * size)
        self.delta_ = float(deltas[best])
        self.best_score_ = -float(means[best])
        self._keep(problem, coefs[:, :, best], self.delta_, np.ndim(y) == 1)
        if store:
            errors /= np.sqrt(weight[kept])[:, None, None]
            # Nothing changes where a sample without weight is left out.
            results = targets[:, :, None] - problem.target_means[:, None]
            results = results - np.tensordot(X - problem.feature_means, coefs, axes=1)
            results[kept] = errors
            self.cv_results_ = (results[:, 0] if np.ndim(y) == 1 else results) ** 2
        return self
