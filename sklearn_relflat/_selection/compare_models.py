"""Fitted models side by side: score, loss, smoothed risk and relative flatness."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from sklearn_relflat._flatness.relative_flatness import relative_flatness
from sklearn_relflat._progress.side_by_side import side_by_side
from sklearn_relflat._results.plottable import Plottable
from sklearn_relflat._results.result import TableReport
from sklearn_relflat._results.words import listed, number
from sklearn_relflat._robustness.smoothed_result import SmoothedRisk
from sklearn_relflat._robustness.smoothed_risk import smoothed_risk
from sklearn_relflat._selection.named_models import about, named_models, one_seed
from sklearn_relflat._selection.one_loss import check_one_loss
from sklearn_relflat._selection.own_score import mean_error, own_score


@dataclass(frozen=True, eq=False, repr=False)
class ModelComparison(Plottable, TableReport):
    """Fitted models side by side, with the one to take.

    ``print(comparison)`` has the table; `frame` the numbers; `plot` the picture.

    Attributes
    ----------
    best : str
        Name of the model with the smallest smoothed risk.
    sentence : str
        Which model to take, and how sure that is.
    unresolved : list of str
        Models whose difference from the best in smoothed risk is below two standard
        errors of the draws, with which the order could turn.
    undecided : list of str
        Other models whose difference is below two standard errors over the samples:
        another sample of this size could turn the order.
    notes : list of str
        Why numbers are missing.
    results : dict of str to SmoothedRisk
        The smoothed risks, by the names of the models.
    loss : str
        The loss.
    layer, shape : str
        What is perturbed, and how.
    """

    best: str
    sentence: str
    unresolved: list[str]
    undecided: list[str]
    notes: list[str]
    results: dict[str, SmoothedRisk]
    loss: str
    layer: str
    shape: str
    _rows: list[dict[str, Any]] = field(repr=False)

    guide = "comparing"

    @property
    def title(self) -> str:
        """What the report is about."""
        return (
            f"{len(self._rows)} models on {self.results[self.best].n_samples} samples; "
            f"{self.loss}, perturbed: {self.layer}, {self.shape}"
        )

    @property
    def remarks(self) -> list[str]:
        """Why numbers are missing."""
        return list(self.notes)

    def rows(self) -> list[dict[str, Any]]:
        """Return the numbers.

        Returns
        -------
        rows : list of dict
            One a model, in the order in which the models were given: model, score,
            training_loss, smoothed_risk, radius, difference (of the smoothed risk from
            that of the best), relative_flatness, relative_flatness_squared_error and,
            with test data, test_score, test_loss and gap. Columns that end in
            ``_stderr`` are standard errors: of smoothed_risk and difference those of
            the draws, of difference_samples_stderr and all others over the samples.
        """
        return [dict(row) for row in self._rows]

    def cells(self) -> list[dict[str, str]]:
        """Return the rows as they are shown.

        Returns
        -------
        cells : list of dict
            Short texts by column; the best model carries a star.
        """
        return [self._cells(row) for row in self._rows]

    def _cells(self, row: dict[str, Any]) -> dict[str, str]:
        """One row as it is shown."""

        def shown(key: str) -> str:
            return number(row[key], row.get(f"{key}_stderr"))

        cells = {
            "model": row["model"] + (" *" if row["model"] == self.best else ""),
            "score": shown("score"),
            "training loss": number(row["training_loss"]),
            "smoothed risk": shown("smoothed_risk"),
            "kappa": number(row["relative_flatness"]),
            "kappa (squared)": number(row["relative_flatness_squared_error"]),
        }
        if "test_loss" in row:
            cells["test score"] = shown("test_score")
            cells["test loss"] = shown("test_loss")
            cells["gap"] = number(row["gap"])
        return cells


def compare_models(
    models: Any,
    X: Any,
    y: Any = None,
    *,
    X_test: Any = None,
    y_test: Any = None,
    layer: str | None = "input",
    radius: Any = "density",
    shape: str = "isotropic",
    loss: Any = None,
    n_draws: int = 16,
    sample_weight: Any = None,
    random_state: Any = 0,
    n_jobs: int | None = None,
    verbose: int = 0,
) -> ModelComparison:
    r"""Compare fitted models on their training sample, and say which one to take.

    The model with the smallest `smoothed_risk` is the one to take, whatever the
    training losses are; relative flatness alone compares models of about the same
    training loss only.

    Parameters
    ----------
    models : dict of str to estimator, list of estimator, or search
        Fitted models, see `relative_flatness`. Of a fitted search, its candidates: the
        best one as it is, all others fitted again on X and y, as a search does not
        keep them.
    X : {array-like, sparse matrix, Tensor, Dataset, dict} of shape (n_samples, ...)
        The sample that they were trained on.
    y : array-like of shape (n_samples,) or (n_samples, n_outputs), default=None
        Targets; None only where X is a data set that carries them, and then there are
        no scores.
    X_test : like X, default=None
        Other samples, for the test score, test loss and gap.
    y_test : like y, default=None
        Their targets.
    layer : str or None, default="input"
        Whose features are perturbed. This and the following are the options of
        `smoothed_risk`. Relative flatness is that of the output layer.
    radius : float or "density", default="density"
        Norm of the perturbations relative to that of the features; "density" is that
        of each model's own features.
    shape : {"isotropic", "within_class", "covariance"}, default="isotropic"
        Covariance of the perturbations.
    loss : str, torch criterion or callable, default=None
        The loss; None is the one that the models were trained with, which has to be
        the same for all.
    n_draws : int, default=16
        Perturbations of each sample.
    sample_weight : array-like of shape (n_samples,), default=None
        Weights of the training samples.
    random_state : int, RandomState instance or None, default=0
        Seed of the perturbations, which all models share.
    n_jobs : int, default=None
        Number of processes, one model each; -1 is all cores. None measures one after
        the other, and fits the candidates of a search ``search.n_jobs`` at a time. The
        numbers are the same for any.
    verbose : int, default=0
        1 shows bars that count the models, with the time left.

    Returns
    -------
    comparison : ModelComparison
        The numbers, the best model, and how sure that is.

    Raises
    ------
    TypeError
        If the models are no dict, list or search, or one of them is not supported.
    ValueError
        If they were trained with different losses, or test targets are missing, or
        weights are given with a search, or as `smoothed_risk` does.
    sklearn.exceptions.NotFittedError
        If a model or the search is not fitted.

    See Also
    --------
    flatness_diagnosis : Whether the theory's conditions hold for a model.
    SmoothedRiskSearchCV : A search that chooses so, with a calibrated radius.
    smoothed_risk : The number that decides.

    Notes
    -----
    A difference between two models is taken pair by pair of perturbations, which they
    share. Below twice the standard error of its mean over the pairs, it is unresolved:
    more draws may turn it. Below twice its standard error over the samples, the
    sample leaves it open. Neither error has the bias of the smoothed risk where labels
    change within the radius: see `flatness_diagnosis`.

    The standard error over samples is that of a mean, for the score R^2 that of its
    linearization, and missing where the score is neither accuracy nor R^2.

    Examples
    --------
    >>> from sklearn.datasets import load_breast_cancer
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.preprocessing import StandardScaler
    >>> from sklearn_relflat import compare_models
    >>> X, y = load_breast_cancer(return_X_y=True)
    >>> X = StandardScaler().fit_transform(X)
    >>> models = {
    ...     name: LogisticRegression(C=C, max_iter=10000).fit(X[:200], y[:200])
    ...     for name, C in [("cautious", 1e-4), ("medium", 0.5), ("bold", 1e4)]
    ... }
    >>> comparison = compare_models(models, X[:200], y[:200])
    >>> comparison.best
    'medium'

    The boldest model has the smallest training loss, but not on new data:

    >>> table = compare_models(models, X[:200], y[:200], X_test=X[200:], y_test=y[200:])
    >>> rows = table.rows()
    >>> min(rows, key=lambda row: row["training_loss"])["model"]
    'bold'
    >>> min(rows, key=lambda row: row["test_loss"])["model"]
    'medium'
    """
    named = named_models(
        models, X, y, sample_weight=sample_weight, n_jobs=n_jobs, verbose=verbose
    )
    if X_test is None and y_test is not None:
        raise ValueError(
            "Expected X_test with y_test, got X_test=None. Pass the samples of y_test."
        )
    options = {"layer": layer, "shape": shape, "loss": loss, "n_draws": n_draws}
    seed = one_seed(random_state)
    options |= {"radius": radius, "sample_weight": sample_weight}
    risks = side_by_side(
        _risk,
        [(name, model, X, y, seed, options) for name, model in named.items()],
        n_jobs,
        title="smoothed risks",
        unit="model",
        verbose=verbose,
    )
    results = dict(zip(named, risks, strict=True))
    check_one_loss({name: r.metric for name, r in results.items()}, y)
    best = min(results, key=lambda name: results[name].value)
    others = side_by_side(
        _others,
        [
            (name, model, (X, y, sample_weight), (X_test, y_test), loss, seed)
            for name, model in named.items()
        ],
        n_jobs,
        title="scores and flatness",
        unit="model",
        verbose=verbose,
    )
    notes: list[str] = []
    rows = []
    for name, (numbers, own_notes) in zip(named, others, strict=True):
        row = _row(name, results, best, sample_weight) | numbers
        if X_test is not None:
            row["gap"] = row["test_loss"] - row["training_loss"]
        rows.append(row)
        notes += own_notes
    unresolved = [
        row["model"]
        for row in rows
        if row["model"] != best
        and abs(row["difference"]) <= 2 * row["difference_stderr"]
    ]
    undecided = [
        row["model"]
        for row in rows
        if row["model"] not in (best, *unresolved)
        and abs(row["difference"]) <= 2 * row["difference_samples_stderr"]
    ]
    result = results[best]
    return ModelComparison(
        best=best,
        sentence=_sentence(rows, best, unresolved, undecided),
        unresolved=unresolved,
        undecided=undecided,
        notes=notes,
        results=results,
        loss=result.metric,
        layer=result.layer,
        shape=result.shape,
        _rows=rows,
    )


def _risk(
    name: str, model: Any, X: Any, y: Any, seed: int, options: dict[str, Any]
) -> SmoothedRisk:
    """Smoothed risk of one model."""
    with about(name):
        return smoothed_risk(model, X, y, per_sample=True, random_state=seed, **options)


def _others(
    name: str,
    model: Any,
    sample: tuple[Any, Any, Any],
    test: tuple[Any, Any],
    loss: Any,
    seed: int,
) -> tuple[dict[str, float], list[str]]:
    """Measure one model otherwise, and say which numbers are missing."""
    notes: list[str] = []
    X, y, sample_weight = sample
    X_test, y_test = test
    with about(name):
        row = _scores(model, X, y, sample_weight, "score", name, notes)
        row |= _flatness(model, X, y, loss, sample_weight, seed, name, notes)
        if X_test is not None:
            row |= _scores(model, X_test, y_test, None, "test_score", name, notes)
            row |= _test_loss(model, X_test, y_test, loss)
    return row, notes


def _row(
    name: str, results: dict[str, SmoothedRisk], best: str, sample_weight: Any
) -> dict[str, Any]:
    """Return what the smoothed risk says of one model."""
    result, first = results[name], results[best]
    draws, samples = 0.0, 0.0
    if name != best:
        draws = _draws_error(result, first)
        assert result.per_sample is not None
        assert first.per_sample is not None
        samples = mean_error(result.per_sample - first.per_sample, sample_weight)
    return {
        "model": name,
        "training_loss": result.mean_loss,
        "smoothed_risk": result.value,
        "smoothed_risk_stderr": result.stderr,
        "radius": result.radius,
        "difference": result.value - first.value,
        "difference_stderr": draws,
        "difference_samples_stderr": samples,
    }


def _draws_error(result: SmoothedRisk, first: SmoothedRisk) -> float:
    """Return the standard error of a difference that the draws cause."""
    if len(result.by_pair) != len(first.by_pair):
        # One of them is exact: only the other one has an error.
        return math.hypot(result.stderr, first.stderr)
    if len(result.by_pair) < 2:
        return 0.0
    return mean_error(result.by_pair - first.by_pair)


def _scores(
    model: Any,
    X: Any,
    y: Any,
    sample_weight: Any,
    key: str,
    name: str,
    notes: list[str],
) -> dict[str, float]:
    """Score with its error."""
    score = own_score(model, X, y, sample_weight)
    if score.note:
        notes.append(f"{name}, {key.replace('_', ' ')}: {score.note}")
    return {key: score.value, f"{key}_stderr": score.stderr}


def _flatness(
    model: Any,
    X: Any,
    y: Any,
    loss: Any,
    sample_weight: Any,
    seed: Any,
    name: str,
    notes: list[str],
) -> dict[str, float]:
    """Relative flatness under the loss, and under the squared error."""
    found = {}
    for key, chosen in (
        ("relative_flatness", loss),
        ("relative_flatness_squared_error", "squared_error"),
    ):
        try:
            found[key] = relative_flatness(
                model,
                X,
                y,
                loss=chosen,
                sample_weight=sample_weight,
                random_state=seed,
            ).value
        except (TypeError, ValueError) as error:
            # The smoothed risk has been measured: what is missing is this number only.
            found[key] = math.nan
            notes.append(f"{name}, {key.replace('_', ' ')}: {error}")
    return found


def _test_loss(model: Any, X: Any, y: Any, loss: Any) -> dict[str, float]:
    """Loss on other samples."""
    result = smoothed_risk(model, X, y, radius=0.0, loss=loss, per_sample=True)
    assert result.per_sample is not None
    return {
        "test_loss": result.mean_loss,
        "test_loss_stderr": mean_error(result.per_sample),
    }


def _sentence(
    rows: list[dict[str, Any]], best: str, unresolved: list[str], undecided: list[str]
) -> str:
    """Say which model to take."""
    by_name = {row["model"]: row for row in rows}
    risk = by_name[best]["smoothed_risk"]
    if len(rows) == 1:
        return f"There is one model, {best!r}, with the smoothed risk {risk:.4g}."
    others = [row for row in rows if row["model"] != best]
    second = min(others, key=lambda row: row["smoothed_risk"])
    start = f"Take {best!r}: it has the smallest smoothed risk, {risk:.4g}"
    if not unresolved and not undecided:
        return (
            f"{start}, {second['difference']:.2g} below the next, "
            f"{second['model']!r}, which is more than two standard errors "
            f"({second['difference_stderr']:.2g} of the draws, "
            f"{second['difference_samples_stderr']:.2g} over the samples)."
        )
    parts = []
    if unresolved:
        names = listed([repr(name) for name in unresolved])
        parts.append(f"the draws do not tell it from {names}")
    if undecided:
        names = listed([repr(name) for name in undecided])
        parts.append(f"a sample of this size does not tell it from {names}")
    return f"{start}, but {' and '.join(parts)} (less than two standard errors)."
