"""Feature matrices: laws, norms, direct draws against explicit ones, bad input."""

import tracemalloc

import numpy as np
import pytest
import torch
from scipy.integrate import cumulative_trapezoid
from scipy.stats import kstest, ortho_group

from sklearn_relflat._robustness.perturbations import (
    MATRIX_DISTRIBUTIONS,
    CallableMatrices,
    CoordinateProjections,
    GivenMatrices,
    HaarOrthogonal,
    RadialBall,
    RankOneDirections,
    resolve_matrices,
)

KERNELS = ["truncated_gaussian", "epanechnikov", "uniform"]
PROFILES = {
    "truncated_gaussian": lambda t: np.exp(-0.5 * t**2),
    "epanechnikov": lambda t: 1.0 - t**2,
    "uniform": np.ones_like,
}
# Seeds are fixed, so a test passes or fails for ever; a wrong law fails by far.
P_VALUE = 1e-4


def rank_one_halves(n_matrices, n_features, rng):
    """Return rank-one matrices of norm 1/2, the user's function of the tests."""
    u = rng.standard_normal((2, n_matrices, n_features))
    u /= np.linalg.norm(u, axis=-1, keepdims=True)
    return 0.5 * u[0][:, :, None] * u[1][:, None, :]


GIVEN = np.random.default_rng(1).uniform(-0.2, 0.2, (4, 5, 5))
IMPLICIT = {
    "orthogonal": HaarOrthogonal(),
    "orthogonal_single": HaarOrthogonal(antithetic=False),
    **{f"ball_{kernel}": RadialBall(kernel=kernel) for kernel in KERNELS},
    "projection": CoordinateProjections(),
    "projection_3": CoordinateProjections(n_coordinates=3),
    "rank_one": RankOneDirections(),
}
# Every distribution, usable with five features.
CASES = {
    **IMPLICIT,
    "given": GivenMatrices(GIVEN),
    "callable": CallableMatrices(rank_one_halves),
}
all_cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
implicit_cases = pytest.mark.parametrize("case", IMPLICIT.values(), ids=IMPLICIT.keys())
isotropic_cases = pytest.mark.parametrize(
    "case",
    [case for case in IMPLICIT.values() if case.second_moment(5) is not None],
    ids=[name for name in IMPLICIT if not name.startswith("projection")],
)


def make_features(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def assert_same_law(x, y):
    """Two-sample Kolmogorov-Smirnov test; atoms must not split by round-off."""
    assert kstest(x.round(9), y.round(9)).pvalue > P_VALUE


# ---------------------------------------------------------------- explicit matrices


@all_cases
def test_samples_have_the_shape_and_at_most_norm_one(case):
    matrices = case.sample(6, 5, random_state=0)
    assert matrices.shape == (case.count(6), 5, 5)
    assert matrices.dtype == np.float64
    assert np.linalg.norm(matrices, 2, axis=(1, 2)).max() <= 1.0 + 1e-12


@pytest.mark.parametrize("m", [1, 2, 7])
def test_orthogonal_matrices_are_orthogonal(m):
    matrices = HaarOrthogonal().sample(10, m, random_state=0)
    products = matrices @ matrices.swapaxes(1, 2)
    np.testing.assert_allclose(
        products, np.broadcast_to(np.eye(m), products.shape), atol=1e-13
    )


@pytest.mark.parametrize("m", [1, 2, 7])
def test_ball_matrices_are_multiples_of_orthogonal_ones(m):
    matrices = RadialBall().sample(10, m, random_state=0)
    squared_radii = (matrices**2).sum((1, 2)) / m
    assert np.all((squared_radii > 0) & (squared_radii <= 1 + 1e-12))
    np.testing.assert_allclose(
        matrices @ matrices.swapaxes(1, 2),
        squared_radii[:, None, None] * np.eye(m),
        atol=1e-13,
    )


@pytest.mark.parametrize("k", [1, 2, 4])
def test_projections_keep_random_coordinates_equally_often(k):
    m, n_matrices = 4, 2000
    matrices = CoordinateProjections(n_coordinates=k).sample(n_matrices, m, 0)
    diagonals = np.einsum("jkk->jk", matrices)
    np.testing.assert_array_equal(matrices, diagonals[:, :, None] * np.eye(m))
    np.testing.assert_array_equal(np.unique(diagonals), [0.0, 1.0][k == m :])
    np.testing.assert_array_equal(diagonals.sum(1), k)
    error = np.sqrt(k / m * (1 - k / m) / n_matrices)
    np.testing.assert_allclose(diagonals.mean(0), k / m, atol=4 * error)


def test_rank_one_matrices_are_products_of_independent_uniform_directions():
    matrices = RankOneDirections(antithetic=False).sample(2000, 3, random_state=0)
    left, values, right = np.linalg.svd(matrices)
    np.testing.assert_allclose(values, np.tile([1.0, 0, 0], (2000, 1)), atol=1e-12)
    # On the sphere in R^3 a coordinate is uniform on (-1, 1) (Archimedes).
    for unit in (left[:, :, 0], right[:, 0]):
        assert kstest(np.abs(unit[:, 0]), "uniform").pvalue > P_VALUE
    product = np.random.default_rng(0).uniform(-1, 1, (2, 2000)).prod(0)
    assert_same_law(matrices[:, 0, 0], product)


@isotropic_cases
def test_second_moments_are_isotropic(case):
    # E[A_kt A_k't'] = c/m on the diagonal, else 0: what Theorem 5 needs.
    m, n_matrices = 3, 4000
    vectors = case.sample(n_matrices, m, random_state=0).reshape(n_matrices, -1)
    products = vectors[:, :, None] * vectors[:, None, :]
    # The two products of an antithetic pair are equal: half as many draws.
    n_draws = case.draw_index(n_matrices)[-1] + 1
    errors = products.std(0) / np.sqrt(n_draws)
    expected = case.second_moment(m) / m * np.eye(m * m)
    assert np.max(np.abs(products.mean(0) - expected) / errors) < 4.5


def test_second_moment_is_unknown_where_kappa_does_not_predict():
    for name in ("projection", "given", "callable"):
        assert CASES[name].second_moment(5) is None


def test_orthogonal_matrices_are_haar():
    m, n_matrices = 4, 3000
    ours = HaarOrthogonal(antithetic=False).sample(n_matrices, m, random_state=0)
    reference = ortho_group.rvs(m, size=n_matrices, random_state=1)
    rotation = ortho_group.rvs(m, random_state=2)
    for statistic in (
        lambda a: np.einsum("jkk->j", a),
        lambda a: np.einsum("jkk->j", a @ a),
        lambda a: a[:, 0, 0],
        lambda a: a[:, m - 1, 0] * a[:, 0, m - 1],
        lambda a: np.einsum("jkt,kt->j", a, rotation),
    ):
        assert_same_law(statistic(ours), statistic(reference))
    # Moments of the trace of a Haar matrix: E tr^2 = 1, E tr^4 = 3.
    traces = np.einsum("jkk->j", ours)
    for power, moment in ((2, 1.0), (4, 3.0)):
        values = traces**power
        error = values.std() / np.sqrt(n_matrices)
        assert abs(values.mean() - moment) < 4 * error
    # O(m), not SO(m): both signs of the determinant, equally often.
    signs = np.sign(np.linalg.det(ours))
    assert abs(signs.mean()) < 4 / np.sqrt(n_matrices)


def test_one_feature_gives_both_signs():
    signs = HaarOrthogonal(antithetic=False).sample(200, 1, random_state=0).ravel()
    np.testing.assert_array_equal(np.unique(signs), [-1.0, 1.0])
    assert abs(signs.mean()) < 4 / np.sqrt(200)


# ---------------------------------------------------------------- perturbations


@all_cases
@pytest.mark.parametrize("shape", [(8, 5), (3, 5, 4)])
def test_perturb_is_the_explicit_matrix_with_enough_columns(case, shape):
    features = make_features(*shape)
    perturbed = list(case.perturb(features, 3, random_state=7))
    matrices = case.sample(3, 5, random_state=7)
    assert len(perturbed) == len(matrices) == case.count(3)
    for result, matrix in zip(perturbed, matrices, strict=True):
        expected = np.einsum("kt,nt...->nk...", matrix, features)
        assert result.shape == features.shape
        np.testing.assert_allclose(result, expected, atol=1e-13)


@all_cases
@pytest.mark.parametrize("shape", [(1, 5), (2, 5), (1, 5, 3)])
def test_direct_draws_have_the_joint_law_of_explicit_matrices(case, shape):
    # Fewer columns than features: the samples are perturbed without the matrix.
    n_draws = 2000
    features = make_features(*shape)
    if case is CASES["given"]:
        case = GivenMatrices(np.tile(GIVEN, (n_draws // 4, 1, 1)))
    direct = np.stack(list(case.perturb(features, n_draws, random_state=0)))
    matrices = case.sample(n_draws, 5, random_state=1)
    explicit = np.einsum("jkt,nt...->jnk...", matrices, features)
    # One of each antithetic pair: the test asks for independent draws.
    _, first = np.unique(case.draw_index(n_draws), return_index=True)
    direct = direct[first].reshape(len(first), -1)
    explicit = explicit[first].reshape(len(first), -1)
    directions = make_features(3, direct.shape[1], seed=1)
    for direction in directions:
        assert_same_law(direct @ direction, explicit @ direction)
    # Products of first and last numbers see the dependence between the samples.
    assert_same_law(direct[:, 0] * direct[:, -1], explicit[:, 0] * explicit[:, -1])
    assert_same_law((direct**2).sum(1), (explicit**2).sum(1))


@isotropic_cases
@pytest.mark.parametrize("n", [1, 3, 6])
def test_second_moments_of_the_perturbations(case, n):
    # E[(A phi_i)_k (A phi_j)_l] = c/m <phi_i, phi_j> delta_kl.
    m, n_matrices = 4, 3000
    features = make_features(n, m)
    draws = np.stack(list(case.perturb(features, n_matrices, random_state=0)))
    draws = draws.reshape(n_matrices, -1)
    products = draws[:, :, None] * draws[:, None, :]
    errors = products.std(0) / np.sqrt(case.draw_index(n_matrices)[-1] + 1)
    c = case.second_moment(m)
    expected = np.kron(features @ features.T, c / m * np.eye(m))
    assert np.all(np.abs(products.mean(0) - expected) <= 4.5 * errors + 1e-12)


@pytest.mark.parametrize("shape", [(3, 50), (60, 50), (4, 50, 5), (20, 50, 5)])
def test_orthogonal_perturbations_keep_all_inner_products(shape):
    features = make_features(*shape)
    for result in HaarOrthogonal().perturb(features, 3, random_state=0):
        columns, perturbed = (np.moveaxis(a, 1, -1) for a in (features, result))
        columns, perturbed = columns.reshape(-1, 50), perturbed.reshape(-1, 50)
        np.testing.assert_allclose(
            perturbed @ perturbed.T, columns @ columns.T, atol=1e-11
        )


@implicit_cases
def test_zero_and_dependent_samples(case):
    features = np.zeros((4, 9))
    features[1] = features[2] = np.arange(9.0)
    features[3] = -2.0 * features[1]
    for result in case.perturb(features, 4, random_state=0):
        assert np.isfinite(result).all()
        np.testing.assert_allclose(result[0], 0.0, atol=1e-14)
        np.testing.assert_allclose(result[2], result[1], atol=1e-13)
        np.testing.assert_allclose(result[3], -2.0 * result[1], atol=1e-13)


@isotropic_cases
def test_theorem_5_is_exact_for_the_squared_loss(case):
    # kappa of (w phi - y)^2 is 2 ||w||^2 mean ||phi||^2, E_F = c delta^2 / (2m) kappa.
    n, m, n_matrices, delta = 40, 6, 1000, 0.3
    features, w = make_features(n, m), make_features(m, seed=1)
    y = features @ w + make_features(n, seed=2)
    risks = np.array(
        [
            np.mean(((features + delta * change) @ w - y) ** 2)
            - np.mean((features @ w - y) ** 2)
            for change in case.perturb(features, n_matrices, random_state=0)
        ]
    )
    index = case.draw_index(n_matrices)
    draws = np.bincount(index, risks) / np.bincount(index)
    kappa = 2 * (w @ w) * np.mean((features**2).sum(1))
    expected = case.second_moment(m) * delta**2 / (2 * m) * kappa
    assert abs(draws.mean() - expected) < 4 * draws.std() / np.sqrt(len(draws))


# ---------------------------------------------------------------- independent draws


@all_cases
def test_independent_draws_have_the_law_of_explicit_matrices(case):
    n_draws = 2000
    phi = make_features(5)
    result = case.perturb_independent(np.tile(phi, (n_draws, 1)), random_state=0)
    if case is CASES["given"]:
        case = GivenMatrices(np.tile(GIVEN, (n_draws // 4, 1, 1)))
    _, first = np.unique(case.draw_index(n_draws), return_index=True)
    explicit = case.sample(n_draws, 5, random_state=1)[first] @ phi
    assert result.shape == (n_draws, 5)
    for direction in make_features(3, 5, seed=1):
        assert_same_law(result @ direction, explicit @ direction)
    assert_same_law((result**2).sum(1), (explicit**2).sum(1))


@all_cases
@pytest.mark.parametrize("n_positions", [2, 6])
def test_positions_of_one_sample_share_its_matrix(case, n_positions):
    base = make_features(5, n_positions)
    base[:, 1] = -3.0 * base[:, 0]
    features = np.tile(base, (7, 1, 1))
    result = case.perturb_independent(features, random_state=0)
    assert result.shape == features.shape
    np.testing.assert_allclose(result[:, :, 1], -3.0 * result[:, :, 0], atol=1e-12)
    assert len(np.unique(result[:, 0, 0].round(9))) > 1


@pytest.mark.parametrize("n_positions", [1, 3, 8])
def test_independent_orthogonal_draws_keep_inner_products(n_positions):
    features = make_features(6, 5, n_positions)
    result = HaarOrthogonal().perturb_independent(features, random_state=0)
    grams = (a.swapaxes(1, 2) @ a for a in (features, result))
    np.testing.assert_allclose(*grams, atol=1e-12)


def test_samples_are_independent():
    directions = HaarOrthogonal().perturb_independent(np.ones((4001, 3)), 0)
    neighbours = np.sum(directions[1:] * directions[:-1], axis=1) / 3.0
    # In R^3 the cosine between independent directions is uniform on (-1, 1).
    assert kstest(0.5 * (neighbours + 1.0), "uniform").pvalue > P_VALUE


@pytest.mark.parametrize("case", [HaarOrthogonal(), RadialBall()], ids=str)
def test_blocks_of_samples_do_not_matter(case, monkeypatch):
    features = make_features(11, 5, 2)
    monkeypatch.setattr(
        "sklearn_relflat._robustness.matrix_distribution._BLOCK_SIZE", 30
    )
    result = case.perturb_independent(features, random_state=0)
    ratios = np.linalg.norm(result, axis=1) / np.linalg.norm(features, axis=1)
    np.testing.assert_allclose(ratios[:, 0], ratios[:, 1], rtol=1e-12)
    assert np.all((ratios > 0) & (ratios <= 1 + 1e-12))
    assert len(np.unique(result.round(9))) == result.size


# ---------------------------------------------------------------- Proposition 2


def radius_cdf(kernel, m):
    """Distribution function of the density ~ t^(m-1) k(t) on (0, 1], by quadrature.

    With s = t^m the density of s is proportional to k(s^(1/m)): no under- or
    overflow in any dimension.
    """
    s = np.linspace(0.0, 1.0, 20_001)
    mass = cumulative_trapezoid(PROFILES[kernel](s ** (1.0 / m)), s, initial=0.0)
    return lambda t: np.interp(np.asarray(t) ** m, s, mass / mass[-1])


@pytest.mark.parametrize("m", [1, 2, 10, 500])
@pytest.mark.parametrize("kernel", KERNELS)
def test_radii_have_the_density_of_proposition_2(kernel, m):
    case, n_draws = RadialBall(kernel=kernel), 3000
    features = np.full((n_draws, m), 3.0 / np.sqrt(m))
    changes = case.perturb_independent(features, random_state=0)
    radii = np.linalg.norm(changes, axis=1) / 3.0
    assert radii.max() <= 1.0 + 1e-12
    assert kstest(radii, radius_cdf(kernel, m)).pvalue > P_VALUE
    error = np.std(radii**2) / np.sqrt(n_draws)
    assert abs(np.mean(radii**2) - case.second_moment(m)) < 4 * error
    # The direction is uniform, and independent of the radius.
    first = changes[:, 0] / (3.0 * radii)
    if m > 1:
        beta = (0.5 * (m - 1), 0.5 * (m - 1))
        assert kstest(0.5 * (first + 1.0), "beta", beta).pvalue > P_VALUE
    assert abs(np.corrcoef(first, radii)[0, 1]) < 4 / np.sqrt(n_draws)


@pytest.mark.parametrize("m", [1, 2, 10])
@pytest.mark.parametrize("kernel", KERNELS)
def test_radii_of_explicit_and_shared_draws(kernel, m):
    case = RadialBall(kernel=kernel, antithetic=False)
    matrices = case.sample(1000, m, random_state=0)
    radii = np.sqrt((matrices**2).sum((1, 2)) / m)
    assert kstest(radii, radius_cdf(kernel, m)).pvalue > P_VALUE
    shared = np.stack(list(case.perturb(np.eye(m)[:1], 1000, random_state=0)))
    radii = np.linalg.norm(shared[:, 0], axis=1)
    assert kstest(radii, radius_cdf(kernel, m)).pvalue > P_VALUE


@pytest.mark.parametrize("kernel", KERNELS)
def test_density_in_the_plane(kernel):
    # Proposition 2 literally: the density of A phi at z is ~ k(|z| / |phi|), here
    # integrated over the cells of a grid and compared by a chi-square statistic.
    n_draws, phi = 20_000, np.array([0.6, -0.8])
    draws = RadialBall(kernel=kernel).perturb_independent(np.tile(phi, (n_draws, 1)), 0)
    edges = np.linspace(-1.0, 1.0, 6)
    counts, _, _ = np.histogram2d(*draws.T, bins=[edges, edges])
    fine = np.linspace(-1.0, 1.0, 1001)[:-1] + 1e-3
    radii = np.hypot(fine[:, None], fine[None, :])
    density = np.where(radii <= 1.0, PROFILES[kernel](radii), 0.0)
    expected = density.reshape(5, 200, 5, 200).sum((1, 3))
    expected *= n_draws / expected.sum()
    statistic = np.sum((counts - expected) ** 2 / expected)
    # 24 degrees of freedom: 66 has the probability 1e-5.
    assert statistic < 66


# ---------------------------------------------------------------- antithetic pairs


@pytest.mark.parametrize("n_matrices", [1, 4, 5])
@implicit_cases
def test_antithetic_pairs(case, n_matrices):
    draws = list(case.perturb(make_features(3, 9), n_matrices, random_state=0))
    index = case.draw_index(n_matrices)
    assert len(draws) == len(index) == n_matrices
    step = 2 if case.antithetic else 1
    np.testing.assert_array_equal(index, np.arange(n_matrices) // step)
    for first in range(0, n_matrices - 1, step):
        difference = np.abs(draws[first] + draws[first + 1]).max()
        assert (difference == 0.0) == case.antithetic


def test_changing_a_perturbation_in_place_does_not_change_the_next():
    features = make_features(3, 9)
    expected = list(HaarOrthogonal().perturb(features, 4, random_state=0))
    for j, result in enumerate(HaarOrthogonal().perturb(features, 4, random_state=0)):
        np.testing.assert_array_equal(result, expected[j])
        result *= 0.0


# ---------------------------------------------------------------- seeds


def draw_all(case, features, seed):
    """All that one seed decides, as NumPy arrays."""
    values = [
        *case.perturb(features, 3, seed),
        case.perturb_independent(features, seed),
    ]
    return np.stack([np.asarray(value) for value in values])


@all_cases
@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_seeds(case, kind):
    features = make_features(3, 5)
    features = torch.from_numpy(features) if kind == "torch" else features
    first = draw_all(case, features, 0)
    np.testing.assert_array_equal(draw_all(case, features, 0), first)
    assert not np.array_equal(draw_all(case, features, 1), first)
    state = np.random.RandomState(0)
    used = [case.perturb_independent(features, state) for _ in range(6)]
    assert len({np.asarray(value).tobytes() for value in used}) > 1


@all_cases
@pytest.mark.parametrize("seed", [None, 0])
def test_global_generators_are_not_touched(case, seed):
    before = (np.random.get_state()[1].copy(), torch.get_rng_state())  # noqa: NPY002 - the global state is what is tested
    for features in (make_features(3, 5), torch.ones(3, 5)):
        draw_all(case, features, seed)
    after = (np.random.get_state()[1], torch.get_rng_state())  # noqa: NPY002 - as above
    np.testing.assert_array_equal(before[0], after[0])
    assert torch.equal(before[1], after[1])


def test_no_seed_means_fresh_draws():
    draws = [HaarOrthogonal().sample(1, 3) for _ in range(2)]
    assert not np.array_equal(*draws)


def test_matrices_come_again_with_the_same_seed():
    runs = [[*HaarOrthogonal().iter_matrices(4, 3, 5)] for _ in range(2)]
    np.testing.assert_array_equal(*runs)


# ---------------------------------------------------------------- array types


@all_cases
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(3, 5), (9, 5), (3, 5, 2)])
def test_numpy_dtype_is_kept(case, dtype, shape):
    features = make_features(*shape).astype(dtype)
    results = [*case.perturb(features, 2, 0), case.perturb_independent(features, 0)]
    for result in results:
        assert result.dtype == features.dtype
        assert result.shape == features.shape
    for matrix in case.iter_matrices(2, 5, 0, like=features):
        assert matrix.dtype == features.dtype


@all_cases
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(3, 5), (9, 5), (3, 5, 2)])
def test_torch_dtype_and_law_are_kept(case, dtype, shape):
    features = torch.from_numpy(make_features(*shape)).to(dtype)
    results = [*case.perturb(features, 2, 0), case.perturb_independent(features, 0)]
    for result in results:
        assert isinstance(result, torch.Tensor)
        assert result.dtype == dtype
        assert result.shape == features.shape
        # Perturbations are no longer than the features, column by column.
        bound = features.double().norm(dim=1) * 1.02
        assert bool((result.double().norm(dim=1) <= bound).all())
    matrices = list(case.iter_matrices(2, 5, 0, like=features))
    assert matrices[0].dtype == dtype
    if np.prod(shape) // 5 >= 5 and dtype != torch.bfloat16:
        expected = torch.einsum("kt,nt...->nk...", matrices[1], features)
        torch.testing.assert_close(results[1], expected)


def test_torch_draws_have_the_law_of_numpy_draws():
    features = make_features(2, 5)
    case = RadialBall(antithetic=False)
    ours = torch.stack([*case.perturb(torch.from_numpy(features), 1500, 0)]).numpy()
    reference = np.stack([*case.perturb(features, 1500, 1)])
    assert_same_law(ours[:, 0, 0] * ours[:, 1, 0], (reference[:, :, 0]).prod(1))
    assert_same_law((ours[:, 0] ** 2).sum(1), (reference[:, 0] ** 2).sum(1))


def test_integer_features_become_floats():
    for features in (np.arange(6).reshape(2, 3), [[0, 1, 2], [3, 4, 5]]):
        result = HaarOrthogonal().perturb_independent(features, 0)
        norms = np.linalg.norm(result, axis=1)
        np.testing.assert_allclose(norms, np.linalg.norm(features, axis=1))
    tensor = HaarOrthogonal().perturb_independent(torch.ones(2, 3, dtype=int), 0)
    assert tensor.is_floating_point()


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_extreme_float32_features_stay_in_range(scale):
    features = (make_features(4, 6) * scale).astype(np.float32)
    result = HaarOrthogonal().perturb_independent(features, 0)
    norms = np.linalg.norm(result.astype(float), axis=1)
    np.testing.assert_allclose(
        norms, np.linalg.norm(features.astype(float), axis=1), rtol=1e-5
    )


@pytest.mark.gpu
@all_cases
def test_gpu(case):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    features = torch.randn(3, 5, device="cuda")
    for result in (
        *case.perturb(features, 2, 0),
        *case.perturb(features.repeat(3, 1), 2, 0),
        case.perturb_independent(features, 0),
        *case.iter_matrices(2, 5, 0, like=features),
    ):
        assert result.device == features.device
        assert result.dtype == features.dtype
        assert bool(result.isfinite().all())


# ---------------------------------------------------------------- memory


@implicit_cases
def test_memory_does_not_grow_with_the_square_of_the_features(case):
    n, m = 4, 20_000
    features = make_features(n, m)
    tracemalloc.start()
    try:
        for result in case.perturb(features, 3, random_state=0):
            assert result.shape == (n, m)
        case.perturb_independent(features, random_state=0)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20 * features.nbytes  # one m x m matrix: 5,000 times


@implicit_cases
def test_many_features_in_torch(case):
    # An m x m matrix would take 160 GB.
    features = torch.ones(2, 200_000)
    for result in case.perturb(features, 2, random_state=0):
        assert result.shape == features.shape
    assert case.perturb_independent(features, 0).shape == features.shape


# ---------------------------------------------------------------- the user's matrices


@pytest.mark.parametrize(
    "matrices",
    [
        GIVEN,
        GIVEN.astype(np.float32),
        list(GIVEN),
        GIVEN.tolist(),
        torch.from_numpy(GIVEN),
        torch.from_numpy(GIVEN).float().requires_grad_(),
        [torch.from_numpy(matrix) for matrix in GIVEN],
    ],
    ids=["float64", "float32", "list", "nested", "torch", "requires_grad", "tensors"],
)
def test_given_matrices_of_any_type_are_used_once_each(matrices):
    case = resolve_matrices(matrices)
    assert case.count(32) == 4
    np.testing.assert_array_equal(case.draw_index(32), np.arange(4))
    np.testing.assert_allclose(case.sample(32, 5), GIVEN, rtol=1e-6)
    features = make_features(2, 5)
    results = [*case.perturb(features, 32)]
    for matrix, result in zip(GIVEN, results, strict=True):
        np.testing.assert_allclose(result, features @ matrix.T, rtol=1e-5, atol=1e-7)


def test_one_given_matrix():
    case = resolve_matrices(np.eye(3))
    np.testing.assert_array_equal(case.sample(1, 3), np.eye(3)[None])
    result = case.perturb_independent(np.arange(6.0).reshape(2, 3))
    np.testing.assert_array_equal(result, np.arange(6.0).reshape(2, 3))


def test_given_matrices_are_copied():
    matrices = np.eye(3)
    case = resolve_matrices(matrices)
    matrices *= 100.0
    np.testing.assert_array_equal(case.sample(1, 3)[0], np.eye(3))


def test_float32_round_off_is_no_error():
    tensor = torch.linalg.qr(torch.randn(64, 64, generator=torch.Generator()))[0]
    assert resolve_matrices(tensor).count(1) == 1


def test_callable_gets_the_sizes_and_a_seeded_generator():
    calls = []

    def function(n_matrices, n_features, rng):
        calls.append((n_matrices, n_features))
        return rank_one_halves(n_matrices, n_features, rng)

    case = resolve_matrices(function)
    features = make_features(4, 3)
    case.perturb(features, 6, random_state=0)
    case.perturb_independent(features, random_state=0)
    assert calls == [(6, 3), (4, 3)]


@pytest.mark.parametrize("name", MATRIX_DISTRIBUTIONS)
def test_resolve_names(name):
    case = resolve_matrices(name)
    assert case == MATRIX_DISTRIBUTIONS[name]()
    assert resolve_matrices(case) is case


def test_resolve_kernel():
    assert resolve_matrices("ball", kernel="uniform") == RadialBall(kernel="uniform")


# ---------------------------------------------------------------- bad input


@all_cases
@pytest.mark.parametrize("n_matrices", [0, -1, 2.5, np.nan, None, True, "3"])
def test_bad_number_of_matrices(case, n_matrices):
    message = "Expected n_matrices to be a positive integer, got .*give at least 1"
    for call in (case.count, case.draw_index, lambda k: case.sample(k, 5)):
        with pytest.raises(ValueError, match=message):
            call(n_matrices)
    # At the call, not at the first matrix.
    with pytest.raises(ValueError, match=message):
        case.perturb(np.ones((2, 5)), n_matrices)


@pytest.mark.parametrize("n_features", [0, -2, np.nan, 1.0])
def test_bad_number_of_features(n_features):
    with pytest.raises(ValueError, match="Expected n_features to be a positive"):
        RadialBall().sample(1, n_features)
    with pytest.raises(ValueError, match="Expected n_features to be a positive"):
        RadialBall().second_moment(n_features)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (np.ones(3), r"Expected dense real features .* got shape \(3,\)"),
        (np.ones((1, 2, 3, 4)), r"got shape \(1, 2, 3, 4\)"),
        (np.ones((0, 3)), r"none of them zero, got shape \(0, 3\)"),
        (torch.ones(2, 0), r"none of them zero, got shape \(2, 0\)"),
        (np.ones((2, 3), dtype=complex), "dtype complex128"),
        (torch.ones(2, 3, dtype=torch.complex64), "dtype torch.complex64"),
        (np.array([["a", "b"]]), "dtype <U1"),
        (np.array([[1.0, np.nan]]), "Expected finite features, got NaN or infinity"),
        (torch.tensor([[1.0, torch.inf]]), "Expected finite features"),
    ],
)
def test_bad_features(features, message):
    with pytest.raises(ValueError, match=message):
        HaarOrthogonal().perturb(features, 2)
    with pytest.raises(ValueError, match=message):
        HaarOrthogonal().perturb_independent(features)


@pytest.mark.parametrize(
    ("matrices", "message"),
    [
        (np.ones((2, 3)), r"Expected matrices of shape .* got shape \(1, 2, 3\)"),
        (np.ones(3), r"got shape \(3,\)"),
        (np.ones((2, 2, 3)), r"got shape \(2, 2, 3\)"),
        (np.ones((0, 3, 3)), r"got shape \(0, 3, 3\)"),
        ([np.eye(2), np.eye(3)], r"one shape, got shapes \[\(2, 2\), \(3, 3\)\]"),
        ([[np.nan, 0.0], [0.0, 1.0]], "NaN or infinity in matrix 0"),
        (np.eye(2) * 1j, "Expected real matrices, got dtype complex128"),
        (None, "Expected real matrices, got dtype object"),
        (
            np.stack([np.eye(3), 2.5 * np.eye(3)]),
            "norm 2.5 for matrix 1: divide by its norm and use deltas",
        ),
        (np.ones((2, 2)), "spectral norm at most 1 .*got norm 2 for matrix 0"),
        (torch.eye(2) * 1.001, "got norm 1.001 for matrix 0"),
    ],
)
def test_bad_given_matrices(matrices, message):
    with pytest.raises(ValueError, match=message):
        resolve_matrices(matrices)


def test_norm_is_spectral():
    # Row sums, column sums and the Frobenius norm exceed one; the norm does not.
    matrix = ortho_group.rvs(6, random_state=0)
    assert resolve_matrices(matrix).count(1) == 1


def test_given_matrices_of_another_width():
    case = resolve_matrices(np.eye(3))
    message = r"Expected matrices of shape \(5, 5\) for 5 features, got \(3, 3\)"
    for call in (case.perturb, lambda x, n: case.perturb_independent(x)):
        with pytest.raises(ValueError, match=message):
            call(np.ones((2, 5)), 1)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda n, m, rng: np.eye(m), r"shape \(4, 3, 3\), .*got shape \(3, 3\)"),
        (lambda n, m, rng: np.full((n, m, m), 1.0), "function of .*got norm 3 "),
        (lambda n, m, rng: np.full((n, m, m), np.nan), "NaN or infinity in matrix 0"),
    ],
)
def test_bad_functions(function, message):
    case = resolve_matrices(function)
    for call in (case.perturb, lambda x, n: case.perturb_independent(x)):
        with pytest.raises(ValueError, match=message):
            call(np.ones((4, 3)), 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"matrices": "haar"}, "one of .*'orthogonal', 'ball'.* got 'haar'"),
        ({"matrices": "ball", "kernel": "cosine"}, "kernel to be one of .*'cosine'"),
        ({"matrices": "ball", "kernel": "gaussian"}, "at most delta.*got 'gaussian'"),
        ({"matrices": "orthogonal", "kernel": "uniform"}, "Expected kernel=None"),
        ({"matrices": np.eye(2), "kernel": "uniform"}, "got kernel='uniform': remove"),
    ],
)
def test_resolve_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        resolve_matrices(**arguments)


@pytest.mark.parametrize("n_coordinates", [0, -1, 1.5, np.nan])
def test_bad_number_of_coordinates(n_coordinates):
    with pytest.raises(ValueError, match="Expected n_coordinates to be a positive"):
        CoordinateProjections(n_coordinates=n_coordinates)


def test_more_coordinates_than_features():
    case = CoordinateProjections(n_coordinates=4)
    message = "Expected n_coordinates to be at most the 3 features, got 4: keep fewer"
    for call in (case.perturb, lambda x, n: case.perturb_independent(x)):
        with pytest.raises(ValueError, match=message):
            call(np.ones((2, 3)), 1)
