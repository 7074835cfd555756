"""One spelling of which layers are meant, for all public functions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

#: What ``layer`` is called when all weight layers are measured together.
ALL_LAYERS = "all"


def layer_words(layer: str) -> str:
    """Say which layers a result is of.

    Parameters
    ----------
    layer : str
        The label of a result.

    Returns
    -------
    words : str
        For a line that describes it.
    """
    return "all layers" if layer == ALL_LAYERS else f"layer {layer!r}"


def layer_names(layers: Any, name: str = "layers") -> list[str | None] | None:
    """Names of layers from what a user passed.

    Parameters
    ----------
    layers : str, iterable of str, or None
        A name, several in any iterable (also one that can be read once), "all", or
        None for the output layer.
    name : str
        Name of the parameter, for messages.

    Returns
    -------
    names : list of str, [None] or None
        [None] is the output layer, None all of them.

    Raises
    ------
    TypeError
        If it is nothing of that kind.
    ValueError
        If it is empty.
    """
    if layers is None:
        return [None]
    if isinstance(layers, str):
        return None if layers == ALL_LAYERS else [layers]
    if not isinstance(layers, Iterable) or isinstance(layers, bytes):
        raise TypeError(
            f"Expected {name} to be the name of a layer, several names, "
            f'"{ALL_LAYERS}" or None, got {layers!r}.'
        )
    names = [str(one) if isinstance(one, str) else one for one in layers]
    wrong = [one for one in names if not isinstance(one, str)]
    if wrong:
        raise TypeError(f"Expected {name} to be names of layers, got {wrong[0]!r}.")
    if not names:
        raise ValueError(
            f'Expected a name, several or "{ALL_LAYERS}" as {name}, got an empty '
            f"{type(layers).__name__}."
        )
    return names


def one_layer(layer: Any, caller: str) -> list[str] | None:
    """One name in a list, so that "all" is nothing but a name, or None.

    Parameters
    ----------
    layer : str or None
        What the user named.
    caller : str
        Function that measures one layer.

    Returns
    -------
    names : list of str or None
        For `layer_names`.

    Raises
    ------
    TypeError
        If it is something else.
    """
    if layer is not None and not isinstance(layer, str):
        raise TypeError(
            f"Expected layer to be the name of one layer or None, got {layer!r}. Call "
            f"{caller} once for each layer."
        )
    return None if layer is None else [layer]
