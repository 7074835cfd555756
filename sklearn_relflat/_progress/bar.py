"""Bars with the time that is left."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def progress_bar(
    items: Iterable[Any] | None = None,
    *,
    title: str,
    unit: str,
    verbose: int | bool,
    **options: Any,
) -> Any:
    """Make a bar on the standard error stream.

    Parameters
    ----------
    items : iterable, default=None
        What the bar is to yield and count; None counts by its ``update``.
    title : str
        What goes on.
    unit : str
        What is counted.
    verbose : int or bool
        0 draws nothing.
    **options : dict
        Other options of ``tqdm.tqdm``, such as ``total``.

    Returns
    -------
    bar : tqdm.tqdm
        The bar.

    Examples
    --------
    >>> sum(progress_bar([1, 2, 3], title="adding", unit="number", verbose=0))
    6
    """
    return tqdm(
        items,
        desc=title,
        unit=unit,
        disable=not verbose,
        # A log gets a line every ten seconds.
        mininterval=0.2 if sys.stderr.isatty() else 10.0,
        **options,
    )
