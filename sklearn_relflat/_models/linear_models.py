"""Views of scikit-learn's linear models: one adapter per way of being trained."""

from collections.abc import Callable
from typing import Any

import numpy as np

from sklearn_relflat._data.sklearn_data import (
    IndicatorTargets,
    LabelTargets,
    RegressionTargets,
)
from sklearn_relflat._losses.table import LOSSES, Huber, Loss
from sklearn_relflat._models.sklearn_modules import linear_module, sklearn_view
from sklearn_relflat._models.torch_model import TorchModel


def linear_regression(estimator: Any) -> TorchModel:
    """Return the view of a linear regressor with the squared error."""
    module = linear_module(estimator)
    encode = RegressionTargets(module.coef.out_features)
    return sklearn_view(estimator, module, "coef", encode, LOSSES["squared_error"])


def huber_regression(estimator: Any) -> TorchModel:
    """Return the view of a Huber regression: the loss it minimised, at its scale."""
    module = linear_module(estimator)

    def training_loss() -> Loss:
        """Return sigma H((y - f) / sigma), without its constant sigma."""
        # With r = y - f it is r^2 / sigma up to |r| = epsilon sigma and linear beyond,
        # which is 2 / sigma times torch's Huber loss of delta = epsilon sigma.
        scale = float(estimator.scale_)
        return Huber(delta=estimator.epsilon * scale, scale=2.0 / scale)

    return sklearn_view(estimator, module, "coef", RegressionTargets(1), training_loss)


def poisson_regression(estimator: Any) -> TorchModel:
    """Return the view of a Poisson regression: the logarithm of the rate."""
    module = linear_module(estimator)
    return sklearn_view(
        estimator, module, "coef", RegressionTargets(1), LOSSES["poisson"]
    )


def support_vector_regression(estimator: Any) -> TorchModel:
    """Return the view of a linear support vector regression, without a loss."""
    module = linear_module(estimator)
    return sklearn_view(
        estimator, module, "coef", RegressionTargets(1), _no_curvature(estimator)
    )


def sgd_regressor(estimator: Any) -> TorchModel:
    """Return the view of a linear regressor trained by stochastic gradients."""
    module = linear_module(estimator)
    encode = RegressionTargets(module.coef.out_features)
    loss = named_loss(estimator, {"squared_error": "squared_error"})
    return sklearn_view(estimator, module, "coef", encode, loss)


def named_loss(estimator: Any, names: dict[str, str]) -> Callable[[], Loss]:
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


def _no_curvature(estimator: Any) -> Callable[[], Loss]:
    """Return what refuses the loss of a support vector machine by name."""

    def training_loss() -> Loss:
        """Raise, when the loss is asked for."""
        raise ValueError(
            f"Expected a twice differentiable loss, got {type(estimator).__name__} "
            f"trained with loss={estimator.loss!r}, whose second derivative does not "
            "exist where a margin ends. Name a loss to measure with: loss= one of "
            f"{list(LOSSES)!r}, or a twice differentiable torch criterion."
        )

    return training_loss


def ridge_classifier(estimator: Any) -> TorchModel:
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


def logistic_regression(estimator: Any) -> TorchModel:
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


def sgd_classifier(estimator: Any) -> TorchModel:
    """Return the view of a linear classifier trained by stochastic gradients."""
    loss = named_loss(estimator, {"log_loss": "binary_cross_entropy"})
    return _linear_classifier(estimator, loss)


def discriminant_analysis(estimator: Any) -> TorchModel:
    """Return the view of a discriminant analysis: the logits of its posterior."""
    # It is fitted in closed form, to the joint distribution of X and y; the cross-
    # entropy is the loss of what its ``predict_proba`` returns.
    binary = len(estimator.classes_) == 2
    name = "binary_cross_entropy" if binary else "cross_entropy"
    return _linear_classifier(estimator, LOSSES[name])


def support_vector_classifier(estimator: Any) -> TorchModel:
    """Return the view of a linear support vector machine, without a loss."""
    module = linear_module(estimator)
    encode = LabelTargets(
        estimator.classes_,
        type(estimator).__name__,
        module.coef.out_features,
        estimator.loss,
    )
    return sklearn_view(estimator, module, "coef", encode, _no_curvature(estimator))
