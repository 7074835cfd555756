"""The end of the training of a net at a given training loss."""

import numbers
import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from skorch.callbacks import Callback
from skorch.dataset import unpack_data
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.data import TensorDataset

from sklearn_relflat._data.inputs import n_rows
from sklearn_relflat._data.random_states import RandomStates
from sklearn_relflat._data.skorch_data import innermost, with_own_generator
from sklearn_relflat._models.state import preserved

N_BISECTIONS = 12


@contextmanager
def _undisturbed(net: Any) -> Iterator[None]:
    """Put training flags, buffers, gradients and random states back afterwards."""
    with ExitStack() as stack:
        stack.callback(RandomStates().restore)
        for part in (net.module_, net.criterion_):
            if isinstance(part, nn.Module):
                stack.enter_context(preserved(part))
        yield


def _batches(net: Any, dataset: Any) -> Iterable[Any]:
    """Return batches of a data set, in memory where the samples are."""
    iterator: Iterable[Any] = with_own_generator(
        net.get_iterator(dataset, training=False)
    )
    if isinstance(innermost(dataset), TensorDataset):
        # A loader stacks single samples, which takes longer than a small net does.
        return list(iterator)
    return iterator


def mean_training_loss(net: Any, batches: Iterable[Any], n_samples: int) -> float:
    """Return the loss of a net in evaluation mode over some batches.

    Parameters
    ----------
    net : skorch.NeuralNet
        The net.
    batches : iterable
        Batches as its ``iterator_valid`` gives them.
    n_samples : int
        Number of samples that they have to hold.

    Returns
    -------
    loss : float
        Mean over samples; the sum for a criterion with ``reduction="sum"``.

    Raises
    ------
    ValueError
        If the batches do not hold every sample.
    """
    is_sum = getattr(net.criterion_, "reduction", "mean") == "sum"
    total, seen = 0.0, 0
    for batch in batches:
        n = n_rows(unpack_data(batch)[0])
        loss = float(net.validation_step(batch)["loss"])
        total += loss if is_sum else n * loss
        seen += n
    if seen != n_samples:
        raise ValueError(
            f"Expected all {n_samples} training samples from the net's iterator_valid, "
            f"got {seen}. Let it read every sample once: set "
            "iterator_valid__drop_last=False, and no sampler that leaves samples out."
        )
    return total if is_sum else total / n_samples


class StopAtTrainingLoss(Callback):
    """Callback that ends the training of a net at a given training loss.

    Flatness can only be compared between models with about the same training loss, and
    this is the way to get such models: stop at a loss, not after a number of epochs.
    The loss is that of all training samples, without those that ``train_split`` holds
    out, in evaluation mode and at the parameters of one moment; the ``train_loss`` in
    the history is a mean over an epoch in which they change.

    Parameters
    ----------
    threshold : float
        Training loss at which the training ends.
    checks_per_epoch : int or None, default=1
        How often the loss is looked at in an epoch, at equal distances and always at
        its end; None is after each step. One look costs a forward pass over the
        training samples.
    exact : bool, default=False
        Whether to go back, once the loss is below the threshold, on the straight line
        to the parameters of the look before, until the threshold is just met.
    on_miss : {"warn", "raise", "ignore"}, default="warn"
        What happens if the training ends before the loss is reached. With "raise", a
        search counts the candidate as failed (see its ``error_score``).

    Attributes
    ----------
    reached_ : bool
        Whether the loss was reached; also ``net.training_loss_reached_``.
    loss_ : float
        Training loss at the end; also ``net.training_loss_``. NaN if there was no
        training at all.

    See Also
    --------
    RelativeFlatnessRecorder : Notes the flatness at the end of training.
    sklearn_relflat.FlattestWithin : ``loss_tol`` compares candidates of about the same
        training loss where the trainings were not stopped at one.

    Notes
    -----
    The loss of a batch is the net's ``get_loss(..., training=False)``, so it has no
    dropout and no `FlatnessRegularized` penalty. The batches are those of
    ``iterator_valid``, weighted by their sizes: with class weights, set
    ``iterator_valid__batch_size=-1`` to have the loss of the whole sample exactly.

    Samples that are in memory are copied once, for the time of the training. The first
    look is after the first steps, so a net that starts below the threshold is trained
    until then.

    A training that ends within an epoch leaves this epoch out of the history's
    ``train_loss`` and of all else that is recorded at an epoch's end. With `exact`,
    buffers such as those of batch normalization stay as the training left them.

    Examples
    --------
    Two learning rates, one training loss:

    >>> import numpy as np
    >>> from skorch import NeuralNetClassifier
    >>> from torch import nn
    >>> from sklearn_relflat import relative_flatness
    >>> from sklearn_relflat.callbacks import Seeded, StopAtTrainingLoss
    >>> class SeededClassifier(Seeded, NeuralNetClassifier):
    ...     pass
    >>> X = np.random.default_rng(0).normal(size=(40, 3)).astype("float32")
    >>> y = (X[:, 0] > 0).astype("int64")
    >>> for lr in (0.1, 0.5):
    ...     net = SeededClassifier(
    ...         nn.Linear,
    ...         module__in_features=3,
    ...         module__out_features=2,
    ...         criterion=nn.CrossEntropyLoss,
    ...         lr=lr,
    ...         max_epochs=200,
    ...         callbacks=[("stop", StopAtTrainingLoss(0.3, exact=True))],
    ...         train_split=None,
    ...         random_state=0,
    ...         verbose=0,
    ...     ).fit(X, y)
    ...     found = relative_flatness(net, X, y).mean_loss
    ...     print(net.training_loss_reached_, f"{found:.3f}")
    True 0.300
    True 0.300
    """

    batches_: Iterable[Any] | None
    before_: list[Tensor]

    def __init__(
        self,
        threshold: float,
        *,
        checks_per_epoch: int | None = 1,
        exact: bool = False,
        on_miss: str = "warn",
    ) -> None:
        self.threshold = threshold
        self.checks_per_epoch = checks_per_epoch
        self.exact = exact
        self.on_miss = on_miss

    def on_train_begin(
        self, net: Any, X: Any = None, y: Any = None, **kwargs: Any
    ) -> None:
        """Check the parameters, and forget an earlier training.

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
            If a parameter is not valid, or another callback would change the
            parameters of the net at the end.
        """
        self._check_parameters()
        for name, callback in net.callbacks_:
            if getattr(callback, "load_best", False):
                raise ValueError(
                    "Expected no callback that loads the best parameters at the end of "
                    f"training beside StopAtTrainingLoss, got {name!r}: the net would "
                    "end at another training loss. Set its load_best=False."
                )
        self.reached_, self.loss_, self.is_seen_ = False, np.nan, True
        self._let_go()
        self._note(net)

    def _check_parameters(self) -> None:
        """Raise where a parameter is not valid."""
        threshold: Any = self.threshold
        is_number = isinstance(threshold, numbers.Real)
        if not is_number or isinstance(threshold, bool) or not np.isfinite(threshold):
            raise ValueError(
                "Expected threshold to be a finite number, a training loss, got "
                f"{threshold!r}."
            )
        checks: Any = self.checks_per_epoch
        is_count = isinstance(checks, numbers.Integral) and not isinstance(checks, bool)
        if checks is not None and (not is_count or checks < 1):
            raise ValueError(
                "Expected checks_per_epoch to be an integer of at least 1, or None for "
                f"a check after each step, got {checks!r}."
            )
        if self.on_miss not in ("warn", "raise", "ignore"):
            raise ValueError(
                'Expected on_miss to be "warn", "raise" or "ignore", got '
                f"{self.on_miss!r}."
            )

    def on_epoch_begin(
        self, net: Any, dataset_train: Any = None, **kwargs: Any
    ) -> None:
        """Note the samples in the first epoch, and count from its first step.

        Parameters
        ----------
        net : skorch.NeuralNet
            The net.
        dataset_train : Dataset
            The training samples.
        **kwargs : dict
            Ignored.
        """
        self.step_ = 0
        if self.batches_ is not None:
            return
        with _undisturbed(net):
            self.batches_ = _batches(net, dataset_train)
            self.n_samples_ = len(dataset_train)
            try:
                self.n_steps_ = len(net.get_iterator(dataset_train, training=True))
            except TypeError:
                # An iterator without a length: the first epoch will tell.
                self.n_steps_ = 0
        self._keep_parameters(net)

    def on_batch_end(self, net: Any, training: bool = False, **kwargs: Any) -> None:
        """Look at the loss, if it is time, and end the training if it is reached.

        Parameters
        ----------
        net : skorch.NeuralNet
            The net.
        training : bool, default=False
            Whether the batch was trained on.
        **kwargs : dict
            Ignored.
        """
        if not training:
            return
        self.step_ += 1
        self.is_seen_ = False
        # At its last step the epoch is brought to its end first, for the history.
        if self.step_ != self.n_steps_ and self._is_due():
            self._look(net)

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        """Look at the loss, and end the training if it is reached.

        Parameters
        ----------
        net : skorch.NeuralNet
            The net.
        **kwargs : dict
            Ignored.
        """
        self.n_steps_ = self.step_
        self._look(net)

    def on_train_end(self, net: Any, **kwargs: Any) -> None:
        """Let the samples go, and say so if the loss was not reached.

        Parameters
        ----------
        net : skorch.NeuralNet
            The net; gets ``training_loss_`` and ``training_loss_reached_``.
        **kwargs : dict
            Ignored.

        Raises
        ------
        RuntimeError
            If it was not reached, with ``on_miss="raise"``.
        """
        if not self.is_seen_:
            # Something else ended the training, between two looks.
            self._measure(net)
        self._let_go()
        self._note(net)
        if self.reached_ or self.on_miss == "ignore":
            return
        message = (
            f"Expected the training of {type(net).__name__} to reach a training loss "
            f"of {self.threshold!r}, got {self.loss_:.4g} after {len(net.history)} "
            "epochs. Raise max_epochs or the learning rate, or set a higher threshold; "
            "its flatness is not comparable with that of nets that reached it."
        )
        if self.on_miss == "raise":
            raise RuntimeError(message)
        warnings.warn(message, ConvergenceWarning, stacklevel=2)

    def _is_due(self) -> bool:
        """Tell whether a look falls on the step just made."""
        if self.checks_per_epoch is None:
            return True
        if not self.n_steps_:
            return False
        done, before = (
            step * self.checks_per_epoch // self.n_steps_
            for step in (self.step_, self.step_ - 1)
        )
        return done > before

    def _look(self, net: Any) -> None:
        """End the training if the loss is reached."""
        self._measure(net)
        if self.reached_:
            raise KeyboardInterrupt  # skorch's way to end a training from inside

    def _measure(self, net: Any) -> None:
        """Note the loss, and whether it is reached."""
        self.is_seen_ = True
        with _undisturbed(net):
            self.loss_ = self._loss_of(net)
            self.reached_ = self.loss_ <= self.threshold
            if not self.reached_:
                self._keep_parameters(net)
            elif self.exact:
                self._go_back(net)

    def _loss_of(self, net: Any) -> float:
        """Return the loss on the training samples."""
        return mean_training_loss(net, self.batches_ or (), self.n_samples_)

    def _keep_parameters(self, net: Any) -> None:
        """Keep what to go back to."""
        if self.exact:
            self.before_ = [p.clone() for p in _trained_values(net)]

    def _go_back(self, net: Any) -> None:
        """Go back, by bisection, to where the loss is just met."""
        values = _trained_values(net)
        if len(values) != len(self.before_):
            return  # lazy parameters had no values before the first step
        after = [value.clone() for value in values]

        def go_to(share: float) -> None:
            for value, start, end in zip(values, self.before_, after, strict=True):
                # In place: a detached tensor shares its values with the parameter.
                torch.lerp(start, end, share, out=value)

        shortest, longest = 0.0, 1.0
        for _ in range(N_BISECTIONS):
            middle = (shortest + longest) / 2
            go_to(middle)
            loss = self._loss_of(net)
            if loss <= self.threshold:
                longest, self.loss_ = middle, loss
            else:
                shortest = middle
        go_to(longest)

    def _let_go(self) -> None:
        """Forget samples and parameters."""
        self.batches_, self.before_ = None, []

    def _note(self, net: Any) -> None:
        """Write the outcome where a search and a reader look for it."""
        net.training_loss_, net.training_loss_reached_ = self.loss_, self.reached_

    def __getstate__(self) -> dict[str, Any]:
        # A checkpoint in the middle of training must hold no data either.
        empty = {"batches_": None, "before_": list[Tensor]()}
        return {k: empty.get(k, value) for k, value in self.__dict__.items()}


def _trained_values(net: Any) -> list[Tensor]:
    """Return the values of the parameters that a training moves."""
    found = (p for _, p in net.get_all_learnable_params() if not is_lazy(p))
    return [p.detach() for p in found if p.is_floating_point() or p.is_complex()]
