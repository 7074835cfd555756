"""Bare torch modules: what every module says of itself, and a view without a net."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NoReturn

import torch
from sklearn.exceptions import NotFittedError
from torch import nn
from torch.nn.parameter import is_lazy

from sklearn_relflat._data.module_data import ModuleReader
from sklearn_relflat._losses.autograd import AutogradLoss
from sklearn_relflat._losses.base import Loss
from sklearn_relflat._losses.table import LOSSES, resolve_loss
from sklearn_relflat._models.private_copy import (
    ModuleCopies,
    refresh_weights,
    sharing_memory,
)
from sklearn_relflat._models.torch_model import TorchModel

SKORCH_ADVICE = (
    "Wrap it in a skorch net: net = skorch.NeuralNetClassifier(module, "
    "criterion=torch.nn.CrossEntropyLoss, classes=[0, 1]), then net.initialize(). As "
    "it is now, it is sklearn.frozen.FrozenEstimator(net); to have it trained anew, as "
    "searches do, pass the module's class in place of the module"
)


def bare_view(
    module: nn.Module, loss: str | Callable[..., Any] | Loss | None = None
) -> TorchModel:
    """Return the view of a module that is in no net.

    Parameters
    ----------
    module : torch.nn.Module
        The module, trained. It is not touched.
    loss : str, torch criterion or Loss, default=None
        Its loss. Criteria are taken as torch has them: ``NLLLoss`` is of
        log-probabilities, ``BCELoss`` of probabilities, and all else of what the module
        returns. None leaves the view without a loss, which raises when it is asked for.

    Returns
    -------
    view : TorchModel
        View of a private copy that shares the module's parameters.

    Raises
    ------
    NotFittedError
        If the module has parameters without a shape.
    TypeError, ValueError
        If the loss is not supported.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> view = bare_view(nn.Linear(2, 1), "squared_error")
    >>> (batch,) = view.batches(torch.ones(3, 2), torch.zeros(3))
    >>> view.outputs(batch.inputs).shape
    torch.Size([3, 1])
    """
    module = uncompiled(module)
    name = type(module).__name__
    check_shapes(module, name, "Pass a batch through the module first")
    overlapping = sharing_memory(module)
    copies = ModuleCopies()
    private = copies.of(module)
    if not copies.shared:
        refresh_weights(private.eval())
    device, dtype = place_of(private)
    plain = is_plain(private)
    return TorchModel(
        module=private,
        estimator_name=name,
        device=device,
        dtype=dtype,
        forward=partial(_forward, private),
        read=ModuleReader(device, dtype, share=plain),
        training_loss=partial(_no_loss, name),
        link=_link(loss),
        replaced_loss=None if loss is None else resolve_loss(loss, None),
        is_widened=copies.is_widened,
        is_plain=plain,
        originals=copies.copied_parameters,
        aliased=frozenset(id(copies.of(parameter)) for parameter in overlapping),
        shared=tuple(copies.shared),
    )


def _forward(module: nn.Module, inputs: Any) -> Any:
    """Call a module, by the names of its arguments if the inputs have names."""
    return module(**inputs) if isinstance(inputs, Mapping) else module(inputs)


def _no_loss(name: str) -> NoReturn:
    """Raise since nobody said what a module was trained with."""
    raise ValueError(
        f"Expected loss=, the loss that the bare torch module {name!r} was trained "
        "with, which it does not say itself, got None. Pass a torch criterion, such as "
        f"loss=torch.nn.CrossEntropyLoss(), or one of {list(LOSSES)!r}. Where there is "
        f"no such parameter: {SKORCH_ADVICE[0].lower()}{SKORCH_ADVICE[1:]}."
    )


def refuse_bare(model: Any, name: str) -> None:
    """Raise where a module is given to what asks for one of scikit-learn's estimators.

    Parameters
    ----------
    model : Any
        What was given.
    name : str
        Whose estimator it was to be.

    Raises
    ------
    TypeError
        If it is a bare torch module, saying how it becomes an estimator.
    """
    if isinstance(model, nn.Module) and not hasattr(model, "fit"):
        raise TypeError(
            f"Expected an estimator instance with a method fit in {name}, got the bare "
            f"torch module {type(model).__name__!r}. {SKORCH_ADVICE}."
        )


def _link(loss: Any) -> str | None:
    """Return what a module applies to its logits, by torch's meaning of a criterion."""
    loss = uncompiled(loss)
    # One that computes in a way of its own is asked about the outputs as they are.
    if not isinstance(loss, nn.NLLLoss | nn.BCELoss) or isinstance(
        resolve_loss(loss, None), AutogradLoss
    ):
        return None
    return "log_softmax" if isinstance(loss, nn.NLLLoss) else "sigmoid"


# ---------------------------------------------------------------------------
# What every module says of itself
# ---------------------------------------------------------------------------
def uncompiled(module: Any) -> Any:
    """Return the plain module behind torch.compile."""
    return getattr(module, "_orig_mod", module)


def check_shapes(module: nn.Module, name: str, remedy: str) -> None:
    """Raise where parameters wait for their shapes.

    Parameters
    ----------
    module : torch.nn.Module
        A module.
    name : str
        Name of the estimator's class.
    remedy : str
        What to do.

    Raises
    ------
    NotFittedError
        If a parameter is lazy.
    """
    if any(is_lazy(parameter) for parameter in module.parameters()):
        raise NotFittedError(
            f"This {name} instance has lazy parameters without a shape. {remedy}."
        )


def place_of(
    module: nn.Module, device: Any = "cpu"
) -> tuple[torch.device, torch.dtype]:
    """Return device and type of a module's first floating parameter.

    Parameters
    ----------
    module : torch.nn.Module
        A module.
    device : torch.device or str, default="cpu"
        Where it is taken to be if it has none.

    Returns
    -------
    device : torch.device
        Where batches go.
    dtype : torch.dtype
        What they become.
    """
    real = [p for p in module.parameters() if p.is_floating_point()]
    first = real[0] if real else torch.empty(0, device=device)
    return first.device, first.dtype


# They draw in evaluation mode too, take fused attention, or call a user's function.
_NOT_PLAIN = (
    nn.FractionalMaxPool2d,
    nn.FractionalMaxPool3d,
    nn.MultiheadAttention,
    nn.Transformer,
    nn.TransformerDecoderLayer,
    nn.TransformerEncoder,
    nn.TransformerEncoderLayer,
)


def is_plain(module: nn.Module) -> bool:
    """Tell whether a forward pass runs nothing but torch's own modules, not in place.

    Parameters
    ----------
    module : torch.nn.Module
        A private copy.

    Returns
    -------
    answer : bool
        False where a class, a hook or a patch of the user's could do anything.
    """
    torch_hooks = nn.modules.module
    if torch_hooks._global_forward_hooks or torch_hooks._global_forward_pre_hooks:
        return False
    return all(
        _written_in(part.forward).startswith("torch.nn.modules.")
        and "forward" not in vars(part)
        and type(part).__call__ is nn.Module.__call__
        and not (part._forward_hooks or part._forward_pre_hooks)
        and not getattr(part, "inplace", False)
        and not isinstance(part, _NOT_PLAIN)
        for part in module.modules()
    )


def _written_in(function: Any) -> str:
    """Name of the module that a function was written in, whatever it says of itself."""
    return getattr(function, "__globals__", {}).get("__name__", "")
