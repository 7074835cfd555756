"""FlattestWithin: the choice among candidates, and what it refuses."""

import warnings

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV

from sklearn_relflat._selection.flattest_within import FlattestWithin

# Most of these choices are about scores alone.
pytestmark = pytest.mark.filterwarnings("ignore:.*no training losses to compare")

NAN, INF = np.nan, np.inf


def results(accuracy, flatness, split="train"):
    return {
        "mean_test_accuracy": accuracy,
        f"mean_{split}_relative_flatness": flatness,
    }


def slowly(accuracy, flatness, tol):
    """The rule in words, over the candidates one by one."""
    pairs = list(zip(accuracy, flatness, strict=True))
    finite = [i for i, pair in enumerate(pairs) if np.isfinite(pair).all()]
    best = max(accuracy[i] for i in finite)
    accurate = [i for i in finite if accuracy[i] >= best - tol]
    return max(accurate, key=lambda i: (flatness[i], accuracy[i], -i))


@pytest.mark.parametrize(
    ("accuracy", "flatness", "tol", "chosen"),
    [
        ([0.96, 0.95, 0.60], [-30, -20, -1], 0.02, 1),
        ([0.96, 0.95, 0.60], [-30, -20, -1], 0.0, 0),
        ([0.96, 0.95, 0.60], [-30, -20, -1], 1.0, 2),
        # The tolerance is one of decimals, not of binary fractions.
        ([0.96, 0.95, 0.60], [-30, -20, -1], 0.01, 1),
        ([0.3, 0.2, 0.1], [-3, -2, -1], 0.1, 1),
        # Ties: better accuracy, then the first.
        ([0.90, 0.91, 0.91], [-5, -5, -5], 0.05, 1),
        ([0.91, 0.91], [-5, -5], 0.0, 0),
        # What is not finite is no candidate, and does not set the standard.
        ([0.99, 0.95, 0.94], [NAN, -20, -10], 0.02, 2),
        ([NAN, 0.95, 0.94], [-1, -20, -10], 0.02, 2),
        ([0.95, 0.94], [-INF, -10], 0.02, 1),
        # Scores that are negative, such as a log-loss.
        ([-0.30, -0.31, -0.9], [-9, -8, -1], 0.02, 1),
    ],
)
def test_choice(accuracy, flatness, tol, chosen):
    assert FlattestWithin(tol)(results(accuracy, flatness)) == chosen


@pytest.mark.parametrize("seed", range(20))
def test_choice_against_the_rule_in_words(seed):
    rng = np.random.default_rng(seed)
    accuracy = rng.choice([0.7, 0.8, 0.85, 0.9, NAN], size=12)
    flatness = rng.choice([-30.0, -20.0, -10.0, NAN], size=12)
    chosen = FlattestWithin(0.06)(results(accuracy, flatness))
    assert chosen == slowly(accuracy, flatness, 0.06)
    assert isinstance(chosen, int)


def with_folds(n_folds):
    """Two candidates 0.02 apart; the better one has a standard error of 0.03 / 2."""
    folds = np.linspace(-1, 1, n_folds)
    folds *= 0.015 * np.sqrt(n_folds) / folds.std(ddof=1)
    cv_results = results([0.90, 0.88, 0.886], [-30, -20, -25])
    for i, deviation in enumerate(folds):
        cv_results[f"split{i}_test_accuracy"] = [0.90 + deviation, 0.88, 0.886]
        # Columns of other scores whose names end alike.
        cv_results[f"split{i}_test_balanced_test_accuracy"] = [9.0 * i, 0, 0]
        cv_results[f"split{i}_train_accuracy"] = [9.0 * i, 0, 0]
    return cv_results


@pytest.mark.parametrize("n_folds", [2, 5, 12])
def test_one_standard_error(n_folds):
    assert FlattestWithin("1se")(with_folds(n_folds)) == 2
    assert FlattestWithin(0.0149)(with_folds(n_folds)) == 2
    assert FlattestWithin(0.0139)(with_folds(n_folds)) == 0


def test_other_names_and_splits():
    cv_results = {
        "mean_test_auc": [0.9, 0.89],
        "mean_test_recorded": [-2.0, -1.0],
    }
    rule = FlattestWithin(0.05, metric="auc", flatness="recorded", split="test")
    assert rule(cv_results) == 1


@pytest.mark.parametrize(
    ("rule", "cv_results", "message"),
    [
        (
            FlattestWithin(),
            {"mean_test_accuracy": [1.0], "mean_test_relative_flatness": [1.0]},
            r"'mean_train_relative_flatness' in cv_results_, got \['mean_test_acc.*"
            "return_train_score=True.*split='test'",
        ),
        (
            FlattestWithin(metric="auc"),
            results([1.0], [1.0]),
            r"'mean_test_auc' in cv_results_, got \[.*Name the keys of scoring=",
        ),
        (FlattestWithin(split="valid"), results([1.0], [1.0]), "got 'valid'"),
        (
            FlattestWithin(),
            results([NAN, 1.0], [1.0, NAN]),
            "none among 2.*error_s",
        ),
        (FlattestWithin(-0.1), results([1.0], [1.0]), 'at least 0, or "1se", got -0.1'),
        (FlattestWithin("2se"), results([1.0], [1.0]), "got '2se'"),
        (FlattestWithin(True), results([1.0], [1.0]), "got True"),
        (FlattestWithin(NAN), results([1.0], [1.0]), "got nan"),
        (FlattestWithin([0.1]), results([1.0], [1.0]), r"got \[0.1\]"),
        (FlattestWithin("1se"), results([1.0], [1.0]), "two folds .* got 0 columns"),
    ],
)
def test_errors(rule, cv_results, message):
    with pytest.raises(ValueError, match=message):
        rule(cv_results)


# ---------------------------------------------------------------------------
# Training losses
# ---------------------------------------------------------------------------
def with_losses(accuracy, flatness, losses, key="neg_log_loss"):
    return results(accuracy, flatness) | {f"mean_train_{key}": -np.array(losses)}


def slowly_near_the_median(accuracy, flatness, losses, tol, loss_tol):
    """The rule with a limit in words, over the candidates one by one."""
    rows = list(zip(accuracy, flatness, losses, strict=True))
    finite = [i for i, row in enumerate(rows) if np.isfinite(row).all()]
    best = max(accuracy[i] for i in finite)
    accurate = sorted(
        (i for i in finite if accuracy[i] >= best - tol), key=lambda i: losses[i]
    )
    n = len(accurate)
    middle = [accurate[n // 2]] if n % 2 else accurate[n // 2 - 1 : n // 2 + 1]
    median = losses[max(middle, key=lambda i: accuracy[i])]
    near = [
        i
        for i in accurate
        if median / (1 + loss_tol) <= losses[i] <= median * (1 + loss_tol)
    ]
    return max(near, key=lambda i: (flatness[i], accuracy[i], -i))


@pytest.mark.parametrize(
    ("accuracy", "losses", "loss_tol", "chosen"),
    [
        # Each candidate is flatter than the one before it.
        ([0.96, 0.95, 0.96], [0.20, 0.25, 1e-4], 0.5, 1),
        ([0.96, 0.95, 0.96], [0.20, 0.25, 1e-4], 1e4, 2),
        ([0.96, 0.95, 0.96], [0.20, 0.25, 1e-4], 0.0, 0),
        # The limit is a ratio, the same above and below the median.
        ([0.95, 0.95, 0.95], [0.1, 0.2, 0.4], 1.0, 2),
        ([0.95, 0.95, 0.95], [0.4, 0.2, 0.1], 1.0, 2),
        ([0.95, 0.95, 0.95], [0.4, 0.2, 0.1], 0.99, 1),
        # Of two in the middle the more accurate one is the median.
        ([0.96, 0.95], [0.2, 1e-4], 0.5, 0),
        ([0.95, 0.96], [0.2, 1e-4], 0.5, 1),
        ([0.96, 0.96], [0.2, 1e-4], 0.5, 1),
        # Only accurate candidates have a say in it.
        ([0.96, 0.95, 0.5, 0.5, 0.5], [0.20, 0.25, 9, 9, 9], 0.5, 1),
        # A loss of zero is a small loss, and one that is not known no candidate.
        ([0.96, 0.95, 0.95], [0.0, 0.25, 0.0], 0.5, 2),
        ([0.96, 0.95, 0.95], [0.2, 0.25, NAN], 0.5, 1),
        ([0.96, 0.95, 0.95], [0.2, 0.25, INF], 0.5, 1),
    ],
)
def test_choice_near_the_median_loss(accuracy, losses, loss_tol, chosen):
    cv_results = with_losses(accuracy, [-20 + i for i in range(len(losses))], losses)
    assert FlattestWithin(0.02, loss_tol=loss_tol)(cv_results) == chosen


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("loss_tol", [0.0, 0.3, 2.0])
def test_choice_near_the_median_against_the_rule_in_words(seed, loss_tol):
    rng = np.random.default_rng(seed)
    accuracy = rng.choice([0.7, 0.8, 0.85, 0.86, 0.9, NAN], size=12)
    flatness = rng.choice([-30.0, -20.0, -10.0, NAN], size=12)
    losses = np.exp(rng.normal(size=12))
    losses[rng.integers(12)] = NAN
    rule = FlattestWithin(0.06, loss="ce", loss_tol=loss_tol)
    expected = slowly_near_the_median(accuracy, flatness, losses, 0.06, loss_tol)
    assert rule(with_losses(accuracy, flatness, losses, "ce")) == expected
    # As a ratio, the limit does not depend on the unit of the loss.
    assert rule(with_losses(accuracy, flatness, 1000 * losses, "ce")) == expected


UNEQUAL = [0.3, 0.3, 0.001]


@pytest.mark.parametrize(
    ("losses", "flatness", "warns"),
    [
        (UNEQUAL, [-30, -20, -1], True),
        ([0.001, 0.3, 0.3], [-30, -20, -1], True),
        ([0.0, 0.3, 0.3], [-30, -20, -1], True),
        # Alike, up to the factor that the benchmark found.
        ([0.3, 0.3, 0.151], [-30, -20, -1], False),
        ([0.3, 0.3, 0.149], [-30, -20, -1], True),
        # Flatness changed nothing.
        (UNEQUAL, [-1, -20, -30], False),
        # Not accurate, or not known.
        ([0.3, 0.3, 0.3, 9.0], [-30, -20, -1, -1], False),
        ([0.3, NAN, NAN], [-30, -20, -1], False),
        ([NAN, NAN, NAN], [-30, -20, -1], True),
    ],
)
@pytest.mark.parametrize("key", ["neg_log_loss", "ce"])
def test_warning_about_unequal_losses(losses, flatness, warns, key):
    accuracy = [0.96, 0.95, 0.96, 0.5][: len(losses)]
    cv_results = with_losses(accuracy, flatness, losses, key)
    named = None if key == "neg_log_loss" else key
    rule = FlattestWithin(0.02, loss=named, loss_tol=None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        chosen = rule(cv_results)
    assert chosen == slowly(accuracy, flatness, 0.02)
    assert len(caught) == warns
    if warns:
        (message,) = [str(warning.message) for warning in caught]
        for way_out in ("loss_tol=0.5", "StopAtTrainingLoss", "SmoothedRiskSearchCV"):
            assert way_out in message
        # The line of the caller.
        assert caught[0].filename == __file__
    if np.isfinite(losses).any():
        # Whoever sets the limit has thought about it.
        rule.set_params(loss=key, loss_tol=1e6)(cv_results)
        # As has who leaves it to us.
        careful = rule.set_params(loss=named, loss_tol="auto")(cv_results)
        assert careful == rule.set_params(loss_tol=0.5)(cv_results)
    if chosen != int(np.argmax(accuracy)):
        for loss_tol in (None, "auto"):
            rule.set_params(loss=None, loss_tol=loss_tol)
            with pytest.warns(UserWarning, match="no training losses to compare"):
                assert rule(results(accuracy, flatness)) == chosen


def test_training_losses_are_compared_by_default():
    """Losses that are known are used, and only what is not known is warned of."""
    accuracy, flatness = [0.96, 0.95, 0.96], [-30, -20, -1]
    assert FlattestWithin(0.02)(with_losses(accuracy, flatness, UNEQUAL)) == 1
    nowhere = with_losses(accuracy, flatness, [NAN] * 3)
    with pytest.warns(UserWarning, match="no training losses to compare"):
        assert FlattestWithin(0.02)(nowhere) == 2


@pytest.mark.parametrize(
    ("rule", "cv_results", "message"),
    [
        (
            FlattestWithin(loss="ce"),
            results([1.0], [1.0]),
            r"'mean_train_ce' in cv_results_.*return_train_score=True.*as loss=",
        ),
        (
            FlattestWithin(loss_tol=0.5),
            results([1.0], [1.0]),
            "for loss_tol=0.5, got loss=None and no 'neg_log_loss'.*Add 'neg_log_loss'",
        ),
        (
            FlattestWithin(loss="auc"),
            with_losses([1.0], [1.0], [-0.9], "auc"),
            "negative of a loss as 'auc', larger is better, got 0.9 in",
        ),
        (
            FlattestWithin(loss_tol=0.5),
            with_losses([1.0, 1.0], [1.0, NAN], [NAN, 1.0]),
            "and 'relative_flatness' and training loss, got none among 2",
        ),
        *(
            (
                FlattestWithin(loss_tol=tol),
                with_losses([1.0], [1.0], [0.1]),
                f"a finite number of at least 0, 'auto', or None, got {tol!r}",
            )
            for tol in (-0.1, NAN, INF, True, "1se")
        ),
    ],
)
def test_errors_about_losses(rule, cv_results, message):
    with pytest.raises(ValueError, match=message):
        rule(cv_results)


def negative_norm(estimator, X, y):
    """A stand-in for flatness that costs nothing."""
    return -np.linalg.norm(estimator.coef_)


def test_in_a_search():
    X, y = load_iris(return_X_y=True)
    search = GridSearchCV(
        LogisticRegression(max_iter=5000),
        {"C": [1e-4, 0.1, 1, 10]},
        scoring={"accuracy": "accuracy", "relative_flatness": negative_norm},
        return_train_score=True,
        refit=FlattestWithin(tol=0.03),
        error_score="raise",
    )
    search.fit(X, y)
    assert search.best_params_ == {"C": 0.1}
    # As any parameter of the search, the rule can be cloned and set.
    assert clone(search).refit.tol == 0.03
    assert search.set_params(refit__tol=1.0).fit(X, y).best_params_ == {"C": 1e-4}
    # What scikit-learn leaves out with a callable refit.
    assert not hasattr(search, "best_score_")
    with pytest.raises(KeyError):
        search.score(X, y)
    assert search.best_estimator_.score(X, y) > 0.3
    assert repr(FlattestWithin(tol="1se")) == "FlattestWithin(tol='1se')"


def test_equal_losses_in_a_search():
    X, y = load_iris(return_X_y=True)

    def fitted(**options):
        return GridSearchCV(
            LogisticRegression(max_iter=5000),
            {"C": [0.03, 0.1, 1, 2, 10]},
            scoring={
                "accuracy": "accuracy",
                "relative_flatness": negative_norm,
                "ce": "neg_log_loss",
            },
            return_train_score=True,
            refit=FlattestWithin(tol=0.1, loss="ce", **options),
            error_score="raise",
        ).fit(X, y)

    with pytest.warns(UserWarning, match="about the same training loss") as caught:
        assert fitted(loss_tol=None).best_params_ == {"C": 0.03}
    assert len(caught) == 1
    search = fitted()
    ratio = search.cv_results_["mean_train_ce"] / np.median(
        search.cv_results_["mean_train_ce"]
    )
    # The norm grows with C, so the flattest near the median is the first of them.
    assert search.best_index_ == np.flatnonzero((ratio >= 2 / 3) & (ratio <= 1.5))[0]
    assert search.best_index_ > 0
    assert search.best_index_ == fitted(loss_tol=0.5).best_index_
    assert clone(search).refit.loss_tol == "auto"
