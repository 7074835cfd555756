"""CIFAR-10, from a local copy or from OpenML."""

from __future__ import annotations

import codecs
import io
import pickle
from collections.abc import Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import fetch_openml
from sklearn.utils import Bunch

SUBSETS = {"train": ("train",), "test": ("test",), "all": ("train", "test")}
BATCHES = {
    "train": [f"data_batch_{i}" for i in range(1, 6)],
    "test": ["test_batch"],
}
CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
DESCRIPTION = """CIFAR-10: colour images of 32 x 32 pixels in ten classes, 50,000 to \
train and 10,000 to test (A. Krizhevsky. Learning multiple layers of features from \
tiny images. 2009). Pixels are scaled to [0, 1]. Source: """


def load_cifar10(
    folder: Any,
    *,
    subset: str = "train",
    n_samples: int | None = None,
    as_images: bool = True,
    return_X_y: bool = False,
) -> Any:
    """Read CIFAR-10 from a folder.

    Parameters
    ----------
    folder : str or path-like
        Folder with ``cifar10_train.npz`` and ``cifar10_test.npz`` (JPEG bytes, see
        Notes), or with the files ``data_batch_1`` ... ``test_batch`` of the original
        archive for Python, or with its folder ``cifar-10-batches-py``.
    subset : {"train", "test", "all"}, default="train"
        Which images; ``"all"`` has the training images first.
    n_samples : int or None, default=None
        Read the first images only. Only these are decoded.
    as_images : bool, default=True
        Whether the data have the shape (n_samples, 3, 32, 32), or (n_samples, 3072).
    return_X_y : bool, default=False
        Whether to return ``(data, target)`` in place of the Bunch.

    Returns
    -------
    Bunch or tuple of (ndarray, ndarray)
        ``data`` (float32 in [0, 1]), ``target`` (int64 of shape (n_samples,)),
        ``target_names`` (ten strings) and ``DESCR``.

    Raises
    ------
    FileNotFoundError
        If the folder has the files of neither form.
    ImportError
        If the images are JPEG bytes and Pillow is not installed.
    ValueError
        If a parameter is out of its range.
    pickle.UnpicklingError
        If a file of the archive holds anything but arrays, text and numbers.

    See Also
    --------
    fetch_cifar10 : The same images from OpenML.

    Notes
    -----
    A packed file holds the arrays ``jpeg`` (uint8, all bytes in a row), ``offset``
    (image i is ``jpeg[offset[i]:offset[i + 1]]``), ``label`` and ``classes``. The first
    images are as balanced as the file's order: nothing is shuffled.

    Examples
    --------
    >>> from sklearn_relflat.datasets import load_cifar10
    >>> X, y = load_cifar10(
    ...     "cifar-10-batches-py", n_samples=1000, return_X_y=True
    ... )  # doctest: +SKIP
    """
    _check_n_samples(n_samples)
    if subset not in SUBSETS:
        raise ValueError(f"subset must be one of {list(SUBSETS)}, got {subset!r}.")
    folder = Path(folder)
    pixels, labels = [], []
    names: Sequence[str] = CLASSES
    left = n_samples
    for part in SUBSETS[subset]:
        packed = folder / f"cifar10_{part}.npz"
        if packed.is_file():
            images, target, found = _read_packed(packed, left)
            names = [str(name) for name in found]
        else:
            images, target = _read_batches(folder, part, left)
        pixels.append(images)
        labels.append(target)
        left = None if left is None else left - len(target)
    return _bunch(
        np.concatenate(pixels),
        np.concatenate(labels),
        names=names,
        n_samples=n_samples,
        source=f"local files, subset {subset!r}.",
        as_images=as_images,
        return_X_y=return_X_y,
    )


def fetch_cifar10(
    *,
    n_samples: int | None = None,
    data_home: Any = None,
    as_images: bool = True,
    return_X_y: bool = False,
) -> Any:
    """Fetch the 60,000 images of CIFAR-10 from OpenML (downloaded once).

    OpenML does not mark which images are for training and which for testing: split them
    yourself, or use :func:`load_cifar10` with the original archive. Rows are taken to
    be the archive's, channel by channel.

    Parameters
    ----------
    n_samples : int or None, default=None
        Return the first images only. All are downloaded.
    data_home : str or path-like or None, default=None
        Where scikit-learn keeps its downloads.
    as_images : bool, default=True
        Whether the data have the shape (n_samples, 3, 32, 32), or (n_samples, 3072).
    return_X_y : bool, default=False
        Whether to return ``(data, target)`` in place of the Bunch.

    Returns
    -------
    Bunch or tuple of (ndarray, ndarray)
        As from :func:`load_cifar10`.

    Raises
    ------
    ValueError
        If `n_samples` is not a positive integer, or larger than what there is.

    See Also
    --------
    load_cifar10 : The same images from a folder.

    Examples
    --------
    >>> from sklearn_relflat.datasets import fetch_cifar10
    >>> X, y = fetch_cifar10(return_X_y=True)  # doctest: +SKIP
    """
    _check_n_samples(n_samples)
    found = fetch_openml(
        "CIFAR_10", version=1, as_frame=False, parser="liac-arff", data_home=data_home
    )
    return _bunch(
        found.data[:n_samples],
        found.target[:n_samples],
        names=CLASSES,
        n_samples=n_samples,
        source="OpenML, data set CIFAR_10.",
        as_images=as_images,
        return_X_y=return_X_y,
    )


def _check_n_samples(n_samples: Any) -> None:
    """Raise unless the number of samples is None or a positive integer."""
    if n_samples is not None and (not isinstance(n_samples, Integral) or n_samples < 1):
        raise ValueError(
            f"n_samples must be a positive integer or None, got {n_samples!r}."
        )


def _bunch(
    pixels: np.ndarray,
    labels: np.ndarray,
    *,
    names: Sequence[str],
    n_samples: int | None,
    source: str,
    as_images: bool,
    return_X_y: bool,
) -> Any:
    """Scale the pixels of rows (channel, row, column), and pack the result."""
    if n_samples is not None and len(labels) < n_samples:
        raise ValueError(
            f"n_samples={n_samples!r}, but there are only {len(labels)} images. "
            "Ask for fewer, or for subset='all'."
        )
    data = np.divide(pixels, 255, dtype=np.float32)
    data = data.reshape(-1, 3, 32, 32) if as_images else data.reshape(-1, 3072)
    target = labels.astype(np.int64)
    if return_X_y:
        return data, target
    return Bunch(
        data=data,
        target=target,
        target_names=list(names),
        DESCR=DESCRIPTION + source,
    )


def _read_packed(
    file: Path, n: int | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels (n, 3072), labels and class names of a packed file."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(
            f"{file.name} holds JPEG images, which Pillow decodes, and Pillow is not "
            "installed. Run `pip install sklearn-relflat[images]`, or use "
            "cifar-10-batches-py."
        ) from error
    with np.load(file) as data:
        jpeg, offset = data["jpeg"], data["offset"]
        label, names = data["label"][:n], data["classes"]
    pixels = np.empty((len(label), 3, 32, 32), dtype=np.uint8)
    for i in range(len(label)):
        encoded = io.BytesIO(jpeg[offset[i] : offset[i + 1]].tobytes())
        with Image.open(encoded) as image:
            pixels[i] = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    return pixels.reshape(-1, 3072), label, names


def _read_batches(
    folder: Path, part: str, n: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (n, 3072) and labels of the archive's files, no more than needed."""
    inner = folder / "cifar-10-batches-py"
    root = inner if inner.is_dir() else folder
    pixels = [np.empty((0, 3072), np.uint8)]
    labels = [np.empty(0, np.int64)]
    for name in BATCHES[part]:
        if n is not None and sum(map(len, labels)) >= n:
            break
        file = root / name
        if not file.is_file():
            raise FileNotFoundError(
                f"Expected cifar10_{part}.npz or cifar-10-batches-py/{name} in "
                f"{str(folder)!r}, found neither. Give the folder of a local copy, or "
                "use fetch_cifar10."
            )
        with file.open("rb") as stream:
            batch = _ArraysOnly(stream, encoding="bytes").load()
        pixels.append(batch[b"data"])
        labels.append(np.asarray(batch[b"labels"]))
    return np.concatenate(pixels)[:n], np.concatenate(labels)[:n]


class _ArraysOnly(pickle.Unpickler):
    """Unpickler that runs no code but NumPy's own for arrays."""

    # Taken from an array, because the module that holds it has moved between versions.
    reconstruct = np.empty(0).__reduce__()[0]
    allowed = {  # noqa: RUF012 - never changed
        ("numpy.core.multiarray", "_reconstruct"): reconstruct,
        ("numpy._core.multiarray", "_reconstruct"): reconstruct,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): codecs.encode,
    }

    def find_class(self, module: str, name: str) -> Any:
        """Look the name up among the few that arrays need."""
        if (module, name) not in self.allowed:
            raise pickle.UnpicklingError(
                f"Expected arrays, text and numbers, found {module + '.' + name!r}. "
                "This is no file of CIFAR-10: do not open it with pickle."
            )
        return self.allowed[module, name]
