"""The demo's figure: flatness against the gap between new and training loss."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sklearn_relflat._demo.comparison import accurate_candidates, letters, roles
from sklearn_relflat._demo.experiment import Demo, Scores

BLUE, ORANGE = "tab:blue", "tab:orange"
# In points, so that the letters of neighbouring candidates do not meet.
OFFSETS = {"A": (-8, -4), "B": (-4, -16), "C": (8, -4), "D": (8, -4), "E": (-4, 8)}
GAP = "gap: loss on new data minus training loss"
FLATNESS = r"flatter  $\leftarrow$  {}, on the training samples  $\rightarrow$  sharper"


MISSING = """\
No figure: matplotlib is not installed. It comes with the extra "plot":
  pip install "sklearn_relflat[plot]"    (in a clone: pip install ".[plot]")"""


def save_figure(demo: Demo, path: Path) -> str:
    """Save a figure of the results, if matplotlib is there.

    Parameters
    ----------
    demo : Demo
        The results.
    path : Path
        File to write; its ending chooses the format.

    Returns
    -------
    message : str
        What was done, or what is missing.
    """
    if importlib.util.find_spec("matplotlib") is None:
        return MISSING
    make_figure(demo).savefig(path, dpi=150)
    return f"Figure: {path}"


def make_figure(demo: Demo) -> Any:
    """Draw the results.

    Parameters
    ----------
    demo : Demo
        The results.

    Returns
    -------
    figure : matplotlib.figure.Figure
        Two panels: the nets, and the logistic regressions.
    """
    # No pyplot: neither a display nor the state of a session is touched.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 7.4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    _draw_candidates(left, demo)
    _draw_path(right, demo)
    left.set_ylabel(GAP)
    left.margins(x=0.12)
    # Below the axes, where no point can lie behind them.
    place = {"bbox_to_anchor": (0.5, -0.12), "loc": "upper center", "frameon": False}
    left.legend(
        **place,
        fontsize="small",
        title="of the candidates of the search:",
        title_fontsize="small",
    )
    right.legend(**place, fontsize="small", title="bars: one standard error")
    figure.suptitle(
        "Relative flatness and what is lost on new data: handwritten digits, "
        f"{demo.config.n_train} samples to train on, {demo.n_held_out:,} new ones"
    )
    return figure


def _draw_candidates(ax: Any, demo: Demo) -> None:
    """Draw a point per candidate."""
    loss, tol = demo.config.training_loss, demo.config.tol
    arrived = {i for i, c in enumerate(demo.candidates) if c.reached(loss)}
    accurate = set(accurate_candidates(demo))
    best = max(c.cv_accuracy for c in demo.candidates)
    _scatter(
        ax, demo, arrived & accurate, BLUE, f"accuracy within {tol:g} of {best:.3f}"
    )
    _scatter(ax, demo, arrived - accurate, "white", "less accurate")
    for index, letter in letters(demo).items():
        if index in arrived:
            scores = demo.candidates[index].scores
            ax.annotate(
                letter,
                (scores.flatness.value, scores.gap),
                xytext=OFFSETS[letter[0]],
                textcoords="offset points",
                horizontalalignment="right" if letter[0] == "A" else "left",
                weight="bold",
            )
    for letter, (_, role) in roles(demo).items():
        ax.plot([], [], "k", linestyle="", marker=f"${letter}$", label=role)
    _label(ax, f"{len(arrived)} nets that all end at a training loss of {loss:g}")
    ax.set_xlabel(FLATNESS.format(r"$\kappa$ for the squared error"))


def _scatter(ax: Any, demo: Demo, indices: set[int], color: str, label: str) -> None:
    """Draw a group of candidates."""
    scores = [demo.candidates[i].scores for i in sorted(indices)]
    ax.errorbar(
        [s.flatness.value for s in scores],
        [s.gap for s in scores],
        yerr=[s.gap_stderr for s in scores],
        linestyle="none",
        marker="o",
        markersize=7,
        markerfacecolor=color,
        color=BLUE,
        elinewidth=0.8,
        label=label,
    )


def _draw_path(ax: Any, demo: Demo) -> None:
    """Draw the logistic regressions, for two losses in the definition of kappa."""
    Cs, scores = list(demo.path), list(demo.path.values())
    gaps = [s.gap for s in scores]
    # Labels beside the points, away from the other curve.
    curves: list[tuple[str, str, tuple[int, int], Callable[[Scores], float]]] = [
        ("squared error", BLUE, (9, -6), lambda s: s.flatness.value),
        (
            "cross-entropy",
            ORANGE,
            (-9, -6),
            lambda s: s.flatness_of_training_loss.value,
        ),
    ]
    for loss, color, offset, kappa in curves:
        x = [kappa(s) for s in scores]
        ax.errorbar(
            x,
            gaps,
            yerr=[s.gap_stderr for s in scores],
            fmt="o-",
            color=color,
            elinewidth=0.8,
            label=f"$\\kappa$ for the {loss}",
        )
        for C, point in zip(Cs, zip(x, gaps, strict=True), strict=True):
            ax.annotate(
                f"C = {C:g}",
                point,
                xytext=offset,
                textcoords="offset points",
                horizontalalignment="left" if offset[0] > 0 else "right",
                fontsize="small",
                color=color,
            )
    most, least = scores[0].training_loss, scores[-1].training_loss
    _label(
        ax,
        "logistic regressions that end at different training losses:\n"
        f"{most:.2g} (C = {Cs[0]:g}) to {least:.1g} (C = {Cs[-1]:g})",
    )
    ax.margins(x=0.3)


def _label(ax: Any, title: str) -> None:
    """Set the title and the axes, which mean the same in both panels."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    ax.set_xscale("log")
    low, high = ax.get_xlim()
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xlabel(FLATNESS.format(r"$\kappa$"))
    ax.set_title(title, fontsize="medium")
    ax.grid(alpha=0.3)
