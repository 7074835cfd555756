"""The loss along directions in which each neuron moves on its own."""

import copy

import numpy as np
import pytest
import torch
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import StandardScaler

from sklearn_relflat import relative_flatness
from sklearn_relflat._robustness.neuron_rises import neuron_rises
from sklearn_relflat._robustness.perturbations import HaarOrthogonal

DELTAS = np.array([0.1, 0.7])


@pytest.fixture(scope="module")
def iris():
    X, y = load_iris(return_X_y=True)
    return StandardScaler().fit_transform(X), y


def log_loss(probabilities, y):
    return -np.log(probabilities[np.arange(len(y)), y]).mean()


def test_is_the_loss_of_a_model_with_moved_weights(iris):
    X, y = iris
    model = LogisticRegression(max_iter=1000).fit(X, y)
    before = model.coef_.copy()
    rng = np.random.RandomState(3)
    rises = neuron_rises(model, X, y, deltas=DELTAS, n_directions=2, rng=rng)
    np.testing.assert_array_equal(model.coef_, before)
    weight, rng = torch.as_tensor(before), np.random.RandomState(3)
    base = log_loss(model.predict_proba(X), y)
    for direction in range(2):
        step = HaarOrthogonal().perturb_independent(weight, rng).numpy()
        # As large as the neuron's own weights, and not as a shared matrix has it.
        np.testing.assert_allclose(
            np.linalg.norm(step, axis=1), np.linalg.norm(before, axis=1)
        )
        assert abs(step @ step.T - before @ before.T).max() > 0.1
        for sign in range(2):
            for k, delta in enumerate(DELTAS):
                moved = copy.deepcopy(model)
                moved.coef_ = before + (1 - 2 * sign) * delta * step
                expected = log_loss(moved.predict_proba(X), y) - base
                assert rises[direction, sign, k] == pytest.approx(expected, abs=1e-9)


def test_hidden_layer(iris):
    X, y = iris
    mlp = MLPClassifier((5,), solver="lbfgs", max_iter=2000, random_state=0).fit(X, y)
    before = mlp.coefs_[0].copy()
    rises = neuron_rises(
        mlp,
        X,
        y,
        deltas=DELTAS,
        n_directions=1,
        rng=np.random.RandomState(0),
        layer="coefs.0",
    )
    np.testing.assert_array_equal(mlp.coefs_[0], before)
    weight = torch.as_tensor(before.T.copy())
    step = HaarOrthogonal().perturb_independent(weight, np.random.RandomState(0))
    moved = copy.deepcopy(mlp)
    moved.coefs_[0] = before - 0.7 * step.numpy().T
    expected = log_loss(moved.predict_proba(X), y) - log_loss(mlp.predict_proba(X), y)
    assert rises[0, 1, 1] == pytest.approx(expected)


def test_mean_is_the_flatness_without_blocks_between_neurons(iris):
    X, y = iris
    model = LogisticRegression(max_iter=1000, tol=1e-8).fit(X, y)
    delta = np.array([1e-3])
    rises = neuron_rises(
        model,
        X,
        y,
        deltas=delta,
        n_directions=2000,
        rng=np.random.RandomState(0),
    )
    values = rises.mean(axis=1)[:, 0] / delta**2
    p = model.predict_proba(X)
    sizes = (X**2).sum(1)[:, None] * p * (1 - p)
    expected = (sizes.mean(0) @ (model.coef_**2).sum(1)) / (2 * X.shape[1])
    stderr = values.std(ddof=1) / np.sqrt(len(values))
    assert abs(values.mean() - expected) < 4 * stderr
    # The blocks between neurons are no small thing.
    kappa = float(relative_flatness(model, X, y)) / (2 * X.shape[1])
    assert abs(values.mean() - kappa) > 10 * stderr
