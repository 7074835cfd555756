"""KDERepresentativeness against quadrature, brute force and known distributions."""

import pickle
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from sklearn.base import clone
from sklearn.datasets import load_diabetes, load_iris, make_classification
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import (
    LinearRegression,
    LogisticRegression,
    Ridge,
    RidgeClassifier,
)
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KernelDensity
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import (
    check_dataframe_column_names_consistency,
    check_estimator,
    check_param_validation,
)
from skorch import NeuralNetClassifier, NeuralNetRegressor
from torch import nn
from torch.utils.data import TensorDataset

from sklearn_relflat._density.kernel_density import VariableKernelDensity
from sklearn_relflat._models.view import as_torch_model
from sklearn_relflat._representativeness.local_risk import LocalRisk
from sklearn_relflat._representativeness.representativeness import KDERepresentativeness
from sklearn_relflat._representativeness.split_errors import random_splits
from sklearn_relflat._split.feature_split import FeatureSplit
from sklearn_relflat._split.output_layer import implied_penalty, refit_output_layer

COMPACT = ["truncated_gaussian", "epanechnikov", "uniform"]
IRIS = load_iris(return_X_y=True)
DIABETES = load_diabetes(return_X_y=True)


class Net(nn.Module):
    def __init__(self, n_features=4, n_outputs=3, squeeze=False):
        super().__init__()
        lazy = n_features is None
        self.hidden = nn.LazyLinear(6) if lazy else nn.Linear(n_features, 6)
        self.out = nn.Linear(6, n_outputs)
        self.squeeze = squeeze

    def forward(self, X):
        outputs = self.out(torch.tanh(self.hidden(X)))
        return outputs.squeeze(1) if self.squeeze else outputs


class ConvNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(1, 3, 2)
        self.out = nn.Linear(9, 3)

    def forward(self, X):
        return self.out(torch.relu(self.conv(X[:, None, :])).flatten(1))


def make_net(module=Net, criterion=nn.CrossEntropyLoss, kind=NeuralNetClassifier, **kw):
    """A small net, trained for a few epochs when fitted."""
    options = {"max_epochs": 15, "lr": 0.1, "train_split": None, "verbose": 0}
    return kind(module, criterion=criterion, **options | kw)


def measure(estimator=None, **options):
    """KDERepresentativeness with a seed."""
    return KDERepresentativeness(estimator, **{"random_state": 0} | options)


# ---------------------------------------------------------------------------
# Oracles
# ---------------------------------------------------------------------------
NODES, NODE_WEIGHTS = np.polynomial.legendre.leggauss(200)
HERMITE, HERMITE_WEIGHTS = np.polynomial.hermite_e.hermegauss(80)
HERMITE_WEIGHTS = HERMITE_WEIGHTS / HERMITE_WEIGHTS.sum()


def profile(kernel, t):
    """The kernel at the radius t <= 1."""
    return {
        "truncated_gaussian": np.exp(-(t**2) / 2),
        "epanechnikov": 1 - t**2,
        "uniform": np.ones_like(t),
    }[kernel]


def projection(kernel):
    """Weights of the nodes in [-1, 1] for one coordinate of the kernel in R^2."""
    half = np.sqrt(1 - NODES**2)
    across = half[:, None] * NODES  # the other coordinate, given the first
    radii = np.sqrt(NODES[:, None] ** 2 + across**2)
    weights = NODE_WEIGHTS * half * (profile(kernel, radii) @ NODE_WEIGHTS)
    return weights / weights.sum()


def logistic_loss(z, y):
    """Cross-entropy of a logit, y in {0, 1}."""
    return np.logaddexp(0, np.where(y == 1, -z, z))


def smoothed_logistic(X, y, coef, intercept, delta, kernel="truncated_gaussian"):
    """Expected logistic loss under the local densities of each sample in R^2."""
    step = delta * np.linalg.norm(X, axis=1) * np.linalg.norm(coef)
    z = (X @ coef + intercept)[:, None] + step[:, None] * NODES
    return logistic_loss(z, y[:, None]) @ projection(kernel)


class Mixture:
    """Two classes with equal shares, each a Gaussian in R^2."""

    centers = np.array([[1.5, 0.5], [0.3, 1.2]])
    scale = 0.6

    def draw(self, n, rng):
        y = np.arange(n) % 2
        return self.centers[y] + self.scale * rng.normal(size=(n, 2)), y

    def risk(self, coef, intercept):
        """Expected logistic loss: one Gauss-Hermite integral for each class."""
        z = self.centers @ coef + intercept
        z = z[:, None] + self.scale * np.linalg.norm(coef) * HERMITE
        return (logistic_loss(z, np.array([[0], [1]])) @ HERMITE_WEIGHTS).mean()


# ---------------------------------------------------------------------------
# The known truth
# ---------------------------------------------------------------------------
def test_oracle_agrees_with_simulation():
    mixture = Mixture()
    coef, intercept = np.array([2.0, -3.0]), 0.4
    X, y = mixture.draw(400_000, np.random.default_rng(0))
    losses = logistic_loss(X @ coef + intercept, y)
    stderr = losses.std() / np.sqrt(len(y))
    assert abs(losses.mean() - mixture.risk(coef, intercept)) < 4 * stderr


def test_fixed_model_is_unbiased_within_its_error_bars():
    mixture, rng = Mixture(), np.random.default_rng(0)
    model = LogisticRegression(C=3.0).fit(*mixture.draw(60, rng))
    coef, intercept = model.coef_[0], model.intercept_[0]
    risk = mixture.risk(coef, intercept)
    deviations, stderrs = [], []
    for seed in range(100):
        X, y = mixture.draw(60, rng)
        found = measure(
            FrozenEstimator(model), refit=None, delta=0.3, random_state=seed
        ).fit(X, y)
        truth = risk - smoothed_logistic(X, y, coef, intercept, 0.3).mean()
        deviations.append(found.representativeness_ - truth)
        stderrs.append(found.representativeness_stderr_)
    deviations, stderrs = np.array(deviations), np.array(stderrs)
    assert abs(deviations.mean()) < 4 * deviations.std() / 10
    # For one fixed model the error bars are somewhat wide, and losses have long tails.
    assert (np.abs(deviations) < 2 * stderrs).mean() >= 0.85
    assert 0.8 < np.sqrt(np.mean(stderrs**2)) / deviations.std() < 1.7


def test_refitted_head_is_unbiased_within_its_error_bars():
    mixture, rng = Mixture(), np.random.default_rng(1)
    n, n_train, C, delta = 50, 40, 1.0, 0.3
    errors, stderrs = [], []
    for seed in range(100):
        found = measure(
            LogisticRegression(C=C), n_splits=4, delta=delta, random_state=seed
        ).fit(*mixture.draw(n, rng))
        errors.append(found.representativeness_)
        stderrs.append(found.representativeness_stderr_)
    # The truth: fresh samples of the size of a training part, true risks. The head is
    # refitted with the same penalty per sample, which is 1 / (2 C n).
    truths = []
    for _ in range(250):
        X, y = mixture.draw(n_train, rng)
        model = LogisticRegression(C=C * n / n_train).fit(X, y)
        coef, intercept = model.coef_[0], model.intercept_[0]
        smoothed = smoothed_logistic(X, y, coef, intercept, delta).mean()
        truths.append(mixture.risk(coef, intercept) - smoothed)
    errors, stderrs, truths = map(np.array, (errors, stderrs, truths))
    noise = np.sqrt(errors.var() / len(errors) + truths.var() / len(truths))
    assert abs(errors.mean() - truths.mean()) < 4 * noise
    assert (np.abs(errors - truths.mean()) < 2 * stderrs).mean() >= 0.85
    assert 0.8 < np.sqrt(np.mean(stderrs**2)) / errors.std() < 1.7


@pytest.mark.parametrize("kernel", COMPACT)
def test_smoothed_logistic_risk_equals_quadrature(kernel):
    X, y = Mixture().draw(80, np.random.default_rng(0))
    model = LogisticRegression(C=10.0).fit(X, y)
    exact = smoothed_logistic(X, y, model.coef_[0], model.intercept_[0], 0.5, kernel)
    z_scores = []
    for seed in range(40):
        found = measure(
            FrozenEstimator(model),
            refit=None,
            delta=0.5,
            kernel=kernel,
            n_splits=2,
            random_state=seed,
        ).fit(X, y)
        deviation = found.smoothed_risk_ - exact.mean()
        z_scores.append(deviation / found.smoothed_risk_stderr_)
    assert 0.7 < np.sqrt(np.mean(np.square(z_scores))) < 1.35
    assert abs(np.mean(z_scores)) < 4 / np.sqrt(40)


SECOND_MOMENTS = {"uniform": 10 / 12, "epanechnikov": 10 / 14, "gaussian": 10.0}


@pytest.mark.parametrize("kernel", SECOND_MOMENTS)
@pytest.mark.parametrize("n_outputs", [1, 2])
def test_squared_error_is_exact(kernel, n_outputs):
    X, y = DIABETES
    y = y if n_outputs == 1 else np.column_stack([y, X[:, 0] * 100])
    found = measure(LinearRegression(), delta=0.4, kernel=kernel).fit(X, y)
    coef = np.atleast_2d(found.estimator_.weight_)
    residual = np.reshape(y - found.estimator_.predict(X), (len(X), n_outputs))
    noise = SECOND_MOMENTS[kernel] / 10 * (0.4**2) * (X**2).sum(axis=1).mean()
    expected = (residual**2).mean() + noise * (coef**2).sum() / n_outputs
    np.testing.assert_allclose(found.smoothed_risk_, expected, rtol=1e-12)
    np.testing.assert_allclose(found.empirical_risk_, (residual**2).mean(), rtol=1e-12)
    assert found.smoothed_risk_stderr_ == found.monte_carlo_stderr_ == 0.0


def test_gap_is_representativeness_plus_robustness():
    # Equation 5 where every term has a closed form: least squares on Gaussian data.
    rng = np.random.default_rng(0)
    m, n, noise, delta = 4, 30, 0.7, 0.5
    slope = rng.normal(size=m)
    X = rng.normal(size=(n, m))
    y = X @ slope + noise * rng.normal(size=n)
    model = LinearRegression(fit_intercept=False).fit(X, y)
    found = measure(FrozenEstimator(model), delta=delta, kernel="uniform").fit(X, y)
    risk = noise**2 + ((model.coef_ - slope) ** 2).sum()
    training = np.mean((y - model.predict(X)) ** 2)
    norms = (X**2).sum(axis=1).mean() * (model.coef_**2).sum()
    robustness = delta**2 * m / (m + 2) / m * norms
    representativeness = risk - found.smoothed_risk_
    np.testing.assert_allclose(risk - training, representativeness + robustness)


def test_perturbing_a_hidden_layer_agrees_with_the_composed_linear_map():
    X, y = DIABETES
    y = (y - y.mean()) / y.std()
    mlp = MLPRegressor(
        hidden_layer_sizes=(3,), activation="identity", solver="lbfgs", random_state=0
    )
    mlp.fit(10 * X, y)
    found = measure(
        FrozenEstimator(mlp), layer="coefs.0", refit=None, delta=0.5, n_splits=2
    ).fit(10 * X, y)
    slope = mlp.coefs_[0] @ mlp.coefs_[1]
    composed = LinearRegression().fit(X, y)
    composed.coef_, composed.intercept_ = (
        slope.ravel(),
        float(mlp.predict([[0] * 10])[0]),
    )
    exact = measure(FrozenEstimator(composed), delta=0.5).fit(10 * X, y)
    np.testing.assert_allclose(found.empirical_risk_, exact.empirical_risk_, rtol=1e-9)
    assert 0 < found.smoothed_risk_stderr_ < 0.05 * found.smoothed_risk_
    deviation = found.smoothed_risk_ - exact.smoothed_risk_
    assert abs(deviation) < 4 * found.smoothed_risk_stderr_


def test_perturbing_tokens_uses_one_matrix_for_all_positions():
    # Positions that are copies of each other, summed up: P times one position. With a
    # matrix of its own for each, the perturbations would partly cancel.
    class Summed(nn.Module):
        def __init__(self):
            super().__init__()
            self.token = nn.Linear(3, 1, bias=False)

        def forward(self, X):
            return self.token(X).sum(1)

    X = np.random.default_rng(0).normal(size=(40, 1, 3)).astype(np.float32)
    X = np.repeat(X, 5, axis=1)
    y = X.sum(axis=(1, 2))[:, None]
    net = make_net(Summed, nn.MSELoss, NeuralNetRegressor, max_epochs=2, lr=0.01)
    net.fit(X, y)
    found = measure(
        FrozenEstimator(net), refit=None, delta=0.5, n_draws=400, kernel="uniform"
    ).fit(X, y)
    slope = 5 * net.module_.token.weight.detach().numpy().ravel()
    flat = X[:, 0]
    change = 0.5**2 * (3 / 5) / 3 * (flat**2).sum(axis=1).mean() * (slope**2).sum()
    deviation = found.smoothed_risk_ - found.empirical_risk_ - change
    assert abs(deviation) < 4 * found.smoothed_risk_stderr_
    assert found.smoothed_risk_stderr_ < 0.1 * change


# ---------------------------------------------------------------------------
# Refits
# ---------------------------------------------------------------------------
SCALED = StandardScaler().fit_transform(IRIS[0])
CONVERGED = {
    "least squares": (LinearRegression(), DIABETES, 0.0),
    "no intercept": (LinearRegression(fit_intercept=False), DIABETES, 0.0),
    "ridge": (Ridge(0.3), DIABETES, 0.3 / 442),
    "ridge classifier": (RidgeClassifier(2.0), IRIS, 2.0 / 150 / 3),
    "logistic": (
        LogisticRegression(C=2.0, tol=1e-9, max_iter=10_000),
        IRIS,
        1 / (2 * 2.0 * 150),
    ),
    "balanced": (
        LogisticRegression(class_weight="balanced", tol=1e-9, max_iter=10_000),
        (IRIS[0][20:], IRIS[1][20:]),
        1 / (2 * 130),
    ),
    "binary": (
        LogisticRegression(tol=1e-9, max_iter=10_000),
        (IRIS[0], IRIS[1] > 1),
        1 / (2 * 150),
    ),
}


def output_problem(model, X, y):
    """The output layer of a fitted model with the data that it was fitted to."""
    split = FeatureSplit(FrozenEstimator(model)).fit(X, y)
    view = as_torch_model(split)
    risk = LocalRisk.measure(view, X, y, split.layer_, output=True)
    return risk.output_layer, risk.data


@pytest.mark.parametrize("case", CONVERGED)
def test_implied_penalty_and_refit_give_the_trained_layer_back(case):
    estimator, (X, y), penalty = CONVERGED[case]
    layer, data = output_problem(clone(estimator).fit(X, y), X, y)
    found = implied_penalty(layer, data)
    assert found == pytest.approx(penalty, rel=1e-3, abs=1e-12)
    again = refit_output_layer(layer, data, found)
    scale = float(layer.weight.abs().max())
    np.testing.assert_allclose(again.weight, layer.weight, atol=1e-4 * scale)
    if layer.bias is not None:
        trained, refitted = layer(data.features), again(data.features)
        np.testing.assert_allclose(
            trained, refitted, atol=1e-4 * float(trained.abs().max())
        )


def test_refitted_layer_of_an_mlp_is_a_logistic_regression_on_its_features():
    X, y = SCALED, IRIS[1]
    mlp = MLPClassifier((5,), max_iter=30, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        mlp.fit(X, y)
    layer, data = output_problem(mlp, X, y)
    penalty = implied_penalty(layer, data)
    assert penalty > 0  # stopped early: a refit would grow
    grown = refit_output_layer(layer, data, penalty).weight.norm() / layer.weight.norm()
    assert float(grown) == pytest.approx(1, abs=0.03)
    rows = np.arange(0, 150, 2)
    again = refit_output_layer(layer, data.rows(rows), penalty)
    expected = LogisticRegression(
        C=1 / (2 * penalty * len(rows)), tol=1e-9, max_iter=10_000
    ).fit(data.features[rows], y[rows])
    atol = 1e-3 * np.abs(expected.coef_).max()
    np.testing.assert_allclose(again.weight, expected.coef_, atol=atol)


def test_refitted_layer_has_the_smallest_norm():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(8, 20)), rng.normal(size=8)
    layer, data = output_problem(LinearRegression(fit_intercept=False).fit(X, y), X, y)
    again = refit_output_layer(layer, data, 0.0)
    shortest = np.linalg.pinv(X) @ y
    np.testing.assert_allclose(again.weight, shortest[None], rtol=1e-5)


@pytest.mark.parametrize(
    ("estimator", "data"),
    [(LinearRegression(), DIABETES), (LogisticRegression(C=0.05), IRIS)],
)
def test_refits_of_a_linear_model_agree(estimator, data):
    results = {
        refit: measure(estimator, refit=refit, n_splits=4).fit(*data)
        for refit in ("head", "estimator")
    }
    head, whole = results["head"], results["estimator"]
    # A clone keeps C, the refitted head keeps C n; the splits are the same.
    rtol = 1e-5 if isinstance(estimator, LinearRegression) else 0.3
    np.testing.assert_allclose(head.split_gaps_, whole.split_gaps_, rtol, atol=0.02)
    assert head.empirical_risk_ == whole.empirical_risk_


def test_whoever_has_seen_the_sample_finds_it_representative():
    X, y = DIABETES
    found = measure(LinearRegression(), refit=None, n_splits=200, delta=0.3).fit(X, y)
    losses = (y - found.estimator_.predict(X)) ** 2
    assert abs(found.split_gaps_.mean()) < 0.1 * losses.mean()
    # What is left of the error is minus the robustness.
    robustness = found.smoothed_risk_ - found.empirical_risk_
    left = found.representativeness_ - found.split_gaps_.mean()
    np.testing.assert_allclose(left, -robustness, rtol=0.02)


@pytest.mark.parametrize("refit", ["head", "estimator", None])
@pytest.mark.parametrize("layer", ["coefs.0", "coefs.1", "coefs.2", None])
def test_every_layer_with_every_refit(layer, refit):
    mlp = MLPClassifier((5, 4), activation="tanh", solver="lbfgs", max_iter=40, alpha=1)
    mlp.set_params(random_state=0, tol=1e-3)
    X, y = SCALED[::2], IRIS[1][::2]
    found = measure(mlp, layer=layer, refit=refit, n_splits=2, delta=1e-4).fit(X, y)
    # Nearly no perturbation: the error is the gap.
    np.testing.assert_allclose(found.split_errors_, found.split_gaps_, atol=1e-6)
    assert found.density_.n_features_in_ == found.estimator_.weight_.shape[1]
    wide = measure(mlp, layer=layer, refit=refit, n_splits=2, delta=0.7).fit(X, y)
    assert wide.smoothed_risk_ > found.smoothed_risk_
    assert wide.monte_carlo_stderr_ > 0


def test_refitted_head_behind_a_hidden_layer():
    # The gap does not depend on the layer that is perturbed, if the same output layer
    # is refitted.
    net = make_net().fit(SCALED.astype(np.float32), IRIS[1])
    frozen = FrozenEstimator(net)
    options = {"n_splits": 3, "delta": 0.5}
    last = measure(frozen, **options).fit(SCALED, IRIS[1])
    hidden = measure(frozen, layer="hidden", **options).fit(SCALED, IRIS[1])
    np.testing.assert_allclose(last.split_gaps_, hidden.split_gaps_, rtol=1e-9)
    assert not np.allclose(last.split_errors_, hidden.split_errors_, rtol=1e-3)
    # With nearly no perturbation, the replaced layer gives the refitted risk.
    near = measure(frozen, layer="hidden", n_splits=3, delta=1e-3)
    near.fit(SCALED, IRIS[1])
    np.testing.assert_allclose(near.split_errors_, near.split_gaps_, atol=1e-4)


def test_refit_needs_a_linear_output():
    class Positive(Net):
        def forward(self, X):
            return nn.functional.softplus(super().forward(X))

    net = make_net(Positive, nn.MSELoss, NeuralNetRegressor, module__n_outputs=1)
    y = IRIS[1].astype(np.float32)[:, None]
    with pytest.raises(
        ValueError, match=r"something follows layer 'out'.*refit='estim"
    ):
        measure(net).fit(SCALED, y)
    found = measure(net, refit="estimator", n_splits=2, layer="out").fit(SCALED, y)
    assert np.isfinite(found.representativeness_)


# ---------------------------------------------------------------------------
# Splits
# ---------------------------------------------------------------------------
def test_splits_hold_out_classes_in_equal_shares():
    labels = np.repeat([0, 1, 2], [50, 30, 20])
    rng = np.random.RandomState(0)
    counts = np.zeros(100)
    for train, test in random_splits(labels, 2000, 0.2, rng):
        assert sorted([*train, *test]) == list(range(100))
        assert np.bincount(labels[test]).tolist() == [10, 6, 4]
        counts[test] += 1
    # Every sample is held out with probability 0.2.
    z = (counts - 400) / np.sqrt(2000 * 0.2 * 0.8)
    assert np.abs(z).max() < 4.5
    assert 0.6 < z.std() < 1.4


@pytest.mark.parametrize("test_size", [0.2, 0.5, 0.9, 1, 7, 19])
def test_splits_keep_every_class_for_training(test_size):
    labels = np.array([0] * 12 + [1] * 5 + [2, 3, 4])
    rng = np.random.RandomState(0)
    for train, test in random_splits(labels, 50, test_size, rng):
        assert set(labels[train]) == {0, 1, 2, 3, 4}
        assert len(test) >= 1
        assert not set(train) & set(test)


def test_held_out_are_the_asked_for():
    labels = np.zeros(10, dtype=int)
    for size, expected in [(0.2, 2), (0.25, 3), (4, 4), (9, 9)]:
        (split,) = random_splits(labels, 1, size, np.random.RandomState(0))
        assert len(split[1]) == expected


# ---------------------------------------------------------------------------
# Invariances
# ---------------------------------------------------------------------------
RESULTS = ["representativeness_", "smoothed_risk_", "empirical_risk_"]


def results(found):
    """The numbers of a fitted estimator."""
    return np.array([getattr(found, name) for name in RESULTS])


@pytest.mark.parametrize("labels", [[0, 1], [-1, 1], [1, 0], ["no", "yes"]])
@pytest.mark.parametrize("refit", ["head", "estimator"])
def test_labels_of_any_kind_mean_the_same(labels, refit):
    X, codes = make_classification(80, n_features=5, random_state=0)
    expected = measure(LogisticRegression(), refit=refit, n_splits=3).fit(X, codes)
    y = np.array(labels)[codes]
    found = measure(LogisticRegression(), refit=refit, n_splits=3).fit(X, y)
    exchanged = labels == [1, 0]  # other splits and draws
    rtol = 0.5 if exchanged else 1e-3
    np.testing.assert_allclose(results(found), results(expected), rtol, atol=1e-3)
    assert found.score(X, y) == pytest.approx(expected.score(X, codes), abs=1e-2)


def test_bandwidths_are_no_weights():
    # For the squared error, what smoothing adds is exactly quadratic in delta.
    X, y = DIABETES
    deltas = [1e-9, 0.1, 0.2, 0.4]
    found = [measure(LinearRegression(), delta=delta).fit(X, y) for delta in deltas]
    added = np.array([one.split_gaps_ - one.split_errors_ for one in found])
    np.testing.assert_allclose(added[0], 0, atol=1e-6)
    assert (added[1] > 1).all()
    np.testing.assert_allclose(added[2:], 4 * added[1:3], rtol=1e-9)


def test_scaling_the_features_changes_nothing():
    X, y = DIABETES
    plain = measure(LinearRegression()).fit(X, y)
    scaled = measure(LinearRegression()).fit(1000 * X, y)
    np.testing.assert_allclose(scaled.split_errors_, plain.split_errors_, rtol=1e-8)
    shift = scaled.score_samples(1000 * X) - plain.score_samples(X)
    np.testing.assert_allclose(shift, -10 * np.log(1000), rtol=1e-9)


def test_sum_criterion_counts_as_a_mean():
    X, y = SCALED, IRIS[1]
    net = make_net().fit(X.astype(np.float32), y)
    mean = measure(FrozenEstimator(net), n_splits=3).fit(X, y)
    net.criterion_.reduction = "sum"
    summed = measure(FrozenEstimator(net), n_splits=3).fit(X, y)
    np.testing.assert_allclose(results(mean), results(summed), rtol=1e-9)


def test_class_weights_weigh_the_means():
    X, y = IRIS[0][20:], IRIS[1][20:]
    model = LogisticRegression(class_weight={0: 1.0, 1: 5.0, 2: 2.0}, max_iter=1000)
    found = measure(model, refit=None).fit(X, y)
    losses = -np.log(found.estimator_.predict_proba(X)[np.arange(len(y)), y])
    expected = np.average(losses, weights=np.array([1.0, 5.0, 2.0])[y])
    np.testing.assert_allclose(found.empirical_risk_, expected, rtol=1e-9)


# ---------------------------------------------------------------------------
# Without an estimator
# ---------------------------------------------------------------------------
def test_features_alone_give_held_out_log_densities():
    X = np.random.default_rng(0).normal(size=(50, 3)) + 4
    found = measure().fit(X)
    assert found.density_.kernel == "gaussian"
    assert found.estimator_ is None
    assert found.representativeness_ == pytest.approx(found.split_errors_.mean())
    assert found.representativeness_std_ == pytest.approx(
        found.split_errors_.std(ddof=1)
    )
    density = VariableKernelDensity(delta=0.1).fit(X)
    np.testing.assert_allclose(found.score_samples(X + 1), density.score_samples(X + 1))
    assert found.score(X + 1) == pytest.approx(density.score_samples(X + 1).mean())


def test_two_samples_of_equal_norm_have_an_ordinary_density():
    X = np.array([[3.0, 4.0], [4.0, 3.0]])
    found = measure(delta=0.2, test_size=1).fit(X)
    kde = KernelDensity(bandwidth=1.0).fit(X[:1])
    np.testing.assert_allclose(found.split_errors_, kde.score_samples(X[1:])[0])


def test_the_density_is_highest_for_a_fitting_bandwidth():
    X = np.random.default_rng(0).normal(size=(150, 2)) * 0.3 + 3
    deltas = np.geomspace(1e-4, 10, 11)
    values = [measure(delta=d).fit(X).representativeness_ for d in deltas]
    best = int(np.argmax(values))
    assert 0 < best < 10
    assert (np.diff(values[: best + 1]) > 0).all()
    assert (np.diff(values[best:]) < 0).all()


@pytest.mark.parametrize("kernel", COMPACT)
def test_compact_kernels_give_minus_infinity_outside(kernel):
    X = np.random.default_rng(0).normal(size=(40, 20))
    found = measure(kernel=kernel).fit(X)
    assert found.representativeness_ == -np.inf
    assert found.representativeness_std_ == found.representativeness_stderr_ == np.inf
    assert found.score(X + 10) == -np.inf
    assert np.isfinite(found.score(X))


# ---------------------------------------------------------------------------
# scikit-learn
# ---------------------------------------------------------------------------
CHECKED = {
    "features": KDERepresentativeness(),
    "logistic": KDERepresentativeness(LogisticRegression(C=0.1), n_splits=2),
    "ridge": KDERepresentativeness(Ridge(), refit="estimator", n_splits=2),
    "net": KDERepresentativeness(
        make_net(module__n_features=None, module__n_outputs=20, max_epochs=1),
        n_splits=2,
    ),
}


@pytest.mark.parametrize("case", CHECKED)
def test_check_estimator(case):
    with warnings.catch_warnings():
        # Some checks fit models that cannot converge or hold a single class.
        warnings.simplefilter("ignore")
        found = check_estimator(CHECKED[case], on_skip=None, on_fail=None)
    failed = {r["check_name"]: r["exception"] for r in found if r["status"] == "failed"}
    assert not failed
    assert not [r for r in found if r["status"] == "xfail"]
    assert len(found) > 35


@pytest.mark.parametrize("estimator", [None, Ridge()])
@pytest.mark.parametrize(
    "check", [check_param_validation, check_dataframe_column_names_consistency]
)
def test_further_checks(check, estimator):
    check("KDERepresentativeness", KDERepresentativeness(estimator, n_splits=2))


def test_works_in_pipelines_and_searches():
    X, y = IRIS
    pipe = make_pipeline(
        StandardScaler(), measure(LogisticRegression(), n_splits=3)
    ).fit(X, y)
    assert pipe.score(X, y) <= 0
    assert pipe.score_samples(X).shape == (150,)
    # Features of a model, then their density; the search takes the held-out one.
    split = FeatureSplit(LogisticRegression(max_iter=1000))
    features = make_pipeline(split, measure(n_splits=2))
    grid = {"kderepresentativeness__delta": [1e-3, 0.05, 3.0]}
    search = GridSearchCV(features, grid, cv=3).fit(X, y)
    assert search.best_params_ == {"kderepresentativeness__delta": 0.05}


def test_score_compares_other_data_with_the_smoothed_sample():
    X, y = DIABETES
    found = measure(LinearRegression(), delta=0.2).fit(X[:300], y[:300])
    risk = np.mean((y[300:] - found.estimator_.predict(X[300:])) ** 2)
    expected = -abs(risk - found.smoothed_risk_)
    assert found.score(X[300:], y[300:]) == pytest.approx(expected, rel=1e-9)
    # Worse data, lower score.
    assert found.score(X[300:], y[300:] + 500) < found.score(X[300:], y[300:])


def test_score_samples_is_the_density_of_the_features():
    X, y = IRIS
    net = make_net().fit(X.astype(np.float32), y)
    found = measure(FrozenEstimator(net), kernel="gaussian", delta=0.3).fit(X, y)
    features = FeatureSplit(FrozenEstimator(net)).fit(X, y).transform(X)
    expected = VariableKernelDensity(delta=0.3).fit(features).score_samples(features)
    np.testing.assert_allclose(found.score_samples(X), expected, rtol=1e-6)


@pytest.mark.parametrize(
    "estimator",
    [
        FeatureSplit(LogisticRegression(max_iter=1000)),
        FeatureSplit(make_net(), layer="hidden"),
        make_pipeline(StandardScaler(), make_net(ConvNet)),
        make_pipeline(StandardScaler(), Ridge()),
        GridSearchCV(Ridge(), {"alpha": [0.1, 1.0]}),
        make_net(
            module__n_outputs=1,
            module__squeeze=True,
            criterion=nn.MSELoss,
            kind=NeuralNetRegressor,
        ),
    ],
    ids=["split", "hidden", "conv", "pipeline", "search", "squeezed"],
)
@pytest.mark.parametrize("refit", ["head", "estimator", None])
def test_takes_every_kind_of_model(estimator, refit):
    X, y = IRIS[0].astype(np.float32), IRIS[1]
    if isinstance(estimator, NeuralNetRegressor):
        frozen = estimator.fit(X, y.astype(np.float32))
        estimator = estimator if refit == "estimator" else FrozenEstimator(frozen)
    found = measure(estimator, n_splits=2, refit=refit).fit(X, y)
    assert np.isfinite(results(found)).all()
    assert found.score(X, y) <= 0


def test_takes_dicts_data_sets_frames_and_sparse():
    class Named(Net):
        def forward(self, first, second):
            return super().forward(torch.cat([first, second], dim=1))

    X, y = SCALED.astype(np.float32), IRIS[1].astype(np.int64)
    net = make_net().fit(X, y)
    expected = results(measure(FrozenEstimator(net), n_splits=3).fit(X, y))
    named = make_net(Named)
    as_dict = {"first": X[:, :1], "second": X[:, 1:]}
    named.fit(as_dict, y).module_.load_state_dict(net.module_.state_dict())
    data = TensorDataset(torch.from_numpy(X), torch.from_numpy(y))
    options = {"n_splits": 3}
    found = [
        measure(FrozenEstimator(named), **options).fit(as_dict, y),
        measure(FrozenEstimator(net), **options).fit(data),
        measure(FrozenEstimator(net), **options).fit(pd.DataFrame(X), pd.Series(y)),
        measure(FrozenEstimator(net), **options).fit(X.tolist(), y.tolist()),
    ]
    for one in found:
        np.testing.assert_allclose(results(one), expected, rtol=1e-6)
    ridge = measure(Ridge(), refit="estimator", **options)
    expected = results(clone(ridge).fit(X, y))
    for other in (sparse.coo_array(X), pd.DataFrame(X), X.tolist()):
        found = results(clone(ridge).fit(other, y))
        np.testing.assert_allclose(found, expected, rtol=1e-4)
    whole = measure(make_net(Named), refit="estimator", **options).fit(as_dict, y)
    assert np.isfinite(results(whole)).all()
    whole = measure(make_net(), refit="estimator", **options).fit(data)
    assert np.isfinite(results(whole)).all()


def test_reproducible_and_nothing_else_touched():
    X, y = SCALED.astype(np.float32), IRIS[1]
    net = make_net().fit(X, y)
    state = {k: v.clone() for k, v in net.module_.state_dict().items()}
    net.module_.train()
    np.random.seed(3)  # noqa: NPY002 - the global state is what is watched
    torch.manual_seed(3)
    before = (np.random.get_state()[1].copy(), torch.get_rng_state())  # noqa: NPY002
    options = {"layer": "hidden", "n_splits": 2, "delta": 0.5}
    first = measure(FrozenEstimator(net), **options).fit(X, y)
    again = measure(FrozenEstimator(net), **options).fit(X, y)
    other = measure(FrozenEstimator(net), **options | {"random_state": None})
    other = [clone(other).fit(X, y) for _ in range(2)]
    after = (np.random.get_state()[1], torch.get_rng_state())  # noqa: NPY002
    np.testing.assert_array_equal(first.split_errors_, again.split_errors_)
    assert not np.allclose(*(one.split_errors_ for one in other), rtol=1e-6)
    np.testing.assert_array_equal(before[0], after[0])
    assert torch.equal(before[1], after[1])
    assert net.module_.training
    assert not any(module._forward_hooks for module in net.module_.modules())
    for name, value in net.module_.state_dict().items():
        assert torch.equal(value, state[name])
    copy = pickle.loads(pickle.dumps(first))
    assert copy.score(X, y) == first.score(X, y)


@pytest.mark.gpu
@pytest.mark.parametrize("layer", ["hidden", "out"])
@pytest.mark.parametrize("refit", ["head", "estimator", None])
def test_net_on_the_gpu(layer, refit):
    X, y = SCALED.astype(np.float32), IRIS[1]
    net = make_net().fit(X, y)
    on_gpu = make_net(device="cuda").fit(X, y)
    on_gpu.module_.load_state_dict(net.module_.state_dict())
    options = {"layer": layer, "refit": refit, "n_splits": 2}
    if refit == "estimator":
        found = measure(on_gpu, **options).fit(X, y)
        assert np.isfinite(results(found)).all()
        return
    found, expected = (
        results(measure(FrozenEstimator(one), **options).fit(X, y))
        for one in (on_gpu, net)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-3)


# ---------------------------------------------------------------------------
# Bad input
# ---------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"delta": 0.0}, "'delta' parameter.*must be a float in the range"),
        ({"delta": -0.1}, "'delta' parameter"),
        ({"delta": np.inf}, "'delta' parameter"),
        ({"kernel": "cosine"}, "'kernel' parameter"),
        ({"refit": "all"}, "'refit' parameter"),
        ({"n_splits": 1}, "'n_splits' parameter"),
        ({"n_draws": 2}, "'n_draws' parameter"),
        ({"test_size": 1.0}, "'test_size' parameter"),
        ({"test_size": 150}, "150 samples with test_size=150"),
        ({"layer": "coefs.7"}, "coefs.7.*Choose one of"),
    ],
)
def test_parameters_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        measure(LogisticRegression(max_iter=1000), **options).fit(*IRIS)


X20 = np.random.default_rng(0).normal(size=(20, 3))
Y20 = np.arange(20) % 2
WITH_NAN = np.where(np.arange(60).reshape(20, 3) == 7, np.nan, X20)


@pytest.mark.parametrize(
    ("estimator", "X", "y", "message"),
    [
        (Ridge(), X20[:1], Y20[:1], "training and a held-out part, got 1 sample"),
        (None, X20[:1], None, "minimum of 2 is required"),
        (Ridge(), X20, None, "requires y to be passed, but the target y is None"),
        (LogisticRegression(), X20, np.zeros(20), "one class"),
        (Ridge(), WITH_NAN, Y20, "NaN"),
        (None, WITH_NAN, None, "NaN"),
        (Ridge(), np.zeros((20, 3)), Y20, "20 rows of zeros"),
        (None, np.zeros((20, 3)), None, "20 rows of zeros"),
        (Ridge(), X20, Y20[:10], "inconsistent numbers of samples"),
        (LogisticRegression(), X20, np.arange(20), "20 classes with one sample each"),
    ],
)
def test_bad_data(estimator, X, y, message):
    with pytest.raises(ValueError, match=message):
        measure(estimator).fit(X, y)


@pytest.mark.parametrize(
    "estimator", [None, Ridge(), FrozenEstimator(Ridge().fit(X20, Y20))]
)
def test_other_width(estimator):
    found = measure(estimator).fit(X20, Y20)
    for method in (found.score_samples, lambda X: found.score(X, Y20)):
        with pytest.raises(ValueError, match=r"X has 2 features, but .* 3 features"):
            method(X20[:, :2])


def test_misuse():
    with pytest.raises(ValueError, match=r"FrozenEstimator of Ridge.*refit='head'"):
        measure(FrozenEstimator(Ridge().fit(X20, Y20)), refit="estimator").fit(X20, Y20)
    with pytest.raises(ValueError, match=r"layer=None without an estimator.*'coef'"):
        measure(layer="coef").fit(X20)
    with pytest.raises(TypeError, match="instance with a method fit"):
        measure(Ridge).fit(X20, Y20)
    with pytest.raises(TypeError, match="Expected a supported model"):
        measure(KernelDensity()).fit(X20, Y20)
    with pytest.raises(NotFittedError):
        measure().score_samples(X20)
    found = measure(Ridge()).fit(X20, Y20)
    with pytest.raises(ValueError, match="got None"):
        found.score(X20)


def test_a_class_with_one_sample_is_never_held_out():
    y = np.array([0] * 12 + [1] * 7 + [2])
    for refit in ("head", "estimator"):
        found = measure(LogisticRegression(), refit=refit, n_splits=5).fit(X20, y)
        assert (found.split_gaps_ < 5).all()


def test_constant_features_are_like_any_others():
    X = np.column_stack([X20, np.full(20, 3.0)])
    plain = measure(Ridge(), delta=1e-6).fit(X20, Y20)
    more = measure(Ridge(), delta=1e-6).fit(X, Y20)
    np.testing.assert_allclose(more.split_gaps_, plain.split_gaps_, rtol=1e-6)
    assert np.isfinite(measure().fit(np.ones((20, 3))).representativeness_)


def test_samples_at_the_origin_are_not_perturbed():
    X = X20 * (np.arange(20) > 9)[:, None]
    model = Ridge().fit(X, Y20)
    found = measure(FrozenEstimator(model), refit=None, delta=0.5).fit(X, Y20)
    part = measure(FrozenEstimator(model), refit=None, delta=0.5)
    part = part.fit(X[10:], Y20[10:])
    change = found.smoothed_risk_ - found.empirical_risk_
    of_part = part.smoothed_risk_ - part.empirical_risk_
    assert change == pytest.approx(of_part / 2)
    bandwidth = found.density_.bandwidth_
    assert bandwidth[:10].tolist() == [bandwidth[10:].min()] * 10


def test_overflowing_perturbations_are_an_error():
    model = LogisticRegression().fit(X20, Y20)
    huge = measure(FrozenEstimator(model), refit=None, delta=1e308)
    with pytest.raises(ValueError, match="finite loss of the perturbed features"):
        huge.fit(100 * X20, Y20)


def test_separable_classes_without_a_penalty_have_finite_errors():
    X = np.array([[-1.0], [-2.0], [1.0], [2.0]] * 5)
    y = (X[:, 0] > 0).astype(int)
    model = LogisticRegression().fit(X, y)
    model.coef_[:] = 0  # no norm, no penalty implied
    found = measure(FrozenEstimator(model), n_splits=2).fit(X, y)
    assert np.isfinite(found.split_errors_).all()
