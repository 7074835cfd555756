"""Whether torch's derivatives in the weights are those of the model.

What leaves the graph between a weight and the outputs (``no_grad``, ``detach``,
``inference_mode``, re-entrant checkpoints) makes them those of another function,
without a word. The weights are followed through one forward pass of a few samples;
where something that came from one is taken out of the graph, it is disturbed, to see
whether the outputs depend on it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sklearn_relflat._data.inputs import own_copy
from sklearn_relflat._losses.cuts import CutFinder, is_moved

_N_SAMPLES = 3


def check_reach(
    outputs: Callable[[dict[str, Tensor], Any], Tensor],
    weights: dict[str, Tensor],
    inputs: Any,
) -> None:
    """Raise where a weight changes the outputs on a way that has no derivative.

    Parameters
    ----------
    outputs : callable
        Raw outputs as a function of weights and inputs.
    weights : dict of str to Tensor
        The model's own weights, detached, by name.
    inputs : Tensor, dict or list
        Inputs of a few samples.

    Raises
    ------
    ValueError
        Naming the weight.
    """

    def run(moved: str | None = None) -> tuple[dict[str, Tensor], Tensor, CutFinder]:
        """Run the samples from weights that are in the graph."""
        with torch.enable_grad():
            point = {k: w.detach().requires_grad_() for k, w in weights.items()}
            # A leaf has no node of its own, its copy has.
            traced = {name: leaf.clone() for name, leaf in point.items()}
            nodes: dict[Any, str] = {w.grad_fn: name for name, w in traced.items()}
            with CutFinder(lambda: nodes, moved) as finder:
                return point, outputs(traced, own_copy(inputs)), finder

    point, found, finder = run()
    for name in weights:
        where, _ = finder.places(name)
        if where and is_moved(run(name)[1], found):
            raise ValueError(_not_reached(name, where))
    gradients: Any = [None] * len(point)
    if found.requires_grad:
        gradients = torch.autograd.grad(
            found.sum(), [*point.values()], allow_unused=True
        )
    for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
        if gradient is None:
            with torch.no_grad():
                moved = {**weights, name: 1.5 * weight + 0.1}
                other = outputs(moved, own_copy(inputs))
            if is_moved(other, found):
                raise ValueError(_not_reached(name, []))


def _not_reached(name: str, where: list[str]) -> str:
    """Say that a weight acts where torch keeps no graph."""
    ops = f"{', '.join(where)}: " if where else ""
    return (
        f"Weight {name.removeprefix('inner.')!r} changes the outputs on a way that "
        f"torch does not differentiate ({ops}torch.no_grad, torch.inference_mode, "
        "detach, .data, .item() or a re-entrant checkpoint in the forward pass), so "
        "that the derivatives are those of another function. Measure weights behind "
        "the cut, or remove it."
    )
