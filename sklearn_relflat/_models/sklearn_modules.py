"""Parts of the views of scikit-learn models: torch modules that share their memory.

Conventions: outputs have shape (n, d), also for d = 1: the decision function or the
prediction as a column, before the link (sigmoid, softmax, exponential). Names of the
layers: "coef" for linear models, "coefs.0", "coefs.1", ... for multi-layer perceptrons,
"dual_coef" for kernel ridge.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn

from sklearn_relflat._data.sklearn_data import Encoder, SklearnReader, dense_rows
from sklearn_relflat._losses.table import Loss
from sklearn_relflat._models.torch_model import TorchModel


def shared_linear(weight: np.ndarray, bias: np.ndarray | None) -> nn.Linear:
    """Return a torch layer on the memory of a scikit-learn model's coefficients.

    Parameters
    ----------
    weight : ndarray of shape (d, m)
        Coefficients; any view is shared, read-only memory is copied.
    bias : ndarray of shape (d,) or None
        Intercepts.

    Returns
    -------
    layer : torch.nn.Linear
        Layer whose parameters require no gradient.

    Examples
    --------
    >>> import numpy as np
    >>> coef = np.zeros((2, 3))
    >>> layer = shared_linear(coef, None)
    >>> coef[1, 2] = 5.0
    >>> layer.weight[1, 2].item()
    5.0
    """
    n_neurons, n_features = weight.shape
    layer = nn.Linear(n_features, n_neurons, bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(_shared(weight), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(_shared(bias).to(layer.weight), requires_grad=False)
    return layer


def _shared(values: np.ndarray) -> Tensor:
    """Return a tensor on the memory of an array, if torch can."""
    array = np.asarray(values)
    if array.dtype not in (np.float32, np.float64):
        array = array.astype(np.float64)
    return torch.from_numpy(array if array.flags.writeable else array.copy())


class LinearModel(nn.Module):
    """Decision function of a linear model."""

    def __init__(self, coef: nn.Linear) -> None:
        super().__init__()
        self.coef = coef

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the decision function."""
        return self.coef(inputs)


class KernelModel(nn.Module):
    """Prediction of a kernel machine from a row of the kernel matrix."""

    def __init__(self, dual_coef: nn.Linear) -> None:
        super().__init__()
        self.dual_coef = dual_coef

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the prediction."""
        return self.dual_coef(inputs)


_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "identity": nn.Identity,
    "logistic": nn.Sigmoid,
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
}


class Perceptron(nn.Module):
    """Multi-layer perceptron up to its last linear layer."""

    def __init__(self, coefs: list[nn.Linear], activation: str) -> None:
        super().__init__()
        self.coefs = nn.ModuleList(coefs)
        self.activation = _ACTIVATIONS[activation]()

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the output before its link."""
        for layer in self.coefs[:-1]:
            inputs = self.activation(layer(inputs))
        return self.coefs[-1](inputs)


def sklearn_view(
    estimator: Any,
    module: nn.Module,
    layer: str,
    encode: Encoder,
    loss: Callable[[], Loss],
    features: Callable[[Any, slice], np.ndarray] = dense_rows,
) -> TorchModel:
    """Return the view of a scikit-learn estimator."""
    parameters = list(module.parameters())
    dtype = parameters[0].dtype
    width = max(max(p.shape) for p in parameters)
    return TorchModel(
        module=module,
        estimator_name=type(estimator).__name__,
        device=torch.device("cpu"),
        dtype=dtype,
        forward=module,
        read=SklearnReader(estimator, encode, dtype, width, features),
        training_loss=loss,
        default_layer=layer,
    )


def linear_module(estimator: Any) -> LinearModel:
    """Return the decision function of a fitted linear model as a module."""
    coef = estimator.coef_
    # ``sparsify`` leaves a sparse matrix behind.
    coef = np.atleast_2d(coef.toarray() if sparse.issparse(coef) else coef)
    bias = None
    # Discriminant analysis has no such parameter, and always an intercept.
    if getattr(estimator, "fit_intercept", True):
        bias = np.atleast_1d(estimator.intercept_)
        # Several outputs may share one intercept, for instance zero.
        bias = bias if len(bias) == len(coef) else np.resize(bias, len(coef))
    return LinearModel(shared_linear(coef, bias))
