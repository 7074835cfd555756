"""Images for the benchmarks: CIFAR-10 from a local copy, or digits scaled up."""

import argparse
import io
from pathlib import Path

import numpy as np


def add_data_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--data``, the folder of a local copy of CIFAR-10."""
    parser.add_argument(
        "--data",
        type=Path,
        help="folder with cifar10_train.npz (arrays jpeg, offset, label); without it "
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
    from PIL import Image

    with np.load(folder / "cifar10_train.npz") as data:
        jpeg, offset, label = data["jpeg"], data["offset"], data["label"]
    images = [
        np.asarray(
            Image.open(io.BytesIO(jpeg[offset[i] : offset[i + 1]].tobytes())).convert(
                "RGB"
            )
        )
        for i in range(n)
    ]
    # astype alone would keep the order of the memory, channels last.
    X = np.stack(images).transpose(0, 3, 1, 2).astype(np.float32, order="C") / 127.5 - 1
    return "CIFAR-10", X, label[:n].astype(np.int64)
