"""What the records of `trajectories` say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from sklearn_relflat.experiments._drawing import draw_line
from sklearn_relflat.experiments._statistics import mean_interval

Record = dict[str, Any]
Training = tuple[str, str, int]
#: What is drawn, with its name and its style, the same in all panels.
_CURVES = {
    # What the others are to tell is black.
    "test_loss": ("test loss", 6),
    "train_loss": ("training loss", 0),
    "s_input_isotropic": ("smoothed risk, input", 1),
    "s_fc1_isotropic": ("smoothed risk, fc1", 2),
    "s_fc2_isotropic": ("smoothed risk, fc2", 3),
    "s_fc3_isotropic": ("smoothed risk, fc3", 4),
}


def summary_of(
    records: list[Record], held_out: Sequence[float], seed: int
) -> dict[str, Any]:
    """Compare the smoothed risk with the test loss.

    Parameters
    ----------
    records : list of dict
        All records.
    held_out : sequence of float
        Shares that were held out.
    seed : int
        Of the bootstrap over trainings.

    Returns
    -------
    summary : dict
        "prediction", one row a network, layer and shape: Spearman's correlation with
        the test loss along a training, and the mean absolute difference of logarithms,
        means over trainings; "stopping", one row a network and rule: the test loss at
        the chosen epoch minus that at the best epoch of the training on all samples;
        "curves", losses by epoch, of all trainings of a network and optimizer.
    """
    whole = _by_training(records, 0.0)
    prediction, stopping = [], []
    for network in dict.fromkeys(name for name, _, _ in whole):
        runs = {key: rows for key, rows in whole.items() if key[0] == network}
        columns = [c for c in next(iter(runs.values()))[0] if c.startswith("s_")]
        for column in columns:
            prediction.append(_prediction(network, column, runs, seed))
        rules = {f"smoothed risk, {_words(c)}": _chosen(runs, c) for c in columns}
        rules["training loss"] = _chosen(runs, "train_loss")
        rules["last epoch"] = {key: rows[-1] for key, rows in runs.items()}
        for share in held_out:
            others = _by_training(records, share)
            others = {key: others[key] for key in runs}
            chosen = _chosen(others, "held_out_loss")
            rules[f"validation on {share:.0%}"] = chosen
        best = {key: min(r["test_loss"] for r in rows) for key, rows in runs.items()}
        for rule, chosen in rules.items():
            regrets = [chosen[key]["test_loss"] - best[key] for key in runs]
            mean, interval = mean_interval(regrets, seed)
            stopping.append(
                {
                    "network": network,
                    "rule": rule,
                    "regret": mean,
                    "interval": interval,
                    "worst": max(regrets),
                    "epochs": [chosen[key]["epoch"] for key in runs],
                    "test_error": float(
                        np.mean([chosen[key]["test_error"] for key in runs])
                    ),
                    "trainings": len(runs),
                }
            )
    curves: dict[str, list[Record]] = {}
    for (network, optimizer, _), rows in whole.items():
        curves.setdefault(f"{network.upper()}, {optimizer}", []).extend(
            {k: v for k, v in row.items() if k == "epoch" or k in _CURVES}
            for row in rows
        )
    return {"stopping": stopping, "prediction": prediction, "curves": curves}


def _words(column: str) -> str:
    """Layer and shape of a column."""
    _, layer, shape = column.split("_", 2)
    return f"{layer}, {shape.replace('_', ' ')}"


def _by_training(records: list[Record], share: float) -> dict[Training, list[Record]]:
    """Group the records of one share held out by training, in order of epochs."""
    found: dict[Training, list[Record]] = {}
    for record in records:
        if record["held_out"] == share:
            key = (record["network"], record["optimizer"], record["run"])
            found.setdefault(key, []).append(record)
    return {key: sorted(r, key=lambda row: row["epoch"]) for key, r in found.items()}


def _chosen(runs: dict[Training, list[Record]], column: str) -> dict[Training, Record]:
    """Epoch of each training at which a column is smallest."""
    return {
        key: min(rows, key=lambda row: float(row[column])) for key, rows in runs.items()
    }


def _prediction(
    network: str, column: str, runs: dict[Training, list[Record]], seed: int
) -> Record:
    """How well a column tells the test loss along a training."""
    ranks, errors = [], []
    for rows in runs.values():
        told = np.array([row[column] for row in rows])
        truth = np.array([row["test_loss"] for row in rows])
        ranks.append(float(spearmanr(told, truth).statistic))
        errors.append(float(np.abs(np.log(told / truth)).mean()))
    rank, rank_interval = mean_interval(ranks, seed)
    error, error_interval = mean_interval(errors, seed)
    radii = [
        row[f"r_{column.removeprefix('s_')}"] for rows in runs.values() for row in rows
    ]
    return {
        "network": network,
        "perturbed": _words(column),
        "spearman": rank,
        "spearman_interval": rank_interval,
        "log_error": error,
        "log_error_interval": error_interval,
        "radius_range": [min(radii), max(radii)],
        "trainings": len(runs),
    }


def figure_of(summary: dict[str, Any]) -> Any:
    """Draw the losses along the trainings; bars span the trainings.

    Parameters
    ----------
    summary : dict
        Of `summary_of`.

    Returns
    -------
    figure : matplotlib.figure.Figure
        A panel for each network and optimizer.
    """
    from matplotlib.figure import Figure

    curves = summary["curves"]
    n_rows = -(-len(curves) // 2)
    figure = Figure(figsize=(9.5, 3.6 * n_rows), layout="constrained")
    panels = figure.subplots(n_rows, 2, squeeze=False).flat
    for ax, (title, rows) in zip(panels, curves.items(), strict=False):
        for column in _CURVES:
            if column in rows[0]:
                _draw_curve(ax, rows, column)
        ax.set(
            xscale="log",
            yscale="log",
            title=title.replace("sgd", "SGD").replace("adam", "Adam"),
            xlabel="epoch",
            ylabel="mean cross-entropy [nats]",
        )
        epochs = sorted({row["epoch"] for row in rows})
        ax.set_xticks(epochs[::2], [str(epoch) for epoch in epochs[::2]])
        ax.minorticks_off()
        ax.legend(fontsize=8, frameon=False)
    return figure


def _draw_curve(ax: Any, rows: list[Record], column: str) -> None:
    """Draw one loss; a bar from the lowest to the highest training."""
    label, style = _CURVES[column]
    epochs = sorted({row["epoch"] for row in rows})
    values = [[row[column] for row in rows if row["epoch"] == e] for e in epochs]
    mean = np.array([np.mean(v) for v in values])
    low, high = np.array([[min(v), max(v)] for v in values]).T
    width = 2.0 if column == "test_loss" else 1.2
    draw_line(ax, epochs, mean, low, high, style, linewidth=width, label=label)
