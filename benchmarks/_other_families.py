"""Candidates beyond logistic regressions and perceptrons: kernel ridge, nets by SGD."""

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.kernel_approximation import Nystroem
from sklearn.linear_model import Ridge
from sklearn.metrics import log_loss
from sklearn.pipeline import make_pipeline
from torch import nn

from sklearn_relflat import relative_flatness, smoothed_risk

# Samples above which nets are left out: each candidate is fitted six times.
MAX_SAMPLES_OF_NETS = 1000


class KernelRidge(ClassifierMixin, BaseEstimator):
    """Ridge regression of one-hot labels on Nystroem's features of a Gaussian kernel.

    Exact kernel ridge where there are at most 200 samples. Judged by squared error.
    """

    hidden = None
    n_folds = (3, 5)

    def __init__(self, scale: float = 1.0, alpha: float = 1.0) -> None:
        self.scale = scale
        self.alpha = alpha

    def fit(self, X: np.ndarray, y: np.ndarray) -> "KernelRidge":
        """Fit the ridge regression."""
        self.classes_ = np.unique(y)
        features = Nystroem(
            gamma=self.scale / X.shape[1],
            n_components=min(200, len(X)),
            random_state=0,
        )
        self.model_ = make_pipeline(features, Ridge(alpha=self.alpha))
        self.model_.fit(X, self._one_hot(y))
        return self

    def _one_hot(self, y: np.ndarray) -> np.ndarray:
        return (y[:, None] == self.classes_).astype(float)

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Class of the largest output."""
        return self.classes_[self.model_.predict(X).argmax(axis=1)]

    def loss(self, X: np.ndarray, y: np.ndarray) -> float:
        """Mean squared error over samples and outputs, as the package has it."""
        errors = self.model_.predict(X) - self._one_hot(y)
        return float(np.mean(errors**2))

    def risk(self, X: np.ndarray, y: np.ndarray, **options: object) -> float:
        """Smoothed risk, in closed form."""
        return smoothed_risk(self.model_, X, self._one_hot(y), **options).value

    def kappa(self, X: np.ndarray, y: np.ndarray) -> float:
        """Relative flatness."""
        return float(relative_flatness(self.model_, X, self._one_hot(y)))


class SGDNet(ClassifierMixin, BaseEstimator):
    """A net with one hidden layer, by stochastic gradient descent with momentum."""

    hidden = "2"
    n_folds = (5,)

    def __init__(self, width: int = 16, lr: float = 0.1, epochs: int = 10) -> None:
        self.width = width
        self.lr = lr
        self.epochs = epochs

    def fit(self, X: np.ndarray, y: np.ndarray) -> "SGDNet":
        """Train in batches of 32."""
        self.classes_, codes = np.unique(y, return_inverse=True)
        generator = torch.Generator().manual_seed(0)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.model_ = nn.Sequential(
                nn.Linear(X.shape[1], self.width),
                nn.ReLU(),
                nn.Linear(self.width, len(self.classes_)),
            )
        inputs = torch.as_tensor(X, dtype=torch.float32)
        targets = torch.as_tensor(codes)
        sgd = torch.optim.SGD(self.model_.parameters(), self.lr, momentum=0.9)
        criterion = nn.CrossEntropyLoss()
        for _ in range(self.epochs):
            for rows in torch.randperm(len(X), generator=generator).split(32):
                sgd.zero_grad()
                criterion(self.model_(inputs[rows]), targets[rows]).backward()
                sgd.step()
        return self

    @torch.no_grad()
    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        """Probabilities, in double precision."""
        outputs = self.model_(torch.as_tensor(X, dtype=torch.float32))
        return outputs.double().softmax(dim=1).numpy()

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Most probable class."""
        return self.classes_[self.predict_proba(X).argmax(axis=1)]

    def loss(self, X: np.ndarray, y: np.ndarray) -> float:
        """Log-loss."""
        return log_loss(y, self.predict_proba(X), labels=self.classes_)

    def risk(self, X: np.ndarray, y: np.ndarray, **options: object) -> float:
        """Smoothed risk."""
        codes = np.searchsorted(self.classes_, y)
        return smoothed_risk(
            self.model_, X, codes, loss=nn.CrossEntropyLoss(), **options
        ).value

    def kappa(self, X: np.ndarray, y: np.ndarray) -> float:
        """Relative flatness of the output layer."""
        codes = np.searchsorted(self.classes_, y)
        return float(
            relative_flatness(self.model_, X, codes, loss=nn.CrossEntropyLoss())
        )


def kernel_ridges() -> list:
    """Kernel ridge over width of the kernel and penalty."""
    return [
        KernelRidge(scale, alpha)
        for scale in (0.2, 1.0, 5.0)
        for alpha in (10.0, 1.0, 0.1, 0.001)
    ]


def sgd_nets() -> list:
    """Nets over width, learning rate and epochs."""
    return [
        SGDNet(width, lr, epochs)
        for width in (16, 64)
        for lr in (0.01, 0.1)
        for epochs in (10, 60)
    ]


FAMILIES = {"kernel ridge": kernel_ridges, "nets by SGD": sgd_nets}
