"""Result of a measurement of relative flatness."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from sklearn_relflat._results.plottable import Plottable
from sklearn_relflat._results.result import NumberResult, Result
from sklearn_relflat._results.words import number


@dataclass(frozen=True, eq=False)
class RelativeFlatness(NumberResult):
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

    guide = "relative_flatness"
    _not_in_row: ClassVar[tuple[str, ...]] = ("per_sample",)

    def __float__(self) -> float:
        """Return the value."""
        return self.value

    @property
    def _name(self) -> str:
        """What the measure is called."""
        return "kappa_max" if self.statistic == "max_eigenvalue" else "kappa"

    def cells(self) -> list[dict[str, str]]:
        """Return the row as it is shown.

        Returns
        -------
        cells : list of dict
            Short texts by column.
        """
        return [
            {
                "layer": self.layer,
                self._name: number(self.value, self.stderr),
                "gradient norm": f"{self.gradient_norm:.2g}",
                "features": str(self.n_features),
                "route": f"{self.curvature}, {self.method}",
            }
        ]

    @property
    def title(self) -> str:
        """What the result is about."""
        return f"{self.loss} {self.mean_loss:.4g} on {self.n_samples} samples"

    def _sentence(self) -> str:
        """Say what the number tells."""
        scaled = ", of features divided by their standard deviations,"
        return (
            f"Relative flatness {self._name} of layer {self.layer!r}"
            f"{scaled if self.normalize else ''} is {number(self.value, self.stderr)}: "
            "large is sharp, small is flat."
        )

    def __repr__(self) -> str:
        """Return a summary in one line."""
        error = f" +- {self.stderr:.2g}" if self.stderr else ""
        normalized = ", std-normalized" if self.normalize else ""
        return (
            f"<RelativeFlatness {self._name} = {self.value:.6g}{error} of layer "
            f"{self.layer!r}{normalized}; {self.loss} {self.mean_loss:.4g} on "
            f"{self.n_samples} samples, gradient norm {self.gradient_norm:.2g}; "
            f"{self.curvature}, {self.method}>"
        )


class NotMeasuredError(KeyError, ValueError):
    """A layer that was left out is asked for."""

    def __str__(self) -> str:
        """Return the message as it is, not the repr of a key."""
        return str(self.args[0])


class LayerwiseRelativeFlatness(Plottable, Result, dict[str, RelativeFlatness]):
    """Results by the name of the layer, and what was not measured.

    It prints as a table.

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

    guide = "relative_flatness"

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
        """Return the table."""
        return str(self)

    def rows(self) -> list[dict[str, Any]]:
        """Return the results of the layers.

        Returns
        -------
        rows : list of dict
            One a layer that was measured, see `RelativeFlatness`.
        """
        return [row for result in self.values() for row in result.rows()]

    def cells(self) -> list[dict[str, str]]:
        """Return the rows as they are shown.

        Returns
        -------
        cells : list of dict
            Short texts by column.
        """
        return [row for result in self.values() for row in result.cells()]

    @property
    def title(self) -> str:
        """What the result is about."""
        return next(iter(self.values())).title if self else ""

    @property
    def remarks(self) -> list[str]:
        """Why other layers are not here."""
        return [
            f"Layer {name!r} was not measured: {reason}."
            for name, reason in self.not_measured.items()
        ]

    def _sentence(self) -> str:
        """Say what the numbers are to be compared with."""
        if not self:
            return "No layer was measured."
        if len(self) == 1:
            return next(iter(self.values()))._sentence()
        return (
            "Compare each layer with the same layer of another model, not with the "
            "others: what kappa means for the loss depends on the number of features."
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Rebuild from results and reasons: a dict knows only the former."""
        return type(self), (dict(self), self.not_measured)
