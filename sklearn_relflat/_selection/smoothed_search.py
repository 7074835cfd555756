"""A search that fits every candidate once and judges it by its smoothed risk."""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any, ClassVar, Self

import numpy as np
from sklearn.metrics import check_scoring
from sklearn.model_selection import GridSearchCV, ParameterGrid, ParameterSampler
from sklearn.utils import get_tags
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.metadata_routing import MetadataRouter, MethodMapping
from sklearn.utils.validation import indexable

from sklearn_relflat._results.documented import Documented
from sklearn_relflat._selection.fits import Fits
from sklearn_relflat._selection.judged import JudgedCandidates


class SmoothedRiskSearchCV(Documented, GridSearchCV):
    r"""Search that fits each candidate once and cross-validates only a few of them.

    Every candidate is fitted on the whole sample and judged by its `smoothed_risk`
    there. Which radius is right is calibrated: some candidates that overfit, the
    references, are cross-validated, and the radius is the one at which their smoothed
    risk is their cross-validated loss. That takes ``N + K n_references`` fits where
    `GridSearchCV` takes ``N K + 1``.

    Parameters
    ----------
    estimator : estimator
        A model that `smoothed_risk` supports, or a pipeline that ends in one.
    param_grid : dict or list of dict
        Candidates, as for `GridSearchCV`; distributions as for `RandomizedSearchCV`
        if `n_iter` is given.
    n_iter : int, default=None
        Number of candidates to draw; None takes the whole grid.
    radius : "calibrated", "density" or float, default="calibrated"
        How the radius is chosen. "density" takes `density_radius` of the features of
        each candidate and needs no references.
    n_references : int, default=3
        Number of candidates that are cross-validated: those with the smallest training
        losses.
    cv : int, cross-validation generator or iterable, default=5
        Folds for the references.
    layer : str or None, default="input"
        Whose features are perturbed, see `smoothed_risk`.
    shape : {"isotropic", "within_class", "covariance"}, default="isotropic"
        Covariance of the perturbations.
    loss : str, torch criterion or callable, default=None
        The loss; None is the one that a model was trained with. Name one where the
        candidates were trained with different losses.
    n_draws : int, default=16
        Perturbations of each sample.
    refit : bool, default=True
        Whether the chosen candidate, which is fitted on the whole sample already, is
        kept as `best_estimator_`.
    n_jobs : int, default=None
        Fits that run at the same time.
    error_score : "raise" or float, default="raise"
        What a candidate counts, in units of minus the loss, that cannot be fitted.
    verbose : int, default=0
        As for `GridSearchCV`.
    random_state : int, RandomState instance or None, default=0
        Seed of the perturbations, which all candidates share, and of `n_iter`.

    Attributes
    ----------
    cv_results_ : dict of str to ndarray of shape (n_candidates,)
        ``params`` and ``param_*``, ``mean_fit_time``, ``mean_test_score`` (minus the
        smoothed risk) with ``rank_test_score``, ``smoothed_risk`` with
        ``smoothed_risk_stderr``, ``training_loss``, ``is_reference``,
        ``cross_validated_loss`` with ``cross_validated_loss_stderr`` (NaN but for
        references), and ``is_unresolved``: whether the errors leave open which of this
        candidate and the best is the better one.
    best_index_ : int
        The candidate with the smallest smoothed risk.
    best_params_ : dict
        Its parameters.
    best_score_ : float
        Minus its smoothed risk.
    best_estimator_ : estimator
        The candidate itself, fitted on the whole sample.
    radius_ : float or None
        Radius that all candidates were judged at; None if each had its own, or the
        choice is by cross-validation.
    radius_interval_ : tuple of float or None
        About 95 %, from the errors of the cross-validated losses and the spread of the
        references.
    references_ : list of Reference
        What the calibration rests on.
    is_calibrated_ : bool
        False where calibration was impossible and all candidates were cross-validated.
    unresolved_ : ndarray of int
        Candidates whose order against the best is not resolved.
    n_fits_ : int
        Number of fits.

    Raises
    ------
    ValueError
        If a parameter is not valid, or no candidate has a finite risk.

    Warns
    -----
    CalibrationWarning
        If no reference reaches its cross-validated loss at any radius: then every
        candidate is cross-validated, as by `GridSearchCV`.

    See Also
    --------
    SmoothedRiskScorer : The same judge in scikit-learn's own searches.
    smoothed_risk : The number.

    Notes
    -----
    `score` is that of the best estimator (accuracy or R^2), and so are ``classes_`` and
    ``n_features_in_``. As all candidates share
    their perturbations, differences between them are known better than their values;
    ``is_unresolved`` is set where a difference from the best is below twice its
    standard error, or changes its sign within `radius_interval_`.

    Examples
    --------
    >>> from sklearn.datasets import load_breast_cancer
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.preprocessing import StandardScaler
    >>> from sklearn_relflat import SmoothedRiskSearchCV
    >>> X, y = load_breast_cancer(return_X_y=True)
    >>> X, y = StandardScaler().fit_transform(X)[:200], y[:200]
    >>> grid = {"C": [0.001, 0.01, 0.1, 1.0, 10.0, 100.0, 1000.0, 10000.0]}
    >>> search = SmoothedRiskSearchCV(LogisticRegression(max_iter=10000), grid)
    >>> search.fit(X, y).best_params_, search.n_fits_
    ({'C': 1.0}, 23)
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "estimator": [HasMethods(["fit"])],
        "param_grid": [dict, list],
        "n_iter": [Interval(Integral, 1, None, closed="left"), None],
        "radius": [
            StrOptions({"calibrated", "density"}),
            Interval(Real, 0, None, closed="left"),
        ],
        "n_references": [Interval(Integral, 1, None, closed="left")],
        "cv": ["cv_object"],
        "layer": [str, None],
        "shape": [StrOptions({"isotropic", "within_class", "covariance"})],
        "n_draws": [Interval(Integral, 4, None, closed="left")],
        "refit": ["boolean"],
        "n_jobs": [Integral, None],
        "error_score": [StrOptions({"raise"}), Real],
        "verbose": ["verbose"],
        "random_state": ["random_state"],
    }

    # What `GridSearchCV` asks for and this search has no use for.
    scoring = None
    pre_dispatch = "2*n_jobs"
    return_train_score = False
    multimetric_ = False

    def __init__(
        self,
        estimator: Any,
        param_grid: Any,
        *,
        n_iter: int | None = None,
        radius: float | str = "calibrated",
        n_references: int = 3,
        cv: Any = 5,
        layer: str | None = "input",
        shape: str = "isotropic",
        loss: Any = None,
        n_draws: int = 16,
        refit: bool = True,
        n_jobs: int | None = None,
        error_score: float | str = "raise",
        verbose: int = 0,
        random_state: Any = 0,
    ) -> None:
        self.estimator = estimator
        self.param_grid = param_grid
        self.n_iter = n_iter
        self.radius = radius
        self.n_references = n_references
        self.cv = cv
        self.layer = layer
        self.shape = shape
        self.loss = loss
        self.n_draws = n_draws
        self.refit = refit
        self.n_jobs = n_jobs
        self.error_score = error_score
        self.verbose = verbose
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None, **params: Any) -> Self:
        """Fit every candidate, calibrate the radius and choose.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Samples.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs), default=None
            Targets.
        **params : dict
            Parameters of the estimator's ``fit``, or whatever is routed. Sample weights
            also count in the losses.

        Returns
        -------
        SmoothedRiskSearchCV
            The fitted search.

        Raises
        ------
        TypeError
            If the estimator is a bare torch module, which cannot be fitted.
        ValueError
            If there is no candidate, or none has a finite risk.
        """
        # Not at the top: the searches are imported without torch.
        from sklearn_relflat._data.estimator_data import final_model
        from sklearn_relflat._models.bare_modules import refuse_bare

        refuse_bare(final_model(self.estimator), type(self).__name__)
        self._validate_params()
        X, y = indexable(X, y)
        self.scorer_ = check_scoring(self.estimator, allow_none=True)
        run = Fits(self, X, y, params)
        candidates = [*self._candidates()]
        if not candidates:
            raise ValueError(
                f"Expected at least one candidate, got none from {self.param_grid!r}."
            )
        fitted = run.fitted(candidates)
        judged = JudgedCandidates(run, candidates, fitted)
        if self.radius == "calibrated":
            judged.calibrate(self.n_references)
        judged.judge()
        self._keep(judged)
        return self

    def __sklearn_tags__(self) -> Any:
        """Return the tags of the estimator, also those of several targets."""
        tags = super().__sklearn_tags__()
        own, targets = tags.target_tags, get_tags(self.estimator).target_tags
        own.multi_output = targets.multi_output
        own.single_output = targets.single_output
        return tags

    def get_metadata_routing(self) -> MetadataRouter:
        """Say where metadata go: to the fits, the splits and `score`.

        Returns
        -------
        routing : MetadataRouter
            As for `GridSearchCV`, but that nothing is scored during the fit.
        """
        router = MetadataRouter(owner=self)
        router.add(
            estimator=self.estimator,
            method_mapping=MethodMapping().add(caller="fit", callee="fit"),
        )
        router.add(
            splitter=self.cv,
            method_mapping=MethodMapping().add(caller="fit", callee="split"),
        )
        return router.add(
            scorer=check_scoring(self.estimator, allow_none=True),
            method_mapping=MethodMapping().add(caller="score", callee="score"),
        )

    def _candidates(self) -> Iterable[dict[str, Any]]:
        """Parameters of the candidates."""
        if self.n_iter is None:
            return ParameterGrid(self.param_grid)
        return ParameterSampler(
            self.param_grid, self.n_iter, random_state=self.random_state
        )

    def _keep(self, judged: JudgedCandidates) -> None:
        """Set what a fitted search has."""
        self.cv_results_ = judged.results()
        self.best_index_ = judged.best
        self.best_params_ = judged.candidates[judged.best]
        self.best_score_ = float(self.cv_results_["mean_test_score"][judged.best])
        self.radius_ = judged.radius
        self.radius_interval_ = judged.interval
        self.references_ = judged.references
        self.is_calibrated_ = judged.radius is not None and bool(judged.references)
        self.unresolved_ = np.flatnonzero(self.cv_results_["is_unresolved"])
        self.n_fits_ = judged.run.n_fits
        self.n_splits_ = 1
        if self.refit:
            self.best_estimator_ = judged.fitted[judged.best].estimator
            self.refit_time_ = 0.0
            if hasattr(self.best_estimator_, "feature_names_in_"):
                self.feature_names_in_ = self.best_estimator_.feature_names_in_
