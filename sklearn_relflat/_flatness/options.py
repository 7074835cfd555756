"""Options of relative flatness, checked."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import Any

_CHOICES: dict[str, tuple[Any, ...]] = {
    "curvature": ("hessian", "gauss_newton"),
    "method": ("auto", "exact", "sampled"),
    "normalize": (None, "std"),
    "statistic": ("trace", "max_eigenvalue"),
}


@dataclass(frozen=True)
class Options:
    """Keyword arguments of the public functions, checked."""

    loss: Any
    curvature: str
    method: str
    normalize: str | None
    statistic: str
    weight_decay: float
    rtol: float
    per_sample: bool
    sample_weight: Any
    random_state: Any

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(
                    f"Expected {name} to be one of {list(allowed)}, got {value!r}."
                )
        for name in ("weight_decay", "rtol"):
            value = getattr(self, name)
            if not (isinstance(value, Real) and float(value) >= 0):
                raise ValueError(
                    f"Expected {name} to be a number of at least 0, got {value!r}."
                )
        if self.statistic == "max_eigenvalue":
            if self.method == "sampled":
                raise ValueError(
                    'statistic="max_eigenvalue" is always exact, got method="sampled". '
                    'Use method="auto".'
                )
            if self.per_sample:
                raise ValueError(
                    'statistic="max_eigenvalue" is no mean over samples, got '
                    'per_sample=True. Use statistic="trace".'
                )
