"""An experiment of a second, for the tests of the runner."""

import time
from dataclasses import dataclass

import numpy as np

CLAIM = "Means of more numbers vary less."
COST = {"quick": "1 second", "slow": "5 seconds"}
NEEDS_DATA = False


@dataclass(frozen=True)
class Config:
    n_tasks: int = 6
    pause: float = 0.0
    fails_at: int = -1
    diverges: bool = False


PRESETS = {
    "quick": Config(),
    "slow": Config(n_tasks=10, pause=0.25),
    "failing": Config(fails_at=2),
    "nan": Config(diverges=True),
}


def tasks(config):
    return [{"number": number} for number in range(config.n_tasks)]


def measure(task, config, seed, data):
    time.sleep(config.pause)
    if task["number"] == config.fails_at:
        raise ZeroDivisionError("the third one")
    if config.diverges:
        return [{"half": 0, "mean": float("nan")}]
    rng = np.random.default_rng([seed, task["number"]])
    return [{"half": half, "mean": float(rng.normal())} for half in (0, 1)]


def summarize(records, config, seed):
    # The order is part of it: sums of floats depend on it, and so do the rows.
    return {"rows": records, "n_records": len(records)}


def draw(summary):
    from matplotlib.figure import Figure

    figure = Figure()
    figure.subplots().plot([row["mean"] for row in summary["rows"]])
    return figure
