"""Errors of representativeness over random splits of a sample."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
from scipy import sparse
from sklearn.base import clone, is_classifier
from sklearn.utils import check_random_state
from torch.utils.data import Dataset, Subset

from sklearn_relflat._density.radial_kernels import Seed
from sklearn_relflat._progress.bar import progress_bar
from sklearn_relflat._progress.side_by_side import side_by_side
from sklearn_relflat._representativeness.local_risk import LocalDensities, LocalRisk
from sklearn_relflat._split.feature_split import FeatureSplit


# ---------------------------------------------------------------------------
# Splits
# ---------------------------------------------------------------------------
def own_random_state(random_state: Seed) -> np.random.RandomState:
    """Return a generator of its own; None takes fresh entropy, not the global one."""
    return check_random_state(
        np.random.RandomState() if random_state is None else random_state
    )


def random_splits(
    labels: np.ndarray, n_splits: int, test_size: Any, rng: np.random.RandomState
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield random training and held-out parts, the classes in equal shares.

    Every class keeps a sample in the training part, so that a class with one sample
    is never held out.

    Parameters
    ----------
    labels : ndarray of shape (n_samples,)
        Class of each sample; all equal where there are no classes.
    n_splits : int
        Number of splits.
    test_size : float or int
        Share or number of held-out samples.
    rng : RandomState
        Source of the splits.

    Yields
    ------
    train, test : ndarray of int
        Positions.

    Raises
    ------
    ValueError
        If a part would be empty.
    """
    n = len(labels)
    n_test = test_size if isinstance(test_size, Integral) else np.ceil(test_size * n)
    n_test = int(n_test)
    if not 1 <= n_test <= n - 1:
        samples = "1 sample" if n == 1 else f"{n} samples"
        raise ValueError(
            "Expected samples for a training and a held-out part, got "
            f"{samples} with test_size={test_size!r}. Give more samples, at least 2, "
            "or another test_size."
        )
    for _ in range(n_splits):
        # Sorted by class and in random order within: every (n / n_test)-th sample is
        # then a stratified choice, and each has the same probability to be chosen.
        order = rng.permutation(n)
        order = order[np.argsort(labels[order], kind="stable")]
        steps = (np.arange(n_test) + rng.uniform()) * n / n_test
        is_test = np.zeros(n, dtype=bool)
        is_test[order[steps.astype(np.intp)]] = True
        classes, first = np.unique(labels[order], return_index=True)
        protected = order[first]
        lost = ~np.isin(classes, labels[~is_test])
        is_test[protected[lost]] = False
        if not is_test.any():
            rest = order[~np.isin(order, protected)]
            if not len(rest):
                raise ValueError(
                    "Expected a class with at least two samples, since one stays in "
                    f"the training part, got {n} classes with one sample each. For "
                    "real-valued targets use a regressor."
                )
            is_test[rest[:n_test]] = True
        yield np.flatnonzero(~is_test), np.flatnonzero(is_test)


def _class_labels(model: FeatureSplit, risk: LocalRisk) -> np.ndarray:
    """Class of each sample from its encoded target; zeros where there is none."""
    targets = risk.targets.numpy()
    none = np.zeros(len(targets), dtype=np.int64)
    if targets.dtype.kind in "iu":
        return targets if targets.ndim == 1 else none
    if not is_classifier(model):
        return none
    columns = targets.reshape(len(targets), -1)
    if columns.shape[1] == 1:
        return np.unique(columns, return_inverse=True)[1].ravel()
    top = columns == columns.max(axis=1, keepdims=True)
    # Indicators of several labels at once are no classes.
    return top.argmax(axis=1) if (top.sum(axis=1) == 1).all() else none


def _take(data: Any, rows: np.ndarray) -> Any:
    """Return some samples of X or y, in their own container."""
    if data is None:
        return None
    if sparse.issparse(data):
        return data.tocsr()[rows]  # not all formats have rows to take
    if isinstance(data, Mapping):
        return {key: _take(values, rows) for key, values in data.items()}
    if isinstance(data, Dataset):
        return Subset(data, rows.tolist())
    if hasattr(data, "iloc"):
        return data.iloc[rows]
    return [data[row] for row in rows] if isinstance(data, list | tuple) else data[rows]


# ---------------------------------------------------------------------------
# What is fitted to the training part of a split
# ---------------------------------------------------------------------------
@dataclass(frozen=True)
class _Problem:
    """A model on a sample, and how its features are perturbed."""

    learner: FeatureSplit
    X: Any
    y: Any
    risk: LocalRisk
    local: LocalDensities
    rng: np.random.RandomState
    smoothed: tuple[np.ndarray, np.ndarray]
    n_jobs: int | None


# Held-out and training risk, smoothed training risks and their variances (n_deltas,).
_Risks = tuple[float, float, np.ndarray, np.ndarray]
# Training and held-out part.
_Splits = list[tuple[np.ndarray, np.ndarray]]


def _risks(
    risk: LocalRisk,
    train: np.ndarray,
    test: np.ndarray,
    smoothed: tuple[np.ndarray, np.ndarray],
) -> _Risks:
    """Risks of one model on the two parts, given its smoothed training losses."""
    losses = risk.losses()
    return (
        float(risk.mean(losses[test], test)),
        float(risk.mean(losses[train], train)),
        risk.mean(smoothed[0], train),
        risk.mean_variance(smoothed[1], train),
    )


def _as_it_is(problem: _Problem, splits: _Splits) -> Iterator[_Risks]:
    """Refit nothing."""
    values, variances = problem.smoothed
    for train, test in splits:
        smoothed = values[:, train], variances[:, train]
        yield _risks(problem.risk, train, test, smoothed)


def _with_refitted_head(problem: _Problem, splits: _Splits) -> Iterator[_Risks]:
    """Refit the output layer."""
    penalty = problem.risk.penalty()
    for train, test in splits:
        risk = problem.risk.refitted(train, penalty)
        smoothed = risk.smoothed_losses(train, problem.local, problem.rng)
        yield _risks(risk, train, test, smoothed)


def _with_refitted_estimator(problem: _Problem, splits: _Splits) -> Iterator[_Risks]:
    """Refit everything."""
    X, y = problem.X, problem.y
    # Only the fits run side by side: the draws follow each other in one stream.
    tasks = [(problem.learner, X, y, train) for train, _ in splits]
    fits = side_by_side(_fitted, tasks, problem.n_jobs)
    for (train, test), fitted in zip(splits, fits, strict=True):
        trained = measured(fitted, _take(X, train), _take(y, train))
        held_out = measured(fitted, _take(X, test), _take(y, test))
        rows = np.arange(len(trained))
        values, variances = trained.smoothed_losses(rows, problem.local, problem.rng)
        yield (
            float(held_out.mean(held_out.losses())),
            float(trained.mean(trained.losses())),
            trained.mean(values),
            trained.mean_variance(variances),
        )


def _fitted(learner: FeatureSplit, X: Any, y: Any, rows: np.ndarray) -> FeatureSplit:
    """Fit a clone to some samples."""
    return clone(learner).fit(_take(X, rows), _take(y, rows))


REFITS: dict[str | None, Callable[[_Problem, _Splits], Iterator[_Risks]]] = {
    None: _as_it_is,
    "head": _with_refitted_head,
    "estimator": _with_refitted_estimator,
}


# ---------------------------------------------------------------------------
# Errors
# ---------------------------------------------------------------------------
@dataclass(frozen=True)
class SplitErrors:
    """What the random splits gave, for each delta.

    Attributes
    ----------
    errors : ndarray of shape (n_deltas, n_splits)
        Held-out risk minus smoothed training risk.
    variances : ndarray of shape (n_deltas, n_splits)
        Monte-Carlo variance of `errors`.
    share_draws : bool
        Whether the splits have their draws in common.
    gaps : ndarray of shape (n_splits,)
        Held-out risk minus training risk.
    test_ratio : float
        Held-out samples per training sample.
    empirical_risk : float
        Risk of the model on the whole sample.
    smoothed_risk, smoothed_variance : ndarray of shape (n_deltas,)
        Its risk under the local densities of the whole sample, and the Monte-Carlo
        variance of that.
    """

    errors: np.ndarray
    variances: np.ndarray
    share_draws: bool
    gaps: np.ndarray
    test_ratio: float
    empirical_risk: float
    smoothed_risk: np.ndarray
    smoothed_variance: np.ndarray

    @property
    def stderr(self) -> np.ndarray:
        """Standard error of the mean of the errors over splits that overlap."""
        factor = overlap_factor(self.errors.shape[1], self.test_ratio)
        return factor * self.errors.std(axis=1, ddof=1)

    @property
    def monte_carlo_stderr(self) -> np.ndarray:
        """Standard error that the draws cause in the mean of the errors."""
        # Draws in common do not average out over the splits.
        if self.share_draws:
            return np.sqrt(self.variances).mean(axis=1)
        return np.sqrt(self.variances.sum(axis=1)) / self.variances.shape[1]


def overlap_factor(n_splits: int, test_ratio: float) -> float:
    """Return the ratio of a mean's standard error to the spread over the splits."""
    # The correction of Nadeau and Bengio: 1 / n_splits alone would be right for
    # independent splits, and these overlap.
    return float(np.sqrt(1.0 / n_splits + test_ratio))


def measured(model: FeatureSplit, X: Any, y: Any, *, output: bool = False) -> LocalRisk:
    """Run a fitted model over a sample."""
    view = model._as_torch_model()
    return LocalRisk.measure(view, X, y, model.layer_, output=output)


def split_errors(
    model: FeatureSplit,
    learner: FeatureSplit,
    X: Any,
    y: Any,
    local: LocalDensities,
    *,
    refit: str | None,
    n_splits: int,
    test_size: float,
    rng: np.random.RandomState,
    n_jobs: int | None = None,
    verbose: int = 0,
) -> tuple[LocalRisk, SplitErrors]:
    """Measure the errors of representativeness over random splits.

    Parameters
    ----------
    model : FeatureSplit
        The model, fitted to the whole sample.
    learner : FeatureSplit
        What is cloned and fitted to training parts with ``refit="estimator"``.
    X : array-like of shape (n_samples, ...), or what else the model takes
        Samples.
    y : array-like of shape (n_samples, ...) or None
        Targets.
    local : LocalDensities
        The local densities.
    refit : {"head", "estimator", None}
        What is fitted to the training part of each split.
    n_splits : int
        Number of splits.
    test_size : float or int
        Share or number of held-out samples.
    rng : RandomState
        Source of splits and draws.
    n_jobs : int, default=None
        Number of processes that refit the estimator.
    verbose : int, default=0
        Whether a bar counts the splits.

    Returns
    -------
    risk : LocalRisk
        The model on the whole sample.
    result : SplitErrors
        The errors.
    """
    risk = measured(model, X, y, output=refit == "head")
    labels = _class_labels(model, risk)
    splits = list(random_splits(labels, n_splits, test_size, rng))
    smoothed = risk.smoothed_losses(np.arange(len(risk)), local, rng)
    problem = _Problem(learner, X, y, risk, local, rng, smoothed, n_jobs)
    each = REFITS[refit](problem, splits)
    bar = progress_bar(
        each, title="splits", unit="split", verbose=verbose, total=n_splits
    )
    results = list(bar)
    held_out, trained = (np.array([r[i] for r in results]) for i in (0, 1))
    training, variances = (np.stack([r[i] for r in results], axis=1) for i in (2, 3))
    train, test = splits[0]
    return risk, SplitErrors(
        errors=held_out - training,
        variances=variances,
        share_draws=refit is None,
        gaps=held_out - trained,
        test_ratio=len(test) / len(train),
        empirical_risk=float(risk.mean(risk.losses())),
        smoothed_risk=risk.mean(smoothed[0]),
        smoothed_variance=risk.mean_variance(smoothed[1]),
    )
