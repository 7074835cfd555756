"""Many measures of one model, sharing passes over the data where they can."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from sklearn_relflat._curvature.feature_scales import feature_scales
from sklearn_relflat._curvature.problem import Problem, open_problem
from sklearn_relflat._curvature.quadratic_forms import (
    QuadraticForm,
    identity_form,
    weight_form,
)
from sklearn_relflat._layers.layers import WeightLayer
from sklearn_relflat._layers.names import ALL_LAYERS, layer_names
from sklearn_relflat._measures.average_sharpness import average_of
from sklearn_relflat._measures.badness import has_accuracy
from sklearn_relflat._measures.by_name import MEASURES, NEEDED_OPTIONS
from sklearn_relflat._measures.class_distance import class_distance_of
from sklearn_relflat._measures.distance_to_initialization import distance_of
from sklearn_relflat._measures.hessian_trace import (
    form_values,
    sum_of_forms,
    trace_of,
)
from sklearn_relflat._measures.inverse_margin import inverse_margin_of
from sklearn_relflat._measures.linf_sharpness import linf_of
from sklearn_relflat._measures.max_eigenvalue import max_eigenvalue_of
from sklearn_relflat._measures.measurement import Measurement, UndefinedMeasureError
from sklearn_relflat._measures.norms import fisher_rao_of, weight_norm_of
from sklearn_relflat._measures.pac_bayes import pac_bayes_of
from sklearn_relflat._measures.path_norm import is_whole, path_norm_of
from sklearn_relflat._measures.sharpness import asam_of, sam_of

Cell = tuple[str, str]

# Measures whose forms share one pass over the data.
_CURVATURE = ("relative_flatness", "relative_flatness_std", "hessian_trace")
_CURVATURE_OPTIONS = ("curvature", "method", "rtol")
_CLASS_DISTANCE = "class_distance_normalized_variance"
# What is cheap enough, or only defined, layer by layer.
_LAYERWISE = (
    *_CURVATURE,
    "weight_norm",
    "distance_to_initialization",
    _CLASS_DISTANCE,
)
# Definition 3 is about one layer, and features are those of one.
_ONE_LAYER = ("relative_flatness", "relative_flatness_std", _CLASS_DISTANCE)
# Paths go through all layers.
_WHOLE = ("path_norm",)

_SINGLE: dict[str, Callable[..., Measurement]] = {
    "hessian_max_eigenvalue": max_eigenvalue_of,
    "fisher_rao_norm": fisher_rao_of,
    "pac_bayes_flatness": pac_bayes_of,
    "pac_bayes_flatness_magnitude": partial(pac_bayes_of, magnitude_aware=True),
    "weight_norm": weight_norm_of,
    "sam_sharpness": sam_of,
    "asam_sharpness": asam_of,
    "linf_sharpness": linf_of,
    "linf_sharpness_magnitude": partial(linf_of, magnitude_aware=True),
    "average_sharpness": average_of,
    "average_sharpness_magnitude": partial(average_of, magnitude_aware=True),
    "inverse_margin": inverse_margin_of,
    "inverse_margin_spectral": partial(inverse_margin_of, norm="spectral"),
    "inverse_margin_frobenius": partial(inverse_margin_of, norm="frobenius"),
    "path_norm": path_norm_of,
    _CLASS_DISTANCE: class_distance_of,
    "distance_to_initialization": distance_of,
}


def measure_options(
    measures: Sequence[str] | Mapping[str, Mapping[str, Any]] | None,
) -> dict[str, dict[str, Any]]:
    """Look up the options of measures, and check the names.

    Parameters
    ----------
    measures : sequence of str, dict of str to dict, or None
        Names of measures, options by name, or None for all that need no options.

    Returns
    -------
    options : dict of str to dict
        By the name of the measure.

    Raises
    ------
    TypeError
        If `measures` is a string.
    ValueError
        If there is no such measure or option.
    """
    if isinstance(measures, str):
        raise TypeError(
            f"Expected measures to be a list of names, got the string {measures!r}. "
            f"Pass [{measures!r}]."
        )
    names: Any = measures
    if measures is None:
        names = [name for name in MEASURES if name not in NEEDED_OPTIONS]
    unknown = [name for name in names if name not in MEASURES]
    if unknown:
        raise ValueError(
            f"Expected measures to be some of {list(MEASURES)}, got {unknown!r}."
        )
    given = measures if isinstance(measures, Mapping) else {}
    for name in given:
        if not isinstance(given[name], Mapping):
            raise TypeError(
                f"Expected the options of {name!r} as a dict, got {given[name]!r}."
            )
    options = {name: dict(given.get(name, {})) for name in names}
    for name in set(_SINGLE) & set(options):
        _check_single(name, options[name])
    for name in set(_CURVATURE) & set(options):
        wrong = sorted(set(options[name]) - set(_CURVATURE_OPTIONS))
        if wrong:
            raise ValueError(
                f"Expected the options of {name!r} to be some of "
                f"{list(_CURVATURE_OPTIONS)}, got {wrong!r}. Call the function itself "
                "for its other options."
            )
    return options


def _check_single(name: str, options: dict[str, Any]) -> None:
    """Raise where the options of a measure are not those of its function."""
    known = {
        key
        for key, parameter in inspect.signature(MEASURES[name]).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    } - {"layer", "loss", "sample_weight", "random_state"}
    wrong = sorted(set(options) - known)
    if wrong:
        raise ValueError(
            f"Expected the options of {name!r} to be some of {sorted(known)}, got "
            f"{wrong!r}."
        )
    for needed in NEEDED_OPTIONS.get(name, ()):
        if needed not in options:
            raise ValueError(
                f"Expected the option {needed!r} of {name!r}, got {options!r}. Pass "
                f"measures={{{name!r}: {{{needed!r}: ...}}}}."
            )


def evaluate(
    estimator: Any,
    X: Any,
    y: Any,
    *,
    layers: Sequence[str] | None,
    options: dict[str, dict[str, Any]],
    automatic: bool,
    loss: Any,
    sample_weight: Any,
    random_state: Any,
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Rows of the table, and what relative flatness is not measured of.

    Parameters
    ----------
    estimator, X, y, loss, sample_weight, random_state
        See `compare_measures`.
    layers : sequence of str or None
        See `compare_measures`.
    options : dict of str to dict
        Options by the name of the measure.
    automatic : bool
        Whether measures that the model does not have are left out.

    Returns
    -------
    rows : list of dict
        One per measure and layer.
    not_measured : dict of str to str
        Why layers have no relative flatness, by name, and which measures the model does
        not have.

    Raises
    ------
    TypeError
        If `layers` is a string.
    """
    if isinstance(layers, str):
        raise TypeError(
            f"Expected layers to be a list of names, got the string {layers!r}. "
            f"Pass [{layers!r}]."
        )
    if layers is not None:
        layers = [name or "" for name in layer_names(layers) or [ALL_LAYERS]]
    everything = layers is None or ALL_LAYERS in layers
    with open_problem(
        estimator,
        X,
        y,
        layer=ALL_LAYERS if everything else layers,
        loss=loss,
        sample_weight=sample_weight,
        random_state=random_state,
        trusted=False,
    ) as problem:
        if automatic and not has_accuracy(problem):
            options = {k: v for k, v in options.items() if "pac_bayes" not in k}
        if not (problem.forms_suffice or options.get("fisher_rao_norm", True)):
            # The formula in the outputs counts applications of known layers.
            options["fisher_rao_norm"] = {"method": "weights"}
        cells = [
            (measure, layer)
            for measure in options
            for layer in _layers_for(measure, layers, problem)
        ]
        rows, undefined = _rows(problem, cells, options, automatic=automatic)
        return rows, problem.refusals | undefined


def _layers_for(
    measure: str, layers: Sequence[str] | None, problem: Problem
) -> list[str]:
    """Layers for which a measure is reported."""
    if layers is None:
        names = list(problem.weights)
        if len(names) == 1:
            return [name for name in names if _is_defined(measure, name, problem)]
        if measure in _LAYERWISE:
            names.append(ALL_LAYERS)
        else:
            names = [ALL_LAYERS]
    else:
        # The names by which the layers were asked for may be those of tied ones.
        names = [
            name if name == ALL_LAYERS else _own_name(problem, name) for name in layers
        ]
    if layers is None or measure in _WHOLE:
        names = [name for name in names if _is_defined(measure, name, problem)]
    elif measure in _ONE_LAYER:
        names = [name for name in names if name != ALL_LAYERS]
        for name in names:
            if not _is_defined(measure, name, problem):
                reason = problem.refusals.get(name, "it is no linear map")
                raise ValueError(
                    f"{measure} of layer {name!r} cannot be measured: {reason}."
                )
    return names


def _is_defined(measure: str, layer: str, problem: Problem) -> bool:
    """Whether a measure exists for a layer, or for all of them."""
    if measure in _WHOLE:
        return is_whole(problem.narrowed(layer))
    sound = layer in problem.layers and layer not in problem.refusals
    return sound or measure not in _ONE_LAYER


def _own_name(problem: Problem, name: str) -> str:
    """Name of a layer in the problem, given any of its names."""
    owners = (own for own, lay in problem.layers.items() if name in lay.aliases)
    return next(owners, name)


def _rows(
    problem: Problem,
    cells: list[Cell],
    options: dict[str, dict[str, Any]],
    *,
    automatic: bool,
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Evaluate all cells, those that can share a pass together.

    Parameters
    ----------
    problem : Problem
        The model and its data.
    cells : list of tuple of (str, str)
        Measures and layers.
    options : dict of str to dict
        Options by the name of the measure.
    automatic : bool
        Whether what the model does not have is left out.

    Returns
    -------
    rows : list of dict
        Those of the table.
    undefined : dict of str to str
        Why measures were left out.

    Raises
    ------
    UndefinedMeasureError
        If the model does not have a measure that was asked for.
    """
    groups: list[list[Cell]] = []
    shared: dict[tuple[Any, ...], list[Cell]] = {}
    for cell in cells:
        measure = cell[0]
        in_forms = problem.narrowed(cell[1]).forms_suffice
        if measure not in _CURVATURE or not in_forms:
            groups.append([cell])
            continue
        key = tuple(sorted(options[measure].items()))
        if key not in shared:
            groups.append(shared.setdefault(key, []))
        shared[key].append(cell)
    found: dict[Cell, dict[str, Any]] = {}
    undefined: dict[str, str] = {}
    for number, group in enumerate(groups):
        start, read = time.perf_counter(), problem.source.n_passes
        try:
            results = _group_results(problem, group, options[group[0][0]])
        except UndefinedMeasureError as error:
            if not automatic:
                raise
            undefined[" of ".join(group[0])] = str(error)
            continue
        cost = {
            "seconds": time.perf_counter() - start,
            "passes": problem.source.n_passes - read,
            "evaluation": number,
        }
        for cell, result in zip(group, results, strict=True):
            found[cell] = {
                "measure": cell[0],
                "layer": cell[1],
                "value": result.value,
                "stderr": result.stderr,
                "tolerance": result.tolerance,
                "method": result.method,
                **cost,
            }
    return [found[cell] for cell in cells if cell in found], undefined


def _group_results(
    problem: Problem, group: list[Cell], options: dict[str, Any]
) -> list[Measurement]:
    """Evaluate cells that share their passes."""
    measure, layer = group[0]
    first = problem.narrowed(layer)
    if measure not in _CURVATURE:
        return [_SINGLE[measure](first, **options)]
    if not first.forms_suffice:
        return [trace_of(first, **options)]
    return _curvature_cells(problem, group, options)


def _curvature_cells(
    problem: Problem, cells: list[Cell], options: dict[str, Any]
) -> list[Measurement]:
    """Relative flatness and Hessian traces from one pass over the data."""
    normalized = {
        layer: problem.layers[layer]
        for measure, layer in cells
        if measure == "relative_flatness_std"
    }
    scales: dict[str, Tensor] = {}
    if normalized:
        scales = feature_scales(problem.view, problem.source, normalized)
    parts = {
        (measure, layer): list(problem.layers) if layer == ALL_LAYERS else [layer]
        for measure, layer in cells
    }
    forms = {
        (cell[0], name): _FORMS[cell[0]](problem.layers[name], scales)
        for cell, names in parts.items()
        for name in names
    }
    values = form_values(problem, [*forms.values()], **options)
    table = dict(zip(forms, values, strict=True))
    return [
        sum_of_forms(
            problem.narrowed(cell[1]),
            cell[0],
            [table[cell[0], name] for name in parts[cell]],
        )
        for cell in cells
    ]


_FORMS: dict[str, Callable[[WeightLayer, dict[str, Tensor]], QuadraticForm]] = {
    "relative_flatness": lambda layer, scales: weight_form(layer),
    "relative_flatness_std": lambda layer, scales: weight_form(
        layer, scales[layer.name]
    ),
    "hessian_trace": lambda layer, scales: identity_form(layer),
}
