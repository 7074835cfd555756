"""A module of one's own that shares the parameters of another.

A measurement puts a module into evaluation mode, hooks it, differentiates in its
parameters and replaces weights for a moment. On a copy of the module objects, with the
user's numbers in it, none of that is seen by whoever trains, predicts with or measures
the same model at the same time.
"""

from __future__ import annotations

import functools
import types
import weakref
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

# Hooks that compute a weight before each forward pass, from what may have moved since.
_WEIGHT_HOOKS = (WeightNorm, SpectralNorm, BasePruningMethod)
_HALF = (torch.float16, torch.bfloat16)
# Most attributes of a net; they lead nowhere.
_SIMPLE = frozenset((type(None), bool, int, float, str, torch.device, torch.dtype))


class ModuleCopies:
    """Copies of modules, each of them made once.

    Module objects, training flags, buffers and hooks are new; parameters share the
    memory of the originals, but half precision, which has too few digits for
    curvature, becomes float32. Attributes are shared, except for what in them leads to
    a copied module or parameter. A compiled module is copied without its compilation.

    Attributes
    ----------
    shared : list of torch.nn.Module
        Modules that cannot be copied (TorchScript): they are used as they are.
    is_widened : bool
        Whether some parameter was of half precision.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> module = nn.Sequential(nn.Linear(2, 3), nn.Dropout())
    >>> copy = ModuleCopies().of(module).eval()
    >>> copy[0].weight.data_ptr() == module[0].weight.data_ptr()
    True
    >>> copy[1].training, module[1].training
    (False, True)
    """

    def __init__(self) -> None:
        self.shared: list[nn.Module] = []
        self.is_widened = False
        self._modules: dict[int, nn.Module] = {}
        self._tensors: dict[int, Tensor] = {}
        self._functions: dict[int, types.FunctionType] = {}
        # Originals stay alive as long as their identities are keys.
        self._originals: list[Any] = []

    def of(self, value: Any) -> Any:
        """Copy of a module, or a value in which modules are replaced by copies.

        Parameters
        ----------
        value : Any
            A module, a parameter, or what may hold some.

        Returns
        -------
        copy : Any
            The value itself where it leads to no module.
        """
        if type(value) in _SIMPLE or isinstance(value, Tensor):
            return self._tensors.get(id(value), value)
        if isinstance(value, nn.Module):
            return self._module(value)
        if isinstance(value, types.MethodType):
            owner = self.of(value.__self__)
            if owner is value.__self__:
                return value
            return types.MethodType(value.__func__, owner)
        if type(value) is functools.partial:
            parts = [value.func, value.args, value.keywords]
            func, args, keywords = map(self.of, parts)
            return functools.partial(func, *args, **keywords)
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if type(value) is weakref.ref:
            target = value()
            return value if self.of(target) is target else weakref.ref(self.of(target))
        if type(value) in (list, tuple, set):
            parts = [self.of(part) for part in value]
            same = all(a is b for a, b in zip(parts, value, strict=True))
            return value if same else type(value)(parts)
        if type(value) in (dict, OrderedDict):
            mapped = {key: self.of(part) for key, part in value.items()}
            same = all(mapped[key] is value[key] for key in value)
            return value if same else type(value)(mapped)
        return value

    def _function(self, function: types.FunctionType) -> types.FunctionType:
        """Copy of a function, a patched ``forward`` say, that names a module."""
        known = self._functions.get(id(function))
        if known is not None:
            return known
        # What it names may lead back to the function.
        self._functions[id(function)] = function
        self._originals.append(function)
        cells = function.__closure__ or ()
        try:
            inner = [cell.cell_contents for cell in cells]
        except ValueError:  # Nothing in it yet.
            return function
        own = [self.of(value) for value in inner]
        names = [k for k in function.__code__.co_names if k in function.__globals__]
        outer = {name: function.__globals__[name] for name in names}
        named = {
            name: self.of(value)
            for name, value in outer.items()
            # Functions of libraries name none of the user's modules.
            if not isinstance(value, types.FunctionType)
            or value.__globals__ is function.__globals__
        }
        if any(a is not b for a, b in zip(inner, own, strict=True)) or any(
            value is not outer[name] for name, value in named.items()
        ):
            copy = types.FunctionType(
                function.__code__,
                {**function.__globals__, **named},
                function.__name__,
                function.__defaults__,
                tuple(map(types.CellType, own)),
            )
            copy.__kwdefaults__ = function.__kwdefaults__
            vars(copy).update(vars(function))
            self._functions[id(function)] = copy
        return self._functions[id(function)]

    @property
    def copied_parameters(self) -> frozenset[int]:
        """Identities of the originals, which nothing of the copies should use."""
        return frozenset(
            key for key, copy in self._tensors.items() if isinstance(copy, nn.Parameter)
        )

    def _module(self, module: nn.Module) -> nn.Module:
        """Copy of a module and of those in it."""
        known = self._modules.get(id(module))
        if known is not None:
            return known
        compiled = getattr(module, "_orig_mod", None)
        if isinstance(compiled, nn.Module):
            return self._module(compiled)
        self._originals.append(module)
        if isinstance(module, torch.jit.ScriptModule):
            self.shared.append(module)
            self._modules[id(module)] = module
            return module
        copy: Any = object.__new__(type(module))
        self._modules[id(module)] = copy
        state = vars(module)
        own: dict[str, Any] = {
            "_parameters": {k: self._parameter(p) for k, p in _items(state, 0)},
            "_buffers": {k: self._buffer(b) for k, b in _items(state, 1)},
        }
        # Later attributes may refer to the parameters of submodules.
        own["_modules"] = {
            k: None if m is None else self._module(m) for k, m in _items(state, 2)
        }
        for key, value in state.items():
            own.setdefault(key, self.of(value))
            if "_hooks" in key and own[key] is value:
                # Hooks of a measurement must not be seen on the original.
                own[key] = value.copy()
            if key in ("_backward_hooks", "_backward_pre_hooks"):
                # They change gradients, and not what the module computes.
                own[key] = OrderedDict()
        vars(copy).update({key: own[key] for key in state})
        return copy

    def _parameter(self, parameter: nn.Parameter | None) -> nn.Parameter | None:
        """Parameter of one's own, in the same memory if it is not half precision."""
        if parameter is None:
            return None
        known: Any = self._tensors.get(id(parameter))
        if known is None:
            data = parameter.detach()
            self.is_widened = self.is_widened or data.dtype in _HALF
            known = nn.Parameter(
                data.float() if data.dtype in _HALF else data,
                requires_grad=data.is_floating_point() or data.is_complex(),
            )
            self._tensors[id(parameter)] = known
            self._originals.append(parameter)
        return known

    def _buffer(self, buffer: Tensor | None) -> Tensor | None:
        """Copy of a buffer, which a forward pass may write to."""
        if buffer is None:
            return None
        known = self._tensors.get(id(buffer))
        if known is None:
            data = buffer.detach()
            known = data.float() if data.dtype in _HALF else data.clone()
            self._tensors[id(buffer)] = known
            self._originals.append(buffer)
        return known


def _items(state: dict[str, Any], which: int) -> Any:
    """Items of one of the three tables that torch keeps in a module."""
    return state[("_parameters", "_buffers", "_modules")[which]].items()


def refresh_weights(module: nn.Module) -> None:
    """Compute the weights that hooks leave from the last forward pass.

    Parameters
    ----------
    module : torch.nn.Module
        A private copy in evaluation mode.
    """
    for part in module.modules():
        for hook in getattr(part, "_forward_pre_hooks", {}).values():
            if isinstance(hook, _WEIGHT_HOOKS):
                with torch.no_grad():
                    hook(part, ())


def sharing_memory(module: nn.Module) -> list[nn.Parameter]:
    """Parameters whose memory is also that of another tensor of the module.

    Parameters
    ----------
    module : torch.nn.Module
        The original.

    Returns
    -------
    parameters : list of Parameter
        Those that another parameter, a buffer or an attribute overlaps.
    """
    tensors: dict[int, Tensor] = {}
    for part in module.modules():
        tables: list[Any] = [part._parameters, part._buffers, vars(part)]
        for value in (value for table in tables for value in table.values()):
            parts = value if isinstance(value, list | tuple) else [value]
            tensors.update({id(t): t for t in parts if isinstance(t, Tensor)})
    by_storage: dict[int, list[tuple[int, int, Tensor]]] = {}
    for tensor in tensors.values():
        if tensor.layout is torch.strided and tensor.numel() and not tensor.is_meta:
            spans = zip(tensor.shape, tensor.stride(), strict=True)
            start = int(tensor.storage_offset()) * tensor.element_size()
            length = int(sum((n - 1) * step for n, step in spans)) + 1
            by_storage.setdefault(tensor.untyped_storage().data_ptr(), []).append(
                (start, start + length * tensor.element_size(), tensor)
            )
    return [
        tensor
        for spans in by_storage.values()
        if len(spans) > 1
        for start, stop, tensor in spans
        if isinstance(tensor, nn.Parameter)
        and any(a < stop and start < b for a, b, other in spans if other is not tensor)
    ]
