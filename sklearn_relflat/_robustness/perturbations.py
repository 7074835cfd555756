"""Distributions over feature matrices A and the perturbations A phi that they cause.

Rotation-invariant matrices are never built where fewer columns than features are
perturbed. With the QR decomposition Phi = Q R of those k columns, O Phi = (O Q) R, and
for O uniform (Haar) on O(m) the matrix O Q is a uniform frame of k orthonormal
vectors, which is drawn directly. The law is exact, the memory O(m k). For one column
the perturbation is a uniform direction times ||phi||.

References
----------
.. [1] Petzka, Kamp, Adilova, Sminchisescu, Boley, "Relative Flatness and
   Generalization", NeurIPS 2021, Definition 1, Proposition 2, Theorem 5.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sklearn_relflat._density.radial_kernels import RADIAL_KERNELS, array_module
from sklearn_relflat._robustness.matrix_distribution import (
    MatrixDistribution,
    RandomSource,
    check_count,
)

# Matrices computed in float32 exceed norm one by round-off.
_NORM_TOLERANCE = 1e-5


def _norms(rows: Any) -> Any:
    """Norms of rows (b, p, m), scaled so that squares cannot leave the range."""
    xp = array_module(rows)
    scale = xp.amax(xp.abs(rows), -1)[..., None]
    scale = scale + (scale == 0)
    return scale * xp.sqrt(((rows / scale) ** 2).sum(-1))[..., None]


class _ImplicitMatrices(MatrixDistribution):
    """Matrices that act on rows without being built."""

    def _reduce(self, rows: Any) -> Any:
        """Check and do once what all matrices need of the rows."""
        return rows

    @abstractmethod
    def _act(self, reduced: Any, m: int, source: RandomSource) -> Any:
        """Apply one random matrix to each of the b blocks of reduced rows."""

    def _iterate(
        self, rows: Any, n_matrices: int, source: RandomSource
    ) -> Iterator[Any]:
        return self._pairs(self._reduce(rows), rows.shape[-1], n_matrices, source)

    def _pairs(
        self, reduced: Any, m: int, n_matrices: int, source: RandomSource
    ) -> Iterator[Any]:
        """Yield the perturbations, and their negatives where antithetic."""
        group = 2 if self.antithetic else 1
        for start in range(0, n_matrices, group):
            result = self._act(reduced, m, source)
            # Negated before the caller can change the first of the pair in place.
            pair = (result, -result)[:group]
            yield from pair[: n_matrices - start]

    def _independent(self, rows: Any, source: RandomSource) -> Any:
        return self._act(self._reduce(rows), rows.shape[-1], source)

    def _block_cost(self, p: int, m: int) -> int:
        return m * p


@dataclass(frozen=True, kw_only=True)
class HaarOrthogonal(_ImplicitMatrices):
    """Orthogonal matrices, uniform on O(m) (Theorem 5).

    Parameters
    ----------
    antithetic : bool, default=True
        Draw pairs A, -A.

    Examples
    --------
    Orthogonal perturbations keep the length of the features, whatever the number of
    features; antithetic pairs cancel:

    >>> import numpy as np
    >>> from sklearn_relflat._robustness.perturbations import HaarOrthogonal
    >>> features = np.full((3, 10_000), 0.01)
    >>> plus, minus = HaarOrthogonal().perturb(features, 2, random_state=0)
    >>> np.linalg.norm(plus, axis=1).round(12)
    array([1., 1., 1.])
    >>> bool(np.all(plus == -minus))
    True
    """

    antithetic: bool = True

    def second_moment(self, n_features: int) -> float | None:
        """Return 1."""
        return 1.0

    def _reduce(self, rows: Any) -> Any:
        # rows = L Q^T, and L is all that the law of rows @ O.T depends on.
        p, m = rows.shape[1:]
        if p == 1 < m:
            return _norms(rows)
        if p < m:
            columns = rows.swapaxes(1, 2)
            r = array_module(rows).linalg.qr(columns, mode="r")
            return (r if isinstance(r, np.ndarray) else r[1]).swapaxes(1, 2)
        return rows

    def _act(self, reduced: Any, m: int, source: RandomSource) -> Any:
        b, _, k = reduced.shape
        frames = source.frames(b, m, k)
        return reduced * frames if k == 1 else reduced @ frames


@dataclass(frozen=True, kw_only=True)
class RadialBall(HaarOrthogonal):
    """Proposition 2: A = r O, O uniform on O(m), r ~ r^(m-1) k(r) on (0, 1].

    delta A phi then has the rotation-invariant density with kernel k, truncated at
    the bandwidth delta ||phi||.

    Parameters
    ----------
    antithetic : bool, default=True
        Draw pairs A, -A.
    kernel : {"truncated_gaussian", "epanechnikov", "uniform"}, \
            default="truncated_gaussian"
        The kernel k.

    Examples
    --------
    The uniform kernel fills the ball: in dimension 2 the squared radius is uniform,
    with the mean 1/2.

    >>> from sklearn_relflat._robustness.perturbations import RadialBall
    >>> RadialBall(kernel="uniform").second_moment(2)
    0.5
    """

    kernel: str = "truncated_gaussian"

    def __post_init__(self) -> None:
        """Check the kernel."""
        bounded = [name for name, k in RADIAL_KERNELS.items() if k.support <= 1.0]
        if self.kernel not in bounded:
            raise ValueError(
                f"Expected kernel to be one of {bounded} (radii of at most delta), "
                f"got {self.kernel!r}."
            )

    def second_moment(self, n_features: int) -> float | None:
        """Return ``E[r^2]``."""
        m = check_count(n_features, "n_features")
        return RADIAL_KERNELS[self.kernel].second_moment(m)

    def _act(self, reduced: Any, m: int, source: RandomSource) -> Any:
        kernel = RADIAL_KERNELS[self.kernel]
        radii = kernel.sample_radius(m, len(reduced), source.host)
        return super()._act(source.array(radii)[:, None, None] * reduced, m, source)


@dataclass(frozen=True, kw_only=True)
class CoordinateProjections(_ImplicitMatrices):
    """Projections on random coordinates: diag(e_j), or random subsets of them.

    Their second moments are not isotropic, so kappa does not predict the robustness.

    Parameters
    ----------
    n_coordinates : int, default=1
        Number of coordinates that each matrix keeps, at most m.
    """

    n_coordinates: int = 1

    def __post_init__(self) -> None:
        """Check the number of coordinates."""
        check_count(self.n_coordinates, "n_coordinates")

    def second_moment(self, n_features: int) -> float | None:
        """Return None."""
        return None

    def _reduce(self, rows: Any) -> Any:
        if self.n_coordinates > rows.shape[-1]:
            raise ValueError(
                f"Expected n_coordinates to be at most the {rows.shape[-1]} features, "
                f"got {self.n_coordinates!r}: keep fewer."
            )
        return rows

    def _act(self, reduced: Any, m: int, source: RandomSource) -> Any:
        k = self.n_coordinates
        keys = source.host.uniform(size=(len(reduced), m))
        mask = np.zeros_like(keys)
        np.put_along_axis(mask, keys.argpartition(k - 1, axis=1)[:, :k], 1.0, axis=1)
        return reduced * source.array(mask)[:, None, :]


@dataclass(frozen=True, kw_only=True)
class RankOneDirections(_ImplicitMatrices):
    """Matrices u v^T with independent uniform unit vectors u and v.

    Parameters
    ----------
    antithetic : bool, default=True
        Draw pairs A, -A.
    """

    antithetic: bool = True

    def second_moment(self, n_features: int) -> float | None:
        """Return 1/m: ``E[u_k u_k'] E[v_t v_t']`` is 1/m^2 on the diagonal."""
        return 1.0 / check_count(n_features, "n_features")

    def _act(self, reduced: Any, m: int, source: RandomSource) -> Any:
        u = source.directions(len(reduced), m)
        v = source.directions(len(reduced), m)
        return (reduced @ v.swapaxes(1, 2)) * u


def _as_host(matrices: Any) -> np.ndarray:
    """Copy matrices of any array type to a float64 array."""
    if array_module(matrices) is not np:
        matrices = matrices.detach().cpu().double()
    elif isinstance(matrices, list | tuple):
        matrices = [_as_host(matrix) for matrix in matrices]
        if len(shapes := {matrix.shape for matrix in matrices}) > 1:
            raise ValueError(
                f"Expected matrices of one shape, got shapes {sorted(shapes)}."
            )
    values = np.asarray(matrices)
    if values.dtype.kind not in "fiub":
        raise ValueError(
            f"Expected real matrices, got dtype {values.dtype}: give floats."
        )
    return np.array(values, dtype=np.float64)


def _spectral_norm(matrix: np.ndarray) -> float:
    """Spectral norm, or a bound on it where that already lies below one."""
    magnitudes = np.abs(matrix)
    bound = np.sqrt(magnitudes.sum(0).max() * magnitudes.sum(1).max())
    return float(bound if bound <= 1.0 else np.linalg.norm(matrix, 2))


def _check_matrices(stack: np.ndarray, origin: str) -> np.ndarray:
    """Check a stack of square matrices: shape, finite, spectral norm at most one."""
    if stack.ndim != 3 or stack.shape[1] != stack.shape[2] or 0 in stack.shape:
        raise ValueError(
            f"Expected {origin} of shape (n_matrices, n_features, n_features), got "
            f"shape {stack.shape}."
        )
    for index, matrix in enumerate(stack):
        if not np.isfinite(matrix).all():
            raise ValueError(
                f"Expected finite {origin}, got NaN or infinity in matrix {index}."
            )
        norm = _spectral_norm(matrix)
        if norm > 1.0 + _NORM_TOLERANCE:
            raise ValueError(
                f"Expected {origin} of spectral norm at most 1 (Definition 1), got "
                f"norm {norm:.6g} for matrix {index}: divide by its norm and use "
                "deltas for the size."
            )
    return stack


class _ExplicitMatrices(MatrixDistribution):
    """Matrices that exist as arrays."""

    def second_moment(self, n_features: int) -> float | None:
        """Return None: nothing is known about the user's matrices."""
        return None

    @abstractmethod
    def _stack(self, n: int, m: int, source: RandomSource) -> np.ndarray:
        """Return the matrices of one run, (n, m, m)."""

    @abstractmethod
    def _pick(self, n: int, m: int, source: RandomSource) -> np.ndarray:
        """Return n matrices drawn independently, (n, m, m)."""

    def _iterate(
        self, rows: Any, n_matrices: int, source: RandomSource
    ) -> Iterator[Any]:
        stack = self._stack(n_matrices, rows.shape[-1], source)
        return (rows @ source.array(matrix.T) for matrix in stack)

    def _independent(self, rows: Any, source: RandomSource) -> Any:
        stack = self._pick(len(rows), rows.shape[-1], source)
        return rows @ source.array(stack.swapaxes(1, 2))

    def _block_cost(self, p: int, m: int) -> int:
        return m * m


@dataclass(frozen=True, eq=False)
class GivenMatrices(_ExplicitMatrices):
    """The user's matrices: each is used once, for independent draws at random.

    Parameters
    ----------
    matrices : {array-like, Tensor} of shape (k, m, m) or (m, m)
        Matrices of spectral norm at most one.
    """

    matrices: Any = field(repr=False)

    def __post_init__(self) -> None:
        """Check the matrices and keep a copy."""
        stack = _as_host(self.matrices)
        stack = stack[None] if stack.ndim == 2 else stack
        _check_matrices(stack, "matrices").setflags(write=False)
        object.__setattr__(self, "matrices", stack)

    def count(self, n_matrices: int) -> int:
        """Return the number of given matrices, whatever was asked for."""
        super().count(n_matrices)
        return len(self.matrices)

    def _stack(self, n: int, m: int, source: RandomSource) -> np.ndarray:
        if self.matrices.shape[-1] != m:
            raise ValueError(
                f"Expected matrices of shape ({m}, {m}) for {m} features, got "
                f"{self.matrices.shape[1:]!r}."
            )
        return self.matrices

    def _pick(self, n: int, m: int, source: RandomSource) -> np.ndarray:
        stack = self._stack(n, m, source)
        return stack[source.host.randint(len(stack), size=n)]


@dataclass(frozen=True)
class CallableMatrices(_ExplicitMatrices):
    """Matrices drawn by the user's function.

    Parameters
    ----------
    function : callable
        ``function(n_matrices, n_features, rng)`` returns n_matrices independent
        matrices of spectral norm at most one, (n_matrices, n_features, n_features);
        rng is a `numpy.random.Generator`.
    """

    function: Callable[[int, int, np.random.Generator], Any]

    def _stack(self, n: int, m: int, source: RandomSource) -> np.ndarray:
        stack = _as_host(self.function(n, m, source.generator))
        if stack.shape != (n, m, m):
            raise ValueError(
                "Expected the function of matrices to return an array of shape "
                f"({n}, {m}, {m}), (n_matrices, n_features, n_features), got shape "
                f"{stack.shape}."
            )
        return _check_matrices(stack, "matrices of the function")

    def _pick(self, n: int, m: int, source: RandomSource) -> np.ndarray:
        return self._stack(n, m, source)


MATRIX_DISTRIBUTIONS: dict[str, Callable[..., MatrixDistribution]] = {
    "orthogonal": HaarOrthogonal,
    "ball": RadialBall,
    "projection": CoordinateProjections,
    "rank_one": RankOneDirections,
}


def resolve_matrices(matrices: Any, *, kernel: str | None = None) -> MatrixDistribution:
    """Return the distribution that a `matrices` argument means.

    Parameters
    ----------
    matrices : str, MatrixDistribution, callable, {array-like, Tensor}
        A name of `MATRIX_DISTRIBUTIONS`, a distribution, a function
        ``(n_matrices, n_features, rng) -> (n_matrices, n_features, n_features)``, or
        given matrices of shape (n_matrices, m, m) or (m, m).
    kernel : {"truncated_gaussian", "epanechnikov", "uniform"} or None, default=None
        Radial kernel, for "ball" only; None: "truncated_gaussian".

    Returns
    -------
    MatrixDistribution
        The distribution.

    Raises
    ------
    ValueError
        If the name or kernel is unknown, or given matrices have a wrong shape, a
        spectral norm above one, or numbers that are not finite.

    Examples
    --------
    >>> from sklearn_relflat._robustness.perturbations import resolve_matrices
    >>> resolve_matrices("ball", kernel="uniform").second_moment(10)
    0.8333333333333334
    """
    if kernel is not None and not (isinstance(matrices, str) and matrices == "ball"):
        raise ValueError(
            "Expected kernel=None, since only matrices='ball' has a radial kernel, "
            f"got kernel={kernel!r}: remove it, or use matrices='ball'."
        )
    if isinstance(matrices, str):
        if matrices not in MATRIX_DISTRIBUTIONS:
            raise ValueError(
                f"Expected matrices to be one of {[*MATRIX_DISTRIBUTIONS]}, an array "
                f"of matrices or a callable, got {matrices!r}."
            )
        options = {} if kernel is None else {"kernel": kernel}
        return MATRIX_DISTRIBUTIONS[matrices](**options)
    if isinstance(matrices, MatrixDistribution):
        return matrices
    return CallableMatrices(matrices) if callable(matrices) else GivenMatrices(matrices)
