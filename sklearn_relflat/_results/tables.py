"""Tables of results: a pandas DataFrame, or a list that prints as one."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from typing import Any

from tabulate import tabulate

from sklearn_relflat._results.html import html_table


class RowList(list[dict[str, Any]]):
    """Rows of a table as a list of dicts, printed as a table.

    It stands in for a DataFrame where pandas is not installed.

    Examples
    --------
    >>> rows = RowList(
    ...     [{"layer": "coef", "value": 0.5}, {"layer": "all", "value": 12.0}]
    ... )
    >>> rows
    layer  value
    coef     0.5
    all       12
    >>> rows.column("value")
    [0.5, 12.0]
    """

    def column(self, name: str) -> list[Any]:
        """Return one column.

        Parameters
        ----------
        name : str
            Its name.

        Returns
        -------
        values : list
            One per row.
        """
        return [row[name] for row in self]

    def __init__(
        self, rows: Iterable[dict[str, Any]] = (), attrs: dict[str, Any] | None = None
    ) -> None:
        super().__init__(rows)
        self.attrs = attrs or {}

    def __repr__(self) -> str:
        """Return the rows below each other."""
        if not self:
            return "an empty table"
        return tabulate(self, headers="keys", tablefmt="plain", floatfmt=".6g")

    def _repr_html_(self) -> str:
        """Return the rows for a notebook."""
        return html_table(self)


def make_table(rows: list[dict[str, Any]], **attrs: Any) -> Any:
    """Table of rows with the same keys.

    Parameters
    ----------
    rows : list of dict
        The rows; their keys are the columns.
    **attrs : object
        What goes with the table, as its ``attrs``.

    Returns
    -------
    table : DataFrame or RowList
        A DataFrame where pandas is installed.
    """
    if importlib.util.find_spec("pandas") is None:
        return RowList(rows, attrs)
    import pandas as pd

    table = pd.DataFrame(rows)
    table.attrs.update(attrs)
    return table
