"""LeNet5, its initialisations, and its loss on a whole sample."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sklearn_relflat.experiments._images import DIGITS

#: The layers whose features are perturbed and whose weights are measured.
CONVOLUTIONS = ("conv1", "conv2")
DENSE = ("fc1", "fc2", "fc3")
# A whole sample in one batch is several times slower than chunks of this size.
_CHUNK = 500


class LeNet5(nn.Module):
    """Two convolutions and three dense layers.

    Parameters
    ----------
    n_channels : int, default=3
        Channels of an image.
    size : int, default=32
        Its height and width.
    kernel : int, default=5
        Size of the kernels; below 5 the images are padded to keep their size.
    widths : tuple of int, default=(120, 84)
        Neurons of the hidden dense layers.
    """

    def __init__(
        self,
        n_channels: int = 3,
        size: int = 32,
        kernel: int = 5,
        widths: tuple[int, int] = (120, 84),
    ) -> None:
        super().__init__()
        padding = 0 if kernel == 5 else kernel // 2
        cut = kernel - 1 - 2 * padding
        flat = 16 * (((size - cut) // 2 - cut) // 2) ** 2
        self.conv1 = nn.Conv2d(n_channels, 6, kernel, padding=padding)
        self.conv2 = nn.Conv2d(6, 16, kernel, padding=padding)
        self.fc1 = nn.Linear(flat, widths[0])
        self.fc2 = nn.Linear(widths[0], widths[1])
        self.fc3 = nn.Linear(widths[1], 10)
        self.pool = nn.MaxPool2d(2)
        self.relu = nn.ReLU()

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """Compute what enters each layer.

        Parameters
        ----------
        images : Tensor of shape (n_samples, n_channels, size, size)
            The images.

        Returns
        -------
        features : dict of str to Tensor
            By the layer; "outputs" are the logits.
        """
        found = {"conv1": images}
        found["conv2"] = self.pool(self.relu(self.conv1(images)))
        found["fc1"] = self.pool(self.relu(self.conv2(found["conv2"]))).flatten(1)
        found["fc2"] = self.relu(self.fc1(found["fc1"]))
        found["fc3"] = self.relu(self.fc2(found["fc2"]))
        found["outputs"] = self.fc3(found["fc3"])
        return found

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits.

        Parameters
        ----------
        images : Tensor of shape (n_samples, n_channels, size, size)
            The images.

        Returns
        -------
        logits : Tensor of shape (n_samples, 10)
            One row an image.
        """
        return self.features(images)["outputs"]


def lenet_for(data: str) -> LeNet5:
    """Make a network for images.

    Parameters
    ----------
    data : {"cifar10", "digits"}
        Which images.

    Returns
    -------
    net : LeNet5
        Of a size that they need.
    """
    if data == DIGITS:
        return LeNet5(n_channels=1, size=8, kernel=3, widths=(32, 24))
    return LeNet5()


def _lecun_normal(weight: Tensor) -> None:
    """Fill with a normal of variance 1 / fan-in."""
    nn.init.normal_(weight, std=1 / math.sqrt(weight[0].numel()))


def _he_normal(weight: Tensor) -> None:
    """Fill with a normal of variance 2 / fan-in."""
    nn.init.kaiming_normal_(weight, nonlinearity="relu")


#: Initialisations of a weight; "default" leaves torch's own.
INITIALISATIONS: dict[str, Callable[[Tensor], object]] = {
    "default": lambda weight: None,
    "he": _he_normal,
    "lecun": _lecun_normal,
    "xavier": nn.init.xavier_uniform_,
    "orthogonal": nn.init.orthogonal_,
}


def initialise(net: nn.Module, name: str) -> None:
    """Fill the weights; other biases than the default's are zero.

    Parameters
    ----------
    net : Module
        The network.
    name : str
        One of `INITIALISATIONS`.
    """
    for layer in net.children():
        if name != "default" and isinstance(layer, nn.Linear | nn.Conv2d):
            INITIALISATIONS[name](layer.weight.data)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)


@dataclass(frozen=True)
class Risk:
    """Mean loss and share of wrong predictions on a sample."""

    loss: float
    error: float


@torch.no_grad()
def risk_of(net: nn.Module, images: Tensor, labels: Tensor) -> Risk:
    """Measure a classifier on a whole sample.

    Parameters
    ----------
    net : Module
        The network.
    images, labels : Tensor
        The sample.

    Returns
    -------
    risk : Risk
        Mean cross-entropy and error.
    """
    loss, wrong = 0.0, 0
    for part, target in zip(images.split(_CHUNK), labels.split(_CHUNK), strict=True):
        logits = net(part)
        loss += float(nn.functional.cross_entropy(logits, target, reduction="sum"))
        wrong += int((logits.argmax(1) != target).sum())
    return Risk(loss / len(labels), wrong / len(labels))


@torch.no_grad()
def features_of(net: LeNet5, images: Tensor, layers: tuple[str, ...]) -> list[Tensor]:
    """Collect flattened features of a whole sample.

    Parameters
    ----------
    net : LeNet5
        The network.
    images : Tensor of shape (n_samples, n_channels, size, size)
        The images.
    layers : tuple of str
        Which layers' inputs.

    Returns
    -------
    features : list of Tensor of shape (n_samples, n_features)
        One a layer.
    """
    parts = [net.features(part) for part in images.split(_CHUNK)]
    return [torch.cat([part[name].flatten(1) for part in parts]) for name in layers]
