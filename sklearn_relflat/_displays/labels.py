"""How the axes of the Displays are called."""

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
