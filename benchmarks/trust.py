"""The property of tests/trust over many seeds: the right value, or a named refusal.

Run ``python benchmarks/trust.py``, from the repository: random modules, most of them
built to break what a measure might assume, each measured once and compared with brute
force in float64. ``--seed S --only`` runs a single case and shows what it is. Writes
``results/trust.json`` and ``.md``.
"""

import argparse
import sys
import time
from collections import Counter
from pathlib import Path

import torch
from _environment import environment, write_results

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.trust.property import make_trial, run_trial


def outcome(seed: int) -> tuple[str, str, str]:
    """Kind of module, what came of it, and the message of a failure."""
    name = make_trial(seed).name
    try:
        return name, run_trial(seed), ""
    except AssertionError as error:
        return name, "third thing", str(error)


def main() -> None:
    """Run the cases and write the counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="first seed")
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--only", action="store_true", help="the first seed alone")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.only:
        print(make_trial(args.seed))
        print(run_trial(args.seed))
        return
    start = time.perf_counter()
    results = [outcome(args.seed + i) for i in range(args.trials)]
    seconds = time.perf_counter() - start
    for _, what, message in results:
        if what == "third thing":
            print(message, file=sys.stderr)
    outcomes = ("value", "refusal", "third thing")
    counts = Counter((name, what) for name, what, _ in results)
    names = sorted({name for name, _, _ in results})
    lines = ["| module | " + " | ".join(outcomes) + " |", "|---|---|---|---|"]
    for name in names:
        cells = " | ".join(str(counts[name, what]) for what in outcomes)
        lines.append(f"| {name} | {cells} |")
    totals = {what: sum(counts[name, what] for name in names) for what in outcomes}
    lines.append("| all | " + " | ".join(str(totals[what]) for what in outcomes) + " |")
    payload = {
        "environment": environment(args.seed),
        "trials": args.trials,
        "seconds": round(seconds, 1),
        "totals": totals,
        "by_module": {
            name: {what: counts[name, what] for what in outcomes} for name in names
        },
    }
    write_results("trust", payload, "\n".join(lines))


if __name__ == "__main__":
    main()
