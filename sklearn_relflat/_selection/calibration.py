"""The radius at which the smoothed risk of overfitting models is their true risk.

Equation 3 of the paper says which radius judges rightly: the one at which nothing is
missing between the risk and the smoothed risk. The risk of a few reference candidates
is estimated by cross-validation, and the radius solves ``S(delta) = risk``. A reference
has to overfit: only then does its smoothed risk move with the radius.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq

# Radii at which a crossing is looked for before it is refined.
_RADII = np.geomspace(0.05, 6.4, 15)


@dataclass(frozen=True)
class Reference:
    """A candidate that was cross-validated.

    Attributes
    ----------
    index : int
        Which candidate.
    training_loss : float
        Mean loss on the sample that it was fitted on.
    loss, stderr : float
        Mean loss over the folds, and its standard error.
    radius : float or None
        Where its smoothed risk is that loss; None if nowhere.
    log_stderr : float
        Standard error of the logarithm of the radius, from that of the loss.
    """

    index: int
    training_loss: float
    loss: float
    stderr: float
    radius: float | None
    log_stderr: float

    def __str__(self) -> str:
        """Say what came of it."""
        radius = "no radius" if self.radius is None else f"radius {self.radius:.3g}"
        return (
            f"candidate {self.index}: training loss {self.training_loss:.4g}, "
            f"cross-validated {self.loss:.4g} +- {self.stderr:.2g}, {radius}"
        )


def calibrated(
    index: int, curve: Callable[[float], float], fold_losses: np.ndarray
) -> Reference:
    """Solve for the radius of one reference.

    Parameters
    ----------
    index : int
        Which candidate.
    curve : callable
        Its smoothed risk at a radius, with the same draws at all radii.
    fold_losses : ndarray of shape (n_folds,)
        Its cross-validated losses.

    Returns
    -------
    reference : Reference
        With its radius, if there is one.
    """
    loss = float(fold_losses.mean())
    stderr = float(fold_losses.std(ddof=1) / math.sqrt(len(fold_losses)))
    training_loss = curve(0.0)
    known = {0.0: training_loss}
    radius = _crossing(curve, known, loss)
    log_stderr = math.inf
    if radius is not None:
        low = _crossing(curve, known, max(loss - stderr, training_loss))
        high = _crossing(curve, known, loss + stderr)
        sides = [
            abs(math.log(side / radius)) for side in (low, high) if side is not None
        ]
        log_stderr = max(sides, default=math.inf)
    return Reference(index, training_loss, loss, stderr, radius, log_stderr)


def _crossing(
    curve: Callable[[float], float], known: dict[float, float], target: float
) -> float | None:
    """Smallest radius at which a curve reaches a target; None if it does not."""

    def above(radius: float) -> float:
        if radius not in known:
            known[radius] = curve(radius)
        return known[radius] - target

    # What does not rise at all has no radius.
    if above(0.0) > 0 or not np.isfinite(target):
        return None
    before = float(_RADII[0])
    if above(before) >= 0:
        return before
    for radius in map(float, _RADII[1:]):
        if above(radius) >= 0:
            low, high = math.log(before), math.log(radius)
            root = brentq(lambda r: above(math.exp(r)), low, high, xtol=1e-3)
            return math.exp(float(root))
        before = radius
    return None


def combined(references: list[Reference]) -> tuple[float, float, float]:
    """Median of the references' radii, with an interval of about 95 %.

    Parameters
    ----------
    references : list of Reference
        Those with a radius.

    Returns
    -------
    radius, low, high : float
        The radius and its interval.
    """
    logs = np.log([r.radius for r in references if r.radius is not None])
    center = float(np.median(logs))
    errors = np.array([reference.log_stderr for reference in references])
    errors = np.where(np.isfinite(errors), errors, 1.0)
    # The folds are the same for all references, so that their errors do not average.
    variance = float((errors**2).mean())
    if len(logs) > 1:
        variance += float(logs.var(ddof=1)) / len(logs)
    half = 1.96 * math.sqrt(variance)
    return math.exp(center), math.exp(center - half), math.exp(center + half)
