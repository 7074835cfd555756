"""Data of bare torch modules: arrays, data sets and data loaders, in a fixed order."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
)

from sklearn_relflat._data.batches import BatchSource, SlicedBatches
from sklearn_relflat._data.inputs import as_sample_weight, as_targets, map_tree
from sklearn_relflat._data.skorch_data import (
    LoadedBatches,
    count_samples,
    plain_inputs,
)
from sklearn_relflat._losses.base import Loss

_BATCH_SIZE = 256
# Keys under which batches that are dicts carry their targets.
_TARGETS = ("labels", "label", "targets", "target", "y")
# Options of a loader that change how batches are loaded but not what they hold.
_KEPT_OPTIONS = (
    "collate_fn",
    "multiprocessing_context",
    "num_workers",
    "prefetch_factor",
    "timeout",
    "worker_init_fn",
)
_REMEDY = "Pass a DataLoader of the samples to measure on, with shuffle=False"


@dataclass(frozen=True)
class ModuleReader:
    """Read data for a module as a loop over a data loader does.

    Attributes
    ----------
    device : torch.device
        Where inputs go.
    dtype : torch.dtype
        What floating inputs become.
    share : bool
        Whether the module leaves its inputs alone, so that they need no copy.
    loader : DataLoader or None
        Says how a data set becomes batches; None: each sample is stacked.
    source : str
        What reads a data set, for messages.
    """

    device: torch.device
    dtype: torch.dtype
    share: bool
    loader: Any = None
    source: ClassVar[str] = "the data loader"

    def __call__(
        self, X: Any, y: Any, sample_weight: Any, loss: Loss | None
    ) -> BatchSource:
        """Validate X, y and the weights, and return the batches."""
        if isinstance(X, Dataset | DataLoader):
            return self._loaded(X, y, sample_weight)
        X = plain_inputs(X, by_column=False)
        n_samples = count_samples(X)
        weights = self._weights(sample_weight, n_samples)
        return SlicedBatches(
            read=lambda rows: map_tree(lambda values: values[rows], X),
            n_samples=n_samples,
            batch_size=_BATCH_SIZE,
            # What integers are to a loss, the loss knows.
            y=None if y is None else as_targets(y, n_samples, self.dtype),
            sample_weight=weights,
            device=self.device,
            dtype=self.dtype,
            share=self.share,
        )

    def _weights(self, sample_weight: Any, n_samples: int) -> Any:
        """Return valid weights of the samples, or None."""
        if sample_weight is None:
            return None
        return as_sample_weight(sample_weight, n_samples, self.device)

    def _loaded(
        self, X: Dataset | DataLoader, y: Any, sample_weight: Any
    ) -> LoadedBatches:
        """Batches of a data set or of a loader's data set."""
        if y is not None:
            raise ValueError(
                f"Expected y=None where X is a {type(X).__name__}, which yields inputs "
                f"and targets, got y of type {type(y).__name__!r}. Leave y out, or "
                "pass X and y as arrays."
            )
        dataset: Any = X
        loader = None
        if isinstance(X, DataLoader):
            _check_order(X)
            dataset, loader = X.dataset, X
        if isinstance(dataset, IterableDataset):
            raise TypeError(
                "Expected a data set that can be read at any position, got the "
                f"iterable {type(dataset).__name__!r}, whose order nobody knows. Read "
                "the samples to measure on into a list and pass that as the data set "
                "of a DataLoader."
            )
        # A loader's data set may be anything with items, a list of dicts say.
        n_samples = (
            count_samples(dataset) if isinstance(dataset, Dataset) else len(dataset)
        )
        if n_samples == 0:
            raise ValueError(
                f"Expected at least one sample, got an empty {type(dataset).__name__}. "
                "Pass the samples to measure on."
            )
        reader = ModuleReader(self.device, self.dtype, self.share, loader)
        weights = self._weights(sample_weight, n_samples)
        return LoadedBatches(reader, dataset, n_samples, weights, floating=False)

    def iterator(self, dataset: Any) -> DataLoader:
        """Return a new loader of all samples of a data set, in its order."""
        if self.loader is None:
            return DataLoader(dataset, batch_size=_BATCH_SIZE)
        options = {name: getattr(self.loader, name) for name in _KEPT_OPTIONS}
        size = self.loader.batch_sampler.batch_size
        return DataLoader(dataset, batch_size=size, **options)

    def unpack(self, data: Any) -> tuple[Any, Any]:
        """Return inputs and targets of what the loader gives."""
        if isinstance(data, Mapping):
            found = [key for key in _TARGETS if key in data]
            if len(found) != 1:
                raise ValueError(
                    "Expected batches with the targets under one of the keys "
                    f"{_TARGETS}, got the keys {list(data)!r}. Rename them in "
                    "collate_fn, or yield (inputs, targets)."
                )
            rest = {key: value for key, value in data.items() if key != found[0]}
            return rest, data[found[0]]
        if isinstance(data, list | tuple) and len(data) == 2:
            return data[0], data[1]
        what = type(data).__name__
        if isinstance(data, list | tuple):
            what = f"{what} of {len(data)} entries"
        raise ValueError(
            "Expected a data set or data loader that yields (inputs, targets), or "
            f"dicts with the targets under one of the keys {_TARGETS}, got a {what}. "
            "Put several inputs into a dict or a tuple of their own, in the data set's "
            "__getitem__ or in collate_fn."
        )


def _check_order(loader: DataLoader) -> None:
    """Raise where a loader does not stand for all samples of its data set."""
    # A measurement passes over the data several times, in one order: that of the data
    # set, whatever the order of a training. So what a loader says of order is ignored
    # where it reads every sample once, and refused by name where it does not.
    name = type(loader).__name__
    if type(loader).__iter__ is not DataLoader.__iter__:
        raise TypeError(
            f"Expected a torch.utils.data.DataLoader, got {name!r}, which iterates in "
            f"its own way. {_REMEDY}."
        )
    if isinstance(loader.dataset, IterableDataset):
        return  # Refused for itself.
    batches = loader.batch_sampler
    if type(batches) is not BatchSampler:
        what = "batch_size=None" if batches is None else type(batches).__name__
        raise ValueError(
            f"Expected a {name} with a batch_size, got one with {what}. {_REMEDY} and "
            "a batch_size."
        )
    sampler: Any = batches.sampler
    kind = type(sampler)
    in_order = kind is SequentialSampler
    shuffled = kind is RandomSampler and not sampler.replacement
    dataset: Any = loader.dataset
    if not (in_order or shuffled) or len(sampler) != len(dataset):
        raise ValueError(
            f"Expected a {name} that reads every sample of its data set once, got the "
            f"sampler {kind.__name__!r} with {_length(sampler)} draws of "
            f"{len(dataset)} samples, which may differ from pass to pass. {_REMEDY}, "
            "such as DataLoader(torch.utils.data.Subset(dataset, indices), "
            "batch_size=256); weights of samples are sample_weight=."
        )


def _length(sampler: Any) -> Any:
    """Return how many samples a sampler draws, if it says so."""
    return len(sampler) if hasattr(sampler, "__len__") else "an unknown number of"
