"""VariableKernelDensity against brute force, quadrature and scikit-learn."""

import pickle
import subprocess
import sys
import tracemalloc
from math import lgamma, log, pi

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.integrate import quad
from scipy.special import logsumexp
from scipy.stats import ks_2samp, norm, ortho_group
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KernelDensity
from sklearn.utils.estimator_checks import (
    check_dataframe_column_names_consistency,
    check_estimator,
    check_inplace_ensure_writeable,
    check_param_validation,
)

from sklearn_relflat._density.kernel_density import VariableKernelDensity

KERNELS = ["gaussian", "truncated_gaussian", "epanechnikov", "uniform"]


def log_profile(kernel, t):
    """Log of the kernel at a distance of t bandwidths."""
    if kernel == "gaussian":
        return -(t**2) / 2
    if t > 1:
        return -np.inf
    if kernel == "epanechnikov":
        return log(1 - t**2) if t < 1 else -np.inf
    return {"truncated_gaussian": -(t**2) / 2, "uniform": 0.0}[kernel]


def log_normalizer(kernel, m):
    """Log of the integral of the kernel over R^m, by quadrature over the radius."""
    if kernel == "gaussian":
        return m / 2 * log(2 * pi)
    log_ball = m / 2 * log(pi) - lgamma(m / 2 + 1)
    radial = quad(
        lambda t: m * t ** (m - 1) * np.exp(log_profile(kernel, t)), 0, 1, epsrel=1e-12
    )
    return log_ball + log(radial[0])


def brute_force(queries, samples, bandwidth, kernel="gaussian", weights=None):
    """Log-sum-exp over all pairs, one pair at a time."""
    n, m = samples.shape
    weights = np.full(n, 1 / n) if weights is None else weights / weights.sum()
    log_z = log_normalizer(kernel, m)
    values = np.empty(len(queries))
    for j, query in enumerate(queries):
        terms = []
        for sample, h, weight in zip(samples, bandwidth, weights, strict=True):
            t = np.sqrt(((query - sample) ** 2).sum()) / h
            terms.append(log(weight) - m * log(h) - log_z + log_profile(kernel, t))
        largest = max(terms)
        if np.isfinite(largest):
            values[j] = largest + log(sum(np.exp(term - largest) for term in terms))
        else:
            values[j] = -np.inf
    return values


def near(samples, bandwidth, n_queries, rng, reach=0.9):
    """Queries within the bandwidth of some sample, and a few outside."""
    chosen = rng.integers(len(samples), size=n_queries)
    directions = rng.normal(size=(n_queries, samples.shape[1]))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    radii = rng.uniform(0, reach, size=n_queries)
    radii[::7] = 1.3
    return samples[chosen] + (radii * bandwidth[chosen])[:, None] * directions


RNG = np.random.default_rng(0)
CLOUD = RNG.normal(size=(60, 4))
CLUSTERS = CLOUD + 1e6 * (np.arange(60) % 2)[:, None]
# Samples and bandwidths; None for delta = 0.1 times the norm.
CASES = {
    "plain": (CLOUD, None),
    "one dimension": (CLOUD[:, :1] + 5, None),
    "84 dimensions": (np.abs(RNG.normal(size=(60, 84))), None),
    "more queries than samples": (CLOUD[:3], None),
    "tiny bandwidths": (CLOUD, np.full(60, 1e-7)),
    "small bandwidths": (CLOUD, np.full(60, 2e-2)),
    "large offset": (CLOUD + 1e7, RNG.uniform(0.3, 0.9, size=60)),
    "large offset and tiny bandwidths": (CLOUD + 1e5, np.full(60, 1e-4)),
    "far clusters": (CLUSTERS, np.full(60, 0.5)),
    "one tiny bandwidth": (CLOUD, np.where(np.arange(60) == 7, 1e-150, 0.8)),
    "bandwidths over 20 orders of magnitude": (CLOUD, np.logspace(-10, 10, 60)),
}


def make_case(name):
    """Samples, queries and bandwidths, as given and resolved."""
    samples, bandwidth = CASES[name]
    widths = 0.1 * np.linalg.norm(samples, axis=1) if bandwidth is None else bandwidth
    queries = near(samples, widths, 40, np.random.default_rng(0))
    queries[3] = samples[0]
    queries[5] = samples.mean(axis=0) + 30 * (1 + np.abs(samples).max())
    return samples, queries, bandwidth, widths


@pytest.mark.parametrize("backend", ["numpy", "torch"])
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("case", CASES)
def test_equals_brute_force(case, kernel, backend):
    samples, queries, bandwidth, widths = make_case(case)
    device = "cpu" if backend == "torch" else None
    model = VariableKernelDensity(bandwidth=bandwidth, kernel=kernel, device=device)
    values = model.fit(samples).score_samples(queries)
    expected = brute_force(queries, samples, widths, kernel)
    assert not np.isnan(values).any()
    assert np.isfinite(expected).mean() > 0.5
    np.testing.assert_allclose(values, expected, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(model.bandwidth_, widths, rtol=1e-14)


@pytest.mark.parametrize("kernel", KERNELS[1:])
@pytest.mark.parametrize("margin", [1e-6, 1e-9, 1e-12])
@pytest.mark.parametrize("distance", [5.0, 500.0])
def test_the_edge_of_the_support_is_sharp(kernel, margin, distance):
    # Far from the mean of the samples, a matrix product alone would blur the edge.
    rng = np.random.default_rng(0)
    samples = np.vstack([rng.normal(size=(20, 3)), [[distance, 0, 0]]])
    directions = rng.normal(size=(50, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    model = VariableKernelDensity(bandwidth=0.25, kernel=kernel).fit(samples)
    inside = samples[-1] + 0.25 * (1 - margin) * directions
    outside = samples[-1] + 0.25 * (1 + margin) * directions
    if distance < 100 or margin > 1e-10:  # else the query itself is rounded across
        assert (model.score_samples(outside) == -np.inf).all()
    expected = brute_force(inside, samples, np.full(21, 0.25), kernel)
    # Double precision knows 1 - t^2 = 2 * margin itself only to some 1e-16 / margin.
    values = model.score_samples(inside)
    np.testing.assert_allclose(values, expected, atol=2e-15 / margin, rtol=1e-9)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    ("kernel", "name"),
    [("gaussian", "gaussian"), ("epanechnikov", "epanechnikov"), ("uniform", "tophat")],
)
@pytest.mark.parametrize(("m", "bandwidth"), [(2, 0.4), (10, 0.05), (84, 9.0)])
def test_equals_kernel_density_for_equal_bandwidths(
    m, bandwidth, kernel, name, weighted
):
    rng = np.random.default_rng(1)
    samples = rng.normal(size=(300, m))
    queries = near(samples, np.full(300, bandwidth), 50, rng)
    weights = rng.uniform(size=300) if weighted else None
    ours = VariableKernelDensity(bandwidth=bandwidth, kernel=kernel)
    theirs = KernelDensity(bandwidth=bandwidth, kernel=name, leaf_size=300)
    ours.fit(samples, sample_weight=weights)
    theirs.fit(samples, sample_weight=weights)
    expected = theirs.score_samples(queries)
    # Where no kernel reaches, KernelDensity answers a large negative number.
    expected[expected < -1e300] = -np.inf
    np.testing.assert_allclose(ours.score_samples(queries), expected, rtol=1e-9)
    supported = queries[np.isfinite(expected)]
    assert ours.score(supported) == pytest.approx(theirs.score(supported), rel=1e-9)


def integral_on_grid(model, m, n_points):
    """Integral of the density over a box by the midpoint rule."""
    samples, reach = model._samples, model.bandwidth_.max()
    reach *= 7 if model.kernel == "gaussian" else 1.01
    low, high = samples.min(axis=0) - reach, samples.max(axis=0) + reach
    axes = [
        a + (b - a) * (np.arange(n_points) + 0.5) / n_points
        for a, b in zip(low, high, strict=True)
    ]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, m)
    cell = np.prod((high - low) / n_points)
    return np.exp(model.score_samples(grid)).sum() * cell


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("m", "n_points"), [(1, 20_000), (2, 700), (3, 90)])
def test_integrates_to_one_in_few_dimensions(m, n_points, kernel):
    rng = np.random.default_rng(m)
    samples = rng.normal(size=(4, m)) + 1
    weights = rng.uniform(0.5, 1, size=4)
    model = VariableKernelDensity(bandwidth=[0.5, 0.6, 0.8, 1.0], kernel=kernel)
    model.fit(samples, sample_weight=weights)
    # The midpoint rule is spectrally accurate for the Gaussian and of first order in
    # the cell where the density jumps.
    tolerance = 1e-9 if kernel == "gaussian" else 3 / n_points
    assert integral_on_grid(model, m, n_points) == pytest.approx(1, abs=tolerance)


@pytest.mark.parametrize("kernel", KERNELS)
def test_integrates_to_one_in_ten_dimensions(kernel):
    rng = np.random.default_rng(0)
    n, m, n_draws = 5, 10, 40_000
    samples = rng.normal(size=(n, m))
    model = VariableKernelDensity(delta=0.3, kernel=kernel).fit(samples)
    # The proposal covers the density: wider Gaussians, or the full balls.
    chosen = rng.integers(n, size=n_draws)
    noise = rng.normal(size=(n_draws, m))
    widths = 0.3 * np.linalg.norm(samples, axis=1)
    if kernel == "gaussian":
        widths = 1.1 * widths
        log_heights = -m * np.log(widths) - m / 2 * log(2 * pi)
    else:
        noise *= rng.uniform(size=(n_draws, 1)) ** (1 / m) / np.linalg.norm(
            noise, axis=1, keepdims=True
        )
        log_heights = -m * np.log(widths) - (m / 2 * log(pi) - lgamma(m / 2 + 1))
    draws = samples[chosen] + widths[chosen][:, None] * noise
    t = np.linalg.norm(draws[:, None] - samples, axis=2) / widths
    log_shapes = -(t**2) / 2 if kernel == "gaussian" else np.where(t <= 1, 0, -np.inf)
    log_proposal = logsumexp(log_heights + log_shapes, axis=1) - log(n)
    ratios = np.exp(model.score_samples(draws) - log_proposal)
    stderr = ratios.std() / np.sqrt(n_draws)
    assert stderr < 0.01
    assert abs(ratios.mean() - 1) < 4 * stderr + 1e-12


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("block_size", [1, 37, 1000, 10**6])
def test_blocks_do_not_change_the_answer(block_size, kernel):
    samples, queries, _, _ = make_case("plain")
    whole, cut = (
        VariableKernelDensity(kernel=kernel, block_size=b).fit(samples)
        for b in (None, block_size)
    )
    expected = whole.score_samples(queries)
    np.testing.assert_allclose(cut.score_samples(queries), expected, atol=1e-12)


@pytest.mark.parametrize("kernel", ["gaussian", "truncated_gaussian"])
@pytest.mark.parametrize("delta", [0.1, 1e-4])
def test_memory_does_not_grow_with_the_number_of_pairs(kernel, delta):
    def peak(n):
        rng = np.random.default_rng(0)
        samples, queries = rng.normal(size=(2, n, 20))
        model = VariableKernelDensity(delta=delta, kernel=kernel, block_size=2**14)
        model.fit(samples)
        tracemalloc.start()
        model.score_samples(queries)
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    few, many = peak(1000), peak(4000)
    # 16 times as many pairs (96 MB more as float64); what grows is a few numbers for
    # each sample and query.
    assert few < 20 * 2**14 * 8
    assert many - few < 3000 * 8 * 12


@pytest.mark.parametrize("kernel", KERNELS)
def test_samples_have_the_density(kernel):
    rng = np.random.default_rng(0)
    samples = rng.normal(size=(5, 3))
    weights = np.array([1.0, 2.0, 0.0, 3.0, 0.5])
    model = VariableKernelDensity(delta=0.7, kernel=kernel)
    model.fit(samples, sample_weight=weights)
    draws = model.sample(20_000, random_state=1)
    assert draws.shape == (20_000, 3)
    assert np.isfinite(model.score_samples(draws)).all()
    # E[exp(i u.x)] is not needed: the mass of half spaces decides a distribution.
    # The density integrates over a half space by importance sampling from a Gaussian.
    proposal = rng.normal(scale=2.0, size=(60_000, 3))
    ratios = np.exp(
        model.score_samples(proposal) - norm(scale=2).logpdf(proposal).sum(axis=1)
    )
    for direction in rng.normal(size=(6, 3)):
        for threshold in (-0.7, 0.0, 0.7):
            drawn = draws @ direction > threshold
            integrated = ratios * (proposal @ direction > threshold)
            stderr = np.hypot(drawn.std() / 20_000**0.5, integrated.std() / 60_000**0.5)
            assert abs(drawn.mean() - integrated.mean()) < 4 * stderr


@pytest.mark.parametrize("kernel", KERNELS[1:])
def test_sample_is_the_orthogonal_perturbation_of_proposition_2(kernel):
    # x + A x with A = r O, O Haar, and r with density ~ r^(m - 1) k(r / delta).
    m, delta, n_draws = 4, 0.3, 4000
    rng = np.random.default_rng(0)
    x = np.array([[1.0, -2.0, 0.5, 3.0]])
    grid = (np.arange(200_000) + 0.5) / 200_000 * delta
    density = grid ** (m - 1) * np.exp([log_profile(kernel, r / delta) for r in grid])
    radii = np.interp(
        rng.uniform(size=n_draws), np.cumsum(density) / density.sum(), grid
    )
    rotations = ortho_group.rvs(m, size=n_draws, random_state=0)
    perturbed = x + np.einsum("r,rij,j->ri", radii, rotations, x[0])
    model = VariableKernelDensity(delta=delta, kernel=kernel).fit(x)
    draws = model.sample(n_draws, random_state=0)
    assert np.isfinite(model.score_samples(perturbed)).all()
    for direction in rng.normal(size=(4, m)):
        assert ks_2samp(draws @ direction, perturbed @ direction).pvalue > 1e-3
    distances = [np.linalg.norm(points - x, axis=1) for points in (draws, perturbed)]
    assert ks_2samp(*distances).pvalue > 1e-3
    log_p = [model.score_samples(points) for points in (draws, perturbed)]
    if kernel != "uniform":
        assert ks_2samp(*log_p).pvalue > 1e-3


def test_sample_follows_the_seed():
    model = VariableKernelDensity().fit(np.eye(3))
    first = model.sample(6, random_state=0)
    np.testing.assert_array_equal(first, model.sample(6, random_state=0))
    shared = np.random.RandomState(0)
    np.testing.assert_array_equal(first, model.sample(6, random_state=shared))
    assert not np.array_equal(first, model.sample(6, random_state=shared))
    assert model.sample().shape == (1, 3)


@pytest.mark.parametrize("kernel", KERNELS)
def test_weights(kernel):
    rng = np.random.default_rng(0)
    samples = rng.normal(size=(30, 2))
    weights = rng.integers(0, 4, size=30)
    samples[weights == 0] *= np.arange((weights == 0).sum())[:, None]
    queries = rng.normal(size=(50, 2))
    model = VariableKernelDensity(delta=0.5, kernel=kernel)
    weighted = model.fit(samples, sample_weight=weights).score_samples(queries)
    drawn = model.sample(5, random_state=0)
    repeated = clone(model).fit(np.repeat(samples, weights, axis=0))
    np.testing.assert_allclose(weighted, repeated.score_samples(queries), rtol=1e-12)
    scaled = clone(model).fit(samples, sample_weight=1e-200 * weights)
    np.testing.assert_allclose(weighted, scaled.score_samples(queries), rtol=1e-12)
    np.testing.assert_allclose(scaled.sample(5, random_state=0), drawn)
    equal = clone(model).fit(samples[:20], sample_weight=np.full(20, 7.0))
    plain = clone(model).fit(samples[:20])
    np.testing.assert_allclose(
        equal.score_samples(queries), plain.score_samples(queries)
    )


@pytest.mark.parametrize("kernel", KERNELS)
def test_invariances(kernel):
    samples, queries, _, widths = make_case("plain")
    model = VariableKernelDensity(kernel=kernel).fit(samples)
    expected = model.score_samples(queries)
    rotation = ortho_group.rvs(4, random_state=0)
    turned = clone(model).fit(samples @ rotation).score_samples(queries @ rotation)
    np.testing.assert_allclose(turned, expected, rtol=1e-9)
    scaled = clone(model).fit(1e-3 * samples).score_samples(1e-3 * queries)
    np.testing.assert_allclose(scaled, expected - 4 * log(1e-3), rtol=1e-9)
    shuffled = clone(model).fit(samples[::-1]).score_samples(queries[::-1])
    np.testing.assert_allclose(shuffled[::-1], expected, rtol=1e-9)
    moved = VariableKernelDensity(bandwidth=widths, kernel=kernel).fit(samples + 16)
    np.testing.assert_allclose(moved.score_samples(queries + 16), expected, rtol=1e-9)


def test_float32_input_is_computed_in_double_precision():
    samples, queries, _, _ = make_case("84 dimensions")
    samples, queries = samples.astype(np.float32), queries.astype(np.float32)
    values = VariableKernelDensity().fit(samples).score_samples(queries)
    doubled = VariableKernelDensity().fit(samples.astype(float))
    assert values.dtype == np.float64
    np.testing.assert_allclose(values, doubled.score_samples(queries.astype(float)))


# Torch


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kernel", KERNELS)
def test_tensors_are_answered_with_tensors(kernel, dtype):
    samples, queries, _, _ = make_case("84 dimensions")
    tensor, query_tensor = (torch.tensor(a, dtype=dtype) for a in (samples, queries))
    weights = torch.arange(60) % 3
    model = VariableKernelDensity(kernel=kernel).fit(tensor, sample_weight=weights)
    values = model.score_samples(query_tensor.requires_grad_())
    reference = VariableKernelDensity(kernel=kernel).fit(
        tensor.numpy(), sample_weight=weights.numpy()
    )
    expected = reference.score_samples(query_tensor.detach().numpy())
    assert values.dtype == torch.float64
    assert not values.requires_grad
    np.testing.assert_allclose(values.numpy(), expected, rtol=1e-12)
    np.testing.assert_allclose(model.bandwidth_.numpy(), reference.bandwidth_)
    assert isinstance(model.score(query_tensor), float)
    draws = model.sample(3, random_state=0)
    assert isinstance(draws, torch.Tensor)
    np.testing.assert_allclose(draws.numpy(), reference.sample(3, random_state=0))
    assert model.n_features_in_ == 84


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool])
def test_tensors_that_are_not_floating(dtype):
    tensor = torch.eye(3).to(dtype)
    values = VariableKernelDensity().fit(tensor).score_samples(tensor)
    expected = VariableKernelDensity().fit(np.eye(3)).score_samples(np.eye(3))
    np.testing.assert_allclose(values.numpy(), expected)


@pytest.mark.parametrize("device", [None, "cpu"])
def test_arrays_and_tensors_mix(device):
    samples, queries, _, _ = make_case("plain")
    expected = VariableKernelDensity().fit(samples).score_samples(queries)
    for fitted in (samples, torch.tensor(samples)):
        model = VariableKernelDensity(device=device).fit(fitted)
        from_array = model.score_samples(queries)
        from_tensor = model.score_samples(torch.tensor(queries))
        assert isinstance(from_array, np.ndarray)
        assert isinstance(from_tensor, torch.Tensor)
        np.testing.assert_allclose(from_array, expected, rtol=1e-12)
        np.testing.assert_allclose(from_tensor.numpy(), expected, rtol=1e-12)
        assert type(model.sample()) is type(model.bandwidth_) is type(fitted)
    widths = torch.tensor(0.1 * np.linalg.norm(samples, axis=1))
    given = VariableKernelDensity(bandwidth=widths, device=device).fit(samples)
    np.testing.assert_allclose(given.score_samples(queries), expected, rtol=1e-12)


def test_read_only_arrays_reach_torch():
    samples, queries, _, _ = make_case("plain")
    samples.flags.writeable = queries.flags.writeable = False
    model = VariableKernelDensity(device="cpu").fit(samples)
    assert np.isfinite(model.score_samples(queries)).all()


def test_numpy_needs_no_torch():
    program = (
        "import sys\n"
        "from sklearn_relflat._density.kernel_density import VariableKernelDensity\n"
        "VariableKernelDensity().fit([[1.0], [2.0]]).score_samples([[1.5]])\n"
        "print('torch' in sys.modules)"
    )
    output = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert output.stdout.strip() == "False"


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("case", CASES)
def test_gpu_equals_brute_force(case, kernel):
    samples, queries, bandwidth, widths = make_case(case)
    expected = brute_force(queries, samples, widths, kernel)
    model = VariableKernelDensity(bandwidth=bandwidth, kernel=kernel, device="cuda")
    values = model.fit(samples).score_samples(queries)
    np.testing.assert_allclose(values, expected, rtol=1e-9, atol=1e-10)
    on_gpu = clone(model).set_params(device=None).fit(torch.tensor(samples).cuda())
    tensor = on_gpu.score_samples(torch.tensor(queries).cuda())
    assert tensor.is_cuda
    assert on_gpu.sample(2).is_cuda
    np.testing.assert_allclose(tensor.cpu().numpy(), expected, rtol=1e-9, atol=1e-10)


# Bandwidths


def test_a_sample_at_the_origin_takes_the_smallest_bandwidth():
    samples = [[3.0, 4.0], [0.0, 0.0], [0.0, 2.0], [0.0, 1.0]]
    model = VariableKernelDensity().fit(samples)
    np.testing.assert_allclose(model.bandwidth_, [0.5, 0.1, 0.2, 0.1])
    # A sample without weight counts as absent.
    model.fit(samples, sample_weight=[1, 1, 1, 0])
    np.testing.assert_allclose(model.bandwidth_, [0.5, 0.2, 0.2, 0.1])


def test_min_bandwidth_is_a_floor():
    samples = [[3.0, 4.0], [0.0, 0.0], [0.0, 2.0]]
    model = VariableKernelDensity(min_bandwidth=0.3).fit(samples)
    np.testing.assert_allclose(model.bandwidth_, [0.5, 0.3, 0.3])
    model = VariableKernelDensity(bandwidth=[0, 1, 2], min_bandwidth=0.3).fit(samples)
    np.testing.assert_allclose(model.bandwidth_, [0.3, 1, 2])


@pytest.mark.parametrize(
    ("params", "samples"),
    [
        ({"min_bandwidth": None}, [[1.0, 1.0], [0.0, 0.0], [2.0, 0.0]]),
        ({}, [[0.0, 0.0], [0.0, 0.0]]),
        ({"bandwidth": [1.0, 0.0]}, [[0.0, 0.0], [1.0, 0.0]]),
        ({"bandwidth": [1.0, -0.5]}, [[0.0, 0.0], [1.0, 0.0]]),
        ({"delta": 1e200}, [[0.0, 1e140], [1.0, 0.0]]),
    ],
)
def test_bandwidths_that_make_no_density_are_refused(params, samples):
    with pytest.raises(ValueError, match=r"positive and finite, got .* min_bandwidth"):
        VariableKernelDensity(**params).fit(samples)


def test_the_error_names_the_rows_at_the_origin():
    samples = np.ones((9, 2))
    samples[[2, 5]] = 0
    with pytest.raises(ValueError, match=r"0\.0 for 2 of 9 rows.* \[2, 5\]"):
        VariableKernelDensity(min_bandwidth=None).fit(samples)
    weights = np.ones(9)
    weights[[2, 5]] = 0
    VariableKernelDensity(min_bandwidth=None).fit(samples, sample_weight=weights)


# Errors


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"delta": 0}, "'delta' .* Got 0"),
        ({"delta": np.inf}, "'delta' .* Got inf"),
        ({"delta": -0.1}, "'delta' .* Got -0.1"),
        ({"delta": np.nan}, "'delta' .* Got nan"),
        ({"bandwidth": 0.0}, "'bandwidth' .* Got 0.0"),
        ({"bandwidth": np.inf}, "'bandwidth' .* Got inf"),
        ({"kernel": "tophat"}, "'kernel' .* Got 'tophat'"),
        ({"min_bandwidth": -1.0}, "'min_bandwidth' .* Got -1.0"),
        ({"block_size": 0}, "'block_size' .* Got 0"),
        ({"bandwidth": [1.0, 2.0]}, r"shape \(3,\), got shape \(2,\)"),
        ({"bandwidth": np.ones((3, 1))}, r"shape \(3,\), got shape \(3, 1\)"),
        ({"bandwidth": [1.0, np.nan, 1.0]}, "contains NaN"),
        ({"device": "nowhere"}, "device must name .* got 'nowhere'.* device=None"),
    ],
)
def test_wrong_parameters(params, message):
    with pytest.raises(ValueError, match=message):
        VariableKernelDensity(**params).fit(np.eye(3))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_cuda_without_a_gpu():
    with pytest.raises(ValueError, match=r"got 'cuda': .* Use device='cpu'"):
        VariableKernelDensity(device="cuda").fit(np.eye(3))


@pytest.mark.parametrize("make", [np.array, torch.tensor], ids=["numpy", "torch"])
@pytest.mark.parametrize(
    ("X", "message"),
    [
        ([[1.0, np.nan]], "NaN|must be finite .* got nan"),
        ([[1.0, -np.inf]], "infinity|must be finite .* got inf"),
        ([[1.0, 1e151]], "at most 1e[+]150 .* got (1e[+]151|inf)"),
        ([1.0, 2.0], r"Expected 2D|got shape \(2,\)"),
        (np.empty((0, 2)).tolist(), r"Expected 2D|0 sample|got shape"),
        ([[1.0 + 2.0j, 1.0]], "[Cc]omplex"),
    ],
)
def test_wrong_data(X, message, make):
    X = make(X)
    with pytest.raises(ValueError, match=message):
        VariableKernelDensity().fit(X)
    model = VariableKernelDensity().fit(np.eye(2))
    with pytest.raises(ValueError, match=message):
        model.score_samples(X)


@pytest.mark.parametrize("make", [np.array, torch.tensor], ids=["numpy", "torch"])
def test_queries_of_another_width(make):
    model = VariableKernelDensity().fit(np.eye(3))
    with pytest.raises(ValueError, match=r"2 features, but .* expecting 3 features"):
        model.score_samples(make([[1.0, 2.0]]))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0, 2.0], r"shape \(3,\).* got \(2,\)"),
        (np.ones((3, 1)), r"shape \(3,\).* got \(3, 1\)"),
        ([1.0, -1.0, 2.0], "non-negative .* from -1.0 to 2.0"),
        ([0.0, 0.0, 0.0], "not zero everywhere, .* from 0.0 to 0.0"),
        ([1.0, np.nan, 1.0], "sample_weight contains NaN"),
    ],
)
def test_wrong_weights(weights, message):
    with pytest.raises(ValueError, match=message):
        VariableKernelDensity().fit(np.eye(3), sample_weight=weights)


def test_not_fitted():
    model = VariableKernelDensity()
    for call in (model.score_samples, model.score):
        with pytest.raises(NotFittedError, match="not fitted yet"):
            call(np.eye(3))
    with pytest.raises(NotFittedError, match="not fitted yet"):
        model.sample()
    with pytest.raises(ValueError, match="n_samples == 0, must be >= 1"):
        model.fit(np.eye(3)).sample(0)


# scikit-learn


@pytest.mark.parametrize("kernel", KERNELS)
def test_check_estimator(kernel):
    results = check_estimator(
        VariableKernelDensity(kernel=kernel), on_fail="raise", on_skip=None
    )
    # The one check that is skipped wants SCIPY_ARRAY_API in the environment.
    skipped = [r["check_name"] for r in results if r["status"] == "skipped"]
    assert set(skipped) <= {"check_array_api_input"}
    assert {r["status"] for r in results} <= {"passed", "skipped"}


@pytest.mark.parametrize(
    "check",
    [
        check_param_validation,
        check_dataframe_column_names_consistency,
        check_inplace_ensure_writeable,
    ],
)
def test_checks_that_check_estimator_leaves_out(check):
    check("VariableKernelDensity", VariableKernelDensity())


def test_grid_search_over_delta_prefers_the_likelier_one():
    rng = np.random.default_rng(0)
    samples = rng.normal(size=(200, 2)) + 5
    grid = {"delta": [1e-3, 0.1, 3.0]}
    search = GridSearchCV(VariableKernelDensity(), grid, cv=3).fit(samples)
    assert search.best_params_ == {"delta": 0.1}


def test_data_frames_pickles_and_clones():
    samples, queries, _, widths = make_case("plain")
    frame = pd.DataFrame(samples, columns=list("abcd"))
    model = VariableKernelDensity(bandwidth=widths).fit(frame)
    assert list(model.feature_names_in_) == list("abcd")
    queries = pd.DataFrame(queries, columns=list("abcd"))
    expected = model.score_samples(queries)
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.score_samples(queries), expected)
    refitted = clone(model).fit(frame)
    np.testing.assert_array_equal(refitted.score_samples(queries), expected)
    with pytest.raises(ValueError, match="feature names should match"):
        model.score_samples(queries[list("dcba")])
