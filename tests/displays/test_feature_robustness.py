"""The picture of the rise of the loss."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.neural_network import MLPRegressor
from sklearn.preprocessing import StandardScaler

from sklearn_relflat import (
    FeatureRobustnessDisplay,
    density_radius,
    feature_robustness,
    relative_flatness,
    smoothed_risk,
)
from tests.displays.looks import check_looks

DELTAS = [0.3, 0.03, 0.1]


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def logistic():
    X, y = load_breast_cancer(return_X_y=True)
    X = StandardScaler().fit_transform(X)
    return LogisticRegression(tol=1e-6, max_iter=1000).fit(X, y), X, y


@pytest.fixture(scope="module")
def least_squares():
    X, y = load_diabetes(return_X_y=True)
    return LinearRegression().fit(X, y), X, y


def test_shows_the_rise_in_order_of_size(logistic):
    result = feature_robustness(*logistic, deltas=DELTAS, random_state=0)
    display = FeatureRobustnessDisplay.from_result(result)
    order = np.argsort(DELTAS)
    line, _, (bars,) = display.errorbar_.lines
    np.testing.assert_array_equal(line.get_xdata(), result.deltas[order])
    np.testing.assert_array_equal(line.get_ydata(), result.expectation[order])
    lengths = [segment[1, 1] - segment[0, 1] for segment in bars.get_segments()]
    np.testing.assert_allclose(lengths, 4 * result.expectation_stderr[order])
    assert display.ax_.get_yscale() == "log"
    assert "cross-entropy (nats)" in display.ax_.get_ylabel()
    assert "'coef'" in display.ax_.get_title()


def test_prediction_is_the_parabola_of_flatness(least_squares):
    model, X, y = least_squares
    kappa = float(relative_flatness(model, X, y))
    display = FeatureRobustnessDisplay.from_estimator(
        *least_squares, deltas=DELTAS, radius=0.2, options={"random_state": 0}
    )
    sizes, predicted = display.line_.get_data()
    np.testing.assert_allclose(predicted, sizes**2 * kappa / (2 * X.shape[1]))
    assert (min(sizes), max(sizes)) == pytest.approx((0.03, 0.3))
    # Least squares agree at all sizes.
    assert display.agreement_radius == 0.3
    assert list(display.radius_line_.get_xdata()) == [0.2, 0.2]


def test_radius_is_that_of_the_features(logistic):
    display = FeatureRobustnessDisplay.from_estimator(*logistic)
    expected = float(density_radius(logistic[1]))
    assert display.radius == pytest.approx(expected)
    assert display.deltas.max() == pytest.approx(2 * expected)
    low, high = display.ax_.get_xlim()
    assert low < expected < high


def test_radius_of_a_hidden_layer_and_options_of_the_loss(least_squares):
    _, X, y = least_squares
    net = MLPRegressor(hidden_layer_sizes=(4,), solver="lbfgs", random_state=0, tol=1.0)
    net.fit(X, y)
    options = {"loss": "squared_error", "n_matrices": 4, "random_state": 0}
    display = FeatureRobustnessDisplay.from_estimator(
        net, X, y, layer="coefs.1", options=options
    )
    expected = smoothed_risk(net, X, y, layer="coefs.1", loss="squared_error").radius
    assert display.radius == pytest.approx(expected)
    assert "coefs.1" in display.ax_.get_title()


@pytest.mark.parametrize("radius", [None, 0.5])
def test_radius_is_within_the_limits_or_not_there(least_squares, radius):
    options = {"random_state": 0}
    display = FeatureRobustnessDisplay.from_estimator(
        *least_squares, deltas=[0.01, 0.02], radius=radius, options=options
    )
    assert (display.radius_line_ is None) == (radius is None)
    assert radius is None or display.ax_.get_xlim()[1] > radius
    default = FeatureRobustnessDisplay.from_estimator(*least_squares, radius=None)
    assert default.deltas.max() == pytest.approx(1.0)


def test_without_a_prediction_and_without_errors(logistic):
    model, X, y = logistic
    rng = np.random.default_rng(0)
    matrix = np.diag(rng.uniform(0, 1, X.shape[1]))
    result = feature_robustness(model, X, y, deltas=DELTAS, matrices=[matrix])
    assert result.flatness_term is None
    display = FeatureRobustnessDisplay.from_result(result)
    assert display.line_ is None
    assert display.band_ is None
    assert display.frame()["predicted"].isna().all()
    check_looks(display)


def test_keywords_arrive(least_squares):
    figure, ax = plt.subplots()
    display = FeatureRobustnessDisplay.from_estimator(
        *least_squares,
        ax=ax,
        errorbar_kwargs={"c": "red"},
        line_kwargs={"lw": 3},
        radius_kwargs={"ls": "-"},
        band_kwargs={"alpha": 0.5},
    )
    assert display.ax_ is ax
    assert display.figure_ is figure
    assert display.errorbar_.lines[0].get_color() == "red"
    assert display.line_.get_linewidth() == 3
    assert display.radius_line_.get_linestyle() == "-"
    assert display.band_.get_alpha() == 0.5


def test_result_of_another_kind():
    with pytest.raises(TypeError, match=r"expects a result of feature_r.*got 3.*call"):
        FeatureRobustnessDisplay.from_result(3)


def test_frame_has_the_numbers(logistic):
    result = feature_robustness(*logistic, deltas=DELTAS, random_state=0)
    frame = FeatureRobustnessDisplay.from_result(result).frame()
    order = np.argsort(DELTAS)
    assert frame["delta"].tolist() == sorted(DELTAS)
    np.testing.assert_array_equal(
        frame["feature_robustness"], result.expectation[order]
    )
    np.testing.assert_array_equal(frame["stderr"], result.expectation_stderr[order])
    np.testing.assert_allclose(frame["predicted"], result.flatness_term[order])


@pytest.mark.parametrize("style", ["default", "dark_background"])
def test_looks(style, logistic, least_squares):
    with plt.style.context(style):
        check_looks(FeatureRobustnessDisplay.from_estimator(*logistic))
        check_looks(FeatureRobustnessDisplay.from_estimator(*least_squares))
