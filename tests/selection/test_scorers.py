"""Scorers in every tool of scikit-learn and skorch that takes one."""

import functools
import inspect
import pickle
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pytest
import sklearn
import torch
from sklearn import config_context
from sklearn.base import BaseEstimator, clone
from sklearn.compose import TransformedTargetRegressor
from sklearn.datasets import make_classification
from sklearn.experimental import enable_halving_search_cv
from sklearn.feature_selection import RFECV, SequentialFeatureSelector
from sklearn.frozen import FrozenEstimator
from sklearn.inspection import permutation_importance
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV, Ridge
from sklearn.metrics import check_scoring, get_scorer
from sklearn.model_selection import (
    GridSearchCV,
    HalvingGridSearchCV,
    KFold,
    LearningCurveDisplay,
    RandomizedSearchCV,
    StratifiedKFold,
    ValidationCurveDisplay,
    cross_val_score,
    cross_validate,
    learning_curve,
    permutation_test_score,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.fixes import parse_version
from skorch import NeuralNetClassifier
from skorch.callbacks import EpochScoring
from skorch.dataset import Dataset
from skorch.helper import SliceDataset
from torch import nn

from sklearn_relflat._flatness.relative_flatness import relative_flatness
from sklearn_relflat._measures.by_name import MEASURES
from sklearn_relflat._robustness.smoothed_risk import smoothed_risk
from sklearn_relflat._selection.flattest_within import FlattestWithin
from sklearn_relflat._selection.scorers import (
    MeasureScorer,
    RelativeFlatnessScorer,
    TrainingFlatnessScorer,
)
from sklearn_relflat._selection.smoothed_scorer import SmoothedRiskScorer
from sklearn_relflat._split.feature_split import FeatureSplit
from sklearn_relflat.callbacks import RelativeFlatnessRecorder, Seeded

assert enable_halving_search_cv  # importing it is what enables the search

X, y = make_classification(
    60, 4, n_informative=3, n_redundant=0, flip_y=0.1, random_state=0
)
X32, y64 = X.astype(np.float32), y.astype(np.int64)
WEIGHT = np.random.default_rng(0).uniform(0.5, 1.5, size=60)
GRID = {"C": [0.01, 1.0, 100.0]}


def squared_norm(estimator, X, y=None):
    return np.sum(estimator.coef_**2)


def weighted(estimator, X, y, *, sample_weight=None, power=1):
    return 1.0 if sample_weight is None else float(np.sum(sample_weight)) ** power


def model(**options):
    return LogisticRegression(max_iter=1000, **options)


SCORERS = {
    "flatness": lambda: RelativeFlatnessScorer(),
    "named measure": lambda: MeasureScorer("relative_flatness"),
    "any measure": lambda: MeasureScorer(squared_norm),
    "smoothed risk": lambda: SmoothedRiskScorer(n_draws=4),
}
every_scorer = pytest.mark.parametrize("make", SCORERS.values(), ids=SCORERS)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(4, 6)
        self.out = nn.Linear(6, 2)

    def forward(self, X):
        return self.out(torch.tanh(self.hidden(X)))


class SeededClassifier(Seeded, NeuralNetClassifier):
    pass


def net(**options):
    settings = {
        "criterion": nn.CrossEntropyLoss,
        "train_split": None,
        "max_epochs": 4,
        "lr": 0.3,
        "random_state": 0,
        "verbose": 0,
        "iterator_train__shuffle": True,
        "batch_size": 16,
    }
    return SeededClassifier(Net, **{**settings, **options})


# ---------------------------------------------------------------------------
# The number
# ---------------------------------------------------------------------------
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"layer": "hidden"},
        {"loss": "squared_error"},
        {"normalize": "std"},
        {"statistic": "max_eigenvalue"},
        {"weight_decay": 0.1},
        {"layer": "hidden", "method": "sampled", "rtol": 0.1, "random_state": 3},
        {"layer": "hidden", "curvature": "gauss_newton", "method": "exact"},
    ],
)
def test_is_minus_the_relative_flatness(options):
    fitted = net().fit(X32, y64)
    expected = -relative_flatness(fitted, X32, y64, **options).value
    assert RelativeFlatnessScorer(**options)(fitted, X32, y64) == expected
    kwargs = {"measure_kwargs": options} if options else {}
    assert MeasureScorer("relative_flatness", **kwargs)(fitted, X32, y64) == expected


def test_has_every_option_of_the_measure():
    of_measure = set(inspect.signature(relative_flatness).parameters)
    per_call = {"estimator", "X", "y", "sample_weight", "per_sample"}
    of_scorer = set(inspect.signature(RelativeFlatnessScorer).parameters)
    assert of_scorer - {"name"} == of_measure - per_call


def test_smoothed_risk_has_every_option_of_the_measure():
    of_measure = set(inspect.signature(smoothed_risk).parameters)
    per_call = {"estimator", "X", "y", "sample_weight", "per_sample", "rtol"}
    of_scorer = set(inspect.signature(SmoothedRiskScorer).parameters)
    assert of_scorer - {"name"} == of_measure - per_call


@pytest.mark.parametrize(
    "options",
    [{}, {"layer": "hidden", "radius": 0.2}, {"metric": "error_rate", "radius": 0.5}],
)
def test_is_minus_the_smoothed_risk(options):
    fitted = net().fit(X32, y64)
    result = smoothed_risk(
        fitted, X32, y64, sample_weight=WEIGHT, random_state=0, **options
    )
    scorer = SmoothedRiskScorer(**options)
    assert scorer(fitted, X32, y64, sample_weight=WEIGHT) == -result.value
    assert scorer.__name__ == "neg_smoothed_risk"


def test_smoothed_risk_of_an_unseen_class_is_nan():
    fitted = model().fit(X[y < 1.5], y[y < 1.5])
    with pytest.warns(UserWarning, match="The score is NaN"):
        assert np.isnan(SmoothedRiskScorer()(fitted, X, y + (np.arange(60) == 3) * 5))


def test_weights_of_samples():
    fitted = model().fit(X, y)
    score = RelativeFlatnessScorer()(fitted, X, y, sample_weight=WEIGHT)
    assert score == -relative_flatness(fitted, X, y, sample_weight=WEIGHT).value


@pytest.mark.parametrize(
    "value", [2.0, 2, np.float32(2), np.array(2.0), torch.tensor(2.0), True + 1]
)
def test_signs_and_types(value):
    scorer = MeasureScorer(lambda estimator, X, y: value)
    assert scorer(None) == -2.0
    assert type(scorer(None)) is float
    assert scorer.set_params(greater_is_better=True)(None) == 2.0


def test_names():
    assert RelativeFlatnessScorer().__name__ == "neg_relative_flatness"
    assert RelativeFlatnessScorer(name="flat").__name__ == "flat"
    assert MeasureScorer("relative_flatness").__name__ == "neg_relative_flatness"
    assert MeasureScorer(squared_norm).__name__ == "neg_squared_norm"
    assert MeasureScorer(squared_norm, greater_is_better=True).__name__ == (
        "squared_norm"
    )
    partial = functools.partial(functools.partial(weighted, power=2), power=3)
    assert MeasureScorer(partial).__name__ == "neg_weighted"
    assert TrainingFlatnessScorer().__name__ == "neg_training_flatness"


@every_scorer
def test_is_an_estimator(make):
    scorer = make()
    assert repr(clone(scorer)) == repr(scorer)
    again = pickle.loads(pickle.dumps(scorer))
    fitted = model().fit(X, y)
    assert again(fitted, X, y) == scorer(fitted, X, y)
    assert scorer.set_params(name="flat").__name__ == "flat"


@pytest.mark.parametrize("name", MEASURES)
def test_measures_by_name(name):
    scorer = MeasureScorer(name)
    assert scorer.__name__ == f"neg_{name}"
    assert scorer._accept_sample_weight()


@pytest.mark.parametrize("name", ["hessian_trace", "weight_norm", "fisher_rao_norm"])
def test_other_measures(name):
    fitted = model().fit(X, y)
    expected = -float(MEASURES[name](fitted, X, y, sample_weight=WEIGHT))
    assert MeasureScorer(name)(fitted, X, y, sample_weight=WEIGHT) == expected


# ---------------------------------------------------------------------------
# Everything that takes scoring=
# ---------------------------------------------------------------------------
@every_scorer
def test_single_metric_search(make):
    search = GridSearchCV(model(), GRID, scoring=make(), cv=3, error_score="raise")
    search.fit(X, y)
    if not isinstance(make(), SmoothedRiskScorer):
        # As a single metric, flatness chooses the model that learned the least.
        assert search.best_params_ == {"C": 0.01}
    assert search.score(X, y) == make()(search.best_estimator_, X, y)
    assert check_scoring(model(), scoring=search.scorer_) is search.scorer_


@every_scorer
def test_both_splits_of_a_search_over_two_metrics(make):
    cv = StratifiedKFold(3)
    search = GridSearchCV(
        model(),
        GRID,
        scoring={"accuracy": "accuracy", "flat": make()},
        refit="flat",
        cv=cv,
        return_train_score=True,
        error_score="raise",
    ).fit(X, y)
    train, test = next(cv.split(X, y))
    for i, C in enumerate(GRID["C"]):
        fitted = model(C=C).fit(X[train], y[train])
        results = search.cv_results_
        assert results["split0_train_flat"][i] == make()(fitted, X[train], y[train])
        assert results["split0_test_flat"][i] == make()(fitted, X[test], y[test])


@every_scorer
def test_other_searches(make):
    random = RandomizedSearchCV(
        model(), GRID, n_iter=2, scoring=make(), cv=2, random_state=0
    )
    assert np.isfinite(random.fit(X, y).best_score_)
    halving = HalvingGridSearchCV(
        model(), GRID, scoring=make(), cv=2, random_state=0, error_score="raise"
    )
    halving.fit(X, y)
    if not isinstance(make(), SmoothedRiskScorer):
        assert halving.best_params_ == {"C": 0.01}


def test_halving_takes_one_metric_only():
    """scikit-learn's own limit: what is shown for it is route B."""
    halving = HalvingGridSearchCV(
        model(), GRID, scoring={"flat": RelativeFlatnessScorer()}, cv=2
    )
    with pytest.raises(ValueError, match="'scoring' parameter"):
        halving.fit(X, y)


def test_a_list_of_scorers_takes_names_only():
    """scikit-learn's own limit: dicts are for scorers."""
    with pytest.raises(ValueError, match="unique strings"):
        cross_validate(model(), X, y, scoring=["accuracy", RelativeFlatnessScorer()])


@every_scorer
def test_cross_validation(make):
    cv = KFold(3)
    train, test = next(cv.split(X))
    fitted = model().fit(X[train], y[train])
    scores = cross_val_score(model(), X, y, scoring=make(), cv=cv)
    assert scores[0] == make()(fitted, X[test], y[test])
    found = cross_validate(
        model(), X, y, scoring={"flat": make()}, cv=cv, return_train_score=True
    )
    assert found["train_flat"][0] == make()(fitted, X[train], y[train])
    # Post hoc, on the exact samples of each split.
    found = cross_validate(
        model(), X, y, cv=cv, return_estimator=True, return_indices=True
    )
    rows = found["indices"]["train"][0]
    assert make()(found["estimator"][0], X[rows], y[rows]) == make()(
        fitted, X[train], y[train]
    )


@every_scorer
def test_curves(make):
    sizes, train, test = learning_curve(
        model(), X, y, scoring=make(), cv=2, train_sizes=[0.5, 1.0], shuffle=True
    )
    assert np.isfinite([train, test]).all()
    assert len(sizes) == 2


def test_displays_show_the_name():
    display = LearningCurveDisplay.from_estimator(
        model(),
        X,
        y,
        scoring=RelativeFlatnessScorer(),
        negate_score=True,
        cv=2,
        train_sizes=[0.5, 1.0],
        shuffle=True,
    )
    assert display.ax_.get_ylabel() == "Relative flatness"
    display = ValidationCurveDisplay.from_estimator(
        model(),
        X,
        y,
        param_name="C",
        param_range=[0.1, 1],
        scoring=RelativeFlatnessScorer(),
        cv=2,
    )
    assert display.ax_.get_ylabel() == "Negative relative flatness"
    plt.close("all")


@every_scorer
def test_inspection_and_selection(make):
    fitted = model().fit(X, y)
    importance = permutation_importance(
        fitted, X, y, scoring=make(), n_repeats=2, random_state=0
    )
    assert importance.importances.shape == (4, 2)
    importances = permutation_importance(
        fitted, X, y, scoring={"flat": make()}, n_repeats=2, random_state=0
    )
    np.testing.assert_array_equal(
        importances["flat"].importances, importance.importances
    )
    score, permuted, _ = permutation_test_score(
        model(), X, y, scoring=make(), cv=2, n_permutations=3, random_state=0
    )
    assert np.isfinite([score, *permuted]).all()
    selector = SequentialFeatureSelector(
        model(), n_features_to_select=2, scoring=make(), cv=2
    )
    assert selector.fit(X, y).get_support().sum() == 2
    eliminator = RFECV(model(), scoring=make(), cv=2, min_features_to_select=2)
    assert np.isfinite(eliminator.fit(X, y).cv_results_["mean_test_score"]).all()


def test_logistic_regression_cv():
    options = {"Cs": [0.01, 1.0, 100.0], "cv": 2, "max_iter": 1000}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # about its own parameters
        path = LogisticRegressionCV(scoring=RelativeFlatnessScorer(), **options)
        assert np.ravel(path.fit(X, y).C_)[0] == 0.01


def test_the_path_of_an_optimisation():
    """scikit-learn's monitor, which is experimental, takes scorers in a dict only."""
    monitors = pytest.importorskip("sklearn.callback")
    scorer = RelativeFlatnessScorer()
    monitor = monitors.ScoringMonitor(scoring={"flat": scorer})
    fitted = model().set_callbacks(monitor).fit(X, y)
    path = monitor.get_logs().data_as_pandas["flat"].to_numpy()
    assert len(path) > 3
    assert path[-1] == pytest.approx(scorer(fitted, X, y), rel=1e-12)
    with pytest.raises(TypeError, match="not iterable"):
        model().set_callbacks(monitors.ScoringMonitor(scoring=scorer)).fit(X, y)


def test_nested_search():
    search = GridSearchCV(model(), GRID, scoring=RelativeFlatnessScorer(), cv=2)
    outer = cross_val_score(search, X, y, scoring=RelativeFlatnessScorer(), cv=2)
    assert np.isfinite(outer).all()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda: make_pipeline(StandardScaler(), model()),
        lambda: FeatureSplit(model()),
        lambda: make_pipeline(StandardScaler(), FeatureSplit(model())),
        lambda: GridSearchCV(model(), GRID, cv=2),
        lambda: make_pipeline(StandardScaler(), FeatureSplit(net())),
    ],
    ids=["pipeline", "split", "split in a pipeline", "search", "net"],
)
def test_wrapped_models(wrap):
    scores = cross_val_score(
        wrap(), X, y, scoring=RelativeFlatnessScorer(), cv=2, error_score="raise"
    )
    assert (scores < 0).all()


@pytest.mark.skipif(
    parse_version(sklearn.__version__) < parse_version("1.7"),
    reason="scikit-learn 1.6 cannot split tensors",
)
def test_tensors_and_slices_of_data_sets():
    data = torch.utils.data.TensorDataset(torch.tensor(X32), torch.tensor(y64))
    expected = cross_val_score(
        net(), X32, y64, scoring=RelativeFlatnessScorer(), cv=KFold(2)
    )
    tensors = cross_val_score(
        net(),
        torch.tensor(X32),
        torch.tensor(y64),
        scoring=RelativeFlatnessScorer(),
        cv=KFold(2),
        error_score="raise",
    )
    slices = cross_val_score(
        net(),
        SliceDataset(data, idx=0),
        SliceDataset(data, idx=1),
        scoring=RelativeFlatnessScorer(),
        cv=KFold(2),
        error_score="raise",
    )
    np.testing.assert_allclose(tensors, expected, rtol=1e-5)
    np.testing.assert_allclose(slices, expected, rtol=1e-5)


def test_no_targets():
    """Searches call a scorer without y where there is none."""

    class Shift(BaseEstimator):
        def fit(self, X, y=None):
            self.coef_ = X.mean(0)
            return self

    scores = cross_val_score(Shift(), X, scoring=MeasureScorer(squared_norm), cv=2)
    assert (scores < 0).all()


# ---------------------------------------------------------------------------
# Sample weights and metadata
# ---------------------------------------------------------------------------
def test_weights_given_to_a_search():
    search = GridSearchCV(
        model(),
        GRID,
        scoring={"flat": RelativeFlatnessScorer(), "accuracy": "accuracy"},
        refit=False,
        cv=KFold(2),
        return_train_score=True,
        error_score="raise",
    ).fit(X, y, sample_weight=WEIGHT)
    train = np.arange(30, 60)
    fitted = model(C=0.01).fit(X[train], y[train], sample_weight=WEIGHT[train])
    score = search.cv_results_["split0_train_flat"][0]
    plain = RelativeFlatnessScorer()(fitted, X[train], y[train])
    # Older versions hand the weights to fit alone.
    if hasattr(GridSearchCV, "_check_scorers_accept_sample_weight"):
        assert score != plain
        assert score == RelativeFlatnessScorer()(
            fitted, X[train], y[train], sample_weight=WEIGHT[train]
        )


def test_routed_weights():
    with config_context(enable_metadata_routing=True):
        search = GridSearchCV(
            model().set_fit_request(sample_weight=True),
            GRID,
            scoring={
                "flat": RelativeFlatnessScorer().set_score_request(sample_weight=True),
                "accuracy": get_scorer("accuracy").set_score_request(
                    sample_weight=False
                ),
            },
            refit=False,
            cv=KFold(2),
            error_score="raise",
        ).fit(X, y, sample_weight=WEIGHT)
    fitted = model(C=0.01).fit(X[30:], y[30:], sample_weight=WEIGHT[30:])
    assert search.cv_results_["split0_test_flat"][0] == RelativeFlatnessScorer()(
        fitted, X[:30], y[:30], sample_weight=WEIGHT[:30]
    )


def test_whether_a_measure_takes_weights():
    assert RelativeFlatnessScorer()._accept_sample_weight()
    assert TrainingFlatnessScorer()._accept_sample_weight()
    assert MeasureScorer("relative_flatness")._accept_sample_weight()
    assert MeasureScorer(weighted)._accept_sample_weight()
    assert MeasureScorer(lambda *args, **kwargs: 1.0)._accept_sample_weight()
    assert not MeasureScorer(squared_norm)._accept_sample_weight()
    scorer = MeasureScorer(weighted, measure_kwargs={"power": 2})
    assert scorer(None, X, y, sample_weight=[1, 2]) == -9.0


# ---------------------------------------------------------------------------
# Training splits: routes A and B
# ---------------------------------------------------------------------------
def test_both_routes_give_the_flatness_of_the_training_split():
    search = GridSearchCV(
        FeatureSplit(model(), training_flatness=True),
        {"estimator__C": GRID["C"]},
        scoring={
            "accuracy": "accuracy",
            "a": RelativeFlatnessScorer(),
            "b": TrainingFlatnessScorer(),
        },
        return_train_score=True,
        refit=FlattestWithin(0.05, flatness="b", split="test"),
        cv=3,
        error_score="raise",
    ).fit(X, y)
    results = search.cv_results_
    np.testing.assert_array_equal(results["mean_train_a"], results["mean_test_b"])
    np.testing.assert_array_equal(results["mean_train_b"], results["mean_test_b"])
    assert (results["mean_test_a"] != results["mean_test_b"]).all()
    search.set_params(refit=FlattestWithin(0.05, flatness="a"))
    assert search.fit(X, y).best_index_ == FlattestWithin(
        0.05, flatness="b", split="test"
    )(results)


def test_train_and_test_splits_rank_differently():
    """Why the test column must not be taken for the flatness of the model."""
    search = GridSearchCV(
        model(),
        {"C": [1e2, 1e4, 1e6]},
        scoring=RelativeFlatnessScorer(),
        return_train_score=True,
        cv=KFold(3),
    ).fit(*make_classification(40, 12, flip_y=0.2, random_state=0))
    train = search.cv_results_["mean_train_score"]
    test = search.cv_results_["mean_test_score"]
    assert train.argmax() != test.argmax()


def test_the_recorder_knows_what_a_net_holds_out():
    """Route A on a net with a validation split looks at samples it never saw."""
    recorder = RelativeFlatnessRecorder()
    options = {"callbacks": [("recorder", recorder)], "random_state": 0}
    with_split = NeuralNetClassifier.__init__.__kwdefaults__["train_split"]
    scores = {}
    for name, split in {"none": None, "split": with_split}.items():
        found = cross_validate(
            net(train_split=split, **options),
            X32,
            y64,
            scoring={"a": RelativeFlatnessScorer(), "b": TrainingFlatnessScorer()},
            cv=KFold(2),
            return_train_score=True,
            error_score="raise",
        )
        scores[name] = found["train_a"], found["test_b"]
    np.testing.assert_allclose(*scores["none"], rtol=1e-6)
    assert not np.allclose(*scores["split"], rtol=1e-3)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda split: split,
        lambda split: make_pipeline(StandardScaler(), split),
        lambda split: GridSearchCV(split, {"estimator__C": [1.0]}, cv=2),
        lambda split: FrozenEstimator(split.fit(X, y)),
        lambda split: make_pipeline(
            StandardScaler(), GridSearchCV(split, {"estimator__C": [1.0]}, cv=2)
        ),
    ],
    ids=["itself", "pipeline", "search", "frozen", "search in a pipeline"],
)
def test_reads_through_wrappers(wrap):
    split = FeatureSplit(model(), training_flatness=True)
    fitted = wrap(split).fit(X, y)
    inner = fitted
    while not isinstance(inner, FeatureSplit):
        inner = getattr(inner, "best_estimator_", None) or (
            inner[-1] if hasattr(inner, "steps") else inner.estimator
        )
    assert TrainingFlatnessScorer()(fitted) == -inner.training_flatness_.value


def test_reads_through_transformed_targets():
    split = FeatureSplit(Ridge(), training_flatness=True)
    fitted = TransformedTargetRegressor(split).fit(X, X[:, 0])
    value = fitted.regressor_.training_flatness_.value
    assert TrainingFlatnessScorer()(fitted) == -value


def test_route_b_works_where_there_is_no_training_column():
    split = FeatureSplit(model(), training_flatness=True)
    scorer = TrainingFlatnessScorer()
    assert (cross_val_score(split, X, y, scoring=scorer, cv=2) < 0).all()
    halving = HalvingGridSearchCV(
        split, {"estimator__C": GRID["C"]}, scoring=scorer, cv=2, random_state=0
    )
    assert halving.fit(X, y).best_params_ == {"estimator__C": 0.01}
    weighted_search = GridSearchCV(
        split,
        {"estimator__C": GRID["C"]},
        scoring={"flat": scorer, "accuracy": "accuracy"},
        refit="accuracy",
        cv=2,
        error_score="raise",
    )
    assert weighted_search.fit(X, y, sample_weight=WEIGHT).best_score_ > 0


# ---------------------------------------------------------------------------
# Several processes
# ---------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["net", "sampled"])
def test_same_numbers_in_two_processes(name):
    """Nets are seeded, and the sampling of a scorer with an integer is."""
    flat = {
        "net": RelativeFlatnessScorer(),
        "sampled": RelativeFlatnessScorer(
            layer="hidden", method="sampled", rtol=0.2, random_state=0
        ),
    }[name]
    found = [
        GridSearchCV(
            make_pipeline(
                StandardScaler(), net(callbacks=[("rec", RelativeFlatnessRecorder())])
            ),
            {"seededclassifier__lr": [0.1, 0.5]},
            scoring={"accuracy": "accuracy", "a": flat, "b": TrainingFlatnessScorer()},
            return_train_score=True,
            refit=False,
            cv=2,
            n_jobs=n_jobs,
            error_score="raise",
        )
        .fit(X32, y64)
        .cv_results_
        for n_jobs in (1, 2)
    ]
    for column in ("mean_train_a", "mean_test_a", "mean_test_b", "mean_test_accuracy"):
        np.testing.assert_array_equal(found[0][column], found[1][column])


# ---------------------------------------------------------------------------
# skorch
# ---------------------------------------------------------------------------
@pytest.mark.parametrize("on_train", [True, False])
@pytest.mark.parametrize("use_caching", [True, False])
def test_epoch_scoring(on_train, use_caching):
    """Also with the cache, whose targets are in another order than the samples."""
    callback = EpochScoring(
        RelativeFlatnessScorer(),
        on_train=on_train,
        use_caching=use_caching,
        lower_is_better=False,
    )
    with_split = NeuralNetClassifier.__init__.__kwdefaults__["train_split"]
    fitted = net(train_split=with_split, callbacks=[("flat", callback)])
    fitted.fit(X32, y64)
    train, valid = fitted.get_split_datasets(X32, y64)
    rows = (train if on_train else valid).indices
    expected = RelativeFlatnessScorer()(fitted, X32[rows], y64[rows])
    recorded = fitted.history[-1, "neg_relative_flatness"]
    np.testing.assert_allclose(recorded, expected, rtol=1e-5)


def test_targets_given_with_a_data_set_without_its_own():
    fitted = net().fit(X32, y64)
    score = RelativeFlatnessScorer()(fitted, Dataset(X32), y64)
    np.testing.assert_allclose(score, RelativeFlatnessScorer()(fitted, X32, y64))


# ---------------------------------------------------------------------------
# Errors
# ---------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("scorer", "error", "message"),
    [
        (MeasureScorer("flatness"), ValueError, r"one of \['relative_flatness'.*'fl"),
        (MeasureScorer(3), ValueError, "'measure' parameter of MeasureScorer"),
        (
            MeasureScorer(lambda *args: None, name="mine"),
            TypeError,
            "measure '<lambda>' to return a number, got None",
        ),
        (MeasureScorer(lambda *args: 1j), TypeError, "to return a number, got 1j"),
        (MeasureScorer(lambda *args: np.nan), ValueError, "number, got NaN"),
        (RelativeFlatnessScorer(name=3), ValueError, "'name' parameter"),
        (RelativeFlatnessScorer(curvature="trace"), ValueError, "curvature to be one"),
        (RelativeFlatnessScorer(layer="fc"), ValueError, r"Choose one of \['coef'\]"),
        (TrainingFlatnessScorer(), ValueError, "got LogisticRegression without train"),
    ],
)
def test_errors(scorer, error, message):
    with pytest.raises(error, match=message):
        scorer(model().fit(X, y), X, y)


def test_the_path_to_a_missing_record_is_told():
    fitted = make_pipeline(StandardScaler(), FeatureSplit(model())).fit(X, y)
    with pytest.raises(
        ValueError, match="Pipeline around FeatureSplit around LogisticRegression"
    ):
        TrainingFlatnessScorer()(fitted)


def test_failing_scores_rank_last():
    search = GridSearchCV(
        model(), {"C": [1.0, 1e-3]}, scoring=RelativeFlatnessScorer(layer="fc"), cv=2
    )
    with (
        pytest.warns(UserWarning, match="Scoring failed"),
        pytest.warns(UserWarning, match="test scores are non-finite"),
    ):
        search.fit(X, y)
    assert np.isnan(search.cv_results_["mean_test_score"]).all()
    with pytest.raises(ValueError, match="Choose one of"):
        search.set_params(error_score="raise").fit(X, y)
