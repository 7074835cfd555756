"""The figure of `selection`: differences from cross-validation, with intervals."""

from __future__ import annotations

from typing import Any

import numpy as np

from sklearn_relflat.experiments._drawing import draw_points
from sklearn_relflat.experiments._selection_rules import BASELINE

_QUALITIES = {
    "log_loss": "held-out log-loss [nats]",
    "error": "held-out error rate",
    "error_under_noise": "error rate under noise",
}
_VERDICTS = {
    "holds": "labels locally constant",
    "unclear": "unclear",
    "fails": "labels change within the radius",
}


def draw_differences(rows: list[dict[str, Any]], by_label: list[dict[str, Any]]) -> Any:
    """Draw how much worse than cross-validation each rule did.

    Parameters
    ----------
    rows : list of dict
        Over all searches, one a rule.
    by_label : list of dict
        Apart by verdict on the labels.

    Returns
    -------
    figure : matplotlib.figure.Figure
        One panel a quality, and the log-loss apart by verdict.
    """
    from matplotlib.figure import Figure

    shown = [row for row in rows if row["rule"] != BASELINE]
    places = {row["rule"]: -i for i, row in enumerate(shown)}
    figure = Figure(figsize=(13.0, 6.4), layout="constrained")
    panels = figure.subplots(1, len(_QUALITIES) + 1, sharey=True)
    for ax, (quality, label) in zip(panels, _QUALITIES.items(), strict=False):
        _points(ax, shown, places, quality, 0, 0.0)
        ax.set_xlabel(label)
    for i, (verdict, label) in enumerate(_VERDICTS.items()):
        some = [
            row
            for row in by_label
            if row["labels_constant"] == verdict and row["rule"] in places
        ]
        if some:
            title = f"{label} ({some[0]['searches']} searches)"
            _points(panels[-1], some, places, "log_loss", i, 0.25 * (1 - i), title)
    panels[-1].set_xlabel("held-out log-loss [nats], apart")
    figure.legend(fontsize=9, frameon=False, loc="outside lower right", ncols=3)
    panels[0].set_yticks([*places.values()], [*places])
    for ax in (panels[0], panels[-1]):
        # Differences in loss span decades, to both sides of zero.
        ax.set_xscale("symlog", linthresh=0.02, linscale=0.7)
        ticks = (-0.02, 0.0, 0.02, 0.1, 1.0)
        ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        ax.minorticks_off()
        ax.margins(x=0.08)
    for ax in panels:
        ax.axvline(0.0, color="0.4", linewidth=0.8, zorder=0)
        ax.grid(axis="y", color="0.92", zorder=0)
        ax.tick_params(labelsize=8)
    figure.suptitle(
        "Difference from the choice by cross-validated log-loss (0): right is worse",
        fontsize=11,
    )
    return figure


def _points(
    ax: Any,
    rows: list[dict[str, Any]],
    places: dict[str, int],
    quality: str,
    style: int,
    shift: float,
    label: str | None = None,
) -> None:
    """Means with their intervals."""
    means = [row[f"{quality}_difference"] for row in rows]
    ends = [
        row[f"{quality}_interval"] or [mean, mean]
        for row, mean in zip(rows, means, strict=True)
    ]
    low, high = np.array(ends, dtype=np.float64).T
    y = [places[row["rule"]] + shift for row in rows]
    draw_points(ax, means, y, low, high, style, markersize=4.5, label=label)
