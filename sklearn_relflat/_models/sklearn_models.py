"""scikit-learn models as small torch modules that share memory with ``coef_``.

Conventions: outputs have shape (n, d), also for d = 1: the decision function or the
prediction as a column, before the link (sigmoid, softmax, exponential). Names of the
layers: "coef" for linear models, "coefs.0", "coefs.1", ... for multi-layer perceptrons,
"dual_coef" for kernel ridge. Losses are torch's: the squared error and the one-versus-
rest binary cross-entropy are averaged over the outputs, without a factor 1/2, and the
penalty of the training objective is left out. ``class_weight`` of a classifier
multiplies the sample weights as long as the loss is the training loss.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy import sparse
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import (
    LinearRegression,
    LogisticRegression,
    Ridge,
    RidgeClassifier,
    RidgeClassifierCV,
    RidgeCV,
    SGDClassifier,
    SGDRegressor,
)
from sklearn.metrics.pairwise import pairwise_kernels
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from sklearn_relflat._data.sklearn_data import (
    Encoder,
    IndicatorTargets,
    LabelTargets,
    RegressionTargets,
    SklearnReader,
    dense_rows,
)
from sklearn_relflat._linear.logistic import RelativeFlatnessLogisticRegression
from sklearn_relflat._linear.ridge import RelativeFlatnessRidge
from sklearn_relflat._linear.ridge_cv import RelativeFlatnessRidgeCV
from sklearn_relflat._losses.table import LOSSES, Loss
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


class _LinearModel(nn.Module):
    """Decision function of a linear model."""

    def __init__(self, coef: nn.Linear) -> None:
        super().__init__()
        self.coef = coef

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the decision function."""
        return self.coef(inputs)


class _KernelModel(nn.Module):
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


class _Perceptron(nn.Module):
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


# ---------------------------------------------------------------------------
# Adapters
# ---------------------------------------------------------------------------
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


def linear_module(estimator: Any) -> _LinearModel:
    """Return the decision function of a fitted linear model as a module."""
    coef = estimator.coef_
    # ``sparsify`` leaves a sparse matrix behind.
    coef = np.atleast_2d(coef.toarray() if sparse.issparse(coef) else coef)
    bias = None
    if estimator.fit_intercept:
        bias = np.atleast_1d(estimator.intercept_)
        # Several outputs may share one intercept, for instance zero.
        bias = bias if len(bias) == len(coef) else np.resize(bias, len(coef))
    return _LinearModel(shared_linear(coef, bias))


def _linear_regression(estimator: Any) -> TorchModel:
    """Return the view of a linear regressor with the squared error."""
    module = linear_module(estimator)
    encode = RegressionTargets(module.coef.out_features)
    return sklearn_view(estimator, module, "coef", encode, LOSSES["squared_error"])


def _sgd_regressor(estimator: Any) -> TorchModel:
    """Return the view of a linear regressor trained by stochastic gradients."""
    module = linear_module(estimator)
    encode = RegressionTargets(module.coef.out_features)
    loss = _named_loss(estimator, {"squared_error": "squared_error"})
    return sklearn_view(estimator, module, "coef", encode, loss)


def _named_loss(estimator: Any, names: dict[str, str]) -> Callable[[], Loss]:
    """Return the training loss of an estimator with a parameter ``loss``."""

    def training_loss() -> Loss:
        """Look the loss up, when it is asked for."""
        if estimator.loss not in names:
            raise ValueError(
                f"Expected {type(estimator).__name__} with loss in {list(names)!r}, "
                f"got {estimator.loss!r}. Fit it with such a loss, or name a twice "
                f"differentiable one to measure with: loss= one of {list(LOSSES)!r}."
            )
        return LOSSES[names[estimator.loss]]()

    return training_loss


def _ridge_classifier(estimator: Any) -> TorchModel:
    """Return the view of a ridge classifier: squared error to -1 and +1."""
    module = linear_module(estimator)
    n_outputs = module.coef.out_features
    name = type(estimator).__name__
    labels = LabelTargets(
        estimator.classes_, name, n_outputs, "squared_error", low=-1.0
    )
    indicator = IndicatorTargets(n_outputs, low=-1.0)

    def encode(y: Any, loss: Loss | None, dtype: np.dtype) -> np.ndarray:
        """Encode labels, or an indicator matrix of several labels."""
        several = getattr(y, "ndim", np.ndim(y)) == 2 and np.shape(y)[1] > 1
        return (indicator if several else labels)(y, loss, dtype)

    return sklearn_view(estimator, module, "coef", encode, LOSSES["squared_error"])


def _linear_classifier(estimator: Any, loss: Callable[[], Loss]) -> TorchModel:
    """Return the view of a linear classifier, multinomial or one-versus-rest."""
    module = linear_module(estimator)
    encode = LabelTargets(
        estimator.classes_,
        type(estimator).__name__,
        module.coef.out_features,
        "cross_entropy" if loss is LOSSES["cross_entropy"] else "binary_cross_entropy",
    )
    return sklearn_view(estimator, module, "coef", encode, loss)


def _logistic_regression(estimator: Any) -> TorchModel:
    """Return the view of a logistic regression."""
    # scikit-learn < 1.8 has the parameter ``multi_class``.
    multi_class = getattr(estimator, "multi_class", "auto")
    binary = len(estimator.classes_) == 2
    if binary and multi_class == "multinomial":
        raise ValueError(
            f"Expected {type(estimator).__name__} of two classes with the logistic "
            "loss, got multi_class='multinomial', whose softmax over -f and f has "
            "no row per class. Fit with the default multi_class."
        )
    solver = getattr(estimator, "solver", None)
    one_versus_rest = multi_class == "ovr" or solver == "liblinear"
    name = "binary_cross_entropy" if binary or one_versus_rest else "cross_entropy"
    return _linear_classifier(estimator, LOSSES[name])


def _sgd_classifier(estimator: Any) -> TorchModel:
    """Return the view of a linear classifier trained by stochastic gradients."""
    loss = _named_loss(estimator, {"log_loss": "binary_cross_entropy"})
    return _linear_classifier(estimator, loss)


def _perceptron(estimator: Any) -> _Perceptron:
    """Return a multi-layer perceptron as a module."""
    layers = [
        shared_linear(coef.T, intercept)
        for coef, intercept in zip(estimator.coefs_, estimator.intercepts_, strict=True)
    ]
    return _Perceptron(layers, estimator.activation)


def _mlp_classifier(estimator: Any) -> TorchModel:
    """Return the view of a multi-layer perceptron that classifies."""
    module = _perceptron(estimator)
    n_outputs = estimator.n_outputs_
    softmax = estimator.out_activation_ == "softmax"
    loss = "cross_entropy" if softmax else "binary_cross_entropy"
    encode: Encoder
    if softmax or n_outputs == 1:
        name = type(estimator).__name__
        encode = LabelTargets(np.asarray(estimator.classes_), name, n_outputs, loss)
    else:
        encode = IndicatorTargets(n_outputs)
    layer = f"coefs.{len(module.coefs) - 1}"
    return sklearn_view(estimator, module, layer, encode, LOSSES[loss])


def _mlp_regressor(estimator: Any) -> TorchModel:
    """Return the view of a multi-layer perceptron that regresses."""
    module = _perceptron(estimator)
    return sklearn_view(
        estimator,
        module,
        f"coefs.{len(module.coefs) - 1}",
        RegressionTargets(estimator.n_outputs_),
        _named_loss(
            estimator, {"squared_error": "squared_error", "poisson": "poisson"}
        ),
    )


def _kernel_ridge(estimator: Any) -> TorchModel:
    """Return the view of a kernel ridge regression: phi(x) is its kernel row."""
    dual_coef = np.asarray(estimator.dual_coef_)
    weight = dual_coef.reshape(len(dual_coef), -1).T
    module = _KernelModel(shared_linear(weight, None))

    def kernel_rows(X: Any, rows: slice) -> np.ndarray:
        """Return the kernel between some rows of X and the training sample."""
        if callable(estimator.kernel):
            params = estimator.kernel_params or {}
        else:
            params = {name: getattr(estimator, name) for name in _KERNEL_PARAMS}
        return pairwise_kernels(
            X[rows],
            estimator.X_fit_,
            metric=estimator.kernel,
            filter_params=True,
            **params,
        )

    return sklearn_view(
        estimator,
        module,
        "dual_coef",
        RegressionTargets(len(weight)),
        LOSSES["squared_error"],
        kernel_rows,
    )


_KERNEL_PARAMS = ("gamma", "degree", "coef0")

# Subclasses are found through isinstance: LogisticRegressionCV is a LogisticRegression.
ADAPTERS: list[tuple[type, Callable[[Any], TorchModel]]] = [
    (LinearRegression, _linear_regression),
    (Ridge, _linear_regression),
    (RidgeCV, _linear_regression),
    (RelativeFlatnessRidge, _linear_regression),
    (RelativeFlatnessRidgeCV, _linear_regression),
    (RidgeClassifier, _ridge_classifier),
    (RidgeClassifierCV, _ridge_classifier),
    (LogisticRegression, _logistic_regression),
    (RelativeFlatnessLogisticRegression, _logistic_regression),
    (SGDClassifier, _sgd_classifier),
    (SGDRegressor, _sgd_regressor),
    (MLPClassifier, _mlp_classifier),
    (MLPRegressor, _mlp_regressor),
    (KernelRidge, _kernel_ridge),
]


def find_adapter(estimator: Any) -> Callable[[Any], TorchModel] | None:
    """Return what makes the view of a fitted scikit-learn model, if it is supported.

    Parameters
    ----------
    estimator : estimator
        Any object.

    Returns
    -------
    adapter : callable or None
        Maps the estimator to its view; raises NotFittedError if it is not fitted.
    """
    for kind, build in ADAPTERS:
        if isinstance(estimator, kind):

            def adapter(estimator: Any, build: Any = build) -> TorchModel:
                """Check that the estimator is fitted and build its view."""
                check_is_fitted(estimator)
                return build(estimator)

            return adapter
    return None
