"""Runs as columns: from a DataFrame, records, or the results of a search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


class Runs:
    """Columns of a table with one row a run.

    Parameters
    ----------
    runs : DataFrame, sequence of dict, or dict of column to array
        The table; `cv_results_` of a search is a dict of columns.

    Raises
    ------
    TypeError
        If it is something else.
    """

    def __init__(self, runs: Any) -> None:
        if hasattr(runs, "columns") and hasattr(runs, "to_dict"):
            self._columns = {str(name): list(runs[name]) for name in runs.columns}
        elif isinstance(runs, Mapping):
            self._columns = {str(name): list(column) for name, column in runs.items()}
        elif (
            isinstance(runs, Sequence)
            and not isinstance(runs, str)
            and all(isinstance(run, Mapping) for run in runs)
        ):
            names = dict.fromkeys(name for run in runs for name in run)
            self._columns = {
                str(name): [run.get(name) for run in runs] for name in names
            }
        else:
            raise TypeError(
                "Expected runs to be a DataFrame, a list of dicts, or cv_results_, got "
                f"{type(runs).__name__!r}. Pass one row a run."
            )

    @property
    def hyperparameters(self) -> list[str]:
        """Columns of a search's parameters."""
        return [name for name in self._columns if name.startswith("param_")]

    def _column(self, name: str) -> list[Any]:
        """One column."""
        if name not in self._columns:
            raise ValueError(
                f"Expected a column {name!r} of the runs, got {sorted(self._columns)}."
            )
        return self._columns[name]

    def numbers(self, name: str) -> np.ndarray:
        """Numbers of a column; NaN where there is none.

        Parameters
        ----------
        name : str
            The column.

        Returns
        -------
        values : ndarray of shape (n_runs,)
            The numbers.

        Raises
        ------
        ValueError
            If there is no such column, or it holds something else.
        """
        column = self._column(name)
        try:
            return np.array(
                [np.nan if _is_missing(value) else float(value) for value in column]
            )
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"Expected numbers in the column {name!r}, got {column[:3]!r} ..."
            ) from error

    def codes(self, names: Sequence[str]) -> np.ndarray:
        """Columns as integers, the same for the same values.

        Parameters
        ----------
        names : sequence of str
            The columns.

        Returns
        -------
        codes : ndarray of shape (n_runs, n_columns)
            The integers.
        """
        n = len(next(iter(self._columns.values()), []))
        codes = np.zeros((n, len(names)), dtype=int)
        for k, name in enumerate(names):
            known: dict[str, int] = {}
            for i, value in enumerate(self._column(name)):
                # Values that are equal as numbers are one: 1 and 1.0.
                number = isinstance(value, int | float | np.number)
                key = repr(float(value)) if number else repr(value)
                codes[i, k] = known.setdefault(key, len(known))
        return codes


def _is_missing(value: Any) -> bool:
    """Whether a cell is empty."""
    return value is None or value is np.ma.masked
