"""Products of the Hessian of the empirical risk with vectors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from sklearn_relflat._curvature.linearization import budget_on, wide
from sklearn_relflat._measures.weight_space import Point, Slopes, WeightSpace

# Bytes of the gradient's graph that may be kept from one product to the next.
_KEPT_BYTES = {"cpu": 2**29, "other": 2**30}

# Samples from which the size of the graph of all of them is told.
_FEW_SAMPLES = 4


class HessianProducts:
    """The Hessian at a model's own weights, as a function of a vector.

    Where memory allows, the gradient's graph is built in the first product and kept:
    every further one is a single backward pass through the part of the model behind the
    layer, and neither the data nor what lies before the layer is looked at again.

    Parameters
    ----------
    space : WeightSpace
        The weights.

    Attributes
    ----------
    n_products : int
        Products so far.
    """

    def __init__(self, space: WeightSpace) -> None:
        self.space = space
        self.n_products = 0
        self._loss: float | None = None
        self._denominator = 0.0
        self._kept: list[Slopes] | None = None
        self._may_keep: bool | None = None

    @property
    def n_weights(self) -> int:
        """Number of rows and columns."""
        return self.space.n_weights

    @property
    def eps(self) -> float:
        """Round-off of a product, relative to the largest eigenvalue: the model's."""
        return max(torch.finfo(w.dtype).eps for w in self.space.weights.values())

    @property
    def mean_loss(self) -> float:
        """Empirical risk; known from the first product."""
        if self._loss is None:
            self._loss = self.space.risk(self.space.weights)
        return self._loss

    def vector(self, values: Any) -> Tensor:
        """Vector in the dtype for sums, on the model's device."""
        device = next(iter(self.space.weights.values())).device
        return wide(torch.as_tensor(np.asarray(values), device=device))

    def normal(self, generator: torch.Generator) -> Tensor:
        """Vector of independent standard normal numbers."""
        return self.space.flatten(self.space.normal(generator))

    def by_name(self, vectors: Tensor) -> dict[str, np.ndarray]:
        """Vectors (k, n) as arrays (k, *weight.shape), by the parameters' own names."""
        shapes = {name: w.shape for name, w in self.space.weights.items()}
        parts = vectors.split([shape.numel() for shape in shapes.values()], dim=1)
        return {
            name.removeprefix("inner."): part.reshape(-1, *shape).cpu().double().numpy()
            for (name, shape), part in zip(shapes.items(), parts, strict=True)
        }

    def matrix(self) -> Tensor:
        """All of it, one product for each weight."""
        rows = self.vector(np.eye(self.n_weights))
        matrix = torch.stack([self(row) for row in rows])
        return (matrix + matrix.T) / 2

    def __call__(self, vector: Tensor) -> Tensor:
        """Multiply.

        Parameters
        ----------
        vector : Tensor of shape (n_weights,)
            The vector.

        Returns
        -------
        product : Tensor of shape (n_weights,)
            In the dtype for sums.

        Raises
        ------
        ValueError
            If torch has no second derivative for an operation of the model, or it is
            not finite.
        """
        space = self.space
        space.check_reached()
        point = space.unflatten(vector)
        sums = self._from_kept(point)
        if sums is None:
            sums = self._from_data(point)
        self.n_products += 1
        space.check_finite(sums, "second", space.weights)
        return space.flatten(sums) / self._denominator

    def _from_kept(self, point: Point) -> Point | None:
        """Sum over samples from the graphs that were kept, if there are any."""
        if self._kept is None:
            return None
        try:
            sums = _sum(self.space, self._kept, point)
        except ValueError:
            # A graph can be used up by the module itself, which may write into buffers
            # of its own in place or compute something again in the backward pass.
            self._kept, self._may_keep = None, False
            return None
        self.space.problem.source.count_pass()
        return sums

    def _from_data(self, point: Point) -> Point:
        """Sum over samples from a new pass over the data."""
        space = self.space
        if self._may_keep is None:
            self._may_keep = self._fits()
        sums, kept = space.zeros(), []
        total, denominator = 0.0, 0.0
        for batch in space.problem.chunks():
            slopes = space.slopes(batch)
            total += slopes.total
            denominator += slopes.denominator
            if self._may_keep:
                kept.append(slopes)
            else:
                for name, product in slopes.times(point).items():
                    sums[name] += product
        if self._may_keep:
            sums = _sum(space, kept, point)
            self._kept = kept
        self._denominator = space.problem.denominator(denominator)
        self._loss = total / self._denominator
        return sums

    def _fits(self) -> bool:
        """Whether the graphs of all samples may be kept, as a few of them tell."""
        space = self.space
        batch = space.problem.source.first(_FEW_SAMPLES)
        weights = {w.untyped_storage().data_ptr() for w in space.weights.values()}
        sizes: dict[int, int] = {}
        seen: list[Tensor] = []

        def pack(tensor: Tensor) -> Tensor:
            """Note the memory of a tensor that the graph holds on to."""
            # Held here as well, so that no other tensor takes the same address.
            seen.append(tensor)
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                sizes[storage.data_ptr()] = storage.nbytes()
            return tensor

        with saved_tensors_hooks(pack, lambda tensor: tensor):
            space.slopes(batch)
        per_sample = sum(sizes.values()) / batch.n_samples
        device = next(iter(space.weights.values())).device
        n_bytes = per_sample * space.problem.source.n_samples
        return n_bytes <= budget_on(device, _KEPT_BYTES)


def _sum(space: WeightSpace, kept: list[Slopes], point: Point) -> Point:
    """Sum of products with graphs that stay."""
    sums = space.zeros()
    for slopes in kept:
        for name, product in slopes.times(point, again=True).items():
            sums[name] += product
    return sums
