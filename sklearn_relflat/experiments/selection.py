"""Which rule chooses the better candidate of a grid: score, flatness or smoothing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sklearn_relflat.experiments._selection_candidates import (
    N_REFERENCES,
    records_of,
)
from sklearn_relflat.experiments._selection_figure import draw_differences
from sklearn_relflat.experiments._selection_grids import (
    FAMILIES,
    GRIDS,
    draw_sample,
)
from sklearn_relflat.experiments._selection_rules import RULES
from sklearn_relflat.experiments._selection_summary import (
    SHOWN,
    against_random_rows,
    foretold_rows,
    label_rows,
    measure_rows,
    rule_rows,
    searches_of,
    time_rows,
)

CLAIM = (
    "Among about equally accurate models the flatter one generalizes better, and the "
    "smoothed risk of one fit chooses about as well as cross-validation does."
)
COST = {
    "quick": "25 seconds of one core",
    "full": "30 minutes of one core",
}
NEEDS_DATA = False


@dataclass(frozen=True)
class Config:
    """Size of the experiment.

    Attributes
    ----------
    grids : tuple of tuple
        Data set, training samples and family of each.
    n_splits : int
        Outer splits.
    n_test : int
        Samples that are held out, at most.
    n_folds : int
        Folds of the cross-validation.
    n_candidates : int
        Candidates of each grid, at most: evenly taken.
    """

    grids: tuple[tuple[str, int, str], ...]
    n_splits: int
    n_test: int
    n_folds: int
    n_candidates: int


PRESETS = {
    "quick": Config(
        grids=(
            ("breast cancer", 50, "logistic"),
            ("separated", 100, "mlp"),
            ("noisy moons", 100, "skorch"),
        ),
        n_splits=1,
        n_test=300,
        n_folds=3,
        n_candidates=4,
    ),
    "full": Config(grids=GRIDS, n_splits=5, n_test=4000, n_folds=5, n_candidates=9),
}


def tasks(config: Config) -> list[dict[str, Any]]:
    """List the searches, one outer split of all grids after the other.

    Parameters
    ----------
    config : Config
        Its grids and splits.

    Returns
    -------
    tasks : list of dict
        One a search: data_set, n_train, family, split.
    """
    return [
        {"data_set": data_set, "n_train": n_train, "family": family, "split": split}
        for split in range(config.n_splits)
        for data_set, n_train, family in config.grids
    ]


def measure(
    task: dict[str, Any], config: Config, seed: int, data: Path | None
) -> list[dict[str, Any]]:
    """Fit and measure the candidates of one search.

    Parameters
    ----------
    task : dict
        The search.
    config : Config
        The rest.
    seed : int
        Of the experiment.
    data : Path or None
        Not needed.

    Returns
    -------
    records : list of dict
        See `records_of`.
    """
    sample = draw_sample(
        task["data_set"], task["n_train"], config.n_test, task["split"], seed
    )
    family = FAMILIES[task["family"]]
    candidates = family.candidates()
    step = -(-len(candidates) // config.n_candidates)
    sample = replace(
        sample,
        X=sample.X.astype(family.dtype),
        X_test=sample.X_test.astype(family.dtype),
    )
    return records_of(candidates[::step], sample, config.n_folds, seed)


def summarize(
    records: list[dict[str, Any]], config: Config, seed: int
) -> dict[str, Any]:
    """Apply the rules, and compare what they chose.

    Parameters
    ----------
    records : list of dict
        All records.
    config : Config
        The grids.
    seed : int
        Of the experiment.

    Returns
    -------
    summary : dict
        "rules": regrets and differences from the choice by cross-validated log-loss;
        "against_random": of the measures, from a draw among the candidates that they
        compare; "by_labels": apart by the verdict on the labels; "foretold": how the
        rules did by the verdict of each condition; "seconds" by family; "measures":
        time of each.
    """
    searches = searches_of(records)
    return {
        "searches": len(searches),
        "grids": len({search.grid for search in searches}),
        "candidates": sum(search.n_candidates for search in searches),
        "not_calibrated": sum(s.info["radius_sc"] is None for s in searches),
        "rules": rule_rows(searches, list(RULES), seed),
        "against_random": against_random_rows(searches, seed),
        "by_labels": label_rows(searches, seed),
        "foretold": foretold_rows(searches, seed),
        "seconds": time_rows(searches, config.n_folds, N_REFERENCES),
        "measures": measure_rows(searches),
    }


def draw(summary: dict[str, Any]) -> Any:
    """Draw the differences from cross-validation.

    Parameters
    ----------
    summary : dict
        Of `summarize`.

    Returns
    -------
    figure : matplotlib.figure.Figure
        The shown rules, by quality and by verdict.
    """
    rules = [row for row in summary["rules"] if row["rule"] in SHOWN]
    return draw_differences(rules, summary["by_labels"])
