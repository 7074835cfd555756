"""Which rule chooses the better candidate of a grid: accuracy, flatness, smoothed risk."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sklearn_relflat.experiments._selection_candidates import records_of
from sklearn_relflat.experiments._selection_grids import (
    FAMILIES,
    GRIDS,
    draw_sample,
)

CLAIM = (
    "Among about equally accurate models the flatter one generalizes better, and the "
    "smoothed risk of one fit chooses about as well as cross-validation does."
)
COST = {
    "quick": "20 seconds on two cores",
    "full": "60 minutes of one core",
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
        n_splits=2,
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
