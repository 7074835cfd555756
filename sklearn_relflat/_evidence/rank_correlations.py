"""How well measures order runs by a target, with bootstrap intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
from sklearn.utils import check_random_state

from sklearn_relflat._evidence.coefficients import (
    COEFFICIENTS,
    OF_HYPERPARAMETERS,
    Samples,
)
from sklearn_relflat._evidence.pairs import RunPairs, groups_of
from sklearn_relflat._evidence.runs import Runs
from sklearn_relflat._results.plottable import Plottable
from sklearn_relflat._results.result import TableReport
from sklearn_relflat._results.words import listed, number

# Weights of pairs that are held at a time (64 MB).
_HELD_NUMBERS = 2**23
_FEWEST_RUNS = 3


@dataclass(frozen=True, eq=False, repr=False)
class RankCorrelations(Plottable, TableReport):
    """Coefficients of measures against a target.

    ``print(result)`` has the table; `frame` all numbers.

    Attributes
    ----------
    target : str
        What was to be predicted.
    sentence : str
        Which measure orders the runs best, by Kendall's coefficient if that is there.
    confidence_level : float
        Of the intervals.
    n_runs, n_dropped : int
        Runs with a target, and those without (of training that diverged).
    n_clusters : int
        Independent units of the bootstrap: runs, or seeds.
    notes : list of str
        What is not defined, and why.
    """

    target: str
    sentence: str
    confidence_level: float
    n_runs: int
    n_dropped: int
    n_clusters: int
    notes: list[str]
    _rows: list[dict[str, Any]]

    guide = "rank_correlations"

    @property
    def title(self) -> str:
        """What the report is about."""
        dropped = f", {self.n_dropped} more without it" if self.n_dropped else ""
        return (
            f"{self.n_runs} runs with {self.target!r}{dropped}; intervals of "
            f"{self.confidence_level:.0%} from resampling {self.n_clusters} units"
        )

    @property
    def remarks(self) -> list[str]:
        """Lines below the table besides the sentence."""
        return list(self.notes)

    def rows(self) -> list[dict[str, Any]]:
        """Return the numbers.

        Returns
        -------
        rows : list of dict
            One a measure and coefficient: measure, coefficient, value, low, high,
            n_runs (runs that have the measure and the target).
        """
        return [dict(row) for row in self._rows]

    def cells(self) -> list[dict[str, str]]:
        """Return the numbers as they are shown.

        Returns
        -------
        cells : list of dict
            One row a measure, one column a coefficient.
        """
        table: dict[str, dict[str, str]] = {}
        for row in self._rows:
            shown = number(row["value"])
            if not math.isnan(row["low"]):
                shown = f"{row['value']:.2f} ({row['low']:.2f} to {row['high']:.2f})"
            cells = table.setdefault(row["measure"], {"measure": row["measure"]})
            cells[row["coefficient"].replace("_", " ")] = shown
        return list(table.values())


def rank_correlations(
    runs: Any,
    measures: str | Sequence[str],
    target: str,
    hyperparameters: Sequence[str] | None = None,
    *,
    control: str | Sequence[str] | None = None,
    groups: str | None = None,
    coefficients: Sequence[str] | None = None,
    n_resamples: int = 1000,
    confidence_level: float = 0.95,
    random_state: Any = 0,
) -> RankCorrelations:
    r"""Say how well measures of generalization order runs by a target.

    Parameters
    ----------
    runs : DataFrame, list of dict, or dict of str to array-like
        One row a run; ``cv_results_`` of a search is such a dict.
    measures : str or list of str
        Columns of the measures.
    target : str
        Column of what they are to predict, such as the generalization gap.
    hyperparameters : list of str, default=None
        Columns that tell how the runs were trained. None takes those that begin with
        ``param_``, as in ``cv_results_``.
    control : str or list of str, default=None
        Columns that `partial_spearman` holds fixed, such as the training loss.
    groups : str, default=None
        Column of the independent units, such as the seed of the data: whole groups are
        resampled. None resamples runs.
    coefficients : list of str, default=None
        Some of "pearson", "spearman", "kendall", "partial_spearman",
        "granulated_kendall", "conditional_information" and "sign_error"; None is all
        that the given columns allow.
    n_resamples : int, default=1000
        Samples of the bootstrap; 0 gives no intervals.
    confidence_level : float, default=0.95
        Of the percentile intervals.
    random_state : int, RandomState instance or None, default=0
        Seed of the bootstrap.

    Returns
    -------
    result : RankCorrelations
        Coefficients with intervals.

    Raises
    ------
    TypeError
        If the runs are no table.
    ValueError
        If a column is missing or holds no numbers, an option is not valid, or fewer
        than three runs have the target.

    See Also
    --------
    compare_measures : The measures of one model.

    Notes
    -----
    Runs without the target are dropped and counted in ``n_dropped``; those without a
    measure are left out for that measure (``n_runs`` of its rows). Nothing is flipped:
    of a good measure all coefficients are near 1, but for the sign error, near 0.

    - *pearson*, *spearman*, *kendall* (tau-b): over all runs, confounded by whatever
      moves the measure and the target alike.
    - *partial_spearman*: between what the ranks of `control` leave of both.
    - *granulated_kendall*: mean over hyperparameters of Kendall's coefficient between
      runs that differ in that one only [1]_.
    - *conditional_information*: what the sign of a difference in the measure tells of
      that in the target, given up to two hyperparameters, relative to what is to be
      told; the least over them [1]_. It has no sign: a measure that is always wrong
      has 1. It is that of the paper; the program of the PGDL competition [2]_ takes
      pairs of hyperparameters alone and other means.
    - *sign_error*: the largest share of wrong signs over pairs of settings that differ
      in one hyperparameter [3]_, without weights. With one run a setting it is 0 or 1.

    The bootstrap resamples runs with replacement and takes their pairs again; a run
    makes no pair with its own copy. Its intervals of *sign_error* and
    *conditional_information*, an extreme of many means, are rough.

    References
    ----------
    .. [1] Y. Jiang, B. Neyshabur, H. Mobahi, D. Krishnan, S. Bengio, "Fantastic
       Generalization Measures and Where to Find Them", ICLR 2020.
    .. [2] Y. Jiang et al., "NeurIPS 2020 Competition: Predicting Generalization in
       Deep Learning", 2020.
    .. [3] G. K. Dziugaite et al., "In Search of Robust Measures of Generalization",
       NeurIPS 2020.

    Examples
    --------
    Four trainings. The measure orders the learning rates as the gap does, and the batch
    sizes the other way round:

    >>> from sklearn_relflat import rank_correlations
    >>> runs = [
    ...     {"lr": 0.1, "batch": 32, "flatness": 2.0, "gap": 1.0},
    ...     {"lr": 0.1, "batch": 64, "flatness": 1.0, "gap": 2.0},
    ...     {"lr": 0.2, "batch": 32, "flatness": 4.0, "gap": 3.0},
    ...     {"lr": 0.2, "batch": 64, "flatness": 3.0, "gap": 4.0},
    ... ]
    >>> result = rank_correlations(
    ...     runs, "flatness", "gap", ["lr", "batch"], n_resamples=0
    ... )
    >>> for row in result.rows():
    ...     print(f"{row['coefficient']:24} {row['value']:5.2f}")
    pearson                   0.60
    spearman                  0.60
    kendall                   0.33
    granulated_kendall        0.00
    conditional_information   0.08
    sign_error                1.00
    """
    table = Runs(runs)
    measures = [measures] if isinstance(measures, str) else list(measures)
    controls = _as_list(control)
    named = (
        table.hyperparameters if hyperparameters is None else _as_list(hyperparameters)
    )
    chosen = _chosen(coefficients, bool(controls), bool(named))
    _check_options(measures, n_resamples, confidence_level)
    goal = table.numbers(target)
    has_target = np.isfinite(goal)
    if has_target.sum() < _FEWEST_RUNS:
        raise ValueError(
            f"Expected at least {_FEWEST_RUNS} runs with a finite {target!r}, got "
            f"{int(has_target.sum())} of {len(goal)}."
        )
    codes = table.codes(named)
    cluster = groups_of(table.codes([groups])) if groups else np.arange(len(goal))
    held = np.array([table.numbers(name) for name in controls])
    held = held.reshape(len(controls), len(goal)).T
    seed = check_random_state(random_state).randint(2**31 - 1)
    columns = {name: table.numbers(name) for name in measures}
    needed = has_target
    if "partial_spearman" in chosen:
        needed = has_target & np.isfinite(held).all(axis=1)
    found: dict[str, np.ndarray] = {}
    counts: dict[str, int] = {}
    for kept, names in _by_their_runs(columns, needed):
        counts |= dict.fromkeys(names, int(kept.sum()))
        if kept.sum() < _FEWEST_RUNS:
            empty = np.full((len(chosen), 1 + n_resamples), np.nan)
            found |= dict.fromkeys(names, empty)
            continue
        drawn = _drawn(cluster[kept], n_resamples, seed)
        own = {name: columns[name][kept] for name in names}
        found |= _evaluated(chosen, own, goal[kept], held[kept], codes[kept], drawn)
    rows = [
        {
            "measure": name,
            "coefficient": coefficient,
            **_with_interval(samples, float(confidence_level)),
            "n_runs": counts[name],
        }
        for name in measures
        for coefficient, samples in zip(chosen, found[name], strict=True)
    ]
    return RankCorrelations(
        target=target,
        sentence=_sentence(rows, chosen, target),
        confidence_level=float(confidence_level),
        n_runs=int(has_target.sum()),
        n_dropped=int((~has_target).sum()),
        n_clusters=len(np.unique(cluster[has_target])),
        notes=_undefined(rows),
        _rows=rows,
    )


def _as_list(names: str | Sequence[str] | None) -> list[str]:
    """Names as a list."""
    if names is None:
        return []
    return [names] if isinstance(names, str) else list(names)


def _chosen(
    coefficients: Sequence[str] | None, has_control: bool, has_names: bool
) -> list[str]:
    """Coefficients that are asked for, checked against what was given."""
    possible = [
        name
        for name in COEFFICIENTS
        if (has_control or name != "partial_spearman")
        and (has_names or name not in OF_HYPERPARAMETERS)
    ]
    if coefficients is None:
        return possible
    for name in _as_list(coefficients):
        if name not in COEFFICIENTS:
            raise ValueError(
                f"Expected coefficients among {list(COEFFICIENTS)}, got {name!r}."
            )
        if name not in possible:
            lacking = "control" if name == "partial_spearman" else "hyperparameters"
            raise ValueError(
                f"Expected {lacking} for the coefficient {name!r}, got none. Name the "
                "columns."
            )
    return _as_list(coefficients)


def _check_options(measures: list[str], n_resamples: Any, level: Any) -> None:
    """Raise for options that are not valid."""
    if not measures:
        raise ValueError("Expected at least one measure, got none. Name its column.")
    if (
        isinstance(n_resamples, bool)
        or not isinstance(n_resamples, Integral)
        or n_resamples < 0
    ):
        raise ValueError(
            f"Expected n_resamples to be an integer of at least 0, got {n_resamples!r}."
        )
    if not isinstance(level, Real) or not 0 < float(level) < 1:
        raise ValueError(
            f"Expected confidence_level between 0 and 1, got {level!r}. Use 0.95."
        )


def _by_their_runs(
    columns: dict[str, np.ndarray], needed: np.ndarray
) -> list[tuple[np.ndarray, list[str]]]:
    """Measures that the same runs have: these share their samples and pairs."""
    names: dict[bytes, list[str]] = {}
    for name, values in columns.items():
        names.setdefault((needed & np.isfinite(values)).tobytes(), []).append(name)
    return [(np.frombuffer(key, dtype=bool), own) for key, own in names.items()]


def _with_interval(samples: np.ndarray, level: float) -> dict[str, float]:
    """Value of the runs themselves, with the percentiles of the bootstrap."""
    value, low, high = float(samples[0]), math.nan, math.nan
    defined = samples[1:][np.isfinite(samples[1:])]
    if len(defined) and math.isfinite(value):
        tail = (1 - level) / 2
        low, high = map(float, np.quantile(defined, [tail, 1 - tail]))
    return {"value": value, "low": low, "high": high}


def _drawn(cluster: np.ndarray, n_resamples: int, seed: int) -> list[np.ndarray]:
    """Return the indices of all runs, then those of each bootstrap sample."""
    rng = np.random.default_rng(seed)
    names = np.unique(cluster)
    members = [np.flatnonzero(cluster == name) for name in names]
    samples = [np.arange(len(cluster))]
    for _ in range(n_resamples):
        chosen = rng.integers(len(names), size=len(names))
        samples.append(np.concatenate([members[k] for k in chosen]))
    return samples


def _evaluated(
    chosen: list[str],
    columns: dict[str, np.ndarray],
    target: np.ndarray,
    control: np.ndarray,
    codes: np.ndarray,
    drawn: list[np.ndarray],
) -> dict[str, np.ndarray]:
    """Coefficients of each measure in each sample: (n_coefficients, n_samples)."""
    pairs = RunPairs(codes)
    found = {name: np.full((len(chosen), len(drawn)), np.nan) for name in columns}
    step = max(1, _HELD_NUMBERS // len(pairs.first))
    # Samples of clusters of unequal size have unequal numbers of runs.
    by_size: dict[int, list[int]] = {}
    for i, sample in enumerate(drawn):
        by_size.setdefault(len(sample), []).append(i)
    for positions in by_size.values():
        for start in range(0, len(positions), step):
            here = positions[start : start + step]
            samples = Samples(
                np.stack([drawn[i] for i in here]), target, control, pairs
            )
            for name, values in columns.items():
                for k, coefficient in enumerate(chosen):
                    found[name][k, here] = COEFFICIENTS[coefficient](values, samples)
    return found


def _undefined(rows: list[dict[str, Any]]) -> list[str]:
    """Say which coefficients are not defined, and why."""
    missing: dict[str, list[str]] = {}
    for row in rows:
        if math.isnan(row["value"]):
            missing.setdefault(row["coefficient"], []).append(row["measure"])
    reasons = dict.fromkeys(COEFFICIENTS, "a constant column, or fewer than three runs")
    reasons["partial_spearman"] = "the control explains a column's ranks entirely"
    for name in ("granulated_kendall", "sign_error"):
        reasons[name] = "no two runs differ in one hyperparameter only"
    reasons["conditional_information"] = "no pair of runs differs in both"
    return [
        f"{coefficient.replace('_', ' ')} of {listed(names)} is not defined: "
        f"{reasons[coefficient]}."
        for coefficient, names in missing.items()
    ]


def _sentence(rows: list[dict[str, Any]], chosen: list[str], target: str) -> str:
    """Say which measure orders the runs best."""
    first = next((c for c in ("kendall", "spearman") if c in chosen), chosen[0])
    own = [r for r in rows if r["coefficient"] == first and r["value"] == r["value"]]
    label = first.replace("_", " ")
    if not own:
        return f"No measure has a {label} coefficient with {target!r}."
    best = max(own, key=lambda row: abs(row["value"] - 0.5 * (first == "sign_error")))
    text = (
        f"Of {len(own)} measures, {best['measure']!r} is the most telling of "
        f"{target!r}: {label} {best['value']:.2f}"
    )
    if math.isnan(best["low"]):
        return f"{text}."
    return f"{text} ({best['low']:.2f} to {best['high']:.2f})."
