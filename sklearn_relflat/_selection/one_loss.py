"""Whether the losses of several models can be compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

# One number, whether a model has one output for two classes, or two.
_LOG_LOSSES = {"cross_entropy", "binary_cross_entropy"}


def check_one_loss(losses: Mapping[Any, str], y: Any = None) -> None:
    """Raise where models were trained with different losses.

    Parameters
    ----------
    losses : dict of str
        Names of the losses, by those of the models.
    y : array-like, default=None
        Targets: of two classes, both forms of the cross-entropy are one number. None
        does not look.

    Raises
    ------
    ValueError
        Naming the losses and the way out.
    """
    found = sorted(set(losses.values()))
    binary = y is not None and len(np.unique(np.asarray(y))) <= 2
    if len(found) < 2 or (binary and set(found) <= _LOG_LOSSES):
        return
    raise ValueError(
        f"Expected models that were trained with one loss, got {dict(losses)!r}, whose "
        f"values cannot be compared. Name one for all: loss={found[0]!r}."
    )
