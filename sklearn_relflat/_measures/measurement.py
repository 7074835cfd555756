"""The result of a measure that competes with relative flatness."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from sklearn_relflat._curvature.problem import Problem
from sklearn_relflat._layers.names import layer_words
from sklearn_relflat._results.result import NumberResult
from sklearn_relflat._results.words import number


class UndefinedMeasureError(ValueError):
    """A measure that this model does not have, for example a margin without a class."""


@dataclass(frozen=True, eq=False)
class Measurement(NumberResult):
    """One measure of a fitted model, with how it was obtained.

    ``float(result)`` is its value.

    Attributes
    ----------
    value : float
        The measure. Large is sharp or complex, small is flat or simple.
    stderr : float
        Standard error of the sampling for the given data; 0.0 when nothing was sampled.
    tolerance : float
        Bound on the numerical error of an iterative route: the residual norm of an
        eigenvalue, the width of a bisection's last bracket. 0.0 when nothing iterates.
    measure : str
        Name of the measure.
    layer : str
        The layer, several names joined by "+", or "all": every weight layer.
    loss : str
        The loss.
    method : str
        The route taken.
    n_samples : int
        Number of samples.
    n_weights : int
        Number of weights in the layers; biases are never counted.
    mean_loss : float or None
        Empirical risk on these samples; None where the measure does not look at it.
    n_products : int
        Products of the Hessian with a vector that an eigenvalue took; 0 elsewhere.
    """

    value: float
    stderr: float
    tolerance: float
    measure: str
    layer: str
    loss: str
    method: str
    n_samples: int
    n_weights: int
    mean_loss: float | None
    n_products: int = 0

    guide = "measures"

    def __float__(self) -> float:
        """Return the value."""
        return self.value

    def cells(self) -> list[dict[str, str]]:
        """Return the row as it is shown.

        Returns
        -------
        cells : list of dict
            Short texts by column.
        """
        mean_loss = math.nan if self.mean_loss is None else self.mean_loss
        return [
            {
                "measure": self.measure,
                "layer": self.layer,
                "value": number(self.value, self.stderr),
                "mean loss": number(mean_loss),
                "loss": self.loss,
                "samples": str(self.n_samples),
                "weights": str(self.n_weights),
                "route": self.method,
            }
        ]

    def _sentence(self) -> str:
        """Say what the number tells."""
        return (
            f"The measure {self.measure} of {layer_words(self.layer)} is "
            f"{number(self.value, self.stderr)}: large is sharp or complex, small is "
            "flat or simple."
        )

    def __repr__(self) -> str:
        """Return a summary in one line."""
        error = f" +- {self.stderr:.2g}" if self.stderr else ""
        seen = f"{self.n_samples} samples"
        if self.mean_loss is not None:
            seen = f"{self.loss} {self.mean_loss:.4g} on {seen}"
        cost = f", {self.n_products} products" if self.n_products else ""
        return (
            f"<Measurement {self.measure} = {self.value:.6g}{error} of "
            f"{layer_words(self.layer)}; {seen}; {self.method}{cost}>"
        )


def measured(
    problem: Problem,
    measure: str,
    value: float,
    *,
    method: str,
    stderr: float = 0.0,
    tolerance: float = 0.0,
    mean_loss: float | None = None,
    n_products: int = 0,
) -> Measurement:
    """Public result of an open problem, after a last look at the value."""
    if not np.isfinite(value):
        raise ValueError(
            f"Expected a finite {measure}, got {value!r} for layer {problem.label!r}: "
            "the computation overflows. Use float64, or scale the features."
        )
    return Measurement(
        value=float(value),
        stderr=float(stderr),
        tolerance=float(tolerance),
        measure=measure,
        layer=problem.label,
        loss=problem.view.loss.name,
        method=method,
        n_samples=problem.source.n_samples,
        n_weights=problem.n_weights,
        mean_loss=mean_loss,
        n_products=n_products,
    )
