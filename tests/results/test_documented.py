"""Estimators whose HTML diagrams link to their page of the documentation."""

import inspect
import pickle

import pytest
from sklearn.base import BaseEstimator, clone
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import estimator_html_repr

import sklearn_relflat
from sklearn_relflat import (
    FeatureSplit,
    KDERepresentativeness,
    RelativeFlatnessRidge,
    SmoothedRiskSearchCV,
)
from sklearn_relflat._results import documented
from sklearn_relflat._results.documented import Documented

ESTIMATORS = [
    name
    for name in sklearn_relflat.__all__
    if inspect.isclass(kind := getattr(sklearn_relflat, name))
    and issubclass(kind, BaseEstimator)
]
ADDRESS = "https://docs.example.org/stable/"


@pytest.fixture
def _published(monkeypatch):
    monkeypatch.setattr(documented, "documentation_url", lambda: ADDRESS)


@pytest.fixture
def _unpublished(monkeypatch):
    monkeypatch.setattr(documented, "documentation_url", lambda: "")


def made(name):
    """An estimator of a class; links do not look at its parameters."""
    kind = getattr(sklearn_relflat, name)
    return kind.__new__(kind)


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.usefixtures("_published")
def test_every_estimator_has_its_page(name):
    assert isinstance(made(name), Documented)
    page = f"{ADDRESS}api/generated/sklearn_relflat.{name}.html"
    assert made(name)._get_doc_link() == page


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.usefixtures("_unpublished")
def test_no_page_where_nothing_is_published(name):
    assert made(name)._get_doc_link() == ""


DIAGRAMS = [
    RelativeFlatnessRidge(),
    FeatureSplit(LinearRegression()),
    KDERepresentativeness(),
    SmoothedRiskSearchCV(LinearRegression(), {}),
]


@pytest.mark.parametrize("model", DIAGRAMS, ids=lambda model: type(model).__name__)
@pytest.mark.usefixtures("_published")
def test_diagram_has_the_link(model):
    page = f"{ADDRESS}api/generated/sklearn_relflat.{type(model).__name__}.html"
    assert f'href="{page}"' in estimator_html_repr(model)
    inside = estimator_html_repr(make_pipeline(StandardScaler(), model))
    assert f'href="{page}"' in inside
    assert "scikit-learn.org" in inside


@pytest.mark.usefixtures("_unpublished")
def test_diagram_without_a_link():
    assert "api/generated" not in estimator_html_repr(RelativeFlatnessRidge())


class Mine(RelativeFlatnessRidge):
    """An estimator of someone else."""


@pytest.mark.usefixtures("_published")
def test_no_page_for_what_is_derived_elsewhere():
    assert Mine()._get_doc_link() == ""


@pytest.mark.parametrize("model", DIAGRAMS, ids=lambda model: type(model).__name__)
def test_parameters_are_what_they_were(model):
    assert not any(name.startswith("_doc") for name in model.get_params())
    assert clone(model).get_params().keys() == model.get_params().keys()
    assert type(pickle.loads(pickle.dumps(model))) is type(model)
