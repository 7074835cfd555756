"""Does a user who reads nothing get a good model: breast_cancer, nets.

Run ``python benchmarks/breast_cancer_choice.py``. Nets of skorch over width, weight
decay and epochs are fitted to 200 samples. Held-out log-loss of what `FlattestWithin`
chooses by relative flatness, without and with training losses in the search, of what
the smoothed risk chooses in today's defaults, and what each warned of; of the most
accurate candidate, and of the best one. Writes
``results/breast_cancer_choice.json`` and ``.md``.
"""

import argparse
import itertools
import time
import warnings
from typing import Any

import numpy as np
import torch
from _environment import environment, write_results
from sklearn.datasets import load_breast_cancer
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV, StratifiedKFold, train_test_split
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from smoothed_risk import SeededClassifier
from torch import nn

from sklearn_relflat import (
    FlattestWithin,
    RelativeFlatnessScorer,
    SmoothedRiskScorer,
    SmoothedRiskSearchCV,
    WholeSample,
)

NAME = "breast_cancer_choice"
N_TRAIN = 200
# Losses that differ by less are a tie, in nats.
TIE = 0.005
GRID = {
    "net__module__width": [8, 64],
    "net__optimizer__weight_decay": [0.0, 0.01],
    "net__max_epochs": [5, 20, 80],
}
RULES = {
    "flattest": "`FlattestWithin(0.02)` by relative flatness",
    "alike": "the same, with `neg_log_loss` in the search",
    "search": "`SmoothedRiskSearchCV`, defaults",
    "scorer": "`SmoothedRiskScorer` with `WholeSample`",
    "accurate": "most accurate in 3 folds",
    "best": "best candidate",
}


class MLP(nn.Sequential):
    """One hidden layer for 30 features and two classes."""

    def __init__(self, width: int) -> None:
        super().__init__(nn.Linear(30, width), nn.ReLU(), nn.Linear(width, 2))


def as_float32(X: np.ndarray) -> np.ndarray:
    """Cast to what torch computes in."""
    return X.astype(np.float32)


def make_model() -> object:
    """Pipeline of a scaler, a cast and a net."""
    net = SeededClassifier(
        MLP,
        module__width=8,
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.Adam,
        optimizer__lr=0.01,
        optimizer__weight_decay=0.0,
        batch_size=32,
        max_epochs=5,
        train_split=None,
        verbose=0,
        random_state=0,
    )
    cast = FunctionTransformer(as_float32)
    return Pipeline([("scale", StandardScaler()), ("cast", cast), ("net", net)])


def one_split(seed: int) -> dict:
    """Held-out losses of what each rule chooses on one split."""
    X, y = load_breast_cancer(return_X_y=True)
    X, X_new, y, y_new = train_test_split(
        X, y, train_size=N_TRAIN, stratify=y, random_state=seed
    )
    names, values = list(GRID), itertools.product(*GRID.values())
    candidates = [dict(zip(names, point, strict=True)) for point in values]
    held_out = []
    for parameters in candidates:
        model = make_model().set_params(**parameters).fit(X, y)
        held_out.append(float(log_loss(y_new, model.predict_proba(X_new))))

    def loss_of(parameters: dict) -> float:
        return held_out[candidates.index(parameters)]

    folds = StratifiedKFold(3, shuffle=True, random_state=seed)
    scoring = {"accuracy": "accuracy", "relative_flatness": RelativeFlatnessScorer()}
    found: dict = {"best": min(held_out), "warnings": {}}

    def search_by(rule: str, search: Any) -> Any:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            search.fit(X, y)
        found[rule] = loss_of(search.best_params_)
        # A fit may warn as often as there are candidates.
        found["warnings"][rule] = sorted({str(w.message) for w in caught})
        return search

    for rule, more in (("flattest", {}), ("alike", {"neg_log_loss": "neg_log_loss"})):
        search = search_by(
            rule,
            GridSearchCV(
                make_model(),
                GRID,
                scoring=scoring | more,
                cv=folds,
                refit=FlattestWithin(0.02),
                return_train_score=True,
                error_score="raise",
            ),
        )
    accuracy = search.cv_results_["mean_test_accuracy"]
    found["accurate"] = loss_of(search.cv_results_["params"][int(accuracy.argmax())])
    start = time.perf_counter()
    smoothed = search_by("search", SmoothedRiskSearchCV(make_model(), GRID))
    found["search_fits"] = int(smoothed.n_fits_)
    found["search_seconds"] = time.perf_counter() - start
    search_by(
        "scorer",
        GridSearchCV(
            make_model(),
            GRID,
            scoring=SmoothedRiskScorer(),
            cv=WholeSample(),
            error_score="raise",
        ),
    )
    return found


def table(rows: list[dict]) -> str:
    """Held-out losses, one column a rule, and their differences."""
    rules = list(RULES)

    def line(head: object, cells: list[str]) -> str:
        return f"| {head} | {' | '.join(cells)} |"

    losses = np.array([[row[key] for key in rules] for row in rows])
    apart = losses - losses[:, [rules.index("accurate")]]
    error = apart.std(axis=0, ddof=1) / len(rows) ** 0.5
    differences = [
        f"{m:+.3f} ± {e:.3f}" for m, e in zip(apart.mean(axis=0), error, strict=True)
    ]
    counts = [
        f"{(column < -TIE).sum()}, {(abs(column) <= TIE).sum()}, {(column > TIE).sum()}"
        for column in apart.T
    ]
    lines = [
        "# Which net does each rule choose on breast_cancer?",
        "",
        f"`python benchmarks/{NAME}.py`: {N_TRAIN} training samples, "
        f"{np.prod([len(v) for v in GRID.values()])} nets; held-out log-loss of the "
        f"choice on {len(rows)} splits, and its difference from that of the most "
        "accurate candidate with the standard error over splits.",
        "",
        line("split", list(RULES.values())),
        "|---:|" + "---:|" * len(rules),
        *(
            line(i, [f"{value:.3f}" for value in values])
            for i, values in enumerate(losses)
        ),
        line("mean", [f"{value:.3f}" for value in losses.mean(axis=0)]),
        line("difference", differences),
        line("better, tied, worse", counts),
    ]
    lines += ["", "Splits on which a rule warned:", ""]
    for key in rows[0]["warnings"]:
        warned = sum(bool(row["warnings"][key]) for row in rows)
        lines.append(f"- {RULES[key]}: {warned} of {len(rows)}")
    return "\n".join(lines)


def main() -> None:
    """Run all splits, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--splits", type=int, default=20)
    options = parser.parse_args()
    rows = []
    for split in range(options.splits):
        rows.append(one_split(options.seed + split))
        print(rows[-1], flush=True)
    payload = {"environment": environment(options.seed), "splits": rows}
    write_results(NAME, payload, table(rows))


if __name__ == "__main__":
    main()
