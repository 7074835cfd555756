"""One of each kind of result, with what is known about it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_diabetes, load_iris
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.neural_network import MLPClassifier

from sklearn_relflat import (
    compare_models,
    density_radius,
    feature_robustness,
    flatness_diagnosis,
    generalization_bound,
    hessian_eigenvalues,
    hessian_spectrum,
    hessian_trace,
    layerwise_relative_flatness,
    rank_correlations,
    relative_flatness,
    smoothed_risk,
)

#: A name that must not become part of a page.
HOSTILE = "<i>&x</i>"


@cache
def fitted():
    X, y = load_diabetes(return_X_y=True)
    return LinearRegression().fit(X, y), X, y


@cache
def network():
    X, y = load_iris(return_X_y=True)
    return MLPClassifier((3,), solver="lbfgs", max_iter=500, random_state=0).fit(X, y)


def iris():
    return network(), *load_iris(return_X_y=True)


def classifiers(name="medium"):
    X, y = load_iris(return_X_y=True)
    X, y = X[50:], y[50:]
    models = {
        chosen: LogisticRegression(C=C, max_iter=1000).fit(X, y)
        for chosen, C in [("cautious", 0.1), (name, 10.0)]
    }
    return models, X, y


def runs(name="one"):
    rng = np.random.default_rng(0)
    return {key: rng.normal(size=8) for key in ("gap", name, "two")}


def correlations(name="one", coefficients=None):
    return rank_correlations(
        runs(name), [name, "two"], "gap", coefficients=coefficients, n_resamples=10
    )


def layerwise():
    return layerwise_relative_flatness(*iris())


def layerwise_with_a_reason():
    found = layerwise()
    return type(found)(dict(found), {HOSTILE: "it is shared"})


def without_arrays(result, *left_out):
    return {k: v for k, v in vars(result).items() if k not in left_out}


def columns_of(*names):
    return lambda result: {name: getattr(result, name) for name in names}


@dataclass(frozen=True)
class Case:
    """How one is made, and what it is to agree with.

    `columns` are columns of its frame by name, from the attributes; `shown` are texts
    that a person has to see.
    """

    make: Callable[[], Any]
    columns: Callable[[Any], dict[str, Any]]
    guide: str
    shown: tuple[str, ...]
    number: str | None = None
    hostile: Callable[[], Any] | None = None


def changed(make, name="layer"):
    return lambda: replace(make(), **{name: HOSTILE})


def _flatness():
    return relative_flatness(*fitted())


def _radius():
    return density_radius(fitted()[1])


def _risk():
    return smoothed_risk(*fitted(), per_sample=True)


def _trace():
    return hessian_trace(*fitted())


def _eigenvalues():
    return hessian_eigenvalues(*iris(), k=3)


def _spectrum():
    return hessian_spectrum(*fitted())


def _robustness():
    return feature_robustness(
        *fitted(), deltas=[0.1, 1.0], n_matrices=4, random_state=0
    )


def _bound(delta=0.1):
    return generalization_bound(*fitted(), delta=delta, n_splits=3, random_state=0)


RESULTS = {
    "RelativeFlatness": Case(
        _flatness,
        lambda r: without_arrays(r, "per_sample"),
        "relative_flatness",
        ("kappa", "coef", "squared_error", "442"),
        "value",
        changed(_flatness),
    ),
    "LayerwiseRelativeFlatness": Case(
        layerwise,
        lambda r: {"layer": list(r), "value": [one.value for one in r.values()]},
        "relative_flatness",
        ("coefs.0", "coefs.1", "cross_entropy"),
        hostile=layerwise_with_a_reason,
    ),
    "DensityRadius": Case(
        _radius,
        lambda r: without_arrays(r, "radii", "log_likelihoods"),
        "smoothed_risk",
        ("isotropic", "442"),
        "radius",
        changed(_radius, "shape"),
    ),
    "SmoothedRisk": Case(
        _risk,
        lambda r: without_arrays(r, "density", "by_pair", "per_sample"),
        "smoothed_risk",
        ("radius", "input", "squared_error"),
        "value",
        changed(_risk),
    ),
    "Measurement": Case(
        _trace, vars, "measures", ("hessian_trace", "coef"), "value", changed(_trace)
    ),
    "HessianEigenvalues": Case(
        _eigenvalues,
        lambda r: {"eigenvalue": r.values, "residual": r.residuals},
        "measures",
        ("largest", "coefs.1"),
        hostile=changed(_eigenvalues),
    ),
    "HessianSpectrum": Case(
        _spectrum,
        lambda r: {"probe": r.probes, "node": r.nodes, "weight": r.weights},
        "measures",
        ("coef", "10 eigenvalues"),
        hostile=changed(_spectrum),
    ),
    "FeatureRobustness": Case(
        _robustness,
        lambda r: {
            "delta": r.deltas,
            "largest": r.values.max(axis=1),
            **columns_of(
                "mean", "stderr", "flatness_term", "expectation", "expectation_stderr"
            )(r),
        },
        "robustness",
        ("coef", "4 matrices"),
        hostile=changed(_robustness),
    ),
    "GeneralizationBound": Case(
        _bound,
        dict,
        "generalization_bound",
        ("representativeness", "flatness term", "delta"),
        "bound",
    ),
    "GeneralizationBound on a grid": Case(
        lambda: _bound([0.1, 0.2]),
        dict,
        "generalization_bound",
        ("representativeness", "smallest"),
    ),
    "ModelComparison": Case(
        lambda: compare_models(*classifiers()),
        lambda r: {
            "model": list(r.results),
            "smoothed_risk": [one.value for one in r.results.values()],
        },
        "comparing",
        ("cautious", "medium"),
        hostile=lambda: compare_models(*classifiers(HOSTILE)),
    ),
    "FlatnessDiagnosis": Case(
        lambda: flatness_diagnosis(*classifiers()),
        lambda r: {
            name: [getattr(c, name) for c in r.conditions]
            for name in ("name", "model", "value", "verdict", "sentence")
        },
        "comparing",
        ("cautious",),
        hostile=lambda: flatness_diagnosis(*classifiers(HOSTILE)),
    ),
    "RankCorrelations": Case(
        lambda: correlations(coefficients=["pearson"]),
        lambda r: {
            "measure": ["one", "two"],
            "coefficient": "pearson",
            "value": [
                pytest.approx(np.corrcoef(runs()[name], runs()[r.target])[0, 1])
                for name in ("one", "two")
            ],
            "n_runs": r.n_runs,
        },
        "rank_correlations",
        ("one", "two"),
        hostile=lambda: correlations(HOSTILE),
    ),
}


@cache
def result_of(name):
    """Return the result of a case, made once."""
    return RESULTS[name].make()
