"""What the records of `figure5` say: correlations at each stopping point."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from sklearn_relflat import rank_correlations
from sklearn_relflat.experiments._all_measures import label_of
from sklearn_relflat.experiments._drawing import draw_line

#: What a measure is to tell.
TARGETS = ("gap", "test_loss", "test_error")
#: Columns of a record that are no measures.
_NO_MEASURES = {
    "threshold",
    "status",
    "epoch",
    "train_loss",
    "train_error",
    "test_loss",
    "test_error",
    "gap",
    "error_gap",
    "reason",
    "reasons",
}
_FEWEST_RUNS = 4
# With intervals, and without: those cost more than they tell.
_WITH_INTERVAL = ("spearman", "kendall", "pearson", "granulated_kendall")
_WITHOUT = ("partial_spearman", "conditional_information", "sign_error")
_N_RESAMPLES = 1000
#: The measures of the figure, one of each kind.
DRAWN = ("ks_ce_fc3", "ks_se_fc3", "s_fc1", "tr_all", "fr", "pb", "wn_all")

Record = dict[str, Any]


def measures_of(records: Sequence[Record], hyperparameters: Sequence[str]) -> list[str]:
    """List the measures in records, without the radii of the densities.

    Parameters
    ----------
    records : list of dict
        All records.
    hyperparameters : sequence of str
        Columns of the tasks.

    Returns
    -------
    measures : list of str
        In their order.
    """
    columns = dict.fromkeys(column for record in records for column in record)
    others = _NO_MEASURES.union(hyperparameters)
    return [c for c in columns if c not in others and not c.startswith("r_")]


def correlations_at(
    runs: list[Record],
    measures: Sequence[str],
    hyperparameters: Sequence[str],
    strata: Sequence[str],
    seed: int,
) -> list[Record]:
    """Correlate each measure with the targets, at one stopping point.

    Parameters
    ----------
    runs : list of dict
        The records of the runs that reached it.
    measures : sequence of str
        Columns.
    hyperparameters : sequence of str
        Columns that make the factorial.
    strata : sequence of str
        Hyperparameters that are held fixed for the correlation within strata.
    seed : int
        Of the bootstrap over runs.

    Returns
    -------
    rows : list of dict
        One a measure.
    """
    found: dict[str, Record] = {name: {"measure": label_of(name)} for name in measures}
    for target in TARGETS:
        is_gap = target == "gap"
        wanted = _WITH_INTERVAL if is_gap else ("spearman",)
        for coefficients, n in (
            (wanted, _N_RESAMPLES),
            (_WITHOUT if is_gap else ("kendall",), 0),
        ):
            result = rank_correlations(
                runs,
                list(measures),
                target,
                list(hyperparameters),
                control="train_loss",
                coefficients=coefficients,
                n_resamples=n,
                random_state=seed,
            )
            for row in result.rows():
                name = f"{row['coefficient']}_{target}"
                entry = found[row["measure"]]
                entry["n"] = row["n_runs"]
                entry[name] = _number(row["value"])
                if n:
                    ends = [_number(row["low"]), _number(row["high"])]
                    entry[f"{name}_interval"] = ends
    for name in measures:
        found[name]["spearman_gap_within_strata"] = _within(runs, name, strata)
    return [{"column": name, **row} for name, row in found.items()]


def _number(value: float) -> float | None:
    """Round for the file; None where it is not defined."""
    return round(float(value), 4) if math.isfinite(value) else None


def _within(runs: list[Record], measure: str, strata: Sequence[str]) -> float | None:
    """Mean Spearman correlation with the gap over strata."""
    groups: dict[tuple[Any, ...], list[tuple[float, float]]] = {}
    for run in runs:
        if run.get(measure) is not None:
            key = tuple(run[name] for name in strata)
            groups.setdefault(key, []).append((run[measure], run["gap"]))
    values = [
        float(spearmanr(*np.array(group).T).statistic)
        for group in groups.values()
        if len(group) >= _FEWEST_RUNS and all(np.ptp(np.array(group), axis=0) > 0)
    ]
    return _number(float(np.mean(values))) if values else None


def summary_of(
    records: list[Record],
    thresholds: Sequence[float],
    hyperparameters: Sequence[str],
    strata: Sequence[str],
    seed: int,
) -> dict[str, Any]:
    """Summarize by stopping point.

    Parameters
    ----------
    records : list of dict
        All records.
    thresholds : sequence of float
        The stopping points.
    hyperparameters, strata : sequence of str
        See `correlations_at`.
    seed : int
        Of the bootstrap.

    Returns
    -------
    summary : dict
        "stops", what became of the runs at each threshold; a table for each target,
        with Spearman's correlation by measure and threshold; "correlations", all
        coefficients, by threshold.
    """
    measures = measures_of(records, hyperparameters)
    stops, rows = [], []
    for threshold in thresholds:
        here = [r for r in records if r["threshold"] == threshold]
        runs = [r for r in here if r["status"] == "reached"]
        stops.append(_stop(threshold, here, runs))
        if len(runs) >= _FEWEST_RUNS:
            rows += [
                {"threshold": threshold, **row}
                for row in correlations_at(
                    runs, measures, hyperparameters, strata, seed
                )
            ]
    tables = {
        f"spearman_with_{target}": [
            {"measure": label_of(name)}
            | {
                f"{row['threshold']:g}": with_interval(row, f"spearman_{target}")
                for row in rows
                if row["column"] == name
            }
            for name in measures
        ]
        for target in TARGETS
    }
    # By threshold, and no table of its own: 350 rows are for programs.
    correlations = {
        f"{threshold:g}": [row for row in rows if row["threshold"] == threshold]
        for threshold in thresholds
    }
    return {"stops": stops, **tables, "correlations": correlations}


def _stop(threshold: float, here: list[Record], runs: list[Record]) -> Record:
    """Describe a stopping point."""
    counts = Counter(record["status"] for record in here)
    row: Record = {"threshold": threshold, "runs": len(here)}
    row |= {s: counts[s] for s in ("reached", "passed", "missed", "diverged")}
    row["values_missing"] = sum("reasons" in run for run in runs)
    for column in ("train_loss", "gap", "test_loss", "test_error"):
        values = [run[column] for run in runs]
        ends = [min(values), max(values)] if values else [None, None]
        row[f"{column}_range"] = ends
    return row


def with_interval(row: Record, name: str) -> str:
    """Write a coefficient and its interval.

    Parameters
    ----------
    row : dict
        With the coefficient and, under ``name_interval``, its ends; None where one is
        not defined.
    name : str
        The coefficient.

    Returns
    -------
    text : str
        Two decimals.
    """
    low, high = row[f"{name}_interval"]
    if row[name] is None:
        return ""
    if low is None or high is None:
        return f"{row[name]:.2f}"
    return f"{row[name]:.2f} ({low:.2f} to {high:.2f})"


def figure_of(summary: dict[str, Any]) -> Any:
    """Draw Spearman's correlation over the training loss at which runs are compared.

    Parameters
    ----------
    summary : dict
        Of `summary_of`.

    Returns
    -------
    figure : matplotlib.figure.Figure
        A panel for each target.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.5, 5.2), layout="constrained")
    panels = figure.subplots(1, len(TARGETS), sharey=True)
    titles = ("test loss minus training loss", "test loss", "test error")
    for ax, target, title in zip(panels, TARGETS, titles, strict=True):
        for i, column in enumerate(DRAWN):
            rows = [
                row
                for found in summary["correlations"].values()
                for row in found
                if row["column"] == column
            ]
            _draw_line(ax, rows, f"spearman_{target}", i)
        ax.axhline(0.0, color="0.5", linewidth=0.8, zorder=0)
        ax.set(xscale="log", title=title, xlabel="training loss", ylim=(-1.05, 1.05))
        ticks = [stop["threshold"] for stop in summary["stops"]]
        ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        ax.minorticks_off()
        ax.invert_xaxis()
    panels[0].set(ylabel="Spearman correlation over runs (95 % interval)")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    return figure


def _draw_line(ax: Any, rows: list[Record], name: str, i: int) -> None:
    """Draw one measure, beside the others."""
    rows = [row for row in rows if row[name] is not None]
    if not rows:
        return
    low, high = np.array([row[f"{name}_interval"] for row in rows], dtype=np.float64).T
    shift = 1.035 ** (i - (len(DRAWN) - 1) / 2)
    x, y = [r["threshold"] * shift for r in rows], [r[name] for r in rows]
    draw_line(ax, x, y, low, high, i, label=label_of(DRAWN[i]))
