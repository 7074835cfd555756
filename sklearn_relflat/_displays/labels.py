"""How the axes of the Displays are called."""

import re
from numbers import Real
from typing import Any

_LOSSES = {
    "cross_entropy": "cross-entropy (nats)",
    "binary_cross_entropy": "binary cross-entropy (nats)",
    "poisson": "Poisson loss (nats)",
    "squared_error": r"squared error (units of $y^2$)",
    "error_rate": "error rate",
}
_SYMBOLS = {"kappa": r"$\kappa$", "kappa_max": r"$\kappa_{\max}$"}


def loss_label(loss: str | None) -> str:
    """Return what a loss is called, with its unit where that is known.

    Parameters
    ----------
    loss : str or None
        Name of the loss in a result; None if it is not known.

    Returns
    -------
    label : str
        For an axis.
    """
    if loss is None:
        return "loss"
    return _LOSSES.get(loss, loss.replace("_", " "))


def flatness_label(loss: str | None = None, symbol: str = "kappa") -> str:
    """Return the label of a horizontal axis with the flatness.

    Parameters
    ----------
    loss : str, default=None
        Name of the loss in a result; None if it is not known.
    symbol : {"kappa", "kappa_max"}, default="kappa"
        Statistic of the curvature.

    Returns
    -------
    label : str
        With the two directions, as larger is sharper.
    """
    of_loss = "" if loss is None else f" of the {loss_label(loss)}"
    return (
        rf"flatter $\leftarrow$  relative flatness {_SYMBOLS[symbol]}{of_loss}  "
        r"$\rightarrow$ sharper"
    )


def shortened(params: dict[str, Any], width: int = 40) -> str:
    """Return the parameters of a candidate in few characters.

    Parameters
    ----------
    params : dict
        Its parameters; of "step__name" the name is enough.
    width : int, default=40
        Most characters.

    Returns
    -------
    text : str
        Cut off with dots where it is longer.
    """
    parts = []
    for name, value in params.items():
        number = isinstance(value, Real) and not isinstance(value, bool)
        shown = f"{value:.4g}" if number else str(value)
        parts.append(f"{name.split('__')[-1]} = {shown}")
    text = ", ".join(parts)
    return text if len(text) <= width else f"{text[: width - 1]}…"


def name_in_short(name: str, width: int = 32) -> str:
    """Return the name of a model in few characters.

    Parameters
    ----------
    name : str
        The name; of a search "step__parameter=value, ...", where the step is left out.
    width : int, default=32
        Most characters.

    Returns
    -------
    text : str
        The name, or its beginning and its end.
    """
    name = re.sub(r"\w+__(?=\w+=)", "", name)
    if len(name) <= width:
        return name
    half = (width - 3) // 2
    return f"{name[: width - 3 - half]}...{name[-half:]}"
