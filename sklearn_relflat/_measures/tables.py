"""Tables of results: a pandas DataFrame, or a list that prints as one."""

from __future__ import annotations

import importlib.util
from typing import Any


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

    def __repr__(self) -> str:
        """Return the rows below each other."""
        if not self:
            return "an empty table"
        names = list(self[0])
        cells = [names, *([_text(row[name]) for name in names] for row in self)]
        widths = [max(len(row[j]) for row in cells) for j in range(len(names))]
        numeric = [isinstance(self[0][name], int | float) for name in names]
        lines = [
            "  ".join(
                cell.rjust(width) if is_number else cell.ljust(width)
                for cell, width, is_number in zip(row, widths, numeric, strict=True)
            ).rstrip()
            for row in cells
        ]
        return "\n".join(lines)


def _text(value: Any) -> str:
    """Format one cell: six digits of a number."""
    is_number = isinstance(value, float)
    return f"{value:.6g}" if is_number else str(value)


def make_table(rows: list[dict[str, Any]]) -> Any:
    """Table of rows with the same keys.

    Parameters
    ----------
    rows : list of dict
        The rows; their keys are the columns.

    Returns
    -------
    table : DataFrame or RowList
        A DataFrame where pandas is installed.
    """
    if importlib.util.find_spec("pandas") is None:
        return RowList(rows)
    import pandas as pd

    return pd.DataFrame(rows)
