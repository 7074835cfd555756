"""PAC-Bayes flatness against noise whose effect is known."""

import warnings

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from scipy.stats import norm
from sklearn.datasets import (
    load_breast_cancer,
    load_diabetes,
    load_iris,
    make_multilabel_classification,
)
from sklearn.linear_model import (
    LinearRegression,
    LogisticRegression,
    RidgeClassifier,
    SGDClassifier,
)
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import scale
from skorch.dataset import Dataset

from sklearn_relflat import list_layers
from sklearn_relflat._curvature.problem import open_problem
from sklearn_relflat._measures.badness import METRICS
from sklearn_relflat._measures.hessian_trace import hessian_trace
from sklearn_relflat._measures.pac_bayes import pac_bayes_flatness
from sklearn_relflat._measures.weight_space import WeightSpace
from tests.cases import CASES

BY_ID = {case.id: case for case in CASES}


@pytest.fixture(scope="module")
def cancer():
    X, y = load_breast_cancer(return_X_y=True)
    return scale(X)[:, :8], y


@pytest.fixture(scope="module")
def logistic(cancer):
    return LogisticRegression().fit(*cancer)


def known_sigma(model, X, y, drop, *, magnitude_aware):
    """Noise turns a margin m_i into m_i + sigma s_i N(0, 1)."""
    margin = np.where(y == 1, 1, -1) * model.decision_function(X)
    size = X * model.coef_ if magnitude_aware else X
    size = np.linalg.norm(size, axis=1)

    def excess(sigma):
        return norm.cdf(margin / (sigma * size)).mean() - (model.score(X, y) - drop)

    return brentq(excess, 1e-3, 1e3)


@pytest.mark.parametrize("magnitude_aware", [False, True])
@pytest.mark.parametrize("drop", [0.05, 0.2])
def test_binary_linear_model(logistic, cancer, drop, magnitude_aware):
    X, y = cancer
    expected = known_sigma(logistic, X, y, drop, magnitude_aware=magnitude_aware) ** -2
    result = pac_bayes_flatness(
        logistic,
        X,
        y,
        drop=drop,
        magnitude_aware=magnitude_aware,
        n_draws=200,
        random_state=0,
    )
    assert abs(result.value - expected) < 4 * result.stderr + result.tolerance
    assert result.stderr < 0.2 * expected
    assert 0 < result.tolerance < 0.021 * expected


def test_standard_error(logistic, cancer):
    """It predicts the spread over seeds."""
    results = [
        pac_bayes_flatness(logistic, *cancer, n_draws=12, random_state=seed)
        for seed in range(30)
    ]
    spread = np.std([result.value for result in results], ddof=1)
    predicted = np.sqrt(np.mean([result.stderr**2 for result in results]))
    # The standard deviation of 30 draws is known to an eighth.
    assert 0.6 < predicted / spread < 1.6
    expected = known_sigma(logistic, *cancer, 0.1, magnitude_aware=False) ** -2
    bias = np.mean([result.value for result in results]) - expected
    assert abs(bias) < 4 * spread / np.sqrt(30) + 0.02 * expected


def test_squared_loss_rises_by_the_trace():
    """E(w + sigma u) - E(w) = sigma^2 / 2 Tr H on the average."""
    X, y = load_diabetes(return_X_y=True)
    model = LinearRegression().fit(X, y)
    trace = hessian_trace(model, X, y).value
    result = pac_bayes_flatness(
        model, X, y, metric="loss", drop=100.0, n_draws=200, random_state=0
    )
    expected = trace / 2 / 100.0
    assert abs(result.value - expected) < 4 * result.stderr + result.tolerance


def test_network_by_predictions_of_perturbed_copies():
    """At the sigma that is found, the accuracy of noisy models is lower by drop."""
    X, y = load_iris(return_X_y=True)
    X = scale(X)
    mlp = MLPClassifier((6,), solver="lbfgs", max_iter=500, random_state=0).fit(X, y)
    result = pac_bayes_flatness(mlp, X, y, layer="all", n_draws=100, random_state=0)
    sigma = result.value**-0.5
    rng = np.random.default_rng(1)
    coefs, drops = mlp.coefs_, []
    before = mlp.score(X, y)
    for _ in range(300):
        mlp.coefs_ = [w + sigma * rng.normal(size=w.shape) for w in coefs]
        drops.append(before - mlp.score(X, y))
    mlp.coefs_ = coefs
    # Errors of both averages, of 100 and of 300 draws.
    error = np.std(drops) * np.sqrt(1 / 100 + 1 / 300)
    assert abs(np.mean(drops) - 0.1) < 4 * error + 0.002


@pytest.mark.parametrize("name", ["relu", "nll", "binary", "conv2d", "batch_norm"])
def test_output_layer_alone_is_cheaper_and_the_same(name):
    """Its features are found once for all draws; a list of layers takes all passes."""
    case = BY_ID[name]
    net, (X, y) = case.fitted(), case.data()
    last = list_layers(net)[-1]
    with open_problem(
        net, X, y, layer=last, loss=None, sample_weight=None, random_state=0
    ) as problem:
        space = WeightSpace(problem)
        assert space.is_output_layer
        point = space.moved(space.normal(problem.generator()))
        for batch in problem.source:
            torch.testing.assert_close(
                space.outputs_at(batch)(point), space.outputs(point, batch.inputs)
            )


def test_multilabel_data_set():
    """Targets that come with the data set, several labels per sample."""
    case = BY_ID["multilabel"]
    net, (X, y) = case.fitted(), case.data()
    expected = accuracy(net, X, y)
    assert accuracy(net, Dataset(X, y), None) == pytest.approx(expected)


def test_reproducible(logistic, cancer):
    values = [
        pac_bayes_flatness(logistic, *cancer, n_draws=4, random_state=seed).value
        for seed in (5, 5, 6)
    ]
    assert values[0] == values[1] != values[2]


def test_leaves_the_global_random_state_alone(logistic, cancer):
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002 - the user's
    pac_bayes_flatness(logistic, *cancer, n_draws=2)
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002 - the user's


def test_guessing_model_withstands_all_noise():
    """A model that predicts one class cannot lose accuracy below its share."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 2))
    y = np.arange(60) % 2
    model = LogisticRegression(C=1e-6).fit(X, y)
    result = pac_bayes_flatness(model, X, y, drop=0.3, random_state=0)
    assert (result.value, result.stderr) == (0.0, 0.0)


def test_outputs_that_are_tied():
    """Weights of zero: the smallest noise decides between the classes."""
    X = np.random.default_rng(0).normal(size=(60, 2))
    y = np.arange(60) % 5 == 0
    model = LogisticRegression().fit(X, y)
    model.coef_[:] = 0.0
    model.intercept_[:] = 0.0
    with pytest.raises(ValueError, match=r"smallest noise.*Train the model first"):
        pac_bayes_flatness(model, X, y, random_state=0)


# ---------------------------------------------------------------------------
# Which accuracy
# ---------------------------------------------------------------------------
def accuracy(model, X, y, **options):
    """Accuracy by the measure's own count."""
    names = {"layer": None, "loss": None, "sample_weight": None, **options}
    with open_problem(model, X, y, **names) as problem:
        parts = [
            METRICS["accuracy"](problem, batch, problem.view.outputs(batch.inputs))
            for batch in problem.source
        ]
    wrong, count = (sum(float(part[i].detach()) for part in parts) for i in (0, 1))
    return 1 - wrong / count


def several_labels():
    return make_multilabel_classification(100, 6, n_classes=3, random_state=0)


with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    MODELS = {
        "binary": (LogisticRegression(), load_breast_cancer(return_X_y=True)),
        "multinomial": (LogisticRegression(), load_iris(return_X_y=True)),
        "one_versus_rest": (SGDClassifier(loss="log_loss"), load_iris(return_X_y=True)),
        "ridge_binary": (RidgeClassifier(), load_breast_cancer(return_X_y=True)),
        "ridge": (RidgeClassifier(), load_iris(return_X_y=True)),
        "ridge_labels": (RidgeClassifier(), several_labels()),
        "mlp": (MLPClassifier((4,), max_iter=20), load_iris(return_X_y=True)),
        "mlp_labels": (MLPClassifier((4,), max_iter=20), several_labels()),
    }


@pytest.mark.parametrize("loss", [None, "squared_error"])
@pytest.mark.parametrize("name", list(MODELS))
def test_accuracy_is_that_of_scikit_learn(name, loss):
    model, (X, y) = MODELS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # not converged: any model will do
        model.set_params(random_state=0).fit(X, y)
    assert accuracy(model, X, y, loss=loss) == pytest.approx(model.score(X, y))
    weight = np.arange(len(X)) % 3
    expected = model.score(X, y, sample_weight=weight)
    found = accuracy(model, X, y, loss=loss, sample_weight=weight)
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("name", ["relu", "nll", "binary", "conv2d"])
def test_accuracy_is_that_of_skorch(name):
    case = BY_ID[name]
    net, (X, y) = case.fitted(), case.data()
    net.module_.eval()
    expected = np.mean(net.predict(X) == y.numpy())
    assert accuracy(net, X, y) == pytest.approx(expected)


def test_accuracy_of_positions_and_ignored_samples():
    case = BY_ID["dense"]
    net, (X, y) = case.fitted(), case.data()
    expected = (net.module_(X).argmax(1) == y).double().mean()
    assert accuracy(net, X, y) == pytest.approx(float(expected))
    case = BY_ID["ignore"]
    net, (X, y) = case.fitted(), case.data()
    kept = y != 1
    expected = (net.module_(X).argmax(1) == y)[kept].double().mean()
    assert accuracy(net, X, y) == pytest.approx(float(expected))
    case = BY_ID["probabilities"]
    net, (X, y) = case.fitted(), case.data()
    expected = (net.module_(X).argmax(1) == y.argmax(1)).double().mean()
    assert accuracy(net, X, y) == pytest.approx(float(expected))


# ---------------------------------------------------------------------------
# Bad input
# ---------------------------------------------------------------------------
def test_regressors_have_no_accuracy():
    X, y = load_diabetes(return_X_y=True)
    model = LinearRegression().fit(X, y)
    with pytest.raises(ValueError, match=r"Expected a classifier .* metric=\"loss\""):
        pac_bayes_flatness(model, X, y)
    case = BY_ID["mse"]
    with pytest.raises(ValueError, match="NeuralNet with the loss 'squared_error'"):
        pac_bayes_flatness(case.fitted(), *case.data())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "auc"}, r"metric to be one of .* got 'auc'"),
        ({"drop": 0.0}, "drop to be a positive number, got 0.0"),
        ({"drop": 10}, r"less than 1, got 10\. .* ten percentage points"),
        ({"n_draws": 1}, "n_draws to be an integer of at least 2, got 1"),
        ({"n_draws": 2.5}, r"at least 2, got 2\.5"),
        ({"rtol": 0.0}, "rtol to be between 0 and 1, got 0.0"),
    ],
)
def test_options_are_checked(logistic, cancer, options, message):
    with pytest.raises(ValueError, match=message):
        pac_bayes_flatness(logistic, *cancer, **options)
