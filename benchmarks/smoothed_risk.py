"""Cost of the smoothed risk, of the radius and of the searches that use them.

Run ``python benchmarks/smoothed_risk.py [--data FOLDER]``. LeNet5 on 5,000 images
against plain forward passes, the radius of 5,000 samples against a matrix of pairwise
distances, and searches over nets against 5-fold cross-validation.
"""

import argparse
import time
import warnings
from typing import Any

import numpy as np
import torch
from _data import add_data_option, load_images
from _environment import environment, medians, ratio_table, write_results
from relative_flatness import BATCH, trained_net
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV
from sklearn.preprocessing import StandardScaler
from skorch import NeuralNetClassifier
from threadpoolctl import threadpool_limits
from torch import nn

from sklearn_relflat import (
    SmoothedRiskScorer,
    SmoothedRiskSearchCV,
    WholeSample,
    density_radius,
    smoothed_risk,
)
from sklearn_relflat.callbacks import Seeded

N_DRAWS = 16
REPEATS = 5


def row(what: str, against: str, ratio: float, limit: float, **more: Any) -> dict:
    """One line of the table."""
    return {
        "what": what,
        "against": against,
        "ratio": ratio,
        "limit": limit,
        "met": ratio <= limit,
        **more,
    }


def lenet_rows(X: torch.Tensor, y: torch.Tensor, seed: int) -> list[dict]:
    """Sixteen draws at the input of LeNet5, against as many forward passes."""
    net = trained_net(X, y, seed)
    module = net.module_.eval()
    slices = [slice(i, i + BATCH) for i in range(0, len(X), BATCH)]

    def forward() -> None:
        with torch.no_grad():
            for _ in range(N_DRAWS):
                for part in slices:
                    module(X[part])

    def smoothed(layer: str) -> Any:
        return lambda: smoothed_risk(
            net, X, y, layer=layer, radius=0.5, n_draws=N_DRAWS, random_state=0
        )

    rows = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        seconds = medians(
            {
                "forward": forward,
                "input": smoothed("input"),
                "fc1": smoothed("fc1"),
            },
            REPEATS,
        )
        for layer, limit in (("input", 1.15), ("fc1", 1.15)):
            rows.append(
                row(
                    f"smoothed_risk, {layer}, {N_DRAWS} draws",
                    f"{N_DRAWS} forward passes",
                    seconds[layer] / seconds["forward"],
                    limit,
                    threads=threads,
                    seconds=seconds[layer],
                )
            )
    return rows


def radius_row(seed: int) -> dict:
    """Time the radius of 5,000 samples against one matrix of distances."""
    Z = np.random.default_rng(seed).normal(size=(5000, 400))

    def distances() -> np.ndarray:
        squares = (Z * Z).sum(axis=1)
        return squares[:, None] + squares - 2.0 * Z @ Z.T

    with threadpool_limits(1):
        seconds = medians(
            {"radius": lambda: density_radius(Z), "distances": distances}, REPEATS
        )
    return row(
        "density_radius, n = 5,000, m = 400",
        "one pairwise distance matrix",
        seconds["radius"] / seconds["distances"],
        6.0,
        threads=1,
        seconds=seconds["radius"],
    )


class Net(nn.Sequential):
    """Perceptron for the digits."""

    def __init__(self, width: int = 32) -> None:
        super().__init__(
            nn.Linear(64, width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, 10),
        )


class SeededClassifier(Seeded, NeuralNetClassifier):
    """A net with a seed."""


def search_rows(seed: int) -> list[dict]:
    """Time searches over nets on the digits against 5-fold cross-validation."""
    # Layers this small gain nothing from a second thread.
    torch.set_num_threads(1)
    X, y = load_digits(return_X_y=True)
    X = StandardScaler().fit_transform(X).astype(np.float32)[:1000]
    y = y[:1000]
    net = SeededClassifier(
        Net,
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.Adam,
        max_epochs=30,
        train_split=None,
        verbose=0,
        batch_size=64,
        random_state=seed,
    )
    sixteen = {
        "module__width": [16, 32, 64, 128],
        "optimizer__weight_decay": [0.0, 1e-4, 1e-3, 1e-2],
    }
    more = {**sixteen, "module__width": [8, 16, 32, 48, 64, 128]}

    def seconds(search: Any) -> float:
        start = time.perf_counter()
        search.fit(X, y)
        return time.perf_counter() - start

    folds = GridSearchCV(net, sixteen, scoring="neg_log_loss", cv=5)
    whole = GridSearchCV(net, sixteen, scoring=SmoothedRiskScorer(), cv=WholeSample())
    by_folds, by_whole = seconds(folds), seconds(whole)
    reference = GridSearchCV(net, more, scoring="neg_log_loss", cv=5)
    calibrated = SmoothedRiskSearchCV(net, more)
    with warnings.catch_warnings():
        # What a fallback costs is what is measured then.
        warnings.simplefilter("ignore", UserWarning)
        by_calibrated = seconds(calibrated)
    by_reference = seconds(reference)
    n_fits = 24 * 5 + 1
    return [
        row(
            "16 nets, WholeSample and smoothed risk, wall time",
            "5-fold GridSearchCV",
            by_whole / by_folds,
            0.35,
            threads=torch.get_num_threads(),
            seconds=by_whole,
        ),
        row(
            "24 nets, SmoothedRiskSearchCV, number of fits",
            "5-fold GridSearchCV",
            calibrated.n_fits_ / n_fits,
            0.40,
            fits=calibrated.n_fits_,
            calibrated=calibrated.is_calibrated_,
        ),
        row(
            "24 nets, SmoothedRiskSearchCV, wall time",
            "5-fold GridSearchCV",
            by_calibrated / by_reference,
            float("inf"),
            threads=torch.get_num_threads(),
            seconds=by_calibrated,
        ),
    ]


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_data_option(parser)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    name, images, labels = load_images(options.data, 5000)
    X, y = torch.as_tensor(images), torch.as_tensor(labels)
    rows = [
        *lenet_rows(X, y, options.seed),
        radius_row(options.seed),
        *search_rows(options.seed),
    ]
    payload = {"environment": environment(options.seed), "data": name, "rows": rows}
    head = (
        f"LeNet5 on 5,000 images ({name}) in batches of {BATCH}; nets on 1,000 digits; "
        f"medians of {REPEATS} runs in turns; seed {options.seed}."
    )
    write_results("smoothed_risk", payload, ratio_table(rows, head))


if __name__ == "__main__":
    main()
