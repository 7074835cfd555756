"""The interface of distributions over feature matrices, and their random numbers.

Conventions: phi is a row of `features` (n, m), or a column of `features[i]` where they
have the shape (n, m, P) with P positions per sample. Feature robustness (Definition 1
of [1]_) perturbs phi to (I + delta A) phi with ||A|| <= 1 and the same A for all
samples: `perturb`. A local density around every sample (Proposition 2) needs an
independent A for each: `perturb_independent`. The size delta is left to the caller.

References
----------
.. [1] Petzka, Kamp, Adilova, Sminchisescu, Boley, "Relative Flatness and
   Generalization", NeurIPS 2021, Definition 1, Proposition 2, Theorem 5.
.. [2] Mezzadri, "How to generate random matrices from the classical compact groups",
   Notices of the AMS 54 (2007).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from numbers import Integral
from typing import Any

import numpy as np
from sklearn.utils import check_random_state

from sklearn_relflat._density.radial_kernels import Seed, array_module

# Numbers in the largest temporary array of `perturb_independent`.
_BLOCK_SIZE = 2**24


class RandomSource:
    """Random arrays of one dtype on one device, from generators of their own."""

    def __init__(self, random_state: Seed, like: Any) -> None:
        # None means fresh entropy: the state of the global generator is the user's.
        user = np.random.RandomState() if random_state is None else random_state
        seeds = check_random_state(user).randint(0, 2**32, size=8, dtype=np.uint32)
        self.host = np.random.RandomState(seeds)
        self.generator = np.random.default_rng(seeds)
        self.xp = array_module(like)
        self.like = like
        if self.xp is not np:
            self.device_generator = self.xp.Generator(like.device)
            self.device_generator.manual_seed(int(self.generator.integers(2**63)))

    def array(self, values: np.ndarray) -> Any:
        """Copy host values to the dtype and device."""
        if self.xp is np:
            return values.astype(self.like.dtype)
        return self.xp.tensor(values, dtype=self.like.dtype, device=self.like.device)

    def normal(self, *shape: int) -> Any:
        """Draw independent standard normal numbers."""
        if self.xp is np:
            return self.generator.standard_normal(shape, dtype=self.like.dtype)
        return self.xp.randn(
            shape,
            generator=self.device_generator,
            dtype=self.like.dtype,
            device=self.like.device,
        )

    def directions(self, b: int, m: int) -> Any:
        """Draw b uniform unit vectors, (b, 1, m)."""
        draws = self.normal(b, 1, m)
        squares = (draws * draws).sum(-1)[..., None]
        # In float32 a normal number can be zero; +-e_1 is then as good a direction.
        draws[..., :1] += squares == 0
        return draws / self.xp.sqrt(squares + (squares == 0))

    def frames(self, b: int, m: int, k: int) -> Any:
        """Draw b uniform frames of k orthonormal vectors as rows, (b, k, m)."""
        if k == 1:
            return self.directions(b, m)
        q, r = self.xp.linalg.qr(self.normal(b, m, k))
        # Uniform only with the signs fixed so that R has a positive diagonal: without
        # that the law depends on the QR routine (Mezzadri [2]).
        diagonal = self.xp.einsum("bkk->bk", r)
        signs = self.xp.copysign(self.xp.ones_like(diagonal), diagonal)
        return (q * signs[:, None, :]).swapaxes(1, 2)


def _as_features(features: Any) -> Any:
    """Check features of shape (n, m) or (n, m, P): real, finite, not empty."""
    xp = array_module(features)
    if xp is np:
        features = np.asarray(features)
        real, floating = features.dtype.kind in "fiub", features.dtype.kind == "f"
    else:
        real, floating = not features.is_complex(), features.is_floating_point()
    if not real or features.ndim not in {2, 3} or 0 in features.shape:
        raise ValueError(
            "Expected dense real features of shape (n_samples, n_features) or "
            "(n_samples, n_features, n_positions), none of them zero, got "
            f"shape {tuple(features.shape)} and dtype {features.dtype}."
        )
    features = features if floating else features * 1.0
    if not bool(xp.isfinite(features).all()):
        raise ValueError(
            "Expected finite features, got NaN or infinity: check the inputs and the "
            "weights of the layers below."
        )
    return features


def _computing_dtype(features: Any) -> Any:
    """Return the dtype to draw in: QR decompositions exist in single and double."""
    xp = array_module(features)
    return xp.float64 if features.dtype.itemsize >= 8 else xp.float32


def _cast(array: Any, dtype: Any) -> Any:
    """Return the array in the dtype, itself where it has it already."""
    if array_module(array) is np:
        return array.astype(dtype, copy=False)
    return array.to(dtype)


def check_count(value: Any, name: str) -> int:
    """Check a number of matrices, features or coordinates."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ValueError(
            f"Expected {name} to be a positive integer, got {value!r}: give at least 1."
        )
    return int(value)


class MatrixDistribution(ABC):
    """A distribution over m x m feature matrices of spectral norm at most one.

    Subclasses say how matrices act on rows; sampling, seeding, batching and array
    types are here. Every method takes NumPy arrays and torch tensors and answers in
    kind, on the same device and in the same dtype; the draws come from generators of
    their own, seeded by `random_state`, never from the global ones.
    `random_state=None` takes fresh entropy.

    Attributes
    ----------
    antithetic : bool
        Whether the matrices 2j and 2j + 1 are a pair A, -A. Averages over pairs are
        free of odd orders in delta. An odd last matrix stays alone.
    """

    antithetic: bool = False

    def count(self, n_matrices: int) -> int:
        """Return how many matrices come when `n_matrices` are asked for.

        Parameters
        ----------
        n_matrices : int
            The number asked for.

        Returns
        -------
        int
            The same number, except for given matrices, which are all used once.
        """
        return check_count(n_matrices, "n_matrices")

    def draw_index(self, n_matrices: int) -> np.ndarray:
        """Return the independent draw that each matrix belongs to.

        Matrices of one antithetic pair are one draw: a standard error is that of the
        means over equal indices.

        Parameters
        ----------
        n_matrices : int
            The number asked for.

        Returns
        -------
        ndarray of shape (n_matrices,)
            0, 0, 1, 1, ... for antithetic pairs, else 0, 1, 2, ...
        """
        return np.arange(self.count(n_matrices)) // (2 if self.antithetic else 1)

    @abstractmethod
    def second_moment(self, n_features: int) -> float | None:
        """Return c with ``E[A_kt A_k't'] = (c / m) delta_kk' delta_tt'``.

        To second order the feature robustness is then ``c delta^2 / (2m) kappa``
        (Theorem 5). ``c = E ||A||_F^2 / m``.

        Parameters
        ----------
        n_features : int
            m.

        Returns
        -------
        float or None
            c, or None where the second moments are not of this form, so that kappa
            does not predict the robustness.
        """

    def iter_matrices(
        self,
        n_matrices: int,
        n_features: int,
        random_state: Seed = None,
        *,
        like: Any = None,
    ) -> Iterator[Any]:
        """Yield explicit matrices one at a time; the same again for the same seed.

        Parameters
        ----------
        n_matrices : int
            Number of matrices.
        n_features : int
            m.
        random_state : int, RandomState instance or None, default=None
            Seed.
        like : ndarray or Tensor, default=None
            Array whose type, device and dtype the matrices take; None: float64 arrays.

        Returns
        -------
        iterator of {ndarray, Tensor} of shape (n_features, n_features)
            The matrices.
        """
        m = check_count(n_features, "n_features")
        n_matrices = self.count(n_matrices)
        like = np.empty(0) if like is None else like[:0] * 1.0
        dtype = like.dtype
        source = RandomSource(random_state, _cast(like, _computing_dtype(like)))
        acted = self._iterate(source.array(np.eye(m))[None], n_matrices, source)
        # Row j of the result is A e_j, column j of A.
        return (_cast(rows[0].T, dtype) for rows in acted)

    def sample(
        self, n_matrices: int, n_features: int, random_state: Seed = None
    ) -> np.ndarray:
        """Draw explicit matrices.

        Parameters
        ----------
        n_matrices : int
            Number of matrices.
        n_features : int
            m.
        random_state : int, RandomState instance or None, default=None
            Seed.

        Returns
        -------
        ndarray of shape (n_matrices, n_features, n_features)
            Matrices of spectral norm at most one.
        """
        return np.stack([*self.iter_matrices(n_matrices, n_features, random_state)])

    def perturb(
        self, features: Any, n_matrices: int, random_state: Seed = None
    ) -> Iterator[Any]:
        """Yield A phi of all samples, one matrix A at a time (Definition 1).

        The joint law over the samples is that of one shared matrix. With at least as
        many columns as features the matrices are those of `iter_matrices` with the
        same seed and `like=features`; with fewer columns no matrix is built.

        Parameters
        ----------
        features : {array-like, Tensor} of shape (n, m) or (n, m, P)
            All samples at once.
        n_matrices : int
            Number of matrices.
        random_state : int, RandomState instance or None, default=None
            Seed.

        Returns
        -------
        iterator of {ndarray, Tensor} like `features`
            Perturbations of size delta = 1.
        """
        features = _as_features(features)
        n_matrices = self.count(n_matrices)
        rows = _cast(features, _computing_dtype(features))
        source = RandomSource(random_state, rows[:0])
        if rows.ndim == 2:
            acted = self._iterate(rows[None], n_matrices, source)
            return (_cast(result[0], features.dtype) for result in acted)
        n, m, n_positions = rows.shape
        rows = rows.swapaxes(1, 2)
        acted = self._iterate(rows.reshape(1, -1, m), n_matrices, source)
        return (
            _cast(result.reshape(n, n_positions, m), features.dtype).swapaxes(1, 2)
            for result in acted
        )

    def perturb_independent(self, features: Any, random_state: Seed = None) -> Any:
        """Draw A_i phi_i with an independent matrix A_i for every sample.

        Parameters
        ----------
        features : {array-like, Tensor} of shape (n, m) or (n, m, P)
            The P columns of one sample share their matrix.
        random_state : int, RandomState instance or None, default=None
            Seed.

        Returns
        -------
        {ndarray, Tensor} like `features`
            Perturbations of size delta = 1.
        """
        features = _as_features(features)
        rows = _cast(features, _computing_dtype(features))
        source = RandomSource(random_state, rows[:0])
        rows = rows[:, None, :] if rows.ndim == 2 else rows.swapaxes(1, 2)
        step = max(1, _BLOCK_SIZE // self._block_cost(*rows.shape[1:]))
        parts = [
            self._independent(rows[start : start + step], source)
            for start in range(0, len(rows), step)
        ]
        result = parts[0] if len(parts) == 1 else source.xp.concatenate(parts)
        result = result[:, 0] if features.ndim == 2 else result.swapaxes(1, 2)
        return _cast(result, features.dtype)

    @abstractmethod
    def _iterate(
        self, rows: Any, n_matrices: int, source: RandomSource
    ) -> Iterator[Any]:
        """Check, then yield ``rows @ A.T`` matrix by matrix; rows (1, p, m)."""

    @abstractmethod
    def _independent(self, rows: Any, source: RandomSource) -> Any:
        """Return ``rows[i] @ A_i.T`` for independent matrices; rows (b, p, m)."""

    @abstractmethod
    def _block_cost(self, p: int, m: int) -> int:
        """Return the numbers held per sample in `_independent`."""
