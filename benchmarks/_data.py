"""Images for the benchmarks: CIFAR-10 from a local copy, or digits scaled up."""

import argparse
from pathlib import Path

import numpy as np

from sklearn_relflat.datasets import load_cifar10


def add_data_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--data``, the folder of a local copy of CIFAR-10."""
    parser.add_argument(
        "--data",
        type=Path,
        help="folder that load_cifar10 reads; without it "
        "the digits of scikit-learn, scaled up to 32 x 32 pixels and three channels",
    )


def load_images(folder: Path | None, n: int) -> tuple[str, np.ndarray, np.ndarray]:
    """Return a name, images (n, 3, 32, 32) in float32, and labels in int64."""
    if folder is None:
        from sklearn.datasets import load_digits

        X, y = load_digits(return_X_y=True)
        index = np.arange(n) % len(X)
        X = np.kron(X[index].reshape(-1, 1, 8, 8) / 8 - 1, np.ones((1, 3, 4, 4)))
        return "digits", X.astype(np.float32), y[index].astype(np.int64)
    X, y = load_cifar10(folder, n_samples=n, return_X_y=True)
    return "CIFAR-10", 2 * X - 1, y
