"""Spectral density of the Hessian, by stochastic Lanczos quadrature."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from sklearn_relflat._curvature.problem import open_problem
from sklearn_relflat._measures.eigenpairs import MAX_DENSE, check_counts
from sklearn_relflat._measures.hessian_products import HessianProducts
from sklearn_relflat._measures.krylov import Krylov
from sklearn_relflat._measures.spectrum_result import HessianSpectrum
from sklearn_relflat._measures.weight_space import WeightSpace


def hessian_spectrum(
    estimator: Any,
    X: Any,
    y: Any = None,
    *,
    layer: str | Sequence[str] | None = None,
    n_probes: int = 8,
    n_steps: int = 40,
    loss: Any = None,
    sample_weight: Any = None,
    random_state: Any = None,
) -> HessianSpectrum:
    """How the eigenvalues of the Hessian of the mean loss are distributed.

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
    n_probes : int, default=8
        Random vectors that stand for all directions; the standard error of whatever is
        read off the spectrum falls as its square root.
    n_steps : int, default=40
        Lanczos steps for each of them: the number of points of the quadrature, which is
        exact for polynomials of degree ``2 * n_steps - 1``.
    loss : str, torch criterion or callable, default=None
        The loss; None is the one that the model was trained with.
    sample_weight : array-like of shape (n_samples,), default=None
        Weights of the samples.
    random_state : int, RandomState instance or None, default=None
        Seed of the vectors.

    Returns
    -------
    result : HessianSpectrum
        Nodes and weights of the quadrature, with density, distribution function and
        moments. Where ``n_probes * n_steps`` products would be more than the whole
        matrix takes, its nodes are the eigenvalues themselves (`method` is "dense").

    Raises
    ------
    ValueError
        If an option is not valid, the result is not finite, or torch cannot
        differentiate the model twice.

    See Also
    --------
    hessian_eigenvalues : The first few eigenvalues, to any accuracy.
    hessian_trace : The mean eigenvalue times their number, with less variance.

    Notes
    -----
    For a vector v of random signs and any function f, v^T f(H) v / n has the mean
    Tr f(H) / n, the mean of f over the n eigenvalues. The Lanczos iteration from v
    gives the nodes and weights of the Gauss quadrature of v^T f(H) v / n: the
    eigenvalues of its tridiagonal matrix, and the squares of the first entries of their
    eigenvectors [1]_, [2]_. All its vectors are orthogonalised against all others, so
    that no node is there twice because of round-off. In single precision, eigenvalues
    below 1e-7 times the largest are not told from zero.

    References
    ----------
    .. [1] G. H. Golub, G. Meurant, "Matrices, Moments and Quadrature", Princeton
       University Press, 2009.
    .. [2] S. Ubaru, J. Chen, Y. Saad, "Fast estimation of tr(f(A)) via stochastic
       Lanczos quadrature", SIAM J. Matrix Anal. Appl. 38, 2017.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.neural_network import MLPClassifier
    >>> from sklearn_relflat import hessian_spectrum, hessian_trace
    >>> X, y = load_digits(return_X_y=True)
    >>> X, y = X[:200] / 16, y[:200]
    >>> mlp = MLPClassifier((8,), solver="lbfgs", max_iter=1000, random_state=0)
    >>> mlp = mlp.fit(X, y)
    >>> spectrum = hessian_spectrum(mlp, X, y, layer="all", random_state=0)
    >>> trace = hessian_trace(mlp, X, y, layer="all")
    >>> mean, error = spectrum.moment(1)
    >>> bool(
    ...     abs(mean * spectrum.n_weights - trace.value)
    ...     < 4 * error * spectrum.n_weights
    ... )
    True
    """
    check_counts(n_probes=n_probes, n_steps=n_steps)
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
        hessian = HessianProducts(WeightSpace(problem))
        if hessian.n_weights <= max(MAX_DENSE, n_probes * n_steps):
            values = torch.linalg.eigvalsh(hessian.matrix()).cpu().double().numpy()
            nodes = [(values, np.full(len(values), 1 / len(values)))]
            method = "dense"
        else:
            generator = problem.generator()
            nodes = [_quadrature(hessian, generator, n_steps) for _ in range(n_probes)]
            method = "lanczos"
        if not all(np.isfinite(values).all() for values, _ in nodes):
            raise ValueError(
                f"Expected finite eigenvalues for layer {problem.label!r}, got some "
                "that are not: the computation overflows. Use float64, or scale the "
                "features."
            )
        return HessianSpectrum(
            nodes=np.concatenate([values for values, _ in nodes]),
            weights=np.concatenate([masses for _, masses in nodes]) / len(nodes),
            probes=np.repeat(np.arange(len(nodes)), [len(v) for v, _ in nodes]),
            layer=problem.label,
            loss=problem.view.loss.name,
            method=method,
            n_products=hessian.n_products,
            n_samples=problem.source.n_samples,
            n_weights=problem.n_weights,
            mean_loss=hessian.mean_loss,
        )


def _quadrature(
    hessian: HessianProducts, generator: torch.Generator, n_steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of one random vector, weights with the sum one."""
    start = hessian.normal(generator).sign()
    # A draw of exactly zero has no sign.
    start[start == 0] = 1.0
    space = Krylov(hessian, [start], hessian.eps)
    while space.n_done < n_steps and not space.is_invariant:
        space.grow()
    ritz = space.ritz("smallest")
    masses = ritz.coordinates[0] ** 2
    return ritz.values.cpu().double().numpy(), masses.cpu().double().numpy()
