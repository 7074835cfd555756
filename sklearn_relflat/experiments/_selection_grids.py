"""Data sets and grids of candidates for the experiment `selection`."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from sklearn.base import clone
from sklearn.datasets import (
    load_breast_cancer,
    load_digits,
    load_wine,
    make_classification,
    make_gaussian_quantiles,
    make_hastie_10_2,
    make_moons,
)
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import ParameterGrid
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler
from skorch import NeuralNetClassifier
from torch import nn

from sklearn_relflat.callbacks import ModuleSizes, Seeded

Arrays = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Sample:
    """One outer split of a data set.

    Attributes
    ----------
    X, y : ndarray of shape (n_train, n_features) and (n_train,)
        The training sample.
    X_test, y_test : ndarray of shape (n_test, n_features) and (n_test,)
        What is held out.
    """

    X: np.ndarray
    y: np.ndarray
    X_test: np.ndarray
    y_test: np.ndarray


# ---------------------------------------------------------------------------
# Data sets: samples for a number of them and a random state
# ---------------------------------------------------------------------------
def _bundled(
    load: Callable[..., Any],
    n_samples: int,
    rng: np.random.RandomState,
    *,
    classes: tuple[int, ...] = (),
) -> Arrays:
    """All samples of a bundled data set, shuffled."""
    X, y = load(return_X_y=True)
    rows = np.flatnonzero(np.isin(y, classes)) if classes else np.arange(len(y))
    rows = rng.permutation(rows)
    return X[rows], np.unique(y[rows], return_inverse=True)[1]


def _generated(
    make: Callable[..., Any],
    n_samples: int,
    rng: np.random.RandomState,
    **options: Any,
) -> Arrays:
    """Draw from one of scikit-learn's generators."""
    X, y = make(n_samples=n_samples, random_state=rng, **options)
    return X, np.unique(y, return_inverse=True)[1]


def _gaussians(
    n_samples: int,
    rng: np.random.RandomState,
    *,
    n_features: int,
    distance: float,
    flipped: float = 0.0,
) -> Arrays:
    """Two normal distributions, with some labels flipped."""
    y = rng.randint(2, size=n_samples)
    X = rng.normal(size=(n_samples, n_features))
    X[:, 0] += distance * (y - 0.5)
    return X, np.where(rng.uniform(size=n_samples) < flipped, 1 - y, y)


_WIDE: dict[str, Any] = {
    "n_features": 20,
    "n_informative": 5,
    "n_redundant": 5,
    "flip_y": 0.0,
}
_FIVE: dict[str, Any] = {"n_features": 30, "n_informative": 8, "n_classes": 5}

#: Name of a data set to its samples.
DATA_SETS: dict[str, Callable[[int, np.random.RandomState], Arrays]] = {
    "breast cancer": partial(_bundled, load_breast_cancer),
    "wine": partial(_bundled, load_wine),
    "digits": partial(_bundled, load_digits),
    "digits 3-8": partial(_bundled, load_digits, classes=(3, 8)),
    "digits 4-9": partial(_bundled, load_digits, classes=(4, 9)),
    "separated": partial(_generated, make_classification, class_sep=2.0, **_WIDE),
    "overlap": partial(_generated, make_classification, class_sep=0.5, **_WIDE),
    "5 classes": partial(
        _generated, make_classification, class_sep=1.5, flip_y=0.0, **_FIVE
    ),
    "5 classes flipped": partial(
        _generated, make_classification, class_sep=1.0, flip_y=0.1, **_FIVE
    ),
    "moons": partial(_generated, make_moons, noise=0.2),
    "noisy moons": partial(_generated, make_moons, noise=0.4),
    "gaussians": partial(_gaussians, n_features=10, distance=2.0),
    "gaussians 100d": partial(_gaussians, n_features=100, distance=4.0),
    "flipped 20%": partial(_gaussians, n_features=20, distance=4.0, flipped=0.2),
    "hastie": partial(_generated, make_hastie_10_2),
    "quantiles": partial(_generated, make_gaussian_quantiles, n_features=5),
}
_REAL = ("breast cancer", "wine", "digits", "digits 3-8", "digits 4-9")


def draw_sample(
    data_set: str, n_train: int, n_test: int, split: int, seed: int
) -> Sample:
    """Draw an outer split.

    Parameters
    ----------
    data_set : str
        A key of `DATA_SETS`.
    n_train, n_test : int
        Samples to train on and to hold out; of a bundled data set at most what is left.
    split : int
        Number of the split.
    seed : int
        Of the experiment.

    Returns
    -------
    sample : Sample
        A function of the arguments alone.
    """
    key = zlib.crc32(f"{data_set} {n_train} {split}".encode())
    rng = np.random.RandomState([seed, key])
    X, y = DATA_SETS[data_set](n_train + n_test, rng)
    X, y = X[: n_train + n_test], y[: n_train + n_test].astype(np.int64)
    return Sample(X[:n_train], y[:n_train], X[n_train:], y[n_train:])


# ---------------------------------------------------------------------------
# Candidates
# ---------------------------------------------------------------------------
class Perceptron(nn.Module):
    """One hidden layer, with dropout before the output layer."""

    def __init__(self, in_features: int, out_features: int, dropout: float = 0.0):
        super().__init__()
        self.hidden = nn.Linear(in_features, 32)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(32, out_features)

    def forward(self, X: torch.Tensor) -> torch.Tensor:
        """Return the logits.

        Parameters
        ----------
        X : Tensor of shape (n_samples, in_features)
            Samples.

        Returns
        -------
        logits : Tensor of shape (n_samples, out_features)
            Before the softmax.
        """
        return self.output(self.dropout(torch.relu(self.hidden(X))))


class SeededClassifier(Seeded, NeuralNetClassifier):
    """A net whose training is reproducible."""


def _net() -> SeededClassifier:
    """Net that takes its sizes from the data."""
    return SeededClassifier(
        Perceptron,
        module__in_features=1,
        module__out_features=2,
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.Adam,
        batch_size=128,
        iterator_train__shuffle=True,
        train_split=None,
        verbose=0,
        callbacks=[
            ("sizes", ModuleSizes("module__in_features", "module__out_features"))
        ],
        random_state=0,
    )


@dataclass(frozen=True)
class Family:
    """Models that one search chooses among.

    Attributes
    ----------
    make : callable
        Makes the pipeline.
    grid : dict
        As for `ParameterGrid`.
    dtype : type
        Of the features.
    """

    make: Callable[[], Any]
    grid: dict[str, list[Any]]
    dtype: type = np.float64

    def candidates(self) -> list[Any]:
        """Return the models, not fitted.

        Returns
        -------
        candidates : list of Pipeline
            In the order of `ParameterGrid`.
        """
        model = self.make()
        return [clone(model).set_params(**point) for point in ParameterGrid(self.grid)]


def _logistic() -> Any:
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))


def _polynomial() -> Any:
    return make_pipeline(
        PolynomialFeatures(include_bias=False),
        StandardScaler(),
        LogisticRegression(max_iter=2000),
    )


def _mlp() -> Any:
    return make_pipeline(
        StandardScaler(), MLPClassifier((8,), max_iter=150, random_state=0)
    )


def _skorch() -> Any:
    return make_pipeline(StandardScaler(), _net())


_C = {"logisticregression__C": [4.0**k for k in range(-4, 5)]}
FAMILIES: dict[str, Family] = {
    "logistic": Family(_logistic, _C),
    "polynomial": Family(_polynomial, _C),
    "mlp": Family(
        _mlp,
        {
            "mlpclassifier__hidden_layer_sizes": [(8,), (64,)],
            "mlpclassifier__alpha": [1e-4, 0.1, 1.0, 10.0],
        },
    ),
    "skorch": Family(
        _skorch,
        {
            "seededclassifier__lr": [0.003, 0.02],
            "seededclassifier__max_epochs": [15, 60],
            "seededclassifier__module__dropout": [0.0, 0.5],
        },
        np.float32,
    ),
}
#: Data set, training samples and family of each grid.
GRIDS: tuple[tuple[str, int, str], ...] = (
    ("breast cancer", 50, "logistic"),
    ("breast cancer", 250, "mlp"),
    ("wine", 80, "skorch"),
    ("digits", 500, "logistic"),
    ("digits", 1000, "mlp"),
    ("digits", 300, "skorch"),
    ("digits 3-8", 100, "logistic"),
    ("digits 4-9", 60, "mlp"),
    ("separated", 200, "logistic"),
    ("separated", 100, "mlp"),
    ("overlap", 1000, "skorch"),
    ("overlap", 200, "mlp"),
    ("5 classes", 400, "skorch"),
    ("5 classes", 150, "logistic"),
    ("5 classes flipped", 5000, "logistic"),
    ("5 classes flipped", 2000, "mlp"),
    ("moons", 100, "polynomial"),
    ("moons", 300, "mlp"),
    ("noisy moons", 200, "skorch"),
    ("gaussians", 50, "logistic"),
    ("gaussians 100d", 200, "logistic"),
    ("flipped 20%", 300, "mlp"),
    ("hastie", 500, "polynomial"),
    ("hastie", 2000, "mlp"),
    ("quantiles", 200, "polynomial"),
    ("quantiles", 1000, "skorch"),
)
