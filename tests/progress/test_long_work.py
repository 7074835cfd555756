"""Long work: quiet by default, a bar if asked, the same numbers for any n_jobs."""

import inspect
from functools import cache

import numpy as np
import pytest
from sklearn.datasets import load_diabetes, load_iris
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import scale
from skorch import NeuralNetClassifier
from torch import nn

from sklearn_relflat import (
    KDERepresentativeness,
    compare_models,
    feature_robustness,
    generalization_bound,
    invariance_report,
    pac_bayes_flatness,
)
from sklearn_relflat.callbacks import Seeded


@cache
def iris():
    X, y = load_iris(return_X_y=True)
    return scale(X), y


@cache
def network():
    model = MLPClassifier((4,), solver="lbfgs", max_iter=300, random_state=0)
    return model.fit(*iris())


def bound(**options):
    found = generalization_bound(
        network(), *iris(), n_splits=3, random_state=0, **options
    )
    return list(found.values())


class SeededClassifier(Seeded, NeuralNetClassifier):
    """A net whose fit is a function of its data."""


def bound_of_a_net(**options):
    X, y = iris()
    net = SeededClassifier(
        nn.Linear,
        module__in_features=4,
        module__out_features=3,
        criterion=nn.CrossEntropyLoss,
        max_epochs=5,
        verbose=0,
        random_state=0,
    )
    X = X.astype("float32")
    found = generalization_bound(
        net.fit(X, y), X, y, n_splits=2, random_state=0, **options
    )
    return list(found.values())


def representativeness(**options):
    X, y = load_diabetes(return_X_y=True)
    measure = KDERepresentativeness(
        LinearRegression(), refit="estimator", n_splits=3, random_state=0, **options
    ).fit(X, y)
    return [measure.split_errors_, measure.split_gaps_, measure.smoothed_risk_]


def representativeness_of_features(**options):
    X, _ = load_diabetes(return_X_y=True)
    measure = KDERepresentativeness(n_splits=3, delta=0.5, random_state=0, **options)
    return [measure.fit(X).split_errors_]


def invariance(**options):
    table = invariance_report(
        network(),
        *iris(),
        measures=["relative_flatness", "hessian_trace"],
        random_state=0,
        **options,
    )
    return [table[name].to_numpy() for name in table.columns[2:]]


def comparison(**options):
    X, y = iris()
    models = {
        str(C): LogisticRegression(C=C, max_iter=500).fit(X, y) for C in (0.1, 10.0)
    }
    found = compare_models(models, X, y, X_test=X[::2], y_test=y[::2], **options)
    return [list(row.values())[1:] for row in found.rows()]


def comparison_of_a_search(**options):
    X, y = iris()
    search = GridSearchCV(LogisticRegression(max_iter=500), {"C": [0.1, 1.0, 10.0]})
    found = compare_models(search.fit(X, y), X, y, n_draws=4, **options)
    return [list(row.values())[1:] for row in found.rows()]


def robustness(**options):
    found = feature_robustness(
        network(), *iris(), deltas=[0.1, 1.0], n_matrices=5, random_state=0, **options
    )
    return [found.values, found.second_order]


def pac_bayes(**options):
    found = pac_bayes_flatness(network(), *iris(), random_state=0, **options)
    return [found.value, found.stderr, found.tolerance]


#: What is called, and the title and unit of its bar.
WORK = {
    bound: (generalization_bound, "splits", "3/3"),
    bound_of_a_net: (generalization_bound, "splits", "2/2"),
    representativeness: (KDERepresentativeness, "splits", "3/3"),
    representativeness_of_features: (KDERepresentativeness, "splits", "3/3"),
    invariance: (invariance_report, "rescaled copies", "4/4"),
    comparison: (compare_models, "smoothed risks", "2/2"),
    comparison_of_a_search: (compare_models, "fitting candidates", "2/2"),
    robustness: (feature_robustness, "feature robustness", "150/150"),
    pac_bayes: (pac_bayes_flatness, "pac_bayes_flatness", None),
}
each = pytest.mark.parametrize("work", WORK)
side_by_side = [
    work
    for work, (function, *_) in WORK.items()
    if "n_jobs" in inspect.signature(function).parameters
]


@cache
def quiet(work):
    return work()


def test_what_refits_or_repeats_takes_jobs():
    assert {WORK[work][0] for work in side_by_side} == {
        generalization_bound,
        KDERepresentativeness,
        invariance_report,
        compare_models,
    }


@each
def test_quiet_by_default(work, capfd):
    work()
    assert capfd.readouterr() == ("", "")


@each
def test_bar(work, capfd):
    found = work(verbose=1)
    for one, other in zip(found, quiet(work), strict=True):
        np.testing.assert_array_equal(one, other)
    out, err = capfd.readouterr()
    _, title, done = WORK[work]
    assert out == ""
    assert f"{title}:" in err
    if done is not None:
        assert f" {done} [" in err


@pytest.mark.parametrize("work", side_by_side)
def test_numbers_do_not_depend_on_the_jobs(work):
    found = work(n_jobs=2)
    for one, other in zip(found, quiet(work), strict=True):
        np.testing.assert_array_equal(one, other)


def test_time_left_of_a_bisection(capfd):
    """The number of halvings is known once the bracket is."""
    pac_bayes_flatness(network(), *iris(), random_state=0, rtol=0.01, verbose=1)
    last = capfd.readouterr().err.rstrip().rpartition("\r")[2]
    done, _, total = last.split(" [")[0].rpartition(" ")[2].partition("/")
    assert done == total
    assert int(total) > 9
