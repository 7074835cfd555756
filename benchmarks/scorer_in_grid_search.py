"""What RelativeFlatnessScorer adds to the wall time of the demo's grid search.

Run ``python benchmarks/scorer_in_grid_search.py``. The search is that of
``python -m sklearn_relflat``: the same nets, folds and seeds, with accuracy alone and
with accuracy and relative flatness, on training and test splits alike. Every training
is seeded, so both searches do the same work but for the scorer. Pairs of searches run
one after the other, in alternating order, and the ratios of their wall times are
compared. Beside them stands the processor time inside the scorer, which other programs
disturb less. Writes ``results/scorer_in_grid_search.json`` and ``.md``.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from _environment import environment, write_results
from sklearn.model_selection import ParameterGrid

from sklearn_relflat import RelativeFlatnessScorer
from sklearn_relflat._demo.experiment import (
    FLATNESS_LOSS,
    Config,
    load_data,
    make_search,
)

LIMIT = 0.10
SCORERS = {
    "squared error, as in the demo": RelativeFlatnessScorer(loss=FLATNESS_LOSS),
    "cross-entropy, the training loss": RelativeFlatnessScorer(),
    "cross-entropy, first layer": RelativeFlatnessScorer(layer="hidden_1"),
}


class Timed:
    """Scorer that adds up the processor time spent in another one."""

    def __init__(self, scorer: Callable) -> None:
        self.scorer = scorer
        self.seconds = 0.0
        self.n_calls = 0

    def __call__(self, *args, **kwargs) -> float:
        """Score, and add the time."""
        start = time.process_time()
        score = self.scorer(*args, **kwargs)
        self.seconds += time.process_time() - start
        self.n_calls += 1
        return score


def seconds_of_search(
    config: Config, scoring: dict, clock: Callable = time.perf_counter
) -> float:
    """Return how long one search takes."""
    X, _, y, _ = load_data(config)
    search = make_search(config, scoring)
    start = clock()
    search.fit(X, y)
    return clock() - start


def pairs_of_searches(config: Config, repeats: int) -> list[dict[str, float]]:
    """Return wall seconds of searches without and with the demo's scorer."""
    accuracy = {"accuracy": "accuracy"}
    scorer = RelativeFlatnessScorer(loss=FLATNESS_LOSS)
    variants = [("without", accuracy), ("with", {**accuracy, "flatness": scorer})]
    pairs = []
    for repeat in range(repeats):
        print(f"pair {repeat + 1} of {repeats}", flush=True)
        order = variants if repeat % 2 else variants[::-1]
        pairs.append(
            {name: seconds_of_search(config, scoring) for name, scoring in order}
        )
    return pairs


def inside_the_scorer(config: Config) -> dict[str, dict[str, float]]:
    """Return the processor time inside each scorer, in searches in one process."""
    rows = {}
    for name, scorer in SCORERS.items():
        print(f"in one process: {name}", flush=True)
        timed = Timed(scorer)
        scoring = {"accuracy": "accuracy", "relative_flatness": timed}
        total = seconds_of_search(config, scoring, time.process_time)
        rows[name] = {
            "seconds": total,
            "seconds_inside": timed.seconds,
            "extra": timed.seconds / (total - timed.seconds),
            "n_calls": timed.n_calls,
        }
    return rows


def table(payload: dict) -> str:
    """Write all results as Markdown."""
    conditions, config = payload["environment"], payload["config"]
    wall = payload["wall"]
    low, high = wall["quartiles"]
    lines = [
        "# RelativeFlatnessScorer in the demo's grid search",
        "",
        "`python benchmarks/scorer_in_grid_search.py`: "
        f"{config['n_candidates']} candidates in {config['n_folds']} folds of "
        f"{config['n_train']} digits, training and test splits scored, "
        f"{config['n_jobs']} processes on {conditions['cores']} cores at a load of "
        f"{conditions['load_average']}.",
        "",
        f"Extra wall time with the scorer of the demo: **{wall['extra']:+.1%}** "
        f"(median of {config['repeats']} pairs of searches, quartiles {low:+.1%} and "
        f"{high:+.1%}; a search with accuracy alone took {wall['seconds']:.1f} s), to "
        f"be at most {LIMIT:.0%}.",
        "",
        "Processor time inside the scorer, against all else in the same search in one "
        "process:",
        "",
        "| relative flatness for | extra time | a call |",
        "|---|---:|---:|",
    ]
    for name, row in payload["inside_the_scorer"].items():
        call = 1000 * row["seconds_inside"] / row["n_calls"]
        lines.append(f"| {name} | **{row['extra']:+.1%}** | {call:.1f} ms |")
    return "\n".join(lines)


def main() -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = Config(seed=arguments.seed)
    # Start the worker processes, and let them import everything.
    warm_up = Config.quick(n_jobs=config.n_jobs)
    seconds_of_search(warm_up, {"flatness": RelativeFlatnessScorer()})
    pairs = pairs_of_searches(config, arguments.repeats)
    extra = [pair["with"] / pair["without"] - 1 for pair in pairs]
    quartiles = statistics.quantiles(extra, n=4)
    conditions = {"load_average": round(os.getloadavg()[0], 1)}
    payload = {
        "environment": environment(arguments.seed) | conditions,
        "config": {
            "n_candidates": len(ParameterGrid(config.grid)),
            "n_folds": config.n_folds,
            "n_train": config.n_train,
            "n_jobs": config.n_jobs,
            "repeats": arguments.repeats,
        },
        "wall": {
            "pairs": pairs,
            "extra": quartiles[1],
            "quartiles": [quartiles[0], quartiles[2]],
            "seconds": statistics.median(pair["without"] for pair in pairs),
        },
        "inside_the_scorer": inside_the_scorer(replace(config, n_jobs=1)),
    }
    write_results("scorer_in_grid_search", payload, table(payload))


if __name__ == "__main__":
    main()
