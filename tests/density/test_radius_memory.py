"""A radius is found once for the same data, and never handed to other data."""

import numpy as np
import pytest
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV

from sklearn_relflat import SmoothedRiskScorer, WholeSample, density_radius
from sklearn_relflat._density import radius_memory
from sklearn_relflat._density.radius_memory import remembered_radius


@pytest.fixture
def calls(monkeypatch):
    """Data whose radius was computed, from an empty memory on."""
    monkeypatch.setattr(radius_memory, "_remembered", type(radius_memory._remembered)())
    seen = []

    def counted(Z, *args, **options):
        seen.append(Z)
        return density_radius(Z, *args, **options)

    monkeypatch.setattr(radius_memory, "density_radius", counted)
    return seen


def data(seed=0):
    return np.random.default_rng(seed).normal(size=(30, 4)), np.arange(30) % 3


def test_the_same_data_are_looked_at_once(calls):
    Z, y = data()
    options = {"shape": "within_class", "sample_weight": None}
    first = remembered_radius(Z, y, **options)
    assert remembered_radius(np.asfortranarray(Z), y.copy(), **options) is first
    assert len(calls) == 1
    fresh = density_radius(Z, y, shape="within_class", random_state=0)
    assert first.radius == fresh.radius
    np.testing.assert_array_equal(first.log_likelihoods, fresh.log_likelihoods)


def test_what_is_remembered_cannot_be_written_to(calls):
    Z, y = data()
    found = remembered_radius(Z, y, shape="isotropic", sample_weight=None)
    with pytest.raises(ValueError, match="read-only"):
        found.radii[0] = 1.0


def test_labels_count_for_their_shape_alone(calls):
    Z, y = data()
    remembered_radius(Z, y, shape="isotropic", sample_weight=None)
    remembered_radius(Z, y[::-1], shape="isotropic", sample_weight=None)
    assert len(calls) == 1
    remembered_radius(Z, y, shape="within_class", sample_weight=None)
    remembered_radius(Z, np.sort(y), shape="within_class", sample_weight=None)
    assert len(calls) == 3


@pytest.mark.parametrize("change", ["one bit", "reshaped", "weights", "zero sign"])
def test_other_data_are_looked_at(calls, change):
    Z, _ = data()
    Z[0, 0] = 0.0
    other, weights = Z.copy(), None
    if change == "one bit":
        other[3, 2] = np.nextafter(other[3, 2], 9.0)
    elif change == "reshaped":
        other = other.reshape(15, 8)
    elif change == "weights":
        weights = np.ones(30)
    else:
        other[0, 0] = -0.0
    remembered_radius(Z, None, shape="isotropic", sample_weight=None)
    remembered_radius(other, None, shape="isotropic", sample_weight=weights)
    assert len(calls) == 2


def test_what_was_not_asked_for_lately_is_forgotten(calls):
    for seed in range(40):
        remembered_radius(data(seed)[0], None, shape="isotropic", sample_weight=None)
    assert len(radius_memory._remembered) == radius_memory._MAX_REMEMBERED
    remembered_radius(data(0)[0], None, shape="isotropic", sample_weight=None)
    assert len(calls) == 41


def test_refused_data_are_refused_again(calls):
    for _ in range(2):
        with pytest.raises(ValueError, match="at least two different samples"):
            remembered_radius(
                np.ones((5, 2)), None, shape="isotropic", sample_weight=None
            )


def test_a_search_asks_once(calls):
    X, y = load_iris(return_X_y=True)
    search = GridSearchCV(
        LogisticRegression(max_iter=1000),
        {"C": [0.1, 1.0, 10.0]},
        scoring=SmoothedRiskScorer(),
        cv=WholeSample(),
    )
    search.fit(X, y)
    assert len(calls) == 1
