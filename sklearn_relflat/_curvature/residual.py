"""Second derivatives of the head, with the loss gradient held fixed."""

from __future__ import annotations

import torch
from torch import Tensor

from sklearn_relflat._curvature.linearization import (
    Linearization,
    columns_of,
    unrows_of,
)
from sklearn_relflat._layers.autograd_graph import has_undefined_derivative
from sklearn_relflat._layers.capture import LayerCall
from sklearn_relflat._losses.torch_errors import raise_out_of_memory

_NO_SECOND_DERIVATIVE = (
    "Expected a model that is twice differentiable behind the layer, as "
    'curvature="hessian" needs it, but torch cannot form its second derivative ({}). '
    'Use curvature="gauss_newton", which needs first derivatives only.'
)


class ResidualProbe:
    """Second-order products of the head, with the loss gradient held fixed.

    One backward pass with a graph serves all products. Its first-order part, the
    gradient of each sample's loss in the preactivations, is kept as `gradients`.
    """

    def __init__(self, lin: Linearization) -> None:
        self.lin = lin
        self._graph = lin.pull_back(lin.gradient(), create_graph=True)
        if has_undefined_derivative(g for parts in self._graph.values() for g in parts):
            raise ValueError(_NO_SECOND_DERIVATIVE.format("once_differentiable"))
        self.gradients = {
            name: [g.detach() for g in parts] for name, parts in self._graph.items()
        }

    def product(self, directions: dict[str, list[Tensor]]) -> dict[str, list[Tensor]]:
        """Hessian of sum_i a_i^T f_i in the preactivations, times directions.

        Parameters
        ----------
        directions : dict of str to list of Tensor
            One per call. Directions ``dw Phi_c`` may be in the graph: of a weight that
            is applied repeatedly, the features of a later call depend on the earlier
            ones. Their derivative then enters twice, once for each of the two
            perturbations that could come first, so that the quadratic form in dw is
            right, and the bilinear form after symmetrization.

        Returns
        -------
        products : dict of str to list of Tensor
            In the shapes of the preactivations.

        Raises
        ------
        ValueError
            If torch has no second derivative for an operation of the model.
        """
        names = list(directions)
        points = [c.preactivations for name in names for c in self.lin.calls[name]]
        products = tuple(torch.zeros_like(z) for z in points)
        with torch.enable_grad():
            inner = [
                (g * u.detach()).sum() + 2 * (g.detach() * u).sum()
                if u.requires_grad
                else (g * u).sum()
                for name in names
                for g, u in zip(self._graph[name], directions[name], strict=True)
                if g.requires_grad or u.requires_grad
            ]
        if inner:
            try:
                products = torch.autograd.grad(
                    inner, points, retain_graph=True, materialize_grads=True
                )
            except RuntimeError as error:
                raise_out_of_memory(error)
                raise ValueError(_NO_SECOND_DERIVATIVE.format(error)) from error
        flat = iter(products)
        return {name: [next(flat) for _ in self.lin.calls[name]] for name in names}

    def is_piecewise_linear(self, generator: torch.Generator) -> bool:
        """Whether one random product is exactly zero, in all layers at once.

        The preactivations of all captured layers are shifted together, by additive
        noise: a head that is piecewise linear in each of them is then piecewise linear
        in the shifts jointly, so that a single product certifies every layer.

        Parameters
        ----------
        generator : torch.Generator
            Source of the noise.

        Returns
        -------
        certified : bool
            True with probability one only if there are no second derivatives here.
        """
        directions = {
            name: self._random_directions(calls, generator)
            for name, calls in self.lin.calls.items()
        }
        return not any(
            bool(part.any())
            for parts in self.product(directions).values()
            for part in parts
        )

    @staticmethod
    def _random_directions(
        calls: list[LayerCall], generator: torch.Generator
    ) -> list[Tensor]:
        """Noise in the preactivations, or in a weight that is applied repeatedly."""
        if len(calls) == 1:
            return [_noise(calls[0].preactivations, generator)]
        with torch.enable_grad():
            phi = columns_of(calls, live=True)
            shape = calls[0].rows(calls[0].preactivations).shape
            noise = _noise(phi.new_empty(shape[1], phi.shape[1]), generator)
            return unrows_of(calls, noise @ phi)


def _noise(like: Tensor, generator: torch.Generator) -> Tensor:
    """Draw uniform noise in the shape of a tensor."""
    return torch.rand(
        like.shape, generator=generator, dtype=like.dtype, device=like.device
    )
