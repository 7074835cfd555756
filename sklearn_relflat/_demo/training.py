"""The demo's net, which ends at a given training loss, and its progress bar."""

import os
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from skorch import NeuralNetClassifier
from skorch.callbacks import Callback
from torch import nn

from sklearn_relflat._progress.bar import progress_bar
from sklearn_relflat.callbacks import Seeded, StopAtTrainingLoss


class SeededClassifier(Seeded, NeuralNetClassifier):
    """skorch's classifier, with a ``random_state``."""


class MLP(nn.Sequential):
    """A network with two hidden layers of ReLU units."""

    def __init__(self, n_features: int, n_hidden: int, n_classes: int) -> None:
        super().__init__(
            OrderedDict(
                hidden_1=nn.Linear(n_features, n_hidden),
                relu_1=nn.ReLU(),
                hidden_2=nn.Linear(n_hidden, n_hidden),
                relu_2=nn.ReLU(),
                output=nn.Linear(n_hidden, n_classes),
            )
        )


class Tick(Callback):
    """Callback that adds a byte to a file at the end of each training.

    A progress bar can follow trainings in other processes by the length of the file.

    Parameters
    ----------
    path : str
        The file.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def on_train_end(self, net: Any, **kwargs: Any) -> None:
        """Add a byte."""
        with Path(self.path).open("ab") as file:
            file.write(b".")


@contextmanager
def counting_nets(total: int, description: str, disable: bool) -> Iterator[str]:
    """Yield a path for `Tick`, and draw a bar that follows it."""
    handle, path = tempfile.mkstemp(prefix="relflat-progress-")
    os.close(handle)
    done = threading.Event()
    bar = progress_bar(title=description, unit="net", verbose=not disable, total=total)

    def follow() -> None:
        while not done.wait(0.2):
            bar.update(Path(path).stat().st_size - bar.n)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield path
    finally:
        done.set()
        thread.join()
        bar.update(Path(path).stat().st_size - bar.n)
        bar.close()
        os.unlink(path)


def as_float32(X: np.ndarray) -> np.ndarray:
    """Cast to what torch computes in."""
    return X.astype(np.float32)


def make_net(
    n_hidden: int,
    training_loss: float,
    max_epochs: int,
    random_state: int,
    progress_file: str | None = None,
) -> Pipeline:
    """Make a pipeline of a scaler, a cast and a net.

    Parameters
    ----------
    n_hidden : int
        Width of the hidden layers.
    training_loss : float
        Mean training loss at which the training ends.
    max_epochs : int
        Number of epochs after which it ends at the latest.
    random_state : int
        Seed of the initial weights and of the order of the samples.
    progress_file : str, default=None
        File for `Tick`.

    Returns
    -------
    pipeline : Pipeline
        With the steps "scale", "cast" and "net".
    """
    # The report tells which nets did not get there.
    stop = StopAtTrainingLoss(
        training_loss, checks_per_epoch=None, exact=True, on_miss="ignore"
    )
    callbacks: list[tuple[str, Callback]] = [("stop", stop)]
    if progress_file is not None:
        callbacks.append(("tick", Tick(progress_file)))
    net = SeededClassifier(
        MLP,
        module__n_features=64,
        module__n_hidden=n_hidden,
        module__n_classes=10,
        criterion=nn.CrossEntropyLoss,
        max_epochs=max_epochs,
        iterator_train__shuffle=True,
        # Small batches are good for learning only: predict and measure in large ones.
        iterator_valid__batch_size=512,
        # All of the training split is trained on: nothing is held out inside the net.
        train_split=None,
        callbacks=callbacks,
        random_state=random_state,
        verbose=0,
    )
    cast = FunctionTransformer(as_float32)
    return Pipeline([("scale", StandardScaler()), ("cast", cast), ("net", net)])
