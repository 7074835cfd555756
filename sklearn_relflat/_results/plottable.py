"""Results that open the Display that belongs to them.

Displays stand on a floor above the results, which cannot import them. The package
itself, above both, says where the table of Displays is; it is imported when the first
picture is asked for.
"""

from __future__ import annotations

import importlib
from typing import Any

_TABLES: list[str] = []


def displays_are_in(module: str) -> None:
    """Say which module has a table of Displays.

    Parameters
    ----------
    module : str
        Its full name. ``DISPLAYS`` in it maps types of results to Displays, whose
        ``from_result`` draws them.
    """
    _TABLES.append(module)


def display_of(result_type: type) -> Any:
    """Return the Display for results of a type, or of one that it is derived from.

    Parameters
    ----------
    result_type : type
        The type.

    Returns
    -------
    display : type
        The Display.

    Raises
    ------
    TypeError
        If there is none.
    """
    for module in _TABLES:
        displays = importlib.import_module(module).DISPLAYS
        for base in result_type.__mro__:
            if base in displays:
                return displays[base]
    raise TypeError(
        f"Expected a result that a Display is known for, got a {result_type.__name__}. "
        f"Add it to DISPLAYS in {' or '.join(_TABLES) or 'a module'}, or draw its "
        "numbers with matplotlib."
    )


class Plottable:
    """A result that opens its Display."""

    __slots__ = ()

    def plot(self, ax: Any = None, **options: Any) -> Any:
        """Draw the result.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on; None makes a new figure.
        **options : dict
            Other keywords of the Display's ``from_result``.

        Returns
        -------
        display : Display
            The drawn Display that belongs to the result.
        """
        return display_of(type(self)).from_result(self, ax=ax, **options)
