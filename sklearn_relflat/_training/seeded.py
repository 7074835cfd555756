"""Reproducible training of a skorch net."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

import torch
from sklearn.utils import check_random_state

from sklearn_relflat._data.skorch_data import with_own_generator

if TYPE_CHECKING:
    from skorch import NeuralNet as _Net
else:
    # The mixin gets skorch's methods from the class that it is mixed into.
    _Net = object


# The random state of torch belongs to the process: one seeded section at a time.
_TURN = threading.RLock()
_SECTION = threading.local()


def _depth() -> int:
    """How many seeded sections this thread is in."""
    return getattr(_SECTION, "depth", 0)


class Seeded(_Net):
    """Mixin for a skorch net whose training is reproducible.

    Initial weights, the order of the samples and dropout are drawn from
    ``random_state`` and leave torch's global random state as it was. So a search gives
    the same numbers for any ``n_jobs``. Put it to the left of the net's class.

    Parameters
    ----------
    *args : object
        Passed to the net.
    random_state : int, RandomState instance or None, default=None
        Seed. None draws from torch's global random state, as skorch does.
    **kwargs : dict
        Passed to the net.

    Notes
    -----
    torch has one random state for all threads: nets of this kind that are fitted in
    several threads take turns, so that threads give the same numbers as processes, in
    the time of one. The numbers are others if code of another kind draws from torch's
    global random state in a thread beside them. Predictions draw nothing.

    `fit` and `initialize` are seeded; `partial_fit` of a net that is initialized goes
    on with the global random state. Random numbers that a data set draws from NumPy
    are not covered.

    Examples
    --------
    >>> from skorch import NeuralNetRegressor
    >>> from torch import nn
    >>> from sklearn_relflat.callbacks import Seeded
    >>> class SeededRegressor(Seeded, NeuralNetRegressor):
    ...     pass
    >>> def weight(random_state):
    ...     net = SeededRegressor(
    ...         nn.Linear,
    ...         module__in_features=1,
    ...         module__out_features=1,
    ...         random_state=random_state,
    ...     )
    ...     return net.initialize().module_.weight.item()
    >>> weight(0) == weight(0), weight(0) == weight(1)
    (True, False)
    """

    random_state: Any

    def __init__(self, *args: Any, random_state: Any = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.random_state = random_state

    def initialize(self) -> Self:
        """Initialize the net with seeded weights.

        Returns
        -------
        self : NeuralNet
            The net.
        """
        with self._seeded(0):
            super().initialize()
        return self

    def fit(self, X: Any, y: Any = None, **fit_params: Any) -> Self:
        """Fit the net from seeded weights, on seeded batches.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...), or what else the net takes
            Samples.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs), default=None
            Targets.
        **fit_params : dict
            As for the net.

        Returns
        -------
        self : NeuralNet
            The net.
        """
        # Another stream than that of the weights, which `initialize` draws in here.
        with self._seeded(1):
            super().fit(X, y, **fit_params)
        return self

    def get_iterator(self, dataset: Any, training: bool = False) -> Any:
        """Return an iterator; outside of training, one that draws nothing.

        Parameters
        ----------
        dataset : Dataset
            The samples.
        training : bool, default=False
            Whether they are trained on.

        Returns
        -------
        iterator : iterable
            Over batches.
        """
        iterator = super().get_iterator(dataset, training=training)
        if training or self.random_state is None or _depth():
            return iterator
        # A seed drawn for the workers of a loader would be missing in the stream of a
        # net that is trained in another thread.
        return with_own_generator(iterator)

    @contextmanager
    def _seeded(self, stream: int) -> Iterator[None]:
        """Draw torch's random numbers from one of the streams of the seed."""
        if self.random_state is None:
            yield
            return
        seeds = check_random_state(self.random_state).randint(2**31 - 1, size=2)
        device = torch.device(self.device or "cpu")
        devices = [] if device.type == "cpu" else [device]
        with _TURN, torch.random.fork_rng(devices):
            torch.manual_seed(int(seeds[stream]))
            _SECTION.depth = _depth() + 1
            try:
                yield
            finally:
                _SECTION.depth -= 1
