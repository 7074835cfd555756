"""The search that fits each candidate once, and its calibration."""

import pickle

import numpy as np
import pandas as pd
import pytest
import sklearn
import torch
from scipy.optimize import brentq
from sklearn.base import clone, is_classifier, is_regressor
from sklearn.datasets import load_breast_cancer, load_diabetes, make_classification
from sklearn.exceptions import FitFailedWarning, NotFittedError
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import log_loss
from sklearn.model_selection import (
    GridSearchCV,
    GroupKFold,
    KFold,
    StratifiedKFold,
    cross_val_predict,
    cross_val_score,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator
from skorch import NeuralNetClassifier
from torch import nn

from sklearn_relflat._flatness.relative_flatness import relative_flatness
from sklearn_relflat._robustness.smoothed_risk import smoothed_risk
from sklearn_relflat._selection.calibration import Reference, calibrated, combined
from sklearn_relflat._selection.judged import CalibrationWarning
from sklearn_relflat._selection.smoothed_scorer import SmoothedRiskScorer
from sklearn_relflat._selection.smoothed_search import SmoothedRiskSearchCV
from sklearn_relflat._selection.whole_sample import WholeSample
from sklearn_relflat.callbacks import Seeded

DATA, LABELS = load_breast_cancer(return_X_y=True)
X = StandardScaler().fit_transform(DATA)[:150]
y = LABELS[:150]
GRID = {"C": [0.001, 0.1, 10.0, 1000.0, 10000.0]}


def model(**options):
    return LogisticRegression(max_iter=5000, **options)


def search(**options):
    settings = {"n_draws": 4, **options}
    return SmoothedRiskSearchCV(model(), GRID, **settings)


def mean_loss(estimator, X, y):
    """Log-loss that is not clipped where the probabilities are saturated."""
    outputs = estimator.decision_function(X)
    return np.logaddexp(0, np.where(y, -outputs, outputs)).mean()


# ---------------------------------------------------------------------------
# Calibration
# ---------------------------------------------------------------------------
def test_calibration_solves_for_the_radius():
    folds = np.array([0.4, 0.5, 0.6])
    found = calibrated(3, lambda r: 0.1 + r**2, folds)
    assert (found.index, found.training_loss) == (3, 0.1)
    assert found.loss == pytest.approx(0.5)
    assert found.stderr == pytest.approx(0.1 / np.sqrt(3))
    assert found.radius == pytest.approx(np.sqrt(0.4), rel=2e-3)
    low, high = np.sqrt([0.4 - found.stderr, 0.4 + found.stderr])
    sides = np.log([found.radius / low, high / found.radius])
    assert found.log_stderr == pytest.approx(max(sides), rel=0.05)
    assert "radius 0.63" in str(found)


def test_a_reference_without_a_radius():
    flat = calibrated(0, lambda r: 0.1 + 0 * r, np.array([0.4, 0.5]))
    assert flat.radius is None
    assert "no radius" in str(flat)
    # It does not overfit: the folds say less than the training loss.
    assert calibrated(0, lambda r: 0.6 + r, np.array([0.4, 0.5])).radius is None
    assert calibrated(0, lambda r: 0.1 + r, np.array([0.4, np.nan])).radius is None
    steep = calibrated(0, lambda r: 0.1 + 100 * r, np.array([0.4, 0.5]))
    assert steep.radius == 0.05


def test_the_median_of_the_references_with_an_interval():
    radii = [0.3, 0.5, 2.0]
    found = [Reference(i, 0.0, 1.0, 0.1, r, 0.2) for i, r in enumerate(radii)]
    radius, low, high = combined(found)
    assert radius == pytest.approx(0.5)
    spread = np.var(np.log(radii), ddof=1) / 3
    half = 1.96 * np.sqrt(0.2**2 + spread)
    np.testing.assert_allclose(
        np.log([low, high]), np.log(0.5) + np.array([-half, half])
    )
    radius, low, high = combined(found[:1])
    np.testing.assert_allclose([low, high], 0.3 * np.exp([-0.392, 0.392]), rtol=1e-4)


# ---------------------------------------------------------------------------
# The choice
# ---------------------------------------------------------------------------
def test_every_number_is_what_it_claims():
    """A second way through the search, by scikit-learn and smoothed_risk alone."""
    cv = StratifiedKFold(3, shuffle=True, random_state=0)
    found = search(cv=cv, n_references=2, random_state=7).fit(X, y)
    fitted = [model(C=C).fit(X, y) for C in GRID["C"]]
    results = found.cv_results_
    losses = [log_loss(y, m.predict_proba(X)) for m in fitted]
    np.testing.assert_allclose(results["training_loss"], losses, rtol=1e-6)
    assert list(np.flatnonzero(results["is_reference"])) == [3, 4]

    seed = int(np.random.RandomState(7).randint(2**31 - 1))

    def risk(m, radius):
        options = {"n_draws": 4, "random_state": seed}
        return smoothed_risk(m, X, y, radius=radius, **options)

    radii = []
    for reference in found.references_:
        C = GRID["C"][reference.index]
        scores = cross_val_score(model(C=C), X, y, cv=cv, scoring=mean_loss)
        assert reference.loss == pytest.approx(scores.mean(), rel=1e-9)
        i = reference.index
        assert results["cross_validated_loss"][i] == reference.loss
        target = reference.loss
        radii.append(
            brentq(lambda r, i=i, t=target: risk(fitted[i], r).value - t, 0.05, 3)
        )
    assert found.radius_ == pytest.approx(np.sqrt(np.prod(radii)), rel=2e-3)
    low, high = found.radius_interval_
    assert low < found.radius_ < high

    risks = [risk(m, found.radius_).value for m in fitted]
    np.testing.assert_allclose(results["smoothed_risk"], risks)
    np.testing.assert_allclose(results["mean_test_score"], -np.array(risks))
    best = int(np.argmin(risks))
    assert (found.best_index_, found.best_params_) == (best, {"C": GRID["C"][best]})
    assert found.best_score_ == -risks[best]
    assert results["rank_test_score"][best] == 1
    np.testing.assert_array_equal(found.best_estimator_.coef_, fitted[best].coef_)
    # Each candidate once, and two of them in three folds.
    assert found.n_fits_ == 5 + 2 * 3
    assert found.is_calibrated_
    assert not results["is_unresolved"][best]


def test_unresolved_candidates_are_named():
    grid = {"C": [0.5, 0.5000001, 1e-5, 1000.0, 10000.0]}
    found = SmoothedRiskSearchCV(model(), grid).fit(X, y)
    twins = {0, 1}
    assert found.best_index_ in twins
    assert twins - {found.best_index_} <= set(found.unresolved_)
    assert 2 not in found.unresolved_


def test_radius_of_ones_own_and_of_the_density():
    found = search(radius=0.5, random_state=0).fit(X, y)
    assert (found.radius_, found.n_fits_, found.references_) == (0.5, 5, [])
    assert not found.is_calibrated_
    own = search(radius="density").fit(X, y)
    assert own.radius_ is None
    grid = GridSearchCV(
        model(),
        GRID,
        scoring=SmoothedRiskScorer(
            n_draws=4, random_state=int(np.random.RandomState(0).randint(2**31 - 1))
        ),
        cv=WholeSample(),
    ).fit(X, y)
    np.testing.assert_allclose(
        own.cv_results_["mean_test_score"], grid.cv_results_["mean_test_score"]
    )
    assert own.best_params_ == grid.best_params_


def test_falls_back_to_cross_validation():
    """Candidates that underfit have the same loss on new samples."""
    grid = {"C": [1e-7, 1e-6, 1e-5]}
    rng = np.random.default_rng(0)
    Z, labels = rng.normal(size=(400, 3)), rng.integers(2, size=400)
    cv = KFold(4)
    with pytest.warns(CalibrationWarning, match="cannot be calibrated"):
        found = SmoothedRiskSearchCV(
            model(), grid, cv=cv, layer="input", loss=None, n_references=1
        ).fit(Z, labels)
    assert found.radius_ is None
    assert not found.is_calibrated_
    expected = GridSearchCV(model(), grid, cv=cv, scoring="neg_log_loss")
    expected.fit(Z, labels)
    np.testing.assert_allclose(
        found.cv_results_["mean_test_score"],
        expected.cv_results_["mean_test_score"],
        rtol=1e-6,
    )
    assert found.best_params_ == expected.best_params_


def test_chooses_about_as_well_as_cross_validation():
    """Over splits, with a third of the fits."""
    grid = {"C": [4.0**k for k in range(-5, 7)]}
    Z = StandardScaler().fit_transform(DATA)
    regret = {"smoothed": [], "folds": []}
    for seed in range(5):
        rows = np.random.default_rng(seed).permutation(len(Z))
        train, test = rows[:150], rows[150:]
        fits = {
            "smoothed": SmoothedRiskSearchCV(model(), grid),
            "folds": GridSearchCV(model(), grid, scoring="neg_log_loss"),
        }
        losses = [
            log_loss(
                LABELS[test],
                model(C=C).fit(Z[train], LABELS[train]).predict_proba(Z[test]),
            )
            for C in grid["C"]
        ]
        for name, found in fits.items():
            found.fit(Z[train], LABELS[train])
            regret[name].append(losses[found.best_index_] - min(losses))
    assert np.mean(regret["smoothed"]) < np.mean(regret["folds"]) + 0.01


# ---------------------------------------------------------------------------
# Habits of a search
# ---------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("estimator", "grid"),
    [
        (LogisticRegression(), {"C": [0.1, 1.0]}),
        (Ridge(), {"alpha": [0.1, 1.0]}),
    ],
)
def test_check_estimator(estimator, grid):
    made = SmoothedRiskSearchCV(estimator, grid, radius=0.1, n_draws=4)
    results = check_estimator(made, on_fail=None, on_skip=None)
    failed = {
        r["check_name"]: str(r["exception"])
        for r in results
        if r["status"] not in ("passed", "skipped")
    }
    assert not failed


def test_delegates_and_is_what_its_estimator_is():
    found = search(radius=0.5).fit(X, y)
    assert is_classifier(found)
    assert is_regressor(SmoothedRiskSearchCV(Ridge(), {"alpha": [1.0]}))
    np.testing.assert_array_equal(found.classes_, [0, 1])
    assert found.n_features_in_ == 30
    for method in ("predict", "predict_proba", "decision_function"):
        np.testing.assert_array_equal(
            getattr(found, method)(X), getattr(found.best_estimator_, method)(X)
        )
    assert found.score(X, y) == found.best_estimator_.score(X, y)
    assert relative_flatness(found, X, y).value == (
        relative_flatness(found.best_estimator_, X, y).value
    )
    assert repr(clone(found)) == repr(found)
    again = pickle.loads(pickle.dumps(found))
    np.testing.assert_array_equal(again.predict(X), found.predict(X))
    frame = pd.DataFrame(found.cv_results_)
    assert len(frame) == 5
    assert list(frame["param_C"]) == GRID["C"]


def test_without_refit():
    found = search(radius=0.5, refit=False).fit(X, y)
    assert found.best_params_
    assert not hasattr(found, "best_estimator_")
    with pytest.raises((NotFittedError, AttributeError)):
        found.predict(X)


def test_regression_is_exact():
    Z, target = load_diabetes(return_X_y=True)
    grid = {"alpha": [1e-4, 1e-2, 1.0]}
    found = SmoothedRiskSearchCV(Ridge(), grid, radius=0.2).fit(Z, target)
    expected = [
        smoothed_risk(Ridge(alpha=a).fit(Z, target), Z, target, radius=0.2).value
        for a in grid["alpha"]
    ]
    np.testing.assert_allclose(found.cv_results_["smoothed_risk"], expected)
    assert (found.cv_results_["smoothed_risk_stderr"] == 0).all()


def test_pipelines_random_candidates_and_lists():
    pipe = make_pipeline(StandardScaler(), model())
    grid = [{"logisticregression__C": [0.1, 10.0]}, {"standardscaler": ["passthrough"]}]
    found = SmoothedRiskSearchCV(pipe, grid, radius=0.5).fit(X, y)
    column = found.cv_results_["param_logisticregression__C"]
    assert list(column.mask) == [False, False, True]
    drawn = search(radius=0.5, n_iter=3, random_state=1).fit(X, y)
    assert len(drawn.cv_results_["params"]) == 3
    nested = cross_val_predict(search(radius=0.5), X, y, cv=2)
    assert nested.shape == (150,)


def test_parallel_fits_give_the_same():
    one = search().fit(X, y)
    two = search(n_jobs=2).fit(X, y)
    np.testing.assert_array_equal(
        one.cv_results_["smoothed_risk"], two.cv_results_["smoothed_risk"]
    )
    assert one.radius_ == two.radius_


def test_none_as_random_state_is_one_seed_for_all():
    grid = {"C": [1.0, 1.0, 1000.0, 10000.0]}
    found = SmoothedRiskSearchCV(model(), grid, random_state=None).fit(X, y)
    risks = found.cv_results_["smoothed_risk"]
    assert risks[0] == risks[1]


def test_weights_groups_and_routing():
    weights = np.random.default_rng(0).uniform(0.5, 2.0, size=150)
    groups = np.arange(150) // 10
    plain = search(cv=GroupKFold(3)).fit(X, y, sample_weight=weights, groups=groups)
    fitted = model(C=0.1).fit(X, y, sample_weight=weights)
    loss = log_loss(y, fitted.predict_proba(X), sample_weight=weights)
    assert plain.cv_results_["training_loss"][1] == pytest.approx(loss, rel=1e-6)
    with sklearn.config_context(enable_metadata_routing=True):
        routed = SmoothedRiskSearchCV(
            model().set_fit_request(sample_weight=True),
            GRID,
            n_draws=4,
            cv=GroupKFold(3),
        ).fit(X, y, sample_weight=weights, groups=groups)
    assert routed.radius_ == plain.radius_
    np.testing.assert_array_equal(
        routed.cv_results_["smoothed_risk"], plain.cv_results_["smoothed_risk"]
    )


class Net(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.hidden = nn.Linear(30, width)
        self.out = nn.Linear(width, 2)

    def forward(self, x):
        return self.out(torch.relu(self.hidden(x)))


class SeededClassifier(Seeded, NeuralNetClassifier):
    pass


def test_nets():
    net = SeededClassifier(
        Net,
        criterion=nn.CrossEntropyLoss,
        train_split=None,
        max_epochs=40,
        lr=0.5,
        verbose=0,
        random_state=0,
    )
    grid = {"module__width": [4, 16], "max_epochs": [5, 60]}
    for layer in ("input", "out"):
        found = SmoothedRiskSearchCV(net, grid, cv=2, n_references=2, layer=layer)
        found.fit(X.astype(np.float32), y)
        assert found.n_fits_ == 4 + 2 * 2
        assert found.best_estimator_.score(X.astype(np.float32), y) > 0.9


def test_failed_candidates_come_last():
    grid = {"C": [1.0, -1.0]}
    with pytest.raises(ValueError, match="'C' parameter"):
        SmoothedRiskSearchCV(model(), grid, radius=0.5).fit(X, y)
    found = SmoothedRiskSearchCV(model(), grid, radius=0.5, error_score=-9.0)
    with pytest.warns(FitFailedWarning, match="could not be fitted"):
        found.fit(X, y)
    assert found.best_index_ == 0
    assert list(found.cv_results_["rank_test_score"]) == [1, 2]
    assert found.cv_results_["mean_test_score"][1] == -9.0
    with (
        pytest.warns(FitFailedWarning),
        pytest.raises(ValueError, match="can be fitted, got none"),
    ):
        SmoothedRiskSearchCV(
            model(), {"C": [-1.0]}, radius=0.5, error_score=np.nan
        ).fit(X, y)


def test_progress(capsys):
    search(verbose=1, cv=2).fit(X, y)
    said = capsys.readouterr().out
    assert "Fitting 5 candidates on the whole sample" in said
    assert "Cross-validating 3 candidates, 2 folds" in said
    assert "Reference candidate 4: training loss" in said
    search(cv=2).fit(X, y)
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"radius": "large"}, "radius"),
        ({"radius": -1.0}, "radius"),
        ({"n_references": 0}, "n_references"),
        ({"n_draws": 2}, "n_draws"),
        ({"shape": "round"}, "shape"),
        ({"cv": [(np.arange(100), np.arange(100, 150))]}, "at least two folds"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        search(**options).fit(X, y)


def test_candidates_of_different_losses_cannot_be_compared():
    Z, labels = make_classification(60, random_state=0)
    pipe = make_pipeline(StandardScaler(), model())
    grid = [
        {"logisticregression": [LogisticRegression()]},
        {"logisticregression": [sklearn.linear_model.RidgeClassifier()]},
    ]
    with pytest.raises(ValueError, match="trained with one loss"):
        SmoothedRiskSearchCV(pipe, grid, radius=0.5).fit(Z, labels)


# ---------------------------------------------------------------------------
# The splitter
# ---------------------------------------------------------------------------
def test_whole_sample_is_one_split():
    ((train, test),) = WholeSample().split(X, y)
    np.testing.assert_array_equal(train, np.arange(150))
    np.testing.assert_array_equal(test, train)
    assert WholeSample().get_n_splits(X) == 1
    assert repr(WholeSample()) == "WholeSample()"


def test_whole_sample_fits_each_candidate_once():
    found = GridSearchCV(
        model(), GRID, scoring=SmoothedRiskScorer(n_draws=4), cv=WholeSample()
    ).fit(X, y)
    expected = [
        SmoothedRiskScorer(n_draws=4)(model(C=C).fit(X, y), X, y) for C in GRID["C"]
    ]
    np.testing.assert_allclose(found.cv_results_["mean_test_score"], expected)
