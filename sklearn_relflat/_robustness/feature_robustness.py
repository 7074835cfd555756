"""Feature robustness of a fitted model (Petzka et al., NeurIPS 2021, Definition 1)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from sklearn_relflat._curvature.problem import Problem, open_problem
from sklearn_relflat._flatness.relative_flatness import relative_flatness
from sklearn_relflat._layers.names import one_layer
from sklearn_relflat._results.plottable import Plottable
from sklearn_relflat._results.result import Result
from sklearn_relflat._results.words import abbreviated, number
from sklearn_relflat._robustness.perturbations import resolve_matrices
from sklearn_relflat._robustness.perturbed_labels import PerturbedLabels
from sklearn_relflat._robustness.sums import robustness_sums


@dataclass(frozen=True, eq=False)
class FeatureRobustness(Plottable, Result):
    """How much the loss rises when the features of one layer are perturbed.

    ``E_F(delta, A)`` is the mean loss with features ``(I + delta A) phi`` minus that
    with features ``phi``.

    Attributes
    ----------
    deltas : ndarray of shape (n_deltas,)
        Sizes of the perturbations, as given.
    values : ndarray of shape (n_deltas, n_matrices)
        E_F for every size and matrix.
    draw_index : ndarray of shape (n_matrices,)
        The independent draw that a matrix belongs to: pairs A, -A are one draw.
    first_order, second_order : ndarray of shape (n_matrices,)
        Taylor coefficients of E_F with constant labels in delta:
        ``delta * first_order + delta^2 * second_order``.
    value_at_zero : float
        E_F at delta = 0: zero unless labels were given by a function.
    flatness : float
        Relative flatness kappa of the layer.
    flatness_stderr : float
        Its standard error; 0.0 when exact.
    second_moment : float or None
        c with ``E[A_kt A_k't'] = (c / m) delta_kk' delta_tt'``, 1 for orthogonal
        matrices; None if the second moments are not of this form or not known.
    layer : str
        The layer.
    loss : str
        The loss.
    matrices : str
        The distribution of the matrices.
    n_samples : int
        Number of samples.
    n_features : int
        Number of features m that enter the layer.
    mean_loss : float
        Mean loss with the features as they are.
    """

    deltas: np.ndarray
    values: np.ndarray
    draw_index: np.ndarray
    first_order: np.ndarray
    second_order: np.ndarray
    value_at_zero: float
    flatness: float
    flatness_stderr: float
    second_moment: float | None
    layer: str
    loss: str
    matrices: str
    n_samples: int
    n_features: int
    mean_loss: float

    guide = "robustness"

    def _draws(self, values: np.ndarray) -> np.ndarray:
        """Means over the matrices of each draw, along the last axis."""
        starts = np.flatnonzero(np.diff(self.draw_index, prepend=-1))
        counts = np.diff(starts, append=len(self.draw_index))
        return np.add.reduceat(values, starts, axis=-1) / counts

    def _stderr(self, values: np.ndarray) -> np.ndarray:
        """Compute the standard error of the mean over draws; infinite for one draw."""
        draws = self._draws(values)
        n = draws.shape[-1]
        if n == 1:
            return np.full(draws.shape[:-1], np.inf)
        return draws.std(axis=-1, ddof=1) / np.sqrt(n)

    @property
    def mean(self) -> np.ndarray:
        """Mean over the draws, for each delta."""
        return self._draws(self.values).mean(axis=-1)

    @property
    def stderr(self) -> np.ndarray:
        """Standard error of `mean`; infinite where there is a single draw."""
        return self._stderr(self.values)

    @property
    def flatness_term(self) -> np.ndarray | None:
        """``delta^2 c / (2m) kappa`` (Theorem 5), or None where c is None."""
        if self.second_moment is None:
            return None
        factor = self.second_moment / (2 * self.n_features)
        return factor * self.deltas**2 * self.flatness

    @property
    def _quadratic(self) -> np.ndarray:
        """Second-order part of `values`."""
        return self.deltas[:, None] ** 2 * self.second_order

    @property
    def _excess(self) -> np.ndarray:
        """Mean over draws of what is not of second order, for each delta."""
        return self._draws(self.values - self._quadratic).mean(axis=-1)

    @property
    def expectation(self) -> np.ndarray:
        """Estimate of E_F, averaged over all matrices of the distribution.

        `mean` without the sampling error of its second-order part, whose expectation
        is `flatness_term`: for small deltas it is much more accurate than `mean`, of
        which it is a copy where `flatness_term` is None.
        """
        term = self.flatness_term
        return self.mean if term is None else term + self._excess

    @property
    def expectation_stderr(self) -> np.ndarray:
        """Standard error of `expectation`; infinite where there is a single draw."""
        if self.second_moment is None:
            return self.stderr
        return self._stderr(self.values - self._quadratic)

    @property
    def agreement_radius(self) -> float:
        """Largest delta up to which E_F agrees with its second-order term to 10 %.

        `expectation` is compared with `flatness_term`, or `mean` with the second-order
        term of the same matrices where that is None. Only values of the grid are
        considered: 0.0 if there is no agreement at the smallest one, and the true
        radius may lie beyond the largest one.
        """
        order = np.argsort(self.deltas)
        term = self.flatness_term
        if term is None:
            term = self._draws(self._quadratic).mean(axis=-1)
        agrees = (np.abs(self._excess) <= 0.1 * np.abs(term))[order]
        n_agree = len(agrees) if agrees.all() else int(agrees.argmin())
        return float(self.deltas[order][n_agree - 1]) if n_agree else 0.0

    def epsilon(self, delta: float | None = None, *, average: bool = False) -> float:
        """Return the smallest epsilon for which the model is feature robust.

        Definition 1 asks for ``E_F(alpha A) <= epsilon`` for all ``0 <= alpha <=
        delta`` and all matrices of norm at most one. Here alpha runs over zero and the
        grid, and A over the matrices that were drawn: the answer for all of them is at
        least as large.

        Parameters
        ----------
        delta : float, default=None
            The size up to which the model is to be robust; None is the largest one.
        average : bool, default=False
            Whether E_F is averaged over the matrices: robustness on average over a
            distribution.

        Returns
        -------
        epsilon : float
            At least zero where labels are constant.

        Raises
        ------
        ValueError
            If E_F was not evaluated up to delta.
        """
        smallest, largest = self.deltas.min(), self.deltas.max()
        limit = largest if delta is None else delta
        if not smallest <= limit <= largest:
            raise ValueError(
                f"Expected delta between {smallest:.6g} and {largest:.6g}, the grid "
                f"on which the robustness was evaluated, got {delta!r}. Evaluate it on "
                "another grid."
            )
        curve = self.mean if average else self.values.max(axis=1)
        return max(self.value_at_zero, float(curve[self.deltas <= limit].max()))

    def rows(self) -> list[dict[str, Any]]:
        """Return the rise at each size.

        Returns
        -------
        rows : list of dict
            One a delta, in the order as given: delta, mean, stderr, largest (over the
            matrices), flatness_term (NaN where it is None), expectation and
            expectation_stderr.
        """
        term = self.flatness_term
        none = np.full(len(self.deltas), np.nan)
        columns = {
            "delta": self.deltas,
            "mean": self.mean,
            "stderr": self.stderr,
            "largest": self.values.max(axis=1),
            "flatness_term": none if term is None else term,
            "expectation": self.expectation,
            "expectation_stderr": self.expectation_stderr,
        }
        return [
            dict(zip(columns, map(float, row), strict=True))
            for row in zip(*columns.values(), strict=True)
        ]

    def cells(self) -> list[dict[str, str]]:
        """Return the rows as they are shown.

        Returns
        -------
        cells : list of dict
            Short texts by column; the middle of a long table is left out.
        """
        return abbreviated(
            [
                {
                    "delta": number(row["delta"]),
                    "mean rise": number(row["mean"], row["stderr"]),
                    "largest": number(row["largest"]),
                    "flatness term": number(row["flatness_term"]),
                    "expected rise": number(
                        row["expectation"], row["expectation_stderr"]
                    ),
                }
                for row in self.rows()
            ]
        )

    @property
    def title(self) -> str:
        """What the result is about."""
        return (
            f"Rise of {self.loss} from {number(self.mean_loss)} on {self.n_samples} "
            f"samples; layer {self.layer!r}, {self.values.shape[1]} matrices of "
            f"{self.matrices}"
        )

    def _sentence(self) -> str:
        """Say how far the second order goes."""
        row = max(self.rows(), key=lambda row: row["delta"])
        radius = self.agreement_radius
        reach = (
            f"up to delta = {number(radius)}"
            if radius
            else "at no delta that was tried"
        )
        return (
            f"At delta = {number(row['delta'])} the mean loss rises by "
            f"{number(row['mean'], row['stderr'])} on average over the matrices; "
            f"{reach} the second order accounts for the rise to 10 %."
        )

    def __repr__(self) -> str:
        """Return a summary in one line."""
        i = int(self.deltas.argmax())
        term = self.flatness_term
        predicted = "" if term is None else f" (flatness term {term[i]:.4g})"
        return (
            f"<FeatureRobustness E_F = {self.mean[i]:.4g} +- {self.stderr[i]:.2g}"
            f"{predicted} at delta = {self.deltas[i]:.4g} in layer {self.layer!r}; "
            f"{self.values.shape[1]} matrices of {self.matrices}, {self.loss} "
            f"{self.mean_loss:.4g} on {self.n_samples} samples>"
        )


def feature_robustness(
    estimator: Any,
    X: Any,
    y: Any = None,
    *,
    deltas: Any,
    matrices: Any = "orthogonal",
    n_matrices: int = 32,
    labels: Callable[[np.ndarray], Any] | None = None,
    layer: str | None = None,
    loss: Any = None,
    sample_weight: Any = None,
    random_state: Any = None,
    verbose: int = 0,
) -> FeatureRobustness:
    """Measure how much the loss rises when features are perturbed.

    Parameters
    ----------
    estimator : estimator
        A fitted model, see `relative_flatness`.
    X : {array-like, sparse matrix, Tensor, Dataset, dict} of shape (n_samples, ...)
        The sample.
    y : array-like of shape (n_samples,) or (n_samples, n_outputs), default=None
        Targets; None only where X is a data set that carries them.
    deltas : float or array-like of shape (n_deltas,)
        Sizes of the perturbations relative to the features, positive, in any order.
        All of them use the same matrices.
    matrices : str, callable or array-like of shape (k, m, m), default="orthogonal"
        Where the matrices A come from, of norm at most one: "orthogonal" (uniform on
        the orthogonal group, in pairs A, -A), "ball" (orthogonal times a random radius,
        Proposition 2), "projection", "rank_one", a function ``(n_matrices, n_features,
        rng)`` that returns an array of them, or the matrices themselves.
    n_matrices : int, default=32
        Number of matrices; given ones are all used once.
    labels : callable, default=None
        None keeps the label of every sample. A function of the perturbed features, an
        array of shape (n_samples, m), or (n_samples, m, n_positions) for a layer that
        is applied at several positions, returns labels of the same kind as y.
    layer : str, default=None
        Name of the layer, see `list_layers`; None is the output layer.
    loss : str, torch criterion or callable, default=None
        The loss; None is the one that the model was trained with.
    sample_weight : array-like of shape (n_samples,), default=None
        Weights of the samples.
    random_state : int, RandomState instance or None, default=None
        Seed of the matrices.
    verbose : int, default=0
        1 shows a bar that counts the samples, with the time left. There is no
        ``n_jobs``: matrices share their passes over the data, in torch's own threads.

    Returns
    -------
    result : FeatureRobustness
        E_F for every size and matrix, and what relative flatness predicts.

    Raises
    ------
    TypeError
        If the model, the layer, the loss or `labels` is not supported.
    ValueError
        If an option or the data are not valid, a matrix has the wrong shape or a norm
        above one, or a number that is not finite turns up.
    sklearn.exceptions.NotFittedError
        If the model is not fitted.

    See Also
    --------
    relative_flatness : The curvature that the rise begins with.

    Notes
    -----
    For a model ``f(x) = psi(w, phi(x))`` with features phi that enter a layer,

        E_F(delta A) = mean_i [ l(psi(w, (I + delta A) phi_i), y_i) - l(f(x_i), y_i) ] .

    Because ``psi(w, (I + delta A) phi) = psi(w + delta w A, phi)``, only ``w A`` is
    needed of a matrix. This is also the meaning for convolutions and for layers that
    are applied to every token, where A acts on the unfolded patch or on the token, and
    for a layer that is called repeatedly, where it acts at every call. For "orthogonal"
    and "ball", and fewer neurons than features, no m x m matrix is made.

    At a minimum, with locally constant labels and on average over the matrices, E_F is
    ``delta^2 c / (2m) kappa`` up to higher orders (Theorem 5), with c = 1 for
    orthogonal matrices. Pairs A, -A make all odd orders vanish, also elsewhere.

    In the output layer all matrices and sizes cost one forward pass and what the last
    layer and the loss take. For any other layer each of the ``n_deltas * n_matrices``
    evaluations is a forward pass, in which the modules that end before the layer answer
    from memory; the second-order terms add about two backward passes for each matrix.
    Differences of losses are taken in float64, but a hidden layer computes in the
    model's own precision: in float32 they are accurate to about 1e-7, which for small
    deltas is more than their size.

    References
    ----------
    .. [1] H. Petzka, M. Kamp, L. Adilova, C. Sminchisescu, M. Boley, "Relative Flatness
       and Generalization", NeurIPS 2021, Definition 1, Proposition 2, Theorem 5.

    Examples
    --------
    For least squares the second order is exact, and so is Theorem 5:

    >>> import numpy as np
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.linear_model import LinearRegression
    >>> from sklearn_relflat import feature_robustness, relative_flatness
    >>> X, y = load_diabetes(return_X_y=True)
    >>> model = LinearRegression().fit(X, y)
    >>> rise = feature_robustness(model, X, y, deltas=[0.1, 1.0], random_state=0)
    >>> kappa = float(relative_flatness(model, X, y))
    >>> bool(np.allclose(rise.expectation, rise.deltas**2 / (2 * 10) * kappa))
    True
    >>> bool(np.all(abs(rise.mean - rise.expectation) < 3 * rise.stderr))
    True
    """
    sizes = _check_deltas(deltas)
    distribution = resolve_matrices(matrices)
    distribution.count(n_matrices)
    with open_problem(
        estimator,
        X,
        y,
        layer=one_layer(layer, "feature_robustness"),
        loss=loss,
        sample_weight=sample_weight,
    ) as problem:
        function = None if labels is None else _function(labels, y, problem)
        sums = robustness_sums(
            problem,
            sizes,
            distribution,
            n_matrices,
            labels=function,
            random_state=random_state,
            verbose=verbose,
        )
    flatness, flatness_stderr = sums.kappa, 0.0
    if flatness is None:
        measured = relative_flatness(
            estimator,
            X,
            y,
            layer=problem.label,
            loss=loss,
            sample_weight=sample_weight,
            random_state=random_state,
        )
        flatness, flatness_stderr = measured.value, measured.stderr
    (weight_layer,) = problem.layers.values()
    return FeatureRobustness(
        deltas=sizes,
        values=sums.values,
        draw_index=distribution.draw_index(n_matrices),
        first_order=sums.expansion[0],
        second_order=sums.expansion[1],
        value_at_zero=sums.value_at_zero,
        flatness=flatness,
        flatness_stderr=flatness_stderr,
        second_moment=distribution.second_moment(weight_layer.n_features),
        layer=problem.label,
        loss=problem.view.loss.name,
        matrices=type(distribution).__name__,
        n_samples=problem.source.n_samples,
        n_features=weight_layer.n_features,
        mean_loss=sums.mean_loss,
    )


# ---------------------------------------------------------------------------
# Arguments
# ---------------------------------------------------------------------------
def _check_deltas(deltas: Any) -> np.ndarray:
    """Positive finite sizes as an array of one dimension."""
    try:
        sizes = np.atleast_1d(np.array(deltas, dtype=np.float64))
    except (TypeError, ValueError):
        sizes = np.empty(0)
    if sizes.ndim != 1 or not sizes.size or not np.all((sizes > 0) & (sizes < np.inf)):
        raise ValueError(
            "Expected deltas to be positive finite numbers, at least one, got "
            f"{deltas!r}. At delta = 0 the rise is zero and need not be evaluated."
        )
    return sizes


def _function(labels: Any, y: Any, problem: Problem) -> PerturbedLabels:
    """Take the user's labels, for a layer whose features exist once."""
    n_calls = problem.plan.n_calls[problem.label]
    if n_calls > 1:
        raise ValueError(
            "Expected a layer that is called once, for labels that are a function of "
            f"its features, got layer {problem.label!r} with {n_calls} calls. Use "
            "labels=None."
        )
    return PerturbedLabels(labels, y, problem.source)
