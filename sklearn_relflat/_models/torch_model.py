"""The one view of a fitted model that all measures share."""

import dataclasses
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sklearn_relflat._data.batches import Batch, BatchSource
from sklearn_relflat._data.inputs import is_finite, leaves, moderate_weights, n_rows
from sklearn_relflat._data.random_states import RandomStates
from sklearn_relflat._losses.table import Loss
from sklearn_relflat._models.links import first_output, logits_of, with_samples
from sklearn_relflat._models.plain_math import PlainMath
from sklearn_relflat._models.state import plain_evaluation, preserved
from sklearn_relflat._models.trained_loss import TrainedLoss

Prepare = Callable[[Any, Any], tuple[Any, Any]]


@dataclasses.dataclass(frozen=True, eq=False)
class TorchModel:
    """A fitted model as a torch module, its loss, and a way to read its data.

    Made by `as_torch_model`; wrappers change a view with :meth:`with_prepare`,
    :meth:`with_loss` and :func:`dataclasses.replace`.

    Attributes
    ----------
    module : torch.nn.Module
        The module, without torch.compile: a copy that shares the model's parameters.
    estimator_name : str
        Name of the estimator's class.
    device : torch.device
        Device of the parameters.
    dtype : torch.dtype
        Floating type of the parameters.
    forward : callable
        ``forward(inputs)``: what the estimator does with a batch.
    read : callable
        ``read(X, y, sample_weight, loss)`` gives a BatchSource; ``loss`` is the loss
        that replaces the training loss, or None.
    training_loss : callable
        Returns the loss that the model was trained with, or raises if it is not
        supported.
    default_layer : str or None
        Name of the layer to measure if none is named; None: the output layer.
    link : {"softmax", "log_softmax", "sigmoid"} or None
        What the module applies to its logits; None if it returns logits.
    replaced_loss : Loss or None
        The loss that the user put in place of the training loss.
    prepare : tuple of callable
        Each maps (X, y) to (X, y), outermost wrapper first.
    trained : TrainedLoss or None
        What checks the training loss; None where there is nothing to doubt.
    draws : list of str
        What forward passes called that draws from the global random streams.
    is_widened : bool
        Whether the module has a copy of the model's parameters in single precision.
    is_plain : bool
        Whether a forward pass runs nothing but torch's own modules of known kinds: it
        neither writes to its inputs, nor draws, nor takes fused attention.
    originals : frozenset of int
        Identities of the parameters that `module` has copies of: a forward pass that
        uses them leaves the private module.
    aliased : frozenset of int
        Identities of parameters whose memory other tensors of the model share.
    shared : tuple of torch.nn.Module
        Modules of others that are used as they are; all else is private to this view.
    finished_by : str or None
        Name of a wrapper that makes predictions of the raw outputs in its own way, by a
        threshold, a calibration or a transformation: the view is of its inner model.
    """

    module: nn.Module
    estimator_name: str
    device: torch.device
    dtype: torch.dtype
    forward: Callable[[Any], Any]
    read: Callable[[Any, Any, Any, Loss | None], BatchSource]
    training_loss: Callable[[], Loss]
    default_layer: str | None = None
    link: str | None = None
    replaced_loss: Loss | None = None
    prepare: tuple[Prepare, ...] = ()
    trained: TrainedLoss | None = None
    draws: list[str] = dataclasses.field(default_factory=list)
    is_widened: bool = False
    is_plain: bool = False
    originals: frozenset[int] = frozenset()
    aliased: frozenset[int] = frozenset()
    shared: tuple[nn.Module, ...] = ()
    finished_by: str | None = None

    @cached_property
    def loss(self) -> Loss:
        """The loss to measure with: the training loss unless it was replaced."""
        return self.replaced_loss or self.training_loss()

    def with_loss(self, loss: Loss) -> Self:
        """Return this view with another loss.

        Parameters
        ----------
        loss : Loss
            Takes the place of the training loss.

        Returns
        -------
        view : TorchModel
            A new view of the same module.
        """
        return dataclasses.replace(self, replaced_loss=loss)

    def with_prepare(self, prepare: Prepare) -> Self:
        """Return this view for the data of a wrapper around the model.

        Parameters
        ----------
        prepare : callable
            Maps the wrapper's (X, y) to what this view takes; y may be None. Wrappers
            nest: the one added last is applied first.

        Returns
        -------
        view : TorchModel
            A new view of the same module.
        """
        return dataclasses.replace(self, prepare=(prepare, *self.prepare))

    def batches(self, X: Any, y: Any = None, sample_weight: Any = None) -> BatchSource:
        """Validate data and split it into the batches that the model takes.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...), or what else the estimator takes
            Samples.
        y : array-like of shape (n_samples, ...), default=None
            Targets; None if X carries them or none are needed.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the samples.

        Returns
        -------
        batches : BatchSource
            Re-iterable batches.
        """
        for prepare in self.prepare:
            X, y = prepare(X, y)
        if sample_weight is not None and self.loss.reduction != "sum":
            sample_weight = moderate_weights(sample_weight)
        return self.read(X, y, sample_weight, self.replaced_loss)

    def outputs(self, inputs: Any) -> Tensor:
        """Run a forward pass; gradient mode and hooks are the caller's.

        Parameters
        ----------
        inputs : Tensor, dict or list
            Inputs of one batch.

        Returns
        -------
        outputs : Tensor of shape (n_samples,) or (n_samples, n_outputs, ...)
            Raw outputs: logits for a classifier. Where the module ends in the link
            function, the very tensor that entered it.
        """
        # Watching each function costs, and there is nothing to watch in torch's own.
        watch = nullcontext() if self.is_plain else PlainMath(self.device, self.draws)
        with self._explained_input_errors(inputs), watch:
            if self.link is None:
                outputs = first_output(self.forward(inputs))
            else:
                outputs = logits_of(self.link, lambda: self.forward(inputs))
        if outputs.dim() == 0 or len(outputs) != 1:
            return with_samples(outputs, n_rows(inputs))
        return outputs

    @contextmanager
    def _explained_input_errors(self, inputs: Any) -> Iterator[None]:
        """Turn the module's error about its inputs into one about X."""
        try:
            yield
        except TypeError as err:
            if isinstance(inputs, list):
                raise TypeError(
                    f"The module {type(self.module).__name__} does not take a list of "
                    f"{len(inputs)} inputs, which a list or tuple as X is to a net. "
                    f"Pass a single array as X; Python said: {err}"
                ) from err
            if not (isinstance(inputs, dict) and "argument" in str(err)):
                raise
            raise TypeError(
                f"The module {type(self.module).__name__} does not take the keyword "
                f"arguments {list(inputs)!r}, the keys of a dict or the columns of a "
                "DataFrame. Pass a DataFrame as X.to_numpy(), or name the arguments "
                f"of forward like the keys; Python said: {err}"
            ) from err
        except RuntimeError as err:
            for pattern, advice in _INPUT_ERRORS:
                if pattern.search(str(err)):
                    raise ValueError(
                        f"The module {type(self.module).__name__} does not take a "
                        f"batch with {_description(inputs)}: "
                        f"{_first_layer(self.module)}. {advice} torch said: {err}"
                    ) from err
            raise

    def check_loss(self, batch: Batch) -> None:
        """Raise where the training loss is not what it is taken for.

        Parameters
        ----------
        batch : Batch
            Some samples.

        Raises
        ------
        ValueError
            Saying what differs; a loss that replaces the training loss is not checked.
        """
        if self.trained is not None and self.replaced_loss is None:
            self.trained.check(self.loss, batch)

    def check_outputs(self, outputs: Tensor, batch: Batch) -> None:
        """Raise where a forward pass gave NaN or infinity.

        Parameters
        ----------
        outputs : Tensor
            Raw outputs of the batch.
        batch : Batch
            The batch.

        Raises
        ------
        ValueError
            Naming what is at fault: a weight, X, or the forward pass.
        """
        if is_finite(outputs):
            return
        self.check_parameters()
        bad = torch.nonzero(~torch.isfinite(outputs))[0, 0]
        largest = max(
            (
                float(values.abs().max())
                for _, values in leaves(batch.inputs)
                if isinstance(values, Tensor) and values.is_floating_point()
            ),
            default=0.0,
        )
        raise ValueError(
            f"Expected finite outputs of {self.estimator_name}, got NaN or infinity "
            f"from the forward pass of sample {batch.start + int(bad)}, though X and "
            f"all parameters are finite. The largest entry of X in this batch is "
            f"{largest:.3g}: scale X, or measure the model in double precision."
        )

    def check_parameters(self) -> None:
        """Raise where a parameter holds NaN or infinity.

        Raises
        ------
        ValueError
            Naming the parameter.
        """
        for name, parameter in self.module.named_parameters():
            if not is_finite(parameter):
                raise ValueError(
                    f"Expected finite weights, got NaN or infinity in parameter "
                    f"{name!r} of {self.estimator_name}: its training diverged. Fit "
                    "it again, with a smaller learning rate or scaled data."
                )

    @contextmanager
    def measuring(self) -> Iterator[Self]:
        """Put the model into the state to be measured in.

        Inside: eval mode, no inference mode and no autocast. The module is private, so
        that nobody else sees anything of it; where parts of it are shared, they are
        locked, and restored also after an exception. Parameters are not copied: no
        measure writes to them.

        Yields
        ------
        view : TorchModel
            This view.

        Raises
        ------
        ValueError
            If a parameter is not finite, global hooks change gradients, or a batch
            normalisation keeps no running statistics and so couples the samples of a
            batch.
        """
        self.check_parameters()
        _check_no_global_hooks()
        _check_independent_samples(self.module)
        states = RandomStates()
        with ExitStack() as stack:
            stack.callback(self._restore_if_drawn, states)
            for module in self.shared:
                stack.enter_context(preserved(module))
            stack.enter_context(plain_evaluation(self.device))
            self.module.eval()
            yield self

    def _restore_if_drawn(self, states: RandomStates) -> None:
        """Put the random states back where the module drew from them."""
        if self.draws:
            states.restore()


# What torch says where shape or dtype of X do not fit the module, and the remedy.
_INPUT_ERRORS = [
    (
        re.compile(
            r"shapes cannot be multiplied|size mismatch|must match the size|"
            r"[Ee]xpected input.* to have|Given (groups|normalized_shape|input size)|"
            r"Expected \d.*-?D|is invalid for input of size|running_mean should contain"
        ),
        "Expected samples of the shape that the model was fitted on.",
    ),
    (
        re.compile(r"the same dtype|expected scalar type|should be the same"),
        "Expected inputs of the dtype that the model was fitted on: integers are "
        "passed on as they are, so cast X to floating, for example with "
        "X.astype('float32').",
    ),
]


def _description(inputs: Any) -> str:
    """Describe the inputs of a batch."""
    return ", ".join(
        f"{name} of shape {tuple(values.shape)} and dtype {values.dtype}"
        for name, values in leaves(inputs)
        if isinstance(values, Tensor)
    )


def _first_layer(module: nn.Module) -> str:
    """Describe what the first weight layer of a module expects."""
    for name, layer in module.named_modules():
        for attribute in ("in_features", "in_channels"):
            if isinstance(getattr(layer, attribute, None), int):
                expected = getattr(layer, attribute)
                title = f" {name!r}" if name else ""
                return f"its first weight layer{title} has {attribute}={expected}"
    return "it has no layer that tells its input width"


def _check_no_global_hooks() -> None:
    """Raise where the process changes the gradients of all modules."""
    table = nn.modules.module
    if table._global_backward_hooks or table._global_backward_pre_hooks:
        raise ValueError(
            "Expected no global backward hooks, which change the gradients of every "
            "module, got some of torch.nn.modules.module.register_module_full_backward_"
            "hook or its like. Remove them with the handles that they gave."
        )


def _check_independent_samples(module: nn.Module) -> None:
    """Raise where a batch normalisation has no running statistics."""
    for name, layer in module.named_modules():
        if isinstance(layer, _BatchNorm) and layer.running_mean is None:
            raise ValueError(
                "Expected every batch normalisation to keep running statistics, got "
                f"module {name!r} with track_running_stats=False: it normalises by the "
                "batch even in eval mode, so that a sample's loss depends on its "
                "batch. Train with track_running_stats=True."
            )
