"""Kernel density estimate with a bandwidth that follows the norm of each sample."""

from numbers import Integral, Real
from typing import Any, ClassVar, Self

import numpy as np
from sklearn.base import BaseEstimator, DensityMixin, _fit_context
from sklearn.utils import check_array, check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted, check_scalar, validate_data

from sklearn_relflat._density.arrays import (
    checked_range,
    checked_tensor,
    checked_weights,
    device_of,
    moved,
)
from sklearn_relflat._density.log_density import log_density
from sklearn_relflat._density.radial_kernels import RADIAL_KERNELS, Seed, array_module
from sklearn_relflat._results.documented import Documented

# Default number of float64 in a temporary array: 2 MB, which a core's cache holds, or
# 128 MB on an accelerator, which needs large launches.
_BLOCK_SIZE_CPU, _BLOCK_SIZE_DEVICE = 2**18, 2**24
# Squares of larger values would overflow.
_LARGEST_VALUE = 1e150


class VariableKernelDensity(Documented, DensityMixin, BaseEstimator):
    """Kernel density estimate whose bandwidth grows with the norm of each sample.

    Sample i carries the kernel with bandwidth ``delta * ||x_i||``: the local density
    that the random feature perturbations of Proposition 2 in [1]_ induce, normalised
    in all of R^m and evaluated in the log domain.

    Parameters
    ----------
    delta : float, default=0.1
        Ratio of the bandwidth to the norm of the sample. Not used when `bandwidth` is
        given.
    bandwidth : float or array-like of shape (n_samples,), default=None
        One bandwidth for all samples or one for each, instead of
        ``delta * ||x_i||``.
    kernel : {"gaussian", "truncated_gaussian", "epanechnikov", "uniform"}, \
            default="gaussian"
        Profile k(t) at the distance t in bandwidths:

        - "gaussian": ``exp(-t^2 / 2)``; the bandwidth is the standard deviation;
        - "truncated_gaussian": the same for ``t <= 1``, else 0: the standard
          deviation equals the radius of truncation;
        - "epanechnikov": ``1 - t^2`` for ``t <= 1``, else 0;
        - "uniform": 1 for ``t <= 1``, else 0.

        The last three have a compact support: where no sample is within its
        bandwidth the density is zero and the log-density -inf.
    min_bandwidth : "auto", float or None, default="auto"
        What happens to a sample at the origin, whose bandwidth ``delta * 0`` makes no
        density (neurons that are all silent). "auto" gives it the smallest positive
        bandwidth among the samples and changes no other; a number is a floor for all
        bandwidths; None makes it an error.
    block_size : int, default=None
        Number of float64 in the largest temporary array; fewer queries and samples are
        handled at once when it is small, and a handful of such arrays exist at any
        time. None takes 2**18 (2 MB) on the CPU and 2**24 (128 MB) on other devices.
    device : str, default=None
        Torch device that evaluates the density, such as "cuda". With None, torch
        tensors stay where they are and everything else is evaluated by NumPy.

    Attributes
    ----------
    bandwidth_ : ndarray or Tensor of shape (n_samples,)
        Bandwidth of each sample; a tensor if `fit` was given one.
    n_features_in_ : int
        Number of features.
    feature_names_in_ : ndarray of shape (n_features,)
        Names of the features, when X has names that are strings.

    See Also
    --------
    sklearn.neighbors.KernelDensity : One bandwidth for all samples, tree-based.

    Notes
    -----
    With weights w_i that sum to one, bandwidths h_i and the normaliser
    ``Z_m = integral of k(||u||) over R^m``, the density is

        p(q) = sum_i w_i k(||q - x_i|| / h_i) / (h_i^m Z_m).

    For a random matrix A = r O, O Haar distributed on the orthogonal group and r in
    (0, delta] independent with density ~ ``r^(m-1) k(r / delta)``, the perturbed
    sample x_i + A x_i has exactly the density of term i [1]_, for each kernel with
    compact support.

    Everything is computed in float64, also for float32 input; tensors are answered
    with float64 tensors, without gradients. Squared distances come from matrix
    products where their worst-case round-off in the log-kernel is below 1e-11 per
    dimension, else from differences, which is a few times slower.

    References
    ----------
    .. [1] Petzka, Kamp, Adilova, Sminchisescu, Boley, "Relative Flatness and
       Generalization", NeurIPS 2021, Proposition 2.

    Examples
    --------
    With equal bandwidths it is the ordinary kernel density estimate:

    >>> import numpy as np
    >>> from sklearn.neighbors import KernelDensity
    >>> from sklearn_relflat import VariableKernelDensity
    >>> X = np.random.default_rng(0).normal(size=(200, 10))
    >>> ours = VariableKernelDensity(bandwidth=0.5).fit(X).score_samples(X + 0.1)
    >>> theirs = KernelDensity(bandwidth=0.5, leaf_size=len(X)).fit(X)
    >>> bool(np.allclose(ours, theirs.score_samples(X + 0.1), rtol=1e-9))
    True

    By default the bandwidth is a fixed share of the norm, so that scaling the data by
    c divides the density by ``c^m``:

    >>> density = VariableKernelDensity(delta=0.1).fit([[3.0, 4.0], [0.0, 2.0]])
    >>> density.bandwidth_
    array([0.5, 0.2])
    >>> scaled = VariableKernelDensity(delta=0.1).fit([[30.0, 40.0], [0.0, 20.0]])
    >>> difference = density.score_samples([[3, 3]]) - scaled.score_samples([[30, 30]])
    >>> bool(np.allclose(difference, 2 * np.log(10)))
    True
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "delta": [Interval(Real, 0, None, closed="neither")],
        "bandwidth": [Interval(Real, 0, None, closed="neither"), "array-like", None],
        "kernel": [StrOptions(set(RADIAL_KERNELS))],
        "min_bandwidth": [
            StrOptions({"auto"}),
            Interval(Real, 0, None, closed="neither"),
            None,
        ],
        "block_size": [Interval(Integral, 1, None, closed="left"), None],
        "device": [str, None],
    }

    def __init__(
        self,
        *,
        delta: float = 0.1,
        bandwidth: Any = None,
        kernel: str = "gaussian",
        min_bandwidth: float | str | None = "auto",
        block_size: int | None = None,
        device: str | None = None,
    ) -> None:
        self.delta = delta
        self.bandwidth = bandwidth
        self.kernel = kernel
        self.min_bandwidth = min_bandwidth
        self.block_size = block_size
        self.device = device

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Store the samples with their bandwidths.

        Parameters
        ----------
        X : {array-like, Tensor} of shape (n_samples, n_features)
            Samples.
        y : object, default=None
            Not used, present by convention.
        sample_weight : array-like of shape (n_samples,), default=None
            Non-negative weights; only their ratios matter, and a sample with weight
            zero counts as absent.

        Returns
        -------
        VariableKernelDensity
            The fitted estimator.
        """
        samples = _validated(self, X, reset=True)
        home = device_of(samples)
        samples = moved(samples, _compute_device(self.device, home))
        weights = checked_weights(sample_weight, len(samples))
        bandwidth = self._checked_bandwidth(samples, weights)
        kept = weights > 0
        self._weights = weights[kept] / weights[kept].sum()
        self._kept_bandwidth = bandwidth[kept]
        self._samples = samples if kept.all() else samples[np.flatnonzero(kept)]
        self.bandwidth_ = moved(bandwidth, home)
        return self

    def _checked_bandwidth(self, samples: Any, weights: np.ndarray) -> np.ndarray:
        """Bandwidths of the samples, refusing those that make no density."""
        if self.bandwidth is None:
            xp = array_module(samples)
            norms = xp.sqrt(xp.einsum("ij,ij->i", samples, samples))
            with np.errstate(over="ignore"):
                bandwidth = self.delta * moved(norms, None)
            usable = (bandwidth > 0) & (weights > 0)
            if self.min_bandwidth == "auto" and usable.any():
                bandwidth[bandwidth == 0] = bandwidth[usable].min()
        elif isinstance(self.bandwidth, Real):
            bandwidth = np.full(len(weights), float(self.bandwidth))
        else:
            bandwidth = moved(self.bandwidth, None)
            bandwidth = check_array(bandwidth, ensure_2d=False, dtype=np.float64)
        if bandwidth.shape != weights.shape:
            raise ValueError(
                "bandwidth must be a number or have one entry for each sample, shape "
                f"{weights.shape!r}, got shape {bandwidth.shape!r}."
            )
        if not (self.min_bandwidth is None or isinstance(self.min_bandwidth, str)):
            bandwidth = np.maximum(bandwidth, self.min_bandwidth)
        # A sample without weight adds nothing, whatever its bandwidth.
        bad = np.flatnonzero((weights > 0) & ~((bandwidth > 0) & (bandwidth < np.inf)))
        if bad.size:
            raise ValueError(
                "Every bandwidth must be positive and finite, got "
                f"{float(bandwidth[bad[0]])!r} for {bad.size} of {len(weights)} rows, "
                f"the first of them {bad[:5].tolist()!r}. A row at the origin has the "
                "bandwidth delta * 0: set min_bandwidth, or leave these rows out."
            )
        return bandwidth

    def score_samples(self, X: Any) -> Any:
        """Log-density of each query.

        Parameters
        ----------
        X : {array-like, Tensor} of shape (n_queries, n_features)
            Queries.

        Returns
        -------
        ndarray or Tensor of shape (n_queries,)
            Log-densities in float64; a tensor on the device of X if X is a tensor.
            -inf outside the support of all kernels.
        """
        check_is_fitted(self)
        queries = _validated(self, X, reset=False)
        home = device_of(queries)
        device = _compute_device(self.device, home, device_of(self._samples))
        values = log_density(
            moved(queries, device),
            moved(self._samples, device),
            moved(self._kept_bandwidth, device),
            moved(np.log(self._weights), device),
            kernel=RADIAL_KERNELS[self.kernel],
            block_size=self.block_size or _default_block_size(device),
        )
        return moved(values, home)

    def score(self, X: Any, y: Any = None) -> float:
        """Total log-likelihood of the queries.

        Parameters
        ----------
        X : {array-like, Tensor} of shape (n_queries, n_features)
            Queries.
        y : object, default=None
            Not used, present by convention.

        Returns
        -------
        float
            Sum of the log-densities.
        """
        return float(self.score_samples(X).sum())

    def sample(self, n_samples: int = 1, random_state: Seed = None) -> Any:
        """Draw from the density.

        Parameters
        ----------
        n_samples : int, default=1
            Number of draws.
        random_state : int, RandomState instance or None, default=None
            Seed or generator.

        Returns
        -------
        ndarray or Tensor of shape (n_samples, n_features)
            Draws in float64; a tensor if `fit` was given one.
        """
        check_is_fitted(self)
        check_scalar(n_samples, "n_samples", Integral, min_val=1)
        rng = check_random_state(random_state)
        m = self.n_features_in_
        chosen = rng.choice(len(self._weights), size=n_samples, p=self._weights)
        radii = RADIAL_KERNELS[self.kernel].sample_radius(m, n_samples, rng)
        directions = rng.normal(size=(n_samples, m))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        noise = (radii * self._kept_bandwidth[chosen])[:, None] * directions
        draws = self._samples[chosen] + moved(noise, device_of(self._samples))
        return moved(draws, device_of(self.bandwidth_))


def _validated(estimator: VariableKernelDensity, X: Any, *, reset: bool) -> Any:
    """Check X as scikit-learn does: an array becomes float64, a tensor stays."""
    if array_module(X) is np:
        X = validate_data(estimator, X, dtype=np.float64, reset=reset)
    else:
        X = checked_tensor(X)
        validate_data(estimator, X, reset=reset, skip_check_array=True)
    return checked_range(X)


def _compute_device(*candidates: Any) -> Any:
    """Return the first device that is not None, after trying double precision there."""
    device = next((device for device in candidates if device is not None), None)
    if device is not None:
        import torch

        try:
            torch.empty(1, dtype=torch.float64, device=device)
        except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
            raise ValueError(
                "device must name a torch device that works here in double precision, "
                f"got {str(device)!r}: {error} Use device='cpu' or device=None."
            ) from error
    return device


def _default_block_size(device: Any) -> int:
    """Block that suits the device."""
    on_cpu = device is None or str(device).startswith("cpu")
    return _BLOCK_SIZE_CPU if on_cpu else _BLOCK_SIZE_DEVICE
