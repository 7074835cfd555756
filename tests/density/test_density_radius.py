"""The data's own radius against a loop over all pairs."""

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from sklearn.covariance import ledoit_wolf

from sklearn_relflat._density.density_radius import density_radius


def features(n=40, m=3, seed=0):
    return np.random.default_rng(seed).normal(size=(n, m)) + 0.5


def log_likelihood(Z, radius, weights=None, covariance=None):
    """Mean leave-one-out log-density, pair by pair."""
    n, m = Z.shape
    weights = np.ones(n) if weights is None else weights
    covariance = np.eye(m) if covariance is None else covariance
    root = np.linalg.cholesky(covariance)
    norms = np.linalg.norm(np.linalg.solve(root, Z.T), axis=0)
    norms = np.where(norms == 0, norms[norms > 0].min(), norms)
    values = []
    for i in range(n):
        others = [j for j in range(n) if not np.array_equal(Z[j], Z[i])]
        terms = [
            np.log(weights[j])
            + multivariate_normal.logpdf(
                Z[i], Z[j], (radius * norms[j]) ** 2 / m * covariance
            )
            for j in others
        ]
        values.append(logsumexp(terms) - np.log(weights[others].sum()))
    return np.average(values, weights=weights)


RADII = [0.1, 0.3, 0.7, 2.0]


@pytest.mark.parametrize("kind", ["plain", "weights", "copies", "origin"])
@pytest.mark.parametrize("shape", ["isotropic", "within_class", "covariance"])
def test_likelihood_is_that_of_all_pairs(kind, shape):
    Z, weights = features(), None
    y = np.arange(40) % 3
    if kind == "weights":
        weights = np.random.default_rng(1).uniform(0.5, 2.0, size=40)
    elif kind == "copies":
        Z[5], Z[6] = Z[4], Z[4]
    elif kind == "origin":
        Z[3] = 0.0
    covariance = None
    if shape != "isotropic":
        centred = Z - Z.mean(axis=0)
        if shape == "within_class":
            centred = Z - np.stack([Z[y == k].mean(axis=0) for k in y])
        covariance = ledoit_wolf(centred, assume_centered=True)[0]
    found = density_radius(Z, y, shape=shape, grid=RADII, sample_weight=weights)
    np.testing.assert_array_equal(found.radii, RADII)
    scale = 1.0 if weights is None else weights / weights.max()
    expected = [
        log_likelihood(Z, radius, scale * np.ones(40), covariance) for radius in RADII
    ]
    np.testing.assert_allclose(found.log_likelihoods, expected, rtol=1e-8)
    assert found.radius == RADII[int(np.argmax(expected))]
    assert found.log_likelihood == max(found.log_likelihoods)


@pytest.mark.parametrize("shape", ["isotropic", "within_class", "covariance"])
def test_search_finds_the_maximum(shape):
    Z, y = features(200, 4), np.arange(200) % 2
    found = density_radius(Z, y, shape=shape)
    fine = density_radius(
        Z, y, shape=shape, grid=found.radius * np.linspace(0.8, 1.25, 201)
    )
    assert found.radius == pytest.approx(fine.radius, rel=5e-3)
    assert found.log_likelihood >= fine.log_likelihood - 1e-6
    assert float(found) == found.radius


def test_scale_does_not_matter():
    Z = features(100)
    np.testing.assert_allclose(
        density_radius(Z * 1e6).radius, density_radius(Z).radius, rtol=1e-6
    )


def test_an_integer_weight_is_a_repetition():
    Z = features()
    weights = np.arange(40) % 3
    repeated = density_radius(np.repeat(Z, weights, axis=0), grid=RADII)
    weighted = density_radius(Z, grid=RADII, sample_weight=weights)
    np.testing.assert_allclose(weighted.log_likelihoods, repeated.log_likelihoods)


def test_copies_do_not_pull_the_radius_to_zero():
    Z = features(100)
    alone = density_radius(Z).radius
    doubled = np.concatenate([Z, Z])
    assert density_radius(doubled).radius == pytest.approx(alone, rel=1e-3)
    # A third of the samples are copies but for some noise.
    noise = 1e-9 * features(30, 3, seed=1)
    assert density_radius(np.concatenate([Z, Z[:30] + noise])).radius > 0.5 * alone
    noise = 1e-5 * features(30, 3, seed=1)
    assert density_radius(np.concatenate([Z, Z[:30] + noise])).radius > 0.02 * alone


def test_torch_gives_the_same():
    Z = features(60)
    expected = density_radius(Z, grid=RADII)
    found = density_radius(torch.from_numpy(Z), grid=RADII)
    np.testing.assert_allclose(
        found.log_likelihoods, expected.log_likelihoods, rtol=1e-12
    )
    found = density_radius(torch.from_numpy(Z))
    assert found.radius == pytest.approx(density_radius(Z).radius, rel=1e-9)


@pytest.mark.gpu
def test_cuda_gives_the_same():
    Z = features(60)
    found = density_radius(torch.from_numpy(Z).cuda())
    assert found.radius == pytest.approx(density_radius(Z).radius, rel=1e-9)


def test_queries_are_drawn():
    Z = features(400)
    every = density_radius(Z)
    some = density_radius(Z, n_queries=100)
    assert (every.n_queries, some.n_queries) == (400, 100)
    assert some.radius == density_radius(Z, n_queries=100).radius
    other = density_radius(Z, n_queries=100, random_state=1)
    assert some.radius != other.radius
    assert abs(some.radius - every.radius) < 4 * some.stderr
    assert repr(some).startswith("<DensityRadius 0.")


def test_distances_need_not_be_kept(monkeypatch):
    Z = features(100)
    expected = density_radius(Z)
    module = "sklearn_relflat._density.density_radius._KEPT_DISTANCES"
    monkeypatch.setattr(module, 900)
    found = density_radius(Z)
    assert found.radius == pytest.approx(expected.radius, rel=1e-12)


def test_standard_error_is_the_spread_over_samples():
    found = [density_radius(features(100, 3, seed)) for seed in range(60)]
    spread = np.std([result.radius for result in found], ddof=1)
    claimed = np.mean([result.stderr for result in found])
    # Leaving one out ties the samples together, which the formula does not see.
    assert 0.5 < claimed / spread < 1.6


@pytest.mark.parametrize(
    ("Z", "options", "message"),
    [
        (np.zeros((5, 2)), {}, "not all zero, got 5 samples at the origin"),
        (np.ones((5, 2)), {}, "at least two different samples"),
        (features(), {"shape": "round"}, "shape to be one of"),
        (features(), {"shape": "within_class"}, "Expected labels"),
        (features(), {"y": np.arange(40), "shape": "within_class"}, "40 different"),
        (features(), {"y": np.ones((40, 2)), "shape": "within_class"}, "of shape"),
        (features(), {"grid": [0.0, 1.0]}, "positive finite radii"),
        (features(), {"grid": []}, "positive finite radii"),
        (features(), {"n_queries": 1}, "n_queries == 1"),
        (features() * np.nan, {}, "NaN"),
    ],
)
def test_bad_input(Z, options, message):
    with pytest.raises(ValueError, match=message):
        density_radius(Z, **options)
