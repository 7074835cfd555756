"""How far training has moved the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sklearn_relflat._curvature.linearization import wide
from sklearn_relflat._curvature.problem import Problem, open_problem
from sklearn_relflat._layers.layers import plain_name
from sklearn_relflat._measures.matrices import SQUARED_NORMS, check_norm
from sklearn_relflat._measures.measurement import Measurement, measured
from sklearn_relflat._models.view import lossless_view


def distance_to_initialization(
    estimator: Any,
    X: Any,
    y: Any = None,
    *,
    layer: str | Sequence[str] | None = None,
    loss: Any = None,
    initial: Any,
    norm: str = "frobenius",
    sample_weight: Any = None,
) -> Measurement:
    """Squared distance of the weights to those that training began with.

    Parameters
    ----------
    estimator : estimator
        A fitted model, see `relative_flatness`.
    X : {array-like, sparse matrix, Tensor, Dataset, dict} of shape (n_samples, ...)
        The sample. Its first samples tell which layer is the output layer; the distance
        does not depend on them.
    y : array-like of shape (n_samples,) or (n_samples, n_outputs), default=None
        Not used; here for the common signature, as are `loss` and `sample_weight`.
    layer : str or sequence of str, default=None
        Name of a layer; None is the output layer, "all" the weights of all layers
        together. Biases do not count.
    loss : str, torch criterion or callable, default=None
        Not used, but for a bare torch module.
    initial : dict of str to array, torch.nn.Module or estimator
        The weights before training: a copy of the module's ``state_dict()``, a module,
        or a model of the same kind as `estimator`, for example a net after
        ``initialize()``.
    norm : {"frobenius", "spectral"}, default="frobenius"
        Norm of the difference of each weight, as a matrix.
    sample_weight : array-like of shape (n_samples,), default=None
        Not used.

    Returns
    -------
    result : Measurement
        ``sum_j ||W_j - W_j^0||^2`` over the weight matrices.

    Raises
    ------
    TypeError
        If a weight is computed from other parameters, or `initial` is nothing of that
        kind.
    ValueError
        If `initial` lacks a weight, or has it in another shape.

    See Also
    --------
    weight_norm : The distance to zero.

    References
    ----------
    .. [1] Y. Jiang, B. Neyshabur, H. Mobahi, D. Krishnan, S. Bengio, "Fantastic
       Generalization Measures and Where to Find Them", ICLR 2020, appendix C.
    .. [2] V. Nagarajan, J. Z. Kolter, "Generalization in Deep Networks: The Role of
       Distance from Initialization", 2019.

    Examples
    --------
    >>> import copy
    >>> import numpy as np
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import SGDClassifier
    >>> from sklearn_relflat import distance_to_initialization
    >>> X, y = load_iris(return_X_y=True)
    >>> model = SGDClassifier(loss="log_loss", random_state=0).fit(X, y)
    >>> initial = copy.deepcopy(model)
    >>> distance = distance_to_initialization(
    ...     model.partial_fit(X, y), X, initial=initial
    ... )
    >>> expected = np.square(model.coef_ - initial.coef_).sum()
    >>> bool(np.isclose(float(distance), expected))
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
        return distance_of(problem, initial=initial, norm=norm)


def distance_of(
    problem: Problem, *, initial: Any, norm: str = "frobenius"
) -> Measurement:
    """Distance of an open problem's weights; see `distance_to_initialization`."""
    check_norm(norm)
    state = _state(initial)
    value = 0.0
    for layer, part in problem.weights.items():
        if not part:
            raise TypeError(
                f"The weight of layer {layer!r} is computed from other parameters, so "
                "that it has no initial value of its own. Name other layers."
            )
        for name, weight in part.items():
            start = _start(state, plain_name(name), weight)
            moved = wide(weight.detach()) - wide(start.to(weight))
            value += SQUARED_NORMS[norm](moved.flatten(1))
    method = "exact" if norm == "frobenius" else "spectral"
    return measured(problem, "distance_to_initialization", value, method=method)


def _state(initial: Any) -> dict[str, Any]:
    """Return the initial parameters by name."""
    if not isinstance(initial, Mapping):
        module = lossless_view(initial).module
        initial = dict(module.named_parameters(remove_duplicate=False))
    return {plain_name(str(name)): values for name, values in initial.items()}


def _start(state: dict[str, Any], name: str, weight: Tensor) -> Tensor:
    """Return the initial value of one weight, after a look at its shape."""
    if name not in state:
        raise ValueError(
            f"Expected initial to have the weight {name!r}, got {list(state)}. Pass "
            "the state, or a copy of the model, from before the training."
        )
    values = state[name]
    start = values if isinstance(values, Tensor) else torch.as_tensor(np.array(values))
    if start.shape != weight.shape:
        raise ValueError(
            f"Expected {name!r} of shape {tuple(weight.shape)} in initial, got shape "
            f"{tuple(start.shape)}: it is of another model."
        )
    return start.detach()
