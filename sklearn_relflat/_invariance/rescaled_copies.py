"""Rescaled copies of a model, and the check that their function is the same.

Conventions
-----------
A layer's output is multiplied by positive factors, and the columns of the next weight
layer that read it are divided by them. What multiplies the output is the last affine
map before the activation: the weight and bias of the layer, or those of a
normalization behind it. This leaves the function as it is where everything in between
is positively homogeneous (ReLU, leaky ReLU, pooling) and nothing else reads the output;
both are checked on the outputs of original and copy, not on names of modules.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from skorch import NeuralNet
from torch import Tensor, nn

from sklearn_relflat._curvature.linearization import wide
from sklearn_relflat._data.inputs import is_finite, own_copy
from sklearn_relflat._layers.call_order import CallOrder, probe_inputs, trace_calls
from sklearn_relflat._layers.kinds import how_to_remove
from sklearn_relflat._layers.layers import WeightLayer, find_layer
from sklearn_relflat._models.torch_model import TorchModel
from sklearn_relflat._models.view import lossless_view

# How far outputs may move by round-off, relative to the largest of them.
_TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4}
_LOW_PRECISION = 5e-2


def output_change(estimator: Any, other: Any, X: Any = None) -> float:
    """Tell how far the outputs of two models are apart.

    Parameters
    ----------
    estimator, other : estimator
        Fitted models with inputs and outputs of the same shapes.
    X : array-like, default=None
        Samples. None draws random inputs, which takes a model whose first layer is
        linear.

    Returns
    -------
    change : float
        Largest difference between raw outputs, relative to the largest output of
        `estimator`.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.neural_network import MLPClassifier
    >>> from sklearn_relflat import output_change, reparameterize_layers
    >>> X, y = load_iris(return_X_y=True)
    >>> mlp = MLPClassifier(
    ...     (8,), activation="tanh", solver="lbfgs", max_iter=2000, random_state=0
    ... ).fit(X, y)
    >>> other = reparameterize_layers(mlp, {"coefs.0": 2.0}, tol=float("inf"))
    >>> output_change(mlp, mlp, X), output_change(mlp, other, X) > 0.1
    (0.0, True)
    """
    view = lossless_view(estimator)
    return _change(view, lossless_view(other), probe_inputs(view, X))


def rescaled_copy(
    estimator: Any,
    factors: dict[str, Any],
    X: Any,
    tol: float | None,
    *,
    before: bool = False,
) -> Any:
    """Rescale the outputs of layers in a copy of an estimator.

    Parameters
    ----------
    estimator : estimator
        A fitted model.
    factors : dict of str to float or array-like of shape (n_neurons,)
        Factors by the names of the layers.
    X : array-like or None
        Samples on which original and copy are compared.
    tol : float or None
        How far the outputs may move.
    before : bool
        Whether the factors are of what the named layers read.

    Returns
    -------
    copy : estimator
        With the same function.

    Raises
    ------
    ValueError
        If the function changes.
    """
    view = lossless_view(estimator)
    if view.is_widened:
        raise ValueError(
            f"Expected parameters of single or double precision, got a "
            f"{view.estimator_name} in half precision, which cannot hold rescaled "
            "weights. Convert it with net.module_.float()."
        )
    inputs = probe_inputs(view, X)
    order = trace_calls(view, inputs)
    steps = []
    for name, values in factors.items():
        found = find_layer(view, name).name
        producer = order.before(found) if before else found
        steps.append((producer, _positive(values, order.layers[producer], name)))
    result = copy_estimator(estimator)
    twin = lossless_view(result)
    with torch.no_grad():
        for producer, values in steps:
            _rescale(twin, order, producer, values)
    for name, parameter in twin.module.named_parameters():
        if not is_finite(parameter):
            raise ValueError(
                f"Expected finite weights after rescaling, got infinity in {name!r}: "
                f"the factors overflow. Choose factors closer to one than {factors!r}."
            )
    change = _change(view, twin, inputs)
    allowed = _TOLERANCES.get(view.dtype, _LOW_PRECISION) if tol is None else tol
    if not change <= allowed:
        between = {producer: order.between(producer) for producer, _ in steps}
        raise ValueError(
            f"Expected the outputs to stay, got a relative change of {change:.2g} "
            f"(allowed: {allowed:.2g}). What lies between the rescaled layers and the "
            f"next ones is not positively homogeneous (modules: {between}), or "
            "something else reads their outputs. Rescale around ReLU-like activations, "
            "or pass "
            'tol=float("inf") to get the copy in spite of it, and measure with '
            "output_change how far its function moved."
        )
    return result


def copy_estimator(estimator: Any) -> Any:
    """Deep copy of a fitted estimator, whatever it wraps.

    Parameters
    ----------
    estimator : estimator
        Any supported model.

    Returns
    -------
    copy : estimator
        Shares nothing with the original.
    """
    memo: dict[int, Any] = {}
    for net in _nets(estimator):
        # copy.deepcopy pickles the tensors of a net, which fails for a module whose
        # class is local to a function or a notebook; copying its attributes does not.
        twin = object.__new__(type(net))
        memo[id(net)] = twin
        twin.__dict__.update(copy.deepcopy(vars(net), memo))
    return copy.deepcopy(estimator, memo)


def _nets(estimator: Any) -> list[NeuralNet]:
    """Nets inside of whatever wraps them."""
    if isinstance(estimator, NeuralNet):
        return [estimator]
    inner = [
        getattr(estimator, name)
        for name in (
            "estimator",
            "estimator_",
            "best_estimator_",
            "regressor",
            "regressor_",
        )
        if hasattr(estimator, name)
    ]
    inner += getattr(estimator, "calibrated_classifiers_", [])
    inner += [step for _, step in getattr(estimator, "steps", [])]
    return [net for part in inner for net in _nets(part)]


# ---------------------------------------------------------------------------
# Rescaling
# ---------------------------------------------------------------------------
def _positive(values: Any, producer: WeightLayer, name: str) -> Tensor:
    """Factors of a layer's neurons, (n_neurons,), checked."""
    array = np.asarray(values, dtype=np.float64)
    n = producer.n_neurons
    if array.shape not in {(), (n,)}:
        raise ValueError(
            f"Expected {n} factors, one for each neuron of layer {producer.name!r}, or "
            f"a single one, got shape {array.shape!r} for layer {name!r}."
        )
    if not (np.isfinite(array).all() and (array > 0).all()):
        raise ValueError(
            f"Expected positive factors, got {values!r} for layer {name!r}: "
            "activations such as ReLU commute with positive factors only."
        )
    return torch.from_numpy(np.broadcast_to(array, n).copy())


def _rescale(
    twin: TorchModel, order: CallOrder, producer: str, factors: Tensor
) -> None:
    """Multiply a layer's neurons in a copy; divide what the next layer reads."""
    consumer = order.after(producer)
    modules = dict(twin.module.named_modules())
    carrier = modules[order.carrier(producer)]
    _multiply(carrier, "weight", factors, order.carrier(producer))
    if getattr(carrier, "bias", None) is not None:
        _multiply(carrier, "bias", factors, order.carrier(producer))
    target = find_layer(twin, consumer)
    n_columns, n_neurons = target.n_features, len(factors)
    if n_columns % n_neurons:
        raise ValueError(
            f"Expected layer {consumer!r} to read the {n_neurons} neurons of layer "
            f"{producer!r}, got {n_columns} features. They are no neighbours."
        )
    # Unfolded patches and flattened channels keep a channel's columns together.
    columns = factors.repeat_interleave(n_columns // n_neurons)
    weight = _parameter(target.modules[0], "weight", consumer)
    flat = wide(weight.flatten(1)) / columns.to(weight.device)
    weight.copy_(flat.reshape(weight.shape).to(weight.dtype))


def _multiply(module: nn.Module, name: str, factors: Tensor, where: str) -> None:
    """Multiply the rows of a parameter in place."""
    parameter = _parameter(module, name, where)
    shape = [-1] + [1] * (parameter.dim() - 1)
    product = wide(parameter) * factors.to(parameter.device).reshape(shape)
    parameter.copy_(product.to(parameter.dtype))


def _parameter(module: nn.Module, name: str, where: str) -> Tensor:
    """Parameter of a module, or why there is none."""
    parameter = dict(module.named_parameters(recurse=False)).get(name)
    if parameter is None:
        raise TypeError(
            f"The {name} of module {where!r} is computed from other parameters, so "
            f"that it cannot be rescaled. {how_to_remove(module, name)} first."
        )
    return parameter


def _change(view: TorchModel, other: TorchModel, inputs: Any) -> float:
    """Largest difference of outputs, relative to the largest output."""
    with torch.no_grad():
        with view.measuring():
            before = wide(view.outputs(own_copy(inputs)))
        with other.measuring():
            after = wide(other.outputs(own_copy(inputs)))
    if before.shape != after.shape:
        raise ValueError(
            "Expected two models with outputs of one shape, got "
            f"{tuple(before.shape)} of {view.estimator_name} and {tuple(after.shape)} "
            f"of {other.estimator_name}. Compare models for the same targets."
        )
    scale = float(before.abs().max())
    change = float((after - before).abs().max())
    if not np.isfinite(scale) or not np.isfinite(change):
        raise ValueError(
            f"Expected finite outputs, got {scale!r} and a change of {change!r}: the "
            "model diverged, or its factors overflow in the forward pass."
        )
    return change / scale if scale else change
