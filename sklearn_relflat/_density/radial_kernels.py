"""Rotation-invariant kernels in R^m: profile, normaliser and radial distribution.

One table serves the density estimate (`VariableKernelDensity`) and the feature
perturbations that induce the same local densities (Proposition 2 of [1]_).

Conventions: a kernel with bandwidth h around the point x has the density
``k(||u|| / h) / (h^m Z_m)`` at ``x + u``, where k is the profile,
``t = ||u|| / h`` the radius in units of the bandwidth, and
``Z_m = integral of k(||u||) over R^m`` the normaliser. Everything that can under-
or overflow in many dimensions (k, Z_m) is handled by its logarithm.

References
----------
.. [1] Petzka, Kamp, Adilova, Sminchisescu, Boley, "Relative Flatness and
   Generalization", NeurIPS 2021, Proposition 2.
"""

import sys
from abc import ABC, abstractmethod
from numbers import Integral
from types import ModuleType
from typing import Any

import numpy as np
from scipy.special import gammaln, hyp1f1
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_scalar

Seed = int | np.random.RandomState | None


def array_module(array: Any) -> ModuleType:
    """Return torch for a torch tensor (torch is then loaded already), else NumPy."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(array, torch.Tensor):
        return torch
    return np


def _log_ball_volume(m: int) -> float:
    """Log-volume of the unit ball of R^m."""
    return float(0.5 * m * np.log(np.pi) - gammaln(0.5 * m + 1.0))


def _log(x: Any) -> Any:
    """Logarithm that answers -inf at zero and below, without a warning."""
    xp = array_module(x)
    with np.errstate(divide="ignore"):
        return xp.log(x.clip(0.0, None))


class RadialKernel(ABC):
    """One kernel: a profile k(t), t >= 0, and what follows from it in R^m.

    Attributes
    ----------
    name : str
        Key in `RADIAL_KERNELS`.
    support : float
        Largest t with k(t) > 0: 1.0 for the kernels that the bandwidth truncates,
        infinity for the Gaussian.
    """

    name: str
    support: float = 1.0

    def log_profile(self, t: Any) -> Any:
        """Logarithm of the profile at radii in units of the bandwidth.

        Parameters
        ----------
        t : float, ndarray or Tensor
            Radii, ``t >= 0``.

        Returns
        -------
        float, ndarray or Tensor
            ``log k(t)``, -inf outside the support; like `t`.
        """
        if array_module(t) is np:
            t = np.asarray(t, dtype=np.float64)
        values = self.log_profile_squared(t * t)
        return values[()] if isinstance(values, np.ndarray) else values

    @abstractmethod
    def log_profile_squared(self, s: Any) -> Any:
        """Logarithm of the profile as a function of ``s = t^2``.

        Squared distances come from matrix products, so this is the form that the
        density estimate uses. Round-off may make them slightly negative.

        Parameters
        ----------
        s : ndarray or Tensor
            Squared radii in units of the bandwidth.

        Returns
        -------
        ndarray or Tensor
            ``log k(sqrt(s))``, -inf outside the support.
        """

    @abstractmethod
    def log_normalizer(self, m: int) -> float:
        """Logarithm of the integral of ``k(||u||)`` over R^m.

        Parameters
        ----------
        m : int
            Dimension.

        Returns
        -------
        float
            ``log Z_m``.
        """

    @abstractmethod
    def second_moment(self, m: int) -> float:
        """Compute ``E[t^2]``, t with the density ``~ t^(m-1) k(t)``.

        Parameters
        ----------
        m : int
            Dimension.

        Returns
        -------
        float
            ``E[t^2]``.
        """

    def sample_radius(self, m: int, size: int, random_state: Seed = None) -> np.ndarray:
        """Draw radii with the density ``~ t^(m-1) k(t)``.

        A uniform direction times such a radius has the density ``k(||u||) / Z_m``.

        Parameters
        ----------
        m : int
            Dimension.
        size : int
            Number of draws.
        random_state : int, RandomState instance or None, default=None
            Seed or generator.

        Returns
        -------
        ndarray of shape (size,)
            Radii in units of the bandwidth, in ``(0, support]``.
        """
        check_scalar(m, "m", Integral, min_val=1)
        return self._draw(m, size, check_random_state(random_state))

    @abstractmethod
    def _draw(self, m: int, size: int, rng: np.random.RandomState) -> np.ndarray:
        """Draw the radii of `sample_radius`."""


class _Gaussian(RadialKernel):
    """``k(t) = exp(-t^2 / 2)``: the bandwidth is the standard deviation."""

    name = "gaussian"
    support = float("inf")

    def log_profile_squared(self, s: Any) -> Any:
        return -0.5 * s

    def log_normalizer(self, m: int) -> float:
        return float(0.5 * m * np.log(2.0 * np.pi))

    def second_moment(self, m: int) -> float:
        return float(m)

    def _draw(self, m: int, size: int, rng: np.random.RandomState) -> np.ndarray:
        return np.sqrt(rng.chisquare(m, size))


class _Uniform(RadialKernel):
    """``k(t) = 1`` on [0, 1]: the uniform density of a ball."""

    name = "uniform"

    def log_profile_squared(self, s: Any) -> Any:
        xp = array_module(s)
        return xp.where(s <= 1.0, xp.zeros_like(s), -np.inf)

    def log_normalizer(self, m: int) -> float:
        return _log_ball_volume(m)

    def second_moment(self, m: int) -> float:
        return m / (m + 2.0)

    def _draw(self, m: int, size: int, rng: np.random.RandomState) -> np.ndarray:
        # One minus the draw lies in (0, 1]: the radius is never zero.
        return (1.0 - rng.uniform(size=size)) ** (1.0 / m)


class _Epanechnikov(RadialKernel):
    """``k(t) = 1 - t^2`` on [0, 1]."""

    name = "epanechnikov"

    def log_profile_squared(self, s: Any) -> Any:
        return _log(1.0 - s)

    def log_normalizer(self, m: int) -> float:
        return _log_ball_volume(m) + float(np.log(2.0 / (m + 2.0)))

    def second_moment(self, m: int) -> float:
        return m / (m + 4.0)

    def _draw(self, m: int, size: int, rng: np.random.RandomState) -> np.ndarray:
        # t^(m-1) (1 - t^2) dt is s^(m/2-1) (1 - s) ds / 2 with s = t^2.
        return np.sqrt(rng.beta(0.5 * m, 2.0, size))


class _TruncatedGaussian(RadialKernel):
    """``k(t) = exp(-t^2 / 2)`` on [0, 1]: the Gaussian, cut off at its bandwidth.

    The standard deviation equals the truncation radius (ratio one), so that the
    profile is that of the Gaussian kernel with the same bandwidth and Proposition 2
    applies to it literally.
    """

    name = "truncated_gaussian"

    def log_profile_squared(self, s: Any) -> Any:
        xp = array_module(s)
        return xp.where(s <= 1.0, -0.5 * s, -np.inf)

    def log_normalizer(self, m: int) -> float:
        # Z_m / V_m = m * int_0^1 t^(m-1) exp(-t^2/2) dt = 1F1(m/2; m/2 + 1; -1/2),
        # which lies between exp(-1/2) and 1: no underflow in any dimension, unlike
        # the chi-square probability P(chi^2_m <= 1) that it is proportional to.
        return _log_ball_volume(m) + float(np.log(self._relative_mass(m)))

    def second_moment(self, m: int) -> float:
        ratio = self._relative_mass(m + 2) / self._relative_mass(m)
        return float(m / (m + 2.0) * ratio)

    @staticmethod
    def _relative_mass(m: int) -> float:
        """Mean of the profile over the unit ball of R^m."""
        return float(hyp1f1(0.5 * m, 0.5 * m + 1.0, -0.5))

    def _draw(self, m: int, size: int, rng: np.random.RandomState) -> np.ndarray:
        # Rejection from the uniform ball accepts at least exp(-1/2) = 61 %.
        radii = np.empty(0)
        while radii.size < size:
            n_draws = 2 * (size - radii.size) + 8
            proposal = (1.0 - rng.uniform(size=n_draws)) ** (1.0 / m)
            accepted = rng.uniform(size=n_draws) <= np.exp(-0.5 * proposal**2)
            radii = np.concatenate([radii, proposal[accepted]])
        return radii[:size]


RADIAL_KERNELS: dict[str, RadialKernel] = {
    kernel.name: kernel
    for kernel in (_Gaussian(), _TruncatedGaussian(), _Epanechnikov(), _Uniform())
}
