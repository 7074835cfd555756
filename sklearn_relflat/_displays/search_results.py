"""What a picture needs of the results of a search."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.base import clone

from sklearn_relflat._selection.flattest_within import FlattestWithin


@dataclass(frozen=True, eq=False)
class Candidates:
    """Candidates with two quantities.

    Attributes
    ----------
    x, y : ndarray of shape (n_candidates,)
        The quantities.
    x_key, y_key : str
        Their names.
    params : list of dict
        The parameters of the candidates.
    admitted : ndarray of bool
        Which of them are admitted.
    of_admitted, of_others : str
        What it means that they are, or are not.
    chosen : int or None
        Which is chosen.
    x_stderr, y_stderr : ndarray of shape (n_candidates,) or None
        Standard errors.
    x_where, y_where : str
        Where the quantities were measured.
    band : tuple of float or None
        The smallest and the largest score that is admitted.
    references, references_stderr : ndarray of shape (n_candidates,) or None
        Cross-validated losses with their errors, NaN where there is none.
    """

    x: np.ndarray
    y: np.ndarray
    x_key: str
    y_key: str
    params: list[dict[str, Any]]
    admitted: np.ndarray
    of_admitted: str
    of_others: str
    chosen: int | None
    x_stderr: np.ndarray | None = None
    y_stderr: np.ndarray | None = None
    x_where: str = ""
    y_where: str = ""
    band: tuple[float, float] | None = None
    references: np.ndarray | None = None
    references_stderr: np.ndarray | None = None


def named_rule(
    rule: FlattestWithin | None,
    metric: str | None,
    flatness: str | None,
    split: str | None,
) -> FlattestWithin:
    """Return a rule that reads the columns which a user names.

    Parameters
    ----------
    rule : FlattestWithin or None
        Where the rest comes from.
    metric, flatness, split : str or None
        What is named.

    Returns
    -------
    rule : FlattestWithin
        A copy.
    """
    named = {"metric": metric, "flatness": flatness, "split": split}
    copy = FlattestWithin() if rule is None else clone(rule)
    return copy.set_params(**{k: v for k, v in named.items() if v is not None})


def by_rule(
    cv_results: Mapping[str, Any],
    rule: FlattestWithin,
    admits: bool,
    best_index: int | None,
) -> Candidates:
    """Score against flatness, as a search over several metrics has them.

    Parameters
    ----------
    cv_results : dict
        Of the search.
    rule : FlattestWithin
        Which columns to read.
    admits : bool
        Whether the rule also says who is admitted.
    best_index : int or None
        The chosen candidate; None is that of the rule, if it admits.

    Returns
    -------
    candidates : Candidates
        For the picture.
    """
    score = rule._column(cv_results, f"mean_test_{rule.metric}")
    flatness = rule._column(cv_results, f"mean_{rule.split}_{rule.flatness}")
    admitted, band = np.ones(len(score), dtype=bool), None
    if admits:
        found = rule._admitted(cv_results)
        admitted = np.isin(np.arange(len(score)), found.admitted)
        top = float(score[found.best])
        band = (top - found.margin, top)
        if best_index is None:
            best_index = found.chosen
    where = "on the training parts" if rule.split == "train" else "as noted in training"
    return Candidates(
        x=-flatness,
        y=score,
        x_key=rule.flatness.removeprefix("neg_"),
        y_key=rule.metric,
        params=_params(cv_results, len(score)),
        admitted=admitted,
        of_admitted="admitted" if admits else "candidates",
        of_others="not admitted",
        chosen=best_index,
        x_stderr=_over_folds(cv_results, f"_{rule.split}_{rule.flatness}"),
        y_stderr=_over_folds(cv_results, f"_test_{rule.metric}"),
        x_where=where,
        y_where="on the held-out parts",
        band=band,
    )


def by_smoothed_risk(
    cv_results: Mapping[str, Any], best_index: int | None
) -> Candidates:
    """Smoothed risk against training loss, as `SmoothedRiskSearchCV` has them.

    Parameters
    ----------
    cv_results : dict
        Of the search.
    best_index : int or None
        The chosen candidate; None is that of the smallest risk.

    Returns
    -------
    candidates : Candidates
        For the picture.
    """
    risk = np.asarray(cv_results["smoothed_risk"], dtype=np.float64)
    if best_index is None and np.isfinite(risk).any():
        best_index = int(np.nanargmin(risk))
    references = np.where(
        cv_results["is_reference"], cv_results["cross_validated_loss"], np.nan
    )
    return Candidates(
        x=np.asarray(cv_results["training_loss"], dtype=np.float64),
        y=risk,
        x_key="training_loss",
        y_key="smoothed_risk",
        params=_params(cv_results, len(risk)),
        admitted=np.asarray(cv_results["is_unresolved"], dtype=bool)
        | (np.arange(len(risk)) == best_index),
        of_admitted="may be the best",
        of_others="higher risk",
        chosen=best_index,
        y_where="(units of the loss)",
        y_stderr=np.asarray(cv_results["smoothed_risk_stderr"], dtype=np.float64),
        references=references if np.isfinite(references).any() else None,
        references_stderr=np.asarray(cv_results["cross_validated_loss_stderr"]),
    )


def _params(cv_results: Mapping[str, Any], n: int) -> list[dict[str, Any]]:
    """Parameters of the candidates, as far as they are known."""
    return list(cv_results.get("params", [{"candidate": i} for i in range(n)]))


def _over_folds(cv_results: Mapping[str, Any], ending: str) -> np.ndarray | None:
    """Compute standard errors over the folds; None where there is one fold."""
    folds = [
        np.asarray(values, dtype=np.float64)
        for key, values in cv_results.items()
        if key.startswith("split") and key.endswith(ending)
        # "accuracy" is also the ending of "balanced_accuracy".
        if key.removeprefix("split").removesuffix(ending).isdigit()
    ]
    if len(folds) < 2:
        return None
    return np.std(folds, axis=0, ddof=1) / np.sqrt(len(folds))
