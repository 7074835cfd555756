"""The picture of the density of eigenvalues."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from sklearn.datasets import load_digits, load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier

from sklearn_relflat import HessianSpectrumDisplay, hessian_spectrum
from tests.displays.looks import check_looks

OPTIONS = {"n_probes": 3, "n_steps": 8, "random_state": 0}


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def dense():
    """A model whose matrix is formed."""
    X, y = load_iris(return_X_y=True)
    return LogisticRegression(max_iter=1000).fit(X, y), X, y


@pytest.fixture(scope="module")
def sampled():
    """A model whose spectrum comes from random vectors."""
    X, y = load_digits(return_X_y=True)
    X, y = X[:100] / 16, y[:100]
    mlp = MLPClassifier((8,), solver="lbfgs", max_iter=1000, random_state=0)
    return mlp.fit(X, y), X, y


def ends_of(band):
    """Lower and upper end of a band at each of its points."""
    vertices = band.get_paths()[0].vertices
    by_x = {}
    for x, y in vertices:
        by_x.setdefault(x, []).append(y)
    return np.array([[min(v), max(v)] for _, v in sorted(by_x.items())])


def test_shows_the_density_of_the_result(sampled):
    result = hessian_spectrum(*sampled, layer="all", **OPTIONS)
    assert result.method == "lanczos"
    display = HessianSpectrumDisplay.from_result(result)
    grid, density = display.line_.get_data()
    expected, stderr = result.density(grid, return_stderr=True)
    np.testing.assert_array_equal(density, expected)
    np.testing.assert_array_equal(display.stderr, stderr)
    assert grid[0] < result.smallest < result.largest < grid[-1]
    # All of the mass is within the axis, and the grid is fine enough for it.
    assert np.trapezoid(density, grid) == pytest.approx(1.0, abs=1e-3)
    assert list(display.largest_line_.get_xdata()) == [result.largest] * 2
    assert list(display.smallest_line_.get_xdata()) == [result.smallest] * 2
    assert display.ax_.get_yscale() == "log"
    assert "all layers" in display.ax_.get_title()
    assert "cross-entropy" in display.ax_.get_title()
    assert "units of the loss" in display.ax_.get_xlabel()


def test_band_is_two_standard_errors_wide(sampled):
    display = HessianSpectrumDisplay.from_estimator(
        *sampled, layer="all", options=OPTIONS
    )
    low, high = ends_of(display.band_).T
    ends = display.density + np.outer([-2, 2], display.stderr)
    bottom, top = display.ax_.get_ylim()
    for drawn, expected in zip((low, high), ends, strict=True):
        seen = expected > bottom
        assert seen.any()
        np.testing.assert_allclose(drawn[seen], expected[seen])
        # No end is at zero or less, which a logarithmic scale would leave out.
        assert np.all(drawn > 0)
        assert np.all(drawn[~seen] <= bottom)
    assert high.max() < top


def test_eigenvalues_themselves_have_no_band(dense):
    display = HessianSpectrumDisplay.from_estimator(*dense)
    result = hessian_spectrum(*dense)
    assert result.method == "dense"
    assert display.band_ is None
    assert display.largest == result.nodes.max()
    assert "'coef'" in display.ax_.get_title()


def test_a_single_vector_has_no_band(sampled):
    display = HessianSpectrumDisplay.from_estimator(
        *sampled, layer="all", options={**OPTIONS, "n_probes": 1}
    )
    assert np.isnan(display.stderr).all()
    assert display.band_ is None


def test_a_single_eigenvalue_is_seen(dense):
    display = HessianSpectrumDisplay.from_estimator(*dense, width=1e-3)
    n, width = display.n_weights, 1e-3
    one = 1 / (n * width * np.sqrt(2 * np.pi))
    near = np.argmin(abs(display.eigenvalues - display.largest))
    assert display.density[near] == pytest.approx(one, rel=0.05)
    bottom, top = display.ax_.get_ylim()
    assert bottom < one / 5 < one < top


@pytest.mark.parametrize("width", [0.0, -1.0, np.nan, "wide"])
def test_width_that_is_none(dense, width):
    with pytest.raises(ValueError, match=r"Expected width to be a positive number"):
        HessianSpectrumDisplay.from_estimator(*dense, width=width)


def test_narrow_width_does_not_take_all_memory(dense):
    display = HessianSpectrumDisplay.from_estimator(*dense, width=1e-12)
    assert len(display.eigenvalues) == 20_000


def test_keywords_arrive(sampled):
    figure, ax = plt.subplots()
    display = HessianSpectrumDisplay.from_estimator(
        *sampled,
        layer="all",
        options=OPTIONS,
        ax=ax,
        line_kwargs={"c": "red"},
        band_kwargs={"fc": "green"},
        extreme_kwargs={"lw": 3},
    )
    assert display.ax_ is ax
    assert display.figure_ is figure
    assert display.line_.get_color() == "red"
    assert tuple(display.band_.get_facecolor()[0][:3]) == (0, 128 / 255, 0)
    assert display.largest_line_.get_linewidth() == 3
    assert display.smallest_line_.get_linewidth() == 3


def test_result_of_another_kind():
    with pytest.raises(TypeError, match=r"expects a result of hessian_s.*got 3.*call"):
        HessianSpectrumDisplay.from_result(3)


def test_frame_has_the_numbers(sampled):
    result = hessian_spectrum(*sampled, layer="all", **OPTIONS)
    frame = HessianSpectrumDisplay.from_result(result).frame()
    assert list(frame) == ["eigenvalue", "density", "stderr"]
    expected, stderr = result.density(frame["eigenvalue"], return_stderr=True)
    np.testing.assert_array_equal(frame["density"], expected)
    np.testing.assert_array_equal(frame["stderr"], stderr)


def test_density_without_errors():
    display = HessianSpectrumDisplay(
        eigenvalues=np.array([0.0, 1.0, 2.0]),
        density=np.array([0.1, 0.8, 0.1]),
        largest=1.0,
        smallest=1.0,
        width=0.5,
        n_weights=1,
    ).plot()
    assert display.band_ is None
    assert display.ax_.get_title() == ""
    assert display.frame()["stderr"].isna().all()


def test_long_names_of_layers_fit(dense):
    display = HessianSpectrumDisplay.from_estimator(*dense)
    for layer in ("encoder.layers.0.self_attention.output_projection", "a" * 150):
        display.layer = layer
        check_looks(display.plot())


@pytest.mark.parametrize("style", ["default", "dark_background"])
def test_looks(style, dense, sampled):
    with plt.style.context(style):
        check_looks(HessianSpectrumDisplay.from_estimator(*dense))
        check_looks(
            HessianSpectrumDisplay.from_estimator(
                *sampled, layer="all", options=OPTIONS
            )
        )
