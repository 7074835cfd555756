"""A fitted model, its data and the layers to measure: what the measures start from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from sklearn.base import is_classifier, is_regressor
from torch import Tensor

from sklearn_relflat._curvature.estimate import make_generator
from sklearn_relflat._curvature.linearization import loss_terms, wide
from sklearn_relflat._curvature.plan import Plan, plan_layers
from sklearn_relflat._data.batches import Batch, BatchSource, chunks
from sklearn_relflat._layers.layers import WeightLayer
from sklearn_relflat._layers.names import ALL_LAYERS, layer_names
from sklearn_relflat._layers.weights import Weights, chosen_weights
from sklearn_relflat._models.torch_model import TorchModel
from sklearn_relflat._models.view import as_torch_model


class CountedBatches(BatchSource):
    """Batches of a source, counted as they are read.

    Parameters
    ----------
    source : BatchSource
        The batches.
    """

    def __init__(self, source: BatchSource) -> None:
        self._source = source
        self.n_samples = source.n_samples
        self.n_read = 0

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self._source)

    def __iter__(self) -> Iterator[Batch]:
        """Iterate over the batches from the first one."""
        for batch in self._source:
            self.n_read += 1
            yield batch

    def first(self, n_samples: int) -> Batch:
        """See `BatchSource.first`; a few samples do not count as a pass."""
        return self._source.first(n_samples)

    def glances(self) -> Iterator[tuple[Batch, range]]:
        """See `BatchSource.glances`; a few samples do not count as a pass."""
        return self._source.glances()

    def count_pass(self) -> None:
        """Count a pass over what was kept of the data, without reading it."""
        self.n_read += len(self)

    @property
    def n_passes(self) -> float:
        """Passes over the data so far."""
        return self.n_read / len(self)


@dataclass(frozen=True)
class Problem:
    """A model, its data and the layers to measure, inside ``measuring()``.

    Attributes
    ----------
    view : TorchModel
        The model.
    source : CountedBatches
        The data.
    layers : dict of str to WeightLayer
        The layers.
    label : str
        What the result calls them.
    plan : Plan
        Their sizes and calls.
    seed : int
        Where `generator` begins.
    kind : {"classifier", "regressor", None}
        What scikit-learn says the estimator is.
    single_label : bool
        Whether the user's y held one value per sample.
    refusals : dict of str to str
        Why a layer cannot be read as w Phi + b of a weight used only there, by name.
    weights : dict of str to dict of str to Parameter
        Weights as parameters, by the names of layers and their own.
    """

    view: TorchModel
    source: CountedBatches
    layers: dict[str, WeightLayer]
    label: str
    plan: Plan
    seed: int
    kind: str | None
    single_label: bool
    refusals: dict[str, str]
    weights: dict[str, Weights]

    def generator(self) -> torch.Generator:
        """Make a generator; every call gives the same numbers again."""
        return torch.Generator(device=self.view.device).manual_seed(self.seed)

    def chunks(self) -> Iterator[Batch]:
        """Batches, cut so that memory does not depend on their size."""
        size = self.plan.chunk_size(self.layers, self.view.device, n_factors=1)
        return chunks(self.source, size)

    @property
    def n_weights(self) -> int:
        """Number of weights."""
        return sum(
            sum(p.numel() for p in part.values())
            # One that is computed from other parameters.
            or self.layers[name].weight.numel()
            for name, part in self.weights.items()
        )

    @property
    def forms_suffice(self) -> bool:
        """Whether all weights are those of layers that are what they claim."""
        return set(self.weights) <= set(self.layers) - set(self.refusals)

    def denominator(self, total: float) -> float:
        """Return what sums over samples are divided by, as the criterion defines."""
        if self.view.loss.reduction == "sum":
            return 1.0
        if not total > 0:
            raise ValueError(
                f"Expected samples with a positive total weight, got {total!r}: every "
                "sample is ignored or has weight zero. Check sample_weight, the class "
                "weights and ignore_index."
            )
        return total

    def narrowed(self, layer: str) -> Problem:
        """Keep one of the layers, or "all" of them."""
        if layer == ALL_LAYERS:
            return replace(self, label=layer)
        return replace(
            self,
            layers={k: v for k, v in self.layers.items() if k == layer},
            weights={layer: self.weights[layer]},
            label=layer,
        )


@contextmanager
def open_problem(
    estimator: Any,
    X: Any,
    y: Any,
    *,
    layer: Any,
    loss: Any,
    sample_weight: Any,
    random_state: Any = None,
    trusted: bool = True,
) -> Iterator[Problem]:
    """View of a model with its data, ready to be measured.

    Parameters
    ----------
    estimator : estimator
        A fitted model.
    X, y : array-like
        The sample.
    layer : str, sequence of str or None
        A name, several names, "all", or None for the output layer.
    loss : str, torch criterion, callable or None
        The loss.
    sample_weight : array-like of shape (n_samples,) or None
        Weights of the samples.
    random_state : int, RandomState instance or None
        Seed.
    trusted : bool
        Whether layers that are not what they claim are refused or, of all layers, left
        out. If not, they are there with their reasons in `refusals`.

    Yields
    ------
    problem : Problem
        The model is restored when the context ends.

    Raises
    ------
    ValueError
        If no layer is named, or as `relative_flatness` does.
    """
    view = as_torch_model(estimator, loss=loss)
    source = CountedBatches(view.batches(X, y, sample_weight))
    names = layer_names(layer, "layer")
    kind = next(
        (
            kind
            for kind, test in (
                ("classifier", is_classifier),
                ("regressor", is_regressor),
            )
            if _says(test, estimator)
        ),
        None,
    )
    with view.measuring():
        if view.trained is not None:
            # A loss may treat some samples otherwise, by their targets say.
            for batch in source:
                view.check_loss(batch)
        layers, plan, refusals = plan_layers(view, source, names, trusted=trusted)
        # What a weight is called: as its layer, also where that has other names.
        owner = {alias: own for own, lay in layers.items() for alias in lay.aliases}
        chosen = None
        if trusted or (names is not None and None in names):
            chosen = list(layers)
        elif names is not None:
            chosen = [owner.get(str(name), str(name)) for name in names]
        weights = chosen_weights(view, chosen)
        yield Problem(
            view,
            source,
            layers,
            ALL_LAYERS if names is None else "+".join(chosen or []),
            plan,
            make_generator(random_state, view.device).initial_seed(),
            kind,
            y is not None and _is_column(y),
            refusals,
            weights,
        )


def _says(test: Any, estimator: Any) -> bool:
    """Whether scikit-learn's test holds; estimators without tags are neither."""
    try:
        return bool(test(estimator))
    except AttributeError:
        return False


def _is_column(y: Any) -> bool:
    """Whether y has one value per sample."""
    shape = y.shape if hasattr(y, "shape") else np.shape(y)
    return len(shape) < 2 or (len(shape) == 2 and shape[1] == 1)


def risk_of(
    problem: Problem, batch: Batch, outputs: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss of one chunk of samples, differentiable in the outputs.

    Parameters
    ----------
    problem : Problem
        The model.
    batch : Batch
        The samples.
    outputs : Tensor
        Their raw outputs.

    Returns
    -------
    value, denominator, weight : Tensor of shape (n_samples,)
        Per-sample losses, their denominators and the sample weights.
    targets : Tensor
        Encoded targets.

    Raises
    ------
    ValueError
        If there are no targets.
    """
    return loss_terms(problem.view.loss, wide(outputs), batch.y, batch.sample_weight)
