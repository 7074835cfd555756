"""Logistic regression whose penalty is the relative flatness of the cross-entropy."""

import numbers
import warnings
from typing import Any, Self

import numpy as np
import scipy.linalg
import scipy.sparse
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_scalar
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from sklearn_relflat._linear.checks import check_delta, check_flag, check_sample_weight
from sklearn_relflat._linear.logistic_objective import Array, LogisticObjective
from sklearn_relflat._results.documented import Documented


def _class_weights(
    class_weight: Any, classes: NDArray[Any], codes: NDArray[np.intp], weight: Array
) -> Array:
    """Weight of each class; "balanced" counts sample weights, not samples."""
    if isinstance(class_weight, str) and class_weight == "balanced":
        totals = np.bincount(codes, weights=weight)
        return totals.sum() / (classes.size * totals)
    weights = compute_class_weight(class_weight, classes=classes, y=classes[codes])
    if not np.isfinite(weights).all() or (weights <= 0).any():
        raise ValueError(
            "class_weight must give every class a positive finite weight, got "
            f"{class_weight!r}. Leave out the samples of a class that must not count."
        )
    return weights


def _minimise(objective: LogisticObjective, max_iter: int, tol: float) -> Any:
    """L-BFGS from zero; warns if it stopped before the gradient was small."""
    # Thirty curvature pairs cost little beside a pass over the data and save about a
    # third of the iterations on the bundled data sets.
    result = minimize(
        objective,
        objective.start(),
        jac=True,
        method="L-BFGS-B",
        options={
            "maxiter": max_iter,
            "maxfun": 50 * max_iter,
            "maxcor": 30,
            "maxls": 50,
            "gtol": tol,
            "ftol": 64 * np.finfo(float).eps,
        },
    )
    if not result.success:
        warnings.warn(
            f"L-BFGS stopped after {result.nit} iterations with the largest gradient "
            f"component {np.max(np.abs(result.jac)):.2g}, tol={tol!r} was asked for "
            f"({result.message}). Increase max_iter, increase tol or delta, or "
            "standardise the features.",
            ConvergenceWarning,
            stacklevel=3,
        )
    return result


def _root_mean_square(X: Any, weight: Array) -> float:
    """Weighted root mean square of the entries of X; 1.0 if all are zero."""
    rows = scipy.sparse.diags_array(np.sqrt(weight / X.shape[1])) @ X
    entries = rows.data if scipy.sparse.issparse(rows) else rows.ravel()
    norm = scipy.linalg.norm(entries)
    return float(norm) or 1.0


class RelativeFlatnessLogisticRegression(Documented, ClassifierMixin, BaseEstimator):
    r"""Logistic regression regularised by its relative flatness.

    Minimises the mean cross-entropy plus :math:`\frac{\delta^2}{2m}\kappa`, where
    :math:`\kappa` is the relative flatness of the cross-entropy, in closed form: to
    second order, the expected cross-entropy under random orthogonal perturbations of
    radius delta of the features.

    Parameters
    ----------
    delta : float, default=0.1
        Radius of the feature perturbation relative to the length of each feature
        vector, >= 0. ``delta=0`` is logistic regression without a penalty.
    fit_intercept : bool, default=True
        Add an intercept, which is neither penalised nor perturbed.
    class_weight : dict, "balanced" or None, default=None
        Weights of the classes, multiplied with the sample weights. "balanced" gives
        every class the same total weight.
    max_iter : int, default=5000
        Largest number of L-BFGS iterations.
    tol : float, default=1e-6
        The fit stops when no component of the gradient exceeds it. The gradient is that
        of the mean loss for features scaled to mean square one.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Class labels.
    coef_ : ndarray of shape (1, n_features) or (n_classes, n_features)
        Coefficients; one row, that of ``classes_[1]``, for two classes.
    intercept_ : ndarray of shape (1,) or (n_classes,)
        Intercepts; zeros with ``fit_intercept=False``.
    relative_flatness_ : float
        kappa of the cross-entropy on the training data, weighted as they were; its part
        of the objective is ``delta**2 / (2 * n_features_in_) * relative_flatness_``.
    loss_ : float
        Mean cross-entropy on the training data, weighted as they were.
    n_iter_ : int
        Number of L-BFGS iterations.
    n_features_in_ : int
        Number of features seen during fit.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the features, if all of them are strings.

    See Also
    --------
    RelativeFlatnessRidge : The same penalty for regression, where it is convex.

    Notes
    -----
    The feature vector phi is the row of X as given. So the fit does not depend on the
    scale of X, on a rotation of it or on the order of the classes, but it depends on
    its origin: centre or standardise X first, unless its origin means something.

    The penalty :math:`\kappa = \sum_i s_i \|x_i\|^2 (\mathrm{diag}(G) \cdot p_i -
    p_i^T G p_i)`, :math:`G = WW^T`, is not convex, and it vanishes as the probabilities
    saturate. Hence

    - there can be several local minima. The fit starts from zero and returns the point
      at which L-BFGS stopped, normally a local minimum in the sense of `tol`;
    - where the classes can be separated linearly, the objective tends to zero as the
      weights grow, for every delta. A large enough delta keeps L-BFGS at a minimum
      with small weights; with a smaller one it stops where the gradient falls below
      `tol`, as logistic regression without a penalty does.

    Rows of `coef_` and entries of `intercept_` sum to zero over the classes if there
    are more than two. A sample of weight zero counts as absent.

    References
    ----------
    .. [1] H. Petzka, M. Kamp, L. Adilova, C. Sminchisescu, M. Boley, "Relative Flatness
       and Generalization", NeurIPS 2021, Definition 3 and Theorem 5.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_breast_cancer
    >>> from sklearn.preprocessing import scale
    >>> from sklearn_relflat import RelativeFlatnessLogisticRegression
    >>> X, y = load_breast_cancer(return_X_y=True)
    >>> X = scale(X)
    >>> model = RelativeFlatnessLogisticRegression(delta=1.0).fit(X, y)

    For two classes kappa is the mean of ``|x|^2 p (1 - p)`` times ``|w|^2``:

    >>> p = model.predict_proba(X)[:, 1]
    >>> kappa = np.mean(np.sum(X**2, axis=1) * p * (1 - p)) * np.sum(model.coef_**2)
    >>> print(np.isclose(kappa, model.relative_flatness_, rtol=1e-12))
    True

    A larger radius gives a flatter model with a higher training loss:

    >>> wider = RelativeFlatnessLogisticRegression(delta=3.0).fit(X, y)
    >>> print(wider.relative_flatness_ < model.relative_flatness_)
    True
    >>> print(wider.loss_ > model.loss_)
    True
    """

    def __init__(
        self,
        delta: float = 0.1,
        *,
        fit_intercept: bool = True,
        class_weight: Any = None,
        max_iter: int = 5000,
        tol: float = 1e-6,
    ) -> None:
        self.delta = delta
        self.fit_intercept = fit_intercept
        self.class_weight = class_weight
        self.max_iter = max_iter
        self.tol = tol

    def fit(self, X: Any, y: Any, sample_weight: ArrayLike | None = None) -> Self:
        """Fit the model.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Training data.
        y : array-like of shape (n_samples,)
            Class labels.
        sample_weight : array-like of shape (n_samples,), default=None
            Non-negative weights; only their ratios matter.

        Returns
        -------
        self : RelativeFlatnessLogisticRegression
            The fitted estimator.

        Raises
        ------
        ValueError
            If a parameter is out of range, or the data cannot be used.
        """
        delta = check_delta(self.delta)
        fit_intercept = check_flag("fit_intercept", self.fit_intercept)
        max_iter = check_scalar(self.max_iter, "max_iter", numbers.Integral, min_val=1)
        tol = check_scalar(
            self.tol, "tol", numbers.Real, min_val=0, include_boundaries="neither"
        )
        if not np.isfinite(tol):
            raise ValueError(f"tol must be a finite number > 0, got {tol!r}.")
        X, y = validate_data(self, X, y, accept_sparse=("csr", "csc"), dtype=np.float64)
        check_classification_targets(y)
        weight = check_sample_weight(sample_weight, X.shape[0])
        X, y, weight = X[weight > 0], y[weight > 0], weight[weight > 0]
        classes, codes = np.unique(y, return_inverse=True)
        if classes.size < 2:
            raise ValueError(
                "y must have samples of at least two classes, got one class, "
                f"{classes[0]!r}."
            )
        weight = (
            weight * _class_weights(self.class_weight, classes, codes, weight)[codes]
        )
        weight /= weight.sum()
        scale = _root_mean_square(X, weight)
        objective = LogisticObjective(
            X / scale,
            codes,
            weight,
            n_classes=classes.size,
            strength=delta**2 / (2 * X.shape[1]),
            fit_intercept=fit_intercept,
        )
        result = _minimise(objective, max_iter, tol)
        coef, intercept = objective.unpack(result.x)
        self.classes_ = classes
        self.coef_ = coef / scale
        self.intercept_ = intercept.copy()
        self.loss_, self.relative_flatness_ = objective.parts(result.x)[:2]
        self.n_iter_ = int(result.nit)
        return self

    def _scores(self, X: Any) -> Array:
        """Logits of shape (n_samples, 1) or (n_samples, n_classes)."""
        check_is_fitted(self)
        X = validate_data(
            self, X, accept_sparse=("csr", "csc"), dtype=np.float64, reset=False
        )
        return X @ self.coef_.T + self.intercept_

    def decision_function(self, X: Any) -> Array:
        """Logits of the classes.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Samples.

        Returns
        -------
        scores : ndarray of shape (n_samples,) or (n_samples, n_classes)
            For two classes the logit of ``classes_[1]``.
        """
        scores = self._scores(X)
        return scores[:, 0] if scores.shape[1] == 1 else scores

    def predict(self, X: Any) -> NDArray[Any]:
        """Predict the most probable class.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Samples.

        Returns
        -------
        y_pred : ndarray of shape (n_samples,)
            Labels.
        """
        scores = self._scores(X)
        if scores.shape[1] == 1:
            return self.classes_[(scores[:, 0] > 0).astype(np.intp)]
        return self.classes_[scores.argmax(axis=1)]

    def predict_log_proba(self, X: Any) -> Array:
        """Logarithms of the class probabilities.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Samples.

        Returns
        -------
        log_proba : ndarray of shape (n_samples, n_classes)
            In the order of `classes_`.
        """
        scores = self._scores(X)
        if scores.shape[1] == 1:
            scores = np.hstack([np.zeros_like(scores), scores])
        return log_softmax(scores, axis=1)

    def predict_proba(self, X: Any) -> Array:
        """Class probabilities.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Samples.

        Returns
        -------
        proba : ndarray of shape (n_samples, n_classes)
            In the order of `classes_`.
        """
        return np.exp(self.predict_log_proba(X))

    def __sklearn_tags__(self) -> Any:
        """Declare the support for sparse input."""
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags
