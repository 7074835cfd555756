"""Norms of a model: the Fisher-Rao norm and the squared norm of the weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sklearn_relflat._curvature.linearization import Linearization, wide
from sklearn_relflat._curvature.problem import (
    Problem,
    open_problem,
    risk_of,
)
from sklearn_relflat._layers.capture import capture
from sklearn_relflat._layers.kinds import computes_by_kind
from sklearn_relflat._layers.names import ALL_LAYERS
from sklearn_relflat._measures.matrices import SQUARED_NORMS, weight_matrices
from sklearn_relflat._measures.measurement import Measurement, measured
from sklearn_relflat._measures.weight_space import WeightSpace

_METHODS = ("outputs", "weights")


def fisher_rao_norm(
    estimator: Any,
    X: Any,
    y: Any = None,
    *,
    layer: str | Sequence[str] | None = ALL_LAYERS,
    loss: Any = None,
    method: str = "outputs",
    sample_weight: Any = None,
) -> Measurement:
    """Fisher-Rao norm of the weights.

    Parameters
    ----------
    estimator : estimator
        A fitted model, see `relative_flatness`.
    X : {array-like, sparse matrix, Tensor, Dataset, dict} of shape (n_samples, ...)
        The sample.
    y : array-like of shape (n_samples,) or (n_samples, n_outputs), default=None
        Targets; None only where X is a data set that carries them.
    layer : str or sequence of str, default="all"
        The whole network, as the norm is defined, unlike the other measures; or the
        name of a layer, None for the output layer, a list for some layers.
    loss : str, torch criterion or callable, default=None
        The loss; None is the one that the model was trained with.
    method : {"outputs", "weights"}, default="outputs"
        "outputs" is the formula of Liang et al. in the outputs alone, which holds for
        networks without biases and with positively homogeneous activations. "weights"
        is the definition in the weights themselves, for any network.
    sample_weight : array-like of shape (n_samples,), default=None
        Weights of the samples.

    Returns
    -------
    result : Measurement
        The norm (not its square).

    Raises
    ------
    ValueError
        If `method` is not valid.

    Notes
    -----
    With F the mean over samples of the outer products of the gradients of the loss
    l_i in the weights theta, the norm is ``sqrt(theta^T F theta)``, that is

        sqrt( mean_i <theta, d l_i / d theta>^2 ),        method="weights",
        k * sqrt( mean_i <d l_i / d f_i, f_i>^2 ),        method="outputs",

    where f_i are the raw outputs and k counts the applications of the chosen weight
    layers in a forward pass: L + 1 for a network with L hidden layers. Both are equal
    where f is positively homogeneous of degree one in every layer's weight. Biases do
    not count among the weights. Samples are averaged with the weights that the
    criterion gives them, also if it sums its losses.

    References
    ----------
    .. [1] T. Liang, T. Poggio, A. Rakhlin, J. Stokes, "Fisher-Rao Metric, Geometry, and
       Complexity of Neural Networks", AISTATS 2019, Theorem 3.1.

    Examples
    --------
    A linear model has one layer and is homogeneous, if it has no intercept:

    >>> import numpy as np
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.linear_model import LinearRegression
    >>> from sklearn_relflat import fisher_rao_norm
    >>> X, y = load_diabetes(return_X_y=True)
    >>> model = LinearRegression(fit_intercept=False).fit(X, y)
    >>> f = model.predict(X)
    >>> expected = np.sqrt(np.mean((2 * (f - y) * f) ** 2))
    >>> bool(np.isclose(float(fisher_rao_norm(model, X, y)), expected, rtol=1e-12))
    True
    >>> in_weights = fisher_rao_norm(model, X, y, method="weights")
    >>> bool(np.isclose(float(in_weights), expected, rtol=1e-12))
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
        return fisher_rao_of(problem, method=method)


def fisher_rao_of(problem: Problem, *, method: str = "outputs") -> Measurement:
    """Fisher-Rao norm of an open problem; see `fisher_rao_norm`."""
    if method not in _METHODS:
        raise ValueError(
            f"Expected method to be one of {list(_METHODS)}, got {method!r}."
        )
    squares = _MeanSquare(problem.view.loss.reduction)
    if method == "outputs":
        factor = _n_applications(problem)
        _add_outputs(problem, squares)
    else:
        factor = 1
        plain = problem.forms_suffice and all(
            _is_plain(problem, name) for name in problem.layers
        )
        (_add_weights if plain else _add_parameters)(problem, squares)
    return measured(
        problem,
        "fisher_rao_norm",
        factor * squares.root(problem),
        method=method,
        mean_loss=squares.loss / problem.denominator(squares.mass),
    )


def _n_applications(problem: Problem) -> int:
    """Count the applications of the chosen weights in a forward pass."""
    calls, look = problem.plan.n_calls, problem.plan.look
    unknown = sorted(
        name
        for name in problem.weights
        if name not in calls
        or name not in problem.layers
        # Counting takes no derivatives: a layer without graph counts like any other.
        or (
            name in problem.refusals
            and not (name in look.cut and _is_plain(problem, name))
        )
    )
    if unknown:
        raise ValueError(
            "Expected weights that are applied by linear or convolutional layers, to "
            f"count their applications, got {unknown}. Use method='weights', the "
            "definition of the norm, which counts nothing."
        )
    return sum(calls[name] for name in problem.weights)


def _is_plain(problem: Problem, name: str) -> bool:
    """Whether the modules of a layer compute what their kind does."""
    return all(computes_by_kind(module) for module in problem.layers[name].modules)


class _MeanSquare:
    """Mean over samples of the squares of <theta, d l_i / d theta>.

    The empirical risk is the mean of l_i = value_i / denominator_i with the weights
    s_i denominator_i; a criterion that sums has denominators of one.
    """

    def __init__(self, reduction: str) -> None:
        self.is_sum = reduction == "sum"
        self.squares = 0.0
        self.mass = 0.0
        self.loss = 0.0

    def add(
        self, inner: Tensor, value: Tensor, denominator: Tensor, weight: Tensor
    ) -> None:
        """Add one chunk, given products with the gradients of value_i."""
        if self.is_sum:
            denominator = torch.ones_like(denominator)
        counts = (denominator > 0) & (weight > 0)
        inner, denominator = inner[counts], denominator[counts]
        weight = weight[counts]
        self.squares += float((weight * inner.square() / denominator).sum())
        self.mass += float((weight * denominator).sum())
        self.loss += float((weight * value[counts]).sum())

    def root(self, problem: Problem) -> float:
        """Root of the mean."""
        total = self.mass
        if not total > 0:
            total = problem.denominator(total)  # raises, saying why
        return math.sqrt(self.squares / total)


def _add_outputs(problem: Problem, squares: _MeanSquare) -> None:
    """Add <d l_i / d f_i, f_i> of all samples, from forward passes alone."""
    loss = problem.view.loss
    with torch.no_grad():
        for batch in problem.source:
            outputs = wide(problem.view.outputs(batch.inputs))
            value, denominator, weight, targets = risk_of(problem, batch, outputs)
            inner = (loss.gradient(outputs, targets) * outputs).flatten(1).sum(1)
            squares.add(inner, value, denominator, weight)


def _add_weights(problem: Problem, squares: _MeanSquare) -> None:
    """Add <w, d l_i / d w> of all samples, from one backward pass."""
    loss, layers = problem.view.loss, problem.layers
    with capture(problem.view, layers, differentiable=True) as seen:
        for batch in problem.chunks():
            with torch.no_grad():
                lin = Linearization(
                    problem.view, batch, seen, layers, problem.plan.look
                )
                pulled = lin.pull_back(lin.gradient())
                inner = lin.weight.new_zeros(lin.n_samples)
                for name, calls in lin.calls.items():
                    for call, cotangent in zip(calls, pulled[name], strict=True):
                        # w Phi, without forming it again.
                        z = call.rows(call.preactivations.detach())
                        # Modules that share a weight need not share their bias.
                        bias = dict(call.module.named_parameters()).get("bias")
                        if bias is not None:
                            z = z - bias.detach()[:, None]
                        rows = call.rows(cotangent)
                        inner += (wide(rows) * wide(z)).sum((1, 2))
                value = loss.value(lin.wide_outputs, lin.targets)
                denominator = loss.denominator(lin.wide_outputs, lin.targets)
                squares.add(inner, value, denominator, lin.weight)


def _add_parameters(problem: Problem, squares: _MeanSquare) -> None:
    """Add <theta, d l_i / d theta> of all samples, for weights of any kind.

    The derivative of the outputs along theta is that, in a cotangent, of the inner
    product of theta with what the cotangent pulls back to.
    """
    loss, space = problem.view.loss, WeightSpace(problem)
    space.check_reached()
    for batch in problem.chunks():
        leaves = {k: w.detach().requires_grad_() for k, w in space.weights.items()}
        with torch.enable_grad():
            outputs = space.outputs(leaves, batch.inputs)
            cotangent = torch.zeros_like(outputs).requires_grad_()
            pulled = torch.autograd.grad(
                outputs,
                [*leaves.values()],
                cotangent,
                create_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )
            inner = torch.stack(
                [
                    (g * w.detach()).sum()
                    for g, w in zip(pulled, leaves.values(), strict=True)
                ]
            )
            (along,) = torch.autograd.grad(
                inner.sum(), cotangent, materialize_grads=True
            )
        with torch.no_grad():
            found = wide(outputs.detach())
            value, denominator, weight, targets = risk_of(problem, batch, found)
            slope = loss.gradient(found, targets)
            products = (slope * wide(along)).flatten(1).sum(1)
            squares.add(products, value, denominator, weight)


def weight_norm(
    estimator: Any,
    X: Any,
    y: Any = None,
    *,
    layer: str | Sequence[str] | None = None,
    loss: Any = None,
    sample_weight: Any = None,
) -> Measurement:
    """Squared Euclidean norm of the weights.

    Parameters
    ----------
    estimator : estimator
        A fitted model, see `relative_flatness`.
    X : {array-like, sparse matrix, Tensor, Dataset, dict} of shape (n_samples, ...)
        The sample. Its first samples tell which layer is the output layer; the norm
        does not depend on them.
    y : array-like of shape (n_samples,) or (n_samples, n_outputs), default=None
        Not used; here for the common signature, as are `loss` and `sample_weight`.
    layer : str or sequence of str, default=None
        Name of a layer; None is the output layer, "all" the weights of all layers
        together. Biases are never part of the norm.
    loss : str, torch criterion or callable, default=None
        Not used.
    sample_weight : array-like of shape (n_samples,), default=None
        Not used.

    Returns
    -------
    result : Measurement
        The sum of the squared weights.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.linear_model import LinearRegression
    >>> from sklearn_relflat import weight_norm
    >>> X, y = load_diabetes(return_X_y=True)
    >>> model = LinearRegression().fit(X, y)
    >>> bool(np.isclose(float(weight_norm(model, X)), np.sum(model.coef_**2)))
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
        return weight_norm_of(problem)


def weight_norm_of(problem: Problem) -> Measurement:
    """Squared norm of an open problem's weights; see `weight_norm`."""
    value = sum(SQUARED_NORMS["frobenius"](w) for w in weight_matrices(problem))
    return measured(problem, "weight_norm", value, method="exact")
