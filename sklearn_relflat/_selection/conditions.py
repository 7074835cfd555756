"""The theory's conditions on one model, each as a number with a verdict."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import norm, spearmanr
from scipy.stats import t as student_t
from sklearn.base import clone, is_classifier
from sklearn.model_selection import check_cv
from sklearn.utils import _safe_indexing
from sklearn.utils.validation import has_fit_parameter

from sklearn_relflat._flatness.result import RelativeFlatness
from sklearn_relflat._losses.base import UnseenLabelsError
from sklearn_relflat._representativeness.representativeness import check_refit
from sklearn_relflat._representativeness.split_errors import overlap_factor
from sklearn_relflat._robustness.smoothed_risk import smoothed_risk
from sklearn_relflat._selection.flattest_within import UNEQUAL
from sklearn_relflat._selection.other_labels import OtherLabels

HOLDS, FAILS, UNCLEAR = "holds", "fails", "unclear"
NOT_APPLICABLE, NOT_CHECKED = "not applicable", "not checked"

MINIMUM = "minimum reached"
LABELS = "labels constant"
REPRESENTATIVE = "representative"
LOSSES = "training losses alike"
APART = "flatness apart from loss"

# To first order, a step of a tenth of the weight's norm changes the loss by 1 % and by
# 10 %.
_SMALL_GRADIENT, _LARGE_GRADIENT = 0.1, 1.0
_SHARE, _SHARE_OF_CHANCE = 0.1, 0.2
_UNREPRESENTED = 0.25
_CORRELATION = 0.5
# Fieller, Hartley and Pearson: Fisher's transform of Spearman's correlation has the
# variance 1.06 / (n - 3).
_SPEARMAN_VARIANCE = 1.06


@dataclass(frozen=True)
class Condition:
    """A condition of the theory, as it was found.

    Attributes
    ----------
    name : str
        The condition.
    model : str
        Of which model, or of all.
    value, low, high : float
        The number with its interval; equal where it is known for this sample.
    holds_below, fails_above : float
        The condition holds if the interval is below the one in absolute value, and
        fails if it is above the other; otherwise it is unclear.
    reason : str
        Why these thresholds.
    verdict : str
        "holds", "fails", "unclear", "not applicable" or "not checked".
    sentence : str
        What that means.
    """

    name: str
    model: str
    value: float
    low: float
    high: float
    holds_below: float
    fails_above: float
    reason: str
    verdict: str
    sentence: str


def _without_number(name: str, model: str, verdict: str, sentence: str) -> Condition:
    """Return a condition that there is no number for."""
    nan = math.nan
    return Condition(name, model, nan, nan, nan, nan, nan, "", verdict, sentence)


def _judged(
    name: str,
    model: str,
    interval: tuple[float, float, float],
    thresholds: tuple[float, float],
    reason: str,
    said: dict[str, str],
) -> Condition:
    """Compare an interval with thresholds."""
    value, low, high = interval
    holds_below, fails_above = thresholds
    largest = max(abs(low), abs(high))
    smallest = 0.0 if low <= 0 <= high else min(abs(low), abs(high))
    verdict = UNCLEAR
    if largest <= holds_below:
        verdict = HOLDS
    elif smallest > fails_above:
        verdict = FAILS
    return Condition(
        name,
        model,
        value,
        low,
        high,
        holds_below,
        fails_above,
        reason,
        verdict,
        said[verdict],
    )


def minimum_reached(
    model: str, flatness: RelativeFlatness, weight_norm: float
) -> Condition:
    """Gradient in the layer's weight against the loss.

    Parameters
    ----------
    model : str
        Name of the model.
    flatness : RelativeFlatness
        Has gradient and loss.
    weight_norm : float
        Norm of the weight.

    Returns
    -------
    condition : Condition
        ``|gradient| |w| / loss``: free of the scales of loss and weight.
    """
    loss = flatness.mean_loss
    if loss < 0:
        return _without_number(
            MINIMUM,
            model,
            NOT_APPLICABLE,
            f"The loss {flatness.loss!r} can be negative ({loss:.3g}): it has no zero "
            "to measure the gradient against.",
        )
    value = flatness.gradient_norm * weight_norm
    value = value / loss if loss > 0 else 0.0
    return _judged(
        MINIMUM,
        model,
        (value, value, value),
        (_SMALL_GRADIENT, _LARGE_GRADIENT),
        "|gradient| |w| / loss; at 1, a step of the weight's own norm takes away the "
        "whole loss to first order, at 0.1 a tenth of it",
        {
            HOLDS: "The gradient is small against the loss.",
            UNCLEAR: "The gradient is neither small nor large against the loss, as "
            "where a penalty holds the weight back.",
            FAILS: "The weight is at no minimum of the loss: training has not ended, a "
            "penalty holds it back, or there is none, as where the classes can be "
            "separated. Compare models by the smoothed risk, which needs none.",
        },
    )


def labels_constant(model: str, found: OtherLabels, *, is_learned: bool) -> Condition:
    """Other labels within the local densities.

    Parameters
    ----------
    model : str
        Name of the model.
    found : OtherLabels
        Their share.
    is_learned : bool
        Whether the features were learned from the labels.

    Returns
    -------
    condition : Condition
        The share.
    """
    threshold = min(_SHARE, _SHARE_OF_CHANCE * found.by_chance)
    learned = (
        " These features were learned from the labels, so that it looks better than it "
        "is: see layer='input', too."
        if is_learned
        else ""
    )
    some = f"{found.share:.1%} of the density around a sample carries another label"
    return _judged(
        LABELS,
        model,
        (found.share, found.low, found.high),
        (threshold, threshold),
        "by convention a tenth, or where that is less, a fifth of what labels without "
        f"any relation to the features would give ({found.by_chance:.2g})",
        {
            HOLDS: f"Labels are locally constant: {some}.{learned}",
            UNCLEAR: f"Labels may change within the radius: {some}. More samples would "
            f"tell.{learned}",
            FAILS: f"Labels change within the radius: {some}. The smoothed risk may "
            "be too large for good models, and prefer those that are too cautious: use "
            "SmoothedRiskSearchCV, which calibrates the radius, or cross-validate.",
        },
    )


def no_labels(model: str, *, is_classification: bool) -> Condition:
    """Say that there are no labels to compare.

    Parameters
    ----------
    model : str
        Name of the model.
    is_classification : bool
        Whether there are labels, but not one for each sample.

    Returns
    -------
    condition : Condition
        Not applicable.
    """
    return _without_number(
        LABELS,
        model,
        NOT_APPLICABLE,
        "There is not one label for each sample."
        if is_classification
        else "Targets of a regression are no labels, and always change somewhat.",
    )


def representative(
    model: str,
    estimator: Any,
    X: Any,
    y: Any,
    *,
    cv: Any,
    sample_weight: Any,
    options: dict[str, Any],
) -> Condition:
    """Error of representativeness, from refits.

    Parameters
    ----------
    model : str
        Name of the model.
    estimator : estimator
        Is cloned.
    X, y : array-like of shape (n_samples, ...)
        The sample.
    cv : int, splitter, iterable or None
        Folds; None does not look at it.
    sample_weight : array-like of shape (n_samples,) or None
        Weights.
    options : dict
        Of `smoothed_risk`.

    Returns
    -------
    condition : Condition
        E_Rep relative to the cross-validated loss.

    Raises
    ------
    ValueError
        If there is one fold only.
    """
    reason = _cannot_refit(estimator, y, cv, sample_weight)
    if reason is not None:
        return _without_number(REPRESENTATIVE, model, NOT_CHECKED, reason)
    splitter = check_cv(cv, y, classifier=is_classifier(estimator))
    folds = [*splitter.split(X, y)]
    if len(folds) < 2:
        raise ValueError(
            f"Expected at least two folds, got cv={cv!r} with {len(folds)}. Use cv=5."
        )
    weight = None if sample_weight is None else np.asarray(sample_weight, dtype=float)
    try:
        pairs = np.array(
            [_fold(estimator, X, y, fold, weight, options) for fold in folds]
        )
    except UnseenLabelsError as error:
        return _without_number(REPRESENTATIVE, model, NOT_CHECKED, str(error))
    risk = float(pairs[:, 0].mean())
    if not risk > 0:
        return _without_number(
            REPRESENTATIVE,
            model,
            NOT_APPLICABLE,
            f"The cross-validated loss is {risk:.3g}: there is nothing positive to "
            "measure an error against.",
        )
    errors = (pairs[:, 0] - pairs[:, 1]) / risk
    k = len(errors)
    ratio = float(np.mean([len(test) / len(train) for train, test in folds]))
    half = errors.std(ddof=1) * overlap_factor(k, ratio) * student_t.ppf(0.975, k - 1)
    value = float(errors.mean())
    return _judged(
        REPRESENTATIVE,
        model,
        (value, value - float(half), value + float(half)),
        (_UNREPRESENTED, _UNREPRESENTED),
        "(cross-validated loss - smoothed risk) / cross-validated loss; a quarter is a "
        "convention, less than which the folds of a few hundred samples seldom tell",
        {
            HOLDS: "The smoothed risk is the cross-validated loss within a quarter.",
            UNCLEAR: "The folds leave open whether the smoothed risk is the "
            f"cross-validated loss ({risk:.3g}). More samples or folds would tell.",
            FAILS: f"The smoothed risk is too {'small' if value > 0 else 'large'} "
            f"against the cross-validated loss ({risk:.3g}). Take another radius, as "
            "SmoothedRiskSearchCV finds it, or another layer.",
        },
    )


def _cannot_refit(estimator: Any, y: Any, cv: Any, sample_weight: Any) -> str | None:
    """Say why a model cannot be cross-validated."""
    if cv is None:
        return "Pass cv=5 to check it by five refits."
    if y is None:
        return "Pass y to check it: folds are made from X and y."
    try:
        check_refit(estimator, "estimator")
        clone(estimator)
    except (RuntimeError, TypeError, ValueError) as error:
        return f"The model cannot be fitted again: {error}"
    if not hasattr(estimator, "fit"):
        return f"{type(estimator).__name__} has no method fit."
    if sample_weight is not None and not has_fit_parameter(estimator, "sample_weight"):
        return (
            f"The fit of {type(estimator).__name__} takes no sample_weight. Leave "
            "sample_weight out."
        )
    return None


def _fold(
    estimator: Any,
    X: Any,
    y: Any,
    fold: tuple[np.ndarray, np.ndarray],
    weight: np.ndarray | None,
    options: dict[str, Any],
) -> tuple[float, float]:
    """Held-out loss and smoothed risk of a refit."""
    train, test = fold
    model = clone(estimator)
    of_train, of_test = (None if weight is None else weight[part] for part in fold)
    parameters = {} if weight is None else {"sample_weight": of_train}
    own = _safe_indexing(X, train), _safe_indexing(y, train)
    model.fit(*own, **parameters)
    held_out = smoothed_risk(
        model,
        _safe_indexing(X, test),
        _safe_indexing(y, test),
        radius=0.0,
        loss=options["loss"],
        sample_weight=of_test,
    )
    smoothed = smoothed_risk(model, *own, sample_weight=of_train, **options)
    return held_out.mean_loss, smoothed.value


def losses_alike(losses: np.ndarray) -> Condition:
    """Spread of the training losses of candidates.

    Parameters
    ----------
    losses : ndarray of shape (n_models,)
        Two at least.

    Returns
    -------
    condition : Condition
        Largest over smallest.
    """
    low, high = float(losses.min()), float(losses.max())
    if not low > 0:
        return _without_number(
            LOSSES,
            "all",
            UNCLEAR if low < high else HOLDS,
            f"Training losses are from {low:.3g} to {high:.3g}, which have no ratio.",
        )
    ratio = high / low
    spread = f"training losses differ by a factor of {ratio:.3g}"
    return _judged(
        LOSSES,
        "all",
        (ratio, ratio, ratio),
        (UNEQUAL, UNEQUAL),
        "largest over smallest; from 2 on, the flattest candidate mostly had a higher "
        "held-out loss than the most accurate one",
        {
            HOLDS: f"Flatness compares these models: {spread}.",
            UNCLEAR: f"The {spread}.",
            FAILS: f"Flatness alone does not compare these models: {spread}. Compare "
            "them by the smoothed risk, with compare_models.",
        },
    )


def flatness_apart(kappas: np.ndarray, losses: np.ndarray) -> Condition:
    """Rank correlation of relative flatness with the training loss.

    Parameters
    ----------
    kappas, losses : ndarray of shape (n_models,)
        Of the candidates.

    Returns
    -------
    condition : Condition
        Spearman's correlation.
    """
    n = len(losses)
    if n < 4 or np.ptp(losses) == 0 or np.ptp(kappas) == 0:
        return _without_number(
            APART,
            "all",
            NOT_CHECKED,
            f"A correlation needs four models that differ, got {n}.",
        )
    rho = float(spearmanr(kappas, losses).statistic)
    # At a correlation of one the interval would have no width.
    center = math.atanh(float(np.clip(rho, 1 / n - 1, 1 - 1 / n)))
    half = float(norm.ppf(0.975)) * math.sqrt(_SPEARMAN_VARIANCE / (n - 3))
    low, high = math.tanh(center - half), math.tanh(center + half)
    return _judged(
        APART,
        "all",
        (rho, min(low, rho), max(high, rho)),
        (_CORRELATION, _CORRELATION),
        "Spearman's correlation of kappa and training loss; at 0.5, a quarter of the "
        "variance of the ranks is that of the training loss",
        {
            HOLDS: "Flatness says something else than the training loss.",
            UNCLEAR: "So few models leave open whether flatness says more than the "
            "training loss.",
            FAILS: f"Flatness ranks these models by their training loss ({rho:+.2f}), "
            "and says little beyond it. Train to equal loss (StopAtTrainingLoss), or "
            "compare by the smoothed risk.",
        },
    )
