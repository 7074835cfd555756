"""What a measurement must leave as it was: modules, random states, torch's switches."""

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextmanager
def preserved(module: nn.Module) -> Iterator[None]:
    """Restore a module and the global random states when the block is left.

    Training flags, buffers, gradients, the flags ``requires_grad`` and the states of
    torch (also on the GPU, if it is in use), numpy and random. The values of the
    parameters are not copied.

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
    with ExitStack() as stack:
        stack.callback(_restore_random_states, *_random_states())
        stack.callback(_restore_modules, *_module_states(module))
        yield


@contextmanager
def plain_evaluation(device: torch.device) -> Iterator[None]:
    """Let torch compute by plain formulas, which can be differentiated twice.

    No fused attention, no inference mode, no autocast; the gradient mode stays.

    Parameters
    ----------
    device : torch.device
        Where the model is.
    """
    with ExitStack() as stack:
        stack.callback(
            torch.backends.mha.set_fastpath_enabled,
            torch.backends.mha.get_fastpath_enabled(),
        )
        torch.backends.mha.set_fastpath_enabled(False)
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
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


def _random_states() -> tuple[Any, ...]:
    """Return the global random states of torch, numpy and the standard library."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    numpy = np.random.get_state()  # noqa: NPY002 - the user's global state
    return torch.get_rng_state(), cuda, numpy, random.getstate()


def _restore_random_states(
    cpu: Tensor, cuda: list[Tensor] | None, numpy: Any, python: Any
) -> None:
    """Restore what :func:`_random_states` returned."""
    torch.set_rng_state(cpu)
    if cuda is not None:
        torch.cuda.set_rng_state_all(cuda)
    np.random.set_state(numpy)  # noqa: NPY002 - the user's global state
    random.setstate(python)
