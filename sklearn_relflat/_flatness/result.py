"""Result of a measurement of relative flatness."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sklearn_relflat._results.plottable import Plottable


@dataclass(frozen=True, eq=False)
class RelativeFlatness:
    """Relative flatness of one layer, with how it was obtained.

    ``float(result)`` is its value. Large is sharp, small is flat.

    Attributes
    ----------
    value : float
        kappa, in units of the loss.
    stderr : float
        Standard error of the sampling for the given data; 0.0 when exact.
    layer : str
        The layer.
    loss : str
        The loss.
    curvature : {"hessian", "gauss_newton"}
        Which matrix was asked for.
    method : {"closed_form", "exact", "sampled"}
        The route taken.
    normalize : {None, "std"}
        Whether features were divided by their standard deviations.
    statistic : {"trace", "max_eigenvalue"}
        kappa_Tr or kappa_max.
    n_samples : int
        Number of samples.
    n_features : int
        Number of features m that enter the layer.
    mean_loss : float
        Empirical risk on these samples.
    gradient_norm : float
        Frobenius norm of the gradient of the empirical risk in the layer's weight: how
        far the model is from a minimum, in units of the loss per unit of weight.
    per_sample : ndarray of shape (n_samples,) or None
        Contributions of the samples; their mean is the value.
    """

    value: float
    stderr: float
    layer: str
    loss: str
    curvature: str
    method: str
    normalize: str | None
    statistic: str
    n_samples: int
    n_features: int
    mean_loss: float
    gradient_norm: float
    per_sample: np.ndarray | None = None

    def __float__(self) -> float:
        """Return the value."""
        return self.value

    def __repr__(self) -> str:
        """Return a summary in one line."""
        error = f" +- {self.stderr:.2g}" if self.stderr else ""
        name = "kappa_max" if self.statistic == "max_eigenvalue" else "kappa"
        normalized = ", std-normalized" if self.normalize else ""
        return (
            f"<RelativeFlatness {name} = {self.value:.6g}{error} of layer "
            f"{self.layer!r}{normalized}; {self.loss} {self.mean_loss:.4g} on "
            f"{self.n_samples} samples, gradient norm {self.gradient_norm:.2g}; "
            f"{self.curvature}, {self.method}>"
        )


class NotMeasuredError(KeyError, ValueError):
    """A layer that was left out is asked for."""

    def __str__(self) -> str:
        """Return the message as it is, not the repr of a key."""
        return str(self.args[0])


class LayerwiseRelativeFlatness(Plottable, dict[str, RelativeFlatness]):
    """Results by the name of the layer, and what was not measured.

    Parameters
    ----------
    results : dict of str to RelativeFlatness
        The results.
    not_measured : dict of str to str
        Why other layers could not be measured, by their names.

    Attributes
    ----------
    not_measured : dict of str to str
        As given.
    """

    def __init__(
        self, results: dict[str, RelativeFlatness], not_measured: dict[str, str]
    ) -> None:
        super().__init__(results)
        self.not_measured = dict(not_measured)

    def __missing__(self, name: str) -> RelativeFlatness:
        """Say why a layer is not here."""
        if name in self.not_measured:
            raise NotMeasuredError(
                f"Layer {name!r} was not measured: {self.not_measured[name]}."
            )
        raise KeyError(name)

    def __repr__(self) -> str:
        """Return one line for each layer."""
        lines = [f"{name!r}: {result!r}" for name, result in self.items()]
        lines += [
            f"{name!r}: not measured, {reason}"
            for name, reason in self.not_measured.items()
        ]
        return "{" + ",\n ".join(lines) + "}"

    def __reduce__(self) -> tuple[Any, ...]:
        """Rebuild from results and reasons: a dict knows only the former."""
        return type(self), (dict(self), self.not_measured)
