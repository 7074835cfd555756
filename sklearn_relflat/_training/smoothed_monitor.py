"""The smoothed risk in the history of a net: early stopping without validation data."""

from numbers import Integral
from typing import Any

import numpy as np
from skorch.callbacks import Callback
from torch.utils.data import Subset

from sklearn_relflat._density.density_radius import DensityRadius
from sklearn_relflat._robustness.smoothed_result import SmoothedRisk
from sklearn_relflat._robustness.smoothed_risk import smoothed_risk
from sklearn_relflat._robustness.smoothing import INPUT
from sklearn_relflat._training.monitor import check_every, record_measured


class SmoothedRiskMonitor(Callback):
    """Callback that writes the smoothed risk into the history during training.

    An estimate of the risk on new data from the training samples alone, see
    `smoothed_risk`: with it, `EarlyStopping` (``monitor="smoothed_risk"``) and
    `Checkpoint` (``monitor="smoothed_risk_best"``) need no validation set and
    ``train_split=None`` leaves all samples to the training. They come later in the list
    of callbacks.

    Parameters
    ----------
    every : int, default=1
        Measure in the first epoch and every so many epochs after it. In between the
        last value is repeated, since other callbacks expect one in each epoch. To
        `EarlyStopping` that is no improvement: its patience counts all epochs.
    name : str, default="smoothed_risk"
        Name of the column, to tell several monitors apart.
    max_samples : int, default=None
        Measure on so many of the training samples, drawn once and by `random_state`;
        None: on all of them.
    layer : str or None, default="input"
        Whose features are perturbed. This and the following are the options of
        `smoothed_risk`.
    radius : float or "density", default="density"
        Norm of the perturbations relative to that of the features. The density of the
        input is asked once in a training, that of a hidden layer each time.
    shape : {"isotropic", "within_class", "covariance"}, default="isotropic"
        Covariance of the perturbations.
    n_draws : int, default=16
        Perturbations of each sample.
    loss : str, torch criterion or callable, default=None
        The loss; None is the one that the net is trained with.
    metric : {None, "error_rate"}, default=None
        "error_rate" averages wrong predictions instead of the loss.
    random_state : int, default=0
        Seed of the perturbations. They are the same each time, so that what is known of
        the differences between epochs is more than what is known of the values.

    See Also
    --------
    smoothed_risk : The measure.
    SmoothedRiskScorer : The same number in a search.
    RelativeFlatnessMonitor : Its curvature at zero.

    Notes
    -----
    The net is measured in evaluation mode, on a private copy. A measurement takes one
    forward pass over the samples and `n_draws` passes of what is behind the layer:
    `every` and `max_samples` make it cheaper.

    Where classes overlap within the radius the smoothed risk is too large for good
    models, so its minimum may come early; a smaller `radius` moves it.

    Examples
    --------
    >>> import numpy as np
    >>> from skorch import NeuralNetRegressor
    >>> from skorch.callbacks import EarlyStopping
    >>> from torch import nn
    >>> from sklearn_relflat.callbacks import SmoothedRiskMonitor
    >>> X = np.array([[1.0], [2.0]], dtype="float32")
    >>> net = NeuralNetRegressor(
    ...     nn.Linear,
    ...     module__in_features=1,
    ...     module__out_features=1,
    ...     max_epochs=3,
    ...     train_split=None,
    ...     callbacks=[
    ...         ("risk", SmoothedRiskMonitor(radius=0.1)),
    ...         ("stop", EarlyStopping(monitor="smoothed_risk")),
    ...     ],
    ...     verbose=0,
    ... ).fit(X, X)

    For least squares, perturbations of relative size 0.1 add the variance of their
    effect, the mean of ``(0.1 w x)^2``:

    >>> errors = (net.predict(X) - X) ** 2 + (0.1 * net.module_.weight.item() * X) ** 2
    >>> bool(np.isclose(net.history[-1, "smoothed_risk"], errors.mean()))
    True
    """

    def __init__(
        self,
        *,
        every: int = 1,
        name: str = "smoothed_risk",
        max_samples: int | None = None,
        layer: str | None = INPUT,
        radius: float | str | DensityRadius = "density",
        shape: str = "isotropic",
        n_draws: int = 16,
        loss: Any = None,
        metric: str | None = None,
        random_state: int = 0,
    ) -> None:
        self.every = every
        self.name = name
        self.max_samples = max_samples
        self.layer = layer
        self.radius = radius
        self.shape = shape
        self.n_draws = n_draws
        self.loss = loss
        self.metric = metric
        self.random_state = random_state

    def on_train_begin(
        self, net: Any, X: Any = None, y: Any = None, **kwargs: Any
    ) -> None:
        """Check the parameters, and forget the radius of an earlier training.

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
            If a parameter is not valid.
        """
        check_every(self.every)
        few = self.max_samples
        if few is not None and not (_is_integer(few) and few >= 2):
            raise ValueError(
                "Expected max_samples to be None (all samples) or an integer of at "
                f"least 2, got {few!r}."
            )
        if not _is_integer(self.random_state):
            raise ValueError(
                "Expected random_state to be an integer, which gives every epoch the "
                f"same perturbations, got {self.random_state!r}. Choose one, such as 0."
            )
        self.density_: DensityRadius | None = None

    def on_epoch_end(self, net: Any, dataset_train: Any = None, **kwargs: Any) -> None:
        """Measure and record.

        Parameters
        ----------
        net : skorch.NeuralNet
            The net.
        dataset_train : Dataset
            The samples that it is trained on.
        **kwargs : dict
            Ignored.
        """
        record_measured(
            net, self.name, self.every, lambda: self._measured(net, dataset_train)
        )

    def _measured(self, net: Any, dataset: Any) -> SmoothedRisk:
        """Return the smoothed risk on the samples of a training."""
        n_samples = len(dataset)
        if self.max_samples is not None and self.max_samples < n_samples:
            rng = np.random.RandomState(self.random_state)
            rows = rng.choice(n_samples, self.max_samples, replace=False)
            dataset = Subset(dataset, np.sort(rows).tolist())
        result = smoothed_risk(
            net,
            dataset,
            layer=self.layer,
            radius=self.radius if self.density_ is None else self.density_,
            shape=self.shape,
            n_draws=self.n_draws,
            loss=self.loss,
            metric=self.metric,
            random_state=self.random_state,
        )
        if self.layer == INPUT:
            # Training moves the features of hidden layers, but not the input.
            self.density_ = result.density
        return result


def _is_integer(value: Any) -> bool:
    """Whether a value is a whole number, and no flag."""
    return isinstance(value, Integral) and not isinstance(value, bool)
