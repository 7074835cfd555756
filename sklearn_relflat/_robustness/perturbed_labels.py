"""Labels of perturbed features, as the user's function gives them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sklearn_relflat._data.batches import BatchSource


class PerturbedLabels:
    """The user's y(phi), encoded as the model's loss takes it.

    Parameters
    ----------
    function : callable
        ``function(features)`` returns the labels of features (n, m), or (n, m, P) for
        P > 1 positions, an array of the model's floating type.
    y : array-like or None
        The user's labels. Where they are classes, one per sample, the function returns
        such classes; otherwise what the loss takes.
    source : BatchSource
        The data, whose batches hold the encoded labels.

    Raises
    ------
    TypeError
        If the function cannot be called.
    """

    def __init__(
        self, function: Callable[[np.ndarray], Any], y: Any, source: BatchSource
    ) -> None:
        if not callable(function):
            raise TypeError(
                "Expected labels to be None (constant labels) or a function of the "
                f"features, got {function!r}. Pass, for example, the predict method of "
                "a model that was fitted on features."
            )
        self._function = function
        self._classes: np.ndarray | None = None
        self._codes: Tensor | None = None
        labels = None if y is None else _column(y)
        if labels is not None:
            self._learn(labels, source)

    def _learn(self, labels: np.ndarray, source: BatchSource) -> None:
        """Learn from the data how classes are encoded, if not as they are."""
        is_real = labels.dtype.kind == "f"
        classes, where = np.unique(labels, return_index=True)
        codes: Tensor | None = None
        for batch in source:
            if batch.y is None or (is_real and batch.y.is_floating_point()):
                return
            if codes is None:
                codes = batch.y.new_zeros(len(classes), *batch.y.shape[1:]).cpu()
            here = (where >= batch.start) & (where < batch.start + batch.n_samples)
            codes[torch.from_numpy(here)] = batch.y.cpu()[where[here] - batch.start]
        if codes is not None and not _is_same(classes, codes.numpy()):
            self._classes, self._codes = classes, codes

    def __call__(self, features: Tensor, like: Tensor) -> Tensor:
        """Return the encoded labels of features.

        Parameters
        ----------
        features : Tensor of shape (n, m, P)
            Perturbed features.
        like : Tensor of shape (n, ...)
            The encoded labels of the data.

        Returns
        -------
        y : Tensor of shape (n, ...)
            Like `like`.

        Raises
        ------
        ValueError
            If the function returns labels of another shape or kind.
        """
        given = features[:, :, 0] if features.shape[2] == 1 else features
        labels = self._function(given.cpu().numpy())
        if isinstance(labels, Tensor):
            labels = labels.detach().cpu().numpy()
        labels = np.asarray(labels)
        if self._classes is not None and self._codes is not None:
            encoded = self._codes[self._positions(labels, len(like))]
            return encoded.to(like.device)
        shapes = {tuple(like.shape), tuple(like.squeeze(-1).shape)}
        if labels.shape not in shapes or labels.dtype.kind not in "fiub":
            raise ValueError(
                f"Expected labels(features) to return numbers of shape "
                f"{tuple(like.shape)}, got shape {labels.shape} and dtype "
                f"{labels.dtype}. Return one label per row of the features."
            )
        tensor = torch.as_tensor(labels.copy(), device=like.device)
        if not like.is_floating_point() and tensor.is_floating_point():
            raise ValueError(
                f"Expected labels(features) to return class indices, got dtype "
                f"{labels.dtype}. Cast them to integers."
            )
        return tensor.to(like.dtype).reshape(like.shape)

    def _positions(self, labels: np.ndarray, n: int) -> Tensor:
        """Positions of labels among the classes."""
        assert self._classes is not None
        if labels.shape == (n, 1):
            labels = labels[:, 0]
        if labels.shape != (n,):
            raise ValueError(
                f"Expected labels(features) to return one label for each of {n} rows, "
                f"got shape {labels.shape}."
            )
        positions = np.searchsorted(self._classes, labels)
        positions = positions.clip(max=len(self._classes) - 1)
        unseen = labels[self._classes[positions] != labels]
        if len(unseen):
            raise ValueError(
                f"Expected labels(features) to return classes of y, "
                f"{self._classes.tolist()!r}, got {np.unique(unseen)[:5].tolist()!r}. "
                "Return labels of the same kind as y."
            )
        return torch.from_numpy(positions)


def _column(y: Any) -> np.ndarray | None:
    """One label per sample as an array, or None."""
    if isinstance(y, Tensor):
        y = y.detach().cpu().numpy()
    values = np.asarray(y)
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    return values if values.ndim == 1 else None


def _is_same(classes: np.ndarray, codes: np.ndarray) -> bool:
    """Whether classes are numbers that are encoded as themselves."""
    return (
        classes.dtype.kind in "fiub"
        and codes.size == len(classes)
        and bool(np.array_equal(classes, codes.reshape(-1)))
    )
