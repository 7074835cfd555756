"""The picture of the layers."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from sklearn.datasets import load_digits, load_iris
from sklearn.neural_network import MLPClassifier
from torch import nn

from sklearn_relflat import LayerProfileDisplay, layerwise_relative_flatness
from tests.displays.looks import check_looks


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def fitted():
    X, y = load_iris(return_X_y=True)
    mlp = MLPClassifier((16, 8), solver="lbfgs", max_iter=2000, random_state=0)
    return mlp.fit(X, y), X, y


def many_layers():
    """Result of a net whose layers span decades, the unused one left out."""
    X, y = load_digits(return_X_y=True)
    X, y = (X[:50] / 16).astype("float32"), y[:50]
    hidden = [part for _ in range(28) for part in (nn.Linear(16, 16), nn.ReLU())]
    module = nn.Sequential(
        nn.Linear(64, 16), nn.ReLU(), *hidden, nn.Linear(16, 10)
    ).eval()
    return layerwise_relative_flatness(module, X, y, loss=nn.CrossEntropyLoss())


def display_with_gaps(**options):
    """Layers of which one was not measured, and two have an error."""
    values = np.array([1.0, 300.0, np.nan])
    stderr = np.array([0.1, 30.0, np.nan])
    return LayerProfileDisplay(
        layers=["first", "second", "third"],
        values=values,
        stderr=stderr,
        loss="cross_entropy",
        **options,
    )


def test_shows_the_flatness_of_each_layer(fitted):
    expected = layerwise_relative_flatness(*fitted)
    display = LayerProfileDisplay.from_estimator(*fitted, name="iris")
    line = display.errorbar_.lines[0]
    assert list(line.get_xdata()) == [r.value for r in expected.values()]
    assert [t.get_text() for t in display.ax_.get_yticklabels()] == list(expected)
    # The first layer is at the top.
    assert np.all(np.diff(line.get_ydata()) > 0)
    assert display.ax_.yaxis_inverted()
    assert "cross-entropy (nats)" in display.ax_.get_xlabel()
    assert display.ax_.get_title() == "iris"
    assert not display.errorbar_.has_xerr
    assert display.text_ == []


def test_error_bars_are_two_standard_errors():
    display = display_with_gaps().plot()
    (bars,) = display.errorbar_.lines[2]
    ends = [segment[:, 0] for segment in bars.get_segments() if len(segment)]
    np.testing.assert_allclose(ends, [[0.8, 1.2], [240.0, 360.0]])
    assert display.ax_.get_xscale() == "log"


def test_layers_that_were_not_measured_are_named():
    display = display_with_gaps().plot()
    (text,) = display.text_
    assert (text.get_text(), text.get_position()[1]) == ("not measured", 2)
    assert display.frame()["relative_flatness"].isna().tolist() == [False, False, True]


def test_layers_left_out_come_last():
    class WithEmbedding(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(10, 4)
            self.linear = nn.Linear(4, 2)

        def forward(self, tokens):
            return self.linear(self.embedding(tokens).mean(dim=1))

    tokens = np.arange(20).reshape(5, 4) % 10
    y = np.arange(5) % 2
    module, loss = WithEmbedding().eval(), nn.CrossEntropyLoss()
    result = layerwise_relative_flatness(module, tokens, y, loss=loss)
    display = LayerProfileDisplay.from_result(result)
    assert display.layers == [*result, *result.not_measured]
    assert len(display.text_) == len(result.not_measured) > 0


def test_options_and_keywords_arrive(fitted):
    figure, ax = plt.subplots()
    size = figure.get_size_inches().tolist()
    display = LayerProfileDisplay.from_estimator(
        *fitted,
        options={"layers": ["coefs.1"], "statistic": "max_eigenvalue"},
        ax=ax,
        errorbar_kwargs={"c": "red"},
    )
    expected = layerwise_relative_flatness(
        *fitted, layers=["coefs.1"], statistic="max_eigenvalue"
    )
    assert display.ax_ is ax
    assert display.figure_ is figure
    assert figure.get_size_inches().tolist() == size
    assert display.values.tolist() == [expected["coefs.1"].value]
    assert display.errorbar_.lines[0].get_color() == "red"
    assert r"\max" in display.ax_.get_xlabel()


def test_result_of_another_kind():
    with pytest.raises(TypeError, match=r"expects a result of layerwise.*got 3.*call"):
        LayerProfileDisplay.from_result(3)


def test_frame_has_the_numbers(fitted):
    expected = layerwise_relative_flatness(*fitted)
    frame = LayerProfileDisplay.from_estimator(*fitted).frame()
    assert frame["layer"].tolist() == list(expected)
    assert frame["relative_flatness"].tolist() == [r.value for r in expected.values()]
    assert frame["stderr"].tolist() == [0.0] * len(expected)


@pytest.mark.parametrize("style", ["default", "dark_background"])
def test_looks(style, fitted):
    with plt.style.context(style):
        check_looks(LayerProfileDisplay.from_estimator(*fitted))
        check_looks(display_with_gaps(name="a model").plot())


def test_many_layers_keep_their_names_apart():
    display = LayerProfileDisplay.from_result(many_layers())
    assert len(display.layers) == 30
    check_looks(display)
