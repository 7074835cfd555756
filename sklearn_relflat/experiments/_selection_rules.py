"""Rules that choose among the candidates of a grid, from their records alone."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from sklearn_relflat import FlattestWithin
from sklearn_relflat.experiments._selection_candidates import MEASURES

Columns = dict[str, np.ndarray]
#: A share for each candidate: a rule that draws has several, all others one.
Rule = Callable[[Columns], np.ndarray]

#: What is compared among the accurate candidates: its name, and its column.
WITHIN: dict[str, str] = {
    "kappa, mean of folds": "fk",
    "kappa": "kc",
    "kappa, squared error": "ks",
    "kappa, std": "kn",
    **{measure.replace("_", " "): name for name, measure in MEASURES.items()},
    "training loss": "t",
    "cross-validated log-loss": "l",
}
#: How the accurate ones are told, and which of them are compared.
TOLERANCES: dict[str, dict[str, Any]] = {
    "0.01": {"tol": 0.01, "loss_tol": None},
    "1se": {"tol": "1se", "loss_tol": None},
    "1se, equal loss": {"tol": "1se", "loss_tol": 0.5},
}
BASELINE = "cross-validated log-loss"


def columns_of(records: list[dict[str, Any]]) -> Columns:
    """Columns of the candidates of one grid.

    Parameters
    ----------
    records : list of dict
        One a candidate.

    Returns
    -------
    columns : dict of str to ndarray of shape (n_candidates,)
        NaN where there is no value.
    """
    names = [key for key, value in records[0].items() if not isinstance(value, str)]
    return {name: np.array([r[name] for r in records], dtype=float) for name in names}


def search_results(columns: Columns, flatness: str) -> dict[str, np.ndarray]:
    """Columns as a search has them, with minus a measure as the flatness.

    Parameters
    ----------
    columns : dict of str to ndarray
        Of the candidates.
    flatness : str
        Column of the measure.

    Returns
    -------
    cv_results : dict of str to ndarray
        For `FlattestWithin`.
    """
    folds = fold_accuracies(columns)
    return {
        **{f"split{k}_test_accuracy": fold for k, fold in enumerate(folds)},
        "mean_test_accuracy": folds.mean(axis=0),
        "mean_train_relative_flatness": -columns[flatness],
        # The measures are of the models that are fitted on the whole sample; what is of
        # the folds goes with their training losses.
        "mean_train_neg_log_loss": -columns["ft" if flatness == "fk" else "t"],
    }


def fold_accuracies(columns: Columns) -> np.ndarray:
    """Accuracies of the folds.

    Parameters
    ----------
    columns : dict of str to ndarray
        Of the candidates.

    Returns
    -------
    accuracies : ndarray of shape (n_folds, n_candidates)
        As they stand in the columns.
    """
    n_folds = sum(name[0] == "a" and name[1:].isdigit() for name in columns)
    return np.array([columns[f"a{k}"] for k in range(n_folds)])


def _only(index: int, n: int) -> np.ndarray:
    """All of the share to one candidate."""
    return np.eye(n)[index]


def _smallest(columns: Columns, name: str) -> np.ndarray:
    """Take the candidate with the smallest value; the first of those that tie."""
    values = columns[name]
    return _only(int(np.nanargmin(values)), len(values))


def _most_accurate(columns: Columns) -> np.ndarray:
    """Take the best cross-validated accuracy, the first of those that tie."""
    accuracy = fold_accuracies(columns).mean(axis=0)
    return _only(int(accuracy.argmax()), len(accuracy))


def _flattest(columns: Columns, name: str, options: dict[str, Any]) -> np.ndarray:
    """Choose by the public rule."""
    rule = FlattestWithin(**options)
    with warnings.catch_warnings():
        # That training losses differ is what the experiment looks at.
        warnings.simplefilter("ignore", UserWarning)
        return _only(rule(search_results(columns, name)), len(columns[name]))


def _any_within(columns: Columns, options: dict[str, Any]) -> np.ndarray:
    """Draw among those that the public rule compares."""
    n = len(columns["t"])
    # A candidate is compared if it is chosen when nothing else is as flat.
    compared = np.array(
        [
            _flattest(columns | {"flat": 1.0 - _only(i, n)}, "flat", options)[i]
            for i in range(n)
        ]
    )
    return compared / compared.sum()


def _any(columns: Columns) -> np.ndarray:
    """Draw among all."""
    n = len(columns["l"])
    return np.full(n, 1 / n)


#: The rules by name.
RULES: dict[str, Rule] = {
    BASELINE: partial(_smallest, name="l"),
    "cross-validated accuracy": _most_accurate,
    "smoothed risk, calibrated": partial(_smallest, name="sc"),
    "smoothed risk, density": partial(_smallest, name="sd"),
    "smoothed risk, density within class": partial(_smallest, name="sw"),
    "training loss": partial(_smallest, name="t"),
    "random": _any,
    **{
        f"random within {tolerance}": partial(_any_within, options=options)
        for tolerance, options in TOLERANCES.items()
    },
    **{
        f"least {name} within {tolerance}": partial(
            _flattest, name=column, options=options
        )
        for tolerance, options in TOLERANCES.items()
        for name, column in WITHIN.items()
    },
}
