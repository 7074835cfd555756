"""Profile, normaliser and radial sampler of every kernel fit together."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import kstest

from sklearn_relflat._density.radial_kernels import RADIAL_KERNELS

KERNELS = sorted(RADIAL_KERNELS)
DIMENSIONS = [1, 2, 3, 10, 84]


def profile(name, t):
    """The four profiles, written out."""
    if name == "gaussian":
        return np.exp(-(t**2) / 2)
    if t > 1:
        return 0.0
    return {
        "truncated_gaussian": np.exp(-(t**2) / 2),
        "epanechnikov": 1 - t**2,
        "uniform": 1.0,
    }[name]


def sphere_area(m):
    """Surface of the unit sphere of R^m by its recursion over m."""
    area = {1: 2.0, 2: 2 * np.pi}
    for k in range(3, m + 1):
        area[k] = area[k - 2] * 2 * np.pi / (k - 2)
    return area[m]


def radial_integral(name, m, power=0, upper=None):
    """Integral of t^(m - 1 + power) k(t) over [0, upper]."""
    edges = [0.0, np.sqrt(m), np.sqrt(m) + 5, 60.0] if name == "gaussian" else [0, 1]
    if upper is not None:
        edges = [edge for edge in edges if edge < upper] + [upper]

    def integrand(t):
        return t ** (m - 1 + power) * profile(name, t)

    return sum(
        quad(integrand, a, b, epsabs=0, epsrel=1e-11, limit=200)[0]
        for a, b in pairwise(edges)
    )


@pytest.mark.parametrize("name", KERNELS)
def test_log_profile_is_the_profile(name):
    kernel = RADIAL_KERNELS[name]
    radii = np.array([0.0, 0.3, 0.999, 1.001, 7.0])
    expected = np.array([profile(name, t) for t in radii])
    np.testing.assert_allclose(np.exp(kernel.log_profile(radii)), expected, rtol=1e-13)
    assert kernel.log_profile(2.0) == (-2.0 if name == "gaussian" else -np.inf)
    assert kernel.support == (np.inf if name == "gaussian" else 1.0)


@pytest.mark.parametrize("name", KERNELS)
def test_log_profile_of_a_tensor_keeps_dtype(name):
    radii = torch.tensor([0.0, 0.3, 0.999, 1.001, 7.0], dtype=torch.float64)
    values = RADIAL_KERNELS[name].log_profile(radii)
    assert values.dtype == torch.float64
    expected = RADIAL_KERNELS[name].log_profile(radii.numpy())
    np.testing.assert_allclose(values.numpy(), expected, rtol=1e-13)


@pytest.mark.parametrize("m", DIMENSIONS)
@pytest.mark.parametrize("name", KERNELS)
def test_normalizer_and_second_moment_by_quadrature(name, m):
    kernel = RADIAL_KERNELS[name]
    mass = radial_integral(name, m)
    log_normalizer = np.log(sphere_area(m)) + np.log(mass)
    assert kernel.log_normalizer(m) == pytest.approx(log_normalizer, abs=1e-9)
    second_moment = radial_integral(name, m, power=2) / mass
    assert kernel.second_moment(m) == pytest.approx(second_moment, rel=1e-9)


@pytest.mark.parametrize("name", KERNELS)
def test_normalizer_does_not_underflow_in_many_dimensions(name):
    # Between the uniform ball, whose normaliser is the largest on the ball, and the
    # smallest value of the profile's average there.
    log_z, log_v = (RADIAL_KERNELS[k].log_normalizer(4096) for k in (name, "uniform"))
    assert np.isfinite(log_z)
    if name != "gaussian":
        assert log_v + np.log(2 / 4098) <= log_z <= log_v


@pytest.mark.parametrize("m", [1, 3, 84])
@pytest.mark.parametrize("name", KERNELS)
def test_sampled_radii_have_the_radial_density(name, m):
    radii = RADIAL_KERNELS[name].sample_radius(m, 2000, random_state=3)
    mass = radial_integral(name, m)

    def distribution(radius):
        return np.array([radial_integral(name, m, upper=t) / mass for t in radius])

    assert radii.shape == (2000,)
    assert kstest(radii, distribution).pvalue > 1e-3
    assert radii.min() > 0
    assert radii.max() <= RADIAL_KERNELS[name].support


@pytest.mark.parametrize("name", KERNELS)
def test_sampled_radii_follow_the_seed(name):
    kernel = RADIAL_KERNELS[name]
    first, again = (kernel.sample_radius(5, 9, random_state=0) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, kernel.sample_radius(5, 9, random_state=1))
    with pytest.raises(ValueError, match="m == 0, must be >= 1"):
        kernel.sample_radius(0, 9)
