"""Risk of a model on a sample, and on the local densities around its features.

Conventions: n samples with features phi_i of shape (m, P), P positions; perturbations
xi_i = delta A_i phi_i with independent matrices A_i = r_i O_i of Proposition 2 of [1]_,
so that for P = 1 phi_i + xi_i has the density of one kernel with the bandwidth
delta ||phi_i||. Risks are means over samples, weighted as the loss defines it,
``sum_i s_i l_i / sum_i s_i d_i``, also where the criterion itself sums.

References
----------
.. [1] Petzka, Kamp, Adilova, Sminchisescu, Boley, "Relative Flatness and
   Generalization", NeurIPS 2021, Proposition 2 and equation 5.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from sklearn_relflat._curvature.linearization import Linearization, columns_of
from sklearn_relflat._density.radial_kernels import RADIAL_KERNELS
from sklearn_relflat._layers.capture import capture
from sklearn_relflat._layers.layers import WeightLayer, find_layer
from sklearn_relflat._layers.own_forward import agree
from sklearn_relflat._losses.table import SquaredError
from sklearn_relflat._models.torch_model import TorchModel
from sklearn_relflat._robustness.perturbations import HaarOrthogonal
from sklearn_relflat._split.output_layer import (
    OutputData,
    OutputLayer,
    implied_penalty,
    refit_output_layer,
)
from sklearn_relflat._split.split_model import (
    SplitModel,
    check_head,
    head_outputs,
    split_model,
)


@dataclass(frozen=True)
class LocalDensities:
    """How features are perturbed, and how often.

    Attributes
    ----------
    deltas : ndarray of shape (n_deltas,)
        Bandwidths relative to the norm of the features.
    kernel : str
        A key of `RADIAL_KERNELS`.
    n_draws : int
        Draws for each sample, four or more, in antithetic pairs xi, -xi.
    """

    deltas: np.ndarray
    kernel: str
    n_draws: int

    @property
    def n_pairs(self) -> int:
        """Number of pairs."""
        return -(-self.n_draws // 2)

    def second_moment(self, n_features: int) -> float:
        """``E[r^2]`` in units of delta^2."""
        return RADIAL_KERNELS[self.kernel].second_moment(n_features)

    def draws(self, features: np.ndarray, rng: np.random.RandomState) -> Iterator[Any]:
        """Perturbations A_i phi_i of size delta = 1, one per pair, (n, m, P)."""
        n, m, _ = features.shape
        for _ in range(self.n_pairs):
            rotated = HaarOrthogonal().perturb_independent(features, rng)
            radii = RADIAL_KERNELS[self.kernel].sample_radius(m, n, rng)
            yield radii[:, None, None] * rotated


@dataclass(frozen=True)
class LocalRisk:
    """A model on a sample: its loss there and in the neighbourhood of the features.

    Attributes
    ----------
    view : TorchModel
        The model.
    split : SplitModel
        Its split at the layer whose features are perturbed.
    features : ndarray of shape (n, m, P)
        Features that enter that layer.
    data : OutputData or None
        What enters the output layer; None if that was not asked for.
    targets : Tensor of shape (n, ...)
        Targets as the loss encodes them.
    weight : Tensor of shape (n,)
        Sample weights.
    outputs : Tensor of shape (n, ...)
        Raw outputs of the trained model.
    output_layer : OutputLayer or None
        The output layer, possibly a refitted one; None if the model ends otherwise or
        the layer was not asked for.
    is_refitted : bool
        Whether `output_layer` takes the place of the trained one.
    """

    view: TorchModel
    split: SplitModel
    features: np.ndarray
    data: OutputData | None
    targets: Tensor
    weight: Tensor
    outputs: Tensor
    output_layer: OutputLayer | None
    is_refitted: bool = False

    @classmethod
    def measure(
        cls, view: TorchModel, X: Any, y: Any, layer: str, *, output: bool
    ) -> Self:
        """Run the model once over a sample.

        Parameters
        ----------
        view : TorchModel
            The model.
        X : array-like of shape (n_samples, ...), or what else the model takes
            Samples.
        y : array-like of shape (n_samples, ...) or None
            Targets.
        layer : str
            Name of the layer whose features are perturbed.
        output : bool
            Whether the output layer is needed on its own, to be refitted.

        Returns
        -------
        risk : LocalRisk
            With the trained output layer.

        Raises
        ------
        ValueError
            If the output layer is needed and the model does not end in one.
        """
        split = split_model(view, X, layer)
        last = split
        if output and not split.is_output:
            last = split_model(replace(view, default_layer=None), X, None)
        is_linear = last.is_output and len(last.output_shape) <= 1
        if output and not is_linear:
            raise ValueError(
                "Expected a model whose raw outputs are the preactivations of one "
                f"linear layer, to refit that layer, got {view.estimator_name} where "
                f"something follows layer {last.layer!r}. Use refit='estimator'."
            )
        check_head(split)
        check_head(last)
        names = dict.fromkeys((split.layer, last.layer))
        layers = {name: find_layer(view, name) for name in names}
        features, outputs, targets, weight = _read(view, X, y, layers)
        output_layer, data = None, None
        if is_linear:
            output_layer = OutputLayer.of(layers[last.layer], last.output_shape)
            entering = features[last.layer][:, :, 0]
            if not agree(output_layer(entering).to(view.dtype), outputs.to(view.dtype)):
                raise ValueError(
                    f"Expected raw outputs of {view.estimator_name} that are those of "
                    f"layer {last.layer!r} for every sample, as for the first ones, "
                    "got others: what lies behind it acts on some samples only. Choose "
                    "a hidden layer and refit='estimator'."
                )
            data = OutputData(entering, targets, weight, view.loss)
        return cls(
            view=view,
            split=split,
            features=features[split.layer].numpy(),
            data=data,
            targets=targets,
            weight=weight,
            outputs=outputs,
            output_layer=output_layer,
        )

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.features)

    def penalty(self) -> float:
        """Ridge penalty that the trained output layer implies."""
        layer, data = self._refittable()
        return implied_penalty(layer, data)

    def refitted(self, rows: np.ndarray, penalty: float) -> Self:
        """Refit the output layer to some of the samples.

        Parameters
        ----------
        rows : ndarray of shape (n_rows,)
            Which.
        penalty : float
            Coefficient of the ridge penalty.

        Returns
        -------
        risk : LocalRisk
            The same sample with the refitted layer.
        """
        layer, data = self._refittable()
        layer = refit_output_layer(layer, data.rows(rows), penalty)
        outputs = layer(data.features)
        return replace(self, output_layer=layer, outputs=outputs, is_refitted=True)

    def _refittable(self) -> tuple[OutputLayer, OutputData]:
        """Return what a refit needs, which `measure` was asked for."""
        assert self.output_layer is not None
        assert self.data is not None
        return self.output_layer, self.data

    # -----------------------------------------------------------------------
    # Losses
    # -----------------------------------------------------------------------
    def losses(self) -> np.ndarray:
        """Loss of each sample, (n,)."""
        return self.view.loss.value(self.outputs, self.targets).numpy()

    def mean(self, values: np.ndarray, rows: Any = slice(None)) -> Any:
        """Risk from values (..., n_rows) of some samples."""
        return (values * self._shares(rows)).sum(axis=-1)

    def mean_variance(self, variances: np.ndarray, rows: Any = slice(None)) -> Any:
        """Variance of the risk from the variances of independent values."""
        return (variances * self._shares(rows) ** 2).sum(axis=-1)

    def _shares(self, rows: Any) -> np.ndarray:
        """Factors of the values of some samples in their risk."""
        counts = self.view.loss.denominator(self.outputs, self.targets)
        total = float((self.weight * counts)[rows].sum())
        if not total > 0:
            raise ValueError(
                "Expected samples with a positive total weight in every part of a "
                f"split, got {total!r}: all of a part is ignored or has weight zero. "
                "Leave these samples out, or make the parts larger."
            )
        return (self.weight[rows] / total).numpy()

    def smoothed_losses(
        self, rows: np.ndarray, local: LocalDensities, rng: np.random.RandomState
    ) -> tuple[np.ndarray, np.ndarray]:
        """Average the losses over the local densities around some samples.

        Parameters
        ----------
        rows : ndarray of shape (n_rows,)
            Which.
        local : LocalDensities
            The local densities.
        rng : RandomState
            Source of the draws.

        Returns
        -------
        values, variances : ndarray of shape (n_deltas, n_rows)
            ``E_xi l(psi(phi_i + xi), y_i)`` and the variance of its Monte-Carlo
            estimate. For the squared error on an output layer the expectation is known
            and the variance zero.

        Raises
        ------
        ValueError
            If a loss is not finite.
        """
        linear = self.split.is_output and self.output_layer is not None
        if linear and isinstance(self.view.loss, SquaredError):
            return self._second_order(rows, local)
        features, targets = self.features[rows], self.targets[rows]
        shape = (len(local.deltas), len(rows))
        total, squares = np.zeros(shape), np.zeros(shape)
        base = self.losses()[rows]
        for xi in local.draws(features, rng):
            for j, delta in enumerate(local.deltas):
                with np.errstate(over="ignore"):
                    step = delta * xi  # an overflow is reported below
                pair = [
                    self.view.loss.value(self._outputs(phi), targets).numpy()
                    for phi in (features + step, features - step)
                ]
                # Relative to the loss itself, so that the variance keeps its digits.
                change = 0.5 * (pair[0] + pair[1]) - base
                total[j] += change
                squares[j] += change**2
        mean = total / local.n_pairs
        spread = np.maximum(squares - local.n_pairs * mean**2, 0.0)
        if not np.isfinite(total).all():
            raise ValueError(
                "Expected a finite loss of the perturbed features, got NaN or infinity "
                f"for delta up to {float(local.deltas.max())!r}. Use a smaller delta."
            )
        variances = spread / (local.n_pairs * (local.n_pairs - 1))
        return base + mean, variances

    def _second_order(
        self, rows: np.ndarray, local: LocalDensities
    ) -> tuple[np.ndarray, np.ndarray]:
        """Exact expectation of a loss that is quadratic in the features."""
        # E[xi xi^T] = delta^2 E[r^2] ||phi||^2 / m * I, so that half of the expected
        # second derivative in the direction w xi is what is added.
        assert self.output_layer is not None
        weight = self.output_layer.weight
        m = weight.shape[1]
        inner = self.view.loss.hessian_inner(
            self.outputs[rows], self.targets[rows], weight
        )
        norms = (self.features[rows] ** 2).sum(axis=(1, 2))
        change = local.second_moment(m) / (2 * m) * norms * inner.numpy()
        values = self.losses()[rows] + np.outer(local.deltas**2, change)
        return values, np.zeros_like(values)

    def _outputs(self, features: np.ndarray) -> Tensor:
        """Raw outputs for features (n, m, P) that enter the layer."""
        if self.split.is_output and self.output_layer is not None:
            return self.output_layer(torch.from_numpy(features[:, :, 0]))
        with ExitStack() as stack:
            if self.is_refitted:
                assert self.output_layer is not None
                layer = find_layer(self.view, self.output_layer.name)
                stack.enter_context(_replaced(layer, self.output_layer))
            flat = features.reshape(len(features), -1)
            return head_outputs(self.view, self.split, flat).cpu().double()


def _read(
    view: TorchModel, X: Any, y: Any, layers: dict[str, WeightLayer]
) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor]:
    """Features of the layers, outputs, targets and weights, in one pass."""
    parts = []
    with view.measuring(), capture(view, layers, differentiable=False) as seen:
        for batch in view.batches(X, y):
            if batch.start == 0:
                view.check_loss(batch)
            lin = Linearization(view, batch, seen, layers)
            features = [columns_of(lin.calls[name]) for name in layers]
            found = [*features, lin.wide_outputs, lin.targets, lin.weight]
            parts.append([_on_cpu(values) for values in found])
    *features, outputs, targets, weight = map(torch.cat, zip(*parts, strict=True))
    return dict(zip(layers, features, strict=True)), outputs, targets, weight


def _on_cpu(values: Tensor) -> Tensor:
    """Copy to the CPU, in float64 if floating."""
    dtype = torch.float64 if values.is_floating_point() else values.dtype
    return values.detach().to("cpu", dtype, copy=True)


@contextmanager
def _replaced(layer: WeightLayer, other: OutputLayer) -> Iterator[None]:
    """Let another output layer take the place of a model's own."""

    def hook(module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> Tensor:
        x = args[0] if args else kwargs["input"]
        bias = None if other.bias is None else other.bias.to(x)
        return nn.functional.linear(x, other.weight.to(x), bias)

    with ExitStack() as stack:
        for module in layer.modules:
            handle = module.register_forward_hook(hook, with_kwargs=True, prepend=True)
            stack.callback(handle.remove)
        yield
