import io
import os
import pickle
import sys

import numpy as np
import pytest
from sklearn.utils import Bunch

from sklearn_relflat._datasets import cifar10
from sklearn_relflat.datasets import fetch_cifar10, load_cifar10

N = 4  # images in a file


@pytest.fixture
def pixels():
    """Unlike numbers everywhere: a wrong order of the axes is seen."""
    return np.random.default_rng(0).integers(0, 256, (6 * N, 3072), dtype=np.uint8)


@pytest.fixture
def batches(tmp_path, pixels):
    """Folder with an archive's six files, N images each."""
    root = tmp_path / "cifar-10-batches-py"
    root.mkdir()
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    for i, name in enumerate(names):
        batch = {
            b"data": pixels[i * N : (i + 1) * N],
            b"labels": [(i + j) % 10 for j in range(N)],
        }
        (root / name).write_bytes(pickle.dumps(batch, protocol=2))
    return tmp_path


@pytest.fixture
def packed(tmp_path):
    """Folder with a packed file of plain colours, which JPEG keeps almost exactly."""
    image = pytest.importorskip("PIL.Image", reason="Pillow decodes the packed images")
    colours = np.random.default_rng(1).integers(0, 256, (N, 3), dtype=np.uint8)
    encoded = []
    for colour in colours:
        stream = io.BytesIO()
        image.new("RGB", (32, 32), tuple(map(int, colour))).save(stream, "JPEG")
        encoded.append(stream.getvalue())
    offset = np.cumsum([0, *map(len, encoded)])
    np.savez(
        tmp_path / "cifar10_train.npz",
        jpeg=np.frombuffer(b"".join(encoded), np.uint8),
        offset=offset,
        label=np.arange(N, dtype=np.uint8),
        classes=cifar10.CLASSES,
    )
    return tmp_path, colours


@pytest.mark.parametrize(
    ("subset", "rows"),
    [
        ("train", slice(0, 5 * N)),
        ("test", slice(5 * N, 6 * N)),
        ("all", slice(0, 6 * N)),
    ],
)
def test_archive(batches, pixels, subset, rows):
    for folder in (batches, batches / "cifar-10-batches-py"):
        data = load_cifar10(folder, subset=subset)
        expected = (pixels[rows] / 255).reshape(-1, 3, 32, 32)
        np.testing.assert_allclose(data.data, expected, atol=1e-6)
        labels = [(i + j) % 10 for i in range(6) for j in range(N)]
        assert data.target.tolist() == labels[rows]
    assert (data.data.dtype, data.target.dtype) == (np.float32, np.int64)
    assert data.target_names[3] == "cat"
    assert repr(subset) in data.DESCR


@pytest.mark.parametrize("n", [1, N, N + 1, 5 * N + 1])
def test_first_images_of_the_archive(batches, n):
    whole = load_cifar10(batches, subset="all", as_images=False)
    X, y = load_cifar10(
        batches, subset="all", n_samples=n, as_images=False, return_X_y=True
    )
    np.testing.assert_array_equal(X, whole.data[:n])
    np.testing.assert_array_equal(y, whole.target[:n])


def test_packed_file(packed):
    folder, colours = packed
    X, y = load_cifar10(folder, return_X_y=True)
    assert X.shape == (N, 3, 32, 32)
    np.testing.assert_allclose(X.mean((2, 3)), colours / 255, atol=0.02)
    assert y.tolist() == list(range(N))
    first, _ = load_cifar10(folder, n_samples=2, return_X_y=True)
    np.testing.assert_array_equal(first, X[:2])


def test_packed_file_without_pillow(packed, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r"Pillow is not installed\. Run `pip"):
        load_cifar10(packed[0])


class Command:
    """What a hostile file would hold."""

    def __reduce__(self):
        return os.system, ("echo",)


def test_an_archive_runs_no_code(batches):
    file = batches / "cifar-10-batches-py" / "test_batch"
    file.write_bytes(pickle.dumps(Command(), protocol=2))
    with pytest.raises(pickle.UnpicklingError, match=r"Expected arrays.*system"):
        load_cifar10(batches, subset="test")


def test_openml(monkeypatch, pixels):
    asked = {}

    def answer(name, **options):
        asked.update(options, name=name)
        labels = np.array([str(i % 10) for i in range(len(pixels))])
        return Bunch(data=pixels.astype(float), target=labels)

    monkeypatch.setattr(cifar10, "fetch_openml", answer)
    data = fetch_cifar10(n_samples=12, data_home="here", as_images=False)
    assert (asked["name"], asked["data_home"]) == ("CIFAR_10", "here")
    np.testing.assert_allclose(data.data, pixels[:12] / 255, atol=1e-6)
    assert data.target.tolist() == [i % 10 for i in range(12)]


def test_empty_folder(tmp_path):
    message = r"Expected cifar10_train.npz or .*data_batch_1.*found neither\. Give"
    with pytest.raises(FileNotFoundError, match=message):
        load_cifar10(tmp_path)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"subset": "dev"}, "subset must be one of .* got 'dev'"),
        ({"n_samples": 0}, "n_samples must be a positive integer or None, got 0"),
        ({"n_samples": 100}, "n_samples=100, but there are only 20 images"),
    ],
)
def test_errors_name_the_parameter(batches, parameters, message):
    with pytest.raises(ValueError, match=message):
        load_cifar10(batches, **parameters)
