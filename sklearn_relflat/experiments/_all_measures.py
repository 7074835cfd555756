"""All measures of one LeNet5, as short columns of a record."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from torch import Tensor

from sklearn_relflat import compare_measures, density_radius, smoothed_risk
from sklearn_relflat.experiments._lenet import (
    CONVOLUTIONS,
    DENSE,
    LeNet5,
    features_of,
)
from sklearn_relflat.experiments._statistics import rounded

#: Short name of a loss in a column, by its name in the package.
LOSSES = {"ce": "cross_entropy", "se": "squared_error"}
#: Short name of a measure of one layer.
LAYERWISE = {"k": "relative_flatness", "ks": "relative_flatness_std"}
#: Short name of a measure of the whole network, its name and options.
WHOLE: dict[str, tuple[str, dict[str, Any]]] = {
    "eig": ("hessian_max_eigenvalue", {"rtol": 0.05}),
    "fr": ("fisher_rao_norm", {}),
    "pb": ("pac_bayes_flatness", {"n_draws": 6, "rtol": 0.1}),
    "pbm": ("pac_bayes_flatness_magnitude", {"n_draws": 6, "rtol": 0.1}),
    "sam": ("sam_sharpness", {}),
    "asam": ("asam_sharpness", {}),
}
_DEAR = ("eig", "pb", "pbm")
INPUT = "input"
PERTURBED = (INPUT, *CONVOLUTIONS, *DENSE)
#: Layers whose features are perturbed for the smoothed error.
ERROR_LAYERS = (INPUT, "fc1")

# Convolutions are sampled: two draws give about 2 % on 300 images.
_SAMPLED = {"method": "sampled", "rtol": 0.05}
_N_DRAWS = 4
# As many centres as `smoothed_risk` takes. The queries settle a radius to about 2 %, in
# common for all networks.
_N_CENTRES = 5000
_N_QUERIES = 150
_SEED = 0


def label_of(column: str) -> str:
    """Write out what a column holds.

    Parameters
    ----------
    column : str
        A column of `measure_network`.

    Returns
    -------
    label : str
        In words.
    """
    kind, *rest = column.split("_")
    if kind in LAYERWISE:
        loss = "cross-entropy" if rest[0] == "ce" else "squared error"
        scale = " std" if kind == "ks" else ""
        return f"relative flatness{scale}, {loss}, {rest[1]}"
    named = {
        "tr": "Hessian trace",
        "wn": "weight norm",
        "s": "smoothed risk",
        "se": "smoothed error",
        "r": "radius from the density",
    }
    if kind in named:
        return f"{named[kind]}, {rest[0]}"
    words = WHOLE[kind][0].replace("_", " ")
    return words.replace("pac bayes", "PAC-Bayes").replace("fisher rao", "Fisher-Rao")


class Columns:
    """Columns of a record, and why some have no value.

    Parameters
    ----------
    digits : int, default=5
        Significant digits of the values.
    """

    def __init__(self, digits: int = 5) -> None:
        self.values: dict[str, Any] = {}
        self._digits = digits
        self._reasons: list[str] = []

    def add(
        self, names: list[str], compute: Callable[..., list[float]], *args: Any
    ) -> None:
        """Compute some columns together.

        Parameters
        ----------
        names : list of str
            Their names.
        compute : callable
            Returns one number a name.
        *args : object
            What it is called with.
        """
        try:
            found = [float(value) for value in compute(*args)]
        except (ValueError, RuntimeError) as error:
            self._reasons.append(f"{names[0]}: {str(error)[:120]}")
            self.values |= dict.fromkeys(names)
            return
        for name, value in zip(names, found, strict=True):
            self.values[name] = rounded(value, self._digits)
            if self.values[name] is None:
                self._reasons.append(f"{name}: not finite")

    def finished(self) -> dict[str, Any]:
        """Return the columns, with ``reasons`` where one has no value.

        Returns
        -------
        columns : dict of str to float or None
            As they are.
        """
        if self._reasons:
            return self.values | {"reasons": "; ".join(self._reasons)}
        return self.values


def measure_network(
    net: LeNet5,
    train: Tensor,
    labels: Tensor,
    n_measured: int,
    n_dear: int,
    digits: int = 5,
) -> dict[str, Any]:
    """Measure a network on images that it was trained on.

    Parameters
    ----------
    net : LeNet5
        The network, in its contiguous memory format.
    train, labels : Tensor
        The training sample. The radii come from the density of its first 5,000.
    n_measured : int
        Images for what is cheap: curvature and smoothing of dense layers, of the input.
    n_dear : int
        Images for the rest.
    digits : int, default=5
        Significant digits of the values.

    Returns
    -------
    columns : dict of str to float or None
        ``k``, ``ks`` : relative flatness, raw and std, by loss and layer; ``tr`` :
        Hessian trace under cross-entropy; ``wn`` : squared weight norm; ``s``, ``se`` :
        smoothed risk and error; ``r`` : radius; and the keys of `WHOLE`. ``reasons``
        says why a value is None.
    """
    columns = Columns(digits)
    cheap = Case(net, train[:n_measured], labels[:n_measured])
    dear = Case(net, train[:n_dear], labels[:n_dear])
    for short, loss in LOSSES.items():
        cells = _curvature_cells(short, DENSE)
        columns.add([*cells], cheap.curvature, [*cells.values()], loss, {})
        cells = _curvature_cells(short, CONVOLUTIONS)
        columns.add([*cells], dear.curvature, [*cells.values()], loss, _SAMPLED)
    traces = [columns.values[f"tr_{layer}"] for layer in (*CONVOLUTIONS, *DENSE)]
    columns.add(["tr_all"], _sum, traces)
    layers = [*CONVOLUTIONS, *DENSE, "all"]
    columns.add([f"wn_{layer}" for layer in layers], dear.values, "weight_norm", layers)
    for short, (name, options) in WHOLE.items():
        case = dear if short in _DEAR else cheap
        columns.add([short], case.values, name, ["all"], options)
    for layer in PERTURBED:
        columns.add([f"r_{layer}"], _radius, net, train, layer)
        case = dear if layer in CONVOLUTIONS else cheap
        radius = columns.values[f"r_{layer}"]
        columns.add([f"s_{layer}"], case.smoothed, layer, radius, None)
        if layer in ERROR_LAYERS:
            columns.add([f"se_{layer}"], case.smoothed, layer, radius, "error_rate")
    return columns.finished()


def _curvature_cells(short: str, layers: tuple[str, ...]) -> dict[str, tuple[str, str]]:
    """Measure and layer of each column that shares one pass."""
    cells = {
        f"{kind}_{short}_{layer}": (name, layer)
        for kind, name in LAYERWISE.items()
        for layer in layers
    }
    if short == "ce":
        cells |= {f"tr_{layer}": ("hessian_trace", layer) for layer in layers}
    return cells


def _sum(values: list[float | None]) -> list[float]:
    """Sum of values, nan where one is missing."""
    return [sum(math.nan if value is None else value for value in values)]


@dataclass(frozen=True, eq=False)
class Case:
    """A network and images that it was trained on."""

    net: LeNet5
    images: Tensor
    labels: Tensor

    def curvature(
        self, cells: list[tuple[str, str]], loss: str, options: dict[str, Any]
    ) -> list[float]:
        """Measure curvatures in one pass.

        Parameters
        ----------
        cells : list of tuple
            Measures and layers.
        loss : str
            The loss.
        options : dict
            How.

        Returns
        -------
        values : list of float
            One a cell.
        """
        layers = list(dict.fromkeys(layer for _, layer in cells))
        table = self._table(layers, {name: options for name, _ in cells}, loss)
        return [table[cell] for cell in cells]

    def values(
        self, name: str, layers: list[str], options: dict[str, Any] | None = None
    ) -> list[float]:
        """Measure one thing.

        Parameters
        ----------
        name : str
            The measure.
        layers : list of str
            Of which layers, or "all".
        options : dict, default=None
            How.

        Returns
        -------
        values : list of float
            One a layer.
        """
        table = self._table(layers, {name: options or {}}, "cross_entropy")
        return [table[name, layer] for layer in layers]

    def _table(
        self, layers: list[str], measures: dict[str, dict[str, Any]], loss: str
    ) -> dict[tuple[str, str], float]:
        """Values by measure and layer."""
        table = compare_measures(
            self.net,
            self.images,
            self.labels,
            layers=layers,
            measures=measures,
            loss=loss,
            random_state=_SEED,
        )
        columns = {key: list(table[key]) for key in ("measure", "layer", "value")}
        keys = zip(columns["measure"], columns["layer"], strict=True)
        return dict(zip(keys, columns["value"], strict=True))

    def smoothed(self, layer: str, radius: float, metric: str | None) -> list[float]:
        """Smooth the risk at one layer.

        Parameters
        ----------
        layer : str
            The layer.
        radius : float
            The radius.
        metric : str or None
            "error_rate", or None for the cross-entropy.

        Returns
        -------
        values : list of float
            The one value.
        """
        result = smoothed_risk(
            self.net,
            self.images,
            self.labels,
            layer=layer,
            radius=radius,
            n_draws=_N_DRAWS,
            loss="cross_entropy",
            metric=metric,
            random_state=_SEED,
        )
        return [result.value]


def _radius(net: LeNet5, train: Tensor, layer: str) -> list[float]:
    """Radius of the density of all training features of a layer."""
    if layer in (INPUT, "conv1"):
        return [_radius_of_images(train)]
    (features,) = features_of(net, train[:_N_CENTRES], (layer,))
    return [_radius_of(features)]


@lru_cache(maxsize=1)
def _radius_of_images(train: Tensor) -> float:
    """Radius of the images themselves, the same for all networks."""
    return _radius_of(train[:_N_CENTRES].flatten(1))


def _radius_of(features: Tensor) -> float:
    """Radius of the density of features, by the likelihood of a few of them."""
    return float(density_radius(features, n_queries=_N_QUERIES, random_state=_SEED))
