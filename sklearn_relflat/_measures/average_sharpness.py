"""Sharpness as the mean loss under Gaussian noise in the weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from sklearn_relflat._curvature.problem import Problem, open_problem
from sklearn_relflat._measures.measurement import Measurement, measured
from sklearn_relflat._measures.noise import Noise, check_n_draws
from sklearn_relflat._measures.weight_space import WeightSpace, check_rho


def average_sharpness(
    estimator: Any,
    X: Any,
    y: Any = None,
    *,
    layer: str | Sequence[str] | None = None,
    loss: Any = None,
    rho: float = 0.05,
    magnitude_aware: bool = False,
    n_draws: int = 16,
    normalize_logits: bool = False,
    sample_weight: Any = None,
    random_state: Any = None,
) -> Measurement:
    """Mean rise of the mean loss under Gaussian noise in the weights.

    Parameters
    ----------
    estimator : estimator
        A fitted model, see `relative_flatness`.
    X : {array-like, sparse matrix, Tensor, Dataset, dict} of shape (n_samples, ...)
        The sample.
    y : array-like of shape (n_samples,) or (n_samples, n_outputs), default=None
        Targets; None only where X is a data set that carries them.
    layer : str or sequence of str, default=None
        Name of a layer; None is the output layer, "all" the weights of all layers
        together. Biases get no noise.
    loss : str, torch criterion or callable, default=None
        The loss; None is the one that the model was trained with.
    rho : float, default=0.05
        Standard deviation of the noise in each weight: in the weight's own unit, or
        relative to its absolute value if `magnitude_aware`.
    magnitude_aware : bool, default=False
        Whether the noise of each weight is proportional to its absolute value, which
        makes the measure invariant to rescaling layers and neurons.
    n_draws : int, default=16
        Number of draws of the noise. Each is taken with both signs, at the cost of two
        passes over the data.
    normalize_logits : bool, default=False
        Whether the loss is that of logits without their scale. A classifier that
        multiplies its logits by a number is more confident, and neither sharper nor
        flatter in this loss.
    sample_weight : array-like of shape (n_samples,), default=None
        Weights of the samples.
    random_state : int, RandomState instance or None, default=None
        Seed of the noise.

    Returns
    -------
    result : Measurement
        The mean rise, with the standard error of the mean over the draws. It is
        negative where noise lowers the loss.

    Raises
    ------
    ValueError
        If an option is not valid, the loss is not finite under the noise, or there are
        no logits to normalize.

    See Also
    --------
    sam_sharpness, linf_sharpness : The worst case instead of the mean.
    pac_bayes_flatness : Asks how much noise is withstood, instead of what a given noise
        does.

    Notes
    -----
    ``mean of E(w + rho c u) - E(w)`` over standard normal u, with ``c = 1``, or with
    ``c = |w|`` if `magnitude_aware`. The mean over u and -u has no odd orders of rho in
    it: for small rho the value tends to ``rho^2 / 2`` times the trace of the Hessian H,
    or of ``diag(c) H diag(c)``. Where the loss is quadratic in the weights, that is its
    expectation at any rho.

    With `normalize_logits`, the logits z of each sample become
    ``(z - mean z) / sqrt(mean_k (z_k - mean z)^2)`` before they enter the loss, also in
    the `mean_loss` of the result. The published code of [1]_ divides by the Euclidean
    norm of the centred logits, which is larger by the root of the number of classes.

    References
    ----------
    .. [1] M. Andriushchenko, F. Croce, M. Mueller, M. Hein, N. Flammarion, "A Modern
       Look at the Relationship between Sharpness and Generalization", ICML 2023.

    Examples
    --------
    For least squares the value is ``rho^2 / 2`` times the trace of the Hessian:

    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LinearRegression
    >>> from sklearn_relflat import average_sharpness, hessian_trace
    >>> X, y = load_iris(return_X_y=True)
    >>> model = LinearRegression().fit(X, y)
    >>> sharpness = average_sharpness(model, X, y, rho=0.1, n_draws=400, random_state=0)
    >>> expected = 0.1**2 / 2 * float(hessian_trace(model, X, y))
    >>> bool(abs(float(sharpness) - expected) < 3 * sharpness.stderr)
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
        return average_of(
            problem,
            rho=rho,
            magnitude_aware=magnitude_aware,
            n_draws=n_draws,
            normalize_logits=normalize_logits,
        )


def average_of(
    problem: Problem,
    *,
    rho: float = 0.05,
    magnitude_aware: bool = False,
    n_draws: int = 16,
    normalize_logits: bool = False,
) -> Measurement:
    """Average-case sharpness of an open problem; see `average_sharpness`."""
    check_rho(rho)
    check_n_draws(n_draws)
    space = WeightSpace(problem, normalize_logits=normalize_logits)
    noise = Noise(space, "loss", magnitude_aware, n_draws)
    base, _ = noise.at_weights()
    pairs = (noise.badness(rho) + noise.badness(-rho)) / 2
    if not np.isfinite(pairs).all():
        raise ValueError(
            f"Expected a finite loss under noise of rho={rho!r}, got "
            f"{float(pairs.max())!r}. Choose a smaller rho."
        )
    rises = pairs - base
    return measured(
        problem,
        "average_sharpness",
        float(rises.mean()),
        method="magnitude_aware_noise" if magnitude_aware else "noise",
        stderr=float(rises.std(ddof=1)) / math.sqrt(len(rises)),
        mean_loss=base,
    )
