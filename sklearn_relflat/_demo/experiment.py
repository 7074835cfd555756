"""The demo's computation: nets in a grid search, and a logistic regression path."""

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import (
    GridSearchCV,
    ParameterGrid,
    StratifiedKFold,
    train_test_split,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.parallel import Parallel, delayed

from sklearn_relflat import (
    FlattestWithin,
    RelativeFlatness,
    RelativeFlatnessScorer,
    layerwise_relative_flatness,
    relative_flatness,
    smoothed_risk,
)
from sklearn_relflat._demo.training import counting_nets, make_net

# The squared error on the logits does not saturate where a net is confident of its
# training sample; the user guide says why that matters.
FLATNESS_LOSS = "squared_error"


@dataclass(frozen=True)
class Config:
    """What the demo computes."""

    seed: int = 0
    n_train: int = 600
    n_folds: int = 3
    tol: float = 0.01
    training_loss: float = 0.05
    max_epochs: int = 150
    n_hidden: int = 64
    batch_sizes: tuple[int, ...] = (16, 64, 256)
    sgd_rates: tuple[float, ...] = (0.01, 0.03, 0.06)
    adam_rates: tuple[float, ...] = (0.001, 0.003, 0.01)
    Cs: tuple[float, ...] = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)
    n_jobs: int = 2

    @property
    def grid(self) -> list[dict[str, list[Any]]]:
        """Ways to train the same net."""
        batches: dict[str, list[Any]] = {"net__batch_size": list(self.batch_sizes)}
        sgd: dict[str, list[Any]] = {
            "net__optimizer": [torch.optim.SGD],
            "net__optimizer__momentum": [0.9],
            "net__lr": list(self.sgd_rates),
        }
        adam: dict[str, list[Any]] = {
            "net__optimizer": [torch.optim.Adam],
            "net__lr": list(self.adam_rates),
        }
        return [sgd | batches, adam | batches]

    @classmethod
    def quick(cls, seed: int = 0, n_jobs: int = 2) -> "Config":
        """Return so little that it takes seconds and shows nothing."""
        return cls(
            seed=seed,
            n_train=300,
            n_folds=2,
            training_loss=0.2,
            max_epochs=30,
            n_hidden=16,
            batch_sizes=(32,),
            sgd_rates=(0.03, 0.1),
            adam_rates=(0.003, 0.01),
            Cs=(0.01, 1.0, 100.0),
            n_jobs=n_jobs,
        )


@dataclass(frozen=True)
class Scores:
    """A fitted model on its training sample and on held-out samples."""

    flatness: RelativeFlatness
    flatness_of_training_loss: RelativeFlatness
    held_out_losses: np.ndarray = field(repr=False)
    held_out_hits: np.ndarray = field(repr=False)
    smoothed_risk: float = float("nan")

    @property
    def training_loss(self) -> float:
        """Mean cross-entropy on the training sample."""
        return self.flatness_of_training_loss.mean_loss

    @property
    def held_out_loss(self) -> float:
        """Mean cross-entropy on the held-out samples."""
        return float(self.held_out_losses.mean())

    @property
    def gap(self) -> float:
        """Held-out minus training loss."""
        return self.held_out_loss - self.training_loss

    @property
    def gap_stderr(self) -> float:
        """Standard error of the gap, over the held-out samples."""
        n = len(self.held_out_losses)
        return float(self.held_out_losses.std(ddof=1) / n**0.5)

    @property
    def accuracy(self) -> float:
        """Share of the held-out samples that are classified correctly."""
        return float(self.held_out_hits.mean())


@dataclass(frozen=True)
class Candidate:
    """One candidate of the search, refitted on the whole training sample."""

    params: dict[str, Any]
    cv_accuracy: float
    cv_flatness: float
    scores: Scores

    def reached(self, training_loss: float) -> bool:
        """Tell whether the training ended at a loss, and not with its last epoch."""
        return self.scores.training_loss <= 1.01 * training_loss


@dataclass(frozen=True)
class Demo:
    """Everything that the demo found out."""

    config: Config
    n_held_out: int
    candidates: list[Candidate]
    chosen: int
    layers: dict[str, tuple[RelativeFlatness, RelativeFlatness]]
    path: dict[float, Scores]
    seconds: float


def make_search(
    config: Config,
    scoring: dict[str, Any],
    *,
    refit: Any = False,
    progress_file: str | None = None,
) -> GridSearchCV:
    """Make the grid search.

    Parameters
    ----------
    config : Config
        What to compute.
    scoring : dict of str to scorer
        Scores of the candidates.
    refit : bool, str or callable, default=False
        How to choose a candidate.
    progress_file : str, default=None
        File for `training.Tick`.

    Returns
    -------
    search : GridSearchCV
        Not fitted yet.
    """
    net = make_net(
        config.n_hidden,
        config.training_loss,
        config.max_epochs,
        config.seed,
        progress_file,
    )
    return GridSearchCV(
        net,
        config.grid,
        scoring=scoring,
        cv=StratifiedKFold(config.n_folds, shuffle=True, random_state=config.seed),
        # Relative flatness is a quantity of the training split.
        return_train_score=True,
        refit=refit,
        error_score="raise",
        n_jobs=config.n_jobs,
    )


def score_model(
    model: Any, train: tuple[np.ndarray, ...], held_out: tuple[np.ndarray, ...]
) -> Scores:
    """Measure a fitted model on both samples."""
    X, y = held_out
    probability = model.predict_proba(X).astype(np.float64)
    of_truth = probability[np.arange(len(y)), y]
    return Scores(
        flatness=relative_flatness(model, *train, loss=FLATNESS_LOSS),
        flatness_of_training_loss=relative_flatness(model, *train),
        # As scikit-learn's log_loss: no probability is taken for zero.
        held_out_losses=-np.log(np.maximum(of_truth, np.finfo(np.float64).eps)),
        held_out_hits=probability.argmax(axis=1) == y,
        # Behind the scaler, at the density's own radius; all models share the draws.
        smoothed_risk=smoothed_risk(model, *train, random_state=0).value,
    )


def fit_and_score(
    model: Any, train: tuple[np.ndarray, ...], held_out: tuple[np.ndarray, ...]
) -> Scores:
    """Fit a model and measure it."""
    return score_model(model.fit(*train), train, held_out)


def load_data(config: Config) -> list[np.ndarray]:
    """X_train, X_held_out, y_train, y_held_out."""
    X, y = load_digits(return_X_y=True)
    split: list[np.ndarray] = train_test_split(
        X, y, train_size=config.n_train, stratify=y, random_state=config.seed
    )
    return split


def logistic_path(
    config: Config, train: tuple[np.ndarray, ...], held_out: tuple[np.ndarray, ...]
) -> dict[float, Scores]:
    """Logistic regressions over their inverse penalty C."""
    path = {}
    for C in config.Cs:
        logistic = LogisticRegression(C=C, max_iter=10_000)
        model = make_pipeline(StandardScaler(), logistic)
        path[C] = fit_and_score(model, train, held_out)
    return path


def run_demo(config: Config, *, progress: bool = True) -> Demo:
    """Search, refit every candidate, and measure all on held-out samples.

    Parameters
    ----------
    config : Config
        What to compute.
    progress : bool, default=True
        Whether to draw a progress bar.

    Returns
    -------
    demo : Demo
        The results.
    """
    start = time.perf_counter()
    X_train, X_held_out, y_train, y_held_out = load_data(config)
    train, held_out = (X_train, y_train), (X_held_out, y_held_out)
    candidates = list(ParameterGrid(config.grid))
    # Every fold, every candidate on the whole training sample, and the chosen one.
    n_fits = len(candidates) * (config.n_folds + 1) + 1
    scoring = {
        "accuracy": "accuracy",
        "neg_log_loss": "neg_log_loss",
        "relative_flatness": RelativeFlatnessScorer(loss=FLATNESS_LOSS),
    }
    with counting_nets(n_fits, "training", not progress) as path:
        rule = FlattestWithin(config.tol)
        search = make_search(config, scoring, refit=rule, progress_file=path).fit(
            *train
        )
        scores = Parallel(n_jobs=config.n_jobs)(
            delayed(fit_and_score)(
                clone(search.estimator).set_params(**params), train, held_out
            )
            for params in candidates
        )
    results = search.cv_results_
    by_loss = [
        layerwise_relative_flatness(search.best_estimator_, *train, loss=loss)
        for loss in (FLATNESS_LOSS, None)
    ]
    return Demo(
        config=config,
        n_held_out=len(y_held_out),
        candidates=[
            Candidate(
                params=params,
                cv_accuracy=float(results["mean_test_accuracy"][i]),
                cv_flatness=-float(results["mean_train_relative_flatness"][i]),
                scores=scores[i],
            )
            for i, params in enumerate(results["params"])
        ],
        chosen=int(search.best_index_),
        layers={name: (by_loss[0][name], by_loss[1][name]) for name in by_loss[0]},
        path=logistic_path(config, train, held_out),
        seconds=time.perf_counter() - start,
    )
