"""Batches of a data set: validated once, read again on every pass."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_sequence, unpack_sequence

from sklearn_relflat._data.inputs import (
    check_finite_inputs,
    map_tree,
    own_copy,
    to_model_inputs,
)


@dataclass(frozen=True)
class Batch:
    """One batch of a data set, ready for the forward pass.

    Attributes
    ----------
    inputs : Tensor, dict or list
        Inputs on the model's device, floating ones in the model's dtype.
    y : Tensor of shape (n_samples, ...) or None
        Targets: int64 class indices, or floating in the model's dtype.
    sample_weight : Tensor of shape (n_samples,) or None
        Weights of the samples.
    start : int
        Position of the first sample in the data set.
    n_samples : int
        Number of samples in the batch.
    """

    inputs: Any
    y: Tensor | None
    sample_weight: Tensor | None
    start: int
    n_samples: int

    def slice(self, start: int, stop: int) -> "Batch":
        """Cut out samples start..stop.

        Parameters
        ----------
        start, stop : int
            Positions in the batch.

        Returns
        -------
        part : Batch
            Shares its memory with this batch.
        """
        stop = min(stop, self.n_samples)
        part = _part(self, slice(start, stop))
        return replace(part, start=self.start + start, n_samples=stop - start)

    def take(self, rows: list[int]) -> "Batch":
        """Copy some samples.

        Parameters
        ----------
        rows : list of int
            Positions in the batch.

        Returns
        -------
        part : Batch
            Has memory of its own; `start` stays that of this batch.
        """
        return replace(_part(self, rows), n_samples=len(rows))


def _part(batch: Batch, rows: slice | list[int]) -> Batch:
    """Cut out inputs, targets and weights of some rows."""

    def cut(values: Any) -> Any:
        """Cut one array; what is no array passes as it is."""
        if isinstance(values, PackedSequence):
            sequences: Any = unpack_sequence(values)
            if isinstance(rows, slice):
                return pack_sequence(sequences[rows], enforce_sorted=False)
            return pack_sequence([sequences[i] for i in rows], enforce_sorted=False)
        return values[rows] if isinstance(values, Tensor) else values

    weight = batch.sample_weight
    return replace(
        batch,
        inputs=map_tree(cut, batch.inputs),
        y=None if batch.y is None else batch.y[rows],
        sample_weight=None if weight is None else weight[rows],
    )


def chunks(source: Iterable[Batch], size: int) -> Iterator[Batch]:
    """Cut the batches of a source into chunks.

    Parameters
    ----------
    source : iterable of Batch
        The batches.
    size : int
        Samples that a chunk may have.

    Yields
    ------
    chunk : Batch
        Chunks of about equal size in each batch: a tiny last one would waste a forward
        pass.
    """
    for batch in source:
        n_chunks = math.ceil(batch.n_samples / size)
        step = math.ceil(batch.n_samples / n_chunks)
        for start in range(0, batch.n_samples, step):
            yield batch.slice(start, start + step) if n_chunks > 1 else batch


def groups(source: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    """Cut the samples of a source into groups, whatever its batches are.

    Parameters
    ----------
    source : iterable of Batch
        The batches.
    size : int
        Samples in a group.

    Yields
    ------
    group : list of Batch
        Consecutive samples in parts that lie in one batch each; the last group may have
        fewer.
    """
    parts: list[Batch] = []
    missing = size
    for batch in source:
        start = 0
        while start < batch.n_samples:
            parts.append(batch.slice(start, start + missing))
            start += parts[-1].n_samples
            missing -= parts[-1].n_samples
            if not missing:
                yield parts
                parts, missing = [], size
    if parts:
        yield parts


def _spread(n_samples: int) -> range:
    """Positions of three samples of a batch at even distances, or of all."""
    step = max(1, (n_samples - 1) // 2)
    return range(0, min(n_samples, 2 * step + 1), step)


class BatchSource(ABC):
    """The batches of one data set, in order; every iteration is a new pass.

    Attributes
    ----------
    n_samples : int
        Number of samples of the data set.
    """

    n_samples: int

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of batches."""

    @abstractmethod
    def __iter__(self) -> Iterator[Batch]:
        """Iterate over the batches from the first one."""

    def first(self, n_samples: int) -> Batch:
        """Read a few samples, to see what the model makes of them.

        Parameters
        ----------
        n_samples : int
            How many; fewer if the first batch has fewer.

        Returns
        -------
        batch : Batch
            The first samples of the first batch.
        """
        return next(iter(self)).slice(0, n_samples)

    def glances(self) -> Iterator[tuple[Batch, range]]:
        """Read up to three samples of each batch.

        Yields
        ------
        batch : Batch
            The samples, in memory of their own; `start` is that of their batch.
        rows : range
            Their positions in the batch.
        """
        for batch in self:
            rows = _spread(batch.n_samples)
            yield batch.take([*rows]), rows


class HeldBatches(BatchSource):
    """Batches that are held in memory.

    Parameters
    ----------
    batches : list of Batch
        The batches, in order.
    """

    def __init__(self, batches: list[Batch]) -> None:
        self._batches = batches
        self.n_samples = sum(batch.n_samples for batch in batches)

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        """Iterate over the batches from the first one."""
        for batch in self._batches:
            # A module may write into its inputs.
            yield replace(batch, inputs=own_copy(batch.inputs))


class SlicedBatches(BatchSource):
    """Consecutive slices of data that can be read at any position.

    Parameters
    ----------
    read : callable
        ``read(slice)`` gives the raw inputs of these samples.
    n_samples : int
        Number of samples.
    batch_size : int
        Samples per batch; the last batch may have fewer.
    y : Tensor of shape (n_samples, ...) or None
        Targets.
    sample_weight : Tensor of shape (n_samples,) or None
        Weights of the samples.
    device : torch.device
        Where the batches go.
    dtype : torch.dtype
        What floating inputs are cast to.
    share : bool, default=False
        Whether the module leaves its inputs alone: then batches may share memory with
        the data.
    is_checked : bool, default=False
        Whether the inputs are known to be finite.

    Examples
    --------
    >>> import numpy as np
    >>> import torch
    >>> X = np.arange(10.0).reshape(5, 2)
    >>> batches = SlicedBatches(
    ...     X.__getitem__, 5, 2, None, None, torch.device("cpu"), torch.float32
    ... )
    >>> len(batches), [batch.n_samples for batch in batches]
    (3, [2, 2, 1])
    >>> torch.equal(torch.cat([b.inputs for b in batches]), torch.tensor(X).float())
    True
    """

    def __init__(
        self,
        read: Callable[[slice], Any],
        n_samples: int,
        batch_size: int,
        y: Tensor | None,
        sample_weight: Tensor | None,
        device: torch.device,
        dtype: torch.dtype,
        *,
        share: bool = False,
        is_checked: bool = False,
    ) -> None:
        self.n_samples = n_samples
        self._read = read
        self._batch_size = batch_size
        self._y = y
        self._sample_weight = sample_weight
        self._device = device
        self._dtype = dtype
        self._share = share
        self._is_checked = is_checked

    def __len__(self) -> int:
        """Return the number of batches."""
        return -(-self.n_samples // self._batch_size)

    def __iter__(self) -> Iterator[Batch]:
        """Iterate over the batches from the first one."""
        for number in range(len(self)):
            yield self._batch(number, self._rows_of(number))

    def first(self, n_samples: int) -> Batch:
        """See `BatchSource.first`; reads no more than it returns."""
        return self._batch(0, self._rows_of(0)[:n_samples])

    def glances(self) -> Iterator[tuple[Batch, range]]:
        """See `BatchSource.glances`; reads no more than it returns."""
        for number in range(len(self)):
            rows = self._rows_of(number)
            few = _spread(len(rows))
            batch = self._batch(number, rows[few.start : few.stop : few.step])
            yield batch.take([*range(len(few))]), few

    def _rows_of(self, number: int) -> range:
        """Positions of the samples of one batch."""
        start = number * self._batch_size
        return range(start, min(start + self._batch_size, self.n_samples))

    def _batch(self, number: int, positions: range) -> Batch:
        """Read samples of one batch at even distances, from its first one on."""
        start = positions.start
        rows = slice(start, positions.stop, positions.step)
        inputs = to_model_inputs(
            self._read(rows), self._device, self._dtype, share=self._share
        )
        if not self._is_checked:
            check_finite_inputs(inputs, number, start)
        return Batch(
            inputs=inputs,
            y=_rows(self._y, rows, self._device),
            sample_weight=_rows(self._sample_weight, rows, self._device),
            start=start,
            n_samples=len(positions),
        )


def _rows(values: Tensor | None, rows: slice, device: torch.device) -> Tensor | None:
    """Return some rows of a tensor on the device."""
    return None if values is None else values[rows].to(device)
