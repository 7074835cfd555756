"""Test loss along a training, as the smoothed risk sees it, and stopping by it."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sklearn_relflat import smoothed_risk
from sklearn_relflat.experiments._images import (
    CIFAR10,
    DIGITS,
    Images,
    load_images,
)
from sklearn_relflat.experiments._lenet import Risk, lenet_for, risk_of
from sklearn_relflat.experiments._lenet_training import Recipe, seed_of, train_batches
from sklearn_relflat.experiments._trajectories_summary import figure_of, summary_of

CLAIM = (
    "The training loss at perturbed features, with the radius from their own density, "
    "follows the test loss along a training, so that it can stop it without a "
    "validation sample (the second term of equation 3)."
)
COST = {"quick": "20 seconds", "full": "1.5 hours of one core"}
NEEDS_DATA = True
#: Layers whose features are perturbed, by the network. What enters a convolution is
#: perturbed isotropically only: the covariance of 3,072 pixels is no estimate.
LAYERS = {"cnn": ("input", "fc1", "fc2", "fc3"), "mlp": ("input", "fc2", "fc3")}
SHAPES = ("isotropic", "within_class", "covariance")
WHOLE = 0.0


@dataclass(frozen=True)
class Config:
    """Trainings, and when to look at them.

    Attributes
    ----------
    data : {"cifar10", "digits"}
        The images.
    n_train, n_test : int
        Images to train on, and to test on.
    pooling : int
        The multi-layer perceptron sees means over squares of so many pixels.
    networks : tuple of str
        "cnn" (LeNet5) and "mlp".
    optimizers : tuple of str
        The optimizers.
    learning_rates : tuple of float
        Of each optimizer; constant.
    n_seeds : int
        Trainings of each.
    held_out : tuple of float
        Shares of the sample that are held out for validation, beside 0.
    epochs : tuple of int
        After which the network is looked at.
    batch_size : int
        Images a batch.
    n_draws : int
        Perturbations of each sample.
    """

    data: str
    n_train: int
    n_test: int
    pooling: int
    networks: tuple[str, ...]
    optimizers: tuple[str, ...]
    learning_rates: tuple[float, ...]
    n_seeds: int
    held_out: tuple[float, ...]
    epochs: tuple[int, ...]
    batch_size: int
    n_draws: int


PRESETS = {
    "quick": Config(
        data=DIGITS,
        n_train=200,
        n_test=1000,
        pooling=1,
        networks=("cnn", "mlp"),
        optimizers=("adam",),
        learning_rates=(0.005,),
        n_seeds=2,
        held_out=(0.2,),
        epochs=(1, 3, 9, 27),
        batch_size=16,
        n_draws=4,
    ),
    "full": Config(
        data=CIFAR10,
        n_train=3000,
        n_test=5000,
        pooling=4,
        networks=("cnn", "mlp"),
        optimizers=("sgd", "adam"),
        learning_rates=(0.01, 0.001),
        n_seeds=2,
        held_out=(0.1, 0.2),
        epochs=(1, 2, 4, 6, 9, 13, 18, 24, 32, 40),
        batch_size=32,
        n_draws=4,
    ),
}


class MLP(nn.Module):
    """Two hidden layers.

    Parameters
    ----------
    n_features : int
        What enters.
    widths : tuple of int, default=(256, 128)
        Neurons of the hidden layers.
    """

    def __init__(self, n_features: int, widths: tuple[int, int] = (256, 128)) -> None:
        super().__init__()
        self.fc1 = nn.Linear(n_features, widths[0])
        self.fc2 = nn.Linear(widths[0], widths[1])
        self.fc3 = nn.Linear(widths[1], 10)
        self.relu = nn.ReLU()

    def forward(self, inputs: Tensor) -> Tensor:
        """Compute the logits.

        Parameters
        ----------
        inputs : Tensor of shape (n_samples, n_features)
            The inputs.

        Returns
        -------
        logits : Tensor of shape (n_samples, 10)
            One row a sample.
        """
        hidden = self.relu(self.fc2(self.relu(self.fc1(inputs))))
        return self.fc3(hidden)


def tasks(config: Config) -> list[dict[str, Any]]:
    """List the trainings; those on the whole sample come with the smoothed risk.

    Parameters
    ----------
    config : Config
        The trainings.

    Returns
    -------
    tasks : list of dict
        Number of the seed, network, optimizer and the share that is held out.
    """
    found = itertools.product(
        range(config.n_seeds),
        config.networks,
        config.optimizers,
        (WHOLE, *config.held_out),
    )
    names = ("run", "network", "optimizer", "held_out")
    return [dict(zip(names, values, strict=True)) for values in found]


def measure(
    task: dict[str, Any], config: Config, seed: int, data: Path | None
) -> list[dict[str, Any]]:
    """Train one network, and look at it after some epochs.

    Parameters
    ----------
    task : dict
        The training.
    config : Config
        The rest.
    seed : int
        Of the experiment.
    data : Path or None
        Folder of CIFAR-10.

    Returns
    -------
    records : list of dict
        One an epoch: losses and errors on the training and the test sample; on the
        held-out sample if there is one, else the smoothed risk and its radius by
        layer and shape.
    """
    images = load_images(config.data, config.n_train, config.n_test, data)
    if task["network"] == "mlp":
        images = _flattened(images, config.pooling)
    n_held = round(task["held_out"] * config.n_train)
    # The files cycle through the classes, or are shuffled: a part of them is balanced.
    held = (images.train[:n_held], images.train_labels[:n_held])
    images = replace(
        images, train=images.train[n_held:], train_labels=images.train_labels[n_held:]
    )
    own_seed = seed_of(seed, task["run"], task["network"], task["optimizer"])
    rates = dict(zip(config.optimizers, config.learning_rates, strict=True))
    recipe = Recipe(
        optimizer=task["optimizer"],
        learning_rate=rates[task["optimizer"]],
        batch_size=config.batch_size,
        weight_decay=0.0,
        initialisation="default",
        max_epochs=max(config.epochs),
        checks_per_epoch=1,
        learning_rate_falls=False,
    )
    torch.manual_seed(seed_of(own_seed, recipe.initialisation))
    net = _network(task["network"], config, images)
    records = []
    for epoch, batch, _ in train_batches(recipe, net, images, own_seed):
        if batch == len(images.train) // config.batch_size and epoch in config.epochs:
            record: dict[str, Any] = {"epoch": round(epoch)}
            _add(record, "train", risk_of(net, images.train, images.train_labels))
            _add(record, "test", risk_of(net, images.test, images.test_labels))
            if n_held:
                _add(record, "held_out", risk_of(net, *held))
            else:
                record |= _smoothed(net, task["network"], images, config.n_draws)
            records.append(record)
    return records


def _add(record: dict[str, Any], sample: str, risk: Risk) -> None:
    """Add loss and error on a sample."""
    record[f"{sample}_loss"] = risk.loss
    record[f"{sample}_error"] = risk.error


def _flattened(images: Images, pooling: int) -> Images:
    """Means over squares of pixels, as rows."""
    train, test = (
        nn.functional.avg_pool2d(sample, pooling).flatten(1)
        for sample in (images.train, images.test)
    )
    return replace(images, train=train, test=test)


def _network(name: str, config: Config, images: Images) -> nn.Module:
    """Make a network for the inputs."""
    if name == "mlp":
        widths = (32, 24) if config.data == DIGITS else (256, 128)
        return MLP(images.train.shape[1], widths)
    return lenet_for(config.data)


def _smoothed(
    net: nn.Module, network: str, images: Images, n_draws: int
) -> dict[str, float]:
    """Smooth the risk at each layer, with each shape."""
    found = {}
    for layer in LAYERS[network]:
        for shape in SHAPES:
            if layer == "input" and network == "cnn" and shape != "isotropic":
                continue
            result = smoothed_risk(
                net,
                images.train,
                images.train_labels,
                layer=layer,
                shape=shape,
                n_draws=n_draws,
                loss="cross_entropy",
                random_state=0,
            )
            found[f"s_{layer}_{shape}"] = result.value
            found[f"r_{layer}_{shape}"] = result.radius
    return found


def summarize(
    records: list[dict[str, Any]], config: Config, seed: int
) -> dict[str, Any]:
    """Compare the smoothed risk with the test loss, and what stopping by it costs.

    Parameters
    ----------
    records : list of dict
        All records.
    config : Config
        The trainings.
    seed : int
        Of the bootstrap.

    Returns
    -------
    summary : dict
        See `summary_of`.
    """
    return summary_of(records, config.held_out, seed)


def draw(summary: dict[str, Any]) -> Any:
    """Draw the losses along the trainings.

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
