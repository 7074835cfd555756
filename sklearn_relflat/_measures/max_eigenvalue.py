"""Largest eigenvalue of the Hessian in a layer's weight, or in all weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sklearn_relflat._curvature.problem import Problem, open_problem
from sklearn_relflat._measures.eigenpairs import eigenpairs_of
from sklearn_relflat._measures.hessian_products import HessianProducts
from sklearn_relflat._measures.measurement import Measurement, measured
from sklearn_relflat._measures.weight_space import WeightSpace


def hessian_max_eigenvalue(
    estimator: Any,
    X: Any,
    y: Any = None,
    *,
    layer: str | Sequence[str] | None = None,
    loss: Any = None,
    rtol: float = 1e-6,
    max_iter: int = 1000,
    sample_weight: Any = None,
    random_state: Any = None,
) -> Measurement:
    """Largest eigenvalue of the Hessian of the mean loss in the weights.

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
        together, with the blocks between them. Biases are never part of the Hessian.
    loss : str, torch criterion or callable, default=None
        The loss; None is the one that the model was trained with.
    rtol : float, default=1e-6
        Norm of the residual at which the iteration stops, relative to the eigenvalue;
        the error of the eigenvalue is of the order of its square. It has no effect
        below the round-off of the weights' dtype.
    max_iter : int, default=1000
        Largest number of products of the Hessian with a vector.
    sample_weight : array-like of shape (n_samples,), default=None
        Weights of the samples.
    random_state : int, RandomState instance or None, default=None
        Seed of the vector that the iteration starts from.

    Returns
    -------
    result : Measurement
        The eigenvalue; `tolerance` is the norm of its residual, within which an
        eigenvalue lies, with the round-off of the products. `n_products` tells how
        many of them it took. `method` is "lanczos", or "dense" where the weights are
        so few that the matrix is formed.

    Raises
    ------
    ValueError
        If an option is not valid, the iteration does not converge, or torch cannot
        differentiate the model twice.

    See Also
    --------
    hessian_eigenvalues : The first few, with their eigenvectors.
    hessian_spectrum : How all of them are distributed.
    relative_flatness : Its ``statistic="max_eigenvalue"`` is kappa_max, which weighs
        the largest eigenvalue of every neuron by the neuron's squared norm.

    Notes
    -----
    The largest eigenvalue in the sense of order, not of absolute value. The Lanczos
    iteration with full reorthogonalisation [1]_ needs products of the Hessian with
    vectors only. Where memory allows, the graph of the gradient is kept between them:
    then a product is one backward pass through what lies behind the layer.

    References
    ----------
    .. [1] B. N. Parlett, "The Symmetric Eigenvalue Problem", SIAM, 1998, chapter 13.

    Examples
    --------
    For least squares, the Hessian is 2 / n X^T X:

    >>> import numpy as np
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.linear_model import LinearRegression
    >>> from sklearn_relflat import hessian_max_eigenvalue
    >>> X, y = load_diabetes(return_X_y=True)
    >>> top = hessian_max_eigenvalue(LinearRegression().fit(X, y), X, y)
    >>> expected = np.linalg.eigvalsh(2 / len(X) * X.T @ X)[-1]
    >>> bool(np.isclose(float(top), expected, rtol=1e-9))
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
        return max_eigenvalue_of(problem, rtol=rtol, max_iter=max_iter)


def max_eigenvalue_of(
    problem: Problem, *, rtol: float = 1e-6, max_iter: int = 1000
) -> Measurement:
    """Largest eigenvalue of an open problem; see `hessian_max_eigenvalue`."""
    hessian = HessianProducts(WeightSpace(problem))
    values, residuals, _, method = eigenpairs_of(
        hessian, 1, rtol=rtol, max_iter=max_iter
    )
    return measured(
        problem,
        "hessian_max_eigenvalue",
        float(values[0]),
        method=method,
        tolerance=float(residuals[0]),
        mean_loss=hessian.mean_loss,
        n_products=hessian.n_products,
    )
