"""Log-density of a mixture of kernels with one bandwidth each, in bounded memory."""

from collections.abc import Iterator
from math import isqrt
from typing import Any

import numpy as np
from scipy.spatial.distance import cdist

from sklearn_relflat._density.radial_kernels import RadialKernel, array_module

# Round-off allowed in the logarithm of a kernel, per dimension (a log-density grows
# with the dimension).
_TOLERANCE = 1e-11
_EPS = float(np.finfo(np.float64).eps)


def log_density(
    queries: Any,
    samples: Any,
    bandwidth: Any,
    log_weights: Any,
    *,
    kernel: RadialKernel,
    block_size: int,
) -> Any:
    """Logarithm of a kernel density estimate with one bandwidth per sample.

    All arrays are float64, of one kind and on one device.

    Parameters
    ----------
    queries : ndarray or Tensor of shape (n_queries, m)
        Points of evaluation.
    samples : ndarray or Tensor of shape (n_samples, m)
        Centres of the kernels.
    bandwidth : ndarray or Tensor of shape (n_samples,)
        Positive bandwidths.
    log_weights : ndarray or Tensor of shape (n_samples,)
        Logarithms of weights that sum to one.
    kernel : RadialKernel
        A row of `RADIAL_KERNELS`.
    block_size : int
        Largest number of elements of a temporary array (one row at least).

    Returns
    -------
    ndarray or Tensor of shape (n_queries,)
        Log-densities.
    """
    xp = array_module(queries)
    n_features = samples.shape[1]
    coefficients = log_weights - n_features * xp.log(bandwidth)
    center = samples.mean(axis=0)
    maximum = xp.full_like(queries[:, 0], -np.inf)
    total = xp.zeros_like(queries[:, 0])
    longest = block_size // (n_features + 2)
    n_centers = max(1, min(2 * isqrt(block_size), longest, len(samples)))
    n_queries = max(1, min(block_size // n_centers, longest))
    for block in _slices(len(samples), n_centers):
        centers = _KernelCenters(samples[block], bandwidth[block], center, kernel)
        for rows in _slices(len(queries), n_queries):
            squared = centers.squared_distances(queries[rows], block_size)
            if np.isfinite(kernel.support) and float(squared.min()) > kernel.support**2:
                continue  # in many dimensions most blocks are out of reach
            terms = kernel.log_profile_squared(squared)
            terms += coefficients[block]
            largest = xp.maximum(maximum[rows], xp.amax(terms, axis=1))
            # Outside every support so far the maximum is -inf; shifting by zero
            # there keeps -inf - (-inf) = nan out.
            shift = xp.where(xp.isfinite(largest), largest, xp.zeros_like(largest))
            terms -= shift[:, None]
            summed = xp.exp(terms, out=terms).sum(axis=1)
            total[rows] = total[rows] * xp.exp(maximum[rows] - shift) + summed
            maximum[rows] = largest
    with np.errstate(divide="ignore"):
        return maximum + xp.log(total) - kernel.log_normalizer(n_features)


class _KernelCenters:
    """A block of kernel centres and the squared distances, in bandwidths, to them.

    One matrix product of the rows (q, |q|^2, 1) with (-2 x / h^2, 1 / h^2, |x|^2 / h^2)
    gives |q - x|^2 / h^2; q and x are centred first. Its round-off is at most
    (m + 8) eps (|q|^2 + |x|^2) / h^2: where that exceeds the tolerance (bandwidths
    below about 1/200 of the distance to the centre of the data), distances are summed
    from the differences instead.
    """

    def __init__(
        self, samples: Any, bandwidth: Any, center: Any, kernel: RadialKernel
    ) -> None:
        xp = array_module(samples)
        self.samples, self.bandwidth, self.center = samples, bandwidth, center
        self.has_edge = bool(np.isfinite(kernel.support))
        with np.errstate(all="ignore"):
            centred = samples - center
            weights = (1.0 / bandwidth**2)[:, None]
            norms = (centred * centred).sum(axis=1)[:, None]
            self.table = xp.hstack((-2.0 * weights * centred, weights, weights * norms))

    def squared_distances(self, queries: Any, block_size: int) -> Any:
        """Return ``|q - x|^2 / h^2`` of shape (n_queries, n_centers)."""
        xp = array_module(queries)
        centred = queries - self.center
        norms = (centred * centred).sum(axis=1)[:, None]
        with np.errstate(all="ignore"):
            ratio = norms.max() * self.table[:, -2].max() + self.table[:, -1].max()
        # In units of the tolerance. A bandwidth whose square underflows makes it inf
        # or nan, and both must fail the test.
        round_off = _EPS * float(ratio) / _TOLERANCE
        if not round_off <= (0.05 if self.has_edge else 1.0):
            return self._from_differences(queries)
        squared = xp.hstack((centred, norms, xp.ones_like(norms))) @ self.table.T
        if self.has_edge:
            self._sharpen_edge(squared, queries, round_off, block_size)
        return squared

    def _from_differences(self, queries: Any) -> Any:
        """Sum the squared distances from differences, which loses no digit."""
        xp = array_module(queries)
        if xp is np:
            distances = cdist(queries, self.samples)
        else:
            mode = "donot_use_mm_for_euclid_dist"
            distances = xp.cdist(queries, self.samples, compute_mode=mode)
        with np.errstate(over="ignore"):
            distances /= self.bandwidth
            return xp.square(distances, out=distances)

    def _sharpen_edge(
        self, squared: Any, queries: Any, width: float, block_size: int
    ) -> None:
        """Recompute in place what lies so near 1 that the support or log k is unsure.

        At the edge of a compact support round-off is amplified by 1 / (1 - t^2).
        """
        xp = array_module(squared)
        rows, columns = xp.where(xp.abs(squared - 1.0) <= width)
        for part in _slices(len(rows), max(1, block_size // queries.shape[1])):
            i, j = rows[part], columns[part]
            difference = (queries[i] - self.samples[j]) / self.bandwidth[j][:, None]
            squared[i, j] = (difference * difference).sum(axis=1)


def _slices(n_rows: int, step: int) -> Iterator[slice]:
    """Cut range(n_rows) into slices of `step`."""
    return (slice(start, start + step) for start in range(0, n_rows, step))
