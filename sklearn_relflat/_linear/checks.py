"""Checks of the parameters that the regularised linear models share."""

import numbers
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

# The square of the radius has to be a number, too.
_MAX_DELTA = 1e150


def check_delta(delta: Any) -> float:
    """Return the perturbation radius as a float, or say what is wrong with it."""
    if (
        isinstance(delta, bool)
        or not isinstance(delta, numbers.Real)
        or not float(delta) < _MAX_DELTA
        or delta < 0
    ):
        raise ValueError(
            "delta, the radius of the feature perturbation, must be a finite number "
            f">= 0, got {delta!r}. Typical values lie between 0.01 and 1; delta=0 "
            "switches the penalty off."
        )
    return float(delta)


def check_deltas(deltas: Any) -> NDArray[np.float64]:
    """Return the radii of a path as an array, or say what is wrong with them."""
    radii = np.atleast_1d(np.asarray(deltas, dtype=object))
    if radii.ndim != 1 or not radii.size:
        raise ValueError(
            "deltas must be a non-empty sequence of radii, got an array of shape "
            f"{radii.shape!r}. Give for example deltas=(0.01, 0.1, 1.0)."
        )
    return np.array([check_delta(delta) for delta in radii])


def check_flag(name: str, value: Any) -> bool:
    """Return a boolean parameter, or say what came instead."""
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{name} must be True or False, got {value!r}.")
    return bool(value)


def check_sample_weight(
    sample_weight: ArrayLike | None, n_samples: int
) -> NDArray[np.float64]:
    """Return non-negative sample weights of shape (n_samples,); None means ones."""
    if sample_weight is None:
        return np.ones(n_samples)
    weight = np.asarray(sample_weight, dtype=np.float64)
    if weight.ndim == 0:
        weight = np.full(n_samples, float(weight))
    if weight.shape != (n_samples,):
        raise ValueError(
            f"sample_weight must have shape ({n_samples},), one weight per sample, "
            f"got shape {weight.shape!r}."
        )
    if not np.isfinite(weight).all() or (weight < 0).any():
        raise ValueError(
            "sample_weight must be finite and non-negative, got values from "
            f"{float(weight.min())!r} to {float(weight.max())!r}."
        )
    if not weight.any():
        raise ValueError(
            "sample_weight must have at least one positive weight, got only zeros."
        )
    return weight
