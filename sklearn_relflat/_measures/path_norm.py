"""Path norm: squared weights multiplied along the paths through a network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sklearn_relflat._curvature.linearization import wide
from sklearn_relflat._curvature.problem import Problem, open_problem
from sklearn_relflat._data.inputs import leaves, map_tree, own_copy
from sklearn_relflat._layers.names import ALL_LAYERS
from sklearn_relflat._layers.weights import chosen_weights
from sklearn_relflat._losses.torch_errors import raise_out_of_memory
from sklearn_relflat._measures.measurement import (
    Measurement,
    UndefinedMeasureError,
    measured,
)
from sklearn_relflat._measures.weight_space import Point, WeightSpace


def path_norm(
    estimator: Any,
    X: Any,
    y: Any = None,
    *,
    layer: str | Sequence[str] | None = ALL_LAYERS,
    loss: Any = None,
    sample_weight: Any = None,
) -> Measurement:
    """Sum over all paths through a network of the products of their squared weights.

    Parameters
    ----------
    estimator : estimator
        A fitted model, see `relative_flatness`, that is positively homogeneous without
        its biases: layers, ReLU and its like, pooling, batch normalization.
    X : {array-like, sparse matrix, Tensor, Dataset, dict} of shape (n_samples, ...)
        The sample. It gives the shape of the input, and nothing else.
    y : array-like of shape (n_samples,) or (n_samples, n_outputs), default=None
        Not used; here for the common signature, as are `loss` and `sample_weight`.
    layer : str or sequence of str, default="all"
        The whole network: "all", or the name of its only layer.
    loss : str, torch criterion or callable, default=None
        Not used, but for a bare torch module.
    sample_weight : array-like of shape (n_samples,), default=None
        Not used.

    Returns
    -------
    result : Measurement
        The sum, of squared weights and without a root.

    Raises
    ------
    TypeError
        If a weight is computed from other parameters.
    ValueError
        If a part of the network is asked for, its inputs are no numbers, or it is not
        positively homogeneous.

    See Also
    --------
    inverse_margin : With norms of the single layers.

    Notes
    -----
    The raw outputs are computed of an input of ones, in evaluation mode, with every
    weight replaced by its square and without biases, and summed [1]_:
    ``sum_k f(1; w^2)_k``. Batch normalization counts as the factor
    ``(gain / standard deviation)^2`` of its channel, without its shift. Averages over
    positions stay averages. For activations that leave positive numbers as they are, it
    is the sum over paths of the products of squared weights [2]_. What is not
    positively homogeneous on this input (tanh, layer normalization, attention) is
    refused: the outputs have to become twice as large with the inputs.

    Rescaling layers or neurons without changing the function does not change it.

    References
    ----------
    .. [1] Y. Jiang, B. Neyshabur, H. Mobahi, D. Krishnan, S. Bengio, "Fantastic
       Generalization Measures and Where to Find Them", ICLR 2020, appendix C.
    .. [2] B. Neyshabur, R. Salakhutdinov, N. Srebro, "Path-SGD: Path-Normalized
       Optimization in Deep Neural Networks", NeurIPS 2015.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.neural_network import MLPClassifier
    >>> from sklearn_relflat import path_norm
    >>> X, y = load_iris(return_X_y=True)
    >>> mlp = MLPClassifier((4,), solver="lbfgs", max_iter=2000, random_state=0)
    >>> first, second = mlp.fit(X, y).coefs_
    >>> bool(np.isclose(float(path_norm(mlp, X)), np.sum(first**2 @ second**2)))
    True
    """
    with open_problem(
        estimator,
        X,
        y,
        layer=layer,
        loss=loss,
        sample_weight=sample_weight,
        trusted=False,
    ) as problem:
        return path_norm_of(problem)


def path_norm_of(problem: Problem) -> Measurement:
    """Path norm of an open problem; see `path_norm`."""
    if not is_whole(problem):
        raise ValueError(
            "Expected layer='all' for the path norm, which is one of paths through the "
            f"whole network, got {problem.label!r}."
        )
    space = WeightSpace(problem)
    ones = _ones(problem)
    point = _squared(problem.view.module)
    eps = torch.finfo(problem.view.dtype).eps
    with torch.no_grad():
        value = _sum_of_outputs(space, point, ones)
        # Of equal tokens attention makes an average, which shows no scale.
        for inputs in (ones, map_tree(_varied, ones)):
            once = _sum_of_outputs(space, point, inputs)
            twice = _sum_of_outputs(space, point, map_tree(lambda x: 2 * x, inputs))
            if math.isfinite(twice) and abs(twice - 2 * once) > eps**0.5 * abs(twice):
                raise UndefinedMeasureError(
                    "Expected a network that is positively homogeneous without its "
                    "biases, to sum over its paths, got "
                    f"{problem.view.estimator_name}, whose outputs change from "
                    f"{once:.6g} to {twice:.6g} where the inputs become twice as "
                    "large. Use another norm."
                )
    return measured(problem, "path_norm", value, method="exact")


def is_whole(problem: Problem) -> bool:
    """Tell whether the chosen weights are all that the model has."""

    def names(weights: dict[str, dict[str, nn.Parameter]]) -> set[str]:
        """Names of the parameters, or of modules that compute their weight."""
        return {key for name, part in weights.items() for key in part or [name]}

    return names(problem.weights) == names(chosen_weights(problem.view, None))


def _ones(problem: Problem) -> Any:
    """One sample of ones, in the shape of the data."""
    inputs = problem.source.first(1).inputs
    for name, values in leaves(inputs):
        if not (isinstance(values, Tensor) and values.is_floating_point()):
            kind = values.dtype if isinstance(values, Tensor) else type(values).__name__
            raise UndefinedMeasureError(
                "Expected inputs that are floating numbers, for paths that begin at "
                f"ones, got {kind} in {name}."
            )
    return map_tree(torch.ones_like, inputs)


def _varied(ones: Tensor) -> Tensor:
    """Return numbers between 1 and 2, no two of which are equal."""
    order = torch.arange(ones.numel(), device=ones.device, dtype=torch.float32)
    return ones + (order * 0.6180339887).frac().to(ones.dtype).reshape(ones.shape)


def _squared(module: nn.Module) -> Point:
    """Parameters and buffers that make a module sum over squares."""
    point = {
        f"inner.{name}": torch.zeros_like(parameter)
        if "bias" in name.rpartition(".")[2]
        else parameter.detach().square()
        for name, parameter in module.named_parameters()
    }
    for name, part in module.named_modules():
        if isinstance(part, _BatchNorm):
            key = f"inner.{name}." if name else "inner."
            # Every one keeps statistics: the view has refused others.
            running: Any = part
            # So that what it divides by is the variance, and not its root.
            spread = running.running_var + part.eps
            point[f"{key}running_var"] = spread.square() - part.eps
            point[f"{key}running_mean"] = torch.zeros_like(running.running_mean)
    return point


def _sum_of_outputs(space: WeightSpace, point: Point, inputs: Any) -> float:
    """Sum of the outputs of one sample."""
    try:
        outputs = space.outputs(point, own_copy(inputs))
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise_out_of_memory(error)
        raise UndefinedMeasureError(
            f"Expected {space.problem.view.estimator_name} to take an input of numbers "
            f"from 1 to 4 in the shape of X, for the path norm, got {error!r}."
        ) from error
    return float(wide(outputs).sum())
