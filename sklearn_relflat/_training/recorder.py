"""The relative flatness at the end of training, for a search to read."""

from typing import Any

from skorch.callbacks import Callback

from sklearn_relflat._flatness.relative_flatness import relative_flatness
from sklearn_relflat._flatness.result import RelativeFlatness


def measured_on(
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
            net.training_flatness_ = measured_on(net, dataset, self.layer, self.options)

    def __getstate__(self) -> dict[str, Any]:
        # A checkpoint in the middle of training must not hold the data either.
        return {**self.__dict__, "dataset_": None}
