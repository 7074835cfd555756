"""The same minima with other weights: which measures still tell the gap."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sklearn_relflat import (
    output_change,
    reparameterize_layers,
    reparameterize_neurons,
)
from sklearn_relflat.experiments import figure5
from sklearn_relflat.experiments._all_measures import measure_network
from sklearn_relflat.experiments._images import CIFAR10, DIGITS, Images, load_images
from sklearn_relflat.experiments._lenet import LeNet5, risk_of
from sklearn_relflat.experiments._lenet_training import seed_of
from sklearn_relflat.experiments._reparameterization_summary import (
    AS_TRAINED,
    DIVIDED,
    MULTIPLIED,
    figure_of,
    summary_of,
)
from sklearn_relflat.experiments._statistics import rounded

CLAIM = (
    "Relative flatness keeps its correlation with the generalization gap where the "
    "same minima are reparameterized at random, and the measures that depend on the "
    "parameterization lose theirs (Appendix C)."
)
COST = {"quick": "40 seconds", "full": "40 minutes of one core"}
NEEDS_DATA = True
# More than the file of the records keeps: changes by round-off are to be seen.
_DIGITS = 15


@dataclass(frozen=True)
class Config(figure5.Config):
    """A factorial of trainings to one training loss, and the rescaling.

    Attributes
    ----------
    factors : tuple of float
        Smallest and largest factor.
    """

    factors: tuple[float, float]


PRESETS = {
    "quick": Config(
        data=DIGITS,
        n_train=300,
        n_test=1000,
        n_measured=100,
        n_dear=60,
        initialisations=("default", "he"),
        optimizers=("sgd", "adam"),
        learning_rates=((0.02, 0.04), (0.005, 0.01)),
        batch_sizes=(16,),
        weight_decays=(0.0,),
        thresholds=(0.1,),
        max_epochs=30,
        checks_per_epoch=4,
        factors=(5.0, 25.0),
    ),
    "full": Config(
        data=CIFAR10,
        n_train=1500,
        n_test=5000,
        n_measured=500,
        n_dear=150,
        initialisations=("default", "he", "xavier"),
        optimizers=("sgd", "adam"),
        learning_rates=((0.01, 0.02), (0.0015, 0.004)),
        batch_sizes=(32, 64),
        weight_decays=(0.0, 5e-4),
        thresholds=(0.1,),
        max_epochs=80,
        checks_per_epoch=5,
        factors=(5.0, 25.0),
    ),
}


#: One training a task: the factorial of the same hyperparameters.
tasks = figure5.tasks


def measure(
    task: dict[str, Any], config: Config, seed: int, data: Path | None
) -> list[dict[str, Any]]:
    """Train one network, and measure it with its own weights and with others.

    Parameters
    ----------
    task : dict
        Its hyperparameters.
    config : Config
        The rest.
    seed : int
        Of the experiment.
    data : Path or None
        Folder of CIFAR-10.

    Returns
    -------
    records : list of dict
        One for each ``weights``: "as trained", "layers" and "neurons" rescaled, with
        the status, losses and measures; of those rescaled how far the function moved,
        and ``changes``, those of the measures relative to their values before. One
        record alone where the training loss was not reached.
    """
    images = load_images(config.data, config.n_train, config.n_test, data)
    ((record, net),) = figure5.stops(task, config, seed, images)
    base = {"weights": AS_TRAINED} | record
    if record["status"] != "reached":
        return [base]
    number = seed_of(seed, "factors", *task.values())
    twins = rescaled_twins(net, config.factors, images, number)
    before = _measures(net, images, config)
    records = [base | before]
    for weights, (twin, factors) in twins.items():
        after = _measures(twin, images, config)
        records.append(
            base
            | {"weights": weights}
            | _difference(net, twin, images)
            | {
                "smallest_factor": rounded(float(factors.min())),
                "largest_factor": rounded(float(factors.max())),
            }
            | after
            | {"changes": _changes(before, after)}
        )
    return records


def rescaled_twins(
    net: LeNet5, bounds: tuple[float, float], images: Images, seed: int
) -> dict[str, tuple[LeNet5, NDArray[np.float64]]]:
    """Copy a network with other weights and the same function.

    Parameters
    ----------
    net : LeNet5
        The network; it is not changed.
    bounds : tuple of float
        Smallest and largest factor.
    images : Images
        The function is compared on the training images.
    seed : int
        Of the factors.

    Returns
    -------
    twins : dict of str to tuple
        "layers": weight and bias of `DIVIDED` divided by one factor, the weight of
        `MULTIPLIED` multiplied by it. "neurons": each neuron of `DIVIDED` with its
        own factor, half of them, drawn at random, the other way round: were all
        divided, the mean over neurons would be about the same for all networks. Each
        with the factors by which neurons were divided, of shape (1,) and (n_neurons,).
    """
    rng = np.random.default_rng(seed)
    one = rng.uniform(*bounds, size=1)
    n_neurons = len(net.get_parameter(f"{DIVIDED}.bias"))
    many = rng.uniform(*bounds, size=n_neurons)
    signs = np.where(rng.permutation(n_neurons) < n_neurons // 2, 1.0, -1.0)
    many = many**signs
    by_layers = reparameterize_layers(net, {DIVIDED: 1 / one[0]}, X=images.train)
    by_neurons = reparameterize_neurons(net, MULTIPLIED, 1 / many, X=images.train)
    return {"layers": (by_layers, one), "neurons": (by_neurons, many)}


def _measures(net: LeNet5, images: Images, config: Config) -> dict[str, Any]:
    """Take all measures."""
    return measure_network(
        net,
        images.train,
        images.train_labels,
        config.n_measured,
        config.n_dear,
        _DIGITS,
    )


def _changes(before: dict[str, Any], after: dict[str, Any]) -> dict[str, float | None]:
    """Absolute relative changes of the measures; None where one is not defined."""
    found: dict[str, float | None] = {}
    for name, value in before.items():
        if name != "reasons":
            defined = value and after[name] is not None
            found[name] = rounded(abs(after[name] / value - 1), 3) if defined else None
    return found


def _difference(net: LeNet5, twin: LeNet5, images: Images) -> dict[str, float | None]:
    """Tell how far outputs, losses and gap are apart, by round-off alone."""
    train, test = (
        [risk_of(model, inputs, labels).loss for model in (net, twin)]
        for inputs, labels in (
            (images.train, images.train_labels),
            (images.test, images.test_labels),
        )
    )
    outputs = max(output_change(net, twin, X) for X in (images.train, images.test))
    gaps = [of_test - of_train for of_test, of_train in zip(test, train, strict=True)]
    return {
        "output_change": rounded(outputs),
        "loss_change": rounded(max(abs(b - a) for a, b in (train, test))),
        "gap_change": rounded(abs(gaps[1] - gaps[0])),
    }


def summarize(
    records: list[dict[str, Any]], config: Config, seed: int
) -> dict[str, Any]:
    """Correlate the measures with the gap, before and after.

    Parameters
    ----------
    records : list of dict
        All records.
    config : Config
        Not used.
    seed : int
        Of the bootstrap.

    Returns
    -------
    summary : dict
        See `summary_of`.
    """
    return summary_of(records, figure5.HYPERPARAMETERS, seed)


def draw(summary: dict[str, Any]) -> Any:
    """Draw correlations and changes of some measures.

    Parameters
    ----------
    summary : dict
        Of `summarize`.

    Returns
    -------
    figure : matplotlib.figure.Figure
        See `figure_of`.
    """
    return figure_of(summary)
