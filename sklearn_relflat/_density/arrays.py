"""Points, weights and devices: what the densities take, from NumPy or torch."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.utils import check_array

from sklearn_relflat._density.radial_kernels import array_module

_LARGEST_VALUE = 1e150


def checked_tensor(X: Any) -> Any:
    """Check a tensor of points and detach it.

    Parameters
    ----------
    X : Tensor of shape (n_samples, n_features)
        Points.

    Returns
    -------
    X : Tensor
        In a floating dtype.

    Raises
    ------
    ValueError
        If it is not a dense real matrix with numbers in it.
    """
    xp = array_module(X)
    X = X.detach()
    if X.is_meta:
        raise ValueError(
            "X must be a tensor with numbers in it, got one on the device 'meta', "
            "which has a shape only."
        )
    if X.ndim != 2 or 0 in X.shape or X.is_complex() or X.layout != xp.strided:
        raise ValueError(
            "X must be a dense real tensor of shape (n_samples, n_features) with "
            f"one row and column at least, got shape {tuple(X.shape)!r}, "
            f"{X.dtype!r}, {X.layout!r}."
        )
    return X if X.is_floating_point() else X.to(xp.float64)


def checked_range(X: Any) -> Any:
    """Raise where points are not finite, or squared distances would overflow.

    Parameters
    ----------
    X : {ndarray, Tensor} of shape (n_samples, n_features)
        Points.

    Returns
    -------
    X : {ndarray, Tensor}
        The points.

    Raises
    ------
    ValueError
        Naming the largest value.
    """
    largest = float(array_module(X).abs(X).max())
    if not largest <= _LARGEST_VALUE:
        raise ValueError(
            f"X must be finite and at most {_LARGEST_VALUE!r} in absolute value, got "
            f"{largest!r}: squared distances would overflow. Impute or rescale X."
        )
    return X


def checked_points(X: Any) -> Any:
    """Check points for a function: float64, of NumPy or a tensor on its device.

    Parameters
    ----------
    X : {array-like, Tensor} of shape (n_samples, n_features)
        Points.

    Returns
    -------
    X : {ndarray, Tensor}
        In float64.

    Raises
    ------
    ValueError
        If they are not a dense real matrix of finite numbers.
    """
    if array_module(X) is np:
        return checked_range(check_array(X, dtype=np.float64))
    X = checked_range(checked_tensor(X))
    return moved(X, X.device)


def checked_weights(sample_weight: Any, n_samples: int) -> np.ndarray:
    """One non-negative weight for each sample, not all zero.

    Parameters
    ----------
    sample_weight : array-like of shape (n_samples,) or None
        Weights.
    n_samples : int
        Number of samples.

    Returns
    -------
    weights : ndarray of shape (n_samples,)
        The largest is one.

    Raises
    ------
    ValueError
        If shape or sign are wrong, or all are zero.
    """
    if sample_weight is None:
        return np.ones(n_samples)
    weights = check_array(
        moved(sample_weight, None),
        ensure_2d=False,
        dtype=np.float64,
        input_name="sample_weight",
    )
    if weights.shape != (n_samples,):
        raise ValueError(
            f"sample_weight must have shape {(n_samples,)!r}, one weight for each "
            f"row of X, got {weights.shape!r}."
        )
    if weights.min() < 0 or weights.max() == 0:
        raise ValueError(
            "sample_weight must be non-negative and not zero everywhere, got weights "
            f"from {float(weights.min())!r} to {float(weights.max())!r}. Leave out the "
            "rows that have no valid weight."
        )
    return weights / weights.max()


def device_of(array: Any) -> Any:
    """Device of a tensor, None for everything that NumPy handles.

    Parameters
    ----------
    array : array-like or Tensor
        Any.

    Returns
    -------
    device : torch.device or None
        Where it is.
    """
    return None if array_module(array) is np else array.device


def moved(array: Any, device: Any) -> Any:
    """Make a float64 tensor on the device, or an ndarray where the device is None.

    Parameters
    ----------
    array : ndarray or Tensor
        Numbers.
    device : torch.device, str or None
        Where to.

    Returns
    -------
    array : ndarray or Tensor
        Itself where it is there already.
    """
    if device is None:
        return array if array_module(array) is np else array.detach().cpu().numpy()
    import torch

    if isinstance(array, np.ndarray) and not array.flags.writeable:
        array = array.copy()  # torch warns of read-only memory, such as a memory map's
    return torch.as_tensor(array, dtype=torch.float64, device=device)
