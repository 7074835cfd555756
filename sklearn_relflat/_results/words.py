"""Numbers and names as short texts."""

from __future__ import annotations

import math


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


def abbreviated(cells: list[dict[str, str]], most: int = 20) -> list[dict[str, str]]:
    """Leave out the middle of a long table that is to be looked at.

    Parameters
    ----------
    cells : list of dict
        Rows of short texts with the same keys.
    most : int, default=20
        Number of rows up to which nothing is left out.

    Returns
    -------
    cells : list of dict
        The rows, or the first and the last of them around a row of dots.

    Examples
    --------
    >>> [row["i"] for row in abbreviated([{"i": str(i)} for i in range(9)], most=4)]
    ['0', '1', '...', '7', '8']
    """
    if len(cells) <= most:
        return cells
    half = most // 2
    return [*cells[:half], dict.fromkeys(cells[0], "..."), *cells[-half:]]
