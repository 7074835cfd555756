"""The table of ``user_guide/what_is_it_worth``: measures by questions, from results.

Written at every build from the committed summaries of the experiments.
"""

import json
from pathlib import Path

# Name for readers: in figure5 and reparameterization, and in selection.
MEASURES = {
    "relative flatness, std, squared error": ("ks_se_fc3", "kappa, squared error"),
    "relative flatness, std, cross-entropy": ("ks_ce_fc3", "kappa, std"),
    "smoothed risk where the convolutions end": ("s_fc1", None),
    "Hessian trace": ("tr_all", "hessian trace"),
    "largest eigenvalue of the Hessian": ("eig", "hessian max eigenvalue"),
    "Fisher-Rao norm": ("fr", "fisher rao norm"),
    "PAC-Bayes flatness": ("pb", "pac bayes flatness"),
    "SAM sharpness": ("sam", "sam sharpness"),
    "ASAM sharpness": ("asam", "asam sharpness"),
    "squared norm of the weights": ("wn_all", "weight norm"),
}
# Where figure5 compares: the training loss of the paper.
THRESHOLD = "0.1"
HEAD = (
    "measure",
    "gap",
    "test loss",
    "test error",
    "gap, rescaled at random",
    "choice among the accurate [nats]",
)


def table(results: Path) -> str:
    """Markdown table of coefficients with intervals.

    Parameters
    ----------
    results : Path
        Folder of the summaries.

    Returns
    -------
    text : str
        A row a measure.
    """

    def summary(name: str) -> dict:
        text = (results / f"{name}-full.json").read_text(encoding="utf-8")
        return json.loads(text)["summary"]

    figure5, selection = summary("figure5"), summary("selection")
    layers = summary("reparameterization")["correlations"]["layers"]
    rescaled = {row["column"]: row for row in layers}
    choices = {
        row["measure"]: row
        for row in selection["against_random"]
        if row["tolerance"] == "1se"
    }
    lines = [f"| {' | '.join(HEAD)} |", "|---|" + "---|" * (len(HEAD) - 1)]
    for name, (column, chosen) in MEASURES.items():
        cells = [name]
        for target in ("gap", "test_loss", "test_error"):
            rows = figure5[f"spearman_with_{target}"]
            words = rescaled[column]["measure"]
            (found,) = (row for row in rows if row["measure"] == words)
            cells.append(found[THRESHOLD])
        low, high = rescaled[column]["spearman_after_interval"]
        cells.append(
            f"{rescaled[column]['spearman_after']:.2f} ({low:.2f} to {high:.2f})"
        )
        row = choices.get(chosen)
        if row is None:
            cells.append("")
        else:
            low, high = row["log_loss_interval"]
            value = row["log_loss_difference"]
            cells.append(f"{value:+.3f} ({low:+.3f} to {high:+.3f})")
        lines.append(f"| {' | '.join(cells)} |")
    runs = figure5["stops"]
    (reached,) = (row["reached"] for row in runs if str(row["threshold"]) == THRESHOLD)
    lines += ["", f"`figure5` has {reached} trainings that reached this loss so far."]
    return "\n".join(lines) + "\n"


def write_table(docs: Path) -> None:
    """Write the table where the page includes it.

    Parameters
    ----------
    docs : Path
        Folder of the documentation.
    """
    text = table(docs / "experiments" / "results")
    (docs / "user_guide" / "_worth_table.md").write_text(text, encoding="utf-8")
