"""generalization_bound: its terms by hand, equation 5, and what it leaves alone."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_diabetes, load_iris
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV, ShuffleSplit
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch import NeuralNetClassifier
from torch import nn

from sklearn_relflat._flatness.relative_flatness import relative_flatness
from sklearn_relflat._representativeness.generalization_bound import (
    generalization_bound,
)
from sklearn_relflat._representativeness.representativeness import KDERepresentativeness
from sklearn_relflat._split.feature_split import FeatureSplit

X_IRIS, Y_IRIS = load_iris(return_X_y=True)
X_IRIS = StandardScaler().fit_transform(X_IRIS)
X_DIABETES, Y_DIABETES = load_diabetes(return_X_y=True)
LINEAR = LinearRegression().fit(X_DIABETES, Y_DIABETES)
LOGISTIC = LogisticRegression().fit(X_IRIS, Y_IRIS)
MLP = MLPClassifier((6,), activation="tanh", solver="lbfgs", alpha=1, random_state=0)
MLP.fit(X_IRIS, Y_IRIS)

PER_DELTA = [
    "bound",
    "representativeness",
    "representativeness_std",
    "representativeness_stderr",
    "monte_carlo_stderr",
    "flatness_term",
    "feature_robustness",
    "delta",
]
SINGLE = [
    "best_delta",
    "kappa",
    "n_features",
    "n_samples",
    "cross_validated_gap",
    "cross_validated_gap_std",
    "rate_exponent",
    "rate",
    "rate_flatness_term",
]


def bound(estimator=LOGISTIC, X=X_IRIS, y=Y_IRIS, **options):
    """generalization_bound with a seed."""
    return generalization_bound(estimator, X, y, **{"random_state": 0} | options)


@pytest.mark.parametrize("layer", [None, "coefs.0"])
def test_terms_by_hand(layer):
    result = bound(MLP, layer=layer, delta=0.2, refit="head")
    kappa = relative_flatness(MLP, X_IRIS, Y_IRIS, layer=layer)
    m = 4 if layer else 6
    assert set(result) == {*PER_DELTA, *SINGLE}
    assert result.n_features == m
    assert result.n_samples == 150
    assert result.kappa == pytest.approx(kappa.value, rel=1e-9)
    assert result.flatness_term == pytest.approx(0.2**2 / (2 * m) * kappa.value)
    assert result.bound == result.representativeness + result.flatness_term
    assert result.delta == result.best_delta == 0.2
    assert result.rate_exponent == -2 / (4 + m)
    assert result.rate == pytest.approx(150 ** (-2 / (4 + m)))
    assert result.rate_flatness_term == pytest.approx(
        150 ** (-2 / (4 + m)) * kappa.value / (2 * m)
    )


@pytest.mark.parametrize("refit", ["head", "estimator"])
def test_representativeness_is_that_of_the_estimator(refit):
    options = {"delta": 0.3, "kernel": "epanechnikov", "refit": refit}
    result = bound(random_state=3, **options)
    model = FrozenEstimator(LOGISTIC) if refit == "head" else LOGISTIC
    found = KDERepresentativeness(model, random_state=3, **options)
    found.fit(X_IRIS, Y_IRIS)
    for name in PER_DELTA[1:5]:
        assert result[name] == pytest.approx(getattr(found, f"{name}_"), rel=1e-9)
    gaps = found.split_gaps_
    assert result.cross_validated_gap == pytest.approx(gaps.mean(), rel=1e-9)
    assert result.cross_validated_gap_std == pytest.approx(gaps.std(ddof=1), rel=1e-9)
    robustness = found.smoothed_risk_ - found.empirical_risk_
    assert result.feature_robustness == pytest.approx(robustness, rel=1e-9)


def test_cross_validated_gap_is_that_of_scikit_learn():
    result = bound(
        LINEAR, X_DIABETES, Y_DIABETES, n_splits=100, refit="estimator", delta=1e-6
    )
    gaps = []
    for train, test in ShuffleSplit(100, test_size=0.2, random_state=0).split(
        X_DIABETES
    ):
        model = LinearRegression().fit(X_DIABETES[train], Y_DIABETES[train])
        squares = (Y_DIABETES - model.predict(X_DIABETES)) ** 2
        gaps.append(squares[test].mean() - squares[train].mean())
    noise = np.std(gaps) * np.sqrt(2 / 100)
    assert abs(result.cross_validated_gap - np.mean(gaps)) < 4 * noise
    assert result.cross_validated_gap_std == pytest.approx(np.std(gaps), rel=0.3)
    # Without a perturbation, representativeness is all of the gap.
    assert result.representativeness == pytest.approx(
        result.cross_validated_gap, rel=1e-6
    )


def test_gap_is_representativeness_plus_robustness():
    # Equation 5 with all terms known: for the squared error the flatness term times
    # E[r^2] is the robustness, exactly, and the risk on Gaussian data is known.
    rng = np.random.default_rng(0)
    m, n, noise, delta = 5, 40, 0.8, 0.6
    slope = rng.normal(size=m)
    X = rng.normal(size=(n, m))
    y = X @ slope + noise * rng.normal(size=n)
    model = LinearRegression(fit_intercept=False).fit(X, y)
    result = bound(model, X, y, delta=delta, kernel="uniform")
    risk = noise**2 + ((model.coef_ - slope) ** 2).sum()
    gap = risk - np.mean((y - model.predict(X)) ** 2)
    density = KDERepresentativeness(
        FrozenEstimator(model), delta=delta, kernel="uniform"
    ).fit(X, y)
    representativeness = risk - density.smoothed_risk_
    second_moment = m / (m + 2)  # of the uniform ball
    robustness = second_moment * result.flatness_term
    np.testing.assert_allclose(gap, representativeness + robustness, rtol=1e-9)
    np.testing.assert_allclose(result.feature_robustness, robustness, rtol=1e-9)


@pytest.mark.parametrize("refit", ["head", "estimator"])
def test_bound_is_the_gap_with_another_robustness(refit):
    # Within the splits equation 5 is an identity: for the squared error, bound minus
    # gap is the flatness term minus the refitted models' own robustness.
    deltas = np.array([0.1, 0.2, 0.4])
    result = bound(LINEAR, X_DIABETES, Y_DIABETES, delta=deltas, refit=refit)
    robustness = result.cross_validated_gap - result.representativeness
    np.testing.assert_allclose(robustness / robustness[0], [1, 4, 16], rtol=1e-9)
    # They are fitted to fewer samples, with coefficients that are larger or smaller.
    second_moment = result.feature_robustness / result.flatness_term
    np.testing.assert_allclose(second_moment, second_moment[0], rtol=1e-9)
    assert 10 / 12 * 0.9 < second_moment[0] < 10 / 12
    np.testing.assert_allclose(robustness, result.feature_robustness, rtol=0.3)


@pytest.mark.parametrize("refit", ["head", "estimator"])
def test_a_grid_gives_what_each_delta_gives(refit):
    grid = [0.5, 0.05, 0.2]
    options = {"refit": refit, "n_splits": 3}
    result = bound(delta=grid, **options)
    for name in PER_DELTA:
        assert result[name].shape == (3,)
    for i, delta in enumerate(grid):
        alone = bound(delta=delta, **options)
        for name in PER_DELTA:
            assert isinstance(alone[name], float)
            assert alone[name] == pytest.approx(result[name][i], rel=1e-9)
        for name in set(SINGLE) - {"best_delta"}:
            assert alone[name] == pytest.approx(result[name], rel=1e-9)
    assert result.best_delta == grid[int(np.argmin(result.bound))]


def test_approximates_the_gap_of_least_squares_on_average():
    rng = np.random.default_rng(0)
    m, n, noise = 5, 40, 1.0
    bounds, gaps = [], []
    for seed in range(60):
        slope = rng.normal(size=m)
        X = rng.normal(size=(n, m))
        y = X @ slope + noise * rng.normal(size=n)
        model = LinearRegression(fit_intercept=False).fit(X, y)
        risk = noise**2 + ((model.coef_ - slope) ** 2).sum()
        gaps.append(risk - np.mean((y - model.predict(X)) ** 2))
        result = bound(model, X, y, n_splits=4, test_size=4, random_state=seed)
        bounds.append(result.bound)
    # A model fitted to 36 of 40 samples has a gap that is larger by 12 %, or so.
    stderr = np.sqrt((np.var(bounds) + np.var(gaps)) / 60)
    assert abs(np.mean(bounds) - 1.12 * np.mean(gaps)) < 4 * stderr


# ---------------------------------------------------------------------------
# Models and data
# ---------------------------------------------------------------------------
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(4, 6)
        self.out = nn.Linear(6, 3)

    def forward(self, X):
        return self.out(torch.tanh(self.hidden(X)))


def fitted_net(**options):
    """A small net, trained for a few epochs."""
    net = NeuralNetClassifier(
        Net,
        criterion=nn.CrossEntropyLoss,
        train_split=None,
        verbose=0,
        **{"max_epochs": 10, "lr": 0.1} | options,
    )
    return net.fit(X_IRIS.astype(np.float32), Y_IRIS)


MODELS = {
    "net": fitted_net(),
    "split net": FeatureSplit(fitted_net(), layer="hidden").fit(X_IRIS, Y_IRIS),
    "pipeline": make_pipeline(StandardScaler(), LogisticRegression()).fit(
        X_IRIS, Y_IRIS
    ),
    "search": GridSearchCV(LogisticRegression(), {"C": [0.1, 1]}).fit(X_IRIS, Y_IRIS),
    "ridge": Ridge().fit(X_IRIS, Y_IRIS),
}


@pytest.mark.parametrize("refit", ["head", "estimator"])
@pytest.mark.parametrize("name", MODELS)
def test_takes_every_kind_of_model(name, refit):
    model = MODELS[name]
    X = X_IRIS.astype(np.float32)
    result = bound(model, X, Y_IRIS, refit=refit, n_splits=2)
    assert all(np.isfinite(value) for value in result.values())
    kappa = relative_flatness(model, X, Y_IRIS)
    assert result.kappa == pytest.approx(kappa.value, rel=1e-5)
    if refit == "head":
        frozen = bound(FrozenEstimator(model), X, Y_IRIS, refit=refit, n_splits=2)
        assert frozen == result


def test_sum_criterion_counts_as_a_mean():
    net = fitted_net()
    X = X_IRIS.astype(np.float32)
    mean = bound(net, X, Y_IRIS, n_splits=2, refit="head")
    net.criterion_.reduction = "sum"
    summed = bound(net, X, Y_IRIS, n_splits=2, refit="head")
    for name in mean:
        assert summed[name] == pytest.approx(mean[name], rel=1e-6)


def test_reproducible_and_nothing_else_touched():
    model = fitted_net()
    X = X_IRIS.astype(np.float32)
    state = {k: v.clone() for k, v in model.module_.state_dict().items()}
    before = (np.random.get_state()[1].copy(), torch.get_rng_state())  # noqa: NPY002
    options = {"refit": "head", "n_splits": 3}
    first, again = (bound(model, X, Y_IRIS, **options) for _ in range(2))
    other = bound(model, X, Y_IRIS, random_state=None, **options)
    assert first == again
    assert first.bound != other.bound
    np.testing.assert_array_equal(before[0], np.random.get_state()[1])  # noqa: NPY002
    assert torch.equal(before[1], torch.get_rng_state())
    for name, value in model.module_.state_dict().items():
        assert torch.equal(value, state[name])


# ---------------------------------------------------------------------------
# Bad input
# ---------------------------------------------------------------------------
@pytest.mark.parametrize(
    "delta", [0, -0.1, np.nan, np.inf, [], [0.1, 0], [[0.1]], "auto", None, True]
)
def test_deltas_are_positive(delta):
    with pytest.raises(ValueError, match="Expected delta to be a positive number"):
        bound(delta=delta)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel": "gaussian"}, "'kernel' parameter of generalization_bound"),
        ({"refit": None}, "'refit' parameter of generalization_bound"),
        ({"n_splits": 1}, "'n_splits' parameter"),
        ({"test_size": 0.0}, "'test_size' parameter"),
        ({"layer": "fc"}, "'fc' of LogisticRegression does not exist"),
        ({"y": None}, "targets of the loss, got None"),
        ({"y": Y_IRIS + 7}, r"unseen labels \[7, 8, 9\]|\[3, 4"),
        ({"X": X_IRIS[:, :2]}, "X has 2 features, but .* 4 features"),
        ({"X": X_IRIS * np.nan}, "NaN"),
        ({"X": X_IRIS[:1], "y": Y_IRIS[:1]}, "got 1 sample"),
        ({"X": X_IRIS[:2], "y": Y_IRIS[:2], "test_size": 5}, "2 samples with test_s"),
        ({"X": np.zeros((150, 4))}, None),
    ],
)
def test_bad_input(options, message):
    if message is None:
        # Nothing is perturbed at the origin: the flatness is zero, the gap remains.
        result = bound(**options)
        assert result.kappa == result.flatness_term == result.feature_robustness == 0
        assert result.bound == pytest.approx(result.cross_validated_gap)
        return
    with pytest.raises(ValueError, match=message):
        bound(**options)


def test_misuse():
    with pytest.raises(NotFittedError):
        bound(LogisticRegression())
    with pytest.raises(TypeError, match="Expected a supported model"):
        bound(StandardScaler().fit(X_IRIS))
    with pytest.raises(ValueError, match="Expected an estimator that can be refitted"):
        bound(FrozenEstimator(LOGISTIC))
