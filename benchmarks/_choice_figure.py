"""Figure of ``choice_by_smoothed_risk.py``: where the smoothed risk wins and loses."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from sklearn_relflat.experiments._drawing import MARKERS, OKABE_ITO

AGAINST = "5-fold log-loss"
# Rule, as it is named in the records, and its name for readers.
RULES = {
    "S input isotropic calibrated 3 lowest": "smoothed risk, calibrated (default)",
    "S input isotropic density": "smoothed risk, radius of the density",
    "5-fold accuracy": "5-fold accuracy",
}
# Beside which the differences are on a linear scale, in nats.
_LINEAR = 0.02
_TICKS = (-0.1, -0.02, 0.0, 0.02, 0.1, 0.5)


def draw(
    entries: list[dict],
    families: dict[str, str],
    difference: Callable[[list[dict], str], np.ndarray],
    interval: Callable[[np.ndarray], tuple[float, float]],
    path: Path,
) -> None:
    """Draw differences from 5-fold cross-validation, by family and by data set.

    Parameters
    ----------
    entries : list of dict
        All records.
    families : dict of str to str
        Families of models in the records, and their names for readers.
    difference : callable
        ``difference(entries, rule)``, regret minus that of 5-fold cross-validation.
    interval : callable
        Of a mean.
    path : Path
        Where to write.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 6.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.35])
    _by_family(left, entries, families, difference, interval)
    log_loss = [e for e in entries if e["family"] in list(families)[:2]]
    _by_set(right, log_loss, difference)
    for ax in (left, right):
        ax.axvline(0.0, color="0.4", linewidth=0.8, zorder=0)
        ax.set_xscale("symlog", linthresh=_LINEAR, linscale=0.8)
        ax.set_xticks(_TICKS, [f"{tick:g}" for tick in _TICKS])
        ax.minorticks_off()
        ax.grid(axis="y", color="0.92", zorder=0)
        ax.tick_params(labelsize=9)
        ax.set_xlabel("held-out loss minus that of 5-fold cross-validation's choice")
    figure.legend(
        *left.get_legend_handles_labels(),
        loc="outside lower center",
        ncols=len(RULES),
        frameon=False,
    )
    # The same names of parts in every run.
    with rc_context({"svg.hashsalt": path.stem}):
        figure.savefig(path, metadata={"Date": None})


def _by_family(ax, entries, families, difference, interval) -> None:
    """Means over all searches of a family."""
    for i, (rule, name) in enumerate(RULES.items()):
        points = []
        for row, family in enumerate(families):
            some = [e for e in entries if e["family"] == family and rule in e["choice"]]
            values = difference(some, rule)
            points.append((values.mean(), *interval(values), row + 0.2 * (i - 1)))
        mean, low, high, place = np.transpose(points)
        ax.errorbar(
            mean,
            place,
            xerr=[mean - low, high - mean],
            fmt=MARKERS[i],
            color=OKABE_ITO[i],
            markersize=5,
            capsize=2,
            label=name,
        )
    counts = [sum(e["family"] == f for e in entries) for f in families]
    labels = [
        f"{n}\n({c} searches)" for n, c in zip(families.values(), counts, strict=True)
    ]
    ax.set_yticks(range(len(families)), labels)
    ax.invert_yaxis()
    ax.set_title("by family, means with 95 % intervals", fontsize=10)


def _by_set(ax, entries, difference) -> None:
    """Each search of each data set, and their mean."""
    impurity = {
        name: np.mean([e["impurity"] for e in entries if e["set"] == name])
        for name in dict.fromkeys(e["set"] for e in entries)
    }
    names = sorted(impurity, key=lambda name: impurity[name])
    for i, rule in enumerate(RULES):
        for row, name in enumerate(names):
            values = difference([e for e in entries if e["set"] == name], rule)
            place = row + 0.25 * (i - 1)
            style = {"color": OKABE_ITO[i], "marker": MARKERS[i], "linestyle": "none"}
            ax.plot(values, [place] * len(values), markersize=3, alpha=0.35, **style)
            ax.plot(values.mean(), place, markersize=6, **style)
    labels = [f"{name}  {impurity[name]:.0%}" for name in names]
    ax.set_yticks(range(len(names)), labels)
    ax.invert_yaxis()
    ax.set_title(
        "by data set (share of other labels within the radius),\n"
        "each logistic or MLP search and their mean",
        fontsize=10,
    )
