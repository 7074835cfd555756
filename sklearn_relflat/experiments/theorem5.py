"""Feature robustness against its flatness term, and where the two part."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import make_classification
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import scale

from sklearn_relflat import feature_robustness
from sklearn_relflat.experiments._drawing import draw_line
from sklearn_relflat.experiments._statistics import (
    median_interval,
    seed_of,
)

CLAIM = (
    "On average over orthogonal perturbations of relative size delta, the loss rises "
    "by delta^2 kappa / (2m), up to higher orders of delta (Theorem 5)."
)
COST = {"quick": "10 seconds", "full": "5 minutes of one core"}
NEEDS_DATA = False
#: How far the rise may be from its flatness term to count as agreeing.
TOLERANCE = 0.1


@dataclass(frozen=True)
class Config:
    """Models, layers and losses, each on several data sets.

    Attributes
    ----------
    cases : tuple of tuple of str
        Model, layer and loss.
    n_sets : int
        Data sets of each case.
    n_samples, n_features : int
        Their size.
    n_hidden : int
        Units of each of the two hidden layers of the networks.
    deltas : tuple of float
        Relative sizes of the perturbations.
    n_matrices : int
        Orthogonal matrices, in pairs of opposite sign.
    """

    cases: tuple[tuple[str, str, str], ...]
    n_sets: int
    n_samples: int
    n_features: int
    n_hidden: int
    deltas: tuple[float, ...]
    n_matrices: int


_CASES = (
    ("least squares", "coef", "squared_error"),
    ("logistic", "coef", "cross_entropy"),
    ("logistic", "coef", "squared_error"),
    ("relu network", "coefs.2", "cross_entropy"),
    ("relu network", "coefs.2", "squared_error"),
    ("relu network", "coefs.1", "cross_entropy"),
    ("relu network", "coefs.0", "cross_entropy"),
    ("tanh network", "coefs.1", "cross_entropy"),
    ("tanh network", "coefs.0", "cross_entropy"),
)
_GRID = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
PRESETS = {
    "quick": Config(
        cases=_CASES[:4] + _CASES[-1:],
        n_sets=2,
        n_samples=100,
        n_features=6,
        n_hidden=8,
        deltas=(0.01, 0.1, 1.0),
        n_matrices=16,
    ),
    "full": Config(
        cases=_CASES,
        n_sets=20,
        n_samples=500,
        n_features=10,
        n_hidden=30,
        deltas=_GRID,
        n_matrices=256,
    ),
}


def tasks(config: Config) -> list[dict[str, Any]]:
    """List the cases, all of them on one data set after the other.

    Parameters
    ----------
    config : Config
        The cases.

    Returns
    -------
    tasks : list of dict
        Model, layer, loss and number of the data set.
    """
    return [
        {"model": model, "layer": layer, "loss": loss, "set": number}
        for number in range(config.n_sets)
        for model, layer, loss in config.cases
    ]


def measure(
    task: dict[str, Any], config: Config, seed: int, data: Path | None
) -> list[dict[str, Any]]:
    """Perturb the features of one layer of one model.

    Parameters
    ----------
    task : dict
        The case and the data set.
    config : Config
        The rest.
    seed : int
        Of the experiment.
    data : Path or None
        Not used.

    Returns
    -------
    records : list of dict
        One a delta: the rise, its standard error, the flatness term.
    """
    number = seed_of(seed, task["set"])
    X, y = make_classification(
        config.n_samples,
        config.n_features,
        n_informative=config.n_features // 2,
        n_redundant=config.n_features // 4,
        random_state=number,
    )
    X = scale(X)
    model = _model(task["model"], config.n_hidden, number).fit(X, y)
    # The loss that a model was trained with knows how its classes are coded.
    own = task["loss"] == "cross_entropy" or task["model"] == "least squares"
    rise = feature_robustness(
        model,
        X,
        y.astype(np.float64) if task["model"] == "least squares" else y,
        deltas=config.deltas,
        n_matrices=config.n_matrices,
        layer=task["layer"],
        loss=None if own else task["loss"],
        random_state=number,
    )
    term = rise.flatness_term
    assert term is not None  # orthogonal matrices have second moments
    return [
        {
            "delta": delta,
            "rise": float(rise.expectation[i]),
            "rise_stderr": float(rise.expectation_stderr[i]),
            "plain_mean": float(rise.mean[i]),
            "plain_stderr": float(rise.stderr[i]),
            "flatness_term": float(term[i]),
            "relative_error": float(rise.expectation[i] / term[i] - 1),
            "relative_stderr": float(rise.expectation_stderr[i] / term[i]),
            "kappa": rise.flatness,
            "mean_loss": rise.mean_loss,
        }
        for i, delta in enumerate(config.deltas)
    ]


def _model(name: str, n_hidden: int, seed: int) -> Any:
    """Make a model that is not fitted."""
    if name == "least squares":
        return LinearRegression()
    if name == "logistic":
        # Strong enough a penalty that separable data sets have a minimum, too.
        return LogisticRegression(C=1.0, tol=1e-8, max_iter=10_000)
    return MLPClassifier(
        (n_hidden, n_hidden),
        activation=name.split()[0],
        alpha=0.1,
        solver="lbfgs",
        tol=1e-7,
        max_iter=5000,
        max_fun=100_000,
        random_state=seed,
    )


def summarize(
    records: list[dict[str, Any]], config: Config, seed: int
) -> dict[str, Any]:
    """Take medians of the relative errors over data sets.

    Parameters
    ----------
    records : list of dict
        All records.
    config : Config
        The cases.
    seed : int
        Of the experiment.

    Returns
    -------
    summary : dict
        "agreement", one row a case: the largest delta up to which the relative error
        is below 10 %, its median over data sets; "relative_errors", one row a case and
        delta.
    """
    agreement, errors = [], []
    for model, layer, loss in config.cases:
        case = {"model": model, "layer": layer, "loss": loss}
        of_case = [r for r in records if case.items() <= r.items()]
        sets: dict[int, list[dict[str, Any]]] = {}
        for record in of_case:
            sets.setdefault(record["set"], []).append(record)
        radius, interval = median_interval([_radius(s) for s in sets.values()], seed)
        agreement.append(
            {**case, "agrees_up_to_delta": radius, "interval": interval}
            | {"sets": len(sets)}
        )
        for delta in config.deltas:
            found = [r for r in of_case if r["delta"] == delta]
            # Of a network that is sure of all samples, kappa is tiny, and the error
            # without bounds: a mean would be that of the worst data set.
            error, interval = median_interval(
                [r["relative_error"] for r in found], seed
            )
            errors.append(
                {
                    **case,
                    "delta": delta,
                    "relative_error": error,
                    "interval": interval,
                    "typical_stderr_of_one": float(
                        np.median([r["relative_stderr"] for r in found])
                    ),
                }
            )
    return {"agreement": agreement, "relative_errors": errors}


def _radius(rows: list[dict[str, Any]]) -> float:
    """Largest delta up to which the relative error of one model is small."""
    radius = 0.0
    for row in sorted(rows, key=lambda row: row["delta"]):
        if abs(row["relative_error"]) > TOLERANCE:
            break
        radius = row["delta"]
    return radius


def draw(summary: dict[str, Any]) -> Any:
    """Draw the ratio of the rise and its flatness term over delta.

    Parameters
    ----------
    summary : dict
        Of `summarize`.

    Returns
    -------
    figure : matplotlib.figure.Figure
        A panel for linear models, one for networks.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 4.2), layout="constrained")
    panels = figure.subplots(1, 2)
    names = ("linear models", "networks")
    for ax, name, is_network in zip(panels, names, (False, True), strict=True):
        cases = [
            row
            for row in summary["agreement"]
            if row["model"].endswith("network") == is_network
        ]
        for i, case in enumerate(cases):
            key = {name: case[name] for name in ("model", "layer", "loss")}
            rows = [r for r in summary["relative_errors"] if key.items() <= r.items()]
            ratio = np.array([1 + row["relative_error"] for row in rows])
            low, high = (1 + np.array([row["interval"] for row in rows])).T
            label = (
                f"{case['model']}, {case['layer']}, {case['loss'].replace('_', ' ')}"
            )
            deltas = [row["delta"] for row in rows]
            draw_line(ax, deltas, ratio, low, high, i, label=label)
        ax.axhspan(1 - TOLERANCE, 1 + TOLERANCE, color="0.9", zorder=0)
        ax.axhline(1.0, color="0.5", linewidth=0.8, zorder=0)
        ax.set(xscale="log", title=name, xlabel=r"relative size $\delta$")
        ax.legend(fontsize=7, frameon=False)
    panels[0].set(ylabel=r"rise of the loss / $(\delta^2 \kappa / 2m)$", yscale="log")
    panels[0].set_yticks([1, 2, 5, 10, 20], ["1", "2", "5", "10", "20"])
    panels[0].yaxis.minorticks_off()
    return figure
