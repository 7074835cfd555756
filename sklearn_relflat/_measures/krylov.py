"""Eigenvalues of a symmetric matrix that is known by its products with vectors.

Conventions
-----------
The basis Q has orthonormal columns, in the order in which they came up. The first j of
them have been multiplied by the matrix, A Q_j = Q T with T of shape (b, j); the other
b - j wait. Every product adds at most one column, so that with one vector to begin with
this is the Lanczos iteration and with several Ruhe's variant of the block Lanczos
iteration. All columns are orthogonalised against all others, twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# Orthogonalised twice, a vector is orthogonal to working precision.
_SWEEPS = 2

# Ritz vectors that a restart keeps beyond those that are wanted.
_SPARE = 4

# How eigenvalues are ordered, the first ones being those that are wanted.
ORDERS: dict[str, Callable[[Tensor], Tensor]] = {
    "largest": lambda values: values,
    "smallest": lambda values: -values,
    "magnitude": lambda values: values.abs(),
}


@dataclass
class Ritz:
    """Approximate eigenpairs from a Krylov space, the wanted ones first.

    Attributes
    ----------
    values : Tensor of shape (j,)
        Ritz values.
    coordinates : Tensor of shape (j, j)
        Ritz vectors as columns, in the basis.
    residuals : Tensor of shape (j,)
        Norms of the residuals. An eigenvalue lies within it of the Ritz value.
    """

    values: Tensor
    coordinates: Tensor
    residuals: Tensor


class Krylov:
    """A Krylov space that grows by one product at a time.

    Parameters
    ----------
    product : callable
        Maps a vector to the matrix times it.
    starts : list of Tensor of shape (n,)
        Vectors that the space begins with.
    eps : float
        Round-off of a product relative to the matrix's norm: what is smaller is zero.
    """

    def __init__(
        self, product: Callable[[Tensor], Tensor], starts: list[Tensor], eps: float
    ) -> None:
        self._product = product
        self._eps = eps
        self._basis = starts[0].new_empty((0, len(starts[0])))
        self._matrix = starts[0].new_zeros((0, 0))
        self._scale = 0.0
        for start in starts:
            self._append(start / start.norm())

    @property
    def n_done(self) -> int:
        """Columns that have been multiplied."""
        return self._matrix.shape[1]

    @property
    def size(self) -> int:
        """Columns of the basis."""
        return len(self._basis)

    @property
    def is_invariant(self) -> bool:
        """Whether the matrix leads nowhere else: Ritz pairs are eigenpairs."""
        return self.n_done == self.size

    def grow(self) -> None:
        """Multiply the first column that waits."""
        image = self._product(self._basis[self.n_done])
        self._scale = max(self._scale, float(image.norm()))
        column = self._append(image)
        wider = self._matrix.new_zeros((self.size, self.n_done + 1))
        wider[: len(self._matrix), :-1] = self._matrix
        wider[: len(column), -1] = column
        self._matrix = wider

    def _append(self, vector: Tensor) -> Tensor:
        """Take a vector's new direction into the basis; return its coordinates."""
        rest, size = vector.clone(), len(self._basis)
        coordinates = vector.new_zeros(size + 1)
        for _ in range(_SWEEPS):
            part = self._basis @ rest
            rest -= part @ self._basis
            coordinates[:-1] += part
        length = rest.norm()
        if size < len(vector) and float(length) > self._eps * max(
            self._scale, float(vector.norm())
        ):
            coordinates[-1] = length
            self._basis = torch.cat([self._basis, (rest / length)[None]])
            return coordinates
        return coordinates[:-1]

    def ritz(self, order: str = "largest") -> Ritz:
        """Approximate eigenpairs.

        Parameters
        ----------
        order : {"largest", "smallest", "magnitude"}
            Which come first.

        Returns
        -------
        ritz : Ritz
            As many as there were products.
        """
        j = self.n_done
        # What two products have both measured is the same but for round-off.
        square = self._matrix[:j]
        values, coordinates = torch.linalg.eigh((square + square.T) / 2)
        rank = ORDERS[order](values).argsort(descending=True)
        values, coordinates = values[rank], coordinates[:, rank]
        residuals = (self._matrix[j:] @ coordinates).norm(dim=0)
        return Ritz(values, coordinates, residuals)

    def vectors(self, coordinates: Tensor) -> Tensor:
        """Vectors (k, n) with these coordinates (j, k) in the basis."""
        return coordinates.T @ self._basis[: len(coordinates)]

    def restart(self, ritz: Ritz, n_kept: int) -> None:
        """Keep the first Ritz vectors and what waits, and forget the rest."""
        j = self.n_done
        coordinates = ritz.coordinates[:, :n_kept]
        coupling = self._matrix[j:] @ coordinates
        self._basis = torch.cat([self.vectors(coordinates), self._basis[j:]])
        self._matrix = torch.cat([ritz.values[:n_kept].diag(), coupling])


@dataclass
class Eigenpairs:
    """Eigenpairs of a symmetric matrix.

    Attributes
    ----------
    values : Tensor of shape (k,)
        Eigenvalues.
    vectors : Tensor of shape (k, n)
        Unit eigenvectors.
    residuals : Tensor of shape (k,)
        Norms of the residuals.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor


def extreme_eigenpairs(
    product: Callable[[Tensor], Tensor],
    starts: list[Tensor],
    *,
    order: str,
    rtol: float,
    eps: float,
    max_products: int,
    max_basis: int,
) -> Eigenpairs | None:
    """As many eigenpairs as there are vectors to begin with.

    Parameters
    ----------
    product : callable
        Maps a vector to the matrix times it.
    starts : list of Tensor of shape (n,)
        Random vectors, as many as an eigenvalue among the wanted can be repeated.
    order : {"largest", "smallest", "magnitude"}
        Which are wanted.
    rtol : float
        Norm of a residual at which the iteration stops, relative to the eigenvalue.
    eps : float
        Round-off of a product relative to the matrix's norm.
    max_products : int
        Largest number of products.
    max_basis : int
        Vectors that are kept at most; the iteration restarts with the best then.

    Returns
    -------
    pairs : Eigenpairs or None
        None if it does not converge.
    """
    k = len(starts)
    space = Krylov(product, starts, eps)
    max_basis = max(max_basis, 4 * k + 2 * _SPARE)
    n_products = 0
    while n_products < max_products:
        space.grow()
        n_products += 1
        # With a block, a look after each of its products would be one too many.
        if n_products % k and not space.is_invariant and n_products < max_products:
            continue
        if space.n_done < k:
            continue
        ritz = space.ritz(order)
        # No residual can be seen below the products' round-off.
        floor = eps * float(ritz.values.abs().max())
        small = ritz.residuals[:k] <= (rtol * ritz.values[:k].abs()).clamp(min=floor)
        if space.is_invariant or bool(small.all()):
            vectors = space.vectors(ritz.coordinates[:, :k])
            return Eigenpairs(ritz.values[:k], vectors, ritz.residuals[:k] + floor)
        if space.size >= max_basis:
            space.restart(ritz, k + _SPARE)
    return None
