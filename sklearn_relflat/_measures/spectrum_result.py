"""The spectrum of a Hessian as a discrete distribution of eigenvalues."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np

from sklearn_relflat._layers.names import layer_words
from sklearn_relflat._results.plottable import Plottable
from sklearn_relflat._results.result import Result
from sklearn_relflat._results.words import number

# Width of the density's kernel where none is given, as a part of the spectrum's range.
_WIDTH = 0.01


@dataclass(frozen=True, eq=False)
class HessianSpectrum(Plottable, Result):
    """Distribution of the eigenvalues of a Hessian, and how it was obtained.

    Attributes
    ----------
    nodes : ndarray of shape (n_nodes,)
        Points of the quadrature; the eigenvalues themselves where `method` is "dense".
    weights : ndarray of shape (n_nodes,)
        Share of the eigenvalues that each node stands for. Their sum is one.
    probes : ndarray of shape (n_nodes,)
        Number of the random vector that each node comes from.
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
        Number of weights in the layers, and of eigenvalues.
    mean_loss : float
        Empirical risk on these samples.
    """

    nodes: np.ndarray
    weights: np.ndarray
    probes: np.ndarray
    layer: str
    loss: str
    method: str
    n_products: int
    n_samples: int
    n_weights: int
    mean_loss: float

    guide = "measures"

    @property
    def n_probes(self) -> int:
        """Number of random vectors; 1 where the matrix was formed."""
        return int(self.probes[-1]) + 1

    @property
    def largest(self) -> float:
        """Largest node: a lower bound of the largest eigenvalue, and close to it."""
        return float(self.nodes.max())

    @property
    def smallest(self) -> float:
        """Smallest node: an upper bound of the smallest eigenvalue."""
        return float(self.nodes.min())

    def __repr__(self) -> str:
        """Return a summary in one line."""
        return (
            f"<HessianSpectrum of {layer_words(self.layer)}, {self.n_weights} "
            f"eigenvalues from {self.smallest:.4g} to {self.largest:.4g}; {self.loss} "
            f"{self.mean_loss:.4g} on {self.n_samples} samples; {self.method}, "
            f"{self.n_products} products>"
        )

    def _mean(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean over eigenvalues of values (..., n_nodes), and its standard error."""
        n = self.n_probes
        each = np.stack(
            [
                n * (values[..., part] @ self.weights[part])
                for part in (self.probes == probe for probe in range(n))
            ]
        )
        if self.method == "dense":
            return each[0], np.zeros_like(each[0])
        if n == 1:
            return each[0], np.full_like(each[0], math.nan)
        return each.mean(axis=0), each.std(axis=0, ddof=1) / math.sqrt(n)

    def moment(self, power: int) -> tuple[float, float]:
        """Mean of a power of the eigenvalues.

        Parameters
        ----------
        power : int
            The power, at least 0. Times `n_weights`, the first moment is the trace and
            the second the squared Frobenius norm.

        Returns
        -------
        value : float
            The moment.
        stderr : float
            Its standard error over the random vectors; 0.0 where the matrix was formed,
            nan for a single vector.

        Raises
        ------
        ValueError
            If the power is no integer of at least 0.
        """
        if not (isinstance(power, Integral) and int(power) >= 0):
            raise ValueError(
                f"Expected power to be an integer of at least 0, got {power!r}."
            )
        value, error = self._mean(self.nodes ** int(power))
        return float(value), float(error)

    def cdf(self, grid: Any) -> np.ndarray:
        """Share of the eigenvalues up to each point.

        Parameters
        ----------
        grid : array-like of shape (n_points,)
            The points.

        Returns
        -------
        share : ndarray of shape (n_points,)
            Between 0 and 1.
        """
        order = np.argsort(self.nodes)
        total = np.concatenate([[0.0], np.cumsum(self.weights[order])])
        points = np.asarray(grid, dtype=float)
        return total[np.searchsorted(self.nodes[order], points, side="right")]

    def density(
        self, grid: Any, width: float | None = None, *, return_stderr: bool = False
    ) -> Any:
        """Density of the eigenvalues, smoothed by a Gaussian.

        Parameters
        ----------
        grid : array-like of shape (n_points,)
            Where.
        width : float, default=None
            Standard deviation of the Gaussian; None is a hundredth of the range of the
            nodes.
        return_stderr : bool, default=False
            Whether the standard error over the random vectors is returned as well.

        Returns
        -------
        density : ndarray of shape (n_points,)
            Its integral is one.
        stderr : ndarray of shape (n_points,)
            Only if asked for.

        Raises
        ------
        ValueError
            If the width is not positive, or is not given for a single eigenvalue.
        """
        width = self.width if width is None else width
        if not (isinstance(width, Real) and 0 < float(width) < math.inf):
            raise ValueError(
                f"Expected width to be a positive number, got {width!r}. Where all "
                "eigenvalues are equal there is no default."
            )
        points = np.asarray(grid, dtype=float)
        scaled = (points[:, None] - self.nodes) / float(width)
        kernel = np.exp(-(scaled**2) / 2) / (float(width) * math.sqrt(2 * math.pi))
        value, error = self._mean(kernel)
        return (value, error) if return_stderr else value

    @property
    def width(self) -> float:
        """Width of the density where none is given."""
        return _WIDTH * (self.largest - self.smallest)

    def rows(self) -> list[dict[str, Any]]:
        """Return the nodes.

        Returns
        -------
        rows : list of dict
            One a node: the random vector it comes from, node and weight.
        """
        rows = zip(self.probes, self.nodes, self.weights, strict=True)
        names = ("probe", "node", "weight")
        return [dict(zip(names, row, strict=True)) for row in rows]

    def cells(self) -> list[dict[str, str]]:
        """Return what the nodes say together.

        Returns
        -------
        cells : list of dict
            One row of short texts by column.
        """
        return [
            {
                "layer": self.layer,
                "eigenvalues": str(self.n_weights),
                "smallest": number(self.smallest),
                "mean": number(*self.moment(1)),
                "largest": number(self.largest),
                "mean loss": number(self.mean_loss),
                "loss": self.loss,
                "samples": str(self.n_samples),
                "route": f"{self.method}, {self.n_products} products",
            }
        ]

    def _sentence(self) -> str:
        """Say how far the eigenvalues reach."""
        about = "" if self.method == "dense" else "about "
        return (
            f"The {self.n_weights} eigenvalues of the Hessian of "
            f"{layer_words(self.layer)} reach from {about}{number(self.smallest)} to "
            f"{about}{number(self.largest)}, with the mean {number(*self.moment(1))}."
        )
