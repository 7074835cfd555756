"""Reports about models as text, as a frame and as HTML: one table, one verdict."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from html import escape
from typing import Any

from tabulate import tabulate

from sklearn_relflat._measures.tables import make_table

#: The guide's page, relative to the root of the documentation.
GUIDE = "user_guide/smoothed_risk.html"


class TableReport(ABC):
    """What prints as a table of short cells above a sentence and notes."""

    sentence: str

    @abstractmethod
    def rows(self) -> list[dict[str, Any]]:
        """Return the numbers, one dict a row, all with the same keys."""

    @abstractmethod
    def cells(self) -> list[dict[str, str]]:
        """Return the rows as they are shown: short texts by column."""

    @property
    @abstractmethod
    def title(self) -> str:
        """What the report is about."""

    @property
    def remarks(self) -> list[str]:
        """Lines below the table besides the sentence."""
        return []

    def frame(self) -> Any:
        """Return the numbers of the report.

        Returns
        -------
        table : DataFrame or list of dict
            A DataFrame where pandas is installed, else a list that prints as a table.
        """
        return make_table(self.rows())

    def __str__(self) -> str:
        """Return the table with what it says."""
        table = tabulate(
            self.cells(), headers="keys", tablefmt="simple", disable_numparse=True
        )
        lines = [line.rstrip() for line in table.splitlines()]
        lines += ["", self.sentence, *self.remarks]
        return "\n".join([self.title, "", *lines])

    def __repr__(self) -> str:
        """Return the sentence: what matters of the report in a line."""
        return f"<{type(self).__name__}: {self.sentence}>"

    def _repr_html_(self) -> str:
        """Return the report for a notebook."""
        cells = self.cells()
        head = "".join(f"<th>{escape(name)}</th>" for name in (cells or [{}])[0])
        body = "".join(
            "<tr>" + "".join(f"<td>{escape(v)}</td>" for v in row.values()) + "</tr>"
            for row in cells
        )
        below = "".join(f"<p>{escape(text)}</p>" for text in self.remarks)
        return (
            f"<p>{escape(self.title)}</p>"
            f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
            f"<p><strong>{escape(self.sentence)}</strong></p>{below}"
            f'<p><a href="{GUIDE}">What these numbers mean</a></p>'
        )


def number(value: float, error: float | None = None) -> str:
    """Short text of a number with its standard error; a dash for NaN.

    Parameters
    ----------
    value : float
        The number.
    error : float, default=None
        Its standard error; None, NaN and zero are not shown.

    Returns
    -------
    text : str
        Four digits, and two of the error.

    Examples
    --------
    >>> number(0.97531, 0.0123), number(1234.5), number(float("nan"))
    ('0.9753 +- 0.012', '1234', '-')
    """
    if math.isnan(value):
        return "-"
    shown = f"{value:.4g}"
    if error is None or math.isnan(error) or error == 0:
        return shown
    return f"{shown} +- {error:.2g}"


def listed(names: list[str]) -> str:
    """Join names as in a sentence.

    Parameters
    ----------
    names : list of str
        One at least.

    Returns
    -------
    text : str
        With "and" before the last.

    Examples
    --------
    >>> listed(["a"]), listed(["a", "b", "c"])
    ('a', 'a, b and c')
    """
    if len(names) == 1:
        return names[0]
    return f"{', '.join(names[:-1])} and {names[-1]}"
