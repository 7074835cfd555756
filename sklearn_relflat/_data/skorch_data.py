"""Data of skorch nets: batches as the net's own iterator gives them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from scipy import sparse
from skorch import NeuralNet, NeuralNetBinaryClassifier, NeuralNetRegressor
from skorch.dataset import Dataset as SkorchDataset
from skorch.dataset import unpack_data
from torch import Tensor, nn
from torch.utils.data import (
    DataLoader,
    Dataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    TensorDataset,
)

from sklearn_relflat._data.batches import Batch, BatchSource, SlicedBatches
from sklearn_relflat._data.inputs import (
    as_sample_weight,
    as_targets,
    check_finite_inputs,
    leaves,
    map_tree,
    n_rows,
    plain_values,
    to_model_inputs,
)
from sklearn_relflat._data.random_states import RandomStates
from sklearn_relflat._losses.table import Loss

# Criteria whose targets are real numbers: integer y is cast for them.
_FLOATING_TARGETS = (
    nn.MSELoss,
    nn.L1Loss,
    nn.HuberLoss,
    nn.SmoothL1Loss,
    nn.BCELoss,
    nn.BCEWithLogitsLoss,
    nn.PoissonNLLLoss,
)

# Options of iterator_valid that change how batches are loaded but not what they hold.
_HARMLESS_OPTIONS = {
    "batch_size",
    "num_workers",
    "pin_memory",
    "prefetch_factor",
    "persistent_workers",
    "timeout",
    "multiprocessing_context",
    "worker_init_fn",
    "generator",
}


@dataclass(frozen=True)
class SkorchReader:
    """Read data as the net does.

    Attributes
    ----------
    net : skorch.NeuralNet
        The net.
    criterion : torch criterion
        Its criterion.
    device : torch.device
        Where inputs go.
    dtype : torch.dtype
        What floating inputs become.
    share : bool
        Whether the net leaves its inputs alone, so that they need no copy.
    source : str
        What reads a data set, for messages.
    """

    net: Any
    criterion: Any
    device: torch.device
    dtype: torch.dtype
    share: bool
    source: ClassVar[str] = "the net's iterator_valid"

    def __call__(
        self, X: Any, y: Any, sample_weight: Any, loss: Loss | None
    ) -> BatchSource:
        """Validate X, y and the weights, and return the batches."""
        if isinstance(X, DataLoader):
            raise TypeError(
                "Expected X as arrays or a data set for a skorch net, which makes its "
                f"own batches, got a {type(X).__name__}. Pass its data set: "
                "loader.dataset."
            )
        X = plain_inputs(X)
        n_samples = count_samples(X)
        floating = self._floating_targets(loss)
        targets, weights = None, None
        if y is not None:
            targets = as_targets(y, n_samples, self.dtype, floating=floating)
        if sample_weight is not None:
            weights = as_sample_weight(sample_weight, n_samples, self.device)
        batch_size = _sliced_batch_size(self.net, X)
        if batch_size is None:
            dataset = self._dataset(X, targets)
            return LoadedBatches(self, dataset, n_samples, weights, floating)
        return SlicedBatches(
            read=lambda rows: map_tree(lambda values: values[rows], X),
            n_samples=n_samples,
            batch_size=n_samples if batch_size == -1 else batch_size,
            y=targets,
            sample_weight=weights,
            device=self.device,
            dtype=self.dtype,
            share=self.share,
        )

    def _floating_targets(self, loss: Loss | None) -> bool:
        """Tell whether integer targets are real numbers, not class indices."""
        if loss is not None and loss.name == "cross_entropy":
            return False
        return isinstance(self.criterion, _FLOATING_TARGETS) or isinstance(
            self.net, NeuralNetRegressor | NeuralNetBinaryClassifier
        )

    def iterator(self, dataset: Any) -> Any:
        """Return a new iterator of the net over a data set."""
        return self.net.get_iterator(dataset, training=False)

    def unpack(self, data: Any) -> tuple[Any, Any]:
        """Return inputs and targets of what the iterator gives."""
        return unpack_data(data)

    def _dataset(self, X: Any, targets: Tensor | None) -> Any:
        """Return the net's own data set, with the given targets."""
        dataset = self.net.get_dataset(X, targets)
        if isinstance(X, Dataset) and targets is not None:
            return _WithTargets(dataset, targets)
        return dataset


def plain_inputs(X: Any, *, by_column: bool = True) -> Any:
    """Return X as a module can take it, with all its numbers.

    Parameters
    ----------
    X : Any
        What the user passed.
    by_column : bool, default=True
        Whether a DataFrame whose columns have names is left as it is.

    Returns
    -------
    X : Any
        Arrays, or what else it was.

    Raises
    ------
    TypeError
        If X holds something else than numbers.
    """
    if isinstance(X, Dataset):
        return X
    if hasattr(X, "iloc") and hasattr(X, "columns"):
        # skorch passes the columns of a DataFrame as keyword arguments: their names
        # have to be names. Without, it is a matrix.
        if by_column and all(isinstance(column, str) for column in X.columns):
            return X
        X = X.to_numpy()
    elif type(X).__module__.partition(".")[0] == "polars":
        X = X.to_numpy()
    if isinstance(X, np.ndarray) and X.dtype.kind == "O":
        try:
            X = X.astype(np.float64)
        except (TypeError, ValueError) as error:
            raise TypeError(
                "Expected numeric inputs for a neural net, got an array of objects "
                f"such as {X.flat[0]!r}. Encode strings, dates and objects as numbers "
                "first."
            ) from error
    for name, values in leaves(X):
        if isinstance(values, str | bytes):
            raise TypeError(
                f"Expected numeric inputs for a neural net, got {name}={values!r}. "
                "Encode strings as numbers first, and pass arrays."
            )
    return map_tree(lambda values: plain_values(values, "X"), X)


def count_samples(X: Any) -> int:
    """Return the number of samples, after the first checks of X.

    Parameters
    ----------
    X : array-like, Tensor, Dataset, or nested dict, list, tuple of arrays
        Samples.

    Returns
    -------
    n_samples : int
        At least one.

    Raises
    ------
    TypeError
        If X is sparse, or has no length.
    ValueError
        If it is empty, or its arrays have different lengths.
    """
    if not isinstance(X, Dataset):
        for name, values in leaves(X):
            _check_dense(name, values)
    try:
        # Torch's base class of data sets does not promise a length.
        sized: Any = X
        n_samples = len(sized) if isinstance(X, Dataset) else n_rows(X)
    except TypeError as err:
        raise TypeError(
            "Expected X as an array, tensor, DataFrame, dict of arrays or a data set "
            f"with a length, got {type(X).__name__!r}."
        ) from err
    if n_samples == 0:
        raise ValueError("Expected at least one sample, got an empty X.")
    return n_samples


def _check_dense(name: str, values: Any) -> None:
    """Raise where an input is sparse."""
    sparse_tensor = isinstance(values, Tensor) and values.layout is not torch.strided
    if sparse.issparse(values) or sparse_tensor:
        raise TypeError(
            f"Expected dense {name} for a neural net, got a sparse matrix of type "
            f"{type(values).__name__!r}. Convert it with toarray() (a tensor with "
            "to_dense()), or reduce it in a Pipeline, for instance with TruncatedSVD."
        )


def _sliced_batch_size(net: Any, X: Any) -> int | None:
    """Return the net's batch size if its loader only stacks slices of X, else None."""
    # Slicing gives the same batches as the loader, which collates sample by sample.
    options = net.get_params_for("iterator_valid")
    own = (
        net.iterator_valid is DataLoader
        and net.dataset is SkorchDataset
        and not net.get_params_for("dataset")
        and set(options) <= _HARMLESS_OPTIONS
        and all(
            getattr(type(net), method) is getattr(NeuralNet, method)
            for method in ("get_dataset", "get_iterator")
        )
    )
    arrays = all(
        isinstance(values, np.ndarray | Tensor) and values.ndim > 0
        for _, values in leaves(X)
    )
    if not (own and arrays):
        return None
    return options.get("batch_size", net.batch_size)


class _WithTargets(Dataset):
    """A data set whose targets are replaced."""

    def __init__(self, dataset: Any, targets: Tensor) -> None:
        self.dataset = dataset
        self.targets = targets

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Any, Tensor]:
        return unpack_data(self.dataset[index])[0], self.targets[index]


def has_targets(dataset: Any) -> bool:
    """Tell whether a data set carries targets."""
    if isinstance(dataset, _WithTargets):
        return True
    if isinstance(dataset, SkorchDataset):
        # Without y, skorch's data set fills in a placeholder.
        return dataset.y is not None
    inner = getattr(dataset, "dataset", None)
    return not isinstance(inner, Dataset) or has_targets(inner)


#: Data sets that read numbers and draw none.
_SILENT = (TensorDataset,)


def innermost(dataset: Any) -> Any:
    """Return the data set behind subsets and replaced targets; skorch's is silent."""
    while isinstance(dataset, _WithTargets | Subset):
        dataset = dataset.dataset
    if type(dataset) is SkorchDataset:
        inner = dataset.X
        return innermost(inner) if isinstance(inner, Dataset) else TensorDataset()
    return dataset


def with_own_generator(iterator: Any) -> Any:
    """Let an iterator draw from a stream of its own, the same in every pass.

    Parameters
    ----------
    iterator : iterable
        What a net's ``get_iterator`` gives; changed where it is a DataLoader.

    Returns
    -------
    iterator : iterable
        The same object.
    """
    for owner in (iterator, getattr(iterator, "sampler", None)):
        # Even in order, a DataLoader draws a seed for its workers.
        if isinstance(owner, DataLoader | RandomSampler) and not owner.generator:
            owner.generator = torch.Generator().manual_seed(0)
    return iterator


class LoadedBatches(BatchSource):
    """The batches of an iterator, such as that of a net.

    Parameters
    ----------
    reader : SkorchReader or ModuleReader
        Makes the iterator, unpacks what it gives, and knows where inputs go.
    dataset : Dataset
        Data set with items (X, y).
    n_samples : int
        Its length.
    sample_weight : Tensor of shape (n_samples,) or None
        Weights, in the order of the data set.
    floating : bool
        Whether integer targets become floating.

    Raises
    ------
    ValueError
        If the iterator leaves samples out, or shuffles weighted ones.
    """

    def __init__(
        self,
        reader: Any,
        dataset: Any,
        n_samples: int,
        sample_weight: Tensor | None,
        floating: bool,
    ) -> None:
        self.n_samples = n_samples
        self._reader = reader
        self._dataset = dataset
        self._sample_weight = sample_weight
        self._floating = floating
        self._has_targets = has_targets(dataset)
        iterator = self._iterator()
        counted = hasattr(iterator, "__len__")
        self._length = len(iterator) if counted else sum(1 for _ in iterator)
        if getattr(iterator, "drop_last", False):
            raise ValueError(
                "Expected an iterator_valid that reads every sample, got "
                "drop_last=True. Set iterator_valid__drop_last=False."
            )
        sampler = getattr(iterator, "sampler", None)
        in_order = sampler is None or isinstance(sampler, SequentialSampler)
        if sample_weight is not None and not in_order:
            raise ValueError(
                "Expected an iterator_valid that keeps the order of the samples when "
                f"sample_weight is given, got the sampler {type(sampler).__name__!r}. "
                "Set iterator_valid__shuffle=False."
            )

    def _iterator(self) -> Any:
        """Return a new iterator, which draws from no global stream."""
        return with_own_generator(self._reader.iterator(self._dataset))

    def __len__(self) -> int:
        """Return the number of batches."""
        return self._length

    def __iter__(self) -> Iterator[Batch]:
        """Iterate over the batches from the first one."""
        if isinstance(innermost(self._dataset), _SILENT):
            yield from self._batches()
            return
        # Random augmentations: the same ones in every pass, and the streams of the
        # process are touched no longer than one batch takes.
        own: RandomStates | None = None
        batches = self._batches()
        while True:
            states = RandomStates()
            if own is not None:
                own.restore()
            try:
                batch = next(batches, None)
            finally:
                own = RandomStates()
                states.restore()
            if batch is None:
                return
            yield batch

    def _batches(self) -> Iterator[Batch]:
        """Batches of one pass."""
        device, dtype = self._reader.device, self._reader.dtype
        start = 0
        for number, data in enumerate(self._iterator()):
            X, y = self._reader.unpack(data)
            n_samples = n_rows(X)
            inputs = to_model_inputs(X, device, dtype)
            check_finite_inputs(inputs, number, start)
            targets, weights = None, None
            if self._has_targets:
                targets = as_targets(y, n_samples, dtype, floating=self._floating)
                targets = targets.to(device)
            if self._sample_weight is not None:
                weights = self._sample_weight[start : start + n_samples].to(device)
            yield Batch(inputs, targets, weights, start, n_samples)
            start += n_samples
        if start != self.n_samples:
            raise ValueError(
                f"Expected {self.n_samples} samples from {self._reader.source}, got "
                f"{start}. Let it read every sample once."
            )
