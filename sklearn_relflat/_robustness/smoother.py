"""Smoothing the risk of one model: which route, which features, how many draws."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
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
from sklearn_relflat._density.density_radius import DensityRadius
from sklearn_relflat._density.feature_metric import FeatureMetric
from sklearn_relflat._layers.capture import capture
from sklearn_relflat._layers.names import one_layer
from sklearn_relflat._measures.badness import has_accuracy
from sklearn_relflat._robustness.pair_streams import PairStreams
from sklearn_relflat._robustness.smoothed_result import SmoothedRisk
from sklearn_relflat._robustness.smoothed_sums import BatchSums, SmoothedSums
from sklearn_relflat._robustness.smoothing import (
    INPUT,
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


@contextmanager
def open_smoother(
    estimator: Any,
    X: Any,
    y: Any,
    *,
    layer: str | None,
    loss: Any,
    sample_weight: Any,
    random_state: Any = None,
    metric: str | None = None,
) -> Iterator[Smoother]:
    """Open a model with its data, to perturb one of its layers.

    Parameters
    ----------
    estimator : estimator
        A fitted model.
    X, y : array-like
        The sample.
    layer : str or None
        A name, None for the output layer, or "input".
    loss : str, torch criterion, callable or None
        The loss.
    sample_weight : array-like of shape (n_samples,) or None
        Weights of the samples.
    random_state : int, RandomState instance or None
        Seed.
    metric : str or None
        "error_rate", or None for the loss.

    Yields
    ------
    smoother : Smoother
        The model is restored when the context ends.

    Raises
    ------
    TypeError
        If the layer is no name.
    ValueError
        If the model is no classifier, for an error rate, or as `open_problem` does.
    """
    whole = layer == INPUT
    with open_problem(
        estimator,
        X,
        y,
        layer="all" if whole else one_layer(layer, "smoothed_risk"),
        loss=loss,
        sample_weight=sample_weight,
        random_state=random_state,
        # What enters the model need not enter a layer of a known kind.
        trusted=not whole,
    ) as problem:
        smoother = Smoother(problem, INPUT if whole else problem.label, metric)
        if metric is not None and not smoother.is_classifier:
            raise ValueError(
                f"Expected a classifier for metric={metric!r}, got "
                f"{problem.view.estimator_name}. Use metric=None."
            )
        yield smoother


class Smoother:
    """Sums over the samples of one model, at perturbations of one layer.

    Parameters
    ----------
    problem : Problem
        The model and its data.
    layer : str
        A layer, or "input".
    metric : str or None
        "error_rate", or None for the loss.
    """

    def __init__(self, problem: Problem, layer: str, metric: str | None) -> None:
        self._problem = problem
        self._layer = layer
        self._metric = metric
        self._risk = Risk(problem, is_error=metric is not None)
        self._make = self._route()

    @property
    def is_classifier(self) -> bool:
        """Whether the model predicts classes."""
        return has_accuracy(self._problem)

    def _route(self) -> Callable[[Batch], Perturbed]:
        """Choose what perturbs a batch."""
        problem = self._problem
        if self._layer != INPUT:
            return partial(PerturbedLayer, problem)
        name = self._layer_of_the_input()
        if name is None:
            return partial(PerturbedInput, problem)
        narrowed = problem.narrowed(name)

        def linear(batch: Batch) -> Perturbed:
            """Take the output layer, where the input of this batch enters it."""
            perturbed = PerturbedLayer(narrowed, batch)
            found = perturbed.features[:, :, 0]
            if perturbed.is_linear and torch.equal(found, batch.inputs):
                return perturbed
            return PerturbedInput(problem, batch)

        return linear

    def _layer_of_the_input(self) -> str | None:
        """Name of the output layer if the input enters it, as in a linear model."""
        look = self._problem.plan.look
        name = look.output_layer
        if name in self._problem.refusals or name not in look.features:
            return None
        x = self._problem.source.first(1 + max(look.rows)).inputs
        if not (isinstance(x, Tensor) and x.dim() == 2 and max(look.rows) < len(x)):
            return None
        seen = look.features[name]
        is_input = len(seen) == 1 and torch.equal(seen[0], x[list(look.rows)])
        return name if is_input else None

    def _batches(self) -> Iterable[Batch]:
        """Batches of a size that fits the layer."""
        return self._problem.source if self._layer == INPUT else self._problem.chunks()

    # -----------------------------------------------------------------------
    # Features, for the radius and the covariance
    # -----------------------------------------------------------------------
    def sample(self) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
        """Read the samples that settle the radius.

        Returns
        -------
        features : ndarray of shape (n_samples, n_features * n_positions)
            Their features, flattened.
        labels, weights : ndarray of shape (n_samples, ...) or None
            Their targets and weights.
        """
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
        """Draw until the standard error is small enough.

        Parameters
        ----------
        delta : float
            The radius.
        space : FeatureMetric
            Shape of the perturbations.
        n_draws : int
            Draws of each sample in one round.
        rtol : float or None
            Relative standard error to reach; None is one round.
        density : DensityRadius or None
            Where the radius comes from.
        per_sample : bool
            Whether to keep the values of the samples.

        Returns
        -------
        result : SmoothedRisk
            The result.
        """
        view = self._problem.view
        like = torch.empty(0, dtype=view.dtype, device=view.device)
        n_pairs = -(-n_draws // 2)
        sums: SmoothedSums | None = None
        while True:
            begun = 0 if sums is None else sums.n_pairs
            pairs = range(begun, begun + n_pairs)
            streams = PairStreams(self._problem.seed, pairs, like)
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
        streams: PairStreams,
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
            sums.expect(delta**2 * curvature.expected, len(streams.pairs))
        for step in pairs_of(perturbed, space, streams):
            both = perturbed.pair(step, delta)
            outputs = next(both)
            plus = risk.terms(batch, outputs)[0]
            control = None if curvature is None else curvature.drawn(outputs)
            minus = risk.terms(batch, next(both))[0]
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
