"""FeatureSplit: scikit-learn's checks, features and heads against plain NumPy."""

import pickle
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from sklearn import config_context
from sklearn.base import clone, is_classifier, is_regressor
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import TransformedTargetRegressor
from sklearn.datasets import load_iris
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.exceptions import NotFittedError, UnsetMetadataPassedError
from sklearn.frozen import FrozenEstimator
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import (
    BayesianRidge,
    HuberRegressor,
    Lars,
    Lasso,
    LinearRegression,
    LogisticRegression,
    MultiTaskLasso,
    PoissonRegressor,
    Ridge,
    RidgeClassifier,
    RidgeCV,
    SGDClassifier,
    SGDRegressor,
)
from sklearn.model_selection import FixedThresholdClassifier, GridSearchCV
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC, LinearSVR
from sklearn.tree import DecisionTreeClassifier
from sklearn.utils import estimator_checks
from skorch import (
    NeuralNet,
    NeuralNetBinaryClassifier,
    NeuralNetClassifier,
    NeuralNetRegressor,
)
from skorch.dataset import Dataset as SkorchDataset
from skorch.dataset import ValidSplit
from torch import nn

from sklearn_relflat._flatness.relative_flatness import relative_flatness
from sklearn_relflat._layers.layers import weight_layers
from sklearn_relflat._split.feature_split import FeatureSplit
from sklearn_relflat.callbacks import ModuleSizes, Seeded

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 5))
LABELS = np.array(["red", "blue", "green"])[(X[:, 0] > 0).astype(int) + (X[:, 1] > 1)]
BINARY = np.where(X[:, 0] > 0, "yes", "no")
REAL = X @ np.arange(5.0) + 0.1 * RNG.normal(size=40)
IMAGES = RNG.normal(size=(12, 1, 5, 6)).astype(np.float32)
TOKENS = RNG.normal(size=(12, 4, 3)).astype(np.float32)
WORDS = RNG.integers(7, size=(12, 4))
FEW = np.array([0, 1, 2] * 4)


class Net(nn.Module):
    """Two linear layers whose sizes a callback can set."""

    def __init__(self, n_features=5, n_outputs=3, link=None):
        super().__init__()
        self.hidden = nn.Linear(n_features, 16)
        self.out = nn.Linear(16, n_outputs)
        self.link = link or nn.Identity()

    def forward(self, X):
        return self.link(self.out(torch.tanh(self.hidden(X))))


class Flat(Net):
    """Outputs of shape (n_samples,)."""

    def forward(self, X):
        return super().forward(X).squeeze(1)


class Skip(Net):
    """The first column of X goes past the layers."""

    def forward(self, X):
        return super().forward(X) + X[:, :1]


class Images(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, padding=1, stride=2)
        self.out = nn.Linear(18, 3)

    def forward(self, X):
        return self.out(torch.relu(self.conv(X)).flatten(1))


class AnySize(Images):
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(2, 3)

    def forward(self, X):
        return self.out(torch.relu(self.conv(X)).mean((2, 3)))


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(3, 5)
        self.out = nn.Linear(5, 3)

    def forward(self, X):
        return self.out(torch.relu(self.embed(X)).mean(1))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(3, 1, batch_first=True)
        self.out = nn.Linear(3, 3)

    def forward(self, X):
        return self.out(self.attention(X, X, X)[0].mean(1))


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(7, 5)
        self.hidden = nn.Linear(5, 4)
        self.out = nn.Linear(4, 3)

    def forward(self, X):
        return self.out(torch.relu(self.hidden(self.table(X).mean(1))))


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(5, 3)

    def forward(self, left, right):
        return self.out(torch.cat([left, right], 1))


class SeededClassifier(Seeded, NeuralNetClassifier):
    pass


class SeededRegressor(Seeded, NeuralNetRegressor):
    pass


def classifier(module=Net, **options):
    settings = {
        "criterion": nn.CrossEntropyLoss,
        "train_split": None,
        "max_epochs": 3,
        "random_state": 0,
        "verbose": 0,
    }
    return SeededClassifier(module, **{**settings, **options})


def regressor(module=Net, **options):
    settings = {
        "train_split": None,
        "max_epochs": 3,
        "lr": 0.01,
        "random_state": 0,
        "verbose": 0,
    }
    return SeededRegressor(module, **{**settings, **options})


def adaptive(net):
    """A net that is trained well on data of any width."""
    sizes = ModuleSizes("module__n_features", "module__n_outputs")
    return net.set_params(
        callbacks=[("sizes", sizes)],
        max_epochs=50,
        lr=0.05,
        batch_size=64,
        optimizer=torch.optim.Adam,
    )


# ---------------------------------------------------------------------------
# scikit-learn's checks
# ---------------------------------------------------------------------------
CHECKED = {
    "LogisticRegression": lambda: LogisticRegression(),
    "Ridge": lambda: Ridge(),
    "MLPClassifier": lambda: MLPClassifier(
        (4,), solver="lbfgs", max_iter=400, random_state=0
    ),
    "skorch classifier": lambda: adaptive(classifier()),
    "skorch regressor": lambda: adaptive(regressor()),
}
# What check_estimator leaves out.
MORE_CHECKS = [
    "check_param_validation",
    "check_set_output_transform",
    "check_set_output_transform_pandas",
    "check_set_output_transform_polars",
    "check_global_output_transform_pandas",
    "check_global_set_output_transform_polars",
    "check_transformer_get_feature_names_out",
    "check_transformer_get_feature_names_out_pandas",
    "check_get_feature_names_out_error",
    "check_dataframe_column_names_consistency",
    "check_inplace_ensure_writeable",
]


@pytest.mark.parametrize("name", CHECKED)
def test_check_estimator(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of models trained on what checks invent
        results = estimator_checks.check_estimator(
            FeatureSplit(CHECKED[name]()), on_skip=None, on_fail=None
        )
    statuses = {result["check_name"]: result["status"] for result in results}
    assert len(results) > 50
    # Only what needs a setting of the process or a method that the model lacks.
    skipped = {check for check, status in statuses.items() if status == "skipped"}
    assert skipped <= {
        "check_array_api_input",
        "check_classifiers_multilabel_output_format_decision_function",
    }
    assert {statuses[check] for check in statuses if check not in skipped} == {"passed"}


@pytest.mark.parametrize("name", CHECKED)
@pytest.mark.parametrize("check", MORE_CHECKS)
def test_checks_beside_check_estimator(name, check):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        getattr(estimator_checks, check)("FeatureSplit", FeatureSplit(CHECKED[name]()))


# ---------------------------------------------------------------------------
# Every kind of model, split at every layer
# ---------------------------------------------------------------------------
@dataclass
class Case:
    estimator: Any
    X: Any
    y: Any


CASES = {
    "binary": Case(LogisticRegression(), X, BINARY),
    "multinomial": Case(LogisticRegression(), X, LABELS),
    "ridge": Case(Ridge(), X, REAL),
    "ridge with a column": Case(Ridge(), X, REAL[:, None]),
    "ridge with two targets": Case(Ridge(), X, np.c_[REAL, X]),
    "least squares": Case(LinearRegression(fit_intercept=False), X, REAL),
    "RidgeCV": Case(RidgeCV(), X, REAL),
    "Lasso": Case(Lasso(0.01), X, REAL),
    "Lasso with a column": Case(Lasso(0.01), X, REAL[:, None]),
    "Lars with a column": Case(Lars(), X, REAL[:, None]),
    "multi-task Lasso": Case(MultiTaskLasso(0.01), X, np.c_[REAL, X]),
    "Bayesian ridge": Case(BayesianRidge(), X, REAL),
    "Huber": Case(HuberRegressor(), X, REAL),
    "Poisson": Case(PoissonRegressor(), X, np.exp(REAL / 10)),
    "Poisson in a search": Case(
        GridSearchCV(PoissonRegressor(), {"alpha": [1.0]}, cv=2), X, np.exp(REAL / 10)
    ),
    "discriminant analysis": Case(LinearDiscriminantAnalysis(), X, LABELS),
    "LinearSVC": Case(LinearSVC(), X, LABELS),
    "LinearSVC, binary": Case(LinearSVC(), X, BINARY),
    "LinearSVR": Case(LinearSVR(), X, REAL),
    "ridge in a search": Case(
        GridSearchCV(Ridge(), {"alpha": [1.0]}, cv=2), X, REAL[:, None]
    ),
    "RidgeClassifier": Case(RidgeClassifier(), X, LABELS),
    "hinge loss": Case(SGDClassifier(random_state=0), X, LABELS),
    "SGDRegressor": Case(SGDRegressor(random_state=0), X, REAL),
    "kernel ridge": Case(KernelRidge(kernel="rbf"), X, REAL),
    "MLP": Case(MLPClassifier((4, 3), solver="lbfgs", random_state=0), X, LABELS),
    "MLP, binary": Case(MLPClassifier((3,), solver="lbfgs", random_state=0), X, BINARY),
    "MLP, multilabel": Case(
        MLPClassifier((4,), solver="lbfgs", random_state=0), X, (X > 0).astype(int)
    ),
    "MLPRegressor": Case(
        MLPRegressor(hidden_layer_sizes=(4,), solver="lbfgs", random_state=0), X, REAL
    ),
    "pipeline": Case(
        make_pipeline(StandardScaler(), LogisticRegression()), 100 * X, LABELS
    ),
    "sparse": Case(LogisticRegression(), sp.csr_matrix(X * (X > 0)), LABELS),
    "net": Case(classifier(), X, LABELS),
    "net with probabilities": Case(
        classifier(module__link=nn.Softmax(1), criterion=nn.NLLLoss), X, LABELS
    ),
    "binary net": Case(
        NeuralNetBinaryClassifier(
            Net, module__n_outputs=1, train_split=None, threshold=0.6, verbose=0
        ),
        X,
        BINARY,
    ),
    "regressor": Case(regressor(module__n_outputs=1), X, REAL),
    "regressor with two targets": Case(
        regressor(module__n_outputs=2), X, np.c_[REAL, X[:, 0]]
    ),
    "flat regressor": Case(regressor(Flat, module__n_outputs=1), X, REAL),
    "L1 loss": Case(
        regressor(module__n_outputs=1, criterion=nn.L1Loss), X.tolist(), REAL.tolist()
    ),
    "images": Case(classifier(Images), IMAGES, FEW),
    "tensors": Case(classifier(Images), torch.from_numpy(IMAGES), torch.tensor(FEW)),
    "tokens": Case(classifier(Tokens), TOKENS, FEW),
    "words": Case(classifier(Words), WORDS, FEW),
    "dict": Case(
        classifier(TwoInputs),
        {"left": X[:, :2].astype("f"), "right": X[:, 2:].astype("f")},
        LABELS,
    ),
    "data set": Case(
        classifier(), SkorchDataset(X.astype("f"), np.arange(40) % 3), None
    ),
    "net behind a scaler": Case(
        make_pipeline(StandardScaler(), classifier()), X.astype("f"), LABELS
    ),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def fitted(case, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # three epochs do not converge
        return FeatureSplit(clone(case.estimator), **options).fit(case.X, case.y)


def layers_of(split):
    """Names of the layers; `list_layers` would ask for the loss as well."""
    return list(weight_layers(split._as_torch_model()))


def n_samples(data):
    if isinstance(data, dict):
        data = data["left"]
    return data.shape[0] if hasattr(data, "shape") else len(data)


@every_case
def test_predictions_from_features_are_the_predictions(case):
    for layer in layers_of(fitted(case)):
        split = fitted(case, layer=layer)
        Z = split.transform(case.X)
        assert Z.shape == (n_samples(case.X), len(split.get_feature_names_out()))
        predicted = split.predict(case.X)
        again = split.predict_from_features(Z)
        assert again.shape == predicted.shape
        if predicted.dtype.kind == "f":
            np.testing.assert_allclose(again, predicted, rtol=1e-4, atol=1e-5)
        else:
            np.testing.assert_array_equal(again, predicted)


@every_case
def test_default_is_the_output_layer(case):
    split = fitted(case)
    assert split.layer_ == layers_of(split)[-1]
    if is_regressor(split):
        # w phi + b are the predictions themselves, or the logarithms of rates.
        bias = 0.0 if split.bias_ is None else split.bias_
        outputs = split.transform(case.X) @ split.weight_.T + bias
        predicted = split.predict(case.X)
        if "Poisson" in repr(case.estimator):
            outputs = np.exp(outputs)
        np.testing.assert_allclose(
            outputs.reshape(predicted.shape), predicted, rtol=1e-4, atol=1e-5
        )


@every_case
def test_is_the_model(case):
    split, model = fitted(case), clone(case.estimator)
    assert is_classifier(split) == is_classifier(model)
    assert is_regressor(split) == is_regressor(model)
    for method in ("predict", "predict_proba", "decision_function"):
        if method == "predict_proba" and is_regressor(model):
            assert not hasattr(split, method)
        elif hasattr(model, method):
            assert getattr(split, method)(case.X).shape[0] == n_samples(case.X)
        else:
            assert not hasattr(split, method)
    if case.y is not None:
        np.testing.assert_allclose(
            split.score(case.X, case.y), split.score(case.X, np.asarray(case.y))
        )


@pytest.mark.parametrize(
    "name", ["multinomial", "pipeline", "MLP", "ridge", "kernel ridge"]
)
def test_agrees_with_the_bare_model(name):
    case = CASES[name]
    split, model = fitted(case), clone(case.estimator).fit(case.X, case.y)
    np.testing.assert_array_equal(split.predict(case.X), model.predict(case.X))
    assert split.score(case.X, case.y) == model.score(case.X, case.y)
    ours = relative_flatness(split, case.X, case.y)
    assert float(ours) == float(relative_flatness(model, case.X, case.y))
    assert ours.layer == split.layer_


# ---------------------------------------------------------------------------
# Features and heads by hand
# ---------------------------------------------------------------------------
def test_features_of_a_perceptron():
    mlp = MLPClassifier((4, 3), activation="tanh", solver="lbfgs", random_state=0)
    split = FeatureSplit(mlp, layer="coefs.2").fit(X, LABELS)
    model = split.estimator_
    hidden = np.tanh(X @ model.coefs_[0] + model.intercepts_[0])
    hidden = np.tanh(hidden @ model.coefs_[1] + model.intercepts_[1])
    np.testing.assert_allclose(split.transform(X), hidden, rtol=1e-12)
    np.testing.assert_array_equal(split.weight_, model.coefs_[2].T)
    np.testing.assert_array_equal(split.bias_, model.intercepts_[2])


@pytest.mark.parametrize("n", [1, 7, 600])
def test_head_of_a_hidden_layer_on_any_features(n):
    """More features than one batch of the head takes, and features of no sample."""
    mlp = MLPRegressor(
        hidden_layer_sizes=(4, 3),
        activation="tanh",
        solver="lbfgs",
        max_iter=5000,
        random_state=0,
    )
    split = FeatureSplit(mlp, layer="coefs.1").fit(X, REAL)
    model = split.estimator_
    Z = np.random.default_rng(1).normal(size=(n, 4))
    expected = np.tanh(Z @ model.coefs_[1] + model.intercepts_[1])
    expected = (expected @ model.coefs_[2] + model.intercepts_[2])[:, 0]
    np.testing.assert_allclose(split.predict_from_features(Z), expected, rtol=1e-9)


def test_head_of_a_convolution_on_any_patches():
    """Overlapping patches are free to hold different values."""
    split = FeatureSplit(classifier(Images), layer="conv").fit(IMAGES, FEW)
    patches = np.random.default_rng(1).normal(size=(5, 9, 9)).astype("f")
    z = split.weight_ @ patches + split.bias_[:, None]
    module = split.estimator_.module_
    with torch.no_grad():
        expected = module.out(torch.relu(torch.from_numpy(z)).flatten(1)).argmax(1)
    predicted = split.predict_from_features(patches.reshape(5, -1))
    np.testing.assert_array_equal(predicted, expected.numpy())


def test_positions_are_flattened_behind_features():
    split = FeatureSplit(classifier(Tokens), layer="embed").fit(TOKENS, FEW)
    expected = TOKENS.transpose(0, 2, 1).reshape(len(TOKENS), -1)
    np.testing.assert_array_equal(split.transform(TOKENS), expected)


def test_a_poisson_perceptron_predicts_rates():
    pytest.importorskip("sklearn", minversion="1.7")
    counts = np.random.default_rng(0).poisson(np.exp(0.3 * X[:, 0]))
    mlp = MLPRegressor(
        hidden_layer_sizes=(3,), loss="poisson", max_iter=50, random_state=0
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        split = FeatureSplit(mlp).fit(X, counts)
    np.testing.assert_allclose(
        split.predict_from_features(split.transform(X)), split.predict(X)
    )


def test_weights_follow_the_model_and_are_copies():
    split = fitted(CASES["net"])
    before = split.weight_
    before[:] = np.nan
    assert np.isfinite(split.weight_).all()
    with torch.no_grad():
        split.estimator_.module_.out.weight.fill_(2.0)
    np.testing.assert_array_equal(split.weight_, 2.0)


@pytest.mark.parametrize("layer", ["hidden", "out"])
def test_a_head_that_sees_the_input_is_refused(layer):
    split = FeatureSplit(classifier(Skip), layer=layer).fit(X, LABELS)
    Z = split.transform(X)
    with pytest.raises(ValueError, match="a connection skips the layer"):
        split.predict_from_features(Z)


def test_the_head_behind_an_attention_projection_is_refused():
    split = FeatureSplit(classifier(Attention), layer="attention.out_proj")
    split.fit(TOKENS, FEW)
    Z = split.transform(TOKENS)
    with pytest.raises(ValueError, match="inside of multi-head attention"):
        split.predict_from_features(Z)


# ---------------------------------------------------------------------------
# Nets
# ---------------------------------------------------------------------------
def test_labels_of_a_net():
    split = fitted(CASES["net"])
    assert split.classes_.tolist() == ["blue", "green", "red"]
    assert set(split.predict(X)) <= set(split.classes_)
    inner = split.estimator_.predict(X.astype("f"))
    np.testing.assert_array_equal(split.predict(X), split.classes_[inner])


def test_flatness_of_a_net_takes_the_original_labels():
    split = fitted(CASES["net"])
    codes = np.unique(LABELS, return_inverse=True)[1]
    expected = relative_flatness(split.estimator_, X.astype("f"), codes)
    assert float(relative_flatness(split, X, LABELS)) == float(expected)


def test_unseen_labels():
    split = fitted(CASES["net"])
    wrong = np.where(split.predict(X) == "red", "pink", split.predict(X))
    assert split.score(X, wrong) == np.mean(split.predict(X) != "red")
    with pytest.raises(ValueError, match=r"unseen labels .*'pink'"):
        relative_flatness(split, X, wrong)


def test_regressors_are_trained_on_targets_in_the_shape_of_their_outputs():
    """The trap of broadcasting (n,) against (n, 1) would leave a constant."""
    for module in (Net, Flat):
        net = regressor(
            module,
            module__n_outputs=1,
            max_epochs=150,
            lr=0.05,
            optimizer=torch.optim.Adam,
        )
        split = FeatureSplit(net).fit(X, REAL)
        assert split.score(X, REAL) > 0.95
        assert split.predict(X).shape == REAL.shape


def test_images_and_integers_are_cast_as_the_module_needs():
    assert fitted(CASES["images"]).n_features_in_ == 1
    words = fitted(CASES["words"])
    assert words.transform(WORDS).dtype == np.float32
    integers = np.round(3 * X).astype(int)
    split = FeatureSplit(classifier()).fit(integers, LABELS)
    np.testing.assert_array_equal(
        split.predict(integers), split.predict(integers.astype(float))
    )


def test_fitting_leaves_the_global_random_state_of_torch_alone():
    before = torch.get_rng_state()
    FeatureSplit(regressor(module__n_outputs=1)).fit(X, REAL)
    assert torch.equal(before, torch.get_rng_state())


# ---------------------------------------------------------------------------
# Frozen models
# ---------------------------------------------------------------------------
def test_a_frozen_net_is_left_as_it_is():
    codes = np.unique(LABELS, return_inverse=True)[1]
    net = classifier().fit(X.astype("f"), codes)
    weight = net.module_.out.weight.detach().clone()
    split = FeatureSplit(FrozenEstimator(net), layer="hidden").fit(X)
    assert torch.equal(weight, net.module_.out.weight)
    # The labels of the net are what they are, also if y lacks one of them.
    split = FeatureSplit(FrozenEstimator(net)).fit(X[codes > 0], codes[codes > 0])
    assert split.classes_.tolist() == [0, 1, 2]
    np.testing.assert_array_equal(split.predict(X), net.predict(X.astype("f")))
    expected = relative_flatness(net, X.astype("f"), codes)
    assert float(relative_flatness(split, X, codes)) == float(expected)


def test_a_plain_net_is_neither_classifier_nor_regressor():
    net = NeuralNet(Net, nn.MSELoss, module__n_outputs=2, train_split=None, verbose=0)
    net.fit(X.astype("f"), X[:, :2].astype("f"))
    split = FeatureSplit(FrozenEstimator(net)).fit(X)
    assert not is_classifier(split)
    assert not is_regressor(split)
    np.testing.assert_allclose(
        split.predict_from_features(split.transform(X)),
        split.predict(X),
        rtol=1e-4,
        atol=1e-6,
    )


# ---------------------------------------------------------------------------
# Training flatness
# ---------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["multinomial", "MLP", "net", "pipeline", "ridge"])
def test_training_flatness(name):
    case = CASES[name]
    split = fitted(case, training_flatness=True)
    expected = relative_flatness(split, case.X, case.y)
    assert split.training_flatness_.value == expected.value
    split = fitted(case, training_flatness={"normalize": "std"})
    expected = relative_flatness(split, case.X, case.y, normalize="std")
    assert split.training_flatness_.value == expected.value
    assert not hasattr(fitted(case), "training_flatness_")


def test_training_flatness_is_weighted_as_the_training():
    weight = np.random.default_rng(0).uniform(size=40)
    split = FeatureSplit(LogisticRegression(), training_flatness=True)
    split.fit(X, LABELS, sample_weight=weight)
    expected = relative_flatness(split, X, LABELS, sample_weight=weight)
    assert split.training_flatness_.value == expected.value
    plain = relative_flatness(split, X, LABELS)
    assert split.training_flatness_.value != plain.value


@pytest.mark.parametrize(
    ("model", "setting"),
    [
        (classifier(train_split=ValidSplit(5)), "train_split="),
        (MLPClassifier(early_stopping=True), "early_stopping=True"),
        (make_pipeline(StandardScaler(), SGDClassifier(early_stopping=True)), "early"),
    ],
    ids=["net", "MLP", "pipeline"],
)
def test_training_flatness_of_what_holds_samples_out_is_refused(model, setting):
    with pytest.raises(ValueError, match=setting):
        FeatureSplit(model, training_flatness=True).fit(X, LABELS)


def test_no_data_are_kept():
    many = np.tile(X, (200, 1))
    split = FeatureSplit(
        MLPClassifier((4,), max_iter=2, random_state=0), layer="coefs.0"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        split.set_params(training_flatness=True).fit(many, np.tile(LABELS, 200))
    assert len(pickle.dumps(split)) < 20_000 < many.nbytes
    again = pickle.loads(pickle.dumps(split))
    np.testing.assert_array_equal(again.predict(X), split.predict(X))


# ---------------------------------------------------------------------------
# scikit-learn around it
# ---------------------------------------------------------------------------
def test_search_over_parameters_of_the_model():
    search = GridSearchCV(
        FeatureSplit(LogisticRegression()),
        {"estimator__C": [0.1, 1.0], "layer": [None, "coef"]},
        cv=2,
        error_score="raise",
    )
    assert search.fit(X, LABELS).best_estimator_.layer_ == "coef"


def test_names_of_columns():
    iris = load_iris(as_frame=True)
    split = FeatureSplit(classifier(module__n_features=4)).fit(iris.data, iris.target)
    assert split.feature_names_in_.tolist() == list(iris.data.columns)
    frame = split.set_output(transform="pandas").transform(iris.data)
    assert list(frame.columns) == [f"featuresplit{i}" for i in range(16)]
    with pytest.raises(ValueError, match="feature names"):
        split.transform(iris.data.iloc[:, ::-1])


def test_metadata_reach_the_model():
    weight = np.random.default_rng(0).uniform(size=40)
    with config_context(enable_metadata_routing=True):
        model = LogisticRegression().set_fit_request(sample_weight=True)
        model = model.set_score_request(sample_weight=True)
        split = FeatureSplit(model).fit(X, LABELS, sample_weight=weight)
        score = split.score(X, LABELS, sample_weight=weight)
    expected = LogisticRegression().fit(X, LABELS, sample_weight=weight)
    np.testing.assert_array_equal(split.weight_, expected.coef_)
    assert score == expected.score(X, LABELS, sample_weight=weight)


def test_metadata_that_nobody_asked_for():
    split = FeatureSplit(LogisticRegression())
    with (
        config_context(enable_metadata_routing=True),
        pytest.raises(UnsetMetadataPassedError, match="sample_weight"),
    ):
        split.fit(X, LABELS, sample_weight=np.ones(40))


def test_refit_with_another_layer():
    split = FeatureSplit(MLPClassifier((4,), solver="lbfgs", random_state=0))
    assert split.fit(X, LABELS).layer_ == "coefs.1"
    assert split.set_params(layer="coefs.0").fit(X, LABELS).layer_ == "coefs.0"
    assert split.set_params(layer=None).fit(X, LABELS).layer_ == "coefs.1"


# ---------------------------------------------------------------------------
# Errors
# ---------------------------------------------------------------------------
def test_unfitted():
    split = FeatureSplit(LogisticRegression())
    for method in ("transform", "predict", "predict_from_features"):
        with pytest.raises(NotFittedError):
            getattr(split, method)(X)
    with pytest.raises(NotFittedError):
        relative_flatness(split, X, LABELS)
    with pytest.raises(NotFittedError):
        _ = split.weight_


@pytest.mark.parametrize(
    ("estimator", "options", "y", "error", "message"),
    [
        (LogisticRegression, {}, LABELS, TypeError, "an instance with a method fit"),
        ("logistic", {}, LABELS, TypeError, "an instance with a method fit"),
        (DecisionTreeClassifier(), {}, LABELS, TypeError, "Supported are"),
        (Ridge(), {"layer": "fc"}, REAL, ValueError, r"Choose one of \['coef'\]"),
        (Ridge(), {"layer": 1}, REAL, ValueError, "'layer' parameter"),
        (
            NeuralNetBinaryClassifier(Net, verbose=0),
            {},
            LABELS,
            ValueError,
            "Expected two classes for NeuralNetBinaryClassifier, got 3",
        ),
        (classifier(), {}, None, ValueError, "requires y to be passed"),
        (classifier(), {}, REAL, ValueError, "Unknown label type"),
        (
            adaptive(regressor(Flat)),
            {},
            REAL,
            ValueError,
            "module of a regressor to return a column",
        ),
    ],
)
def test_bad_parameters(estimator, options, y, error, message):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of the broadcast that is refused
        with pytest.raises(error, match=message):
            FeatureSplit(estimator, **options).fit(X, y)


def test_bad_features():
    split = fitted(CASES["MLP"])
    with pytest.raises(ValueError, match=r"the 3 features that enter layer 'coefs\.2'"):
        split.predict_from_features(X)
    with pytest.raises(ValueError, match="NaN"):
        split.predict_from_features(np.full((2, 3), np.nan))


def test_samples_of_other_sizes():
    split = FeatureSplit(classifier(AnySize), layer="conv").fit(IMAGES, FEW)
    larger = np.concatenate([IMAGES, IMAGES], axis=3)
    assert split.predict(larger).shape == (12,)
    with pytest.raises(ValueError, match="9 positions in layer 'conv', as in fit, got"):
        split.transform(larger)


@pytest.mark.parametrize(
    ("wrapper", "y"),
    [
        (FixedThresholdClassifier(LogisticRegression(), threshold=0.3), BINARY),
        (CalibratedClassifierCV(LogisticRegression(), ensemble=False), BINARY),
        (make_pipeline(TransformedTargetRegressor(Ridge(), func=np.sinh)), REAL),
    ],
    ids=["threshold", "calibration", "transformation"],
)
def test_what_a_wrapper_makes_of_the_outputs_is_not_guessed(wrapper, y):
    if isinstance(y[0], float):
        wrapper[-1].inverse_func = np.arcsinh
    split = FeatureSplit(wrapper).fit(X, y)
    np.testing.assert_array_equal(split.predict(X), clone(wrapper).fit(X, y).predict(X))
    np.testing.assert_array_equal(split.transform(X), X)
    inner = r"(FixedThreshold|Calibrated|TransformedTarget)\w+, which makes its own"
    with pytest.raises(ValueError, match=inner + r".*FeatureSplit\((Log|Ridge)"):
        split.predict_from_features(X)
