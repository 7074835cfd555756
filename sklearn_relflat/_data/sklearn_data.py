"""Data of scikit-learn models: validated as the estimator does, read in batches."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import sparse
from sklearn.linear_model import LogisticRegression
from sklearn.utils import check_array, column_or_1d
from sklearn.utils.class_weight import compute_class_weight, compute_sample_weight
from sklearn.utils.validation import validate_data
from torch import Tensor

from sklearn_relflat._data.batches import BatchSource, SlicedBatches
from sklearn_relflat._data.inputs import as_numpy, as_sample_weight, plain_array
from sklearn_relflat._losses.base import UnseenLabelsError
from sklearn_relflat._losses.table import Loss

# One batch holds about this many numbers of the widest layer: large enough for fast
# matrix products, small enough that memory does not depend on the data set.
_NUMBERS_PER_BATCH = 2**19

_CPU = torch.device("cpu")


# ---------------------------------------------------------------------------
# Targets
# ---------------------------------------------------------------------------
def encode_labels(y: Any, classes: np.ndarray, name: str) -> np.ndarray:
    """Replace labels by their positions in ``classes_``.

    Parameters
    ----------
    y : array-like of shape (n_samples,)
        Labels.
    classes : ndarray of shape (n_classes,)
        Labels that the estimator has seen in fit.
    name : str
        Name of the estimator, for the message.

    Returns
    -------
    indices : ndarray of shape (n_samples,), int64
        Class indices.

    Raises
    ------
    UnseenLabelsError
        Listing the labels that the estimator has not seen.

    Examples
    --------
    >>> import numpy as np
    >>> encode_labels(["b", "a", "b"], np.array(["a", "b"]), "LogisticRegression")
    array([1, 0, 1])
    """
    labels, inverse = np.unique(column_or_1d(as_numpy(y, "y")), return_inverse=True)
    positions = {label: index for index, label in enumerate(classes.tolist())}
    unseen = [label for label in labels.tolist() if label not in positions]
    if unseen:
        raise UnseenLabelsError(
            f"Expected y with the classes that {name} was fitted on, "
            f"{classes.tolist()!r}, got unseen labels {unseen!r}. Measure on labels "
            "of the training sample, or fit on all classes."
        )
    table = np.array([positions[label] for label in labels.tolist()], dtype=np.int64)
    return table[inverse]


@dataclass(frozen=True)
class RegressionTargets:
    """Targets of a regressor, or an indicator matrix: as they are."""

    n_outputs: int

    def __call__(self, y: Any, loss: Loss | None, dtype: np.dtype) -> np.ndarray:
        """Return targets of shape (n_samples, n_outputs)."""
        if sparse.issparse(y):
            y = y.toarray()
        y = check_array(y, ensure_2d=False, dtype=dtype, input_name="y")
        y = y.reshape(-1, 1) if y.ndim == 1 else y
        if y.shape[1] != self.n_outputs:
            raise ValueError(
                f"Expected y with {self.n_outputs} outputs per sample, as in fit, got "
                f"shape {y.shape}."
            )
        return y


@dataclass(frozen=True)
class IndicatorTargets(RegressionTargets):
    """Targets of a multilabel classifier, 0 and 1, scaled and shifted."""

    low: float = 0.0

    def __call__(self, y: Any, loss: Loss | None, dtype: np.dtype) -> np.ndarray:
        """Return targets of shape (n_samples, n_outputs)."""
        y = super().__call__(y, loss, dtype)
        if not np.isin(y, (0, 1)).all():
            raise ValueError(
                "Expected y as a multilabel indicator matrix of zeros and ones, got "
                f"values {np.unique(y)[:5].tolist()!r}."
            )
        return y * (1 - self.low) + self.low


@dataclass(frozen=True)
class LabelTargets:
    """Targets of a classifier of one label per sample.

    ``training`` is the name of the training loss and ``low`` the target that stands
    for "not this class" in it: 0, or -1 for a ridge classifier. Any other loss gets
    class indices, or 0 and 1 for a single output.
    """

    classes: np.ndarray
    name: str
    n_outputs: int
    training: str
    low: float = 0.0

    def __call__(self, y: Any, loss: Loss | None, dtype: np.dtype) -> np.ndarray:
        """Return class indices (n_samples,) or targets (n_samples, n_outputs)."""
        indices = encode_labels(y, self.classes, self.name)
        as_trained = loss is None or loss.name == self.training
        low = self.low if as_trained else 0.0
        if self.n_outputs == 1:
            return np.where(indices == 1, 1.0, low).astype(dtype)[:, np.newaxis]
        if not as_trained or self.training == "cross_entropy":
            return indices
        one_hot = np.full((len(indices), self.n_outputs), low, dtype=dtype)
        one_hot[np.arange(len(indices)), indices] = 1.0
        return one_hot


Encoder = Callable[[Any, Loss | None, np.dtype], np.ndarray]


# ---------------------------------------------------------------------------
# Data
# ---------------------------------------------------------------------------
def dense_rows(X: Any, rows: slice) -> np.ndarray:
    """Return some rows as a dense array."""
    part = X[rows]
    return part.toarray() if sparse.issparse(part) else part


@dataclass(frozen=True)
class SklearnReader:
    """Read data as the estimator's own ``predict`` does, batch by batch."""

    estimator: Any
    encode: Encoder
    dtype: torch.dtype
    width: int
    features: Callable[[Any, slice], np.ndarray] = dense_rows

    def __call__(
        self, X: Any, y: Any, sample_weight: Any, loss: Loss | None
    ) -> BatchSource:
        """Validate X, y and the weights, and return the batches."""
        X = validate_data(
            self.estimator,
            as_numpy(X),
            accept_sparse="csr",
            reset=False,
        )
        n_samples = X.shape[0]
        weights, targets = None, None
        if sample_weight is not None:
            weights = as_sample_weight(sample_weight, n_samples, _CPU)
        if y is not None:
            encoded = self.encode(as_numpy(y, "y"), loss, _numpy_dtype(self.dtype))
            if len(encoded) != n_samples:
                raise ValueError(
                    f"Expected y with one entry per sample, got {len(encoded)} for "
                    f"{n_samples} samples in X. Pass X and y of the same length."
                )
            targets = torch.from_numpy(plain_array(encoded))
            class_weight = getattr(self.estimator, "class_weight", None)
            if class_weight is not None and loss is None:
                factor = _class_factors(self.estimator, as_numpy(y, "y"), weights)
                own = torch.from_numpy(np.asarray(factor, dtype=np.float64))
                weights = own if weights is None else weights * own
        dtype = _numpy_dtype(self.dtype)
        return SlicedBatches(
            # Integers are numbers here, never indices into a table of embeddings.
            read=lambda rows: self.features(X, rows).astype(dtype, copy=False),
            n_samples=n_samples,
            batch_size=max(64, min(4096, _NUMBERS_PER_BATCH // self.width)),
            y=targets,
            sample_weight=weights,
            device=_CPU,
            dtype=self.dtype,
            share=True,
            is_checked=True,
        )


def _class_factors(estimator: Any, y: np.ndarray, weights: Tensor | None) -> Any:
    """Factors of the samples by their classes, as the estimator's own fit has them."""
    known = inspect.signature(compute_class_weight).parameters
    if weights is None or not (
        # Of scikit-learn's estimators, these count weighted samples; the others count
        # samples. In its older versions none of them counts weights.
        isinstance(estimator, LogisticRegression) and "sample_weight" in known
    ):
        return compute_sample_weight(estimator.class_weight, y)
    of_class = compute_class_weight(
        estimator.class_weight,
        classes=estimator.classes_,
        y=y,
        sample_weight=weights.numpy(),
    )
    return of_class[encode_labels(y, estimator.classes_, type(estimator).__name__)]


def _numpy_dtype(dtype: torch.dtype) -> np.dtype:
    """Return numpy's name of a torch floating type."""
    return np.dtype(np.float32 if dtype is torch.float32 else np.float64)
