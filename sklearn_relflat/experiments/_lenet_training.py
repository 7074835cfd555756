"""Training to a series of training losses, with a visit at each of them."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sklearn_relflat.experiments._images import Images
from sklearn_relflat.experiments._lenet import LeNet5, Risk, initialise, risk_of

# The loss on the whole sample costs a third of an epoch, and is only looked at when the
# running loss of the batches is below this multiple of the next threshold.
_NEAR = 1.3
# Share of an epoch over which the running loss forgets.
_MEMORY = 0.25

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda weights, **options: torch.optim.SGD(weights, momentum=0.9, **options),
    "adam": torch.optim.Adam,
}


@dataclass(frozen=True)
class Recipe:
    """How one network is trained.

    Attributes
    ----------
    optimizer : {"sgd", "adam"}
        SGD with a momentum of 0.9, or Adam.
    learning_rate : float
        At the start; it falls linearly to zero over all epochs.
    batch_size : int
        Images a batch; the last, smaller batch of an epoch is left out.
    weight_decay : float
        L2 penalty, as torch's optimizers have it.
    initialisation : str
        How the weights begin, see `INITIALISATIONS`.
    max_epochs : int
        Epochs at most.
    checks_per_epoch : int
        How often the loss on the whole sample may be looked at.
    learning_rate_falls : bool, default=True
        Whether it does.
    """

    optimizer: str
    learning_rate: float
    batch_size: int
    weight_decay: float
    initialisation: str
    max_epochs: int
    checks_per_epoch: int
    learning_rate_falls: bool = True


@dataclass(frozen=True)
class Stop:
    """A threshold of the training loss, and the network when it was reached.

    Attributes
    ----------
    threshold : float
        The threshold.
    status : {"reached", "passed", "missed", "diverged"}
        "reached" at this check and not further than the next threshold; "passed" when
        the next one was reached at the same check; "missed" within the epochs;
        "diverged" when the loss was not finite.
    epoch : float
        When.
    risk : Risk or None
        On the whole training sample; None where it is not finite.
    """

    threshold: float
    status: str
    epoch: float
    risk: Risk | None


def seed_of(seed: int, *names: object) -> int:
    """Derive a seed from a seed and names.

    Parameters
    ----------
    seed : int
        The seed of the experiment.
    *names : object
        What it is for.

    Returns
    -------
    seed : int
        Equal for equal names, on every machine.
    """
    return zlib.crc32(repr((seed, *names)).encode())


def train(
    recipe: Recipe,
    net: LeNet5,
    images: Images,
    thresholds: tuple[float, ...],
    seed: int,
) -> Iterator[tuple[Stop, LeNet5]]:
    """Train a network, and stop at each threshold of its training loss.

    Parameters
    ----------
    recipe : Recipe
        How to train.
    net : LeNet5
        The network; its weights are initialised here.
    images : Images
        The data.
    thresholds : tuple of float
        Falling training losses.
    seed : int
        Of the initial weights, which depend on it and on the kind of initialisation
        alone, and of the order of the images.

    Yields
    ------
    stop : Stop
        A threshold, one after the other, reached or not.
    net : LeNet5
        The network there. It is trained on afterwards.
    """
    left = list(thresholds)
    n_batches = len(images.train) // recipe.batch_size
    checks = set(
        np.linspace(0, n_batches, recipe.checks_per_epoch + 1).round().astype(int)[1:]
    )
    for epoch, batch, running in train_batches(recipe, net, images, seed):
        if not math.isfinite(running):
            for threshold in left:
                yield Stop(threshold, "diverged", epoch, None), net
            return
        if batch in checks and running < _NEAR * left[0]:
            risk = risk_of(net, images.train, images.train_labels)
            crossed = [threshold for threshold in left if risk.loss < threshold]
            for threshold in crossed:
                status = "reached" if threshold == crossed[-1] else "passed"
                yield Stop(threshold, status, epoch, risk), net
            left = left[len(crossed) :]
            if not left:
                return
    risk = risk_of(net, images.train, images.train_labels)
    for threshold in left:
        found = risk if math.isfinite(risk.loss) else None
        status = "missed" if found else "diverged"
        yield Stop(threshold, status, float(recipe.max_epochs), found), net


def train_batches(
    recipe: Recipe, net: nn.Module, images: Images, seed: int
) -> Iterator[tuple[float, int, float]]:
    """Train batch by batch.

    Parameters
    ----------
    recipe : Recipe
        How to train.
    net : Module
        The network; its weights are initialised here.
    images : Images
        The data.
    seed : int
        See `train`.

    Yields
    ------
    epoch : float
        Epochs that are done.
    batch : int
        Batches of this epoch that are done.
    running : float
        Running mean of the batches' losses.
    """
    torch.manual_seed(seed_of(seed, recipe.initialisation))
    initialise(net, recipe.initialisation)
    optimizer = OPTIMIZERS[recipe.optimizer](
        net.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    rng = np.random.default_rng(seed_of(seed, recipe.initialisation, "order"))
    n, size = len(images.train), recipe.batch_size
    n_batches = n // size
    share = min(1.0, size / (n * _MEMORY))
    running: Any = None
    for epoch in range(recipe.max_epochs):
        order = torch.from_numpy(rng.permutation(n))
        for batch in range(n_batches):
            done = epoch + batch / n_batches
            left = 1 - done / recipe.max_epochs if recipe.learning_rate_falls else 1.0
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate * left
            rows = order[batch * size : (batch + 1) * size]
            value = _step(net, optimizer, images.train[rows], images.train_labels[rows])
            running = value if running is None else running + share * (value - running)
            yield epoch + (batch + 1) / n_batches, batch + 1, running


def _step(
    net: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor
) -> float:
    """Take one step, and return the loss before it."""
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(net(images), labels)
    loss.backward()
    optimizer.step()
    return loss.item()
