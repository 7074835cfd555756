"""The table of scikit-learn models that have a view: one adapter each.

Losses are torch's: the squared error and the one-versus-rest binary cross-entropy are
averaged over the outputs, without a factor 1/2, and the penalty (or prior) of the
training objective is left out. ``class_weight`` of a classifier multiplies the sample
weights as long as the loss is the training loss.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import (
    ARDRegression,
    BayesianRidge,
    ElasticNet,
    ElasticNetCV,
    HuberRegressor,
    Lars,
    LassoCV,
    LinearRegression,
    LogisticRegression,
    MultiTaskElasticNetCV,
    MultiTaskLassoCV,
    PoissonRegressor,
    Ridge,
    RidgeClassifier,
    RidgeClassifierCV,
    RidgeCV,
    SGDClassifier,
    SGDRegressor,
)
from sklearn.metrics.pairwise import pairwise_kernels
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.svm import LinearSVC, LinearSVR
from sklearn.utils.validation import check_is_fitted

from sklearn_relflat._data.sklearn_data import (
    Encoder,
    IndicatorTargets,
    LabelTargets,
    RegressionTargets,
)
from sklearn_relflat._linear.logistic import RelativeFlatnessLogisticRegression
from sklearn_relflat._linear.ridge import RelativeFlatnessRidge
from sklearn_relflat._linear.ridge_cv import RelativeFlatnessRidgeCV
from sklearn_relflat._losses.table import LOSSES
from sklearn_relflat._models.linear_models import (
    discriminant_analysis,
    huber_regression,
    linear_regression,
    logistic_regression,
    named_loss,
    poisson_regression,
    ridge_classifier,
    sgd_classifier,
    sgd_regressor,
    support_vector_classifier,
    support_vector_regression,
)
from sklearn_relflat._models.sklearn_modules import (
    KernelModel,
    Perceptron,
    shared_linear,
    sklearn_view,
)
from sklearn_relflat._models.torch_model import TorchModel


def _perceptron(estimator: Any) -> Perceptron:
    """Return a multi-layer perceptron as a module."""
    layers = [
        shared_linear(coef.T, intercept)
        for coef, intercept in zip(estimator.coefs_, estimator.intercepts_, strict=True)
    ]
    return Perceptron(layers, estimator.activation)


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
        named_loss(estimator, {"squared_error": "squared_error", "poisson": "poisson"}),
    )


def _kernel_ridge(estimator: Any) -> TorchModel:
    """Return the view of a kernel ridge regression: phi(x) is its kernel row."""
    dual_coef = np.asarray(estimator.dual_coef_)
    weight = dual_coef.reshape(len(dual_coef), -1).T
    module = KernelModel(shared_linear(weight, None))

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

# Subclasses are found through isinstance: LogisticRegressionCV is a LogisticRegression,
# Lasso and the multi-task models are an ElasticNet, and LassoLars, LarsCV, LassoLarsCV
# and LassoLarsIC are a Lars.
ADAPTERS: list[tuple[type, Callable[[Any], TorchModel]]] = [
    (LinearRegression, linear_regression),
    (Ridge, linear_regression),
    (RidgeCV, linear_regression),
    (RelativeFlatnessRidge, linear_regression),
    (RelativeFlatnessRidgeCV, linear_regression),
    (ElasticNet, linear_regression),
    (ElasticNetCV, linear_regression),
    (LassoCV, linear_regression),
    (MultiTaskElasticNetCV, linear_regression),
    (MultiTaskLassoCV, linear_regression),
    (Lars, linear_regression),
    (BayesianRidge, linear_regression),
    (ARDRegression, linear_regression),
    (HuberRegressor, huber_regression),
    (PoissonRegressor, poisson_regression),
    (RidgeClassifier, ridge_classifier),
    (RidgeClassifierCV, ridge_classifier),
    (LogisticRegression, logistic_regression),
    (RelativeFlatnessLogisticRegression, logistic_regression),
    (LinearDiscriminantAnalysis, discriminant_analysis),
    (SGDClassifier, sgd_classifier),
    (SGDRegressor, sgd_regressor),
    (LinearSVC, support_vector_classifier),
    (LinearSVR, support_vector_regression),
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
