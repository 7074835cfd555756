"""The choice of a candidate from a search: the flattest among the accurate."""

import numbers
from collections.abc import Mapping
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator


class CannotChooseError(ValueError):
    """No candidate can be chosen; the results of the search are at hand.

    Attributes
    ----------
    cv_results_ : dict of str to array-like
        As the search made them.
    """

    def __init__(self, message: str, cv_results: Mapping[str, Any]) -> None:
        super().__init__(
            f"{message} The search is complete: this error has its results as "
            "cv_results_."
        )
        self.cv_results_ = dict(cv_results)


class FlattestWithin(BaseEstimator):
    """Refit rule of a search: the flattest of the candidates that are about the best.

    For ``refit=`` of `GridSearchCV` and its relatives. Flatness alone would choose a
    model that has learned nothing, so accuracy comes first: the candidates within a
    tolerance of the best mean test score, and among these the one whose *training*
    splits are the flattest. Ties go to the better test score, then to the candidate
    that comes first.

    Parameters
    ----------
    tol : float or "1se", default=0.01
        Largest distance to the best mean test score, in its own units; "1se" is one
        standard error over the folds of the best candidate's score.
    metric : str, default="accuracy"
        Key of the score in ``scoring``. Larger is better, as for all scorers.
    flatness : str, default="relative_flatness"
        Key of the flatness in ``scoring``: a `RelativeFlatnessScorer`, or any scorer
        that is larger for flatter models.
    split : {"train", "test"}, default="train"
        Column to read the flatness from. "train" needs ``return_train_score=True``.
        "test" is right for a `TrainingFlatnessScorer`, which reads what the model
        noted in training whatever split it is asked about, and for nothing else.

    See Also
    --------
    RelativeFlatnessScorer : Computes the flatness of each split.
    TrainingFlatnessScorer : Reads what was recorded in training.

    Notes
    -----
    The standard error of the best candidate's score is
    ``std(scores, ddof=1) / sqrt(n_splits)``. Candidates with a score that is not finite
    are left out.

    With a callable ``refit`` scikit-learn sets no ``best_score_``, and a search over
    several metrics has no working ``score``: use ``search.best_estimator_.score``.

    Examples
    --------
    The second candidate is 0.01 less accurate than the best, and flatter:

    >>> from sklearn_relflat import FlattestWithin
    >>> cv_results = {
    ...     "mean_test_accuracy": [0.96, 0.95, 0.60],
    ...     "mean_train_relative_flatness": [-30.0, -20.0, -0.1],
    ... }
    >>> FlattestWithin(tol=0.02)(cv_results)
    1
    >>> FlattestWithin(tol=0.0)(cv_results)
    0
    """

    def __init__(
        self,
        tol: float | str = 0.01,
        *,
        metric: str = "accuracy",
        flatness: str = "relative_flatness",
        split: str = "train",
    ) -> None:
        self.tol = tol
        self.metric = metric
        self.flatness = flatness
        self.split = split

    def __call__(self, cv_results: Mapping[str, Any]) -> int:
        """Choose a candidate.

        Parameters
        ----------
        cv_results : dict of str to array-like of shape (n_candidates,)
            The ``cv_results_`` of a search.

        Returns
        -------
        best_index : int
            Index of the candidate.

        Raises
        ------
        CannotChooseError
            A ValueError: if a parameter is not valid, a column is missing, or no
            candidate has finite scores. Its attribute ``cv_results_`` has the results
            of the search, which are not lost.
        """
        try:
            return self._choose(cv_results)
        except ValueError as error:
            # scikit-learn keeps no results of a search whose refit= raises.
            raise CannotChooseError(str(error), cv_results) from error

    def _choose(self, cv_results: Mapping[str, Any]) -> int:
        """Choose a candidate, or say why none can be chosen."""
        if self.split not in ("train", "test"):
            raise ValueError(
                f'Expected split to be "train" or "test", got {self.split!r}.'
            )
        score = self._column(cv_results, f"mean_test_{self.metric}")
        flatness = self._column(cv_results, f"mean_{self.split}_{self.flatness}")
        finite = np.isfinite(score) & np.isfinite(flatness)
        if not finite.any():
            raise ValueError(
                f"Expected a candidate with finite {self.metric!r} and "
                f"{self.flatness!r}, got none among {len(score)}. Pass "
                'error_score="raise" to see what went wrong.'
            )
        best = int(np.flatnonzero(finite)[score[finite].argmax()])
        # The tolerance is meant in decimals: 0.95 is within 0.01 of 0.96.
        margin = self._tolerance(cv_results, best) + 1e-12 * abs(score[best])
        accurate = np.flatnonzero(finite & (score >= score[best] - margin))
        # The last key is the first to sort by; what still ties stays in order.
        order = np.lexsort((-score[accurate], -flatness[accurate]))
        return int(accurate[order[0]])

    def _column(self, cv_results: Mapping[str, Any], key: str) -> np.ndarray:
        """Return a column of the results."""
        if key in cv_results:
            return np.asarray(cv_results[key], dtype=np.float64)
        there = sorted(name for name in cv_results if name.startswith("mean_t"))
        advice = "Name the keys of scoring= as metric= and flatness=."
        if key.startswith("mean_train_"):
            advice = (
                "Pass return_train_score=True to the search, or split='test' if "
                f"{self.flatness!r} is a TrainingFlatnessScorer. {advice}"
            )
        raise ValueError(f"Expected {key!r} in cv_results_, got {there}. {advice}")

    def _tolerance(self, cv_results: Mapping[str, Any], best: int) -> float:
        """Return the tolerance in units of the score."""
        if self.tol == "1se":
            return self._standard_error(cv_results, best)
        tol: Any = self.tol
        is_number = isinstance(tol, numbers.Real) and not isinstance(tol, bool)
        if not is_number or not tol >= 0:
            raise ValueError(
                f'Expected tol to be a number of at least 0, or "1se", got {tol!r}.'
            )
        return float(tol)

    def _standard_error(self, cv_results: Mapping[str, Any], best: int) -> float:
        """Return the standard error over folds of the best candidate's score."""
        ending = f"_test_{self.metric}"
        scores = [
            float(values[best])
            for key, values in cv_results.items()
            if key.startswith("split") and key.endswith(ending)
            # "accuracy" is also the ending of "balanced_accuracy".
            if key.removeprefix("split").removesuffix(ending).isdigit()
        ]
        if len(scores) < 2:
            raise ValueError(
                f'Expected at least two folds for tol="1se", got {len(scores)} columns '
                f"'split*{ending}'. Use more folds, or a number as tol."
            )
        return float(np.std(scores, ddof=1) / np.sqrt(len(scores)))
