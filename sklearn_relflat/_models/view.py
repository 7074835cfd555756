"""One view of every fitted model: module, raw outputs, loss and batches."""

from collections.abc import Callable
from typing import Any

from skorch import NeuralNet
from torch import nn

from sklearn_relflat._data.batches import Batch, BatchSource
from sklearn_relflat._losses.table import Loss, resolve_loss
from sklearn_relflat._models.bare_modules import SKORCH_ADVICE, bare_view
from sklearn_relflat._models.sklearn_models import ADAPTERS, find_adapter
from sklearn_relflat._models.skorch_models import skorch_view
from sklearn_relflat._models.torch_model import TorchModel
from sklearn_relflat._models.wrappers import WRAPPERS

__all__ = ["Batch", "BatchSource", "TorchModel", "as_torch_model"]


def as_torch_model(
    estimator: Any,
    *,
    loss: str | Callable[..., Any] | Loss | None = None,
    live: bool = False,
) -> TorchModel:
    """Return the one view of a fitted estimator that all measures share.

    Parameters
    ----------
    estimator : estimator
        A fitted skorch net or scikit-learn model, also inside of a Pipeline, a
        FrozenEstimator or a fitted search, in any order; or a bare torch module, with
        `loss`. Of a classifier with a threshold, a TransformedTargetRegressor or a
        CalibratedClassifierCV of one classifier, the view is that of the inner model,
        before the threshold, the inverse transformation or the calibration. An object
        with a method ``_as_torch_model()`` provides its own view.
    loss : str, torch criterion or Loss, default=None
        The loss to measure with; None is the one that the model was trained with.
        Logits are found by the net's own criterion in either case.
    live : bool, default=False
        Whether the view of a net is of its own module, to be trained, and not of a
        private copy. Only for a net itself, not for what wraps one.

    Returns
    -------
    view : TorchModel
        The view. Its parameters share the model's memory.

    Raises
    ------
    TypeError
        If the model or the loss is not supported, listing what is.
    ValueError
        If the model's loss is not supported, or not given for a bare module.
    NotFittedError
        If the estimator is not fitted.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.linear_model import LogisticRegression
    >>> X, y = np.array([[0.0], [1.0], [2.0], [3.0]]), ["no", "no", "yes", "yes"]
    >>> model = LogisticRegression().fit(X, y)
    >>> view = as_torch_model(model)
    >>> view.loss.name, view.default_layer
    ('binary_cross_entropy', 'coef')
    >>> (batch,) = view.batches(X, y)
    >>> np.allclose(view.outputs(batch.inputs).ravel(), model.decision_function(X))
    True
    """
    if is_bare(estimator):
        view = bare_view(estimator, loss)
    else:
        view = skorch_view(estimator, live=True) if live else model_view(estimator)
        if loss is not None:
            view = view.with_loss(resolve_loss(loss, None))
    # Asking for the loss now raises here rather than in the middle of a measurement.
    _ = view.loss
    return view


def is_bare(estimator: Any) -> bool:
    """Tell whether an estimator is a torch module that nothing wraps."""
    return isinstance(estimator, nn.Module) and not hasattr(
        estimator, "_as_torch_model"
    )


def lossless_view(estimator: Any) -> TorchModel:
    """Return the view of a model for what asks for no loss.

    Parameters
    ----------
    estimator : estimator
        As of `as_torch_model`.

    Returns
    -------
    view : TorchModel
        Bare torch modules, which know no loss, need none here.

    Raises
    ------
    TypeError, ValueError, NotFittedError
        As `as_torch_model` does.
    """
    return bare_view(estimator) if is_bare(estimator) else as_torch_model(estimator)


def model_view(estimator: Any) -> TorchModel:
    """Return the view of an estimator with its training loss."""
    if isinstance(estimator, type):
        raise TypeError(
            f"Expected a fitted estimator, got the class {estimator.__name__!r}. Pass "
            "an instance, after fit."
        )
    if hasattr(estimator, "_as_torch_model"):
        return estimator._as_torch_model()
    for is_kind, view in WRAPPERS:
        if is_kind(estimator):
            return view(estimator, model_view)
    if isinstance(estimator, NeuralNet):
        return skorch_view(estimator)
    adapter = find_adapter(estimator)
    if adapter is not None:
        return adapter(estimator)
    raise TypeError(_unsupported(estimator))


def _unsupported(estimator: Any) -> str:
    """Return the message about a model that has no view."""
    models = ", ".join(sorted(kind.__name__ for kind, _ in ADAPTERS))
    advice = ""
    if isinstance(estimator, nn.Module):
        # Only what wraps one asks for it here.
        advice = (
            " A bare torch module is measured by itself, with loss=, and is no part of "
            f"scikit-learn's estimators. {SKORCH_ADVICE}."
        )
    return (
        f"Expected a supported model, got {type(estimator).__name__!r}. Supported are "
        f"skorch nets, {models} and their subclasses, also inside of Pipeline, "
        "FrozenEstimator, a fitted search, FixedThresholdClassifier, "
        "TunedThresholdClassifierCV, TransformedTargetRegressor, "
        "CalibratedClassifierCV(ensemble=False) or FeatureSplit, and bare torch "
        f"modules.{advice}"
    )
