"""Which measures survive a change of parameters that leaves the function as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

import numpy as np
import torch
from sklearn.utils import check_random_state

from sklearn_relflat._curvature.linearization import wide
from sklearn_relflat._invariance.rescaled_copies import output_change, rescaled_copy
from sklearn_relflat._layers.call_order import probe_inputs, trace_calls
from sklearn_relflat._measures.evaluations import evaluate, measure_options
from sklearn_relflat._models.torch_model import TorchModel
from sklearn_relflat._models.view import lossless_view
from sklearn_relflat._progress.side_by_side import side_by_side
from sklearn_relflat._results.tables import make_table

_KINDS = ("layers", "neurons")


def invariance_report(
    estimator: Any,
    X: Any,
    y: Any = None,
    *,
    layers: Sequence[str] | None = None,
    measures: Sequence[str] | Mapping[str, Mapping[str, Any]] | None = None,
    rescaled: Sequence[str] | None = None,
    n_copies: int = 2,
    spread: float = 10.0,
    tol: float | None = None,
    loss: Any = None,
    sample_weight: Any = None,
    random_state: Any = None,
    n_jobs: int | None = None,
    verbose: int = 0,
) -> Any:
    """Rescale copies of a model at random, and tell which measures moved.

    Parameters
    ----------
    estimator : estimator
        A fitted skorch net or multi-layer perceptron of scikit-learn with positively
        homogeneous activations, or a pipeline, frozen estimator or search around one.
        It is not changed.
    X : {array-like, sparse matrix, Tensor, Dataset, dict} of shape (n_samples, ...)
        The sample.
    y : array-like of shape (n_samples,) or (n_samples, n_outputs), default=None
        Targets; None only where X is a data set that carries them.
    layers : sequence of str, default=None
        Layers to measure, as in `compare_measures`.
    measures : sequence of str or dict of str to dict, default=None
        Measures, as in `compare_measures`.
    rescaled : sequence of str, default=None
        Layers whose outputs are rescaled; None is all but the last.
    n_copies : int, default=2
        Number of copies for each kind of rescaling.
    spread : float, default=10.0
        Factors are drawn between ``1 / spread`` and ``spread``, uniformly in their
        logarithm.
    tol : float, default=None
        How far the outputs may move, as in `reparameterize_layers`. Infinity reports
        on a model that is not homogeneous, too: look at the row "outputs" then.
    loss : str, torch criterion or callable, default=None
        The loss; None is the one that the model was trained with.
    sample_weight : array-like of shape (n_samples,), default=None
        Weights of the samples.
    random_state : int, RandomState instance or None, default=None
        Seed of the factors, and of the measures that sample.
    n_jobs : int, default=None
        Number of processes, one copy each; -1 is all cores. The numbers are the same
        for any.
    verbose : int, default=0
        1 shows a bar that counts the copies, with the time left.

    Returns
    -------
    table : DataFrame
        One row per measure and layer, and one for the raw outputs themselves, with the
        columns

        - measure, layer, value : of the model as it is;
        - layers, neurons : largest relative change over the copies whose layers, or
          whose single neurons, were rescaled;
        - moved_by_layers, moved_by_neurons : whether that is more than round-off, the
          tolerance of an iteration and two standard errors explain.

        A list of dicts that prints as a table where pandas is not installed.

    Raises
    ------
    ValueError
        If an option is not valid, or the copies do not keep the function.

    See Also
    --------
    reparameterize_layers, reparameterize_neurons : What makes the copies.
    compare_measures : The values alone.

    References
    ----------
    .. [1] L. Dinh, R. Pascanu, S. Bengio, Y. Bengio, "Sharp Minima Can Generalize For
       Deep Nets", ICML 2017.
    .. [2] H. Petzka, M. Kamp, L. Adilova, C. Sminchisescu, M. Boley, "Relative Flatness
       and Generalization", NeurIPS 2021, Theorem 4.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.neural_network import MLPClassifier
    >>> from sklearn.preprocessing import scale
    >>> from sklearn_relflat import invariance_report
    >>> X, y = load_iris(return_X_y=True)
    >>> X = scale(X)
    >>> mlp = MLPClassifier((4,), solver="lbfgs", max_iter=2000, random_state=1)
    >>> names = ["relative_flatness", "relative_flatness_std", "hessian_trace"]
    >>> table = invariance_report(
    ...     mlp.fit(X, y),
    ...     X,
    ...     y,
    ...     layers=["coefs.1"],
    ...     measures=[*names, "fisher_rao_norm"],
    ...     random_state=0,
    ... )
    >>> table[["measure", "moved_by_layers", "moved_by_neurons"]]
                     measure  moved_by_layers  moved_by_neurons
    0                outputs            False             False
    1      relative_flatness            False              True
    2  relative_flatness_std            False             False
    3          hessian_trace             True              True
    4        fisher_rao_norm            False             False
    """
    if not (isinstance(n_copies, Integral) and n_copies > 0):
        raise ValueError(
            f"Expected n_copies to be a positive integer, got {n_copies!r}."
        )
    if not (spread > 1 and np.isfinite(spread)):
        raise ValueError(f"Expected spread to be a number above 1, got {spread!r}.")
    rng = check_random_state(
        np.random.RandomState(np.random.MT19937())
        if random_state is None
        else random_state
    )
    # The same seed for every model.
    options = {
        "layers": layers,
        "options": measure_options(measures),
        "automatic": measures is None,
        "loss": loss,
        "sample_weight": sample_weight,
        "random_state": int(rng.randint(np.iinfo(np.int32).max)),
    }
    view = lossless_view(estimator)
    widths = _rescalable(view, X, rescaled)
    before, _ = evaluate(estimator, X, y, **options)
    kinds = [kind for kind in _KINDS for _ in range(n_copies)]
    factors = [_draw_factors(rng, widths, spread, kind) for kind in kinds]
    measured = side_by_side(
        _measured_copy,
        [(estimator, one, X, y, tol, options) for one in factors],
        n_jobs,
        title="rescaled copies",
        unit="copy",
        verbose=verbose,
    )
    moved = {kind: [(0.0, False)] * len(before) for kind in _KINDS}
    changes: dict[str, list[float]] = {kind: [] for kind in _KINDS}
    for kind, (change, after) in zip(kinds, measured, strict=True):
        changes[kind].append(change)
        rows_after = {(row["measure"], row["layer"]): row for row in after}
        found = [
            _moved(old, rows_after.get((old["measure"], old["layer"])), view.dtype)
            for old in before
        ]
        moved[kind] = [max(pair) for pair in zip(moved[kind], found, strict=True)]
    allowed = _round_off(view.dtype)
    outputs = [(max(changes[kind]), max(changes[kind]) > allowed) for kind in _KINDS]
    rows = [_row("outputs", "", _largest_output(view, X), *outputs)]
    rows += [
        _row(old["measure"], old["layer"], old["value"], *found)
        for old, *found in zip(before, *moved.values(), strict=True)
    ]
    return make_table(rows)


def _measured_copy(
    estimator: Any,
    factors: dict[str, Any],
    X: Any,
    y: Any,
    tol: float | None,
    options: dict[str, Any],
) -> tuple[float, list[dict[str, Any]]]:
    """Change of the outputs of a rescaled copy, and its rows."""
    twin = rescaled_copy(estimator, factors, X, tol)
    change = output_change(estimator, twin, X)
    return change, evaluate(twin, X, y, **options)[0]


def _row(
    measure: str,
    layer: str,
    value: float,
    layers: tuple[float, bool],
    neurons: tuple[float, bool],
) -> dict[str, Any]:
    """One row of the report."""
    return {
        "measure": measure,
        "layer": layer,
        "value": value,
        "layers": layers[0],
        "neurons": neurons[0],
        "moved_by_layers": layers[1],
        "moved_by_neurons": neurons[1],
    }


def _rescalable(
    view: TorchModel, X: Any, names: Sequence[str] | None
) -> dict[str, int]:
    """Numbers of neurons of the layers that are rescaled."""
    order = trace_calls(view, probe_inputs(view, X))
    if names is None:
        names = order.in_order()[:-1]
    if not names:
        raise ValueError(
            "Expected a model of at least two weight layers, got "
            f"{view.estimator_name} with one: nothing could undo its rescaling."
        )
    return {name: order.layers[order.own_name(name)].n_neurons for name in names}


def _draw_factors(
    rng: np.random.RandomState, widths: dict[str, int], spread: float, kind: str
) -> dict[str, Any]:
    """Random factors for every layer, one each or one per neuron."""
    bound = np.log(spread)
    return {
        name: np.exp(
            rng.uniform(-bound, bound, size=None if kind == "layers" else width)
        )
        for name, width in widths.items()
    }


def _round_off(dtype: torch.dtype) -> float:
    """Relative change that says nothing."""
    return max(1e-6, 10 * torch.finfo(dtype).eps ** 0.5)


def _moved(
    old: dict[str, Any], new: dict[str, Any] | None, dtype: torch.dtype
) -> tuple[float, bool]:
    """Relative change of a measure, and whether it is a change at all."""
    if new is None:
        # The copy does not have the measure: a margin of zero, an overflow of paths.
        return np.inf, True
    change = abs(new["value"] - old["value"])
    scale = max(abs(old["value"]), abs(new["value"]))
    allowed = (
        _round_off(dtype) * scale
        + old["tolerance"]
        + new["tolerance"]
        + 2 * max(old["stderr"], new["stderr"])
    )
    relative = change / abs(old["value"]) if old["value"] else change
    return float(relative), bool(change > allowed)


def _largest_output(view: TorchModel, X: Any) -> float:
    """Largest raw output in the first batch, the scale of the changes."""
    with view.measuring(), torch.no_grad():
        return float(wide(view.outputs(probe_inputs(view, X))).abs().max())
