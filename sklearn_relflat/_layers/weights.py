"""The weights of a module as parameters, whatever its layers compute with them.

Weights are floating parameters of two or more dimensions: matrices and kernels of any
kind of module, embeddings and packed projections among them. Biases, and the gains of
normalizations, have one.
"""

from __future__ import annotations

from torch import Tensor, nn

from sklearn_relflat._layers.layers import plain_name
from sklearn_relflat._models.torch_model import TorchModel

Weights = dict[str, nn.Parameter]


def chosen_weights(view: TorchModel, names: list[str] | None) -> dict[str, Weights]:
    """Weights by the names of layers or parameters.

    Parameters
    ----------
    view : TorchModel
        The model.
    names : list of str or None
        Names of modules, whose own weights are meant, or of parameters; None for all
        weights of the model.

    Returns
    -------
    weights : dict of str to dict of str to Parameter
        By the names asked for, or by module: parameters by their names in the module of
        the view. Tied ones are there once, under their first name; a weight that is
        computed from others has none.

    Raises
    ------
    ValueError
        If there is no such module or parameter.
    """
    own = {id(p): name for name, p in view.module.named_parameters()}
    modules = {
        plain_name(name): module
        for name, module in view.module.named_modules(remove_duplicate=False)
        # Of a parametrized weight, the parts are no weights of their own.
        if ".parametrizations" not in f".{name}"
    }
    if names is None:
        found: dict[str, Weights] = {}
        for name, module in modules.items():
            seen = {key for weights in found.values() for key in weights}
            mine = _weights_of(module, own)
            if is_computed(module) or set(mine) - seen:
                found[name] = {k: p for k, p in mine.items() if k not in seen}
        return found
    parameters = {
        plain_name(name): parameter
        for name, parameter in view.module.named_parameters(remove_duplicate=False)
    }
    found = {}
    for name in names:
        module = modules.get(name)
        if module is not None:
            found[name] = _weights_of(module, own)
        elif name in parameters:
            found[name] = {own[id(parameters[name])]: parameters[name]}
        if not found.get(name) and not (module is not None and is_computed(module)):
            what = "does not exist" if module is None else "has no weight"
            raise ValueError(
                f"Layer {name!r} of {view.estimator_name} {what}. Choose one of "
                f"{[*chosen_weights(view, None)]}, or the name of a parameter."
            )
    return found


def is_computed(module: nn.Module) -> bool:
    """Whether the weight of a module is computed from other parameters."""
    weight = getattr(module, "weight", None)
    return (
        isinstance(weight, Tensor)
        and weight.dim() > 1
        and "weight" not in dict(module.named_parameters(recurse=False))
        and "weight" not in dict(module.named_buffers(recurse=False))
    )


def _weights_of(module: nn.Module, own: dict[int, str]) -> Weights:
    """Weights that a module itself owns; none where they are computed."""
    if is_computed(module):
        return {}
    return {
        own[id(parameter)]: parameter
        for parameter in module.parameters(recurse=False)
        if parameter.dim() > 1 and parameter.is_floating_point()
    }
