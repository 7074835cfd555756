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

from sklearn_relflat._data.skorch_data import SkorchReader
from sklearn_relflat._losses.table import loss_from_criterion
from sklearn_relflat._models.bare_modules import (
    check_shapes,
    is_plain,
    place_of,
    uncompiled,
)
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
    module = uncompiled(module)
    check_shapes(module, name, "Call 'fit' first")
    _check_device(net.device, name)
    criterion = uncompiled(net.criterion_)
    copies = ModuleCopies()
    shadow, shared, aliased = net, [module], frozenset[int]()
    if not live:
        overlapping = sharing_memory(module)
        shadow = _shadow(net, copies)
        module, shared = shadow.module_, copies.shared
        aliased = frozenset(id(copies.of(parameter)) for parameter in overlapping)
        if not shared:
            refresh_weights(module.eval())
    device, dtype = place_of(module, net.device)
    link = _link(net, criterion)
    plain = _is_plain(shadow, module)
    shadow.__dict__.update({} if live else {"device": device})
    return TorchModel(
        module=module,
        estimator_name=name,
        device=device,
        dtype=dtype,
        forward=shadow.infer,
        read=SkorchReader(net, criterion, device, dtype, share=plain),
        training_loss=partial(loss_from_criterion, criterion),
        link=link,
        is_widened=not live and copies.is_widened,
        is_plain=plain,
        originals=copies.copied_parameters,
        aliased=aliased,
        trained=trained_loss(net, shadow, criterion, link),
        shared=tuple(shared),
    )


def _is_plain(net: NeuralNet, module: nn.Module) -> bool:
    """Whether a forward pass runs nothing but torch's own modules, not in place."""
    own_infer = type(net).infer is NeuralNet.infer and "infer" not in vars(net)
    return own_infer and is_plain(module)


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
