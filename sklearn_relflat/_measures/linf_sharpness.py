"""Sharpness as the largest loss in a cube around the weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sklearn_relflat._curvature.problem import Problem, open_problem
from sklearn_relflat._measures.ascent import Ascent
from sklearn_relflat._measures.measurement import Measurement


def linf_sharpness(
    estimator: Any,
    X: Any,
    y: Any = None,
    *,
    layer: str | Sequence[str] | None = None,
    loss: Any = None,
    rho: float = 0.002,
    magnitude_aware: bool = False,
    n_steps: int = 1,
    m: int | None = None,
    normalize_logits: bool = False,
    sample_weight: Any = None,
    random_state: Any = None,
) -> Measurement:
    """Rise of the mean loss to its largest value in a cube around the weights.

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
        together. Biases are not perturbed.
    loss : str, torch criterion or callable, default=None
        The loss; None is the one that the model was trained with.
    rho : float, default=0.002
        How far each weight may move: in its own unit, or relative to its absolute value
        if `magnitude_aware`.
    magnitude_aware : bool, default=False
        Whether the edges of the cube are proportional to the absolute values of the
        weights, which makes the measure invariant to rescaling layers and neurons.
    n_steps : int, default=1
        Steps of projected ascent along the signs of the gradient. One step goes to a
        corner of the cube.
    m : int, default=None
        None is the worst case of the whole sample. A number makes it m-sharpness, see
        `sam_sharpness`.
    normalize_logits : bool, default=False
        Whether the loss is that of logits without their scale, see `average_sharpness`.
    sample_weight : array-like of shape (n_samples,), default=None
        Weights of the samples.
    random_state : int, RandomState instance or None, default=None
        Seed of the direction that replaces a gradient of exactly zero.

    Returns
    -------
    result : Measurement
        The rise at the highest point that was found. The maximum may be larger: more
        steps find at least as much.

    Raises
    ------
    ValueError
        If an option is not valid, or the loss is not finite in the cube.

    See Also
    --------
    sam_sharpness, asam_sharpness : The same in balls of the Euclidean norm.

    Notes
    -----
    ``max E(w + e) - E(w)`` over ``|e_j| <= rho c_j`` with c = 1, or ``c = |w|`` if
    `magnitude_aware`. A step is ``rho c sign(dE/dw)``, followed by the projection onto
    the cube. Where all weights move the perturbation has the length ``rho sqrt(n)``: a
    rho for the Euclidean norm is far too much here.

    The published code of [1]_ takes 20 steps with momentum, of a size that shrinks, in
    batches of m = 128 samples, and perturbs biases and normalizations as well. The cube
    of [2]_ has edges in proportion to ``|w| + 1``.

    References
    ----------
    .. [1] M. Andriushchenko, F. Croce, M. Mueller, M. Hein, N. Flammarion, "A Modern
       Look at the Relationship between Sharpness and Generalization", ICML 2023.
    .. [2] N. S. Keskar, D. Mudigere, J. Nocedal, M. Smelyanskiy, P. T. P. Tang, "On
       Large-Batch Training for Deep Learning: Generalization Gap and Sharp Minima",
       ICLR 2017, section 2.2.2.

    Examples
    --------
    For one feature and least squares, it is ``rho^2`` times the feature's mean square:

    >>> import numpy as np
    >>> from sklearn.linear_model import LinearRegression
    >>> from sklearn_relflat import linf_sharpness
    >>> X = np.array([[-2.0], [1.0], [1.0]])
    >>> model = LinearRegression(fit_intercept=False).fit(X, [1.0, 0.0, 2.0])
    >>> sharpness = linf_sharpness(model, X, [1.0, 0.0, 2.0], rho=0.1)
    >>> bool(np.isclose(float(sharpness), 0.1**2 * np.mean(X**2)))
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
        return linf_of(
            problem,
            rho=rho,
            magnitude_aware=magnitude_aware,
            n_steps=n_steps,
            m=m,
            normalize_logits=normalize_logits,
        )


def linf_of(
    problem: Problem,
    *,
    rho: float = 0.002,
    magnitude_aware: bool = False,
    n_steps: int = 1,
    m: int | None = None,
    normalize_logits: bool = False,
) -> Measurement:
    """L-infinity sharpness of an open problem; see `linf_sharpness`."""
    ascent = Ascent("linf", magnitude_aware, rho, n_steps, m)
    result = ascent.rise(problem, "linf_sharpness", normalize_logits=normalize_logits)
    if not magnitude_aware:
        return result
    return replace(result, method=f"magnitude_aware_{result.method}")
