"""What is left of a run: the summary as JSON, as tables and as a figure."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

from tabulate import tabulate

MISSING = (
    'No figure: matplotlib is not installed. It comes with the extra "plot", and the '
    "same command then draws it from what was measured."
)


def write_atomically(path: Path, text: str) -> None:
    """Replace a file as a whole, so that nobody reads half of it.

    Parameters
    ----------
    path : Path
        The file.
    text : str
        Its content.
    """
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def tables(summary: dict[str, Any]) -> str:
    """Write the tables of a summary in Markdown.

    Parameters
    ----------
    summary : dict
        Its lists of dicts are tables, the rest of its values one more.

    Returns
    -------
    text : str
        A table for each, under its name.
    """
    rows = {name: value for name, value in summary.items() if _is_table(value)}
    single = {
        name: value
        for name, value in summary.items()
        if name not in rows and not isinstance(value, dict | list)
    }
    parts = []
    for name, value in rows.items():
        head = list(dict.fromkeys(column for row in value for column in row))
        cells = [[_cell(row.get(column)) for column in head] for row in value]
        parts.append(_table(name, [_words(column) for column in head], cells))
    if single:
        cells = [[_words(name), _cell(value)] for name, value in single.items()]
        parts.append(_table("single numbers", ["what", "value"], cells))
    return "\n\n".join(parts) + "\n"


def _table(name: str, head: list[str], cells: list[list[str]]) -> str:
    """One table under its name."""
    body = tabulate(cells, head, tablefmt="pipe", disable_numparse=True)
    return f"**{_words(name)}**\n\n{body}"


def _is_table(value: Any) -> bool:
    """Tell a non-empty list of dicts."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(row, dict) for row in value)
    )


def _words(name: str) -> str:
    """Name of a field for people."""
    return name.replace("_", " ")


def _cell(value: Any) -> str:
    """Value of a table for people: three significant digits."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, list):
        return f"[{', '.join(_cell(part) for part in value)}]"
    return str(value)


def save_figure(figure: Any, stem: Path) -> None:
    """Save a figure as PNG and SVG.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
        The figure.
    stem : Path
        The files without their endings.
    """
    import matplotlib as mpl

    # No date and no random identifiers: the same numbers give the same file.
    with mpl.rc_context({"svg.hashsalt": stem.name}):
        figure.savefig(f"{stem}.svg", metadata={"Date": None}, bbox_inches="tight")
        figure.savefig(f"{stem}.png", dpi=110, bbox_inches="tight")


def write_report(stem: Path, result: dict[str, Any], draw: Any) -> list[str]:
    """Write summary, tables and figure beside the results.

    Parameters
    ----------
    stem : Path
        The files without their endings.
    result : dict
        What the JSON file holds, with the "summary".
    draw : callable
        Of the summary, see `Experiment`.

    Returns
    -------
    messages : list of str
        What was written, or what is missing.
    """
    # As they will be read again, in any case: tuples are lists, keys are strings.
    result = json.loads(json.dumps(result, allow_nan=False))
    write_atomically(Path(f"{stem}.json"), json.dumps(result, indent=1) + "\n")
    write_atomically(Path(f"{stem}.md"), tables(result["summary"]))
    if importlib.util.find_spec("matplotlib") is None:
        return [f"Summary: {stem}.json, {stem}.md", MISSING]
    save_figure(draw(result["summary"]), stem)
    return [f"Summary: {stem}.json, {stem}.md", f"Figure: {stem}.svg, {stem}.png"]
