"""The data's own radius: where the variable-bandwidth density explains the data best.

Conventions: the kernel around sample j is Gaussian with the covariance
``(delta ||z_j||)^2 / m * I``, so that the root mean square of a perturbation's norm is
delta ||z_j||: the same delta as in Theorem 5 of [1]_, where the norm is exactly that.
Distances are kept as ``E_ij = m ||z_i - z_j||^2 / (2 ||z_j||^2)``: the log-kernel at a
radius is ``-E_ij / delta^2 - m log delta`` plus what does not depend on delta.

References
----------
.. [1] Petzka, Kamp, Adilova, Sminchisescu, Boley, "Relative Flatness and
   Generalization", NeurIPS 2021, Theorem 5 and Proposition 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import Any, ClassVar

import numpy as np
from scipy.optimize import minimize_scalar
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_scalar

from sklearn_relflat._density.arrays import (
    checked_points,
    checked_weights,
    device_of,
    moved,
)
from sklearn_relflat._density.feature_metric import FeatureMetric
from sklearn_relflat._density.radial_kernels import Seed, array_module
from sklearn_relflat._results.plottable import Plottable
from sklearn_relflat._results.result import NumberResult
from sklearn_relflat._results.words import number

# Distances that are kept between the evaluations of the likelihood (256 MB).
_KEPT_DISTANCES = 2**25
# Queries that settle the radius to about a per cent.
_MAX_QUERIES = 1000
# Nearer than this, relative to their norms, two samples are one that was repeated: it
# is what the round-off of a matrix product leaves of a distance, with a margin.
_COPY = 1e-6
_N_GRID = 20
_LOG_2PI = float(np.log(2.0 * np.pi))


@dataclass(frozen=True, eq=False)
class DensityRadius(Plottable, NumberResult):
    """Radius of local densities, chosen by leave-one-out likelihood.

    Attributes
    ----------
    radius : float
        delta: perturbations have the size delta ||z|| in the metric of `shape`.
    stderr : float
        Standard error of the radius as an estimate from these samples: the spread of
        the samples' own slopes over the curvature of the likelihood.
    log_likelihood : float
        Mean leave-one-out log-density at the radius, in nats.
    radii, log_likelihoods : ndarray of shape (n_radii,)
        The curve, at increasing radii.
    shape : str
        Shape of the perturbations.
    n_samples, n_features, n_queries : int
        Samples, features, and the samples whose likelihood was evaluated.
    """

    radius: float
    stderr: float
    log_likelihood: float
    radii: np.ndarray
    log_likelihoods: np.ndarray
    shape: str
    n_samples: int
    n_features: int
    n_queries: int

    guide = "smoothed_risk"
    _not_in_row: ClassVar[tuple[str, ...]] = ("radii", "log_likelihoods")

    def __float__(self) -> float:
        """Return the radius."""
        return self.radius

    def cells(self) -> list[dict[str, str]]:
        """Return the row as it is shown.

        Returns
        -------
        cells : list of dict
            Short texts by column.
        """
        return [
            {
                "radius": number(self.radius, self.stderr),
                "log-likelihood": number(self.log_likelihood),
                "shape": self.shape,
                "samples": str(self.n_samples),
                "features": str(self.n_features),
                "queries": str(self.n_queries),
            }
        ]

    def _sentence(self) -> str:
        """Say what the radius is best for."""
        return (
            f"Local densities of radius {number(self.radius, self.stderr)}, relative "
            "to the norm of each sample, explain the sample best."
        )

    def __repr__(self) -> str:
        """Describe the result in a line."""
        return (
            f"<DensityRadius {self.radius:.4g} +- {self.stderr:.2g}, shape "
            f"{self.shape!r}; log-likelihood {self.log_likelihood:.6g} of "
            f"{self.n_queries} of {self.n_samples} samples, {self.n_features} features>"
        )


def density_radius(
    Z: Any,
    y: Any = None,
    *,
    shape: str = "isotropic",
    grid: Any = None,
    n_queries: int | None = None,
    sample_weight: Any = None,
    random_state: Seed = None,
) -> DensityRadius:
    r"""Choose the radius of local densities by leave-one-out likelihood.

    The radius at which the variable-bandwidth kernel density of a sample, with
    bandwidths in proportion to the norms, gives the sample itself the highest
    likelihood when each sample's own kernel is left out. No labels are needed.

    Parameters
    ----------
    Z : {array-like, Tensor} of shape (n_samples, n_features)
        Features, or the X of a model that takes them as they are.
    y : array-like of shape (n_samples,), default=None
        Classes, for ``shape="within_class"`` only.
    shape : {"isotropic", "within_class", "covariance"}, default="isotropic"
        Covariance of the kernels up to their size: the identity, the pooled covariance
        within classes, or the total covariance, both shrunk (`ledoit_wolf`).
    grid : array-like of shape (n_radii,), default=None
        Radii to choose from; None searches all of them.
    n_queries : int, default=None
        Number of samples whose likelihood is evaluated, drawn at random; None takes
        1,000, or all if there are fewer. All samples stay centres of kernels, so that
        the mean likelihood has no bias, and the radius only noise.
    sample_weight : array-like of shape (n_samples,), default=None
        Weights; an integer counts as a repetition.
    random_state : int, RandomState instance or None, default=None
        Seed of the choice of queries. None: always the same queries.

    Returns
    -------
    result : DensityRadius
        The radius with its curve.

    Raises
    ------
    ValueError
        If features are not finite, or fewer than two of them are different.

    See Also
    --------
    smoothed_risk : The risk at this radius.
    VariableKernelDensity : The density.

    Notes
    -----
    With the norms :math:`c_j = \|z_j\|` in the metric of the shape,

    .. math::
        \ell(\delta) = \frac1n \sum_i \log \frac{1}{n-1} \sum_{j \ne i}
            \mathcal N\Bigl(z_i;\, z_j,\, \frac{\delta^2 c_j^2}{m} I\Bigr).

    *Copies.* Two equal samples would make the likelihood infinite at the radius zero.
    Copies are therefore left out together with the sample itself: a repeated sample
    counts as one of that weight. Radii below a tenth of the median distance to the
    nearest other sample, relative to its norm, are not searched, so that samples that
    are copies but for some noise do not decide either, as long as they are fewer than
    half.

    *Samples at the origin* have no bandwidth and get the smallest positive norm, as in
    `VariableKernelDensity`.

    The search looks at a grid of radii in even logarithmic steps, then refines the best
    of them by `scipy.optimize.minimize_scalar`.

    References
    ----------
    .. [1] H. Petzka, M. Kamp, L. Adilova, C. Sminchisescu, M. Boley, "Relative Flatness
       and Generalization", NeurIPS 2021, Proposition 2.
    .. [2] L. Breiman, W. Meisel, E. Purcell, "Variable kernel estimates of multivariate
       densities", Technometrics 19, 1977.

    Examples
    --------
    Scaling the features changes nothing, as the radius is relative:

    >>> from sklearn.datasets import load_iris
    >>> from sklearn.preprocessing import StandardScaler
    >>> from sklearn_relflat import density_radius
    >>> Z = StandardScaler().fit_transform(load_iris().data)
    >>> round(float(density_radius(Z)), 3) == round(float(density_radius(100 * Z)), 3)
    True
    """
    points = checked_points(Z)
    weights = checked_weights(sample_weight, len(points))
    metric = FeatureMetric.fit(moved(points, None), shape, y)
    points = metric.whitened(points)
    kept = np.flatnonzero(weights > 0)
    curve = _Likelihood(points[kept], weights[kept], n_queries, random_state)
    # Of the whitened features; those themselves have another volume.
    volume = 0.0 if metric.root is None else float(np.log(metric.root.diagonal()).sum())
    radii, values = curve.searched(_checked_grid(grid))
    best = int(np.argmax(values))
    return DensityRadius(
        radius=float(radii[best]),
        stderr=curve.stderr(float(radii[best])),
        log_likelihood=float(values[best]) - volume,
        radii=radii,
        log_likelihoods=values - volume,
        shape=shape,
        n_samples=len(weights),
        n_features=points.shape[1],
        n_queries=curve.n_queries,
    )


def _checked_grid(grid: Any) -> np.ndarray | None:
    """Radii in increasing order."""
    if grid is None:
        return None
    radii = np.unique(np.asarray(grid, dtype=np.float64))
    if not radii.size or not np.all((radii > 0) & np.isfinite(radii)):
        raise ValueError(
            f"Expected grid to be positive finite radii, at least one, got {grid!r}."
        )
    return radii


class _Likelihood:
    """Leave-one-out log-likelihood of a sample as a function of the radius."""

    def __init__(
        self,
        points: Any,
        weights: np.ndarray,
        n_queries: int | None,
        random_state: Seed,
    ) -> None:
        xp = array_module(points)
        self._xp = xp
        self._norms = xp.sqrt((points * points).sum(1))
        largest = float(self._norms.max())
        if not largest > 0:
            raise ValueError(
                f"Expected features that are not all zero, got {len(points)} samples "
                "at the origin, whose perturbations are zero at any radius. Choose "
                "another layer, or shift the features."
            )
        smallest = float(self._norms[self._norms > 0].min())
        self._norms = self._norms.clip(smallest, None)
        # A common shift loses no distance and saves digits.
        self._points = points - points.mean(0)
        self._m = points.shape[1]
        queries = _chosen(len(points), n_queries, random_state)
        self.n_queries = len(queries)
        self._queries = queries
        self._query_weights = weights[queries] / weights[queries].sum()
        self._weights = moved(weights, device_of(points))
        step = max(1, _KEPT_DISTANCES // (8 * len(points)))
        self._blocks = [queries[i : i + step] for i in range(0, len(queries), step)]
        is_kept = len(queries) * len(points) <= _KEPT_DISTANCES
        self._kept = [self._exponents(b) for b in self._blocks] if is_kept else None
        self._floor, self._ceiling = self._range()

    def _exponents(self, rows: np.ndarray) -> tuple[Any, Any]:
        """E_ij of some queries, infinite for copies, and the weight of all others."""
        xp, points = self._xp, self._points
        queries = points[rows]
        squares = (points * points).sum(1)
        distances = queries @ points.T
        distances *= -2.0
        distances += squares
        distances += squares[rows][:, None]
        # Round-off in them is relative to the norms of the centred points.
        size = xp.sqrt(squares)
        scale = self._norms + size
        near = distances <= (_COPY * (scale[rows][:, None] + scale)) ** 2
        left = xp.where(near, xp.zeros_like(distances[:1]), self._weights).sum(1)
        distances *= self._m / (2.0 * self._norms**2)
        distances[near] = np.inf
        return distances, left

    def _range(self) -> tuple[float, float]:
        """Radii between which the best one lies."""
        nearest, farthest = [], 0.0
        for E, _ in self._parts():
            E = moved(E, None)
            lowest = E.min(axis=1)
            nearest.append(np.sqrt(2.0 * lowest / self._m))
            finite = E[np.isfinite(E)]
            if finite.size:
                farthest = max(farthest, float(finite.max()))
        distance = np.concatenate(nearest)
        distance = distance[np.isfinite(distance)]
        if not distance.size:
            raise ValueError(
                "Expected at least two different samples, got copies of one: their "
                "distances say nothing about a radius. Give more samples."
            )
        return 0.1 * float(np.median(distance)), 2.0 * np.sqrt(2 * farthest / self._m)

    def _parts(self) -> Any:
        """Exponents of the blocks of queries, kept or made again."""
        if self._kept is not None:
            return self._kept
        return (self._exponents(block) for block in self._blocks)

    def _of_each(
        self, radius: float, *, slopes: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Log-density of each query without itself, and its slope in log radius."""
        xp, m = self._xp, self._m
        offset = xp.log(self._weights) - m * xp.log(self._norms)
        offset = offset - m * (np.log(radius) + 0.5 * (_LOG_2PI - np.log(m)))
        values, found = [], []
        for E, left in self._parts():
            terms = E * (-1.0 / radius**2)
            terms += offset
            top = xp.amax(terms, 1)
            # A sample that is alone with its copies has no density without itself.
            top = xp.where(xp.isfinite(top), top, xp.zeros_like(top))
            terms -= top[:, None]
            terms = xp.exp(terms, out=terms)
            total = terms.sum(1)
            with np.errstate(divide="ignore", invalid="ignore"):
                values.append(moved(top + xp.log(total) - xp.log(left), None))
                if slopes:
                    E = xp.where(xp.isfinite(E), E, xp.zeros_like(E))
                    mean = (terms * E).sum(1) / total
                    found.append(moved(2.0 * mean / radius**2 - m, None))
        return np.concatenate(values), np.concatenate(found) if slopes else np.empty(0)

    def __call__(self, radius: float) -> float:
        """Mean log-density of the queries."""
        values, _ = self._of_each(radius)
        finite = np.isfinite(values)
        return float(
            (values[finite] * self._query_weights[finite]).sum()
            / self._query_weights[finite].sum()
        )

    def searched(self, grid: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Radii with their likelihoods, the best one among them."""
        if grid is not None:
            return grid, np.array([self(radius) for radius in grid])
        curve: dict[float, float] = {}

        def minus(log_radius: float) -> float:
            radius = float(np.exp(log_radius))
            curve[radius] = self(radius)
            return -curve[radius]

        steps = np.linspace(np.log(self._floor), np.log(self._ceiling), _N_GRID)
        best = int(np.argmin([minus(step) for step in steps]))
        minimize_scalar(
            minus,
            bounds=(steps[max(best - 1, 0)], steps[min(best + 1, _N_GRID - 1)]),
            method="bounded",
            options={"xatol": 1e-3},
        )
        radii = np.array(sorted(curve))
        return radii, np.array([curve[radius] for radius in radii])

    def stderr(self, radius: float) -> float:
        """Return the standard error of the best radius, by the sandwich formula."""
        step = 0.02
        weights = self._query_weights
        here, before, after = (
            self._of_each(radius * np.exp(shift), slopes=True)[1]
            for shift in (0.0, -step, step)
        )
        finite = np.isfinite(here) & np.isfinite(before) & np.isfinite(after)
        if finite.sum() < 2:
            return float("inf")
        share = weights[finite] / weights[finite].sum()
        curvature = ((after - before)[finite] * share).sum() / (2 * step)
        centred = here[finite] - (here[finite] * share).sum()
        spread = np.sqrt((centred**2 * share**2).sum())
        return float(radius * spread / abs(curvature)) if curvature else float("inf")


def _chosen(n: int, n_queries: int | None, random_state: Seed) -> np.ndarray:
    """Positions of the queries, in increasing order."""
    if n_queries is None:
        n_queries = _MAX_QUERIES
    else:
        check_scalar(n_queries, "n_queries", Integral, min_val=2)
    if n_queries >= n:
        return np.arange(n)
    rng = check_random_state(0 if random_state is None else random_state)
    return np.sort(rng.choice(n, n_queries, replace=False))
