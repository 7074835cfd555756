"""One view of every fitted model: module, raw outputs, loss and batches."""

from collections.abc import Callable
from typing import Any

from skorch import NeuralNet
from torch import nn

from sklearn_relflat._data.batches import Batch, BatchSource
from sklearn_relflat._losses.table import Loss, resolve_loss
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
        FrozenEstimator or a fitted search, in any order. Of a classifier with a
        threshold, a TransformedTargetRegressor or a CalibratedClassifierCV of one
        classifier, the view is that of the inner model, before the threshold, the
        inverse transformation or the calibration. An object with a method
        ``_as_torch_model()`` provides its own view.
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
        If the model's loss is not supported.
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
    view = skorch_view(estimator, live=True) if live else model_view(estimator)
    if loss is not None:
        view = view.with_loss(resolve_loss(loss, None))
    # Asking for the loss now raises here rather than in the middle of a measurement.
    _ = view.loss
    return view


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
        advice = (
            " Wrap a bare torch module in a net: "
            "skorch.NeuralNetClassifier(module, "
            "criterion=torch.nn.CrossEntropyLoss).initialize()."
        )
    return (
        f"Expected a supported model, got {type(estimator).__name__!r}. Supported are "
        f"skorch nets, {models} and their subclasses, also inside of Pipeline, "
        "FrozenEstimator, a fitted search, FixedThresholdClassifier, "
        "TunedThresholdClassifierCV, TransformedTargetRegressor, "
        f"CalibratedClassifierCV(ensemble=False) or FeatureSplit.{advice}"
    )
