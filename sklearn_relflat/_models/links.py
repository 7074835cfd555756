"""Logits of modules that end in a softmax or sigmoid.

The curvature is computed from logits: differentiating ``-log(p + eps)`` of the
probabilities gives an indefinite matrix where the model is confident.
"""

import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from sklearn_relflat._data.inputs import is_finite


def logits_of(link: str, forward: Callable[[], Any]) -> Tensor:
    """Run a forward pass and return the logits behind its output.

    If the output comes straight out of the link function, the logits are the very
    tensor that entered it, with its autograd graph. Otherwise they are computed from
    the output, up to an additive constant per sample for the softmax, which no
    cross-entropy sees: all derivatives of the loss stay the same.

    Parameters
    ----------
    link : {"softmax", "log_softmax", "sigmoid"}
        What the output must be an image of.
    forward : callable
        The forward pass; if it returns a tuple, the first entry counts.

    Returns
    -------
    logits : Tensor
        Of the shape of the output.

    Raises
    ------
    ValueError
        If the output cannot be an image of the link function.

    Examples
    --------
    >>> import torch
    >>> z = torch.tensor([[1.0, 2.0, 4.0]])
    >>> logits_of("softmax", lambda: torch.softmax(z, dim=1)) is z
    True
    >>> logits_of("softmax", lambda: z.exp() / z.exp().sum()).softmax(dim=1)
    tensor([[0.0420, 0.1142, 0.8438]])
    """
    with _Recorder(link) as recorder:
        output = first_output(forward())
    logits = recorder.input_of(output)
    if logits is not None:
        return logits
    # What is not finite is no matter of links: the check of the outputs reports it.
    return _INVERSES[link](output) if is_finite(output) else output


def first_output(output: Any) -> Tensor:
    """Return the tensor of a forward pass: its output, or the first one of several.

    Parameters
    ----------
    output : Tensor, tuple, list, dict or object
        What the module returned. Of a dict the entry "logits" counts, of an object the
        attribute: so do the models of transformers return them.

    Returns
    -------
    output : Tensor
        The tensor that enters the loss.

    Raises
    ------
    TypeError
        If there is no such tensor.
    """
    if isinstance(output, tuple | list) and output:
        output = output[0]
    elif isinstance(output, Mapping) and "logits" in output:
        output = output["logits"]
    elif not isinstance(output, Tensor):
        output = getattr(output, "logits", output)
    if not isinstance(output, Tensor):
        raise TypeError(
            "Expected the module to return a tensor, a tuple whose first entry is the "
            "tensor that enters the loss, or a dict or object with that tensor as "
            f"'logits', got {type(output).__name__!r}."
        )
    return output


def with_samples(outputs: Tensor, n_samples: int) -> Tensor:
    """Give outputs back the sample that a squeeze takes from a batch of one.

    Parameters
    ----------
    outputs : Tensor
        Raw outputs.
    n_samples : int
        Number of samples in the batch.

    Returns
    -------
    outputs : Tensor of shape (n_samples, ...)
        Where a batch of one has lost its dimension, with it.
    """
    if outputs.dim() == 0 or (len(outputs) != 1 and n_samples == 1):
        return outputs[None]
    return outputs


class _Recorder(TorchFunctionMode):
    """Remember what entered each call of a link function."""

    def __init__(self, link: str) -> None:
        super().__init__()
        self._link = link
        self._calls: dict[int, tuple[weakref.ref, int, Tensor]] = {}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run the call; keep input and output if it is the link function."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if getattr(func, "__name__", "") != self._link or result is None:
            return result
        entered = args[0] if args else kwargs["input"]
        if self._link == "sigmoid" or _is_over_classes(entered, args, kwargs):
            key = id(result)
            # Attention weights are softmax outputs as well: their inputs are let go
            # together with them, so that the recorder holds no memory.
            forget = weakref.ref(result, lambda _: self._calls.pop(key, None))
            self._calls[key] = (forget, _version(result), entered)
        return result

    def input_of(self, output: Tensor) -> Tensor | None:
        """Return what entered the link function to give this output, if anything."""
        for reference, version, entered in self._calls.values():
            recorded = reference()
            # A tensor that was changed in place afterwards is another output.
            if recorded is None or _version(recorded) != version:
                continue
            if recorded is output:
                return entered
            if self._link == "sigmoid" and _is_reshaped(output, recorded):
                return entered.reshape(output.shape)
        return None


def _version(tensor: Tensor) -> int:
    """Return how often a tensor was changed in place."""
    return 0 if tensor.is_inference() else tensor._version


def _is_over_classes(entered: Tensor, args: tuple, kwargs: dict) -> bool:
    """Tell whether a softmax call runs over dimension 1, the classes."""
    dim = args[1] if len(args) > 1 else kwargs.get("dim")
    if dim is None:
        dim = 0 if entered.ndim in {0, 1, 3} else 1
    return entered.ndim > 1 and dim % entered.ndim == 1


def _is_reshaped(output: Tensor, recorded: Tensor) -> bool:
    """Tell whether the output is the recorded tensor in another shape."""
    return (
        output._is_view()
        and output.numel() == recorded.numel()
        and output.is_contiguous()
        and recorded.is_contiguous()
        and output.data_ptr() == recorded.data_ptr()
    )


def _tolerance(output: Tensor) -> float:
    """Return how far a sum of probabilities may be from one."""
    return torch.finfo(output.dtype).eps ** 0.5


def _log_probabilities(output: Tensor) -> Tensor:
    """Return log(p) for an output that must hold probabilities of the classes."""
    _check_class_dimension(output)
    off = (output.sum(dim=1) - 1).abs().max()
    if bool(output.min() < 0) or not bool(off <= _tolerance(output)):
        found = (
            "log-probabilities (the module seems to end in log_softmax)"
            if bool(output.max() <= 0)
            else f"rows whose sums differ from one by up to {off.item():.3g}"
        )
        raise ValueError(
            "Expected the module of a skorch classifier with criterion NLLLoss to "
            f"return class probabilities, got {found}. skorch takes the logarithm "
            "itself: end the module in softmax(dim=1), or return logits and train "
            "with criterion=CrossEntropyLoss."
        )
    # log(p) = z - logsumexp(z): the logits up to a constant per sample, and
    # softmax(log p) = p, so the loss is the same function of the parameters and all
    # its derivatives agree. An underflown probability has no logarithm: the smallest
    # normal number stands for it.
    return output.clamp_min(torch.finfo(output.dtype).tiny).log()


def _as_log_softmax(output: Tensor) -> Tensor:
    """Return an output that must hold log-probabilities: these are logits already."""
    _check_class_dimension(output)
    off = output.exp().sum(dim=1).sub(1).abs().max()
    if not bool(off <= _tolerance(output)):
        raise ValueError(
            "Expected the module of a plain skorch NeuralNet with criterion NLLLoss, "
            "or a bare one with that loss, to return log-probabilities, got rows whose "
            f"exponentials differ from one in sum by up to {off.item():.3g}. End it in "
            "log_softmax(dim=1), use NeuralNetClassifier with a module that ends in "
            "softmax, or return logits and train with criterion=CrossEntropyLoss."
        )
    return output


def _logit(output: Tensor) -> Tensor:
    """Return the logits of an output that must hold probabilities."""
    if not bool((output >= 0).all() & (output <= 1).all()):
        raise ValueError(
            "Expected the module of a net with criterion BCELoss to return "
            "probabilities between 0 and 1, got values from "
            f"{output.min().item():.3g} to {output.max().item():.3g}. End the module "
            "in sigmoid, or return logits and train with criterion=BCEWithLogitsLoss."
        )
    info = torch.finfo(output.dtype)
    return output.clamp(info.tiny, 1 - info.eps / 2).logit()


def _check_class_dimension(output: Tensor) -> None:
    """Raise where an output has no dimension of classes."""
    if output.ndim < 2:
        raise ValueError(
            "Expected outputs of shape (n_samples, n_classes, ...) with criterion "
            f"NLLLoss, got shape {tuple(output.shape)}. Return one column per class, "
            "or use criterion=BCEWithLogitsLoss for a single output."
        )


_INVERSES: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": _log_probabilities,
    "log_softmax": _as_log_softmax,
    "sigmoid": _logit,
}
