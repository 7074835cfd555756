"""The picture of the loss along random directions."""

import copy

import matplotlib.pyplot as plt
import numpy as np
import pytest
from sklearn.datasets import load_diabetes, load_iris
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.metrics import log_loss
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import StandardScaler

from sklearn_relflat import (
    LossSurfaceDisplay,
    feature_robustness,
    relative_flatness,
)
from tests.displays.looks import check_looks

SMALL = {"n_points": 5, "n_directions": 3, "random_state": 0}


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def logistic():
    X, y = load_iris(return_X_y=True)
    X = StandardScaler().fit_transform(X)
    return LogisticRegression(max_iter=1000).fit(X, y), X, y


@pytest.fixture(scope="module")
def least_squares():
    X, y = load_diabetes(return_X_y=True)
    return LinearRegression().fit(X, y), X, y


def test_lines_are_the_losses_of_perturbed_features(logistic):
    model, X, y = logistic
    display = LossSurfaceDisplay.from_estimator(*logistic, delta=0.8, **SMALL)
    np.testing.assert_allclose(display.deltas, [-0.8, -0.4, 0.0, 0.4, 0.8])
    rise = feature_robustness(
        *logistic,
        deltas=[0.4, 0.8],
        n_matrices=6,
        random_state=np.random.RandomState(0),
    )
    base = log_loss(y, model.predict_proba(X))
    assert len(display.feature_lines_) == 3
    for i, line in enumerate(display.feature_lines_):
        (plus, minus), deltas = rise.values.T[2 * i : 2 * i + 2], line.get_xdata()
        np.testing.assert_array_equal(deltas, display.deltas)
        expected = base + np.concatenate([minus[::-1], [0.0], plus])
        np.testing.assert_allclose(line.get_ydata(), expected, atol=1e-12)


def test_mean_is_over_the_lines_and_their_mirror_images(logistic):
    display = LossSurfaceDisplay.from_estimator(*logistic, delta=0.8, **SMALL)
    rise = feature_robustness(
        *logistic,
        deltas=[0.4, 0.8],
        n_matrices=6,
        random_state=np.random.RandomState(0),
    )
    over_lines = display.feature_losses.mean(axis=0)
    expected = (over_lines + over_lines[::-1]) / 2
    np.testing.assert_allclose(display.mean_line_.get_ydata(), expected)
    mean, stderr = expected[3:], rise.stderr
    np.testing.assert_allclose(display.stderr, [*stderr[::-1], 0.0, *stderr])
    vertices = display.band_.get_paths()[0].vertices
    at_end = vertices[np.isclose(vertices[:, 0], 0.8), 1]
    np.testing.assert_allclose(
        [at_end.min(), at_end.max()],
        [mean[1] - 2 * stderr[1], mean[1] + 2 * stderr[1]],
    )


def test_weights_move_by_their_own_norm(least_squares):
    """For one neuron and the squared error, all is known."""
    model, X, _ = least_squares
    display = LossSurfaceDisplay.from_estimator(*least_squares, delta=2.0, **SMALL)
    norm = np.linalg.norm(model.coef_)
    curvature = np.linalg.eigvalsh(2 * X.T @ X / len(X)) / 2 * norm**2
    for losses in (display.weight_losses, display.feature_losses):
        assert losses.shape == (3, 5)
        np.testing.assert_allclose(losses[:, 2], display.mean_loss)
        # Rises are delta^2 times a Rayleigh quotient, and even in delta up to the
        # gradient, which is zero.
        rises = losses - display.mean_loss
        np.testing.assert_allclose(rises[:, ::-1], rises, rtol=1e-6)
        np.testing.assert_allclose(rises[:, 4], 4 * rises[:, 3], rtol=1e-6)
        quotients = rises[:, 4] / 4
        assert np.all(quotients > curvature.min() * (1 - 1e-9))
        assert np.all(quotients < curvature.max() * (1 + 1e-9))
    # The two are independent draws.
    assert abs(display.weight_losses - display.feature_losses).max() > 1


def test_parabola_is_that_of_flatness(least_squares):
    model, X, y = least_squares
    kappa = float(relative_flatness(model, X, y))
    display = LossSurfaceDisplay.from_estimator(*least_squares, **SMALL)
    base = np.mean((model.predict(X) - y) ** 2)
    expected = base + display.deltas**2 * kappa / (2 * X.shape[1])
    np.testing.assert_allclose(display.line_.get_ydata(), expected)
    # For least squares the mean has no higher orders.
    assert np.all(abs(display.mean - expected) <= 4 * display.stderr + 1e-9)
    many = LossSurfaceDisplay.from_estimator(
        *least_squares, **{**SMALL, "n_directions": 500}
    )
    assert many.stderr[-1] < 0.2 * display.stderr[-1]
    assert np.all(abs(many.mean - expected) <= 4 * many.stderr + 1e-9)


def test_hidden_layer_and_the_model_stays_as_it_is():
    X, y = load_iris(return_X_y=True)
    mlp = MLPClassifier((4,), solver="lbfgs", max_iter=2000, random_state=0).fit(X, y)
    before = copy.deepcopy(mlp)
    display = LossSurfaceDisplay.from_estimator(mlp, X, y, layer="coefs.0", **SMALL)
    for kept, weight in zip(before.coefs_, mlp.coefs_, strict=True):
        np.testing.assert_array_equal(kept, weight)
    assert display.mean_loss == pytest.approx(log_loss(y, mlp.predict_proba(X)))
    kappa = float(relative_flatness(mlp, X, y, layer="coefs.0"))
    assert display.coefficient == pytest.approx(kappa / (2 * X.shape[1]))
    assert "'coefs.0'" in display.ax_.get_title()
    assert "nats" in display.ax_.get_ylabel()


@pytest.mark.parametrize("layer", ["coefs.0", "coefs.1"])
def test_rescaled_layers_look_the_same(layer):
    X, y = load_iris(return_X_y=True)
    mlp = MLPClassifier((4,), solver="lbfgs", max_iter=2000, random_state=0).fit(X, y)
    scaled = copy.deepcopy(mlp)
    scaled.coefs_ = [8 * mlp.coefs_[0], mlp.coefs_[1] / 8]
    scaled.intercepts_ = [8 * mlp.intercepts_[0], mlp.intercepts_[1]]
    one, two = (
        LossSurfaceDisplay.from_estimator(model, X, y, layer=layer, **SMALL)
        for model in (mlp, scaled)
    )
    np.testing.assert_allclose(one.feature_losses, two.feature_losses)
    np.testing.assert_allclose(one.weight_losses, two.weight_losses)
    assert one.coefficient == pytest.approx(two.coefficient)


def test_same_seed_same_lines(logistic):
    one, two = (LossSurfaceDisplay.from_estimator(*logistic, **SMALL) for _ in range(2))
    np.testing.assert_array_equal(one.feature_losses, two.feature_losses)
    np.testing.assert_array_equal(one.weight_losses, two.weight_losses)
    other = LossSurfaceDisplay.from_estimator(*logistic, **{**SMALL, "random_state": 1})
    assert (one.feature_losses != other.feature_losses).any()


def test_loss_and_weights_of_samples(logistic):
    model, X, y = logistic
    weights = np.where(y == 0, 3.0, 1.0)
    display = LossSurfaceDisplay.from_estimator(
        *logistic, sample_weight=weights, weights=False, **SMALL
    )
    expected = log_loss(y, model.predict_proba(X), sample_weight=weights)
    assert display.mean_loss == pytest.approx(expected)
    assert display.weight_losses is None
    assert display.weight_lines_ == []
    squared = LossSurfaceDisplay.from_estimator(
        *logistic, loss="squared_error", **SMALL
    )
    assert "squared error" in squared.ax_.get_ylabel()


def test_a_single_direction_has_no_band(logistic):
    display = LossSurfaceDisplay.from_estimator(
        *logistic, **{**SMALL, "n_directions": 1}
    )
    assert display.band_ is None
    check_looks(display)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"delta": 0.0}, r"delta to be a positive number, got 0.0"),
        ({"delta": "big"}, r"delta to be a positive number, got 'big'"),
        ({"n_points": 4}, r"n_points to be an odd integer of at least 3, got 4"),
        ({"n_points": 1}, r"n_points to be an odd integer of at least 3, got 1"),
        ({"n_directions": 0}, r"n_directions to be a positive integer, got 0"),
    ],
)
def test_options_that_are_not_valid(logistic, option, message):
    with pytest.raises(ValueError, match=message):
        LossSurfaceDisplay.from_estimator(*logistic, **{**SMALL, **option})


def test_keywords_arrive(logistic):
    figure, ax = plt.subplots()
    display = LossSurfaceDisplay.from_estimator(
        *logistic,
        **SMALL,
        ax=ax,
        feature_kwargs={"c": "red"},
        weight_kwargs={"lw": 3},
        mean_kwargs={"ls": ":"},
        band_kwargs={"alpha": 0.5},
        line_kwargs={"c": "green"},
    )
    assert display.ax_ is ax
    assert display.figure_ is figure
    assert {line.get_color() for line in display.feature_lines_} == {"red"}
    assert {line.get_linewidth() for line in display.weight_lines_} == {3}
    assert display.mean_line_.get_linestyle() == ":"
    assert display.band_.get_alpha() == 0.5
    assert display.line_.get_color() == "green"


def test_frame_has_the_numbers(logistic):
    display = LossSurfaceDisplay.from_estimator(*logistic, **SMALL)
    frame = display.frame()
    assert len(frame) == 5
    for i in range(3):
        np.testing.assert_array_equal(frame[f"features_{i}"], display.feature_losses[i])
        np.testing.assert_array_equal(frame[f"weights_{i}"], display.weight_losses[i])
    np.testing.assert_array_equal(frame["mean"], display.mean)
    np.testing.assert_array_equal(frame["predicted"], display.line_.get_ydata())


@pytest.mark.parametrize("style", ["default", "dark_background"])
def test_looks(style, logistic, least_squares):
    with plt.style.context(style):
        check_looks(LossSurfaceDisplay.from_estimator(*logistic, random_state=0))
        check_looks(LossSurfaceDisplay.from_estimator(*least_squares, random_state=0))
