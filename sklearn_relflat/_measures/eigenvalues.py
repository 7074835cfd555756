"""The first eigenvalues of the Hessian, with their eigenvectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sklearn_relflat._curvature.problem import open_problem
from sklearn_relflat._layers.names import layer_words
from sklearn_relflat._measures.eigenpairs import eigenpairs_of
from sklearn_relflat._measures.hessian_products import HessianProducts
from sklearn_relflat._measures.weight_space import WeightSpace
from sklearn_relflat._results.result import Result
from sklearn_relflat._results.words import abbreviated, number


@dataclass(frozen=True, eq=False)
class HessianEigenvalues(Result):
    """Some eigenvalues of the Hessian of the mean loss, and how they were obtained.

    ``numpy.asarray(result)`` are the eigenvalues.

    Attributes
    ----------
    values : ndarray of shape (k,)
        Eigenvalues, the first ones in the sense of `which` first.
    residuals : ndarray of shape (k,)
        Norms of the residuals, with the round-off of the products: within each of them
        of its value lies an eigenvalue.
    vectors : dict of str to ndarray of shape (k, ...)
        Eigenvectors in the shape of the parameter, by its name; over all parameters
        together they have unit norm.
    which : str
        Which eigenvalues they are.
    layer : str
        The layer, several names joined by "+", or "all": every weight layer.
    loss : str
        The loss.
    method : {"lanczos", "dense"}
        The route taken.
    n_products : int
        Products of the Hessian with a vector that it took.
    n_samples : int
        Number of samples.
    n_weights : int
        Number of weights in the layers; biases are never counted.
    mean_loss : float
        Empirical risk on these samples.
    """

    values: np.ndarray
    residuals: np.ndarray
    vectors: dict[str, np.ndarray] = field(repr=False)
    which: str
    layer: str
    loss: str
    method: str
    n_products: int
    n_samples: int
    n_weights: int
    mean_loss: float

    guide = "measures"

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        """Return the eigenvalues."""
        return np.array(self.values, dtype=dtype)

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.values)

    def __repr__(self) -> str:
        """Return a summary in one line."""
        shown = ", ".join(f"{value:.4g}" for value in self.values[:5])
        more = ", ..." if len(self) > 5 else ""
        return (
            f"<HessianEigenvalues {shown}{more} ({self.which}) of "
            f"{layer_words(self.layer)}; {self.loss} {self.mean_loss:.4g} "
            f"on {self.n_samples} samples; {self.method}, {self.n_products} products>"
        )

    def rows(self) -> list[dict[str, Any]]:
        """Return the eigenvalues.

        Returns
        -------
        rows : list of dict
            One an eigenvalue, with its residual.
        """
        pairs = zip(self.values, self.residuals, strict=True)
        return [{"eigenvalue": v, "residual": r} for v, r in pairs]

    def cells(self) -> list[dict[str, str]]:
        """Return the rows as they are shown.

        Returns
        -------
        cells : list of dict
            Short texts by column; the middle of a long table is left out.
        """
        return abbreviated(
            [
                {"eigenvalue": number(row["eigenvalue"]), "residual": f"{r:.1g}"}
                for row in self.rows()
                for r in [row["residual"]]
            ]
        )

    @property
    def title(self) -> str:
        """What the result is about."""
        return (
            f"Hessian of {layer_words(self.layer)}, {self.n_weights} weights; "
            f"{self.loss} {number(self.mean_loss)} on {self.n_samples} samples; "
            f"{self.method}, {self.n_products} products"
        )

    def _sentence(self) -> str:
        """Say which eigenvalues these are."""
        place = {"magnitude": "largest in magnitude"}.get(self.which, self.which)
        if len(self) == 1:
            return f"The {place} eigenvalue is {number(self.values[0])}."
        return (
            f"The {len(self)} {place} of {self.n_weights} eigenvalues, from "
            f"{number(self.values[0])} to {number(self.values[-1])}."
        )


def hessian_eigenvalues(
    estimator: Any,
    X: Any,
    y: Any = None,
    *,
    k: int = 1,
    which: str = "largest",
    layer: str | Sequence[str] | None = None,
    loss: Any = None,
    rtol: float = 1e-3,
    max_iter: int = 1000,
    sample_weight: Any = None,
    random_state: Any = None,
) -> HessianEigenvalues:
    """First eigenvalues and eigenvectors of the Hessian of the mean loss.

    Parameters
    ----------
    estimator : estimator
        A fitted model, see `relative_flatness`.
    X : {array-like, sparse matrix, Tensor, Dataset, dict} of shape (n_samples, ...)
        The sample.
    y : array-like of shape (n_samples,) or (n_samples, n_outputs), default=None
        Targets; None only where X is a data set that carries them.
    k : int, default=1
        How many, at most as many as there are weights.
    which : {"largest", "smallest", "magnitude"}, default="largest"
        The largest or the smallest ones in the sense of order, or those of the largest
        absolute values.
    layer : str or sequence of str, default=None
        Name of a layer; None is the output layer, "all" the weights of all layers
        together, with the blocks between them. Biases are never part of the Hessian.
    loss : str, torch criterion or callable, default=None
        The loss; None is the one that the model was trained with.
    rtol : float, default=1e-3
        Norm of every residual at which the iteration stops, relative to the eigenvalue;
        the error of an eigenvalue is of the order of its square, that of an eigenvector
        is the residual over the distance to the next eigenvalue. It has no effect below
        the round-off of the weights' dtype.
    max_iter : int, default=1000
        Largest number of products of the Hessian with a vector.
    sample_weight : array-like of shape (n_samples,), default=None
        Weights of the samples.
    random_state : int, RandomState instance or None, default=None
        Seed of the vectors that the iteration starts from.

    Returns
    -------
    result : HessianEigenvalues
        Eigenvalues, eigenvectors, residuals, and the products that they took.

    Raises
    ------
    ValueError
        If an option is not valid, the iteration does not converge, the result is not
        finite, or torch cannot differentiate the model twice.

    See Also
    --------
    hessian_max_eigenvalue : The largest one, as a measure.
    hessian_spectrum : How all of them are distributed.

    Notes
    -----
    A block Lanczos iteration that starts from k vectors (Ruhe's variant, [1]_), so that
    an eigenvalue that is repeated is found as often as it occurs: the output layer of a
    regression with K outputs has every one K times. All vectors are orthogonalised
    against all others; the iteration holds up to 128 of them in memory, in float64 and
    on the model's device, fewer where there are more than a million weights. Up to 32
    weights the matrix itself is formed ("dense").

    References
    ----------
    .. [1] A. Ruhe, "Implementation aspects of band Lanczos algorithms for computation
       of eigenvalues of large sparse symmetric matrices", Mathematics of Computation
       33, 1979.

    Examples
    --------
    For least squares, the Hessian is 2 / n X^T X:

    >>> import numpy as np
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.linear_model import LinearRegression
    >>> from sklearn_relflat import hessian_eigenvalues
    >>> X, y = load_diabetes(return_X_y=True)
    >>> found = hessian_eigenvalues(LinearRegression().fit(X, y), X, y, k=3)
    >>> expected = np.linalg.eigvalsh(2 / len(X) * X.T @ X)[::-1][:3]
    >>> bool(np.allclose(found.values, expected, rtol=1e-9))
    True
    >>> found.vectors["coef.weight"].shape
    (3, 1, 10)
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
        hessian = HessianProducts(WeightSpace(problem))
        pairs = eigenpairs_of(hessian, k, rtol=rtol, max_iter=max_iter, which=which)
        values = pairs.values.cpu().double().numpy()
        if not np.isfinite(values).all():
            raise ValueError(
                f"Expected finite eigenvalues, got {values!r} for layer "
                f"{problem.label!r}: the computation overflows. Use float64, or scale "
                "the features."
            )
        return HessianEigenvalues(
            values=values,
            residuals=pairs.residuals.cpu().double().numpy(),
            vectors=hessian.by_name(pairs.vectors),
            which=which,
            layer=problem.label,
            loss=problem.view.loss.name,
            method=pairs.method,
            n_products=hessian.n_products,
            n_samples=problem.source.n_samples,
            n_weights=problem.n_weights,
            mean_loss=hessian.mean_loss,
        )
