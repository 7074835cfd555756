"""Demo of relative flatness: ``python -m sklearn_relflat``."""

import argparse
from collections.abc import Sequence
from pathlib import Path

FIGURE = Path("relative_flatness_demo.png")


def _seed(text: str) -> int:
    """Return a seed that NumPy takes."""
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(
            f"expected a whole number from 0 to {2**32 - 1}, got {text!r}"
        )
    return int(text)


def _n_jobs(text: str) -> int:
    """Return a number of processes that joblib takes."""
    if not text.removeprefix("-").isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(
            f"expected a number of processes, or -1 for all processors, got {text!r}"
        )
    return int(text)


def _figure(text: str) -> Path:
    """Return a path that can be written to."""
    path = Path(text)
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(
            f"expected a file in a folder that exists, got {text!r}"
        )
    if path.suffix not in {".png", ".pdf", ".svg"}:
        raise argparse.ArgumentTypeError(
            f"expected a name that ends in .png, .pdf or .svg, got {text!r}"
        )
    return path


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
        prog="python -m sklearn_relflat",
        description="Relative flatness chooses among equally accurate models: a demo.",
    )
    parser.add_argument("--seed", type=_seed, default=0, help="default: 0")
    parser.add_argument(
        "--figure",
        type=_figure,
        default=FIGURE,
        metavar="PATH",
        help=f"file for the figure, default: {FIGURE}",
    )
    parser.add_argument(
        "--n-jobs", type=_n_jobs, default=2, help="number of processes, default: 2"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="so small that it takes seconds and shows nothing but the layout",
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the demo.

    Parameters
    ----------
    arguments : sequence of str, default=None
        Arguments of the command line; None takes those of the process.
    """
    options = parse(arguments)

    # After the command line: torch takes seconds to load.
    import torch

    from sklearn_relflat._demo.experiment import Config, run_demo
    from sklearn_relflat._demo.figure import save_figure
    from sklearn_relflat._demo.report import introduction, report

    # As in the worker processes, so that any number of them gives the same numbers.
    torch.set_num_threads(1)
    make_config = Config.quick if options.quick else Config
    config = make_config(seed=options.seed, n_jobs=options.n_jobs)
    print(introduction(config), flush=True)
    demo = run_demo(config)
    print(f"\n{report(demo)}\n")
    print(save_figure(demo, options.figure))
    print(f"Took {demo.seconds:.0f} seconds.")


if __name__ == "__main__":
    main()
