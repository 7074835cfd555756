"""The experiments' command line: ``python -m sklearn_relflat.experiments``."""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from sklearn_relflat.experiments._registry import experiment_names, load_experiment

DESCRIPTION = """\
Experiments on relative flatness, one for each claim.

  list          names, claims, and what they cost
  NAME [NAME]   runs experiments; "all" is all of them

Results are written as they arrive. A run that was stopped, or killed, goes on from
there with the same command, and ends with the same numbers."""


def _seed(text: str) -> int:
    """Return a seed that NumPy takes."""
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(
            f"expected a whole number from 0 to {2**32 - 1}, got {text!r}"
        )
    return int(text)


def _n_jobs(text: str) -> int:
    """Return a number of processes."""
    number = int(text) if text.removeprefix("-").isdecimal() else 0
    if number < -1 or number == 0:
        raise argparse.ArgumentTypeError(
            f"expected a number of processes, or -1 for all processors, got {text!r}"
        )
    return number if number > 0 else os.cpu_count() or 1


def _folder(text: str) -> Path:
    """Return a folder that is there."""
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"expected a folder that exists, got {text!r}")
    return Path(text)


def _out(text: str) -> Path:
    """Return a path where a folder is or can be."""
    if Path(text).exists() and not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"expected a folder, got the file {text!r}")
    return Path(text)


def _name(text: str) -> str:
    """Return the name of an experiment, or a word of the command line."""
    if text not in {"list", "all", *experiment_names()}:
        raise argparse.ArgumentTypeError(
            f"expected list, all, or one of {', '.join(experiment_names())}, "
            f"got {text!r}"
        )
    return text


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line.

    Parameters
    ----------
    arguments : sequence of str, default=None
        Arguments; None takes those of the process.

    Returns
    -------
    options : argparse.Namespace
        The options.
    """
    parser = argparse.ArgumentParser(
        prog="python -m sklearn_relflat.experiments",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", type=_name, nargs="+", metavar="NAME")
    parser.add_argument(
        "--preset",
        choices=["quick", "full"],
        default="quick",
        help="quick (default) takes seconds and shows little but that it runs; full "
        "is what the documentation reports",
    )
    parser.add_argument(
        "--out",
        type=_out,
        default=Path("results"),
        metavar="DIR",
        help="folder for the results, default: results",
    )
    parser.add_argument(
        "--data", type=_folder, metavar="DIR", help="folder with CIFAR-10"
    )
    parser.add_argument(
        "--jobs", type=_n_jobs, default=1, metavar="N", help="processes, default: 1"
    )
    parser.add_argument("--seed", type=_seed, default=0, metavar="S", help="default: 0")
    return parser.parse_args(arguments)


def listing() -> str:
    """Describe all experiments.

    Returns
    -------
    text : str
        Name, claim and cost of each.
    """
    parts = []
    for name in experiment_names():
        module = load_experiment(name)
        cost = ", ".join(f"{preset} {time}" for preset, time in module.COST.items())
        data = "; full needs --data" if module.NEEDS_DATA else ""
        text = f"{module.CLAIM}\nCost: {cost}{data}."
        lines = [
            textwrap.fill(line, 88, initial_indent="  ", subsequent_indent="  ")
            for line in text.splitlines()
        ]
        parts.append("\n".join([name, *lines]))
    return "\n\n".join(parts)


def main(arguments: Sequence[str] | None = None) -> int:
    """List or run experiments.

    Parameters
    ----------
    arguments : sequence of str, default=None
        Arguments of the command line; None takes those of the process.

    Returns
    -------
    status : int
        0, 1 after an error, or 130 if stopped.
    """
    options = parse(arguments)
    if "list" in options.names:
        print(listing())
        return 0

    # After the command line: torch takes seconds to load.
    from sklearn_relflat.experiments._run import run
    from sklearn_relflat.experiments._workers import WorkerError

    names = experiment_names() if "all" in options.names else options.names
    try:
        for name in names:
            run(
                name,
                options.preset,
                options.out,
                data=options.data,
                n_jobs=options.jobs,
                seed=options.seed,
            )
    except (ValueError, WorkerError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped. The same command goes on from here.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
