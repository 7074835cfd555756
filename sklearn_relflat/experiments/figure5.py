"""Which measures tell the generalization of LeNet5 at equal training loss."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sklearn_relflat.experiments._all_measures import measure_network
from sklearn_relflat.experiments._figure5_summary import figure_of, summary_of
from sklearn_relflat.experiments._images import CIFAR10, DIGITS, Images, load_images
from sklearn_relflat.experiments._lenet import LeNet5, lenet_for, risk_of
from sklearn_relflat.experiments._lenet_training import Recipe, seed_of, train
from sklearn_relflat.experiments._statistics import rounded

CLAIM = (
    "Relative flatness of a layer correlates with the generalization gap of LeNet5 on "
    "CIFAR-10, more than the trace of the Hessian, the Fisher-Rao norm, PAC-Bayes "
    "flatness and the norm of the weights do (Figure 5)."
)
COST = {"quick": "30 seconds", "full": "5 hours of one core"}
NEEDS_DATA = True


@dataclass(frozen=True)
class Config:
    """A full factorial of trainings.

    Attributes
    ----------
    data : {"cifar10", "digits"}
        The images.
    n_train, n_test : int
        Images to train on, and to test on.
    n_measured, n_dear : int
        Training images, the first ones, on which cheap and dear measures are taken.
        Losses and errors are those of all images.
    initialisations : tuple of str
        Each has its own initial weights and its own order of the images.
    optimizers : tuple of str
        The optimizers.
    learning_rates : tuple of tuple of float
        Of each optimizer, low to high; they fall linearly to zero.
    batch_sizes : tuple of int
        The batch sizes.
    weight_decays : tuple of float
        The weight decays.
    thresholds : tuple of float
        Training losses on the whole sample at which networks are compared.
    max_epochs, checks_per_epoch : int
        See `Recipe`.
    """

    data: str
    n_train: int
    n_test: int
    n_measured: int
    n_dear: int
    initialisations: tuple[str, ...]
    optimizers: tuple[str, ...]
    learning_rates: tuple[tuple[float, ...], ...]
    batch_sizes: tuple[int, ...]
    weight_decays: tuple[float, ...]
    thresholds: tuple[float, ...]
    max_epochs: int
    checks_per_epoch: int


PRESETS = {
    "quick": Config(
        data=DIGITS,
        n_train=600,
        n_test=1000,
        n_measured=200,
        n_dear=100,
        initialisations=("default", "he"),
        optimizers=("sgd", "adam"),
        learning_rates=((0.03,), (0.005,)),
        batch_sizes=(16, 32),
        weight_decays=(0.0,),
        thresholds=(0.5, 0.1),
        max_epochs=12,
        checks_per_epoch=4,
    ),
    "full": Config(
        data=CIFAR10,
        n_train=10_000,
        n_test=10_000,
        n_measured=1000,
        n_dear=300,
        initialisations=("default", "he", "lecun", "xavier", "orthogonal"),
        optimizers=("sgd", "adam"),
        learning_rates=((0.009, 0.013, 0.018), (0.0025, 0.0035, 0.005)),
        batch_sizes=(32, 64),
        weight_decays=(0.0, 5e-4),
        thresholds=(1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01),
        max_epochs=30,
        checks_per_epoch=5,
    ),
}
#: The hyperparameters of a run, as they stand in the tasks.
HYPERPARAMETERS = (
    "initialisation",
    "optimizer",
    "learning_rate",
    "batch_size",
    "weight_decay",
)
#: What is held fixed for the correlations within strata.
STRATA = ("optimizer", "batch_size")
#: Names of the learning rates of an optimizer.
LEVELS = ("low", "mid", "high")


def tasks(config: Config) -> list[dict[str, Any]]:
    """List the trainings, one whole factorial an initialisation.

    Parameters
    ----------
    config : Config
        The factorial.

    Returns
    -------
    tasks : list of dict
        One a training, with its hyperparameters.
    """
    found = itertools.product(
        config.initialisations,
        config.optimizers,
        LEVELS[: len(config.learning_rates[0])],
        config.batch_sizes,
        config.weight_decays,
    )
    return [dict(zip(HYPERPARAMETERS, values, strict=True)) for values in found]


def measure(
    task: dict[str, Any], config: Config, seed: int, data: Path | None
) -> list[dict[str, Any]]:
    """Train one network, and measure it at each threshold.

    Parameters
    ----------
    task : dict
        Its hyperparameters.
    config : Config
        The rest.
    seed : int
        Of the experiment.
    data : Path or None
        Folder of CIFAR-10.

    Returns
    -------
    records : list of dict
        One a threshold: its ``status`` (see `Stop`), the epoch, losses and errors, and
        the measures where it was reached.
    """
    images = load_images(config.data, config.n_train, config.n_test, data)
    records = []
    for record, net in stops(task, config, seed, images):
        if record["status"] == "reached":
            record |= measure_network(
                net, images.train, images.train_labels, config.n_measured, config.n_dear
            )
        records.append(record)
    return records


def stops(
    task: dict[str, Any], config: Config, seed: int, images: Images
) -> Iterator[tuple[dict[str, Any], LeNet5]]:
    """Train one network, and take down its losses at each threshold.

    Parameters
    ----------
    task : dict
        Its hyperparameters.
    config : Config
        The rest.
    seed : int
        Of the experiment.
    images : Images
        The data.

    Yields
    ------
    record : dict
        ``threshold``, ``status`` (see `Stop`), the epoch, losses and errors.
    net : LeNet5
        The network there. It is trained on afterwards.
    """
    rates = config.learning_rates[config.optimizers.index(task["optimizer"])]
    recipe = Recipe(
        optimizer=task["optimizer"],
        learning_rate=rates[LEVELS.index(task["learning_rate"])],
        batch_size=task["batch_size"],
        weight_decay=task["weight_decay"],
        initialisation=task["initialisation"],
        max_epochs=config.max_epochs,
        checks_per_epoch=config.checks_per_epoch,
    )
    torch.manual_seed(seed_of(seed, recipe.initialisation))
    net = lenet_for(config.data)
    for stop, trained in train(recipe, net, images, config.thresholds, seed):
        record: dict[str, Any] = {
            "threshold": stop.threshold,
            "status": stop.status,
            "epoch": rounded(stop.epoch),
            "train_loss": None,
        }
        if stop.risk is None:
            record["reason"] = "the loss was not finite"
        else:
            record["train_loss"] = rounded(stop.risk.loss)
            record["train_error"] = rounded(stop.risk.error)
        if stop.status == "reached" and stop.risk is not None:
            test = risk_of(trained, images.test, images.test_labels)
            record |= {
                "test_loss": rounded(test.loss),
                "test_error": rounded(test.error),
                "gap": rounded(test.loss - stop.risk.loss),
                "error_gap": rounded(test.error - stop.risk.error),
            }
        yield record, trained


def summarize(
    records: list[dict[str, Any]], config: Config, seed: int
) -> dict[str, Any]:
    """Correlate the measures with gap, test loss and test error.

    Parameters
    ----------
    records : list of dict
        All records.
    config : Config
        The factorial.
    seed : int
        Of the bootstrap.

    Returns
    -------
    summary : dict
        See `summary_of`.
    """
    return summary_of(records, config.thresholds, HYPERPARAMETERS, STRATA, seed)


def draw(summary: dict[str, Any]) -> Any:
    """Draw the correlations over the training loss.

    Parameters
    ----------
    summary : dict
        Of `summarize`.

    Returns
    -------
    figure : matplotlib.figure.Figure
        See `figure_of`.
    """
    return figure_of(summary)
