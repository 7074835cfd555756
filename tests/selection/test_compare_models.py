"""Fitted models side by side, and which one to take."""

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.exceptions import NotFittedError
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.linear_model import (
    LinearRegression,
    LogisticRegression,
    Ridge,
    RidgeClassifier,
)
from sklearn.model_selection import GridSearchCV, HalvingGridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch import NeuralNetClassifier
from torch import nn

import sklearn_relflat._results.tables as tables
from sklearn_relflat import (
    SmoothedRiskSearchCV,
    compare_models,
    flatness_diagnosis,
    relative_flatness,
    smoothed_risk,
)
from sklearn_relflat._selection.own_score import own_score


@pytest.fixture(scope="module")
def data():
    X, y = load_breast_cancer(return_X_y=True)
    return StandardScaler().fit_transform(X), y


@pytest.fixture(scope="module")
def models(data):
    X, y = data
    return {
        f"C={C}": LogisticRegression(C=C, max_iter=10000).fit(X[:200], y[:200])
        for C in (1e-4, 0.5, 1e4)
    }


@pytest.fixture(scope="module")
def comparison(data, models):
    X, y = data
    return compare_models(models, X[:200], y[:200], X_test=X[200:], y_test=y[200:])


def test_numbers_are_those_of_the_measures(data, models, comparison):
    X, y = data[0][:200], data[1][:200]
    for row, (name, model) in zip(comparison.rows(), models.items(), strict=True):
        risk = smoothed_risk(model, X, y, random_state=0)
        held_out = smoothed_risk(model, data[0][200:], data[1][200:], radius=0.0)
        assert row["model"] == name
        assert row["smoothed_risk"] == risk.value
        assert row["smoothed_risk_stderr"] == risk.stderr
        assert row["training_loss"] == pytest.approx(risk.mean_loss)
        assert row["score"] == model.score(X, y)
        assert row["test_score"] == model.score(data[0][200:], data[1][200:])
        assert row["test_loss"] == pytest.approx(held_out.mean_loss)
        assert row["gap"] == pytest.approx(held_out.mean_loss - risk.mean_loss)
        assert row["relative_flatness"] == relative_flatness(model, X, y).value
        squared = relative_flatness(model, X, y, loss="squared_error")
        assert row["relative_flatness_squared_error"] == squared.value


def test_takes_the_smallest_smoothed_risk(comparison):
    rows = comparison.rows()
    assert comparison.best == min(rows, key=lambda r: r["smoothed_risk"])["model"]
    assert comparison.best == "C=0.5"
    assert comparison.best == min(rows, key=lambda r: r["test_loss"])["model"]
    assert "Take 'C=0.5'" in comparison.sentence


def test_differences_are_paired(data, models, comparison):
    X, y = data[0][:200], data[1][:200]
    first = smoothed_risk(models["C=0.5"], X, y, random_state=0)
    other = smoothed_risk(models["C=10000.0"], X, y, random_state=0)
    pairs = other.by_pair - first.by_pair
    row = comparison.rows()[2]
    assert row["difference"] == pytest.approx(other.value - first.value)
    assert row["difference_stderr"] == pytest.approx(
        np.std(pairs, ddof=1) / np.sqrt(len(pairs))
    )


def test_equal_models_are_unresolved(data):
    X, y = data
    model = LogisticRegression(C=0.5).fit(X, y)
    result = compare_models({"a": model, "b": clone(model).fit(X, y)}, X, y)
    assert result.unresolved == ["b"]
    assert "the draws do not tell it from 'b'" in result.sentence


def test_what_the_sample_leaves_open_is_said():
    # The squared error of linear models is exact: no draws, but few samples.
    X, y = load_diabetes(return_X_y=True)
    X, y = X[:60], y[:60]
    models = [Ridge(alpha).fit(X, y) for alpha in (0.1, 0.2, 0.4, 0.8)]
    result = compare_models(models, X, y)
    assert not result.unresolved
    assert result.undecided
    assert "a sample of this size does not tell it from" in result.sentence


def test_clear_differences_are_called_clear(data, models):
    X, y = data[0][:200], data[1][:200]
    worst, best = models["C=0.0001"], models["C=0.5"]
    result = compare_models({"worst": worst, "best": best}, X, y)
    assert result.best == "best"
    assert not result.unresolved
    assert not result.undecided
    assert "more than two standard errors" in result.sentence


def test_one_model():
    X, y = load_diabetes(return_X_y=True)
    result = compare_models([LinearRegression().fit(X, y)], X, y)
    assert result.best == "LinearRegression"
    assert "There is one model" in result.sentence


def test_same_seed_same_numbers(data, models):
    X, y = data[0][:200], data[1][:200]
    generators = [np.random.RandomState(3) for _ in range(2)]
    one, two = (compare_models(models, X, y, random_state=g) for g in generators)
    assert one.rows() == two.rows()


def test_samples_may_be_weighted(data, models):
    X, y = data[0][:200], data[1][:200]
    twice = np.where(np.arange(200) < 80, 2, 1)
    weighted = compare_models(models, X, y, sample_weight=twice, radius=0.3)
    model = models["C=0.5"]
    repeated = own_score(model, np.repeat(X, twice, axis=0), np.repeat(y, twice))
    assert weighted.rows()[1]["score"] == pytest.approx(repeated.value)


@pytest.mark.parametrize("n_outputs", [1, 2])
def test_error_of_r2_is_that_over_samples(n_outputs):
    rng = np.random.default_rng(0)
    n = 400
    scores, errors = [], []
    for _ in range(200):
        X = rng.normal(size=(n, 3))
        y = X @ np.ones((3, n_outputs)) + rng.normal(size=(n, n_outputs))
        model = LinearRegression()
        model.coef_, model.intercept_ = np.ones((n_outputs, 3)), np.zeros(n_outputs)
        score = own_score(model, X, y)
        scores.append(score.value)
        errors.append(score.stderr)
    assert np.mean(errors) == pytest.approx(np.std(scores), rel=0.2)


def test_score_of_another_kind_has_no_error(data):
    X, y = data
    model = GridSearchCV(
        LogisticRegression(), {"C": [0.1]}, scoring="neg_log_loss", cv=2
    )
    score = own_score(model.fit(X, y), X, y)
    assert score.value == model.score(X, y)
    assert np.isnan(score.stderr)
    assert "own kind" in score.note


class Pixels(nn.Module):
    """One class for each of four pixels."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 1)

    def forward(self, x):
        return self.conv(x)


def test_missing_numbers_have_their_reason():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(20, 1, 2, 2)).astype(np.float32)
    y = rng.integers(0, 3, size=(20, 2, 2))
    y[0, 0, 0] = -100  # ignored by the cross-entropy, no class to the squared error
    net = NeuralNetClassifier(
        Pixels, criterion=nn.CrossEntropyLoss, train_split=None, verbose=0
    )
    result = compare_models({"net": net.partial_fit(X, y)}, X, y)
    row = result.rows()[0]
    assert np.isnan(row["score"])
    assert np.isnan(row["relative_flatness_squared_error"])
    assert np.isfinite(row["relative_flatness"])
    score, flatness = result.notes
    assert score.startswith("net, score: ")
    assert flatness.startswith("net, relative flatness squared error: ")
    assert flatness in str(result)


def test_pipelines_of_different_features(data):
    X, y = data
    models = [
        make_pipeline(StandardScaler(), LogisticRegression(C=C)).fit(X[:, :k], y)
        for C, k in ((1.0, 30), (0.1, 30))
    ]
    names = [row["model"] for row in compare_models(models, X, y).rows()]
    assert names == [
        "Pipeline(logisticregression__C=1.0)",
        "Pipeline(logisticregression__C=0.1)",
    ]


def test_one_loss_for_two_classes(data):
    X, y = data[0].astype(np.float32), data[1]
    net = NeuralNetClassifier(
        nn.Linear(30, 2), criterion=nn.CrossEntropyLoss, max_epochs=2, verbose=0
    ).fit(X, y)
    model = LogisticRegression().fit(X, y)
    assert compare_models({"net": net, "sklearn": model}, X, y).best


def test_different_losses_are_refused(data):
    X, y = data
    models = [LogisticRegression().fit(X, y), RidgeClassifier().fit(X, y)]
    with pytest.raises(ValueError, match=r"trained with one loss.*loss='binary"):
        compare_models(models, X, y)
    assert compare_models(models, X, y, loss="squared_error").best


@pytest.mark.parametrize("kind", [GridSearchCV, SmoothedRiskSearchCV])
def test_candidates_of_a_search_are_those_fitted_by_hand(data, kind):
    X, y = data[0][:100], data[1][:100]
    search = kind(LogisticRegression(), {"C": [0.1, 1.0, 10.0]}, cv=2).fit(X, y)
    models = {
        f"C={p['C']}": clone(search.estimator).set_params(**p).fit(X, y)
        for p in search.cv_results_["params"]
    }
    comparison = compare_models(search, X, y)
    assert comparison.rows() == compare_models(models, X, y).rows()
    assert comparison.best in models
    diagnosis = flatness_diagnosis(search, X, y)
    assert diagnosis.frame().equals(flatness_diagnosis(models, X, y).frame())


def test_the_best_of_a_search_is_the_one_that_it_kept(data):
    X, y = data[0][:100], data[1][:100]
    search = GridSearchCV(LogisticRegression(), {"C": [0.1, 1.0]}, cv=2).fit(X, y)
    search.best_estimator_.coef_ *= 3.0
    kept = smoothed_risk(search.best_estimator_, X, y, random_state=0)
    row = compare_models(search, X, y).rows()[search.best_index_]
    assert row["smoothed_risk"] == kept.value


def test_candidates_are_named_by_what_tells_them_apart(data):
    X, y = data[0][:100], data[1][:100]
    pipeline = make_pipeline(StandardScaler(), LogisticRegression())
    grid = [
        {"standardscaler": [StandardScaler(), "passthrough"]},
        {"logisticregression__C": [0.1], "standardscaler": ["passthrough"]},
    ]
    search = GridSearchCV(pipeline, grid, cv=2).fit(X, y)
    assert [row["model"] for row in compare_models(search, X, y).rows()] == [
        "standardscaler=StandardScaler",
        "standardscaler='passthrough'",
        "standardscaler='passthrough', logisticregression__C=0.1",
    ]
    alike = GridSearchCV(LogisticRegression(), {"C": [1.0, 1.0]}, cv=2).fit(X, y)
    assert len(compare_models(alike, X, y).rows()) == 1


def test_a_search_that_halves_has_each_candidate_once(data):
    X, y = data
    search = HalvingGridSearchCV(
        LogisticRegression(), {"C": [0.1, 1.0, 10.0]}, cv=2, random_state=0
    ).fit(X, y)
    assert len(search.cv_results_["params"]) > 3
    assert len(compare_models(search, X, y).rows()) == 3


def test_a_search_that_cannot_be_compared_says_so(data):
    X, y = data[0][:100], data[1][:100]
    search = GridSearchCV(LogisticRegression(), {"C": [0.1, -1.0]}, cv=2)
    with pytest.raises(NotFittedError, match="a fitted search, got GridSearchCV"):
        compare_models(search, X, y)
    search.set_params(param_grid={"C": [0.1, 1.0]}).fit(X, y)
    with pytest.raises(ValueError, match="does not say whether with weights"):
        compare_models(search, X, y, sample_weight=np.ones(100))
    search.cv_results_["params"][1 - search.best_index_]["C"] = -1.0
    with pytest.raises(ValueError, match="'C' parameter") as caught:
        compare_models(search, X, y)
    assert "candidate {'C': -1.0}" in caught.value.__notes__[0]


def test_errors_say_what_to_do(data, models):
    X, y = data
    with pytest.raises(TypeError, match=r"a dict or a list .* got 'LogisticReg"):
        compare_models(models["C=0.5"], X, y)
    with pytest.raises(ValueError, match="at least one fitted model"):
        compare_models({}, X, y)
    with pytest.raises(ValueError, match="differ as text"):
        compare_models({1: models["C=0.5"], "1": models["C=0.5"]}, X, y)
    with pytest.raises(ValueError, match="Expected X_test with y_test"):
        compare_models(models, X, y, y_test=y)
    with pytest.raises(TypeError) as caught:
        compare_models({"mine": object()}, X, y)
    assert caught.value.__notes__ == ["While measuring the model 'mine'."]


def test_text_frame_and_html(comparison, monkeypatch):
    text = str(comparison)
    for expected in ("C=0.5 *", "smoothed risk", "test loss", comparison.sentence):
        assert expected in text
    table = comparison.frame()
    assert list(table["model"]) == ["C=0.0001", "C=0.5", "C=10000.0"]
    html = comparison._repr_html_()
    assert html.count("<tr>") == 4
    assert 'href="user_guide/comparing.html"' in html
    monkeypatch.setattr(tables.importlib.util, "find_spec", lambda name: None)
    assert comparison.frame().column("model") == list(table["model"])


def test_html_escapes_names(data, models):
    X, y = data
    html = compare_models({"<b>": models["C=0.5"]}, X, y)._repr_html_()
    assert "<b>" not in html
    assert "&lt;b&gt;" in html


def test_repr_is_one_line(comparison):
    assert repr(comparison) == f"<ModelComparison: {comparison.sentence}>"
