"""Rise of the loss when each neuron's weights move in a direction of their own.

``w_s + delta ||w_s|| u_s`` with independent uniform unit vectors u_s, for each neuron s
of a layer: a perturbation of the weight as large as that of a feature matrix, w +
delta w A, that does not keep the angles between neurons. To second order its mean rise
is ``delta^2 / (2m) sum_s ||w_s||^2 Tr H_ss``: the part of relative flatness without the
blocks between neurons.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sklearn_relflat._curvature.problem import open_problem
from sklearn_relflat._layers.names import one_layer
from sklearn_relflat._robustness.sums import neuron_sums


def neuron_rises(
    estimator: Any,
    X: Any,
    y: Any = None,
    *,
    deltas: np.ndarray,
    n_directions: int,
    rng: np.random.RandomState,
    layer: str | None = None,
    loss: Any = None,
    sample_weight: Any = None,
) -> np.ndarray:
    """Measure the rise of the mean loss along random directions of the weight.

    Parameters
    ----------
    estimator : estimator
        A fitted model, see `relative_flatness`.
    X : {array-like, sparse matrix, Tensor, Dataset, dict} of shape (n_samples, ...)
        The sample.
    y : array-like of shape (n_samples,) or (n_samples, n_outputs), default=None
        Targets; None only where X is a data set that carries them.
    deltas : ndarray of shape (n_deltas,)
        Sizes of the steps relative to each neuron's weights, positive.
    n_directions : int
        Number of directions.
    rng : RandomState
        Seed of the directions, which it is advanced by.
    layer : str, default=None
        Name of the layer; None is the output layer.
    loss : str, torch criterion or callable, default=None
        The loss; None is the one that the model was trained with.
    sample_weight : array-like of shape (n_samples,), default=None
        Weights of the samples.

    Returns
    -------
    rises : ndarray of shape (n_directions, 2, n_deltas)
        Rises along each direction, and along its negative.

    Raises
    ------
    ValueError
        If the loss is not finite for some perturbed weights.
    """
    with open_problem(
        estimator,
        X,
        y,
        layer=one_layer(layer, "neuron_rises"),
        loss=loss,
        sample_weight=sample_weight,
    ) as problem:
        values = neuron_sums(problem, deltas, n_directions, rng).values
    return values.T.reshape(n_directions, 2, len(deltas))
