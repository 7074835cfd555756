"""A linear output layer on its own: raw outputs from features, and its refit."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from scipy.optimize import brentq, minimize
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from sklearn_relflat._layers.layers import WeightLayer
from sklearn_relflat._losses.table import Loss

_MAX_ITER = 1000
# Distance from the minimum at which to stop, relative to that of the starting point.
_RELATIVE_TOLERANCE = 1e-6
# Penalty, relative to the curvature, that changes no minimum that exists without it.
_NEGLIGIBLE = 1e-9
# Growth of a layer's norm in a refit that training to the usual tolerances explains.
_TOLERATED_GROWTH = 0.02


@dataclass(frozen=True)
class OutputLayer:
    """The layer whose preactivations are the raw outputs of a model, in float64.

    Attributes
    ----------
    name : str
        Name of the layer.
    weight : Tensor of shape (d, m)
        Weight.
    bias : Tensor of shape (d,) or None
        Bias.
    output_shape : tuple of int
        Shape of the raw outputs of one sample, ``()`` or ``(d,)``.
    """

    name: str
    weight: Tensor
    bias: Tensor | None
    output_shape: tuple[int, ...]

    @classmethod
    def of(cls, layer: WeightLayer, output_shape: tuple[int, ...]) -> Self:
        """Copy the trained weight and bias.

        Parameters
        ----------
        layer : WeightLayer
            The layer.
        output_shape : tuple of int
            Shape of the raw outputs of one sample.

        Returns
        -------
        output : OutputLayer
            On the CPU.
        """
        weight = layer.weight.cpu().double().clone()
        bias = None if layer.bias is None else layer.bias.cpu().double().clone()
        return cls(layer.name, weight, bias, output_shape)

    def __call__(self, features: Tensor) -> Tensor:
        """Raw outputs for features of shape (n, m)."""
        z = torch.nn.functional.linear(features, self.weight, self.bias)
        return z.reshape(len(z), *self.output_shape)


@dataclass(frozen=True)
class OutputData:
    """What an output layer is fitted to, in float64 on the CPU.

    Attributes
    ----------
    features : Tensor of shape (n, m)
        What enters the layer.
    targets : Tensor of shape (n, ...)
        Targets as the loss encodes them.
    weight : Tensor of shape (n,)
        Sample weights.
    loss : Loss
        The loss that the model was trained with.
    """

    features: Tensor
    targets: Tensor
    weight: Tensor
    loss: Loss

    def rows(self, rows: np.ndarray) -> Self:
        """Return some of the samples."""
        index = torch.as_tensor(rows)
        return replace(
            self,
            features=self.features[index],
            targets=self.targets[index],
            weight=self.weight[index],
        )

    def risk(self, outputs: Tensor) -> tuple[float, np.ndarray]:
        """Mean loss, and its gradient in the outputs as (n, d)."""
        value = self.loss.value(outputs, self.targets)
        total = (self.weight * self.loss.denominator(outputs, self.targets)).sum()
        gradient = self.loss.gradient(outputs, self.targets).reshape(len(value), -1)
        gradient = gradient * (self.weight / total)[:, None]
        return float((self.weight * value).sum() / total), gradient.numpy()

    def mean_curvature(self, outputs: Tensor) -> float:
        """Second derivative of the mean loss in an output, averaged over outputs."""
        n_outputs = outputs[0].numel()
        eye = torch.eye(n_outputs, dtype=outputs.dtype)
        curvature = self.loss.hessian_inner(outputs, self.targets, eye) / n_outputs
        total = (self.weight * self.loss.denominator(outputs, self.targets)).sum()
        return float((self.weight * curvature).sum() / total)


def implied_penalty(layer: OutputLayer, data: OutputData) -> float:
    """Coefficient c of the ridge penalty c ||w||^2 that a trained layer implies.

    First the c >= 0 for which the gradient of ``E_emp + c ||w||^2`` in w is smallest.
    Where the layer minimises such an objective, this is its penalty: 1 / (2 C n) for
    scikit-learn's logistic regression, alpha / n for a ridge regression, zero for least
    squares. Training that was stopped early leaves a layer with a smaller norm than a
    minimum would have; then c is raised until the minimum has no larger norm.

    Parameters
    ----------
    layer : OutputLayer
        The trained layer.
    data : OutputData
        What it was trained on.

    Returns
    -------
    penalty : float
        The coefficient.

    Examples
    --------
    >>> import torch
    >>> from sklearn_relflat._losses.table import LOSSES
    >>> x, y = torch.tensor([[1.0], [2.0]]).double(), torch.tensor([[1.0], [3.0]])
    >>> data = OutputData(
    ...     x, y.double(), torch.ones(2).double(), LOSSES["squared_error"]()
    ... )
    >>> w = (x.T @ y.double()) / (x.T @ x + 2 * 0.5)  # ridge with alpha = n * 0.5
    >>> round(implied_penalty(OutputLayer("w", w, None, (1,)), data), 12)
    0.5
    """
    norm = float(layer.weight.norm())
    if norm == 0:
        return 0.0
    _, gradient = data.risk(layer(data.features))
    slope = gradient.T @ data.features.numpy()
    penalty = max(0.0, -float((slope * layer.weight.numpy()).sum()) / (2 * norm**2))

    def log_growth(log_penalty: float) -> float:
        """Logarithm of the norm at the minimum, relative to that of the layer."""
        minimum = refit_output_layer(layer, data, np.exp(log_penalty))
        return float(minimum.weight.norm().clamp_min(1e-300).log()) - np.log(norm)

    # Not zero, so that the minimum exists also where the classes are separable.
    curvature = data.mean_curvature(layer(data.features))
    scale = abs(curvature) * float(data.features.square().sum(1).mean())
    low = np.log(max(penalty, _NEGLIGIBLE * scale, np.finfo(np.float64).tiny))
    if log_growth(low) <= _TOLERATED_GROWTH:
        return penalty
    high = low + np.log(10)
    while log_growth(high) > 0:
        low, high = high, high + np.log(10)
    return float(np.exp(brentq(log_growth, low, high, xtol=0.05)))


def refit_output_layer(
    layer: OutputLayer, data: OutputData, penalty: float
) -> OutputLayer:
    """Minimise the mean loss plus a ridge penalty over an output layer.

    The minimum does not depend on the trained weight: L-BFGS starts at zero, and
    where there are several minima it finds the one of smallest norm. The bias is not
    penalised.

    Parameters
    ----------
    layer : OutputLayer
        Shape of the layer; whether it has a bias.
    data : OutputData
        What to fit it to.
    penalty : float
        Coefficient c of the penalty ``c ||w||^2``.

    Returns
    -------
    refitted : OutputLayer
        The layer at the minimum.
    """
    features = data.features.numpy()
    start = replace(
        layer,
        weight=torch.zeros_like(layer.weight),
        bias=None if layer.bias is None else torch.zeros_like(layer.bias),
    )
    # Between the curvature at the start and at the end of the way, which differ by
    # orders of magnitude where the softmax saturates.
    curvature = data.mean_curvature(start(data.features))
    curvature *= data.mean_curvature(layer(data.features))
    curvature = curvature**0.5 if curvature > 0 else 1.0
    center = features.mean(axis=0) * (layer.bias is not None)
    basis, scale = _preconditioner(features - center, curvature, penalty)
    design = (features - center) @ basis
    if layer.bias is not None:
        # The last column is the bias of the centred features, without penalty.
        bias_scale = curvature**-0.5
        design = np.column_stack([design, np.full(len(design), bias_scale)])
        scale = np.append(scale, 0.0)

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        """Penalised risk and its gradient in the preconditioned coordinates."""
        theta = flat.reshape(-1, design.shape[1])
        outputs = torch.from_numpy(design @ theta.T).reshape(-1, *layer.output_shape)
        value, gradient = data.risk(outputs)
        value += penalty * float(((theta * scale) ** 2).sum())
        return value, (gradient.T @ design + 2 * penalty * theta * scale**2).ravel()

    theta = _minimum(objective, len(layer.weight) * design.shape[1], layer.name)
    theta = theta.reshape(-1, design.shape[1])
    weight = theta[:, : basis.shape[1]] @ basis.T
    bias = None
    if layer.bias is not None:
        bias = torch.from_numpy(theta[:, -1] * bias_scale - weight @ center)
    return replace(layer, weight=torch.from_numpy(weight), bias=bias)


def _preconditioner(
    features: np.ndarray, curvature: float, penalty: float
) -> tuple[np.ndarray, np.ndarray]:
    """Directions (m, r) in which the objective has curvature about one; their norms."""
    _, singular, rows = np.linalg.svd(features, full_matrices=False)
    threshold = singular[0] * max(features.shape) * np.finfo(np.float64).eps
    kept = singular > threshold
    spread = curvature * singular[kept] ** 2 / len(features)
    norms = 1.0 / np.sqrt(spread + 2 * penalty)
    return rows[kept].T * norms, norms


def _minimum(
    objective: Callable[[np.ndarray], tuple[float, np.ndarray]],
    n_parameters: int,
    name: str,
) -> np.ndarray:
    """Minimise from zero by L-BFGS."""
    start = np.zeros(n_parameters)
    if n_parameters == 0:
        return start  # No bias, and features that are all zero.
    # With curvature about one, the distance to the minimum is the gradient's norm.
    _, slope = objective(start)
    result = minimize(
        objective,
        start,
        jac=True,
        method="L-BFGS-B",
        options={
            "maxiter": _MAX_ITER,
            "maxfun": 2 * _MAX_ITER,
            "maxcor": 20,
            "gtol": _RELATIVE_TOLERANCE * float(np.abs(slope).max()),
            "ftol": 0.0,
        },
    )
    if not (np.isfinite(result.fun) and np.isfinite(result.x).all()):
        raise ValueError(
            f"Expected a finite loss while refitting the output layer {name!r}, got "
            f"{result.fun!r}: scale the features, or use refit='estimator'."
        )
    if result.nit >= _MAX_ITER:
        warnings.warn(
            f"The refit of the output layer {name!r} did not converge in {_MAX_ITER} "
            "iterations: the classes may be separable, and the trained layer implies "
            "no penalty. Train with a penalty, or use refit='estimator'.",
            ConvergenceWarning,
            stacklevel=2,
        )
    return result.x
