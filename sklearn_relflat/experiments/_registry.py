"""The experiments by name: the modules of this folder without a leading underscore."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, cast

PACKAGE = "sklearn_relflat.experiments"


class Experiment(Protocol):
    """What a module has to offer to be run.

    Attributes
    ----------
    CLAIM : str
        What is tested, in a sentence.
    COST : dict of str to str
        Time that each preset takes on two cores.
    NEEDS_DATA : bool
        Whether the preset "full" reads a folder with CIFAR-10.
    PRESETS : dict of str to Config
        Frozen data classes of numbers, strings and tuples.
    tasks : callable
        ``tasks(config)``: list of dicts of JSON scalars, in the order of running.
    measure : callable
        ``measure(task, config, seed, data)``: list of records, dicts of JSON values;
        a function of its arguments alone.
    summarize : callable
        ``summarize(records, config, seed)``: JSON values; records in the order of
        tasks, each with the fields of its task.
    draw : callable
        ``draw(summary)``: a figure of matplotlib.
    """

    CLAIM: str
    COST: dict[str, str]
    NEEDS_DATA: bool
    PRESETS: dict[str, Any]
    tasks: Callable[[Any], list[dict[str, Any]]]
    measure: Callable[..., list[dict[str, Any]]]
    summarize: Callable[..., dict[str, Any]]
    draw: Callable[[dict[str, Any]], Any]


def experiment_names() -> list[str]:
    """Names of all experiments, without importing them.

    Returns
    -------
    names : list of str
        In alphabetical order.
    """
    found = pkgutil.iter_modules([str(Path(__file__).parent)])
    return sorted(found.name for found in found if not found.name.startswith("_"))


def load_experiment(module: str) -> Experiment:
    """Import an experiment.

    Parameters
    ----------
    module : str
        Name of an experiment, or the full name of a module that is one.

    Returns
    -------
    experiment : module
        The experiment.
    """
    name = f"{PACKAGE}.{module}" if module in experiment_names() else module
    return cast("Experiment", importlib.import_module(name))
