"""What the rules of `selection` are worth: regrets, paired differences, time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sklearn_relflat.experiments._selection_rules import (
    BASELINE,
    RULES,
    TOLERANCES,
    WITHIN,
    columns_of,
)
from sklearn_relflat.experiments._statistics import clustered_interval

#: Held-out quality, smaller is better: its name, column, and sign of the column.
QUALITIES: dict[str, tuple[str, float, float]] = {
    "log_loss": ("L", 1.0, 0.0),
    "error": ("A", -1.0, 1.0),
    "calibration_error": ("E", 1.0, 0.0),
    "error_under_noise": ("N", -1.0, 1.0),
}
#: Rules that are looked at by verdict.
SHOWN = (
    BASELINE,
    "cross-validated accuracy",
    "smoothed risk, calibrated",
    "smoothed risk, density",
    "smoothed risk, density within class",
    "least kappa, mean of folds within 0.01",
    "least kappa, mean of folds within 1se",
    "least kappa, mean of folds within 1se, equal loss",
    "least kappa, squared error within 1se",
    "least hessian trace within 1se",
    "least weight norm within 1se",
    "random within 1se",
    "training loss",
    "random",
)
#: Conditions of `flatness_diagnosis`, and the rule that each is about.
FORETOLD = (
    ("labels_constant", "smoothed risk, density"),
    ("labels_constant", "smoothed risk, calibrated"),
    ("labels_constant", "least kappa, mean of folds within 1se"),
    ("training_losses_alike", "least kappa, mean of folds within 1se"),
    ("flatness_apart_from_loss", "least kappa, mean of folds within 1se"),
)
VERDICTS = ("holds", "unclear", "fails")
# Log-losses that differ by less are a tie, in nats.
_TIE = 0.005


@dataclass(frozen=True)
class Search:
    """One grid on one outer split.

    Attributes
    ----------
    grid : str
        Data set, training samples and family.
    info : dict
        The record of the grid.
    n_candidates : int
        How many there are.
    quality : dict of str to dict of str to float
        By quality and rule.
    best : dict of str to float
        Of the best candidate, by quality.
    """

    grid: str
    info: dict[str, Any]
    n_candidates: int
    quality: dict[str, dict[str, float]]
    best: dict[str, float]

    def difference(self, rule: str, quality: str, against: str = BASELINE) -> float:
        """Return how much worse than another rule a rule did.

        Parameters
        ----------
        rule, quality : str
            Which.
        against : str
            The other rule.

        Returns
        -------
        difference : float
            Negative where it did better.
        """
        return self.quality[quality][rule] - self.quality[quality][against]


def searches_of(records: list[dict[str, Any]]) -> list[Search]:
    """Apply the rules to every grid and split.

    Parameters
    ----------
    records : list of dict
        Of all tasks.

    Returns
    -------
    searches : list of Search
        One a task.
    """
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for r in records:
        grid = f"{r['data_set']} {r['n_train']}, {r['family']}"
        groups.setdefault((grid, r["split"]), []).append(r)
    found = []
    for (grid, _), rows in groups.items():
        columns = columns_of([r for r in rows if "i" in r])
        shares = {name: rule(columns) for name, rule in RULES.items()}
        losses = {
            name: sign * columns[column] + offset
            for name, (column, sign, offset) in QUALITIES.items()
        }
        found.append(
            Search(
                grid=grid,
                info=next(r for r in rows if "i" not in r),
                n_candidates=len(columns["i"]),
                quality={
                    name: {rule: float(share @ loss) for rule, share in shares.items()}
                    for name, loss in losses.items()
                },
                best={name: float(loss.min()) for name, loss in losses.items()},
            )
        )
    return found


def rule_rows(
    searches: list[Search], rules: tuple[str, ...] | list[str], seed: int
) -> list[dict[str, Any]]:
    """One row a rule.

    Parameters
    ----------
    searches : list of Search
        At least one.
    rules : sequence of str
        Names.
    seed : int
        Of the resamples.

    Returns
    -------
    rows : list of dict
        Regret against the best candidate; difference from the baseline with its
        interval, by quality; searches in which the log-loss was smaller, about the
        same and larger than that of the baseline.
    """
    rows = []
    for rule in rules:
        row: dict[str, Any] = {"rule": rule}
        for quality in QUALITIES:
            regrets = [
                search.quality[quality][rule] - search.best[quality]
                for search in searches
            ]
            row[f"{quality}_regret"] = float(np.mean(regrets))
            row |= _compared(searches, rule, BASELINE, quality, seed)
        losses = np.array([search.difference(rule, "log_loss") for search in searches])
        row["won"] = int((losses < -_TIE).sum())
        row["tied"] = int((abs(losses) <= _TIE).sum())
        row["lost"] = int((losses > _TIE).sum())
        rows.append(row)
    return rows


def against_random_rows(searches: list[Search], seed: int) -> list[dict[str, Any]]:
    """Whether a measure tells more than a draw among the same candidates.

    Parameters
    ----------
    searches : list of Search
        All.
    seed : int
        Of the resamples.

    Returns
    -------
    rows : list of dict
        One a tolerance and measure: the differences from the mean of the candidates
        that are compared, with their intervals.
    """
    rows = []
    for tolerance in TOLERANCES:
        for name in WITHIN:
            row: dict[str, Any] = {"tolerance": tolerance, "measure": name}
            rule = f"least {name} within {tolerance}"
            against = f"random within {tolerance}"
            for quality in QUALITIES:
                row |= _compared(searches, rule, against, quality, seed)
            rows.append(row)
    return rows


def _compared(
    searches: list[Search], rule: str, against: str, quality: str, seed: int
) -> dict[str, Any]:
    """Mean difference of two rules over searches, with its interval."""
    differences = [s.difference(rule, quality, against) for s in searches]
    grids = [search.grid for search in searches]
    mean, interval = clustered_interval(differences, grids, seed)
    return {f"{quality}_difference": mean, f"{quality}_interval": interval}


def label_rows(searches: list[Search], seed: int) -> list[dict[str, Any]]:
    """Rows of the shown rules, apart by whether labels are locally constant.

    Parameters
    ----------
    searches : list of Search
        All.
    seed : int
        Of the resamples.

    Returns
    -------
    rows : list of dict
        As of `rule_rows`, with the verdict and the number of searches.
    """
    rows = []
    for verdict in VERDICTS:
        some = [s for s in searches if s.info["labels_constant"] == verdict]
        if some:
            head = {"labels_constant": verdict, "searches": len(some)}
            rows += [head | row for row in rule_rows(some, SHOWN, seed)]
    return rows


def foretold_rows(searches: list[Search], seed: int) -> list[dict[str, Any]]:
    """Whether a condition told beforehand how a rule would do.

    Parameters
    ----------
    searches : list of Search
        All.
    seed : int
        Of the resamples.

    Returns
    -------
    rows : list of dict
        One a condition, rule and verdict: the share of searches that the rule lost
        against the baseline, and the mean difference in log-loss.
    """
    rows = []
    for condition, rule in FORETOLD:
        for verdict in VERDICTS:
            some = [s for s in searches if s.info[condition] == verdict]
            if not some:
                continue
            grids = [s.grid for s in some]
            differences = [s.difference(rule, "log_loss") for s in some]
            lost = [float(d > _TIE) for d in differences]
            share, of_share = clustered_interval(lost, grids, seed)
            mean, of_mean = clustered_interval(differences, grids, seed)
            rows.append(
                {
                    "condition": condition,
                    "verdict": verdict,
                    "rule": rule,
                    "searches": len(some),
                    "grids": len(set(grids)),
                    "share_lost": share,
                    "share_interval": of_share,
                    "log_loss_difference": mean,
                    "log_loss_interval": of_mean,
                }
            )
    return rows


def time_rows(
    searches: list[Search], n_folds: int, n_references: int
) -> list[dict[str, Any]]:
    """Time that a choice takes, by family.

    Parameters
    ----------
    searches : list of Search
        All.
    n_folds : int
        Of the cross-validation.
    n_references : int
        Candidates that a calibration cross-validates.

    Returns
    -------
    rows : list of dict
        Median seconds over the searches of a family. A fit counts what a fit on the
        whole training sample took, in the folds too.
    """
    rows = []
    families = dict.fromkeys(s.info["family"] for s in searches)
    for family in families:
        some = [s for s in searches if s.info["family"] == family]
        fit = np.array([s.info["seconds"]["fit"] for s in some])
        of_references = np.array(
            [n_folds * min(1.0, n_references / s.n_candidates) for s in some]
        )
        density, calibration = (
            np.array([s.info["seconds"][name] for s in some]) for name in ("sd", "sc")
        )
        calibrated = fit * (1 + of_references) + calibration
        seconds = {
            "one_fit_each": fit,
            "cross_validation": fit * n_folds,
            "smoothed_density": fit + density,
            "smoothed_calibrated": calibrated,
        }
        medians = {name: float(np.median(v)) for name, v in seconds.items()}
        rows.append({"family": family, "searches": len(some)} | medians)
    return rows


def measure_rows(searches: list[Search]) -> list[dict[str, Any]]:
    """Time of each measure of one candidate.

    Parameters
    ----------
    searches : list of Search
        All.

    Returns
    -------
    rows : list of dict
        Median and largest over searches, in milliseconds.
    """
    steps = ("fit", "cv", "diagnosis")
    names = [name for name in searches[0].info["seconds"] if name not in steps]
    rows = []
    for name in names:
        each = [1000 * s.info["seconds"][name] / s.n_candidates for s in searches]
        rows.append(
            {
                "measure": name,
                "median_ms": float(np.median(each)),
                "largest_ms": float(np.max(each)),
            }
        )
    return rows
