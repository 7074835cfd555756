"""Images for the experiments with networks: CIFAR-10, or the digits of scikit-learn."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from sklearn_relflat.datasets import load_cifar10

DIGITS = "digits"
CIFAR10 = "cifar10"
# Mean and scale of each channel. Constants, so that the same pixels enter the networks
# whatever the order in which a machine sums: of the first 10,000 training images of
# CIFAR-10, as summed in float32 (off by 0.001 and 0.002).
_CHANNELS = {
    CIFAR10: (
        (0.493839443, 0.483154058, 0.44718647),
        (0.244076163, 0.24208571, 0.259547472),
    ),
    DIGITS: ((4.9,), (6.0,)),
}


@dataclass(frozen=True, eq=False)
class Images:
    """A training and a test sample, standardised by channel with constants.

    Attributes
    ----------
    train, test : Tensor of shape (n_samples, n_channels, size, size)
        The images.
    train_labels, test_labels : Tensor of shape (n_samples,)
        Their classes, 0 to 9.
    """

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


@lru_cache(maxsize=1)
def load_images(name: str, n_train: int, n_test: int, folder: Path | None) -> Images:
    """Read the first images of both subsets.

    Parameters
    ----------
    name : {"cifar10", "digits"}
        Which images.
    n_train, n_test : int
        How many.
    folder : Path or None
        Where CIFAR-10 is.

    Returns
    -------
    images : Images
        Both samples. The last ones that were read are kept.

    Raises
    ------
    ValueError
        If CIFAR-10 is asked for without a folder.
    """
    if name == DIGITS:
        X, y = load_digits(return_X_y=True)
        # Shuffled, because the file is ordered by who wrote.
        order = np.random.RandomState(0).permutation(len(X))[: n_train + n_test]
        X, y = X[order].reshape(-1, 1, 8, 8), y[order]
        parts = [(X[:n_train], y[:n_train]), (X[n_train:], y[n_train:])]
    elif folder is None:
        raise ValueError(
            "Expected the folder of CIFAR-10, got None. Pass --data DIR, or use "
            "--preset quick, which needs no data."
        )
    else:
        parts = [
            load_cifar10(folder, subset=subset, n_samples=n, return_X_y=True)
            for subset, n in (("train", n_train), ("test", n_test))
        ]
    mean, scale = (
        np.array(values, np.float32).reshape(1, -1, 1, 1) for values in _CHANNELS[name]
    )
    tensors = []
    for pixels, labels in parts:
        standardised = (pixels.astype(np.float32) - mean) / scale
        tensors += [
            torch.from_numpy(np.ascontiguousarray(standardised)),
            torch.from_numpy(labels.astype(np.int64)),
        ]
    return Images(*tensors)
