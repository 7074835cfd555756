"""Results that open the Display that belongs to them."""

import copy
import pickle
import subprocess
import sys

import matplotlib.pyplot as plt
import pytest

import sklearn_relflat
from sklearn_relflat._displays.of_results import DISPLAYS
from sklearn_relflat._results import plottable
from sklearn_relflat._results.plottable import Plottable, display_of, displays_are_in
from sklearn_relflat._results.result import Result
from tests.results.all_results import correlations, result_of


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


DRAWN = {
    "DensityRadiusDisplay": "DensityRadius",
    "FeatureRobustnessDisplay": "FeatureRobustness",
    "GeneralizationBoundDisplay": "GeneralizationBound on a grid",
    "HessianSpectrumDisplay": "HessianSpectrum",
    "LayerProfileDisplay": "LayerwiseRelativeFlatness",
    "MeasureCorrelationDisplay": "RankCorrelations",
    "ModelComparisonDisplay": "ModelComparison",
}


@pytest.mark.parametrize("name", DRAWN)
def test_result_opens_its_display(name):
    result = result_of(DRAWN[name])
    figure, ax = plt.subplots()
    display = result.plot(ax)
    assert type(display) is getattr(sklearn_relflat, name)
    assert display.ax_ is ax
    assert display.figure_ is figure
    expected = type(display).from_result(result)
    assert display.frame().equals(expected.frame())
    assert result.plot().figure_ is not figure


@pytest.mark.parametrize("name", DRAWN)
def test_result_is_still_what_it_was(name):
    result = result_of(DRAWN[name])
    for other in (pickle.loads(pickle.dumps(result)), copy.deepcopy(result)):
        assert type(other) is type(result)
        assert repr(other) == repr(result)
        assert type(other.plot()).__name__ == name
    assert "plot" in dir(result)


def test_every_display_of_a_result_is_opened_by_one():
    """Those that take other things than a result, or nothing but a model, are not."""
    by_hand = {
        "FlatnessAccuracyDisplay",
        "LossSurfaceDisplay",
        "RelativeFlatnessPathDisplay",
        "TrainingDisplay",
    }
    public = {n for n in sklearn_relflat.__all__ if n.endswith("Display")}
    assert {display.__name__ for display in DISPLAYS.values()} == public - by_hand
    assert set(DRAWN) == public - by_hand
    assert all(issubclass(kind, Plottable) for kind in DISPLAYS)
    assert all(issubclass(kind, Result) for kind in DISPLAYS)


def test_keywords_arrive():
    display = correlations().plot(coefficient="pearson", point_kwargs={"ms": 9})
    assert display.coefficients == ["pearson"]
    assert display.points_["pearson"].get_markersize() == 9


def test_generalization_bound_is_a_bunch():
    result = result_of("GeneralizationBound on a grid")
    assert result["bound"] is result.bound
    assert set(dir(result)) == {*result, "frame", "plot"}


class Derived(Plottable):
    """A result of someone else."""


def test_result_without_a_display():
    with pytest.raises(TypeError, match=r"Display is known for, got a Derived. Add it"):
        Derived().plot()


def test_no_table_at_all(monkeypatch):
    monkeypatch.setattr(plottable, "_TABLES", [])
    with pytest.raises(TypeError, match=r"got a Derived. Add it to DISPLAYS in a mod"):
        display_of(Derived)


def test_another_table_is_looked_at(monkeypatch):
    class Drawn:
        @classmethod
        def from_result(cls, result, *, ax):
            return result, ax

    table = type(sys)("a_table_of_displays")
    table.DISPLAYS = {Derived: Drawn}
    monkeypatch.setitem(sys.modules, table.__name__, table)
    monkeypatch.setattr(plottable, "_TABLES", list(plottable._TABLES))
    displays_are_in(table.__name__)

    class MoreDerived(Derived):
        pass

    result = MoreDerived()
    assert result.plot("axes") == (result, "axes")
    assert type(correlations().plot()).__name__ == "MeasureCorrelationDisplay"


def test_displays_are_imported_with_the_first_picture():
    code = """
import sys
from sklearn_relflat import density_radius
result = density_radius([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [2.0, 1.0]])
before = "sklearn_relflat._displays.of_results" in sys.modules
import matplotlib
matplotlib.use("agg")
display = result.plot()
print(before, type(display).__name__)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "DensityRadiusDisplay"]
