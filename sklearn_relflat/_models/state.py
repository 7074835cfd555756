"""What a measurement must leave as it was, where it cannot work on a copy."""

import threading
import weakref
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

_LOCKS: "weakref.WeakKeyDictionary[nn.Module, threading.RLock]" = (
    weakref.WeakKeyDictionary()
)
_LOCKS_LOCK = threading.Lock()


@contextmanager
def preserved(module: nn.Module) -> Iterator[None]:
    """Restore a module when the block is left, one thread at a time.

    Training flags, buffers, gradients and the flags ``requires_grad``. The values of
    the parameters are not copied.

    Parameters
    ----------
    module : torch.nn.Module
        What is used inside.

    Examples
    --------
    >>> import torch
    >>> norm = torch.nn.BatchNorm1d(1)
    >>> with preserved(norm):
    ...     _ = norm(torch.tensor([[1.0], [3.0]]))
    ...     _ = norm.eval()
    >>> norm.training, norm.running_mean
    (True, tensor([0.]))
    """
    with _LOCKS_LOCK:
        lock = _LOCKS.setdefault(module, threading.RLock())
    with lock, ExitStack() as stack:
        stack.callback(_restore_modules, *_module_states(module))
        yield


@contextmanager
def differentiable(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Let the graph begin at the parameters of some modules, frozen ones too."""
    with _requiring_grad(modules, True):
        yield


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Let no graph begin at the parameters of a private module."""
    with _requiring_grad([module], False):
        yield


@contextmanager
def _requiring_grad(modules: Iterable[nn.Module], flag: bool) -> Iterator[None]:
    """Set the flag of the parameters of some modules in a block."""
    changed = [
        parameter
        for module in modules
        for parameter in module.parameters()
        if parameter.is_floating_point() and parameter.requires_grad is not flag
    ]
    for parameter in changed:
        parameter.requires_grad_(flag)
    try:
        yield
    finally:
        for parameter in changed:
            parameter.requires_grad_(not flag)


@contextmanager
def plain_evaluation(device: torch.device) -> Iterator[None]:
    """Compute without inference mode and autocast; the gradient mode stays.

    Parameters
    ----------
    device : torch.device
        Where the model is.
    """
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            # Leaving inference mode switches gradients on; the caller decides.
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.set_grad_enabled(False))
        stack.enter_context(torch.autocast(device.type, enabled=False))
        yield


def _module_states(module: nn.Module) -> tuple[Any, ...]:
    """Return training flags, buffers with copies, gradients and their flags."""
    layers = []
    for layer in module.modules():
        buffers = dict(layer._buffers.items())
        copies = {k: b.detach().clone() for k, b in buffers.items() if b is not None}
        layers.append((layer, layer.training, buffers, copies))
    parameters = [(p, p.grad, p.requires_grad) for p in module.parameters()]
    return layers, parameters


def _restore_modules(layers: Any, parameters: Any) -> None:
    """Restore what :func:`_module_states` returned."""
    for layer, training, buffers, copies in layers:
        layer.training = training
        for name, copy in copies.items():
            if not torch.equal(buffers[name], copy):
                with torch.no_grad():
                    buffers[name].copy_(copy)
        # A module may also have added a buffer, or replaced one by another tensor.
        for name, buffer in list(layer._buffers.items()):
            if name not in buffers:
                del layer._buffers[name]
            elif buffer is not buffers[name]:
                layer._buffers[name] = buffers[name]
    for parameter, gradient, requires_grad in parameters:
        parameter.grad = gradient
        parameter.requires_grad_(requires_grad)
