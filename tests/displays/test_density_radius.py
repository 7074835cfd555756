"""The picture of the likelihood of a radius."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from sklearn_relflat import DensityRadiusDisplay, density_radius, smoothed_risk
from tests.displays.looks import check_looks


def features(load):
    X, y = load(return_X_y=True)
    return StandardScaler().fit_transform(X), y


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


def test_shows_the_curve_and_its_maximum():
    Z, _ = features(load_iris)
    expected = density_radius(Z)
    display = DensityRadiusDisplay.from_features(Z)
    np.testing.assert_array_equal(display.line_.get_xdata(), expected.radii)
    np.testing.assert_array_equal(display.line_.get_ydata(), expected.log_likelihoods)
    assert list(display.radius_line_.get_xdata()) == [expected.radius] * 2
    assert display.ax_.get_xscale() == "log"
    assert "nats" in display.ax_.get_ylabel()
    assert "share of the norm" in display.ax_.get_xlabel()
    (low, high), (bottom, top) = display.ax_.get_xlim(), display.ax_.get_ylim()
    assert low < expected.radius < high
    assert bottom < expected.log_likelihood < top


def test_band_is_two_standard_errors_wide():
    Z, _ = features(load_iris)
    display = DensityRadiusDisplay.from_features(Z)
    box = display.band_.get_extents().transformed(display.ax_.transData.inverted())
    width = np.log([box.x0, box.x1]) - np.log(display.radius)
    relative = display.stderr / display.radius
    np.testing.assert_allclose(width, [-2 * relative, 2 * relative], rtol=1e-6)


@pytest.mark.parametrize("stderr", [0.0, np.inf])
def test_no_band_without_an_error(stderr):
    display = DensityRadiusDisplay(
        radii=np.array([0.1, 0.2, 0.4]),
        log_likelihoods=np.array([-2.0, -1.0, -3.0]),
        radius=0.2,
        stderr=stderr,
    ).plot()
    assert display.band_ is None
    assert len(display.legend_.get_texts()) == 2


@pytest.mark.parametrize("values", [[-3.0, -2.0, -1.0], [-1.0, -2.0, -3.0], [-1.0]])
def test_maximum_at_an_end_of_the_grid_is_seen(values):
    radii = np.array([0.1, 0.2, 0.4])[: len(values)]
    best = radii[np.argmax(values)]
    display = DensityRadiusDisplay(
        radii=radii, log_likelihoods=np.array(values), radius=best
    ).plot()
    low, high = display.ax_.get_xlim()
    bottom, top = display.ax_.get_ylim()
    assert low < best < high
    assert bottom < -1.0 < top


def test_takes_the_density_of_a_smoothed_risk():
    Z, y = features(load_iris)
    model = LogisticRegression(max_iter=1000).fit(Z, y)
    risk = smoothed_risk(model, Z, y, random_state=0)
    display = DensityRadiusDisplay.from_result(risk)
    assert display.radius == risk.radius


def test_result_without_a_curve():
    Z, y = features(load_iris)
    model = LogisticRegression(max_iter=1000).fit(Z, y)
    risk = smoothed_risk(model, Z, y, radius=0.1, random_state=0)
    for result in (risk, 0.1):
        with pytest.raises(TypeError, match=r"expects a result of .*got .*from_feat"):
            DensityRadiusDisplay.from_result(result)


def test_options_and_keywords_arrive():
    Z, y = features(load_iris)
    figure, ax = plt.subplots()
    display = DensityRadiusDisplay.from_features(
        Z,
        y,
        options={"shape": "within_class", "grid": [0.2, 0.4, 0.8]},
        name="iris",
        ax=ax,
        line_kwargs={"c": "red"},
        radius_kwargs={"lw": 3},
        band_kwargs={"fc": "green"},
    )
    assert display.ax_ is ax
    assert display.figure_ is figure
    assert list(display.radii) == [0.2, 0.4, 0.8]
    assert display.line_.get_color() == "red"
    assert display.radius_line_.get_linewidth() == 3
    assert display.band_.get_facecolor()[:3] == (0, 128 / 255, 0)
    assert "iris" in display.legend_.get_texts()[0].get_text()


def test_frame_has_the_numbers():
    Z, _ = features(load_iris)
    frame = DensityRadiusDisplay.from_features(Z).frame()
    result = density_radius(Z)
    assert list(frame) == ["radius", "log_likelihood", "is_best"]
    np.testing.assert_array_equal(frame["log_likelihood"], result.log_likelihoods)
    assert frame.loc[frame["is_best"], "radius"].tolist() == [result.radius]


@pytest.mark.parametrize("style", ["default", "dark_background"])
@pytest.mark.parametrize("load", [load_breast_cancer, load_iris])
def test_looks(style, load):
    with plt.style.context(style):
        check_looks(DensityRadiusDisplay.from_features(features(load)[0], name="Z"))
