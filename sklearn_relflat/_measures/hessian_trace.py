"""Trace of the Hessian in a layer's weight, or in all weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import numpy as np

from sklearn_relflat._curvature.estimate import (
    MAX_EXACT_PASSES,
    FormEstimator,
    Settings,
    widening,
)
from sklearn_relflat._curvature.problem import Problem, open_problem
from sklearn_relflat._curvature.quadratic_forms import QuadraticForm, identity_form
from sklearn_relflat._layers.weights import Weights
from sklearn_relflat._measures.hessian_products import HessianProducts
from sklearn_relflat._measures.measurement import Measurement, measured
from sklearn_relflat._measures.weight_space import WeightSpace

# Random directions before the error is looked at for the first time.
_FIRST_PROBES = 16


def hessian_trace(
    estimator: Any,
    X: Any,
    y: Any = None,
    *,
    layer: str | Sequence[str] | None = None,
    loss: Any = None,
    curvature: str = "hessian",
    method: str = "auto",
    rtol: float = 0.01,
    sample_weight: Any = None,
    random_state: Any = None,
) -> Measurement:
    """Trace of the Hessian of the mean loss in the weights.

    Parameters
    ----------
    estimator : estimator
        A fitted model, see `relative_flatness`.
    X : {array-like, sparse matrix, Tensor, Dataset, dict} of shape (n_samples, ...)
        The sample.
    y : array-like of shape (n_samples,) or (n_samples, n_outputs), default=None
        Targets; None only where X is a data set that carries them.
    layer : str or iterable of str, default=None
        Name of a layer, of any kind, or of a parameter; None is the output layer, "all"
        stands for all weights of the model together, several names for theirs. Weights
        are parameters of two or more dimensions: biases are never part of the trace.
    loss : str, torch criterion or callable, default=None
        The loss; None is the one that the model was trained with.
    curvature : {"hessian", "gauss_newton"}, default="hessian"
        The Hessian, or its Gauss-Newton part.
    method : {"auto", "exact", "sampled"}, default="auto"
        As in `relative_flatness`: "auto" is exact unless outputs or neurons are too
        many for that.
    rtol : float, default=0.01
        Relative standard error of every layer's trace at which sampling stops.
    sample_weight : array-like of shape (n_samples,), default=None
        Weights of the samples.
    random_state : int, RandomState instance or None, default=None
        Seed of the sampling.

    Returns
    -------
    result : Measurement
        The trace. For several layers it is the sum of their traces, the trace of the
        Hessian in their weights together; its standard error is then the sum of
        theirs, an upper bound, because the layers share the random draws. Weights whose
        layers are no linear maps of a known kind take a Hessian-vector product each
        (`method` is "columns"), or random ones if they are many ("hutchinson").

    See Also
    --------
    relative_flatness : Weighs the blocks of the Hessian by the products of neurons,
        which makes it invariant to rescaling layers; the trace is not.

    Notes
    -----
    The trace costs what the relative flatness costs: no Hessian is formed, and no
    random vectors are needed where the Gauss-Newton factors can be enumerated.

    Examples
    --------
    For least squares, the Hessian is 2 / n X^T X:

    >>> import numpy as np
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.linear_model import LinearRegression
    >>> from sklearn_relflat import hessian_trace
    >>> X, y = load_diabetes(return_X_y=True)
    >>> trace = hessian_trace(LinearRegression().fit(X, y), X, y)
    >>> bool(np.isclose(float(trace), 2 / len(X) * np.sum(X**2), rtol=1e-12))
    True
    """
    with open_problem(
        estimator,
        X,
        y,
        layer=layer,
        loss=loss,
        sample_weight=sample_weight,
        random_state=random_state,
        trusted=False,
    ) as problem:
        return trace_of(problem, curvature=curvature, method=method, rtol=rtol)


def trace_of(
    problem: Problem,
    *,
    curvature: str = "hessian",
    method: str = "auto",
    rtol: float = 0.01,
) -> Measurement:
    """Hessian trace of an open problem; see `hessian_trace`."""
    check_options(curvature, method, rtol)
    sound = [
        layer
        for name, layer in problem.layers.items()
        if name in problem.weights and name not in problem.refusals
    ]
    options = {"curvature": curvature, "method": method}
    forms = [identity_form(layer) for layer in sound]
    parts = form_values(problem, forms, **options, rtol=rtol) if forms else []
    known = {layer.name for layer in sound}
    rest = {key: w for key, w in problem.weights.items() if key not in known}
    if rest:
        parts.append(_trace_in_parameters(problem, rest, **options, rtol=rtol))
    return sum_of_forms(problem, "hessian_trace", parts)


def _trace_in_parameters(
    problem: Problem,
    weights: dict[str, Weights],
    *,
    curvature: str,
    method: str,
    rtol: float,
) -> FormValue:
    """Trace in weights of which it is not known what their layers compute."""
    if curvature != "hessian":
        raise ValueError(
            f"Expected curvature='hessian' for the weights of {sorted(weights)}, whose "
            f"layers are no linear maps that are known, got {curvature!r}. Choose "
            "other layers, or take the Hessian."
        )
    space = WeightSpace(replace(problem, layers={}, weights=weights))
    hessian = HessianProducts(space)
    n = space.n_weights
    if method != "sampled" and n <= MAX_EXACT_PASSES:
        value = float(hessian.matrix().trace())
        return FormValue(value, 0.0, "columns", hessian.mean_loss)
    rng = np.random.default_rng(problem.seed)
    values: list[float] = []
    look = _FIRST_PROBES
    # Hutchinson's estimate: random signs have the least variance of all directions.
    while True:
        signs = hessian.vector(rng.choice([-1.0, 1.0], size=n))
        values.append(float(signs @ hessian(signs)))
        k = len(values)
        if k < look:
            continue
        error = float(np.std(values, ddof=1) / math.sqrt(k)) * widening(k - 1)
        mean = float(np.mean(values))
        if error <= rtol * abs(mean) or k >= MAX_EXACT_PASSES:
            return FormValue(mean, error, "hutchinson", hessian.mean_loss)
        look = min(2 * look, MAX_EXACT_PASSES)


@dataclass(frozen=True)
class FormValue:
    """Value of a quadratic form in the Hessian, and how it was obtained."""

    value: float
    stderr: float
    method: str
    mean_loss: float


def check_options(curvature: str, method: str, rtol: float) -> None:
    """Raise where an option is not valid."""
    for name, value, allowed in (
        ("curvature", curvature, ("hessian", "gauss_newton")),
        ("method", method, ("auto", "exact", "sampled")),
    ):
        if value not in allowed:
            raise ValueError(
                f"Expected {name} to be one of {list(allowed)}, got {value!r}."
            )
    if not (isinstance(rtol, Real) and float(rtol) >= 0):
        raise ValueError(f"Expected rtol to be a number of at least 0, got {rtol!r}.")


def form_values(
    problem: Problem,
    forms: list[QuadraticForm],
    *,
    curvature: str = "hessian",
    method: str = "auto",
    rtol: float = 0.01,
) -> list[FormValue]:
    """Values of quadratic forms in the Hessian of the mean loss, from one pass.

    Parameters
    ----------
    problem : Problem
        The model and its data.
    forms : list of QuadraticForm
        Forms of its layers.
    curvature : {"hessian", "gauss_newton"}
        Which matrix.
    method : {"auto", "exact", "sampled"}
        How.
    rtol : float
        Relative standard error of every form at which sampling stops.

    Returns
    -------
    values : list of FormValue
        One per form.

    Raises
    ------
    ValueError
        If an option is not valid.
    """
    check_options(curvature, method, rtol)
    estimates = FormEstimator(
        problem.view,
        problem.source,
        forms,
        problem.plan,
        Settings(curvature, method, rtol),
        problem.generator(),
    ).evaluate()
    scale = problem.denominator(estimates[0].sums.denominator)
    return [
        FormValue(
            estimate.total / scale,
            estimate.stderr / scale,
            estimate.method,
            estimate.sums.loss / scale,
        )
        for estimate in estimates
    ]


def sum_of_forms(problem: Problem, measure: str, parts: list[FormValue]) -> Measurement:
    """Sum over layers, as the result for all of them."""
    return measured(
        problem,
        measure,
        sum(part.value for part in parts),
        # The layers share the random draws: only the triangle inequality is left.
        stderr=sum(part.stderr for part in parts),
        method="+".join(dict.fromkeys(part.method for part in parts)),
        mean_loss=parts[0].mean_loss,
    )
