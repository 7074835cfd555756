"""Generalization bound of relative flatness, estimated from the training sample."""

from typing import Any

import numpy as np
from sklearn.frozen import FrozenEstimator
from sklearn.utils import Bunch
from sklearn.utils._param_validation import StrOptions, validate_parameter_constraints

from sklearn_relflat._data.inputs import as_numpy
from sklearn_relflat._density.radial_kernels import RADIAL_KERNELS, Seed
from sklearn_relflat._flatness.relative_flatness import relative_flatness
from sklearn_relflat._models.view import as_torch_model
from sklearn_relflat._representativeness.local_risk import LocalDensities
from sklearn_relflat._representativeness.representativeness import (
    KDERepresentativeness,
    check_refit,
)
from sklearn_relflat._representativeness.split_errors import (
    own_random_state,
    split_errors,
)
from sklearn_relflat._results.plottable import Plottable
from sklearn_relflat._results.result import Result
from sklearn_relflat._results.words import abbreviated, number
from sklearn_relflat._split.feature_split import FeatureSplit

# Theorem 5 needs perturbations of norm delta at most.
_BOUNDED_KERNELS = {k.name for k in RADIAL_KERNELS.values() if k.support <= 1.0}
_SHARED = ("layer", "n_splits", "test_size", "n_draws", "random_state", "n_jobs")
_CONSTRAINTS = {
    **{name: KDERepresentativeness._parameter_constraints[name] for name in _SHARED},
    "kernel": [StrOptions(_BOUNDED_KERNELS)],
    "refit": [StrOptions({"head", "estimator"})],
    "verbose": ["verbose"],
}


class GeneralizationBound(Plottable, Result, Bunch):
    """Result of `generalization_bound`, which has its keys.

    ``float(result)`` is the bound, if it was asked for at one delta.
    """

    guide = "generalization_bound"

    def __dir__(self) -> list[str]:
        """List the keys, as a Bunch does, the table and the picture."""
        return [*self, "frame", "plot"]

    def __float__(self) -> float:
        """Return the bound."""
        if np.ndim(self.bound):
            raise TypeError(
                "Expected a bound at one delta to make a number of, got "
                f"{len(self.bound)}. Choose one: result.bound[i]."
            )
        return float(self.bound)

    def rows(self) -> list[dict[str, Any]]:
        """Return the entries.

        Returns
        -------
        rows : list of dict
            One a delta, with all keys; what does not depend on it is repeated.
        """
        n = np.size(self.delta)
        columns = {key: np.broadcast_to(value, n) for key, value in self.items()}
        return [{key: columns[key][i].item() for key in columns} for i in range(n)]

    def cells(self) -> list[dict[str, str]]:
        """Return the rows as they are shown.

        Returns
        -------
        cells : list of dict
            Short texts by column; the middle of a long table is left out.
        """
        return abbreviated([self._cells(row) for row in self.rows()])

    @staticmethod
    def _cells(row: dict[str, Any]) -> dict[str, str]:
        """One delta as it is shown."""
        error = row["representativeness_stderr"]
        return {
            "delta": number(row["delta"]),
            "bound": number(row["bound"], error),
            "representativeness": number(row["representativeness"], error),
            "flatness term": number(row["flatness_term"]),
            "feature robustness": number(row["feature_robustness"]),
        }

    @property
    def title(self) -> str:
        """What the result is about."""
        return (
            f"Estimated generalization gap from {self.n_samples} samples and "
            f"{self.n_features} features; relative flatness {number(self.kappa)}"
        )

    def _sentence(self) -> str:
        """Say what the gap is, and where it comes from."""
        best = min(self.rows(), key=lambda row: row["bound"])
        smallest = "smallest " if np.ndim(self.bound) else ""
        return (
            f"The {smallest}estimate is {number(best['bound'])} at delta = "
            f"{number(best['delta'])}: representativeness "
            f"{number(best['representativeness'], best['representativeness_stderr'])} "
            f"plus flatness term {number(best['flatness_term'])}; the cross-validated "
            f"gap is {number(best['cross_validated_gap'])}."
        )

    def __repr__(self) -> str:
        """Return the sentence."""
        return f"<{type(self).__name__}: {self._sentence()}>"


def generalization_bound(
    estimator: Any,
    X: Any,
    y: Any = None,
    *,
    delta: Any = 0.1,
    layer: str | None = None,
    kernel: str = "truncated_gaussian",
    n_splits: int = 10,
    test_size: float = 0.2,
    n_draws: int = 8,
    refit: str = "estimator",
    random_state: Seed = None,
    n_jobs: int | None = None,
    verbose: int = 0,
) -> GeneralizationBound:
    """Estimate the generalization gap by representativeness plus flatness.

    The gap is exactly representativeness plus feature robustness (equation 5 of [1]_),
    and delta^2/(2m) kappa bounds the robustness at a minimum, to second order in delta
    (Theorem 5). Representativeness is *estimated*, from random splits of the training
    sample. So the sum is an estimate, and no bound any more: it may lie below the gap.

    What it adds to the cross-validated gap, which is returned beside it, is that it
    says where the gap comes from. By the same identity within each split, ``bound``
    is that gap, with the robustness of the refitted models replaced by the flatness
    term. As a number to rank models by, it therefore tells little more than that gap.

    Parameters
    ----------
    estimator : estimator
        A fitted model, see `relative_flatness`.
    X : array-like of shape (n_samples, n_features), or what else the model takes
        Training sample.
    y : array-like of shape (n_samples,) or (n_samples, n_outputs), default=None
        Targets; None only where X is a data set that carries them.
    delta : float or array-like of shape (n_deltas,), default=0.1
        Radius of the perturbations relative to the norm of the features, or a grid
        of radii, evaluated on the same splits, refitted models and draws.
    layer : str, default=None
        Name of the layer, see `list_layers`; None is the output layer.
    kernel : {"truncated_gaussian", "epanechnikov", "uniform"}, \
            default="truncated_gaussian"
        Kernel of the local densities.
    n_splits : int, default=10
        Number of random splits.
    test_size : float or int, default=0.2
        Share of the samples, or their number, that each split holds out.
    n_draws : int, default=8
        Draws from each local density, see `KDERepresentativeness`.
    refit : {"estimator", "head"}, default="estimator"
        What is fitted to the training part of each split: a clone of the estimator, or
        the output layer alone, on the features of the given model. "head" is cheap
        and right for features that were not learned from X. A network's have seen the
        held-out samples: representativeness and cross-validated gap come out much too
        small.
    random_state : int, RandomState instance or None, default=None
        Seed of the splits and draws.
    n_jobs : int, default=None
        Number of processes that refit the estimator, one split each; -1 is all cores.
        The numbers are the same for any, if each fit of the estimator is a function of
        its data: give it a seed.
    verbose : int, default=0
        1 shows a bar that counts the splits, with the time left.

    Returns
    -------
    result : Bunch
        Its ``plot()`` opens `GeneralizationBoundDisplay`. With a grid of deltas, the
        entries marked * are arrays of shape (n_deltas,).

        bound * : float
            representativeness + flatness_term.
        representativeness * : float
            Mean over the splits of the held-out risk minus the smoothed training risk.
        representativeness_std * : float
            Its standard deviation over the splits.
        representativeness_stderr * : float
            Its standard error, corrected for the overlap of the splits.
        monte_carlo_stderr * : float
            The part of that error that the draws cause.
        flatness_term * : float
            delta^2/(2m) kappa.
        feature_robustness * : float
            What the flatness term stands for, measured on X, y: smoothed risk minus
            risk of the given model. To second order in delta, E[r^2] / delta^2 < 1
            times the flatness term, with r the radius of the kernel.
        delta * : float
            The radius.
        best_delta : float
            The delta with the smallest bound: where the flatness term exceeds the
            robustness of the refitted models by least. The minimum over a grid is lower
            than fresh splits would give, so choose delta beforehand to report a number.
        kappa : float
            Relative flatness on X, y.
        n_features : int
            Number of features m that enter the layer.
        n_samples : int
            Number of samples.
        cross_validated_gap, cross_validated_gap_std : float
            Held-out risk minus training risk, of the same refitted models on the same
            splits: mean and standard deviation over the splits.
        rate_exponent, rate : float
            The rate of Theorem 6, ``n_samples ** rate_exponent`` with the exponent
            -2/(4+m), at which the bound shrinks as the sample grows.
        rate_flatness_term : float
            rate * kappa / (2m), the term of Theorem 6 with the relative flatness. Its
            other constants depend on the unknown density and are left out.

    Raises
    ------
    TypeError
        If the model or layer is not supported.
    ValueError
        If a delta is not positive, an option or the data are not valid.
    sklearn.exceptions.NotFittedError
        If the estimator is not fitted.

    See Also
    --------
    KDERepresentativeness : The first term, as an estimator.
    relative_flatness : kappa.

    References
    ----------
    .. [1] Petzka, Kamp, Adilova, Sminchisescu, Boley, "Relative Flatness and
       Generalization", NeurIPS 2021, equation 5, Theorems 5 and 6.

    Examples
    --------
    For the squared error nothing is left to chance but the splits: without local
    densities (delta near zero) the representativeness is the cross-validated gap.

    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.linear_model import LinearRegression
    >>> from sklearn_relflat import generalization_bound
    >>> X, y = load_diabetes(return_X_y=True)
    >>> model = LinearRegression().fit(X, y)
    >>> grid = [1e-6, 0.1, 0.2]
    >>> result = generalization_bound(model, X, y, delta=grid, random_state=0)
    >>> ratio = result.representativeness[0] / result.cross_validated_gap
    >>> abs(float(ratio) - 1) < 1e-6
    True
    >>> round(float(result.flatness_term[2] / result.flatness_term[1]), 9)
    4.0
    """
    deltas = _checked_deltas(delta)
    options = {
        "layer": layer,
        "kernel": kernel,
        "n_splits": n_splits,
        "test_size": test_size,
        "n_draws": n_draws,
        "refit": refit,
        "random_state": random_state,
        "n_jobs": n_jobs,
        "verbose": verbose,
    }
    validate_parameter_constraints(_CONSTRAINTS, options, "generalization_bound")
    check_refit(estimator, refit)
    y = as_numpy(y, "y")
    as_torch_model(estimator)  # raises what is wrong with the estimator itself
    rng = own_random_state(random_state)
    frozen = isinstance(estimator, FrozenEstimator)
    model = FeatureSplit(
        estimator if frozen else FrozenEstimator(estimator), layer=layer
    ).fit(X, y)
    risk, result = split_errors(
        model,
        FeatureSplit(estimator, layer=layer),
        X,
        y,
        LocalDensities(np.atleast_1d(deltas), kernel, n_draws),
        refit=refit,
        n_splits=n_splits,
        test_size=test_size,
        rng=rng,
        n_jobs=n_jobs,
        verbose=verbose,
    )
    # After the splits, which are then those of KDERepresentativeness with this seed.
    flatness = relative_flatness(model, X, y, random_state=rng)
    n, m = len(risk), flatness.n_features
    # The risks here are means, whatever the reduction of the criterion.
    kappa = flatness.value / (n if risk.view.loss.reduction == "sum" else 1)
    flatness_term = np.atleast_1d(deltas) ** 2 / (2 * m) * kappa
    representativeness = result.errors.mean(axis=1)
    bound = representativeness + flatness_term
    exponent = -2.0 / (4.0 + m)
    per_delta = {
        "bound": bound,
        "representativeness": representativeness,
        "representativeness_std": result.errors.std(axis=1, ddof=1),
        "representativeness_stderr": result.stderr,
        "monte_carlo_stderr": result.monte_carlo_stderr,
        "flatness_term": flatness_term,
        "feature_robustness": result.smoothed_risk - result.empirical_risk,
        "delta": np.atleast_1d(deltas),
    }
    if deltas.ndim == 0:
        per_delta = {name: float(values[0]) for name, values in per_delta.items()}
    return GeneralizationBound(
        **per_delta,
        best_delta=float(np.atleast_1d(deltas)[bound.argmin()]),
        kappa=kappa,
        n_features=m,
        n_samples=n,
        cross_validated_gap=float(result.gaps.mean()),
        cross_validated_gap_std=float(result.gaps.std(ddof=1)),
        rate_exponent=exponent,
        rate=float(n**exponent),
        rate_flatness_term=float(n**exponent * kappa / (2 * m)),
    )


def _checked_deltas(delta: Any) -> np.ndarray:
    """Return one positive delta as a 0-d array, or several as a 1-d array."""
    try:
        deltas = np.array(delta, dtype=np.float64)
    except (TypeError, ValueError):
        deltas = np.empty(0)
    valid = deltas.ndim <= 1 and deltas.size > 0 and not isinstance(delta, bool)
    # The square of a radius has to be a number, too.
    if not (valid and (deltas < 1e150).all() and (deltas > 0).all()):
        raise ValueError(
            "Expected delta to be a positive number or a list of them, the radii of "
            f"the feature perturbations, got {delta!r}. Typical values lie between "
            "0.01 and 1."
        )
    return deltas
