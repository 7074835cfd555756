"""Data sets of the experiments."""

from sklearn_relflat._datasets.cifar10 import fetch_cifar10, load_cifar10
from sklearn_relflat._datasets.gaussian_features import make_gaussian_features

__all__ = ["fetch_cifar10", "load_cifar10", "make_gaussian_features"]
