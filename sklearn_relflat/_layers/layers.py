"""The weight layers of a model, by name.

The conventions are those of `_layers.kinds`. A layer that is called several times in
one forward pass, or a weight that several modules share, has the columns of all its
calls, one after the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from sklearn_relflat._layers.kinds import LAYER_KINDS, LayerKind, layer_kind, refusal
from sklearn_relflat._models.torch_model import TorchModel
from sklearn_relflat._models.view import lossless_view


@dataclass(frozen=True)
class WeightLayer:
    """A weight matrix of a model and the modules that apply it.

    Attributes
    ----------
    name : str
        Name of the first module that owns the weight.
    aliases : tuple of str
        All names under which the weight is found, `name` first.
    modules : tuple of torch.nn.Module
        The modules that apply it; more than one for tied weights.
    kind : LayerKind
        How its features are unfolded.
    """

    name: str
    aliases: tuple[str, ...]
    modules: tuple[nn.Module, ...]
    kind: LayerKind

    @property
    def weight(self) -> Tensor:
        """Weight as a matrix of shape (n_neurons, n_features), detached."""
        module: Any = self.modules[0]
        weight: Tensor = module.weight
        return weight.detach().flatten(1)

    @property
    def bias(self) -> Tensor | None:
        """Bias of shape (n_neurons,), detached, or None."""
        module: Any = self.modules[0]
        bias: Tensor | None = module.bias
        return None if bias is None else bias.detach()

    @property
    def n_neurons(self) -> int:
        """Number of neurons d."""
        return self.weight.shape[0]

    @property
    def n_features(self) -> int:
        """Number of features m that enter the layer (of the unfolded patch)."""
        return self.weight.shape[1]


def weights_of(layers: dict[str, WeightLayer]) -> dict[int, str]:
    """Names of layers by the identities of the parameters that make their weights."""
    return {
        id(parameter): name
        for name, layer in layers.items()
        for module in layer.modules
        for key, parameter in module.named_parameters()
        if key != "bias"
    }


def _weight_key(module: nn.Module) -> int:
    """Identity of a weight: tied modules share it, parametrized ones do not."""
    parameter = dict(module.named_parameters(recurse=False)).get("weight")
    return id(module) if parameter is None else id(parameter)


def plain_name(name: str) -> str:
    """Strip the prefix from a module name that `torch.compile` adds to submodules."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def weight_layers(view: TorchModel) -> dict[str, WeightLayer]:
    """Supported weight layers of a model, by name; tied weights once.

    Parameters
    ----------
    view : TorchModel
        The model.

    Returns
    -------
    layers : dict of str to WeightLayer
        In the order of ``module.named_modules()``.
    """
    groups: dict[int, list[tuple[str, nn.Module]]] = {}
    for name, module in view.module.named_modules():
        if layer_kind(module) is not None and refusal(module) is None:
            groups.setdefault(_weight_key(module), []).append(
                (plain_name(name), module)
            )
    layers = {}
    for members in groups.values():
        names = tuple(name for name, _ in members)
        kind = layer_kind(members[0][1])
        assert kind is not None
        layers[names[0]] = WeightLayer(
            names[0], names, tuple(module for _, module in members), kind
        )
    return layers


def unsupported_layers(view: TorchModel) -> dict[str, str]:
    """Weight layers that no measure can read, with the reason, by name."""
    reasons = {}
    for name, module in view.module.named_modules():
        reason = refusal(module)
        if reason is not None:
            reasons[plain_name(name)] = reason
    return reasons


def list_layers(estimator: Any) -> list[str]:
    """Names of the weight layers whose relative flatness can be measured.

    Parameters
    ----------
    estimator : estimator
        A fitted model that the package supports.

    Returns
    -------
    names : list of str
        Names to pass as ``layer``, in the order of the model's modules.

    Raises
    ------
    TypeError
        If the estimator is not supported.
    sklearn.exceptions.NotFittedError
        If it is not fitted.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.neural_network import MLPClassifier
    >>> from sklearn_relflat import list_layers
    >>> X, y = load_iris(return_X_y=True)
    >>> mlp = MLPClassifier((8, 4), solver="lbfgs", max_iter=2000, random_state=0)
    >>> list_layers(mlp.fit(X, y))
    ['coefs.0', 'coefs.1', 'coefs.2']
    """
    return list(weight_layers(lossless_view(estimator)))


def find_layer(
    view: TorchModel, name: str | None, known: dict[str, WeightLayer] | None = None
) -> WeightLayer:
    """Weight layer of a given name.

    Parameters
    ----------
    view : TorchModel
        The model.
    name : str
        Name of a module, or of another module that shares its weight.
    known : dict of str to WeightLayer, default=None
        The model's layers, if `weight_layers` was asked before.

    Returns
    -------
    layer : WeightLayer
        The layer.

    Raises
    ------
    ValueError
        If there is no such weight layer; the message lists those there are.
    TypeError
        If the layer is of a kind that is not supported, or the name is no string.
    """
    layers = weight_layers(view) if known is None else known
    if not isinstance(name, str):
        raise TypeError(
            f"Expected layer to be the name of a layer or None, got {name!r}. "
            f"The layers of {view.estimator_name} are {list(layers)}."
        )
    for layer in layers.values():
        if name in layer.aliases:
            return layer
    reason = unsupported_layers(view).get(name)
    if reason is not None:
        supported = ", ".join(cls.__name__ for cls in LAYER_KINDS)
        raise TypeError(
            f"Layer {name!r} of {view.estimator_name} cannot be measured: {reason}. "
            f"Supported are {supported} (groups=1); choose one of {list(layers)}."
        )
    what = (
        "has no weight matrix"
        if name in {plain_name(n) for n, _ in view.module.named_modules()}
        else "does not exist"
    )
    raise ValueError(
        f"Layer {name!r} of {view.estimator_name} {what}. Choose one of {list(layers)}."
    )
