"""What the records of `reparameterization` say: correlations before and after."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from sklearn_relflat import rank_correlations
from sklearn_relflat._evidence.coefficients import Samples, spearman
from sklearn_relflat._evidence.pairs import RunPairs
from sklearn_relflat.experiments._all_measures import label_of
from sklearn_relflat.experiments._drawing import MARKERS, OKABE_ITO, draw_points
from sklearn_relflat.experiments._figure5_summary import measures_of, with_interval
from sklearn_relflat.experiments._statistics import (
    N_RESAMPLES,
    percentiles,
    resamples,
    rounded,
)

#: Layers 4 and 5 of LeNet5, as in the paper: the first is divided, the other makes up
#: for it.
DIVIDED, MULTIPLIED = "fc2", "fc3"
AS_TRAINED = "as trained"
#: How the weights were rescaled, in the order of the tables.
RESCALED = ("layers", "neurons")
#: Columns of a record that are no measures, beside those of `figure5`.
NO_MEASURES = (
    "weights",
    "smallest_factor",
    "largest_factor",
    "output_change",
    "loss_change",
    "gap_change",
    "changes",
)
_COEFFICIENTS = ("spearman", "kendall", "pearson", "partial_spearman")
_FEWEST_RUNS = 4
# Kinds of measures that theory says do not move, where the rescaling reaches them.
_INVARIANT = {
    "layers": {"k", "ks", "fr", "pbm", "asam", "s"},
    "neurons": {"ks", "fr", "pbm", "asam"},
}
UNTOUCHED, INVARIANT, MOVES = "untouched", "invariant", "moves"
#: The measures of the figure, those first that layers do not move.
DRAWN = (
    "ks_se_fc3",
    "ks_ce_fc3",
    "k_ce_fc3",
    "ks_ce_fc2",
    "s_fc3",
    "fr",
    "pbm",
    "asam",
    "tr_fc3",
    "tr_fc2",
    "tr_all",
    "eig",
    "pb",
    "sam",
    "wn_all",
)
# Changes below are drawn here.
_SMALLEST = 1e-8

Record = dict[str, Any]


def by_theory(column: str, rescaled: str) -> str:
    """Say what a rescaling does to a measure.

    Parameters
    ----------
    column : str
        A column of `measure_network`.
    rescaled : {"layers", "neurons"}
        What was rescaled.

    Returns
    -------
    effect : {"untouched", "invariant", "moves"}
        "untouched" where neither the weights nor the features that are measured, nor
        the function behind them, change at all.
    """
    kind, *rest = column.split("_")
    layer = rest[-1] if rest else "all"
    of_features = kind in ("s", "se")
    # What is perturbed is the input of a layer.
    reached = (MULTIPLIED,) if of_features else (DIVIDED, MULTIPLIED, "all")
    if layer not in reached:
        return UNTOUCHED
    # Rows and their Hessian scale inversely; only columns must be normalized.
    rows_alone = kind == "k" and layer == DIVIDED
    return INVARIANT if rows_alone or kind in _INVARIANT[rescaled] else MOVES


def summary_of(
    records: list[Record], hyperparameters: Sequence[str], seed: int
) -> dict[str, Any]:
    """Summarize correlations and changes by what was rescaled.

    Parameters
    ----------
    records : list of dict
        All records.
    hyperparameters : sequence of str
        Columns of the tasks.
    seed : int
        Of the bootstrap over runs.

    Returns
    -------
    summary : dict
        "runs", what became of the trainings; "function", how far it moved; a table
        for layers and one for neurons, of the measures that the rescaling reaches;
        "correlations", all coefficients of all measures.
    """
    measures = measures_of(records, [*hyperparameters, *NO_MEASURES])
    trained = [r for r in records if r["weights"] == AS_TRAINED]
    runs = [r for r in trained if r["status"] == "reached"]
    twins = {
        name: [record for record in records if record["weights"] == name]
        for name in RESCALED
    }
    summary: dict[str, Any] = {
        "runs": [_counts(trained, runs, records)],
        "function": [],
        "correlations": {},
    }
    if len(runs) < _FEWEST_RUNS:
        return summary
    for name, others in twins.items():
        rows = _compared(runs, others, measures, name, seed)
        summary["correlations"][name] = rows
        summary["function"].append(_function(name, others, rows))
        summary[f"{name}_rescaled"] = [
            {
                "measure": row["measure"],
                "by_theory": row["by_theory"],
                "median_change": row["median_change"],
                "largest_change": row["largest_change"],
                "spearman_before": with_interval(row, "spearman_before"),
                "spearman_after": with_interval(row, "spearman_after"),
                "after_minus_before": with_interval(row, "difference"),
            }
            for row in rows
            if row["by_theory"] != UNTOUCHED
        ]
    return summary


def _counts(trained: list[Record], runs: list[Record], records: list[Record]) -> Record:
    """Count what became of the trainings."""
    counts = Counter(record["status"] for record in trained)
    row: Record = {"trainings": len(trained)}
    row |= {status: counts[status] for status in ("reached", "missed", "diverged")}
    row["records_with_values_missing"] = sum("reasons" in r for r in records)
    for column in ("train_loss", "test_loss", "test_error", "gap"):
        values = [run[column] for run in runs]
        row[f"{column}_range"] = [min(values), max(values)] if values else None
    return row


def _function(name: str, others: list[Record], rows: list[Record]) -> Record:
    """Say how far the function moved, and what the rescaling does not reach."""
    untouched = [r["largest_change"] for r in rows if r["by_theory"] == UNTOUCHED]
    factors = (
        [r["smallest_factor"] for r in others],
        [r["largest_factor"] for r in others],
    )
    row: Record = {
        "rescaled": name,
        "factors": [min(factors[0]), max(factors[1])],
    }
    for column in ("output_change", "loss_change", "gap_change"):
        row[f"largest_{column}"] = max(record[column] for record in others)
    row["largest_change_of_untouched_measures"] = max(
        (value for value in untouched if value is not None), default=None
    )
    return row


def _compared(
    runs: list[Record],
    others: list[Record],
    measures: Sequence[str],
    rescaled: str,
    seed: int,
) -> list[Record]:
    """Correlate measures before and after with the gap, one row a measure."""
    before: list[Record] = [{} for _ in runs]
    after: list[Record] = [{} for _ in runs]
    for name in measures:
        # A run counts on both sides or on none.
        for row, other, run, its in zip(before, after, runs, others, strict=True):
            both = None not in (run[name], its[name])
            row[name], other[name] = (run[name], its[name]) if both else (None, None)
    found: dict[str, Record] = {
        name: {
            "column": name,
            "measure": label_of(name),
            "by_theory": by_theory(name, rescaled),
            "n": sum(row[name] is not None for row in before),
            **_change([other["changes"][name] for other in others]),
        }
        for name in measures
    }
    for side, rows in (("before", before), ("after", after)):
        targets = [{k: run[k] for k in ("gap", "train_loss")} for run in runs]
        result = rank_correlations(
            [row | target for row, target in zip(rows, targets, strict=True)],
            list(measures),
            "gap",
            control="train_loss",
            coefficients=_COEFFICIENTS,
            n_resamples=N_RESAMPLES,
            random_state=seed,
        )
        for row in result.rows():
            entry, name = found[row["measure"]], f"{row['coefficient']}_{side}"
            entry[name] = rounded(row["value"], 4)
            entry[f"{name}_interval"] = [rounded(row[k], 4) for k in ("low", "high")]
    for name in measures:
        kept = [i for i, row in enumerate(before) if row[name] is not None]
        first, second, gap = (
            np.array([rows[i][column] for i in kept], dtype=np.float64)
            for rows, column in ((before, name), (after, name), (runs, "gap"))
        )
        found[name] |= _difference(first, second, gap, seed)
    return list(found.values())


def _change(changes: list[float | None]) -> Record:
    """Median and largest of changes."""
    defined = [value for value in changes if value is not None]
    if not defined:
        return {"median_change": None, "largest_change": None}
    return {
        "median_change": rounded(float(np.median(defined)), 3),
        "largest_change": max(defined),
    }


def _difference(
    before: np.ndarray, after: np.ndarray, gap: np.ndarray, seed: int
) -> Record:
    """Spearman's correlation after minus before, with the same runs drawn for both."""
    n = len(gap)
    if n < _FEWEST_RUNS:
        return {"difference": None, "difference_interval": [None, None]}
    drawn = np.concatenate([np.arange(n)[None], resamples(n, seed)])
    none = np.empty((n, 0))
    samples = Samples(drawn, gap, none, RunPairs(none))
    values = spearman(after, samples) - spearman(before, samples)
    interval = percentiles(values[1:])
    return {
        "difference": rounded(float(values[0]), 4),
        "difference_interval": [rounded(end, 4) for end in interval],
    }


# ---------------------------------------------------------------------------
# Figure
# ---------------------------------------------------------------------------
def figure_of(summary: dict[str, Any]) -> Any:
    """Draw correlations before and after, and how far the measures moved.

    Parameters
    ----------
    summary : dict
        Of `summary_of`.

    Returns
    -------
    figure : matplotlib.figure.Figure
        Two panels with a line for each of `DRAWN`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.0, 7.0), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1.35, 1))
    tables = {
        name: {row["column"]: row for row in rows}
        for name, rows in summary["correlations"].items()
    }
    drawn = [c for c in DRAWN if all(c in table for table in tables.values())]
    places = {column: -float(i) for i, column in enumerate(drawn)}
    for i, name in enumerate(RESCALED):
        rows = [tables[name][column] for column in drawn if name in tables]
        y = np.array([places[row["column"]] for row in rows])
        if i == 0:
            _draw_bars(left, rows, "spearman_before", y + 0.25, 0, AS_TRAINED)
        label = f"{name} rescaled"
        _draw_bars(left, rows, "spearman_after", y - 0.25 * i, i + 1, label)
        changes = [max(row["median_change"] or 0.0, _SMALLEST) for row in rows]
        style = {"color": OKABE_ITO[i + 1], "markersize": 6}
        right.plot(changes, y - 0.25 * i, MARKERS[i + 1], **style)
    _finish(left, right, drawn, places, figure)
    return figure


def _draw_bars(
    ax: Any, rows: list[Record], name: str, y: np.ndarray, i: int, label: str
) -> None:
    """Draw coefficients with their intervals."""
    shown = [
        (row, at) for row, at in zip(rows, y, strict=True) if row[name] is not None
    ]
    ends = [row[f"{name}_interval"] for row, _ in shown]
    low, high = np.array(ends, dtype=np.float64).reshape(-1, 2).T
    x = [row[name] for row, _ in shown]
    draw_points(ax, x, [at for _, at in shown], low, high, i, label=label)


def _finish(
    left: Any, right: Any, drawn: list[str], places: dict[str, float], figure: Any
) -> None:
    """Label the axes, and part what moves from what does not."""
    left.set_yticks([*places.values()], [label_of(column) for column in drawn])
    left.set(
        xlabel="Spearman correlation with the gap (95 % interval)",
        xlim=(-1.02, 1.02),
        ylim=(0.4 - len(drawn), 0.6),
    )
    ticks = 10.0 ** np.arange(-8, 5, 2)
    powers = [f"$10^{{{int(np.log10(tick))}}}$" for tick in ticks[1:]]
    right.set(xscale="log", xlabel="median relative change of the measure")
    right.set_xticks(ticks, [f"$\\leq 10^{{{int(np.log10(_SMALLEST))}}}$", *powers])
    right.set_xlim(_SMALLEST / 3, 3 * ticks[-1])
    left.axvline(0.0, color="0.5", linewidth=0.8, zorder=0)
    first = next((c for c in drawn if by_theory(c, RESCALED[0]) == MOVES), None)
    for ax in (left, right):
        ax.grid(axis="y", color="0.93", zorder=0)
        if first is not None:
            ax.axhline(places[first] + 0.5, color="0.3", linewidth=0.9, linestyle="--")
    if first is not None:
        words = {
            "invariant under rescaled layers, by theory": (0.55, "bottom"),
            "not invariant": (0.45, "top"),
        }
        for text, (above, side) in words.items():
            at = (ticks[-1], places[first] + above)
            right.annotate(text, at, ha="right", va=side, fontsize=8, color="0.3")
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
