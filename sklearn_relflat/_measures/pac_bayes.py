"""PAC-Bayes flatness: how much noise in the weights the accuracy withstands."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.optimize import bisect

from sklearn_relflat._curvature.problem import Problem, open_problem
from sklearn_relflat._measures.badness import METRICS, has_accuracy
from sklearn_relflat._measures.measurement import Measurement, measured
from sklearn_relflat._measures.noise import Noise, check_n_draws
from sklearn_relflat._measures.weight_space import WeightSpace
from sklearn_relflat._progress.bar import progress_bar

# Noise beyond this many times the size of the weights leaves nothing of the weights.
_MAX_DOUBLINGS = 10
# Noise this much smaller than the weights is lost in double precision.
_MAX_HALVINGS = 50
_DOUBLE = math.log(2)
# Ends of the chord whose slope is taken for that of the badness in sigma.
_CHORD = (1 / 1.25, 1.25)


def pac_bayes_flatness(
    estimator: Any,
    X: Any,
    y: Any = None,
    *,
    layer: str | Sequence[str] | None = None,
    loss: Any = None,
    metric: str = "accuracy",
    drop: float = 0.1,
    magnitude_aware: bool = False,
    n_draws: int = 16,
    rtol: float = 0.01,
    sample_weight: Any = None,
    random_state: Any = None,
    verbose: int = 0,
) -> Measurement:
    """Inverse variance of the noise in the weights that the model just withstands.

    Parameters
    ----------
    estimator : estimator
        A fitted model, see `relative_flatness`.
    X : {array-like, sparse matrix, Tensor, Dataset, dict} of shape (n_samples, ...)
        The sample.
    y : array-like of shape (n_samples,) or (n_samples, n_outputs), default=None
        Targets; None only where X is a data set that carries them.
    layer : str or sequence of str, default=None
        Name of a layer; None is the output layer, "all" the weights of all layers
        together. Biases get no noise.
    loss : str, torch criterion or callable, default=None
        The loss, for ``metric="loss"`` and the mean loss of the result.
    metric : {"accuracy", "loss"}, default="accuracy"
        What must not get worse by more than `drop`: the accuracy of a classifier, or
        the mean loss of any model. A regressor has no accuracy. Samples count with
        their weights, also with those from a scikit-learn model's ``class_weight``.
    drop : float, default=0.1
        How much worse it may get on the average over the noise: accuracy as a fraction,
        the mean loss in its own unit.
    magnitude_aware : bool, default=False
        Whether the noise of each weight is proportional to its absolute value, which
        makes the measure invariant to rescaling layers and neurons.
    n_draws : int, default=16
        Number of draws of the noise. All standard deviations share them.
    rtol : float, default=0.01
        Relative width of the bracket of the standard deviation at which the bisection
        stops.
    sample_weight : array-like of shape (n_samples,), default=None
        Weights of the samples.
    random_state : int, RandomState instance or None, default=None
        Seed of the noise.
    verbose : int, default=0
        1 shows a bar that counts the standard deviations that were tried, with the
        time left once the bisection begins. There is no ``n_jobs``: each of them
        depends on the one before.

    Returns
    -------
    result : Measurement
        ``1 / sigma^2``, with sigma the largest standard deviation that is withstood;
        0.0 if no noise is too much, as for a model that predicts no better than chance.
        `stderr` is that of the average over the draws, `tolerance` the width of the
        last bracket.

    Raises
    ------
    ValueError
        If an option is not valid, the model has no accuracy, or the smallest noise is
        too much already.

    Notes
    -----
    The perturbed weights are ``w + sigma * u`` with standard normal u, or ``w * (1 +
    sigma * u)`` if `magnitude_aware` (the variant of [2]_, without its constant for
    weights of zero). Bisection looks for the first sigma at which the average over the
    draws falls below the unperturbed accuracy minus `drop`. Large is sharp.

    References
    ----------
    .. [1] B. Neyshabur, S. Bhojanapalli, D. McAllester, N. Srebro, "Exploring
       Generalization in Deep Learning", NeurIPS 2017.
    .. [2] Y. Jiang, B. Neyshabur, H. Mobahi, D. Krishnan, S. Bengio, "Fantastic
       Generalization Measures and Where to Find Them", ICLR 2020, appendix C.

    Examples
    --------
    With the squared loss the rise is ``sigma^2 / 2`` times the trace of the Hessian, so
    that a drop of 0.5 gives back the trace:

    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LinearRegression
    >>> from sklearn_relflat import hessian_trace, pac_bayes_flatness
    >>> X, y = load_iris(return_X_y=True)
    >>> model = LinearRegression().fit(X, y)
    >>> flatness = pac_bayes_flatness(
    ...     model, X, y, metric="loss", drop=0.5, n_draws=500, random_state=0
    ... )
    >>> bool(abs(flatness.value - hessian_trace(model, X, y).value) < 20)
    True
    """
    with open_problem(
        estimator,
        X,
        y,
        layer=layer,
        loss=loss,
        sample_weight=sample_weight,
        random_state=random_state,
        trusted=False,
    ) as problem:
        return pac_bayes_of(
            problem,
            metric=metric,
            drop=drop,
            magnitude_aware=magnitude_aware,
            n_draws=n_draws,
            rtol=rtol,
            verbose=verbose,
        )


def pac_bayes_of(
    problem: Problem,
    *,
    metric: str = "accuracy",
    drop: float = 0.1,
    magnitude_aware: bool = False,
    n_draws: int = 16,
    rtol: float = 0.01,
    verbose: int = 0,
) -> Measurement:
    """PAC-Bayes flatness of an open problem; see `pac_bayes_flatness`."""
    _check_options(problem, metric, drop, n_draws, rtol)
    noise = Noise(WeightSpace(problem), metric, magnitude_aware, n_draws)
    loss_before, badness_before = noise.at_weights()
    name = "pac_bayes_flatness"
    method = "magnitude_aware_bisection" if magnitude_aware else "bisection"
    with progress_bar(title=name, unit="sigma", verbose=verbose) as bar:
        search = _Search(noise.badness, badness_before + drop, rtol, bar)
        log_low, log_high = search.bracket(noise.unit())
        if math.isinf(log_low):
            return measured(problem, name, 0.0, method=method, mean_loss=loss_before)
        sigma_stderr = search.stderr(log_low, badness_before)
    low, high = math.exp(log_low), math.exp(log_high)
    return measured(
        problem,
        name,
        low**-2,
        method=method,
        stderr=2 * low**-3 * sigma_stderr,
        tolerance=low**-2 - high**-2,
        mean_loss=loss_before,
    )


def _check_options(
    problem: Problem, metric: str, drop: float, n_draws: int, rtol: float
) -> None:
    """Raise where an option is not valid."""
    if metric not in METRICS:
        raise ValueError(
            f"Expected metric to be one of {list(METRICS)}, got {metric!r}."
        )
    if not drop > 0:
        raise ValueError(f"Expected drop to be a positive number, got {drop!r}.")
    if metric == "accuracy" and not drop < 1:
        raise ValueError(
            f"Expected a drop in accuracy of less than 1, got {drop!r}. It is a "
            "fraction: 0.1 for ten percentage points."
        )
    check_n_draws(n_draws)
    if not 0 < rtol < 1:
        raise ValueError(f"Expected rtol to be between 0 and 1, got {rtol!r}.")
    if metric == "accuracy" and not has_accuracy(problem):
        raise ValueError(
            f"Expected a classifier for the drop in accuracy, got "
            f"{problem.view.estimator_name} with the loss {problem.view.loss.name!r}. "
            'Pass metric="loss" and, as drop, by how much the mean loss may rise.'
        )


# ---------------------------------------------------------------------------
# The largest noise that is withstood
# ---------------------------------------------------------------------------
@dataclass
class _Search:
    """Where the mean badness first exceeds a limit, on a scale of logarithms."""

    badness: Callable[[float], np.ndarray]
    limit: float
    rtol: float
    bar: Any
    seen: dict[float, np.ndarray] = field(default_factory=dict)

    def at(self, log_sigma: float) -> np.ndarray:
        """Badness under noise of some size, computed once."""
        if log_sigma not in self.seen:
            self.seen[log_sigma] = self.badness(math.exp(log_sigma))
            self.bar.update()
        return self.seen[log_sigma]

    def excess(self, log_sigma: float) -> float:
        """Whether noise of this size is too much: 1 or -1."""
        # Rounding of a mean of counts must not decide.
        limit = self.limit + 1e-12 * abs(self.limit)
        mean = float(self.at(log_sigma).mean())
        # What overflows to NaN is too much as well.
        return -1.0 if mean <= limit else 1.0

    def bracket(self, unit: float) -> tuple[float, float]:
        """Neighbouring sizes, as logarithms, of which only the larger is too much."""
        start = math.log(unit)
        low, high = -math.inf, start - 3 * _DOUBLE
        while self.excess(high) < 0:
            low, high = high, high + _DOUBLE
            if high > start + _MAX_DOUBLINGS * _DOUBLE:
                return math.inf, math.inf
        while low == -math.inf:
            if high < start - _MAX_HALVINGS * _DOUBLE:
                raise ValueError(
                    "The accuracy or loss gets worse by more than drop under the "
                    f"smallest noise, of standard deviation {math.exp(high)!r}: the "
                    "outputs of several classes are equal. Train the model first."
                )
            if self.excess(high - _DOUBLE) > 0:
                high -= _DOUBLE
            else:
                low = high - _DOUBLE
        # What is left is known from here on: halvings, and two ends of a chord.
        width = math.log1p(self.rtol)
        halvings = math.ceil(math.log2((high - low) / width))
        self.bar.total = self.bar.n + halvings + len(_CHORD)
        bisect(self.excess, low, high, xtol=width)
        inside = [t for t in self.seen if low <= t <= high]
        return (
            max(t for t in inside if self.excess(t) < 0),
            min(t for t in inside if self.excess(t) > 0),
        )

    def stderr(self, log_sigma: float, start: float) -> float:
        """Divide the standard error of the mean badness by its slope in sigma."""
        draws, sigma = self.at(log_sigma), math.exp(log_sigma)
        error = float(draws.std(ddof=1)) / math.sqrt(len(draws))
        if not error:
            return 0.0
        means = []
        for factor in _CHORD:
            means.append(float(np.mean(self.badness(sigma * factor))))
            self.bar.update()
        below, above = (sigma * factor for factor in _CHORD)
        rise = means[1] - means[0]
        slope = rise / (above - below)
        if not (math.isfinite(slope) and slope > 0):
            # The chord from no noise: the limit exceeds the start.
            slope = (self.limit - start) / sigma
        return error / slope
