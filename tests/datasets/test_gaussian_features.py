import numpy as np
import pytest
import torch
from scipy.integrate import dblquad, quad
from scipy.stats import multivariate_normal, norm

from sklearn_relflat.datasets import make_gaussian_features

each_arrangement = pytest.mark.parametrize("arrangement", ["adjacent", "opposite"])


def risks_by_counting(data):
    """Error and cross-entropy of the true posterior on the sample, term by term."""
    squares = ((data.features[:, None] - data.centers) ** 2).sum(-1)
    likelihood = np.exp(-squares / 2)
    right = likelihood[:, data.center_labels == 1].sum(1) / likelihood.sum(1)
    p = np.where(data.y == 1, right, 1 - right)
    return (p < 0.5), -np.log(p)


@each_arrangement
@pytest.mark.parametrize("class_sep", [0.5, 1.0, 2.0])
def test_bayes_risk_is_that_of_a_large_sample(arrangement, class_sep):
    data = make_gaussian_features(
        100_000, 4, class_sep=class_sep, arrangement=arrangement, random_state=0
    )
    expected = [data.bayes_error, data.bayes_risk]
    for values, value in zip(risks_by_counting(data), expected, strict=True):
        standard_error = values.std() / np.sqrt(len(values))
        assert abs(values.mean() - value) < 5 * standard_error


@pytest.mark.parametrize("class_sep", [0.3, 1.0, 5.0])
def test_bayes_risk_of_two_sides_is_an_adaptive_integral(class_sep):
    def integrand(z):
        return norm.pdf(z, class_sep) * np.logaddexp(0, -2 * class_sep * z)

    expected, _ = quad(integrand, class_sep - 12, class_sep + 12, epsabs=1e-13)
    data = make_gaussian_features(1, class_sep=class_sep)
    assert data.bayes_risk == pytest.approx(expected, abs=1e-10)


@each_arrangement
def test_without_separation_the_labels_are_a_coin(arrangement):
    data = make_gaussian_features(10, class_sep=0, arrangement=arrangement)
    assert data.bayes_error == pytest.approx(0.5, abs=1e-12)
    assert data.bayes_risk == pytest.approx(np.log(2), abs=1e-12)


@pytest.mark.parametrize("n_features", [2, 10, 100])
def test_the_network_maps_the_inputs_to_the_features(n_features):
    data = make_gaussian_features(500, n_features, random_state=1)
    reached = data.feature_map(torch.from_numpy(data.X)).numpy()
    np.testing.assert_allclose(reached, data.features, atol=1e-9)
    assert data.inversion_error < 1e-9
    assert not np.allclose(data.X, data.features, atol=0.1)


def test_a_seed_fixes_everything_and_leaves_the_global_ones():
    before = torch.get_rng_state()
    X, y = make_gaussian_features(20, random_state=3, return_X_y=True)
    data = make_gaussian_features(20, random_state=3)
    np.testing.assert_array_equal(X, data.X)
    np.testing.assert_array_equal(y, data.y)
    assert torch.equal(before, torch.get_rng_state())
    other = make_gaussian_features(20, random_state=4)
    assert not np.allclose(X, other.X)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"n_samples": 0}, "n_samples must be an integer >= 1, got 0"),
        ({"n_features": 1}, "n_features must be an integer >= 2, got 1"),
        ({"class_sep": -1}, "class_sep must be a finite number >= 0, got -1"),
        ({"arrangement": "line"}, "arrangement must be one of .* got 'line'"),
    ],
)
def test_errors_name_the_parameter(parameters, message):
    with pytest.raises(ValueError, match=message):
        make_gaussian_features(**parameters)


@pytest.mark.parametrize("class_sep", [0.3, 1.0, 3.0])
def test_bayes_risk_of_a_diagonal_by_adaptive_quadrature(class_sep):
    def integrand(b, a):
        corners = class_sep * np.array([[-1, -1], [1, 1], [-1, 1], [1, -1]])
        density = multivariate_normal.pdf(corners, (a, b))
        # One of the two Gaussians of the first class stands for all four.
        return -np.log(density[:2].sum() / density.sum()) * density[1]

    span = (class_sep - 8, class_sep + 8)
    exact, _ = dblquad(integrand, *span, *span, epsabs=1e-9, epsrel=1e-9)
    found = make_gaussian_features(
        1, class_sep=class_sep, arrangement="opposite", random_state=0
    )
    assert found.bayes_risk == pytest.approx(exact, abs=1e-8)
