"""The risk of a model, smoothed over the local densities around its features."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from scipy.stats import norm
from scipy.stats import t as student_t
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from sklearn_relflat._curvature.linearization import columns_of
from sklearn_relflat._curvature.problem import Problem, open_problem
from sklearn_relflat._data.batches import Batch
from sklearn_relflat._density.density_radius import DensityRadius, density_radius
from sklearn_relflat._density.feature_metric import SHAPES, FeatureMetric
from sklearn_relflat._layers.capture import capture
from sklearn_relflat._measures.badness import has_accuracy
from sklearn_relflat._robustness.smoothed_sums import BatchSums, SmoothedSums
from sklearn_relflat._robustness.smoothing import (
    INPUT,
    PairStream,
    Perturbed,
    PerturbedInput,
    PerturbedLayer,
    Risk,
    pairs_of,
)

# Samples that the radius and the covariance are taken from, at most.
_RADIUS_SAMPLES = 5000
# Draws at which rtol gives up.
_MAX_DRAWS = 4096
_NORMAL_QUANTILE = float(norm.ppf(0.975))


@dataclass(frozen=True, eq=False)
class SmoothedRisk:
    """Mean loss of a model at perturbed features.

    Attributes
    ----------
    value : float
        S(radius) = E_emp + E_F: the mean loss over samples and perturbations.
    stderr : float
        Its standard error, that of the draws for these samples; 0.0 when exact.
    mean_loss : float
        E_emp, the mean loss with the features as they are.
    radius : float
        Size of the perturbations relative to the norm of the features.
    layer, shape : str
        What is perturbed, and how.
    metric : str
        The loss, or "error_rate".
    method : {"exact", "sampled"}
        Whether the expectation is known or drawn.
    n_samples, n_features, n_draws : int
        Samples, features m, and draws of each sample.
    density : DensityRadius or None
        Where the radius comes from, if it was chosen here.
    by_pair : ndarray of shape (n_draws / 2,)
        The mean over samples for each antithetic pair. Models that were given the same
        random state share their perturbations, so that the differences of these
        numbers tell how sure the difference of two models is.
    per_sample : ndarray of shape (n_samples,) or None
        Smoothed loss of each sample.
    """

    value: float
    stderr: float
    mean_loss: float
    radius: float
    layer: str
    shape: str
    metric: str
    method: str
    n_samples: int
    n_features: int
    n_draws: int
    density: DensityRadius | None
    by_pair: np.ndarray = field(repr=False)
    per_sample: np.ndarray | None = field(default=None, repr=False)

    def __float__(self) -> float:
        """Return the smoothed risk."""
        return self.value

    @property
    def rise(self) -> float:
        """E_F: what the perturbations add to the mean loss."""
        return self.value - self.mean_loss

    def __repr__(self) -> str:
        """Describe the result in a line."""
        error = "exact" if self.method == "exact" else f"+- {self.stderr:.2g}"
        return (
            f"<SmoothedRisk {self.value:.6g} ({error}) at radius {self.radius:.4g} of "
            f"{self.layer!r}, {self.shape}; {self.metric} {self.mean_loss:.4g} without "
            f"perturbation on {self.n_samples} samples>"
        )


def smoothed_risk(
    estimator: Any,
    X: Any,
    y: Any = None,
    *,
    layer: str | None = INPUT,
    radius: float | str | DensityRadius = "density",
    shape: str = "isotropic",
    n_draws: int = 16,
    rtol: float | None = None,
    loss: Any = None,
    metric: str | None = None,
    per_sample: bool = False,
    sample_weight: Any = None,
    random_state: Any = None,
) -> SmoothedRisk:
    r"""Estimate the risk of a model by its loss at perturbed features.

    The loss on the training sample plus its rise when each sample's features are
    perturbed as much as the data's own density says. Where labels do not change within
    that radius, it estimates the risk on new data from the training sample alone.

    Parameters
    ----------
    estimator : estimator
        A fitted model, see `relative_flatness`.
    X : {array-like, sparse matrix, Tensor, Dataset, dict} of shape (n_samples, ...)
        The sample; for judging a model, the one that it was trained on.
    y : array-like of shape (n_samples,) or (n_samples, n_outputs), default=None
        Targets; None only where X is a data set that carries them.
    layer : str or None, default="input"
        Whose features are perturbed: "input" for those that enter the model, behind
        the transformers of a pipeline, a name of `list_layers`, or None for the output
        layer. For images, the layer behind the last convolution was the best judge.
    radius : float or "density", default="density"
        Norm of the perturbations relative to that of the features; "density" is
        `density_radius` of these features, or of 5,000 of them if there are more.
    shape : {"isotropic", "within_class", "covariance"}, default="isotropic"
        Covariance of the perturbations up to their size, see `density_radius`.
    n_draws : int, default=16
        Perturbations of each sample, four or more, in pairs of opposite sign.
    rtol : float, default=None
        Draw again, n_draws at a time, until the standard error is below rtol times the
        value; None: once.
    loss : str, torch criterion or callable, default=None
        The loss; None is the one that the model was trained with.
    metric : {None, "error_rate"}, default=None
        "error_rate" averages wrong predictions instead of the loss.
    per_sample : bool, default=False
        Whether to return the smoothed loss of each sample.
    sample_weight : array-like of shape (n_samples,), default=None
        Weights of the samples.
    random_state : int, RandomState instance or None, default=None
        Seed of the perturbations. The same integer gives all models with the same
        number of features the same perturbations: compare models so.

    Returns
    -------
    result : SmoothedRisk
        Value, standard error, radius, and the loss without perturbation.

    Raises
    ------
    TypeError
        If the model, layer or loss is not supported, or the input is no array of real
        numbers.
    ValueError
        If an option or the data are not valid, or a loss at perturbed features is not
        finite.
    sklearn.exceptions.NotFittedError
        If the model is not fitted.

    Warns
    -----
    sklearn.exceptions.ConvergenceWarning
        If `rtol` is not reached with 4,096 draws.

    See Also
    --------
    density_radius : The radius.
    SmoothedRiskScorer : The same number in a search.
    feature_robustness : The rise for matrices that all samples share.

    Notes
    -----
    With features :math:`\phi_i` and A_i independent, Haar on the orthogonal group,

    .. math::
        S(\delta) = \frac1n \sum_i \mathbb E_{A_i}\,
            \ell\bigl(\psi(\phi_i + \delta A_i \phi_i), y_i\bigr)
            = E_{emp} + E_F(\delta),

    the second term of equation 3 of [1]_: the vicinal risk [2]_ of the trained model
    with the vicinity from the density. By equation 5 the risk is S plus what the local
    densities do not represent, which is about zero at the right radius as long as
    labels are locally constant. Where classes overlap within the radius, S is too
    large for good models; see the guide.

    As delta goes to 0, S is ``E_emp + delta^2 / (2m) kappa`` (Theorem 5). For the
    squared error of a linear model that holds for all delta, and S is exact. For other
    losses of linear models this term is a control variate. Otherwise S is the mean
    over pairs of opposite perturbations.

    The standard error is that of the draws. It is widened by Student's t where few
    samples decide, so that plus and minus two of it hold the exact value in about 95 %
    of cases.

    Of a convolution, A_i acts on its unfolded patches, as in `feature_robustness`, and
    the radius of such a layer is that of the flattened features.

    Costs one forward pass and n_draws passes of what is behind the layer; memory does
    not grow with the number of samples but for some numbers for each.

    References
    ----------
    .. [1] H. Petzka, M. Kamp, L. Adilova, C. Sminchisescu, M. Boley, "Relative Flatness
       and Generalization", NeurIPS 2021, equations 3 and 5, Theorem 5.
    .. [2] O. Chapelle, J. Weston, L. Bottou, V. Vapnik, "Vicinal risk minimization",
       NeurIPS 2000.

    Examples
    --------
    An over-confident model has the smaller training loss, and the larger smoothed risk:

    >>> from sklearn.datasets import load_breast_cancer
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.preprocessing import StandardScaler
    >>> from sklearn_relflat import smoothed_risk
    >>> X, y = load_breast_cancer(return_X_y=True)
    >>> X = StandardScaler().fit_transform(X)
    >>> for C in (0.1, 1000.0):
    ...     model = LogisticRegression(C=C, max_iter=10000).fit(X, y)
    ...     result = smoothed_risk(model, X, y, random_state=0)
    ...     print(f"{C}: {result.mean_loss:.2f} {result.value:.2f}")
    0.1: 0.08 0.09
    1000.0: 0.00 0.48
    """
    size = _checked_options(radius, shape, n_draws, rtol, metric)
    whole = layer == INPUT
    with open_problem(
        estimator,
        X,
        y,
        layer="all" if whole else _one_layer(layer),
        loss=loss,
        sample_weight=sample_weight,
        random_state=random_state,
        trusted=not whole,
    ) as problem:
        if metric is not None and not has_accuracy(problem):
            raise ValueError(
                f"Expected a classifier for metric={metric!r}, got "
                f"{problem.view.estimator_name}. Use metric=None."
            )
        smoother = _Smoother(problem, INPUT if whole else problem.label, metric)
        features = None
        if isinstance(size, str) or shape != "isotropic":
            features, labels, weights = smoother.sample(random_state)
        space = FeatureMetric(shape)
        if shape != "isotropic":
            assert features is not None
            space = FeatureMetric.fit(features, shape, labels)
        density = size if isinstance(size, DensityRadius) else None
        if isinstance(size, str):
            assert features is not None
            density = density_radius(
                features, labels, shape=shape, sample_weight=weights, random_state=0
            )
        delta = float(size if density is None else density)
        return smoother.run(
            delta, space, n_draws, rtol, density=density, per_sample=per_sample
        )


def _checked_options(
    radius: Any, shape: Any, n_draws: Any, rtol: Any, metric: Any
) -> float | str | DensityRadius:
    """Return the radius after all options were checked."""
    if shape not in SHAPES:
        raise ValueError(f"Expected shape to be one of {SHAPES}, got {shape!r}.")
    if isinstance(n_draws, bool) or not isinstance(n_draws, Integral) or n_draws < 4:
        raise ValueError(
            f"Expected n_draws to be an integer of at least 4 (two pairs, for a "
            f"standard error), got {n_draws!r}."
        )
    if rtol is not None and not (isinstance(rtol, Real) and float(rtol) > 0):
        raise ValueError(f"Expected rtol to be a positive number, got {rtol!r}.")
    if metric not in (None, "error_rate"):
        raise ValueError(
            f"Expected metric to be None (the loss) or 'error_rate', got {metric!r}."
        )
    if isinstance(radius, DensityRadius):
        if radius.shape != shape:
            raise ValueError(
                f"Expected a radius of shape={shape!r}, got one of "
                f"{radius.shape!r}. Pass shape={radius.shape!r}."
            )
        return radius
    if isinstance(radius, str) and radius == "density":
        return radius
    is_number = isinstance(radius, Real) and not isinstance(radius, bool)
    if not (is_number and 0 <= float(radius) < math.inf):
        raise ValueError(
            "Expected radius to be 'density' or a finite number of at least 0, got "
            f"{radius!r}."
        )
    return float(radius)


def _one_layer(layer: Any) -> list[str] | None:
    """One name in a list, so that "all" is nothing but a name, or None."""
    if layer is not None and not isinstance(layer, str):
        raise TypeError(
            "Expected layer to be 'input', the name of one layer, or None, got "
            f"{layer!r}. Call smoothed_risk once for each layer."
        )
    return None if layer is None else [layer]


class _Smoother:
    """Sums over the samples of one model, at perturbations of one layer."""

    def __init__(self, problem: Problem, layer: str, metric: str | None) -> None:
        self._problem = problem
        self._layer = layer
        self._metric = metric
        self._risk = Risk(problem, is_error=metric is not None)
        self._make = self._route()

    def _route(self) -> Callable[[Batch], Perturbed]:
        """Choose what perturbs a batch."""
        problem = self._problem
        if self._layer != INPUT:
            return lambda batch: PerturbedLayer(problem, batch)
        # Of a linear model, what enters the output layer is what enters the model.
        look = problem.plan.look
        name = look.output_layer
        if name in problem.refusals or name not in look.features:
            return lambda batch: PerturbedInput(problem, batch)
        x = problem.source.first(1 + max(look.rows)).inputs
        seen = look.features[name]
        rows = list(look.rows)
        if not (isinstance(x, Tensor) and len(seen) == 1 and x.dim() == 2):
            return lambda batch: PerturbedInput(problem, batch)
        if len(look.rows) > len(x) or not torch.equal(seen[0], x[rows]):
            return lambda batch: PerturbedInput(problem, batch)
        narrowed = problem.narrowed(name)

        def linear(batch: Batch) -> Perturbed:
            """Take the output layer, where the input of this batch enters it."""
            perturbed = PerturbedLayer(narrowed, batch)
            found = perturbed.features[:, :, 0]
            if perturbed.is_linear and torch.equal(found, batch.inputs):
                return perturbed
            return PerturbedInput(problem, batch)

        return linear

    def _batches(self) -> Any:
        """Batches of a size that fits the layer."""
        return self._problem.source if self._layer == INPUT else self._problem.chunks()

    # -----------------------------------------------------------------------
    # Features, for the radius and the covariance
    # -----------------------------------------------------------------------
    def sample(
        self, random_state: Any
    ) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
        """Features, labels and weights of the samples that settle the radius."""
        problem = self._problem
        n = problem.source.n_samples
        rows = np.arange(n)
        if n > _RADIUS_SAMPLES:
            rng = np.random.RandomState(0)
            rows = np.sort(rng.choice(n, _RADIUS_SAMPLES, replace=False))
        features, labels, weights = [], [], []
        for batch in self._batches():
            inside = (rows >= batch.start) & (rows < batch.start + batch.n_samples)
            here = (rows[inside] - batch.start).tolist()
            if not here:
                continue
            part = batch.take(here)
            phi = self._features(part)
            features.append(phi.reshape(len(phi), -1).cpu().double().numpy())
            if part.y is not None:
                y = part.y.cpu().numpy()
                labels.append(y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y)
            if part.sample_weight is not None:
                weights.append(part.sample_weight.cpu().double().numpy())
        return (
            np.concatenate(features),
            np.concatenate(labels) if labels else None,
            np.concatenate(weights) if weights else None,
        )

    def _features(self, batch: Batch) -> Tensor:
        """Features of a batch as they enter the layer."""
        if self._layer == INPUT:
            return PerturbedInput.features_of(self._problem, batch)
        view, layers = self._problem.view, self._problem.layers
        with capture(view, layers, differentiable=False) as seen:
            seen.run(view, batch.inputs)
            return columns_of(seen[self._problem.label])

    # -----------------------------------------------------------------------
    # Sums
    # -----------------------------------------------------------------------
    def run(
        self,
        delta: float,
        space: FeatureMetric,
        n_draws: int,
        rtol: float | None,
        *,
        density: DensityRadius | None,
        per_sample: bool,
    ) -> SmoothedRisk:
        """Draw until the standard error is small enough."""
        view = self._problem.view
        like = torch.empty(0, dtype=view.dtype, device=view.device)
        n_pairs = -(-n_draws // 2)
        sums: SmoothedSums | None = None
        while True:
            begun = 0 if sums is None else sums.n_pairs
            streams = [
                PairStream(self._problem.seed, begun + k, like) for k in range(n_pairs)
            ]
            passed = SmoothedSums.joined(
                [
                    self._batch_sums(self._make(batch), delta, space, streams)
                    for batch in self._batches()
                ]
            )
            sums = passed if sums is None else sums.with_more(passed)
            result = self._result(sums, delta, space, density, per_sample=per_sample)
            if rtol is None or result.stderr <= rtol * abs(result.value):
                return result
            if result.n_draws >= _MAX_DRAWS:
                warnings.warn(
                    f"The standard error {result.stderr:.3g} of the smoothed risk "
                    f"{result.value:.6g} is above rtol={rtol!r} times the value after "
                    f"{result.n_draws} draws of each sample. Use a larger rtol, or "
                    "more samples.",
                    ConvergenceWarning,
                    stacklevel=3,
                )
                return result

    def _batch_sums(
        self,
        perturbed: Perturbed,
        delta: float,
        space: FeatureMetric,
        streams: list[PairStream],
    ) -> SmoothedSums:
        """Draw the pairs of one batch."""
        batch, risk = perturbed.batch, self._risk
        _check_space(perturbed, space, self._layer)
        base, denominator, weight = risk.terms(batch, perturbed.outputs)
        curvature = risk.curvature(perturbed, space)
        sums = BatchSums(
            base, denominator, weight, n_features=perturbed.features.shape[1]
        )
        if delta == 0:
            return sums.known(torch.zeros_like(base))
        if curvature is not None and curvature.is_exact:
            return sums.known(delta**2 * curvature.expected)
        if curvature is not None:
            sums.expected = delta**2 * curvature.expected
        for step in pairs_of(perturbed, space, streams):
            outputs = perturbed.at(step, delta)
            plus = risk.terms(batch, outputs)[0]
            control = None if curvature is None else curvature.drawn(outputs)
            minus = risk.terms(batch, perturbed.at(step, -delta))[0]
            # Relative to the loss itself, so that the variance keeps its digits.
            change = 0.5 * (plus + minus) - base
            if not bool(torch.isfinite(change).all()):
                bad = (~torch.isfinite(change)).nonzero().flatten()[:5] + batch.start
                raise ValueError(
                    "Expected a finite loss of perturbed features, got NaN or infinity "
                    f"at radius {delta:.6g} (samples {bad.tolist()}). Use a smaller "
                    "radius."
                )
            sums.add(change, control)
        return sums.drawn()

    def _result(
        self,
        sums: SmoothedSums,
        delta: float,
        space: FeatureMetric,
        density: DensityRadius | None,
        *,
        per_sample: bool,
    ) -> SmoothedRisk:
        """Turn sums into a result."""
        problem = self._problem
        total = problem.denominator(float((sums.weight * sums.denominator).sum()))
        share = sums.weight / total
        change, variance, by_pair = sums.estimates(share, total)
        mean_loss = float((share * sums.base).sum())
        return SmoothedRisk(
            value=mean_loss + float((share * change).sum()),
            stderr=_widened_error(share**2 * variance, sums.n_pairs),
            mean_loss=mean_loss,
            radius=delta,
            layer=self._layer,
            shape=space.shape,
            metric=self._metric or problem.view.loss.name,
            method="exact" if sums.is_known else "sampled",
            n_samples=problem.source.n_samples,
            n_features=sums.n_features,
            n_draws=2 * sums.n_pairs,
            density=density,
            by_pair=mean_loss + by_pair,
            per_sample=sums.base + change if per_sample else None,
        )


def _check_space(perturbed: Perturbed, space: FeatureMetric, layer: str) -> None:
    """Raise where a covariance does not fit features at several positions."""
    if space.root is not None and perturbed.features.shape[2] > 1:
        raise ValueError(
            f"Expected features at one position for shape={space.shape!r}, got "
            f"{perturbed.features.shape[2]} positions in layer {layer!r}. Use "
            "shape='isotropic', or choose the layer behind that flattens them."
        )


def _widened_error(variances: np.ndarray, n_pairs: int) -> float:
    """Return the standard error of a sum, wider where few draws decide."""
    total = float(variances.sum())
    if not total > 0:
        return 0.0
    # Welch and Satterthwaite.
    freedom = total**2 / float((variances**2).sum()) * (n_pairs - 1)
    return math.sqrt(total) * float(student_t.ppf(0.975, freedom)) / _NORMAL_QUANTILE
