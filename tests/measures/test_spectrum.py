"""The spectral density, against all eigenvalues of explicit Hessians."""

import functools

import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression

from sklearn_relflat import hessian_max_eigenvalue, hessian_spectrum, hessian_trace
from tests.cases import CASES
from tests.measure_oracles import joint_hessian, same, snapshot

BY_ID = {case.id: case for case in CASES}
# Few probes and steps, so that the matrix is not formed.
SAMPLED = {"n_probes": 4, "n_steps": 8}


@functools.cache
def eigenvalues(name):
    return np.linalg.eigvalsh(joint_hessian(BY_ID[name], list(BY_ID[name].layers)))


def spectrum_of(name, **options):
    case = BY_ID[name]
    return hessian_spectrum(case.fitted(), *case.data(), layer="all", **options)


@pytest.mark.parametrize("name", ["relu", "tanh", "mse", "conv2d"])
def test_small_networks_have_their_own_eigenvalues(name):
    values = eigenvalues(name)
    spectrum = spectrum_of(name, n_probes=10, n_steps=100)
    assert spectrum.method == "dense"
    scale = abs(values).max()
    np.testing.assert_allclose(spectrum.nodes, values, atol=1e-10 * scale)
    for power in range(5):
        mean, error = spectrum.moment(power)
        assert mean == pytest.approx(np.mean(values**power), rel=1e-9)
        assert error == 0.0
    grid = np.linspace(values[0] - 1, values[-1] + 1, 50)
    np.testing.assert_allclose(spectrum.cdf(grid), np.mean(values <= grid[:, None], 1))


@pytest.mark.parametrize("name", ["tanh", "conv2d"])
def test_moments_within_their_errors(name):
    values = eigenvalues(name)
    assert (values[0] < -1e-6 * values[-1]) or name == "conv2d"  # an indefinite one
    for power in (1, 2, 3):
        misses = []
        for seed in range(12):
            spectrum = spectrum_of(name, **SAMPLED, random_state=seed)
            assert spectrum.method == "lanczos"
            assert spectrum.weights.sum() == pytest.approx(1)
            misses.append(spectrum.moment(power)[0] - np.mean(values**power))
        error = np.std(misses, ddof=1) / np.sqrt(len(misses))
        assert abs(np.mean(misses)) < 4 * error


def test_the_distribution_converges():
    """Distance between distribution functions, with more and more probes and steps."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 400)) * np.geomspace(1, 0.03, 400)
    y = rng.normal(size=300)
    model = LinearRegression(fit_intercept=False).fit(X, y)
    exact = np.linalg.eigvalsh(2 / len(X) * X.T @ X)
    grid = np.linspace(0.01, exact[-1], 200)
    expected = np.mean(exact <= grid[:, None], 1)
    distances = []
    for n_probes, n_steps in ((1, 4), (4, 20), (12, 30)):
        spectrum = hessian_spectrum(
            model, X, y, n_probes=n_probes, n_steps=n_steps, random_state=0
        )
        assert spectrum.n_products == n_probes * n_steps
        distances.append(np.abs(spectrum.cdf(grid) - expected).mean())
    assert distances[0] > distances[1] > distances[2]
    assert distances[2] < 0.01


def test_degenerate_spectra_end_early():
    """A rank of two: after three steps there is nothing more to be found."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(40, 2)) @ rng.normal(size=(2, 60))
    y = rng.normal(size=40)
    model = LinearRegression(fit_intercept=False).fit(X, y)
    exact = np.linalg.eigvalsh(2 / 40 * X.T @ X)
    spectrum = hessian_spectrum(model, X, y, n_probes=2, n_steps=20, random_state=0)
    assert spectrum.method == "lanczos"
    assert spectrum.largest == pytest.approx(exact[-1], rel=1e-10)
    assert np.sum(spectrum.nodes > 1e-9 * exact[-1]) == 4  # two for each vector
    assert spectrum.cdf([exact[-1] * 1e-6])[0] > 0.8  # the zeros


def test_density():
    values = eigenvalues("tanh")
    spectrum = spectrum_of("tanh", n_probes=10, n_steps=100)
    width = 0.05
    grid = np.linspace(values[0] - 1, values[-1] + 1, 4001)
    density = spectrum.density(grid, width)
    assert np.trapezoid(density, grid) == pytest.approx(1, abs=1e-6)
    expected = np.exp(-(((grid[:9, None] - values) / width) ** 2) / 2).mean(1)
    np.testing.assert_allclose(density[:9], expected / width / np.sqrt(2 * np.pi))
    assert spectrum.density(grid).shape == grid.shape
    sampled = spectrum_of("tanh", **SAMPLED, random_state=0)
    _, error = sampled.density(grid, width, return_stderr=True)
    assert error.max() > 0
    single = spectrum_of("tanh", n_probes=1, n_steps=8, random_state=0)
    assert np.isnan(single.moment(1)[1])


def test_agrees_with_the_trace_and_the_largest_eigenvalue():
    case = BY_ID["conv2d"]
    net, (X, y) = case.fitted(), case.data()
    top = hessian_max_eigenvalue(net, X, y, layer="all", random_state=0).value
    spectrum = spectrum_of("conv2d", n_probes=2, n_steps=15, random_state=0)
    assert spectrum.largest == pytest.approx(top, rel=1e-3)
    assert spectrum.largest <= top * (1 + 1e-9)
    whole = spectrum_of("conv2d", n_probes=50, n_steps=50)
    trace = hessian_trace(net, X, y, layer="all").value
    assert whole.moment(1)[0] * whole.n_weights == pytest.approx(trace, rel=1e-9)


def test_single_precision_and_one_layer():
    case = BY_ID["conv2d"]
    net, (X, y) = case.fitted(torch.float32), case.data(torch.float32)
    before = snapshot(net)
    options = {"layer": case.layers[0], "n_probes": 2, "n_steps": 10}
    found = [hessian_spectrum(net, X, y, **options, random_state=s) for s in (0, 0, 1)]
    assert same(before, snapshot(net))
    assert found[0].nodes.tolist() == found[1].nodes.tolist()
    assert found[0].layer == case.layers[0]
    double = hessian_spectrum(case.fitted(), *case.data(), **options, random_state=0)
    assert found[0].largest == pytest.approx(double.largest, rel=0.05)
    assert "HessianSpectrum of layer" in repr(found[0])
    assert list(found[0].frame().columns) == ["probe", "node", "weight"]


def test_options_are_checked():
    with pytest.raises(ValueError, match=r"Expected n_probes to be .* got 0"):
        spectrum_of("relu", n_probes=0)
    with pytest.raises(ValueError, match=r"Expected n_steps to be .* got 1\.5"):
        spectrum_of("relu", n_steps=1.5)
    spectrum = spectrum_of("relu")
    with pytest.raises(ValueError, match=r"Expected width to be .* got 0"):
        spectrum.density([0.0], 0)
    with pytest.raises(ValueError, match=r"Expected power to be .* got -1"):
        spectrum.moment(-1)
