"""Inputs, targets and sample weights as tensors: conversion and checks."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence


def map_tree(function: Callable[[Any], Any], data: Any) -> Any:
    """Apply a function to every array of nested dicts, lists and tuples."""
    if isinstance(data, Mapping):
        return {key: map_tree(function, value) for key, value in data.items()}
    if isinstance(data, list | tuple) and not isinstance(data, PackedSequence):
        return [map_tree(function, value) for value in data]
    return function(data)


def leaves(data: Any, name: str = "X") -> Iterator[tuple[str, Any]]:
    """Yield every array of nested dicts, lists and tuples with its name."""
    if isinstance(data, Mapping):
        for key, value in data.items():
            yield from leaves(value, f"{name}[{key!r}]")
    elif isinstance(data, list | tuple) and not isinstance(data, PackedSequence):
        for position, value in enumerate(data):
            yield from leaves(value, f"{name}[{position}]")
    else:
        yield name, data


def plain_values(values: Any, name: str) -> Any:
    """Return an array or tensor whose numbers are all there, for what may be one.

    Parameters
    ----------
    values : Any
        An array, a tensor or anything else.
    name : str
        What it is, for the message.

    Returns
    -------
    values : Any
        Masked arrays as plain ones, extended precision as double precision; anything
        else as it is.

    Raises
    ------
    ValueError
        If entries are masked, or a tensor has no memory.
    """
    if isinstance(values, np.ma.MaskedArray):
        if np.ma.getmaskarray(values).any():
            raise ValueError(
                f"Expected {name} without masked entries, got a masked array with "
                f"{int(np.ma.count_masked(values))} of them. Impute them, or leave "
                "these samples out."
            )
        values = np.asarray(values.data)
    if isinstance(values, Tensor) and values.is_meta:
        raise ValueError(
            f"Expected {name} with numbers in it, got a tensor on the device 'meta', "
            "which has a shape only. Pass data on a real device."
        )
    if isinstance(values, np.ndarray) and values.dtype == np.longdouble:
        return values.astype(np.float64)
    return values


def as_numpy(values: Any, name: str = "X") -> Any:
    """Return what scikit-learn can validate: tensors as arrays."""
    values = plain_values(values, name)
    if not isinstance(values, Tensor):
        return values
    values = values.detach().cpu()
    # NumPy has no bfloat16.
    return (values.float() if values.dtype is torch.bfloat16 else values).numpy()


def own_copy(inputs: Any) -> Any:
    """Copy the inputs of a batch: a module may work in place on them.

    Parameters
    ----------
    inputs : Tensor, dict or list
        Inputs.

    Returns
    -------
    inputs : Tensor, dict or list
        Tensors in memory of their own.
    """

    def copied(values: Any) -> Any:
        """Copy one tensor."""
        if isinstance(values, PackedSequence):
            packed: Any = values
            return PackedSequence(packed.data.clone(), *packed[1:])
        return values.clone() if isinstance(values, Tensor) else values

    return map_tree(copied, inputs)


def n_rows(data: Any) -> int:
    """Return the number of samples in nested dicts, lists and tuples of arrays.

    Parameters
    ----------
    data : array-like, Tensor, PackedSequence, or nested dict, list, tuple of them
        Samples.

    Returns
    -------
    n_samples : int
        The length that all arrays share.

    Raises
    ------
    TypeError
        If there is no array, or one without a length.
    ValueError
        If the lengths differ.

    Examples
    --------
    >>> n_rows({"left": np.zeros((2, 3)), "right": torch.zeros(2)})
    2
    """
    lengths = {}
    for name, values in leaves(data):
        packed = isinstance(values, PackedSequence)
        lengths[name] = int(values.batch_sizes[0]) if packed else len(values)
    if not lengths:
        raise TypeError(f"Expected at least one array, got {data!r}.")
    if len(set(lengths.values())) > 1:
        raise ValueError(
            f"Expected inputs of one length, got {lengths!r}. Pass arrays with one "
            "entry per sample each."
        )
    return next(iter(lengths.values()))


def to_model_inputs(
    data: Any, device: torch.device, dtype: torch.dtype, *, share: bool = False
) -> Any:
    """Move nested arrays to a device; cast the floating ones, leave integers.

    Parameters
    ----------
    data : array-like, Tensor, or nested dict, list, tuple of them
        Raw inputs.
    device : torch.device
        Where to.
    dtype : torch.dtype
        Floating type of the model.
    share : bool, default=False
        Whether the result may share memory with the data. If not, a module that
        changes its input in place cannot change the user's X.

    Returns
    -------
    inputs : Tensor, dict or list
        Detached tensors; what is no array (say, strings) passes as it is.
    """

    def convert(values: Any) -> Any:
        """Convert one array."""
        if isinstance(values, PackedSequence):
            packed: Any = values  # Its ``to`` is annotated for dtypes only.
            moved = packed.to(device)
            return moved if share or moved is not packed else own_copy(moved)
        if isinstance(values, np.ndarray):
            tensor = torch.from_numpy(plain_array(values))
        elif isinstance(values, Tensor):
            tensor = values.detach()
        else:
            return values
        target = dtype if tensor.is_floating_point() else tensor.dtype
        moved = tensor.to(device=device, dtype=target)
        return moved.clone() if moved is tensor and not share else moved

    return map_tree(convert, data)


def plain_array(values: np.ndarray) -> np.ndarray:
    """Return an array whose dtype, byte order and memory torch can take over.

    Parameters
    ----------
    values : ndarray
        Numbers.

    Returns
    -------
    array : ndarray
        Itself where torch takes it as it is.

    Raises
    ------
    TypeError
        If these are no numbers.
    """
    if values.dtype.kind in "OUSMmV":
        raise TypeError(
            f"Expected numeric inputs, got an array of dtype {values.dtype!r}. "
            "Encode strings, dates and objects as numbers first."
        )
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    # torch warns of read-only memory and knows no negative strides.
    foreign = not values.flags.writeable or any(step < 0 for step in values.strides)
    return values.copy() if foreign else values


def is_finite(values: Tensor) -> bool:
    """Tell whether all numbers of a tensor are finite.

    Parameters
    ----------
    values : Tensor
        Numbers.

    Returns
    -------
    finite : bool
        True if there is no NaN and no infinity.

    Examples
    --------
    >>> import torch
    >>> is_finite(torch.tensor([1.0, 2.0])), is_finite(torch.tensor([1.0, torch.inf]))
    (True, False)
    """
    values = values.detach()
    if values.is_complex():
        values = torch.view_as_real(values.resolve_conj())
    # One finite number from all of them is the cheapest proof; one that merely
    # overflows is none. BLAS reads memory faster than torch's sum does.
    if values.is_contiguous() and values.dtype in (torch.float32, torch.float64):
        flat = values.view(-1)
        total = torch.dot(flat, flat)
    else:
        total = values.sum()
    return math.isfinite(total) or bool(torch.isfinite(values).all())


def check_finite_inputs(inputs: Any, number: int, start: int) -> None:
    """Raise where a batch holds NaN or infinity.

    Parameters
    ----------
    inputs : Tensor, dict or list
        Inputs of the batch.
    number : int
        Position of the batch, for the message.
    start : int
        Position of the batch's first sample, for the message.

    Raises
    ------
    ValueError
        Naming the batch and the first sample that is not finite.
    """
    for name, values in leaves(inputs):
        if not (isinstance(values, Tensor) and values.is_floating_point()):
            continue
        if is_finite(values):
            continue
        finite = torch.isfinite(values).flatten(1 if values.ndim > 1 else 0)
        per_sample = finite.all(dim=1) if values.ndim > 1 else finite
        bad = torch.nonzero(~per_sample).flatten()
        raise ValueError(
            f"Expected finite numbers in {name}, got NaN or infinity in "
            f"{len(bad)} samples of batch {number}, first in sample "
            f"{start + int(bad[0])}. Impute or remove these samples."
        )


def as_targets(
    y: Any, n_samples: int, dtype: torch.dtype, *, floating: bool = False
) -> Tensor:
    """Turn targets into an int64 or floating tensor.

    Parameters
    ----------
    y : array-like or Tensor of shape (n_samples, ...)
        Targets.
    n_samples : int
        Number of samples in X.
    dtype : torch.dtype
        Type that floating targets get.
    floating : bool, default=False
        Whether integers become floating, too (regression).

    Returns
    -------
    targets : Tensor of shape (n_samples, ...)
        Targets on the CPU, or where the tensor ``y`` was.

    Raises
    ------
    ValueError
        If the targets are no numbers, have another length than X, or are not finite.
    """
    y = plain_values(y, "y")
    if isinstance(y, Tensor) and y.dtype is not torch.uint64:
        targets = y.detach()
    else:
        targets = _numeric_tensor(as_numpy(y, "y"))
    if targets.is_complex():
        raise ValueError(
            f"Expected real targets, got y of dtype {targets.dtype!r}. Pass real and "
            "imaginary part as two outputs."
        )
    if targets.ndim == 0 or len(targets) != n_samples:
        raise ValueError(
            f"Expected y with one entry per sample, got shape {tuple(targets.shape)} "
            f"for {n_samples} samples in X. Pass X and y of the same length."
        )
    if not (floating or targets.is_floating_point()):
        return targets.to(torch.int64)
    targets = targets.to(dtype)
    if not is_finite(targets):
        bad = torch.nonzero(~torch.isfinite(targets))[0, 0]
        raise ValueError(
            "Expected finite targets, got NaN or infinity in y, first in sample "
            f"{int(bad)}. Impute or remove these samples."
        )
    return targets


def _numeric_tensor(y: Any) -> Tensor:
    """Turn array-like targets into a tensor, or say what to do with labels."""
    array = np.asarray(y)
    if array.dtype.kind == "O":
        # Nullable integers and the like arrive as objects.
        array = np.array(array.tolist())
    if array.dtype.kind not in "biuf":
        raise ValueError(
            f"Expected numeric targets for a neural net, got y of dtype "
            f"{array.dtype!r}. A net is trained on class indices 0..K-1: encode the "
            "labels with sklearn.preprocessing.LabelEncoder, as for fit."
        )
    if array.dtype.kind == "u" and array.max(initial=0) > np.iinfo(np.int64).max:
        # Too large for torch's integers; a loss of class labels says so.
        array = array.astype(np.float64)
    elif array.dtype.kind in "bu":
        array = array.astype(np.int64)
    return torch.from_numpy(plain_array(array).copy())


def as_sample_weight(
    sample_weight: Any, n_samples: int, device: torch.device
) -> Tensor:
    """Validate sample weights.

    Parameters
    ----------
    sample_weight : array-like of shape (n_samples,)
        Weights.
    n_samples : int
        Number of samples in X.
    device : torch.device
        The model's device: tells whether float64 is available.

    Returns
    -------
    weights : Tensor of shape (n_samples,)
        float64 where the device has it.

    Raises
    ------
    ValueError
        If the length is wrong, a weight is negative or not finite, or all are zero.
    """
    array = np.asarray(as_numpy(sample_weight, "sample_weight"))
    if array.dtype.kind not in "biufO":
        raise ValueError(
            f"Expected real numbers as sample_weight, got dtype {array.dtype!r}."
        )
    try:
        array = array.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"Expected real numbers as sample_weight, got {sample_weight!r}."
        ) from error
    if array.shape != (n_samples,):
        raise ValueError(
            f"Expected sample_weight of shape ({n_samples},), one weight per sample, "
            f"got shape {array.shape}."
        )
    if not np.isfinite(array).all() or (array < 0).any():
        bad = int(np.flatnonzero(~(np.isfinite(array) & (array >= 0)))[0])
        raise ValueError(
            "Expected finite sample_weight of at least zero, got "
            f"{array[bad]!r} for sample {bad}."
        )
    if not array.any():
        raise ValueError(
            "Expected a positive sample_weight for at least one sample, got zeros only."
        )
    has_float64 = device.type != "mps"
    return torch.from_numpy(array.copy()).to(
        torch.float64 if has_float64 else torch.float32
    )


def moderate_weights(sample_weight: Any) -> Any:
    """Bring weights of which only the ratios count to a size near one.

    Parameters
    ----------
    sample_weight : array-like of shape (n_samples,)
        Weights, perhaps not valid.

    Returns
    -------
    weights : array-like of shape (n_samples,)
        The same ratios, exactly: weights that single precision cannot hold are divided
        by a power of two. Others are as they were.
    """
    try:
        array = np.asarray(as_numpy(sample_weight, "sample_weight"))
        if array.dtype.kind not in "biuf":
            return sample_weight  # For the checks to come.
        array = array.astype(np.float64)
        largest = float(np.max(array, initial=0.0))
    except (TypeError, ValueError):
        return sample_weight  # For the checks to come.
    if not (np.isfinite(largest) and largest > 0):
        return sample_weight
    _, exponent = math.frexp(largest)
    return sample_weight if abs(exponent) < 32 else np.ldexp(array, -exponent)
