"""Largest eigenvalue of the Hessian in a layer's weight, or in all weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

from sklearn_relflat._curvature.problem import Problem, open_problem
from sklearn_relflat._measures.measurement import Measurement, measured
from sklearn_relflat._measures.weight_space import WeightSpace

# Up to this many weights the matrix itself takes no more products than Lanczos would.
_MAX_DENSE = 32


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
        Relative accuracy at which the iteration stops.
    max_iter : int, default=1000
        Largest number of restarts of the iteration.
    sample_weight : array-like of shape (n_samples,), default=None
        Weights of the samples.
    random_state : int, RandomState instance or None, default=None
        Seed of the vector that the iteration starts from.

    Returns
    -------
    result : Measurement
        The eigenvalue; `tolerance` is the norm of its residual, within which an
        eigenvalue lies. `method` is "lanczos", or "dense" where the weights are so few
        that the matrix is formed.

    Raises
    ------
    ValueError
        If an option is not valid, the iteration does not converge, or torch cannot
        differentiate the model twice.

    See Also
    --------
    relative_flatness : Its ``statistic="max_eigenvalue"`` is kappa_max, which weighs
        the largest eigenvalue of every neuron by the neuron's squared norm.

    Notes
    -----
    The largest eigenvalue in the sense of order, not of absolute value. The Lanczos
    iteration needs products of the Hessian with vectors only, each of which is one pass
    over the data with a double backward pass.

    References
    ----------
    .. [1] R. B. Lehoucq, D. C. Sorensen, C. Yang, "ARPACK Users' Guide", SIAM, 1998.

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
    if not rtol > 0:
        raise ValueError(f"Expected rtol to be a positive number, got {rtol!r}.")
    if not (isinstance(max_iter, Integral) and max_iter > 0):
        raise ValueError(
            f"Expected max_iter to be a positive integer, got {max_iter!r}."
        )
    space = WeightSpace(problem)
    n = space.n_weights
    mean_loss = space.risk(space.weights)

    def product(vector: np.ndarray) -> np.ndarray:
        """Hessian times a vector."""
        return space.to_array(space.hessian_product(space.from_array(vector)))

    if n <= _MAX_DENSE:
        method, residual = "dense", 0.0
        matrix = np.stack([product(row) for row in np.eye(n)])
        value = float(np.linalg.eigvalsh((matrix + matrix.T) / 2)[-1])
    else:
        method = "lanczos"
        value, residual = _lanczos(product, space, rtol, max_iter)
    return measured(
        problem,
        "hessian_max_eigenvalue",
        value,
        method=method,
        tolerance=residual,
        mean_loss=mean_loss,
    )


def _lanczos(
    product: Any, space: WeightSpace, rtol: float, max_iter: int
) -> tuple[float, float]:
    """Largest eigenvalue and the norm of its residual."""
    n = space.n_weights
    start = space.to_array(space.normal(space.problem.generator()))
    first = product(start)
    if not first.any():
        # A random vector in the null space: the matrix is zero with probability one.
        return 0.0, 0.0
    operator = LinearOperator((n, n), matvec=product, dtype=np.float64)
    # The products carry the round-off of the model's own dtype.
    eps = max(torch.finfo(w.dtype).eps for w in space.weights.values())
    try:
        _, vectors = eigsh(
            operator,
            k=1,
            which="LA",
            v0=start,
            tol=max(rtol, eps),
            maxiter=max_iter,
            # ARPACK looks at its error after so many products: fewer for a loose one.
            ncv=min(n, int(np.clip(2 - 3 * math.log10(min(rtol, 1.0)), 4, 20))),
        )
    except ArpackNoConvergence as error:
        raise ValueError(
            f"The largest eigenvalue did not converge to rtol={rtol!r} within "
            f"max_iter={max_iter!r} restarts. Increase one of them."
        ) from error
    vector = vectors[:, 0]
    image = product(vector)
    # The Rayleigh quotient of the final vector: its error is quadratic in the residual.
    value = float(vector @ image)
    return value, float(np.linalg.norm(image - value * vector))
