"""skorch nets: their module, criterion and device as one view."""

from functools import partial
from typing import Any

import torch
from sklearn.exceptions import NotFittedError
from skorch import (
    NeuralNet,
    NeuralNetClassifier,
)
from torch import nn
from torch.nn.parameter import is_lazy

from sklearn_relflat._data.skorch_data import SkorchReader
from sklearn_relflat._losses.table import loss_from_criterion
from sklearn_relflat._models.private_copy import (
    ModuleCopies,
    refresh_weights,
    sharing_memory,
)
from sklearn_relflat._models.torch_model import TorchModel
from sklearn_relflat._models.trained_loss import trained_loss


def skorch_view(net: NeuralNet, *, live: bool = False) -> TorchModel:
    """Return the view of a skorch net.

    Parameters
    ----------
    net : skorch.NeuralNet
        A fitted or initialized net.
    live : bool
        Whether the view is of the net's own module, as it is in training, instead of a
        private copy.

    Returns
    -------
    view : TorchModel
        View of the net. Its forward pass is the net's own ``infer``.

    Raises
    ------
    NotFittedError
        If the net is not initialized.
    ValueError
        If the net's device is not there.
    """
    name = type(net).__name__
    module = getattr(net, "module_", None)
    if not getattr(net, "initialized_", False) or module is None:
        raise NotFittedError(
            f"This {name} instance is not fitted yet. Call 'fit' first, or "
            "'initialize' followed by 'load_params'."
        )
    module = _uncompiled(module)
    if any(is_lazy(parameter) for parameter in module.parameters()):
        raise NotFittedError(
            f"This {name} instance has lazy parameters without a shape. Call 'fit' "
            "first."
        )
    _check_device(net.device, name)
    criterion = _uncompiled(net.criterion_)
    copies = ModuleCopies()
    shadow, shared, aliased = net, [module], frozenset[int]()
    if not live:
        overlapping = sharing_memory(module)
        shadow = _shadow(net, copies)
        module, shared = shadow.module_, copies.shared
        aliased = frozenset(id(copies.of(parameter)) for parameter in overlapping)
        if not shared:
            refresh_weights(module.eval())
    parameter = next((p for p in module.parameters() if p.is_floating_point()), None)
    if parameter is None:
        parameter = torch.empty(0, device=net.device)
    device, dtype = parameter.device, parameter.dtype
    link = _link(net, criterion)
    is_plain = _is_plain(shadow, module)
    shadow.__dict__.update({} if live else {"device": device})
    return TorchModel(
        module=module,
        estimator_name=name,
        device=device,
        dtype=dtype,
        forward=shadow.infer,
        read=SkorchReader(net, criterion, device, dtype, share=is_plain),
        training_loss=partial(loss_from_criterion, criterion),
        link=link,
        is_widened=not live and copies.is_widened,
        is_plain=is_plain,
        originals=copies.copied_parameters,
        aliased=aliased,
        trained=trained_loss(net, shadow, criterion, link),
        shared=tuple(shared),
    )


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


def _is_plain(net: NeuralNet, module: nn.Module) -> bool:
    """Whether a forward pass runs nothing but torch's own modules, not in place."""
    torch_hooks = nn.modules.module
    if (
        type(net).infer is not NeuralNet.infer
        or "infer" in vars(net)
        or torch_hooks._global_forward_hooks
        or torch_hooks._global_forward_pre_hooks
    ):
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


def _uncompiled(module: Any) -> Any:
    """Return the plain module behind torch.compile."""
    return getattr(module, "_orig_mod", module)


def _shadow(net: NeuralNet, copies: ModuleCopies) -> NeuralNet:
    """Return a second net on private modules, uncompiled, to call ``infer`` of."""
    # Not copy.copy: skorch pickles the tensors of a net that it copies.
    shadow = object.__new__(type(net))
    shadow.__dict__.update({key: copies.of(value) for key, value in vars(net).items()})
    return shadow


def _check_device(device: Any, name: str) -> None:
    """Raise where a net is meant for a GPU that is not there."""
    if device is None or torch.device(device).type != "cuda":
        return
    if not torch.cuda.is_available():
        raise ValueError(
            f"Expected a device that is available, got device={str(device)!r} of this "
            f"{name}, and torch sees no CUDA device. Move the net with "
            "net.set_params(device='cpu'), or run where there is a GPU."
        )


def _link(net: NeuralNet, criterion: Any) -> str | None:
    """Return what the module applies to its logits, by the net's criterion."""
    if isinstance(criterion, nn.NLLLoss):
        # Only skorch's classifier takes the logarithm of the module's output.
        return "softmax" if isinstance(net, NeuralNetClassifier) else "log_softmax"
    return "sigmoid" if isinstance(criterion, nn.BCELoss) else None
