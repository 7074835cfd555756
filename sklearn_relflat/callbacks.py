"""Callbacks and mixins for skorch nets."""

import numbers
from typing import Any

import numpy as np
from skorch.callbacks import Callback

from sklearn_relflat._flatness_regularized import FlatnessRegularized
from sklearn_relflat._flatness_result import RelativeFlatness
from sklearn_relflat._relative_flatness import relative_flatness
from sklearn_relflat._seeded import Seeded

__all__ = [
    "FlatnessRegularized",
    "ModuleSizes",
    "RelativeFlatnessMonitor",
    "RelativeFlatnessRecorder",
    "Seeded",
]


def _measured(
    net: Any, dataset: Any, layer: str | None, options: dict[str, Any] | None
) -> RelativeFlatness:
    """Return the relative flatness on a data set that yields (X, y)."""
    # The targets come with the data set: no cached y in another order can slip in.
    return relative_flatness(net, dataset, layer=layer, **(options or {}))


class RelativeFlatnessRecorder(Callback):
    """Callback that notes the relative flatness at the end of training.

    It is measured on exactly the samples that the net was trained on, without those
    that its ``train_split`` held out, and kept as ``net.training_flatness_``. In a
    search, `TrainingFlatnessScorer` reads it. The data are let go.

    Parameters
    ----------
    layer : str, default=None
        Name of the layer; None is the output layer.
    options : dict, default=None
        Other options of `relative_flatness`, such as ``{"normalize": "std"}``.

    See Also
    --------
    TrainingFlatnessScorer : Reads what was recorded.
    RelativeFlatnessMonitor : Measures during training.

    Notes
    -----
    Put it behind callbacks that load the best parameters at the end of training. Data
    sets that draw random augmentations are measured on one more draw of them.

    Examples
    --------
    >>> import numpy as np
    >>> from skorch import NeuralNetClassifier
    >>> from torch import nn
    >>> from sklearn_relflat import relative_flatness
    >>> from sklearn_relflat.callbacks import RelativeFlatnessRecorder
    >>> X = np.random.default_rng(0).normal(size=(40, 3)).astype("float32")
    >>> y = (X[:, 0] > 0).astype("int64")
    >>> net = NeuralNetClassifier(
    ...     nn.Linear,
    ...     module__in_features=3,
    ...     module__out_features=2,
    ...     criterion=nn.CrossEntropyLoss,
    ...     train_split=None,
    ...     callbacks=[("flatness", RelativeFlatnessRecorder())],
    ...     verbose=0,
    ... ).fit(X, y)
    >>> net.training_flatness_.value == relative_flatness(net, X, y).value
    True
    """

    def __init__(
        self, *, layer: str | None = None, options: dict[str, Any] | None = None
    ) -> None:
        self.layer = layer
        self.options = options

    def on_train_begin(
        self, net: Any, X: Any = None, y: Any = None, **kwargs: Any
    ) -> None:
        """Forget an earlier training.

        Parameters
        ----------
        net : skorch.NeuralNet
            The net.
        X, y : object, default=None
            Ignored: a part of them may be held out.
        **kwargs : dict
            Ignored.

        Raises
        ------
        ValueError
            If a later callback would change the parameters after the measurement.
        """
        self.dataset_ = None
        if hasattr(net, "training_flatness_"):
            del net.training_flatness_
        own = [callback for _, callback in net.callbacks_].index(self)
        for name, callback in net.callbacks_[own + 1 :]:
            if getattr(callback, "load_best", False):
                raise ValueError(
                    "Expected RelativeFlatnessRecorder behind callbacks that load the "
                    f"best parameters at the end of training, got {name!r} after it. "
                    "Move the recorder to the end of the list of callbacks."
                )

    def on_epoch_begin(
        self, net: Any, dataset_train: Any = None, **kwargs: Any
    ) -> None:
        """Note which samples the net is trained on.

        Parameters
        ----------
        net : skorch.NeuralNet
            The net.
        dataset_train : Dataset
            The training samples.
        **kwargs : dict
            Ignored.
        """
        self.dataset_ = dataset_train

    def on_train_end(self, net: Any, **kwargs: Any) -> None:
        """Measure, and forget the data.

        Parameters
        ----------
        net : skorch.NeuralNet
            The net; gets ``training_flatness_``, unless it was trained for no epoch.
        **kwargs : dict
            Ignored.
        """
        dataset, self.dataset_ = self.dataset_, None
        if dataset is not None:
            net.training_flatness_ = _measured(net, dataset, self.layer, self.options)

    def __getstate__(self) -> dict[str, Any]:
        # A checkpoint in the middle of training must not hold the data either.
        return {**self.__dict__, "dataset_": None}


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
        if not isinstance(self.every, numbers.Integral) or self.every < 1:
            raise ValueError(
                f"Expected every to be an integer of at least 1, got {self.every!r}."
            )
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
            past = [row[column] for row in net.history[:-1] if column in row]
            due = (len(net.history) - 1) % self.every == 0 or not past
            value = past[-1] if past else np.inf
            if due:
                value = float(_measured(net, dataset, self.layer, self.options))
            net.history.record(column, value)
            # The name that skorch's Checkpoint and PrintLog know.
            net.history.record(f"{column}_best", value < min(past, default=np.inf))


class ModuleSizes(Callback):
    """Callback that sets the sizes of a module from the data before training.

    Parameters
    ----------
    n_features : str, default=None
        Parameter of the net that gets the number of columns of X, for example
        "module__n_inputs"; None sets nothing.
    n_outputs : str, default=None
        Parameter of the net that gets the number of classes (largest label + 1) of
        integer y, otherwise the number of columns of y.

    Notes
    -----
    The net is initialized before training begins, so the module needs values of these
    parameters to begin with.

    Examples
    --------
    >>> import numpy as np
    >>> from skorch import NeuralNetClassifier
    >>> from torch import nn
    >>> from sklearn_relflat.callbacks import ModuleSizes
    >>> sizes = ModuleSizes("module__in_features", "module__out_features")
    >>> net = NeuralNetClassifier(
    ...     nn.Linear,
    ...     module__in_features=1,
    ...     module__out_features=1,
    ...     criterion=nn.CrossEntropyLoss,
    ...     train_split=None,
    ...     callbacks=[sizes],
    ...     verbose=0,
    ... )
    >>> X, y = np.zeros((6, 5), dtype="float32"), np.array([0, 1, 2, 0, 1, 2])
    >>> net.fit(X, y).module_
    Linear(in_features=5, out_features=3, bias=True)
    """

    def __init__(
        self, n_features: str | None = None, n_outputs: str | None = None
    ) -> None:
        self.n_features = n_features
        self.n_outputs = n_outputs

    def on_train_begin(
        self, net: Any, X: Any = None, y: Any = None, **kwargs: Any
    ) -> None:
        """Set the sizes, where they are not what the data have.

        Parameters
        ----------
        net : skorch.NeuralNet
            The net.
        X : array-like of shape (n_samples, n_features)
            Samples.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
            Targets.
        **kwargs : dict
            Ignored.

        Raises
        ------
        ValueError
            If X or y has no shape to take the size from.
        """
        sizes = {}
        if self.n_features is not None:
            sizes[self.n_features] = _n_columns(X, "X")
        if self.n_outputs is not None:
            sizes[self.n_outputs] = _n_outputs(y)
        known = net.get_params(deep=False)
        new = {name: n for name, n in sizes.items() if known.get(name) != n}
        if new:
            net.set_params(**new)


def _n_columns(values: Any, name: str) -> int:
    """Return the size of the second dimension."""
    shape = tuple(getattr(values, "shape", ()))
    if len(shape) < 2:
        raise ValueError(
            f"Expected {name} as an array with columns, for ModuleSizes, got "
            f"{type(values).__name__} of shape {shape}. Set the sizes of the "
            "module by hand."
        )
    return int(shape[1])


def _n_outputs(y: Any) -> int:
    """Return the number of outputs for some targets."""
    if len(getattr(y, "shape", ())) > 1:
        return _n_columns(y, "y")
    values = np.asarray(y)
    if values.dtype.kind in "iub":
        return int(values.max()) + 1
    if values.dtype.kind == "f" and values.ndim == 1:
        return 1
    raise ValueError(
        "Expected y as an array of integers or numbers, for ModuleSizes, got "
        f"{type(y).__name__}. Set the sizes of the module by hand."
    )
