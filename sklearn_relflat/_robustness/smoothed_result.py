"""What smoothing the risk of a model gives."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from sklearn_relflat._density.density_radius import DensityRadius
from sklearn_relflat._results.result import NumberResult
from sklearn_relflat._results.words import number


@dataclass(frozen=True, eq=False)
class SmoothedRisk(NumberResult):
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

    guide = "smoothed_risk"
    _not_in_row: ClassVar[tuple[str, ...]] = ("density", "by_pair", "per_sample")

    def __float__(self) -> float:
        """Return the smoothed risk."""
        return self.value

    @property
    def rise(self) -> float:
        """E_F: what the perturbations add to the mean loss."""
        return self.value - self.mean_loss

    def cells(self) -> list[dict[str, str]]:
        """Return the row as it is shown.

        Returns
        -------
        cells : list of dict
            Short texts by column.
        """
        return [
            {
                "smoothed risk": number(self.value, self.stderr),
                "training loss": number(self.mean_loss),
                "radius": number(self.radius),
                "perturbed": f"{self.layer}, {self.shape}",
                "loss": self.metric,
                "samples": str(self.n_samples),
                "route": self.method,
            }
        ]

    def _sentence(self) -> str:
        """Say what the perturbations do."""
        return (
            f"Perturbations of radius {number(self.radius)} of {self.layer!r} take the "
            f"mean {self.metric} from {number(self.mean_loss)} to "
            f"{number(self.value, self.stderr)}."
        )

    def __repr__(self) -> str:
        """Describe the result in a line."""
        error = "exact" if self.method == "exact" else f"+- {self.stderr:.2g}"
        return (
            f"<SmoothedRisk {self.value:.6g} ({error}) at radius {self.radius:.4g} of "
            f"{self.layer!r}, {self.shape}; {self.metric} {self.mean_loss:.4g} without "
            f"perturbation on {self.n_samples} samples>"
        )
