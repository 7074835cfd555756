"""The choice of a candidate from a search: the flattest among the accurate."""

import numbers
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator

from sklearn_relflat._results.documented import Documented

#: What scikit-learn calls the score whose negative is the log-loss.
LOG_LOSS = "neg_log_loss"

#: From this ratio of training losses on, the flattest of the accurate candidates mostly
#: had a higher held-out log-loss than the most accurate one (see `benchmarks/`).
UNEQUAL = 2.0

#: What "auto" takes for the largest relative distance (see the experiment `selection`).
ALIKE = 0.5

# Scikit-learn's log-loss takes no probability for smaller than that, nor do we a loss.
_SMALLEST_LOSS = float(np.finfo(np.float64).eps)


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


@dataclass(frozen=True)
class Admitted:
    """What a rule compares.

    Attributes
    ----------
    score, flatness, loss : ndarray of shape (n_candidates,)
        Of all candidates; larger flatness is flatter, an unknown loss is NaN.
    best : int
        The candidate with the best score.
    margin : float
        Largest distance to its score.
    admitted : ndarray of int
        The candidates whose flatness is compared.
    """

    score: np.ndarray
    flatness: np.ndarray
    loss: np.ndarray
    best: int
    margin: float
    admitted: np.ndarray

    @property
    def chosen(self) -> int:
        """The flattest; of those that tie, the best, then the first."""
        among = self.admitted
        # The last key is the first to sort by; what still ties stays in order.
        order = np.lexsort((-self.score[among], -self.flatness[among]))
        return int(among[order[0]])


class FlattestWithin(Documented, BaseEstimator):
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
    loss : str, default=None
        Key in ``scoring`` of the negative of the loss that was minimised in training,
        such as scikit-learn's "neg_log_loss": the negative of its train column is the
        training loss. Needs ``return_train_score=True``. None takes "neg_log_loss" if
        it is there, and otherwise nothing is known of the training losses.
    loss_tol : float, "auto" or None, default="auto"
        Largest relative distance of a candidate's training loss to the median training
        loss of the accurate candidates: only those within a factor of ``1 + loss_tol``
        of it, above or below, are compared. "auto" is 0.5 where training losses are
        known; where they are not, it warns if flatness made a choice. None compares
        all accurate candidates, and warns if flatness made a choice between training
        losses that lie further apart than a factor of 2, or are not known.

    See Also
    --------
    RelativeFlatnessScorer : Computes the flatness of each split.
    TrainingFlatnessScorer : Reads what was recorded in training.
    sklearn_relflat.callbacks.StopAtTrainingLoss : Trains nets to equal training loss.
    SmoothedRiskSearchCV : Judges candidates of any training loss, by loss and flatness.

    Notes
    -----
    The standard error of the best candidate's score is
    ``std(scores, ddof=1) / sqrt(n_splits)``. Candidates with a score that is not finite
    are left out.

    An over-confident model has a small training loss, and is flat because of it, so
    flatness compares models of about the same training loss only. Training losses span
    decades, so that ``loss_tol`` is a ratio: with 0.5, losses from 2/3 of the median to
    3/2 of it are alike. The median is the training loss of one of the candidates: of
    two in the middle that of the more accurate one. So one is always left; with a small
    `loss_tol` it may be the only one, and then it is not flatness that chose. The
    factor of 2 is from an experiment (``benchmarks/flatness_at_unequal_loss.py``): from
    there on the flattest of the accurate candidates mostly had a higher held-out
    log-loss than the most accurate one, and below it there was no clear difference.
    That 0.5 is the default is from the experiment ``selection``: without it the choice
    was worse in held-out log-loss (0.060 nats above cross-validation against 0.020,
    within one standard error of the best accuracy).

    With a callable ``refit`` scikit-learn sets no ``best_score_``, and a search over
    several metrics has no working ``score``: use ``search.best_estimator_.score``.

    Examples
    --------
    The second candidate is 0.01 less accurate than the best, and flatter:

    >>> from sklearn_relflat import FlattestWithin
    >>> cv_results = {
    ...     "mean_test_accuracy": [0.96, 0.95, 0.60],
    ...     "mean_train_relative_flatness": [-30.0, -20.0, -0.1],
    ...     "mean_train_neg_log_loss": [-0.10, -0.12, -0.90],
    ... }
    >>> FlattestWithin(tol=0.02)(cv_results)
    1
    >>> FlattestWithin(tol=0.0)(cv_results)
    0

    The flattest of three accurate candidates owes that to a training loss of nearly
    zero, and is not compared with the other two:

    >>> cv_results = {
    ...     "mean_test_accuracy": [0.96, 0.95, 0.96],
    ...     "mean_train_relative_flatness": [-30.0, -20.0, -0.1],
    ...     "mean_train_neg_log_loss": [-0.20, -0.25, -0.0001],
    ... }
    >>> FlattestWithin(tol=0.02)(cv_results)
    1
    """

    def __init__(
        self,
        tol: float | str = 0.01,
        *,
        metric: str = "accuracy",
        flatness: str = "relative_flatness",
        split: str = "train",
        loss: str | None = None,
        loss_tol: float | str | None = "auto",
    ) -> None:
        self.tol = tol
        self.metric = metric
        self.flatness = flatness
        self.split = split
        self.loss = loss
        self.loss_tol = loss_tol

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
        found = self._admitted(cv_results)
        # Where flatness changed nothing, nothing hangs on what it compared.
        if self._limit(found.loss) is None and found.chosen != found.best:
            _warn_if_unequal(found.loss[found.admitted])
        return found.chosen

    def _admitted(self, cv_results: Mapping[str, Any]) -> Admitted:
        """Find the candidates whose flatness is compared."""
        if self.split not in ("train", "test"):
            raise ValueError(
                f'Expected split to be "train" or "test", got {self.split!r}.'
            )
        score = self._column(cv_results, f"mean_test_{self.metric}")
        flatness = self._column(cv_results, f"mean_{self.split}_{self.flatness}")
        loss = self._training_loss(cv_results)
        finite = np.isfinite(score) & np.isfinite(flatness)
        names = f"{self.metric!r} and {self.flatness!r}"
        limit = self._limit(loss)
        if limit is not None:
            finite &= np.isfinite(loss)
            names = f"{names} and training loss"
        if not finite.any():
            raise ValueError(
                f"Expected a candidate with finite {names}, got none among "
                f'{len(score)}. Pass error_score="raise" to see what went wrong.'
            )
        best = int(np.flatnonzero(finite)[score[finite].argmax()])
        # The tolerance is meant in decimals: 0.95 is within 0.01 of 0.96.
        margin = self._tolerance(cv_results, best) + 1e-12 * abs(score[best])
        admitted = np.flatnonzero(finite & (score >= score[best] - margin))
        if limit is not None:
            admitted = _near_the_median(admitted, loss, score, limit)
        return Admitted(score, flatness, loss, best, margin, admitted)

    def _training_loss(self, cv_results: Mapping[str, Any]) -> np.ndarray:
        """Return the training losses, NaN where they are not known."""
        key = self.loss
        if key is None and f"mean_train_{LOG_LOSS}" in cv_results:
            key = LOG_LOSS
        self._check_loss_tol(key)
        if key is None:
            return np.full(len(cv_results[f"mean_test_{self.metric}"]), np.nan)
        loss = -self._column(cv_results, f"mean_train_{key}")
        if (loss < 0).any():
            raise ValueError(
                f"Expected the negative of a loss as {key!r}, larger is better, got "
                f"{-loss.min():.4g} in 'mean_train_{key}'. Name a score such as "
                f"{LOG_LOSS!r} in scoring=, and its key as loss=."
            )
        return np.maximum(loss, _SMALLEST_LOSS)

    def _limit(self, loss: np.ndarray) -> float | None:
        """Return the largest relative distance of training losses, None for any."""
        tol: Any = self.loss_tol
        if isinstance(tol, str):
            return ALIKE if np.isfinite(loss).any() else None
        return tol

    def _check_loss_tol(self, key: str | None) -> None:
        """Raise where loss_tol is not valid, or there is no loss for it."""
        tol: Any = self.loss_tol
        if tol is None or (isinstance(tol, str) and tol == "auto"):
            return
        is_number = isinstance(tol, numbers.Real) and not isinstance(tol, bool)
        if not is_number or not 0 <= tol < np.inf:
            raise ValueError(
                "Expected loss_tol to be a finite number of at least 0, 'auto', or "
                f"None, got {tol!r}."
            )
        if key is None:
            raise ValueError(
                f"Expected training losses to compare, for loss_tol={tol!r}, got "
                f"loss=None and no {LOG_LOSS!r} of the training splits. Add "
                f"{LOG_LOSS!r} to scoring=, name its key as loss=, and pass "
                "return_train_score=True."
            )

    def _column(self, cv_results: Mapping[str, Any], key: str) -> np.ndarray:
        """Return a column of the results."""
        if key in cv_results:
            return np.asarray(cv_results[key], dtype=np.float64)
        there = sorted(name for name in cv_results if name.startswith("mean_t"))
        advice = "Name the keys of scoring= as metric= and flatness=."
        if key == f"mean_train_{self.loss}":
            advice = (
                "Pass return_train_score=True to the search, and name the key of the "
                "loss in scoring= as loss=."
            )
        elif key.startswith("mean_train_"):
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


def _near_the_median(
    candidates: np.ndarray, loss: np.ndarray, score: np.ndarray, tol: float
) -> np.ndarray:
    """Return the candidates whose loss is within a factor of their median's."""
    ranked = candidates[np.argsort(loss[candidates], kind="stable")]
    # A mean of the two in the middle might lie decades from every candidate.
    middle = ranked[(len(ranked) - 1) // 2 : len(ranked) // 2 + 1]
    median = loss[middle[score[middle].argmax()]]
    ratio = np.maximum(loss / median, median / loss)[candidates]
    return candidates[ratio <= (1 + tol) * (1 + 1e-12)]


def _warn_if_unequal(loss: np.ndarray) -> None:
    """Warn where training losses are too far apart to compare flatness."""
    loss = loss[np.isfinite(loss)]
    if len(loss) and loss.max() <= UNEQUAL * loss.min():
        return
    got, way_out = (
        "no training losses to compare",
        f"Add a loss such as {LOG_LOSS!r} to scoring=, name its key as loss=, pass "
        "return_train_score=True to the search, and loss_tol=0.5 to FlattestWithin",
    )
    if len(loss):
        got, way_out = (
            f"training losses from {loss.min():.3g} to {loss.max():.3g}",
            "Pass loss_tol=0.5 to FlattestWithin",
        )
    warnings.warn(
        "Expected accurate candidates of about the same training loss, to choose the "
        f"flattest, got {got}. "
        "Models that are over-confident of their training sample are flat for that "
        f"reason. {way_out} to compare those near the median "
        "only, end the training of nets with StopAtTrainingLoss, or choose by training "
        "loss and flatness together, with SmoothedRiskScorer or SmoothedRiskSearchCV.",
        UserWarning,
        # Out of this module: the search, which called the rule.
        stacklevel=4,
    )
