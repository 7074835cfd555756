"""How far may training losses differ where FlattestWithin compares candidates.

Run ``python benchmarks/flatness_at_unequal_loss.py``. Logistic regressions over C and
scikit-learn's MLPs over weight decay and number of epochs, on three small data sets and
several splits: 3-fold accuracy, training loss and flatness of each candidate, and its
log-loss on held-out samples after a refit. Searches are then replayed on random subsets
of the candidates, because the spread of the training losses is what is varied: how
often is the flattest of the accurate candidates a worse probabilistic model than the
most accurate one, and what does a limit to the training losses change? Writes
``results/flatness_at_unequal_loss.json`` and ``.md``; ``--replay`` reads the fits of
the JSON file instead of fitting again.
"""

import argparse
import itertools
import json
import warnings
from pathlib import Path

import numpy as np
from _environment import environment, write_results
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedKFold, cross_validate, train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_relflat import RelativeFlatnessScorer

NAME = "flatness_at_unequal_loss"
DATA = {
    "breast_cancer": (load_breast_cancer, 200),
    "wine": (load_wine, 90),
    "digits": (load_digits, 400),
}
SCORING = {
    "accuracy": "accuracy",
    "neg_log_loss": "neg_log_loss",
    "cross_entropy": RelativeFlatnessScorer(),
    "squared_error": RelativeFlatnessScorer(loss="squared_error"),
}
TOLERANCE = 0.01
N_SUBSETS = 200
SUBSET_SIZES = (3, 4, 6)
N_RESAMPLES = 2000
BINS = (1.0, 1.25, 1.5, 2.0, 4.0, 10.0, 100.0, np.inf)
LOSS_TOLERANCES = (0.0, 0.1, 0.25, 0.5, 1.0, 3.0, 9.0)


def logistic(seed: int) -> list:
    """Logistic regressions, from the most to the least penalised."""
    return [
        LogisticRegression(C=C, max_iter=5000) for C in np.logspace(-3, 3, 13).tolist()
    ]


def mlps(seed: int) -> list:
    """Networks with one hidden layer."""
    grid = itertools.product((1e-4, 0.1, 1.0, 10.0), (5, 15, 50, 150))
    common = {
        "hidden_layer_sizes": (64,),
        "learning_rate_init": 0.01,
        "batch_size": 50,
        # Nothing but the number of epochs ends a training.
        "tol": 0.0,
        "n_iter_no_change": 1000,
        "random_state": seed,
    }
    return [MLPClassifier(alpha=alpha, max_iter=n, **common) for alpha, n in grid]


FAMILIES = {"logistic regression": logistic, "MLP": mlps}


def fit_all(data: str, family: str, seed: int) -> dict:
    """Cross-validate and refit every candidate of one split."""
    load, n_train = DATA[data]
    X, y = load(return_X_y=True)
    X_train, X_new, y_train, y_new = train_test_split(
        X, y, train_size=n_train, stratify=y, random_state=seed
    )
    rows = []
    for estimator in FAMILIES[family](seed):
        model = make_pipeline(StandardScaler(), estimator)
        found = cross_validate(
            model,
            X_train,
            y_train,
            scoring=SCORING,
            cv=StratifiedKFold(3, shuffle=True, random_state=seed),
            return_train_score=True,
            error_score="raise",
        )
        model.fit(X_train, y_train)
        row = {
            "accuracy": found["test_accuracy"].mean(),
            "cv_log_loss": -found["test_neg_log_loss"].mean(),
            "train": -found["train_neg_log_loss"].mean(),
            "new": log_loss(y_new, model.predict_proba(X_new)),
        }
        for name in ("cross_entropy", "squared_error"):
            row[name] = found[f"train_{name}"].mean()
        rows.append(row)
    candidates = {key: [float(f"{row[key]:.6g}") for row in rows] for key in rows[0]}
    return {"data": data, "family": family, "seed": seed, "candidates": candidates}


def columns(case: dict) -> dict[str, np.ndarray]:
    """Candidates of a case as arrays."""
    return {key: np.array(values) for key, values in case["candidates"].items()}


def replay(cases: list[dict], flatness: str, seed: int) -> list[dict]:
    """Choose within random subsets of the candidates of each case."""
    found = []
    for case in cases:
        table = columns(case)
        rng = np.random.default_rng([seed, case["seed"]])
        for _ in range(N_SUBSETS):
            size = rng.choice(SUBSET_SIZES)
            subset = np.sort(rng.choice(len(table["new"]), size=size, replace=False))
            part = {key: values[subset] for key, values in table.items()}
            choice = choose(part, flatness)
            if choice is not None:
                fits = (case["data"], case["family"], case["seed"])
                found.append({"fits": fits} | choice)
    return found


def choose(part: dict[str, np.ndarray], flatness: str) -> dict | None:
    """Flattest accurate candidate against the most accurate, if there is a choice."""
    accuracy, loss = part["accuracy"], np.log(np.maximum(part["train"], 1e-16))
    best = int(np.lexsort((np.arange(len(loss)), -accuracy))[0])
    admitted = np.flatnonzero(accuracy >= accuracy[best] - TOLERANCE - 1e-12)
    if len(admitted) < 2:
        return None

    def flattest(among: np.ndarray) -> float:
        order = np.lexsort((-accuracy[among], -part[flatness][among]))
        return float(part["new"][among[order[0]]])

    # Of the two in the middle the more accurate one, as FlattestWithin has it.
    ranked = admitted[np.argsort(loss[admitted], kind="stable")]
    middle = ranked[(len(ranked) - 1) // 2 : len(ranked) // 2 + 1]
    anchors = {
        "median": loss[middle[accuracy[middle].argmax()]],
        "most accurate": loss[best],
    }
    limited = {
        name: [
            flattest(admitted[np.abs(loss[admitted] - anchor) <= np.log1p(tol) + 1e-12])
            for tol in LOSS_TOLERANCES
        ]
        for name, anchor in anchors.items()
    }
    return {
        "spread": float(np.exp(np.ptp(loss[admitted]))),
        "most accurate": float(part["new"][best]),
        "flattest": flattest(admitted),
        "lowest": float(part["new"][admitted].min()),
        "limited": limited,
    }


def interval(moved: list[dict], seed: int) -> list[float]:
    """Percentiles 2.5 and 97.5 of the mean difference, over sets of fits."""
    groups: dict[tuple, list[float]] = {}
    for case in moved:
        groups.setdefault(case["fits"], []).append(difference(case))
    totals = np.array([[sum(values), len(values)] for values in groups.values()])
    rng = np.random.default_rng(seed)
    drawn = totals[rng.integers(len(totals), size=(N_RESAMPLES, len(totals)))].sum(1)
    return np.percentile(drawn[:, 0] / drawn[:, 1], [2.5, 97.5]).tolist()


def difference(case: dict) -> float:
    """Held-out log-loss of the flattest minus that of the most accurate."""
    return case["flattest"] - case["most accurate"]


def by_spread(found: list[dict], seed: int) -> list[dict]:
    """How often the flattest is worse than the most accurate, by spread."""
    rows = []
    for low, high in itertools.pairwise(BINS):
        part = [case for case in found if low <= case["spread"] < high]
        moved = [case for case in part if difference(case) != 0]
        gain = np.array([difference(case) for case in moved])
        row = {
            "from": low,
            "to": None if np.isinf(high) else high,
            "n": len(part),
            "n_other_choice": len(moved),
            "n_fits": len({case["fits"] for case in moved}),
        }
        if moved:
            row["worse"] = float((gain > 0).mean())
            row["mean_difference"] = float(gain.mean())
            row["interval"] = interval(moved, seed)
        rows.append(row)
    return rows


def by_limit(found: list[dict]) -> list[dict]:
    """Mean excess over the lowest held-out log-loss, by limit and anchor."""
    lowest = np.array([case["lowest"] for case in found])

    def excess(values: list[float]) -> float:
        return float((np.array(values) - lowest).mean())

    rows = [{"limit": "none", "median": excess([c["flattest"] for c in found])}]
    rows[0]["most accurate"] = rows[0]["median"]
    for i, tol in enumerate(LOSS_TOLERANCES):
        row: dict = {"limit": tol}
        for anchor in ("median", "most accurate"):
            row[anchor] = excess([c["limited"][anchor][i] for c in found])
        rows.append(row)
    rows.append({"limit": "most accurate candidate"})
    for anchor in ("median", "most accurate"):
        rows[-1][anchor] = excess([c["most accurate"] for c in found])
    return rows


def spread_table(rows: list[dict]) -> list[str]:
    """Write `by_spread` as Markdown."""
    lines = [
        "| largest / smallest training loss | searches | another choice | sets of fits "
        "| worse | mean difference in log-loss (95 %) |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        to = "more" if row["to"] is None else f"{row['to']:g}"
        counts = f"{row['n']} | {row['n_other_choice']} | {row['n_fits']}"
        seen = f"| {row['from']:g} to {to} | {counts} "
        if "worse" not in row:
            lines.append(f"{seen}| | |")
            continue
        low, high = row["interval"]
        mean = f"{row['mean_difference']:+.4f} ({low:+.4f} to {high:+.4f})"
        lines.append(f"{seen}| {row['worse']:.0%} | {mean} |")
    return lines


def limit_table(rows: list[dict]) -> list[str]:
    """Write `by_limit` as Markdown."""
    lines = [
        "| limit `loss_tol` | around the median | around the most accurate |",
        "|---|---:|---:|",
    ]
    return lines + [
        f"| {row['limit']} | {row['median']:.4f} | {row['most accurate']:.4f} |"
        for row in rows
    ]


def table(payload: dict) -> str:
    """Write all results as Markdown."""
    lines = [
        "# Flatness at unequal training loss",
        "",
        f"`python benchmarks/{NAME}.py`: {', '.join(DATA)}, "
        f"{' and '.join(FAMILIES)}, {payload['n_splits']} splits, "
        f"{N_SUBSETS} searches replayed for each over subsets of {SUBSET_SIZES} "
        f"candidates; those within {TOLERANCE} of the best 3-fold accuracy are "
        "admitted, and only searches with at least two of them count. Searches over "
        f"the same fits are not independent: there are {len(payload['cases'])} sets of "
        "fits.",
    ]
    for flatness, found in payload["results"].items():
        lines += [
            "",
            f"## Relative flatness for the {flatness.replace('_', '-')}",
            "",
            "How often the flattest has a higher held-out log-loss than the most "
            "accurate, where it is another candidate, and by how much on average "
            "(bootstrap over sets of fits):",
            "",
            *spread_table(found["by_spread"]),
            "",
            "Mean excess of the chosen one's held-out log-loss over the lowest among "
            "the admitted, with the training losses limited to within a factor of "
            "`1 + loss_tol`. With a limit of 0 there is nothing left to choose by "
            "flatness, so what the other rows gain on it is the part of flatness:",
            "",
            *limit_table(found["by_limit"]),
        ]
    return "\n".join(lines)


def main() -> None:
    """Fit, replay, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--replay", action="store_true")
    arguments = parser.parse_args()
    # Networks are stopped before they converge on purpose.
    warnings.simplefilter("ignore", ConvergenceWarning)
    file = Path(__file__).parent / "results" / f"{NAME}.json"
    if arguments.replay:
        payload = json.loads(file.read_text())
    else:
        payload = {
            "environment": environment(arguments.seed),
            "n_splits": arguments.splits,
            "cases": [],
        }
        jobs = itertools.product(DATA, FAMILIES, range(arguments.splits))
        for data, family, seed in jobs:
            print(data, family, seed, flush=True)
            payload["cases"].append(fit_all(data, family, arguments.seed + seed))
    payload["results"] = {}
    for flatness in ("cross_entropy", "squared_error"):
        found = replay(payload["cases"], flatness, arguments.seed)
        payload["results"][flatness] = {
            "by_spread": by_spread(found, arguments.seed),
            "by_limit": by_limit(found),
        }
    write_results(NAME, payload, table(payload))


if __name__ == "__main__":
    main()
