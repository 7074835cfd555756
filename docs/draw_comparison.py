"""Draw the picture of the README by the README's own code.

Run ``python docs/draw_comparison.py``; it writes ``docs/_static/comparison.svg``.
"""

import doctest
from pathlib import Path

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "sklearn_relflat"

DOCS = Path(__file__).resolve().parent
LAST = "display = comparison.plot()\n"


def main() -> None:
    """Run the examples up to the picture."""
    names: dict = {}
    text = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    for example in doctest.DocTestParser().get_examples(text):
        exec(compile(example.source, "README.md", "single"), names)
        if example.source == LAST:
            break
    figure = names["display"].figure_
    figure.set_size_inches(7.0, 4.4)
    figure.savefig(DOCS / "_static" / "comparison.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
