"""The approximated bound and its two terms against the gap, over class separation."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from sklearn_relflat import density_radius, generalization_bound, rank_correlations
from sklearn_relflat.experiments._drawing import draw_line
from sklearn_relflat.experiments._statistics import (
    mean_interval,
    rounded,
    seed_of,
)
from sklearn_relflat.experiments._two_classes import (
    CROSS_ENTROPY,
    SQUARED_ERROR,
    draw_classes,
    fit_linear,
    mean_loss,
)

CLAIM = (
    "Representativeness plus delta^2 kappa / (2m), both estimated from the training "
    "sample, approximates the generalization gap at all class separations (Figure 4)."
)
COST = {"quick": "10 seconds", "full": "4 minutes of one core"}
NEEDS_DATA = False
#: The data's own radius, beside one that is the same for all.
OWN = "own"
#: What is drawn as points, with intervals, and what else is averaged over data sets.
_DRAWN = {
    "gap": "true gap",
    "bound": "approximated bound",
    "cross_validated_gap": "cross-validated gap",
}
_TERMS = (
    *_DRAWN,
    "representativeness",
    "true_representativeness",
    "flatness_term",
    "true_robustness",
)


@dataclass(frozen=True)
class Config:
    """Data sets, models and radii.

    Attributes
    ----------
    losses : tuple of str
        Of the models.
    separations : tuple of float
        Of the classes.
    n_sets : int
        Data sets of each separation.
    n_samples : int
        Size of a data set, all of it the training sample.
    penalty : float
        1 / C of logistic, alpha of ridge regression.
    delta : float
        The radius that is the same for all data.
    n_splits : int
        Random splits for representativeness and the cross-validated gap.
    n_test : int
        Fresh samples of the same distribution, for the true gap.
    """

    losses: tuple[str, ...]
    separations: tuple[float, ...]
    n_sets: int
    n_samples: int
    penalty: float
    delta: float
    n_splits: int
    n_test: int


_LOSSES = (CROSS_ENTROPY, SQUARED_ERROR)
PRESETS = {
    "quick": Config(
        losses=_LOSSES,
        separations=(0.5, 2.0),
        n_sets=3,
        n_samples=200,
        penalty=1.0,
        delta=0.1,
        n_splits=5,
        n_test=1000,
    ),
    "full": Config(
        losses=_LOSSES,
        separations=(0.5, 0.8, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0),
        n_sets=50,
        n_samples=600,
        penalty=1.0,
        delta=0.1,
        n_splits=10,
        n_test=20_000,
    ),
}


def tasks(config: Config) -> list[dict[str, Any]]:
    """List the data sets, one of each separation after the other.

    Parameters
    ----------
    config : Config
        The separations.

    Returns
    -------
    tasks : list of dict
        Separation and number of the data set.
    """
    return [
        {"separation": separation, "set": number}
        for number in range(config.n_sets)
        for separation in config.separations
    ]


def measure(
    task: dict[str, Any], config: Config, seed: int, data: Path | None
) -> list[dict[str, Any]]:
    """Estimate the gap of both models from one data set, and look at the true one.

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
        One a loss and radius.
    """
    number = seed_of(seed, task["separation"], task["set"])
    n = config.n_samples
    X, y = draw_classes(
        "make_classification", n + config.n_test, task["separation"], number
    )
    deltas = {"fixed": config.delta, OWN: density_radius(X[:n]).radius}
    records = []
    for loss in config.losses:
        model, targets = fit_linear(loss, config.penalty, X[:n], y[:n])
        bound = generalization_bound(
            model,
            X[:n],
            targets,
            delta=list(deltas.values()),
            n_splits=config.n_splits,
            random_state=number,
        )
        train_loss = mean_loss(model, loss, X[:n], y[:n])
        test_loss = mean_loss(model, loss, X[n:], y[n:])
        gap = test_loss - train_loss
        for i, (name, delta) in enumerate(deltas.items()):
            robustness = float(bound.feature_robustness[i])
            records.append(
                {
                    "loss": loss,
                    "radius": name,
                    "delta": delta,
                    "train_loss": train_loss,
                    "test_loss": test_loss,
                    "gap": gap,
                    "bound": float(bound.bound[i]),
                    "representativeness": float(bound.representativeness[i]),
                    "flatness_term": float(bound.flatness_term[i]),
                    # By equation 5, the rest of the gap.
                    "true_representativeness": gap - robustness,
                    "true_robustness": robustness,
                    "cross_validated_gap": bound.cross_validated_gap,
                    "kappa": bound.kappa,
                }
            )
    return records


def summarize(
    records: list[dict[str, Any]], config: Config, seed: int
) -> dict[str, Any]:
    """Compare bound and cross-validated gap with the true gap.

    Parameters
    ----------
    records : list of dict
        All records.
    config : Config
        The separations.
    seed : int
        Of the bootstrap over data sets.

    Returns
    -------
    summary : dict
        "errors", one row a loss, radius and separation, and one over all separations:
        mean absolute errors, and how much larger that of the bound is than that of the
        cross-validated gap, and than that of zero; "ranking", one row a loss and
        estimate: correlation with the true gap over data sets; "terms", the means of
        bound, gap and terms.
    """
    errors, ranking, terms = [], [], []
    for loss, radius in itertools.product(config.losses, ("fixed", OWN)):
        row = {"loss": loss, "radius": radius}
        own = [r for r in records if row.items() <= r.items()]
        for separation in config.separations:
            sets = [r for r in own if r["separation"] == separation]
            errors.append({**row, "separation": separation} | _errors(sets, seed))
            terms.append({**row, "separation": separation} | _means(sets, seed))
        errors.append({**row, "separation": "all"} | _errors(own, seed))
    for loss in config.losses:
        own = [r for r in records if r["loss"] == loss]
        ranking += [
            {"loss": loss} | row for row in _ranking(own, config.separations, seed)
        ]
    return {"errors": errors, "ranking": ranking, "terms": terms}


def _errors(sets: list[dict[str, Any]], seed: int) -> dict[str, Any]:
    """Distances of the estimates from the true gap, over data sets."""
    gap = np.array([r["gap"] for r in sets])
    bound, validated = (
        np.abs(np.array([r[name] for r in sets]) - gap)
        for name in ("bound", "cross_validated_gap")
    )
    mean, (low, high) = mean_interval(bound - validated, seed)
    over_zero, interval = mean_interval(bound - np.abs(gap), seed)
    return {
        "error_of_bound": rounded(bound.mean(), 3),
        "error_of_cross_validated_gap": rounded(validated.mean(), 3),
        # What saying that there is no gap costs.
        "error_of_zero": rounded(np.abs(gap).mean(), 3),
        "bound_minus_cross_validated": rounded(mean, 3),
        "interval": [rounded(low, 3), rounded(high, 3)],
        "nearer": "bound" if high < 0 else "cross-validated" if low > 0 else "neither",
        "bound_minus_zero": rounded(over_zero, 3),
        "zero_interval": [rounded(end, 3) for end in interval],
        "sets": len(sets),
    }


def _means(sets: list[dict[str, Any]], seed: int) -> dict[str, Any]:
    """Means of the gap and of what is to make it up."""
    row: dict[str, Any] = {"delta": float(np.mean([r["delta"] for r in sets]))}
    for name in _TERMS:
        mean, interval = mean_interval([r[name] for r in sets], seed)
        row[name] = rounded(mean, 3)
        if name in _DRAWN:
            row[f"{name}_interval"] = [rounded(end, 3) for end in interval]
    # What the word bound promises.
    above = [r["bound"] >= r["gap"] for r in sets]
    return row | {"bound_above_gap": float(np.mean(above))}


def _ranking(
    records: list[dict[str, Any]], separations: Sequence[float], seed: int
) -> list[dict[str, Any]]:
    """Correlations with the true gap, over all data sets and within separations."""
    names = {"fixed": "bound, fixed radius", OWN: "bound, own radius"}
    sets: dict[tuple[float, int], dict[str, Any]] = {}
    for r in records:
        own = sets.setdefault((r["separation"], r["set"]), dict(r))
        own[names[r["radius"]]] = r["bound"]
    runs = [*sets.values()]
    estimates = [*names.values(), "cross_validated_gap", "kappa"]
    result = rank_correlations(
        runs, estimates, "gap", coefficients=["spearman"], random_state=seed
    )
    return [
        {
            "estimate": row["measure"].replace("_", " "),
            "spearman": rounded(row["value"], 3),
            "interval": [rounded(row[end], 3) for end in ("low", "high")],
            "spearman_by_separation": [
                rounded(_spearman(runs, separation, row["measure"]), 2)
                for separation in separations
            ],
            "sets": len(runs),
        }
        for row in result.rows()
    ]


def _spearman(sets: list[dict[str, Any]], separation: float, name: str) -> float:
    """Correlation with the true gap within one separation."""
    own = [(r[name], r["gap"]) for r in sets if r["separation"] == separation]
    return float(spearmanr(*np.array(own).T).statistic)


def draw(summary: dict[str, Any]) -> Any:
    """Draw gap, estimates and terms over the separation.

    Parameters
    ----------
    summary : dict
        Of `summarize`.

    Returns
    -------
    figure : matplotlib.figure.Figure
        A row for each loss, a column for each radius.
    """
    from matplotlib.figure import Figure

    losses = list(dict.fromkeys(row["loss"] for row in summary["terms"]))
    figure = Figure(figsize=(9.5, 3.4 * len(losses)), layout="constrained")
    panels = figure.subplots(len(losses), 2, squeeze=False)
    for loss, line in zip(losses, panels, strict=True):
        for radius, ax in zip(("fixed", OWN), line, strict=True):
            rows = [
                row
                for row in summary["terms"]
                if (row["loss"], row["radius"]) == (loss, radius)
            ]
            _draw_terms(ax, rows)
            deltas = sorted({round(row["delta"], 2) for row in rows})
            shown = f"{deltas[0]:g}"
            if len(deltas) > 1:
                shown += f" to {deltas[-1]:g}"
            ax.set_title(f"{loss}, $\\delta$ = {shown}", fontsize=10)
        line[0].set_ylabel(f"mean over data sets, {loss}")
    for ax in panels[-1]:
        ax.set_xlabel("class separation")
    handles, names = panels[0][0].get_legend_handles_labels()
    figure.legend(
        handles, names, loc="outside lower center", ncols=len(names), frameon=False
    )
    return figure


def _draw_terms(ax: Any, rows: list[dict[str, Any]]) -> None:
    """Draw the terms as bars, estimates and truth as points."""
    x = np.arange(len(rows), dtype=np.float64)
    bars = {
        "representativeness": ("representativeness", "0.8", ""),
        "flatness_term": (r"$\delta^2 \kappa / 2m$", "white", "////"),
    }
    for i, (name, (label, color, hatch)) in enumerate(bars.items()):
        heights = [row[name] for row in rows]
        ax.bar(
            x + 0.3 * (i - 0.5),
            heights,
            width=0.3,
            color=color,
            edgecolor="0.55",
            hatch=hatch,
            linewidth=0.6,
            zorder=0,
            label=label,
        )
    for i, (name, label) in enumerate(_DRAWN.items()):
        low, high = np.array([row[f"{name}_interval"] for row in rows]).T
        values = [row[name] for row in rows]
        draw_line(
            ax,
            x + 0.18 * (i - 1),
            values,
            low,
            high,
            # The truth is black.
            (-1, 0, 1)[i],
            linestyle="none",
            label=label,
        )
    ax.axhline(0.0, color="0.5", linewidth=0.8, zorder=0)
    ax.set_xticks(x, [f"{row['separation']:g}" for row in rows])
