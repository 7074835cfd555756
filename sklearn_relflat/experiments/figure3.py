"""Correlation of flatness and gap against class separation, in each regime."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sklearn_relflat import (
    density_radius,
    rank_correlations,
    relative_flatness,
    smoothed_risk,
)
from sklearn_relflat._selection.other_labels import other_labels
from sklearn_relflat.experiments._drawing import draw_line
from sklearn_relflat.experiments._statistics import mean_interval, seed_of
from sklearn_relflat.experiments._two_classes import (
    CROSS_ENTROPY,
    SQUARED_ERROR,
    draw_classes,
    fit_linear,
    mean_loss,
)

CLAIM = (
    "Over data sets of one class separation, relative flatness correlates with the "
    "generalization gap, the more the better the classes are separated, and not where "
    "labels are not locally constant (Figure 3)."
)
COST = {"quick": "10 seconds", "full": "12 minutes of one core"}
NEEDS_DATA = False
#: Columns that are correlated, and with what.
PAIRS = {
    "gap": ("kappa", "rise", "rise_fixed", "train_loss"),
    "gap_rest": ("kappa",),
    "test_loss": ("kappa", "smoothed", "smoothed_fixed", "train_loss"),
}


@dataclass(frozen=True)
class Config:
    """Distributions, models, and how many data sets of each.

    Attributes
    ----------
    cases : tuple of tuple of str
        Source of the data, and loss of the model.
    separations : tuple of float
        Of the classes.
    n_sets : int
        Data sets of each source and separation.
    n_samples : int
        Size of a data set.
    train_sizes : tuple of int
        How many of these samples, the first ones, a model is fitted to.
    penalties : tuple of float
        1 / C of logistic, alpha of ridge regression.
    delta : float
        The radius that is the same for all data.
    n_test : int
        Fresh samples of the same distribution, for the test loss.
    """

    cases: tuple[tuple[str, str], ...]
    separations: tuple[float, ...]
    n_sets: int
    n_samples: int
    train_sizes: tuple[int, ...]
    penalties: tuple[float, ...]
    delta: float
    n_test: int


_CASES = (
    ("gaussians", CROSS_ENTROPY),
    ("gaussians", SQUARED_ERROR),
    ("make_classification", SQUARED_ERROR),
)
PRESETS = {
    "quick": Config(
        cases=_CASES,
        separations=(0.5, 2.0),
        n_sets=4,
        n_samples=200,
        train_sizes=(50, 100),
        penalties=(1.0,),
        delta=0.5,
        n_test=1000,
    ),
    "full": Config(
        cases=_CASES,
        separations=(0.1, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0),
        n_sets=100,
        n_samples=500,
        train_sizes=(50, 100, 200, 400),
        penalties=(0.01, 1.0, 100.0),
        delta=0.5,
        n_test=10_000,
    ),
}


def tasks(config: Config) -> list[dict[str, Any]]:
    """List the data sets, one of each distribution after the other.

    Parameters
    ----------
    config : Config
        The distributions.

    Returns
    -------
    tasks : list of dict
        Source, separation and number of the data set.
    """
    sources = dict.fromkeys(source for source, _ in config.cases)
    return [
        {"source": source, "separation": separation, "set": number}
        for number in range(config.n_sets)
        for source in sources
        for separation in config.separations
    ]


def measure(
    task: dict[str, Any], config: Config, seed: int, data: Path | None
) -> list[dict[str, Any]]:
    """Fit all models to one data set.

    Parameters
    ----------
    task : dict
        The data set.
    config : Config
        The rest.
    seed : int
        Of the experiment.
    data : Path or None
        Not used.

    Returns
    -------
    records : list of dict
        One a training size, loss and penalty: losses, relative flatness, smoothed
        risk, and the share of other labels within the radius.
    """
    number = seed_of(seed, *task.values())
    n = config.n_samples
    X, y = draw_classes(
        task["source"], n + config.n_test, task["separation"], seed=number
    )
    losses = [loss for source, loss in config.cases if source == task["source"]]
    records = []
    for size in config.train_sizes:
        radius = density_radius(X[:size])
        labels = other_labels(X[:size], y[:size], radius.radius)
        for loss, penalty in itertools.product(losses, config.penalties):
            model, targets = fit_linear(loss, penalty, X[:size], y[:size])
            flatness = relative_flatness(model, X[:size], targets)
            risks = [
                smoothed_risk(
                    model, X[:size], targets, radius=delta, random_state=number
                ).value
                for delta in (radius.radius, config.delta)
            ]
            train_loss = flatness.mean_loss
            test_loss = mean_loss(model, loss, X[n:], y[n:])
            rest_loss = mean_loss(model, loss, X[size:n], y[size:n])
            records.append(
                {
                    "n_train": size,
                    "loss": loss,
                    "penalty": penalty,
                    "train_loss": train_loss,
                    "test_loss": test_loss,
                    "gap": test_loss - train_loss,
                    "gap_rest": rest_loss - train_loss,
                    "kappa": flatness.value,
                    "smoothed": risks[0],
                    "rise": risks[0] - train_loss,
                    "smoothed_fixed": risks[1],
                    "rise_fixed": risks[1] - train_loss,
                    "radius": radius.radius,
                    "other_labels": labels.share,
                }
            )
    return records


def summarize(
    records: list[dict[str, Any]], config: Config, seed: int
) -> dict[str, Any]:
    """Correlate over the data sets of each cell.

    Parameters
    ----------
    records : list of dict
        All records.
    config : Config
        The cells.
    seed : int
        Of the bootstrap.

    Returns
    -------
    summary : dict
        "trends", one row a source, loss, penalty and training size: how the
        correlation of relative flatness and gap changes with the separation;
        "smoothed_risk", the same rows: Spearman's correlations of the smoothed risk
        with the test loss and of its rise with the gap, and the ratio of mean smoothed
        risk and mean test loss; "labels", one row a source and training size; "cells",
        columns of all correlations with intervals.
    """
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for r in records:
        key = (r["source"], r["loss"], r["penalty"], r["n_train"], r["separation"])
        groups.setdefault(key, []).append(r)
    trends, smoothed, cells = [], [], []
    for (source, loss), penalty, size in itertools.product(
        config.cases, config.penalties, config.train_sizes
    ):
        row = {"source": source, "loss": loss, "penalty": penalty, "n_train": size}
        along: list[dict[str, Any]] = [
            {**row, "separation": separation}
            | _cell(groups[source, loss, penalty, size, separation], seed)
            for separation in config.separations
        ]
        cells += along
        trends.append({**row, **_trends(along)})
        smoothed.append({**row, **_smoothed_columns(along)})
    return {
        "labels": _labels(records, config, seed),
        "trends": trends,
        "smoothed_risk": smoothed,
        "cells": {name: [cell[name] for cell in cells] for name in cells[0]},
    }


def _cell(sets: list[dict[str, Any]], seed: int) -> dict[str, Any]:
    """Correlations over the data sets of one cell, and its means."""
    found: dict[str, Any] = {"sets": len(sets)}
    for name in ("train_loss", "test_loss", "smoothed"):
        found[f"mean_{name}"] = float(f"{np.mean([s[name] for s in sets]):.4g}")
    for target, measures in PAIRS.items():
        result = rank_correlations(
            sets,
            measures,
            target,
            coefficients=["pearson", "spearman"],
            random_state=seed,
        )
        rows = result.rows()
        if target == "gap":
            rows += rank_correlations(
                sets,
                "kappa",
                target,
                control="train_loss",
                coefficients=["partial_spearman"],
                random_state=seed,
            ).rows()
        for r in rows:
            name = f"{r['coefficient']}_{r['measure']}_{target}"
            found[name] = _rounded(r["value"])
            found[f"{name}_low"] = _rounded(r["low"])
            found[f"{name}_high"] = _rounded(r["high"])
    return found


def _rounded(value: float) -> float | None:
    """Three digits are more than the data sets tell; None where there is no value."""
    return round(float(value), 3) if math.isfinite(value) else None


def _along(cells: list[dict[str, Any]], name: str) -> list[float | None]:
    """One correlation by separation, for a table."""
    values = [cell[name] for cell in cells]
    return [None if value is None else round(value, 2) for value in values]


def _trends(cells: list[dict[str, Any]]) -> dict[str, Any]:
    """Correlations of relative flatness and gap along the separations."""
    found: dict[str, Any] = {}
    for coefficient in ("spearman", "pearson"):
        name = f"{coefficient}_kappa_gap"
        change, interval = _change(cells[0], cells[-1], name)
        found[coefficient] = _along(cells, name)
        found[f"{coefficient}_change"] = change
        found[f"{coefficient}_interval"] = interval
        found[f"{coefficient}_trend"] = _trend(interval)
        # At the smallest one there is next to nothing to learn.
        _, interval = _change(cells[1], cells[-1], name)
        found[f"{coefficient}_trend_from_the_second"] = _trend(interval)
    low, high = (cells[0][f"spearman_kappa_gap_{end}"] for end in ("low", "high"))
    found["spearman_nil_at_the_first"] = low <= 0 <= high
    found["spearman_given_the_training_loss"] = _along(
        cells, "partial_spearman_kappa_gap"
    )
    return found


def _change(
    first: dict[str, Any], last: dict[str, Any], name: str
) -> tuple[float, list[float]]:
    """Difference of two independent correlations, with an interval."""
    (old, new), (low, low_new), (high, high_new) = (
        (first[column], last[column])
        for column in (name, f"{name}_low", f"{name}_high")
    )
    # The square-and-add rule (Zou 2007): from the intervals of both.
    change = new - old
    below = math.hypot(new - low_new, high - old)
    above = math.hypot(high_new - new, old - low)
    return change, [change - below, change + above]


def _trend(interval: list[float]) -> str:
    """Say what an interval of a difference says."""
    low, high = interval
    return "rises" if low > 0 else "falls" if high < 0 else "unclear"


def _smoothed_columns(cells: list[dict[str, Any]]) -> dict[str, Any]:
    """Compare what the smoothed risk tells with what the training loss tells."""
    pairs = (
        ("smoothed", "test_loss"),
        ("smoothed_fixed", "test_loss"),
        ("train_loss", "test_loss"),
        ("rise", "gap"),
        ("rise_fixed", "gap"),
        ("train_loss", "gap"),
    )
    ratios = [cell["mean_smoothed"] / cell["mean_test_loss"] for cell in cells]
    return {
        **{
            f"{name} with {target}": _along(cells, f"spearman_{name}_{target}")
            for name, target in pairs
        },
        "smoothed over test loss": [float(f"{ratio:.2g}") for ratio in ratios],
    }


def _labels(
    records: list[dict[str, Any]], config: Config, seed: int
) -> list[dict[str, Any]]:
    """Share of other labels within the radius, by separation."""
    rows = []
    for source, size in itertools.product(
        dict.fromkeys(source for source, _ in config.cases), config.train_sizes
    ):
        own = {"source": source, "n_train": size}
        shares, intervals, radii = [], [], []
        for separation in config.separations:
            key = {**own, "separation": separation}
            # Each data set once: the share is the same for all of its models.
            sets = {r["set"]: r for r in records if key.items() <= r.items()}.values()
            share, interval = mean_interval([s["other_labels"] for s in sets], seed)
            shares.append(share)
            intervals.append(interval)
            radii.append(float(np.mean([s["radius"] for s in sets])))
        rows.append(
            {
                **own,
                "separations": list(config.separations),
                "other_labels": shares,
                "intervals": intervals,
                "radius": radii,
            }
        )
    return rows


def draw(summary: dict[str, Any]) -> Any:
    """Draw correlations over the separation.

    Parameters
    ----------
    summary : dict
        Of `summarize`.

    Returns
    -------
    figure : matplotlib.figure.Figure
        A row for each penalty and one for the smoothed risk; a column for each source
        and loss.
    """
    from matplotlib.figure import Figure

    columns = summary["cells"]
    cells = [
        dict(zip(columns, values, strict=True))
        for values in zip(*columns.values(), strict=True)
    ]
    cases = list(dict.fromkeys((c["source"], c["loss"]) for c in cells))
    penalties = list(dict.fromkeys(c["penalty"] for c in cells))
    middle = penalties[len(penalties) // 2]
    rows = [(penalty, "spearman_kappa_gap", "kappa, gap") for penalty in penalties]
    rows.append((middle, "spearman_smoothed_test_loss", "smoothed risk, test loss"))
    figure = Figure(figsize=(9.5, 2.6 * len(rows)), layout="constrained")
    panels = figure.subplots(
        len(rows), len(cases), sharex=True, sharey=True, squeeze=False
    )
    for (penalty, name, label), line in zip(rows, panels, strict=True):
        for (source, loss), ax in zip(cases, line, strict=True):
            own = {"source": source, "loss": loss, "penalty": penalty}
            chosen = [c for c in cells if own.items() <= c.items()]
            _draw_panel(ax, chosen, name)
            _draw_labels(ax, summary["labels"], source)
        line[0].set_ylabel(f"Spearman, {label}\npenalty {penalty:g}")
    for (source, loss), ax in zip(cases, panels[0], strict=True):
        ax.set_title(f"{source}, {loss}", fontsize=10)
    for ax in panels[-1]:
        ax.set_xlabel("class separation")
    handles, names = panels[0][0].get_legend_handles_labels()
    figure.legend(
        handles, names, loc="outside lower center", ncols=len(names), frameon=False
    )
    return figure


def _draw_panel(ax: Any, cells: list[dict[str, Any]], name: str) -> None:
    """Draw one correlation, a line for each training size."""
    for i, size in enumerate(dict.fromkeys(c["n_train"] for c in cells)):
        line = [c for c in cells if c["n_train"] == size]
        low, high = (
            np.array([c[f"{name}_{end}"] for c in line], dtype=np.float64)
            for end in ("low", "high")
        )
        values = np.array([c[name] for c in line], dtype=np.float64)
        x = np.array([c["separation"] for c in line])
        # Bars side by side can be told apart.
        draw_line(
            ax, x + 0.05 * (i - 1.5), values, low, high, i, label=f"{size} samples"
        )
    ax.axhline(0.0, color="0.5", linewidth=0.8, zorder=0)
    ax.set(ylim=(-1.05, 1.05))


def _draw_labels(ax: Any, rows: list[dict[str, Any]], source: str) -> None:
    """Draw the range of the share of other labels over the training sizes."""
    own = [row for row in rows if row["source"] == source]
    shares = np.array([row["other_labels"] for row in own])
    ax.fill_between(
        own[0]["separations"],
        shares.min(axis=0),
        shares.max(axis=0),
        color="0.8",
        zorder=0,
        label="share of other labels",
    )
