"""The theory's conditions, on data of which it is known whether they hold."""

import numpy as np
import pytest
import torch
from sklearn.base import BaseEstimator
from sklearn.datasets import (
    load_breast_cancer,
    load_diabetes,
    make_blobs,
    make_classification,
)
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import (
    LinearRegression,
    LogisticRegression,
    PoissonRegressor,
    RidgeClassifier,
)
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import StandardScaler
from skorch import NeuralNetClassifier
from torch import nn

from sklearn_relflat import (
    density_radius,
    flatness_diagnosis,
    relative_flatness,
    smoothed_risk,
)
from sklearn_relflat._selection.conditions import flatness_apart
from sklearn_relflat._selection.other_labels import other_labels

MINIMUM, LABELS, REPRESENTATIVE = (
    "minimum reached",
    "labels constant",
    "representative",
)
SEEDS = range(4)


def condition(diagnosis, name):
    """The first condition of a name."""
    return next(c for c in diagnosis.conditions if c.name == name)


def blobs(seed, spread):
    """Three classes, and a model of them."""
    rng = np.random.default_rng(seed)
    centers = 10 * np.eye(5)[rng.permutation(5)[:3]]
    X, y = make_blobs(300, centers=centers, cluster_std=spread, random_state=seed)
    X = StandardScaler().fit_transform(X)
    return X, y


def classes(seed, separation, flipped=0.0):
    """Two classes in ten features; a share of the labels is flipped."""
    X, y = make_classification(
        300,
        10,
        n_informative=3,
        n_redundant=4,
        class_sep=separation,
        flip_y=0,
        random_state=seed,
    )
    flips = np.random.default_rng(seed).random(300) < flipped
    return StandardScaler().fit_transform(X), np.where(flips, 1 - y, y)


def verdict_of_labels(X, y, **options):
    """Verdict on the labels, by a logistic regression."""
    model = LogisticRegression(max_iter=1000).fit(X, y)
    return condition(flatness_diagnosis(model, X, y, **options), LABELS).verdict


# ---------------------------------------------------------------------------
# Labels
# ---------------------------------------------------------------------------
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("separation", [3.0, 5.0])
def test_separated_classes_are_not_suspected(seed, separation):
    assert verdict_of_labels(*classes(seed, separation)) == "holds"


@pytest.mark.parametrize("seed", SEEDS)
def test_separated_blobs_are_not_suspected(seed):
    assert verdict_of_labels(*blobs(seed, 1.0)) == "holds"


@pytest.mark.parametrize("seed", SEEDS)
def test_flipped_labels_are_found(seed):
    X, y = classes(seed, 3.0, flipped=0.3)
    assert verdict_of_labels(X, y) == "fails"
    model = LogisticRegression().fit(X, y)
    found = condition(flatness_diagnosis(model, X, y), LABELS)
    # Two labels of independent flips differ with probability 2 * 0.3 * 0.7.
    assert found.low - 0.03 < 0.42 < found.high + 0.03
    assert "SmoothedRiskSearchCV" in found.sentence


@pytest.mark.parametrize("seed", SEEDS)
def test_overlapping_classes_are_found(seed):
    assert verdict_of_labels(*classes(seed, 0.5)) == "fails"
    assert verdict_of_labels(*blobs(seed, 12.0)) == "fails"


def test_flipped_labels_of_a_rare_class_are_found():
    # In absolute terms, little of the density carries the rare label.
    rng = np.random.default_rng(0)
    X = rng.normal(size=(2000, 3))
    y = (rng.random(2000) < 0.03).astype(int)
    assert verdict_of_labels(X, y) == "fails"


def test_share_is_that_of_the_definition():
    rng = np.random.default_rng(0)
    Z, y = rng.normal(size=(30, 4)) + 1.0, rng.integers(0, 3, 30)
    weight, radius = rng.uniform(0.5, 2.0, 30), 0.7
    shares = []
    for i in range(30):
        mass = np.zeros(30)
        for j in range(30):
            variance = (radius * np.linalg.norm(Z[j])) ** 2 / 4
            distance = np.sum((Z[i] - Z[j]) ** 2)
            mass[j] = weight[j] * np.exp(-distance / 2 / variance) * variance**-2
        mass[i] = 0.0
        shares.append(mass[y != y[i]].sum() / mass.sum())
    found = other_labels(Z, y, radius, sample_weight=weight)
    assert found.share == pytest.approx(np.average(shares, weights=weight))
    assert found.low < found.share < found.high


def test_share_does_not_depend_on_scale_or_order():
    X, y = classes(0, 1.0)
    radius = float(density_radius(X))
    share = other_labels(X, y, radius).share
    order = np.random.default_rng(0).permutation(300)
    assert other_labels(1e3 * X, y, radius).share == pytest.approx(share)
    assert other_labels(X[order], y[order], radius).share == pytest.approx(share)


def test_interval_covers_the_share_of_other_samples():
    hits = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        X, y = rng.normal(size=(200, 3)), rng.integers(0, 2, 200)
        found = other_labels(X, y, 0.5)
        hits += found.low <= 0.5 <= found.high
    assert hits >= 36


def test_no_other_label_has_a_positive_upper_end():
    Z = np.random.default_rng(0).normal(size=(50, 2))
    found = other_labels(Z, np.zeros(50), 0.5)
    assert found.share == 0.0 == found.low
    assert 0.0 < found.high < 0.1


def test_copies_with_another_label_count():
    Z = np.repeat(np.random.default_rng(0).normal(size=(40, 3)), 2, axis=0)
    assert other_labels(Z, np.tile([0, 1], 40), 0.05).share > 0.9


def test_many_samples_are_sampled():
    Z = np.random.default_rng(0).normal(size=(1500, 2))
    found = other_labels(Z, (Z[:, 0] > 0).astype(int), 0.1)
    assert found.n_queries == 1000
    assert found.share < 0.15


def test_regression_has_no_labels():
    X, y = load_diabetes(return_X_y=True)
    found = condition(flatness_diagnosis(LinearRegression().fit(X, y), X, y), LABELS)
    assert found.verdict == "not applicable"
    assert "regression" in found.sentence
    assert np.isnan(found.value)


def test_labels_of_other_encodings():
    X, y = classes(0, 3.0, flipped=0.3)
    names = np.array(["no", "yes"])[y]
    assert verdict_of_labels(X, names) == "fails"
    model = RidgeClassifier().fit(X, names)
    assert LABELS in flatness_diagnosis(model, X, names).failing
    X, y = blobs(0, 12.0)
    model = RidgeClassifier().fit(X, y)
    assert LABELS in flatness_diagnosis(model, X, y).failing


def test_learned_features_are_called_that():
    X, y = classes(0, 3.0)
    net = MLPClassifier((8,), solver="lbfgs", max_iter=2000, random_state=0).fit(X, y)
    behind = condition(flatness_diagnosis(net, X, y), LABELS)
    assert "learned from the labels" in behind.sentence
    before = condition(flatness_diagnosis(net, X, y, layer="input"), LABELS)
    assert "learned from the labels" not in before.sentence


def test_a_net_cannot_hide_flipped_labels_at_the_input():
    X, y = classes(0, 3.0, flipped=0.3)
    net = MLPClassifier((64,), solver="lbfgs", max_iter=2000, random_state=0).fit(X, y)
    assert net.score(X, y) > 0.95
    assert LABELS in flatness_diagnosis(net, X, y, layer="input").failing


class Pixels(nn.Module):
    """One class for each of four pixels."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 1)

    def forward(self, x):
        return self.conv(x)


def test_labels_of_pixels_are_not_compared():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(20, 1, 2, 2)).astype(np.float32)
    y = rng.integers(0, 3, size=(20, 2, 2))
    net = NeuralNetClassifier(
        Pixels, criterion=nn.CrossEntropyLoss, train_split=None, verbose=0
    ).partial_fit(X, y)
    found = condition(flatness_diagnosis(net, X, y), LABELS)
    assert found.verdict == "not applicable"
    assert "one label for each sample" in found.sentence


# ---------------------------------------------------------------------------
# The minimum
# ---------------------------------------------------------------------------
def test_least_squares_are_at_a_minimum():
    X, y = load_diabetes(return_X_y=True)
    diagnosis = flatness_diagnosis(LinearRegression().fit(X, y), X, y)
    found = condition(diagnosis, MINIMUM)
    assert found.verdict == "holds"
    assert found.value < 1e-9
    assert found.low == found.value == found.high


def test_gradient_is_scale_free():
    X, y = classes(0, 1.0)
    model = LogisticRegression(C=0.01).fit(X, y)
    flatness = relative_flatness(model, X, y)
    expected = flatness.gradient_norm * np.linalg.norm(model.coef_)
    value = condition(flatness_diagnosis(model, X, y), MINIMUM).value
    assert value == pytest.approx(expected / flatness.mean_loss)
    scaled = LogisticRegression().fit(X, y)
    scaled.coef_, scaled.intercept_ = model.coef_ / 10, model.intercept_
    again = condition(flatness_diagnosis(scaled, 10 * X, y), MINIMUM).value
    assert again == pytest.approx(value)


def test_separated_classes_have_no_minimum():
    X, y = blobs(0, 1.0)
    model = LogisticRegression(C=1e3, max_iter=10000).fit(X, y)
    assert condition(flatness_diagnosis(model, X, y), MINIMUM).verdict == "fails"


def test_untrained_nets_are_at_no_minimum():
    X, y = classes(0, 3.0)
    torch.manual_seed(0)
    net = NeuralNetClassifier(
        nn.Linear, module__in_features=10, module__out_features=2, verbose=0
    )
    net.set_params(criterion=nn.CrossEntropyLoss, max_epochs=1, lr=1e-6)
    net.initialize()
    with torch.no_grad():
        net.module_.weight.mul_(5)
    X = X.astype(np.float32)
    assert condition(flatness_diagnosis(net, X, y), MINIMUM).verdict == "fails"


def test_a_loss_that_may_be_negative_has_no_scale():
    X, y = load_diabetes(return_X_y=True)
    diagnosis = flatness_diagnosis(PoissonRegressor().fit(X, y), X, y)
    assert condition(diagnosis, MINIMUM).verdict == "not applicable"
    assert diagnosis.sentence.startswith("No condition could be checked")


# ---------------------------------------------------------------------------
# Representativeness
# ---------------------------------------------------------------------------
def test_refits_only_where_asked():
    X, y = classes(0, 3.0)
    found = condition(
        flatness_diagnosis(LogisticRegression().fit(X, y), X, y), REPRESENTATIVE
    )
    assert found.verdict == "not checked"
    assert "cv=5" in found.sentence


def test_error_is_that_of_the_folds():
    X, y = classes(0, 3.0)
    folds = [(np.arange(300) % 3 != k, np.arange(300) % 3 == k) for k in range(3)]
    splits = [(np.flatnonzero(a), np.flatnonzero(b)) for a, b in folds]
    model = LogisticRegression().fit(X, y)
    found = condition(flatness_diagnosis(model, X, y, cv=splits), REPRESENTATIVE)
    pairs = []
    for a, b in folds:
        refit = LogisticRegression().fit(X[a], y[a])
        p = refit.predict_proba(X[b])[np.arange(b.sum()), y[b]]
        smoothed = smoothed_risk(refit, X[a], y[a], layer=None, random_state=0)
        pairs.append((-np.log(p).mean(), smoothed.value))
    risks, smoothed = np.transpose(pairs)
    assert found.value == pytest.approx(np.mean(risks - smoothed) / np.mean(risks))
    assert found.low < found.value < found.high


def test_noise_is_represented():
    # Where nothing can be learned, a cautious model has the same loss everywhere.
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(400, 3)), rng.integers(0, 2, 400)
    model = LogisticRegression(C=1e-3).fit(X, y)
    found = condition(flatness_diagnosis(model, X, y, cv=5), REPRESENTATIVE)
    assert found.verdict == "holds"


def test_far_too_large_a_radius_is_found():
    X, y = classes(0, 3.0)
    model = LogisticRegression().fit(X, y)
    diagnosis = flatness_diagnosis(model, X, y, cv=5, radius=3.0)
    found = condition(diagnosis, REPRESENTATIVE)
    assert found.verdict == "fails"
    assert found.value < 0
    assert "too large" in found.sentence
    assert diagnosis.radii == {"LogisticRegression": 3.0}


def test_what_cannot_be_fitted_again_is_skipped():
    X, y = classes(0, 3.0)
    frozen = FrozenEstimator(LogisticRegression().fit(X, y))
    found = condition(flatness_diagnosis(frozen, X, y, cv=5), REPRESENTATIVE)
    assert found.verdict == "not checked"
    assert "FrozenEstimator" in found.sentence
    X = X.astype(np.float32)
    net = NeuralNetClassifier(
        nn.Linear(10, 2), criterion=nn.CrossEntropyLoss, max_epochs=1, verbose=0
    ).fit(X, y)
    found = condition(flatness_diagnosis(net, X, y, cv=2), REPRESENTATIVE)
    assert found.verdict == "not checked"
    assert "trained again from the start" in found.sentence


def test_what_is_no_estimator_of_scikit_learn_is_skipped():
    class Odd(BaseEstimator):
        """A model whose parameters it does not keep, so that it cannot be cloned."""

        def __init__(self, inner=None):
            self.inner = [inner]

        def _as_torch_model(self):
            from sklearn_relflat._models.view import as_torch_model

            return as_torch_model(self.inner[0])

    X, y = classes(0, 3.0)
    odd = Odd(LogisticRegression().fit(X, y))
    found = condition(flatness_diagnosis(odd, X, y, cv=2), REPRESENTATIVE)
    assert found.verdict == "not checked"
    assert "cannot be fitted again" in found.sentence


def test_a_fold_without_a_class_is_skipped():
    X, y = blobs(0, 1.0)
    order = np.argsort(y, kind="stable")
    splits = [(order[:200], order[200:]), (order[100:], order[:100])]
    model = LogisticRegression().fit(X, y)
    found = condition(flatness_diagnosis(model, X, y, cv=splits), REPRESENTATIVE)
    assert found.verdict == "not checked"


def test_one_fold_is_refused():
    X, y = classes(0, 3.0)
    model = LogisticRegression().fit(X, y)
    splits = [(np.arange(200), np.arange(200, 300))]
    with pytest.raises(ValueError, match="at least two folds"):
        flatness_diagnosis(model, X, y, cv=splits)


def test_weights_count():
    X, y = classes(0, 3.0, flipped=0.3)
    clean = classes(0, 3.0)[1] == y
    weight = np.where(clean, 1.0, 1e-6)
    model = LogisticRegression().fit(X, y, sample_weight=weight)
    diagnosis = flatness_diagnosis(model, X, y, sample_weight=weight, cv=3)
    assert condition(diagnosis, LABELS).verdict == "holds"
    assert np.isfinite(condition(diagnosis, REPRESENTATIVE).value)


# ---------------------------------------------------------------------------
# Candidates
# ---------------------------------------------------------------------------
@pytest.fixture(scope="module")
def candidates():
    X, y = load_breast_cancer(return_X_y=True)
    X = StandardScaler().fit_transform(X)
    models = [
        LogisticRegression(C=C, max_iter=20000).fit(X, y)
        for C in np.geomspace(1e-5, 1e-1, 12)
    ]
    return models, X, y


def test_flatness_that_ranks_by_the_training_loss_is_found(candidates):
    models, X, y = candidates
    diagnosis = flatness_diagnosis(models, X, y)
    assert "training losses alike" in diagnosis.failing
    # Barely trained models are the flatter, the less they have learned.
    assert "flatness apart from loss" in diagnosis.failing
    names = [c.name for c in diagnosis.conditions]
    assert names.count(MINIMUM) == len(models)
    assert names.count("training losses alike") == 1


def test_equal_models_are_comparable(candidates):
    models, X, y = candidates
    diagnosis = flatness_diagnosis(models[5:7], X, y)
    assert condition(diagnosis, "training losses alike").verdict == "holds"
    apart = condition(diagnosis, "flatness apart from loss")
    assert apart.verdict == "not checked"


def test_few_models_tell_nothing_of_a_correlation():
    kappas, losses = np.arange(5.0), np.arange(5.0) + 1
    assert flatness_apart(kappas, losses).verdict == "unclear"
    assert flatness_apart(np.arange(40.0), np.arange(40.0)).verdict == "fails"
    rng = np.random.default_rng(0)
    assert flatness_apart(rng.normal(size=200), np.arange(200.0)).verdict == "holds"
    assert flatness_apart(kappas, np.ones(5)).verdict == "not checked"


def test_one_loss_for_all():
    X, y = classes(0, 3.0)
    models = [LogisticRegression().fit(X, y), RidgeClassifier().fit(X, y)]
    with pytest.raises(ValueError, match="trained with one loss"):
        flatness_diagnosis(models, X, y)


# ---------------------------------------------------------------------------
# The report
# ---------------------------------------------------------------------------
def test_every_number_has_its_threshold_and_reason(candidates):
    models, X, y = candidates
    for c in flatness_diagnosis(models[:5], X, y).conditions:
        assert c.sentence.endswith(".")
        if c.verdict in ("holds", "fails", "unclear"):
            assert c.low <= c.value <= c.high
            assert c.holds_below <= c.fails_above
            assert c.reason


def test_text_frame_and_html():
    X, y = classes(0, 3.0, flipped=0.3)
    diagnosis = flatness_diagnosis(LogisticRegression().fit(X, y), X, y, cv=3)
    text = str(diagnosis)
    assert "these fail: labels constant" in diagnosis.sentence
    for c in diagnosis.conditions:
        for part in (c.name, c.sentence, c.reason):
            assert part in text
    table = diagnosis.frame()
    assert list(table["verdict"]) == [c.verdict for c in diagnosis.conditions]
    html = diagnosis._repr_html_()
    assert html.count("<tr>") == 4
    assert 'href="user_guide/comparing.html"' in html
    assert repr(diagnosis) == f"<FlatnessDiagnosis: {diagnosis.sentence}>"


def test_what_is_true_of_several_models_is_said_once(candidates):
    models, X, y = candidates
    diagnosis = flatness_diagnosis(models[5:7], X, y)
    text = str(diagnosis)
    sentence = condition(diagnosis, LABELS).sentence
    assert text.count(sentence) == 1
    assert text.startswith("2 models on 569 samples")


def test_same_seed_same_numbers():
    X, y = classes(0, 1.0)
    model = LogisticRegression().fit(X, y)
    one, two = (
        flatness_diagnosis(model, X, y, cv=2, random_state=np.random.RandomState(3))
        for _ in range(2)
    )
    assert one.rows() == two.rows()


def test_errors_name_the_model():
    X, y = classes(0, 1.0)
    with pytest.raises(TypeError) as caught:
        flatness_diagnosis({"mine": object()}, X, y)
    assert caught.value.__notes__ == ["While measuring the model 'mine'."]
    with pytest.raises(ValueError, match="shape to be one of"):
        flatness_diagnosis(LogisticRegression().fit(X, y), X, y, shape="round")


def test_features_that_are_all_zero_have_no_local_densities():
    with pytest.raises(ValueError, match=r"features that are not all zero, got 6 sam"):
        other_labels(np.zeros((6, 3)), np.array([0, 1, 0, 1, 0, 1]), 0.5)
