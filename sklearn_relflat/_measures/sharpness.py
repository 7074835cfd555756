"""Sharpness as the largest loss in a ball around the weights: SAM and ASAM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sklearn_relflat._curvature.problem import Problem, open_problem
from sklearn_relflat._measures.ascent import Ascent
from sklearn_relflat._measures.measurement import Measurement


def sam_sharpness(
    estimator: Any,
    X: Any,
    y: Any = None,
    *,
    layer: str | Sequence[str] | None = None,
    loss: Any = None,
    rho: float = 0.05,
    n_steps: int = 1,
    m: int | None = None,
    normalize_logits: bool = False,
    sample_weight: Any = None,
    random_state: Any = None,
) -> Measurement:
    """Rise of the mean loss to its largest value in a ball around the weights.

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
    rho : float, default=0.05
        Radius of the ball, in the Euclidean norm of the weights.
    n_steps : int, default=1
        Steps of projected gradient ascent. One step is the perturbation of SAM, to the
        surface of the ball along the gradient of the whole sample.
    m : int, default=None
        None is the worst case of the whole sample. A number makes it m-sharpness: the
        mean over batches of m consecutive samples, each with a worst case of its own.
        Shuffle samples that are sorted.
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
        If an option is not valid, or the loss is not finite in the ball.

    See Also
    --------
    asam_sharpness : The same, in a ball that scales with the weights.
    linf_sharpness : The same, in a cube.
    average_sharpness : The mean over Gaussian noise instead of the worst case.

    Notes
    -----
    ``max_{||e|| <= rho} E(w + e) - E(w)``. Every step goes by rho along the normalized
    gradient and is projected back onto the ball. At a minimum the gradient is nearly
    zero and its direction means little: take several steps there, which turn towards
    the direction of the largest curvature.

    With batches B of m samples [1]_ [2]_ the value is the mean over B, weighted by what
    their losses are divided by, of ``max_{||e|| <= rho} E_B(w + e) - E_B(w)``, or the
    sum if the criterion sums its losses. A batch has a gradient of its own, also at a
    minimum of E.

    References
    ----------
    .. [1] P. Foret, A. Kleiner, H. Mobahi, B. Neyshabur, "Sharpness-Aware Minimization
       for Efficiently Improving Generalization", ICLR 2021, equation 2.
    .. [2] M. Andriushchenko, F. Croce, M. Mueller, M. Hein, N. Flammarion, "A Modern
       Look at the Relationship between Sharpness and Generalization", ICML 2023.

    Examples
    --------
    At the least squares solution the loss rises by ``rho^2 / 2`` times the largest
    eigenvalue of the Hessian:

    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.linear_model import LinearRegression
    >>> from sklearn_relflat import hessian_max_eigenvalue, sam_sharpness
    >>> X, y = load_diabetes(return_X_y=True)
    >>> model = LinearRegression().fit(X, y)
    >>> sharpness = sam_sharpness(model, X, y, rho=100, n_steps=50, random_state=0)
    >>> expected = 100**2 / 2 * float(hessian_max_eigenvalue(model, X, y))
    >>> abs(float(sharpness) / expected - 1) < 1e-3
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
        return sam_of(
            problem, rho=rho, n_steps=n_steps, m=m, normalize_logits=normalize_logits
        )


def sam_of(
    problem: Problem,
    *,
    rho: float = 0.05,
    n_steps: int = 1,
    m: int | None = None,
    normalize_logits: bool = False,
) -> Measurement:
    """SAM sharpness of an open problem; see `sam_sharpness`."""
    ascent = Ascent("l2", False, rho, n_steps, m)
    return ascent.rise(problem, "sam_sharpness", normalize_logits=normalize_logits)


def asam_sharpness(
    estimator: Any,
    X: Any,
    y: Any = None,
    *,
    layer: str | Sequence[str] | None = None,
    loss: Any = None,
    rho: float = 0.5,
    n_steps: int = 1,
    m: int | None = None,
    normalize_logits: bool = False,
    sample_weight: Any = None,
    random_state: Any = None,
) -> Measurement:
    """Rise of the mean loss in a ball whose axes are the sizes of the weights.

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
    rho : float, default=0.5
        Radius of the ball, without unit: relative to the weights.
    n_steps : int, default=1
        Steps of projected gradient ascent.
    m : int, default=None
        None is the worst case of the whole sample. A number makes it m-sharpness: the
        mean over batches of m consecutive samples, each with a worst case of its own.
        Shuffle samples that are sorted.
    normalize_logits : bool, default=False
        Whether the loss is that of logits without their scale, see `average_sharpness`.
    sample_weight : array-like of shape (n_samples,), default=None
        Weights of the samples.
    random_state : int, RandomState instance or None, default=None
        Seed of the direction that replaces a gradient of exactly zero.

    Returns
    -------
    result : Measurement
        The rise at the highest point that was found.

    Raises
    ------
    ValueError
        If an option is not valid, or the loss is not finite in the ball.

    See Also
    --------
    sam_sharpness : The same in a round ball.
    linf_sharpness : With ``magnitude_aware=True``, the same in the sup norm.

    Notes
    -----
    ``max_{||e / |w| || <= rho} E(w + e) - E(w)``, with the quotient taken weight by
    weight; a weight of zero stays zero. Rescaling layers or neurons without changing
    the function rescales weights and ball alike and leaves the value as it is.

    References
    ----------
    .. [1] J. Kwon, J. Kim, H. Park, I. K. Choi, "ASAM: Adaptive Sharpness-Aware
       Minimization for Scale-Invariant Learning of Deep Neural Networks", ICML 2021,
       Definition 2, with the element-wise normalization.

    Examples
    --------
    Features in other units give the same model with other weights, and the same value:

    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LinearRegression
    >>> from sklearn_relflat import asam_sharpness, sam_sharpness
    >>> X, y = load_iris(return_X_y=True)
    >>> model = LinearRegression(fit_intercept=False).fit(X, y)
    >>> scaled = LinearRegression(fit_intercept=False).fit(1000 * X, y)
    >>> before = asam_sharpness(model, X, y, rho=0.1, n_steps=20, random_state=0)
    >>> after = asam_sharpness(scaled, 1000 * X, y, rho=0.1, n_steps=20, random_state=0)
    >>> abs(float(after) / float(before) - 1) < 1e-6
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
        return asam_of(
            problem, rho=rho, n_steps=n_steps, m=m, normalize_logits=normalize_logits
        )


def asam_of(
    problem: Problem,
    *,
    rho: float = 0.5,
    n_steps: int = 1,
    m: int | None = None,
    normalize_logits: bool = False,
) -> Measurement:
    """ASAM sharpness of an open problem; see `asam_sharpness`."""
    ascent = Ascent("l2", True, rho, n_steps, m)
    return ascent.rise(problem, "asam_sharpness", normalize_logits=normalize_logits)
