"""The relative flatness in the history of a net, epoch by epoch."""

import numbers
from collections.abc import Callable
from functools import partial
from typing import Any, SupportsFloat

import numpy as np
from skorch.callbacks import Callback

from sklearn_relflat._training.recorder import measured_on


def check_every(every: Any) -> None:
    """Raise where epochs cannot be counted off by a number."""
    if not isinstance(every, numbers.Integral) or every < 1:
        raise ValueError(
            f"Expected every to be an integer of at least 1, got {every!r}."
        )


def record_measured(
    net: Any, column: str, every: int, measure: Callable[[], SupportsFloat]
) -> None:
    """Write a measure into the history of the present epoch.

    Parameters
    ----------
    net : skorch.NeuralNet
        The net.
    column : str
        Name in the history; "<column>_best" says whether there was no smaller one yet.
    every : int
        It is measured in the first epoch and every so many epochs after it.
    measure : callable
        Returns the number.
    """
    past = [row[column] for row in net.history[:-1] if column in row]
    due = (len(net.history) - 1) % every == 0 or not past
    value = float(measure()) if due else past[-1]
    net.history.record(column, value)
    # The name that skorch's Checkpoint and PrintLog know.
    net.history.record(f"{column}_best", value < min(past, default=np.inf))


class RelativeFlatnessMonitor(Callback):
    """Callback that writes the relative flatness into the history during training.

    Its columns, "train_flatness" and "valid_flatness", are printed with the others and
    are large for a sharp model. `EarlyStopping` and `Checkpoint` can watch them
    (``monitor="train_flatness"``, ``monitor="train_flatness_best"``) if they come later
    in the list of callbacks.

    Parameters
    ----------
    layer : str, default=None
        Name of the layer; None is the output layer.
    every : int, default=1
        Measure in the first epoch and every so many epochs after it. In between the
        last value is repeated, since other callbacks expect one in each epoch.
    on : {"train", "valid", "both"}, default="train"
        Samples to measure on.
    name : str, default="flatness"
        Ending of the columns' names, to tell several monitors apart.
    options : dict, default=None
        Other options of `relative_flatness`, such as ``{"normalize": "std"}``.

    See Also
    --------
    RelativeFlatnessRecorder : Measures once, at the end of training.

    Notes
    -----
    The net is measured in evaluation mode and put back. Samples and targets come from
    the net's own data sets, so they belong together also where the training data are
    shuffled.

    Examples
    --------
    >>> import numpy as np
    >>> from skorch import NeuralNetRegressor
    >>> from torch import nn
    >>> from sklearn_relflat.callbacks import RelativeFlatnessMonitor
    >>> X = np.ones((8, 1), dtype="float32")
    >>> net = NeuralNetRegressor(
    ...     nn.Linear,
    ...     module__in_features=1,
    ...     module__out_features=1,
    ...     max_epochs=3,
    ...     train_split=None,
    ...     callbacks=[("flatness", RelativeFlatnessMonitor(every=2))],
    ...     verbose=0,
    ... ).fit(X, X)
    >>> kappa = net.history[:, "train_flatness"]

    For least squares that is twice the squared weight, here after the last epoch:

    >>> bool(np.isclose(kappa[-1], 2 * net.module_.weight.item() ** 2))
    True
    >>> kappa[1] == kappa[0]
    True
    """

    def __init__(
        self,
        *,
        layer: str | None = None,
        every: int = 1,
        on: str = "train",
        name: str = "flatness",
        options: dict[str, Any] | None = None,
    ) -> None:
        self.layer = layer
        self.every = every
        self.on = on
        self.name = name
        self.options = options

    def on_train_begin(
        self, net: Any, X: Any = None, y: Any = None, **kwargs: Any
    ) -> None:
        """Check the parameters.

        Parameters
        ----------
        net : skorch.NeuralNet
            The net.
        X, y : object, default=None
            Ignored.
        **kwargs : dict
            Ignored.

        Raises
        ------
        ValueError
            If a parameter is not valid.
        """
        check_every(self.every)
        if self.on not in ("train", "valid", "both"):
            raise ValueError(
                f'Expected on to be "train", "valid" or "both", got {self.on!r}.'
            )

    def on_epoch_end(
        self,
        net: Any,
        dataset_train: Any = None,
        dataset_valid: Any = None,
        **kwargs: Any,
    ) -> None:
        """Measure and record.

        Parameters
        ----------
        net : skorch.NeuralNet
            The net.
        dataset_train, dataset_valid : Dataset
            The samples that it is trained and validated on.
        **kwargs : dict
            Ignored.

        Raises
        ------
        ValueError
            If there are no validation data to measure on.
        """
        datasets = {"train": dataset_train, "valid": dataset_valid}
        for split in ("train", "valid") if self.on == "both" else (self.on,):
            dataset, column = datasets[split], f"{split}_{self.name}"
            if dataset is None:
                raise ValueError(
                    f"Expected validation data for on={self.on!r}, got a net with "
                    f"train_split={net.train_split!r}. Give it a train_split, or use "
                    'on="train".'
                )
            record_measured(
                net,
                column,
                self.every,
                partial(measured_on, net, dataset, self.layer, self.options),
            )
