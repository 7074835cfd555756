"""Fits of candidates: once on the whole sample, or fold by fold."""

from __future__ import annotations

import math
import time
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import clone, is_classifier
from sklearn.exceptions import FitFailedWarning
from sklearn.model_selection import check_cv
from sklearn.utils import _safe_indexing, check_random_state
from sklearn.utils.metadata_routing import _routing_enabled, process_routing
from sklearn.utils.parallel import Parallel, delayed
from sklearn.utils.validation import _check_method_params

if TYPE_CHECKING:
    from sklearn_relflat._robustness.smoothed_result import SmoothedRisk


def say(text: str) -> None:
    """Print a line of progress, as the searches of scikit-learn do."""
    print(text)  # noqa: T201 - only for verbose > 0


class Fits:
    """What is fitted, on what, and how often that has been done.

    Parameters
    ----------
    search : SmoothedRiskSearchCV
        Has the options.
    X, y : array-like of shape (n_samples, ...)
        The sample.
    params : dict
        What the search's fit was given.
    """

    def __init__(self, search: Any, X: Any, y: Any, params: dict[str, Any]) -> None:
        self.search, self.X, self.y = search, X, y
        self.sample_weight = params.get("sample_weight")
        if _routing_enabled():
            routed = process_routing(search, "fit", **params)
            self._fit_params = routed.estimator.fit
            self._split_params = routed.splitter.split
        else:
            groups = params.pop("groups", None)
            self._fit_params, self._split_params = params, {"groups": groups}
        # One seed for all candidates, also where the user gave none.
        self.seed = int(check_random_state(search.random_state).randint(2**31 - 1))
        self.n_fits = 0

    def _parallel(self, tasks: list[Any]) -> list[Any]:
        """Run tasks, as many at a time as the user allows."""
        search = self.search
        self.n_fits += len(tasks)
        return Parallel(n_jobs=search.n_jobs, verbose=max(0, search.verbose - 1))(tasks)

    def fitted(self, candidates: list[dict[str, Any]]) -> list[Fit]:
        """Fit every candidate on the whole sample."""
        search = self.search
        if search.verbose:
            say(f"Fitting {len(candidates)} candidates on the whole sample")
        return self._parallel(
            [
                delayed(fit_candidate)(
                    search.estimator,
                    candidate,
                    self.X,
                    self.y,
                    self._fit_params,
                    error_score=search.error_score,
                )
                for candidate in candidates
            ]
        )

    def fold_losses(self, candidates: list[dict[str, Any]]) -> np.ndarray:
        """Cross-validate candidates: losses of shape (n_candidates, n_folds)."""
        search = self.search
        splitter = check_cv(
            search.cv, self.y, classifier=is_classifier(search.estimator)
        )
        folds = [*splitter.split(self.X, self.y, **self._split_params)]
        if len(folds) < 2:
            raise ValueError(
                f"Expected at least two folds to cross-validate references, got cv="
                f"{search.cv!r} with {len(folds)}. Use cv=5."
            )
        if search.verbose:
            say(f"Cross-validating {len(candidates)} candidates, {len(folds)} folds")
        losses = self._parallel(
            [
                delayed(self.fold_loss)(candidate, train, test)
                for candidate in candidates
                for train, test in folds
            ]
        )
        return np.reshape(losses, (len(candidates), len(folds)))

    def fold_loss(
        self, candidate: dict[str, Any], train: np.ndarray, test: np.ndarray
    ) -> float:
        """Fit a candidate on one part of the sample; return its loss on the other."""
        X, y, weight = self.X, self.y, self.sample_weight
        fit = fit_candidate(
            self.search.estimator,
            candidate,
            _safe_indexing(X, train),
            None if y is None else _safe_indexing(y, train),
            _check_method_params(X, self._fit_params, train),
            error_score=self.search.error_score,
        )
        if fit.estimator is None:
            return math.nan
        return self.risk(
            fit.estimator,
            0.0,
            _safe_indexing(X, test),
            None if y is None else _safe_indexing(y, test),
            None if weight is None else _safe_indexing(weight, test),
        ).mean_loss

    def whole_risk(self, estimator: Any, radius: float | str) -> SmoothedRisk:
        """Smoothed risk of a model on the whole sample."""
        return self.risk(estimator, radius, self.X, self.y, self.sample_weight)

    def risk(
        self, estimator: Any, radius: float | str, X: Any, y: Any, sample_weight: Any
    ) -> SmoothedRisk:
        """Smoothed risk of a model on some samples."""
        # The measures need torch, which importing the package does not load.
        from sklearn_relflat._robustness.smoothed_risk import smoothed_risk

        search = self.search
        return smoothed_risk(
            estimator,
            X,
            y,
            layer=search.layer,
            radius=radius,
            shape=search.shape if radius != 0 else "isotropic",
            n_draws=search.n_draws,
            loss=search.loss,
            sample_weight=sample_weight,
            random_state=self.seed,
        )


@dataclass(frozen=True)
class Fit:
    """A candidate after its fit, None where that failed, and how long it took."""

    estimator: Any
    seconds: float


def fit_candidate(
    estimator: Any,
    candidate: dict[str, Any],
    X: Any,
    y: Any,
    fit_params: dict[str, Any],
    *,
    error_score: float | str,
) -> Fit:
    """Fit a clone of an estimator with some parameters.

    Parameters
    ----------
    estimator : estimator
        Is not changed.
    candidate : dict
        The parameters.
    X, y : array-like
        The sample.
    fit_params : dict
        Options of the fit.
    error_score : "raise" or float
        A number warns where the fit fails.

    Returns
    -------
    fit : Fit
        The fitted clone, and how long it took.
    """
    start = time.perf_counter()
    model = clone(estimator).set_params(**clone(candidate, safe=False))
    try:
        if y is None:
            model.fit(X, **fit_params)
        else:
            model.fit(X, y, **fit_params)
    except Exception as error:
        if error_score == "raise":
            raise
        warnings.warn(
            f"The candidate {candidate!r} could not be fitted and counts as "
            f"{error_score!r}: {error!r}",
            FitFailedWarning,
            stacklevel=2,
        )
        model = None
    return Fit(model, time.perf_counter() - start)
