"""Eigenpairs of the Hessian, from the whole matrix or from products with it."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sklearn_relflat._measures.hessian_products import HessianProducts
from sklearn_relflat._measures.krylov import ORDERS, extreme_eigenpairs

# Up to this many weights the matrix itself takes no more products than Lanczos would.
MAX_DENSE = 32

# Vectors that the iteration keeps, and numbers that they may have together.
_MAX_BASIS = 128
_MAX_NUMBERS = 2**27


class FoundPairs(NamedTuple):
    """Eigenvalues (k,), norms of their residuals (k,), unit eigenvectors (k, n)."""

    values: Tensor
    residuals: Tensor
    vectors: Tensor
    method: str


def check_counts(**counts: Any) -> None:
    """Raise for an option that is no positive integer, by its name."""
    for name, value in counts.items():
        if not (isinstance(value, Integral) and int(value) > 0):
            raise ValueError(
                f"Expected {name} to be a positive integer, got {value!r}."
            )


def eigenpairs_of(
    hessian: HessianProducts,
    k: Any,
    *,
    rtol: Any,
    max_iter: Any,
    which: Any = "largest",
) -> FoundPairs:
    """First eigenpairs of the Hessian; see `hessian_eigenvalues` for the options."""
    n = hessian.n_weights
    if not (isinstance(rtol, Real) and float(rtol) > 0):
        raise ValueError(f"Expected rtol to be a positive number, got {rtol!r}.")
    check_counts(max_iter=max_iter, k=k)
    if k > n:
        raise ValueError(
            f"Expected k to be at most the number of weights, {n}, got {k!r}."
        )
    if which not in ORDERS:
        raise ValueError(f"Expected which to be one of {list(ORDERS)}, got {which!r}.")
    if n <= max(MAX_DENSE, k):
        values, vectors = torch.linalg.eigh(hessian.matrix())
        rank = ORDERS[which](values).argsort(descending=True)[:k]
        floor = float(hessian.eps * values.abs().max())
        residuals = torch.full_like(values[rank], floor)
        return FoundPairs(values[rank], residuals, vectors[:, rank].T, "dense")
    generator = hessian.space.problem.generator()
    pairs = extreme_eigenpairs(
        hessian,
        [hessian.normal(generator) for _ in range(k)],
        order=which,
        rtol=float(rtol),
        eps=hessian.eps,
        max_products=max_iter,
        max_basis=min(_MAX_BASIS, _MAX_NUMBERS // n),
    )
    if pairs is None:
        what = "eigenvalue" if k == 1 else f"{k} eigenvalues"
        raise ValueError(
            f"The {which} {what} did not converge to rtol={rtol!r} within "
            f"max_iter={max_iter!r} products. Increase one of them."
        )
    return FoundPairs(pairs.values, pairs.residuals, pairs.vectors, "lanczos")
