"""One view of every fitted model: module, raw outputs, loss and batches."""

from collections.abc import Callable
from typing import Any

from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline
from skorch import NeuralNet
from torch import nn

from sklearn_relflat._data.batches import Batch, BatchSource
from sklearn_relflat._losses.table import Loss, resolve_loss
from sklearn_relflat._models.bare_modules import SKORCH_ADVICE, bare_view
from sklearn_relflat._models.sklearn_models import ADAPTERS, find_adapter
from sklearn_relflat._models.skorch_models import skorch_view
from sklearn_relflat._models.torch_model import TorchModel

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
        `loss`. An object with a method ``_as_torch_model()`` provides its own view.
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
    for is_kind, view in _WRAPPERS:
        if is_kind(estimator):
            return view(estimator)
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
        f"skorch nets, {models} and LogisticRegressionCV, also inside of Pipeline, "
        "FrozenEstimator, a fitted search or FeatureSplit, and bare torch modules."
        f"{advice}"
    )


# ---------------------------------------------------------------------------
# Wrappers
# ---------------------------------------------------------------------------
def _pipeline_view(pipeline: Pipeline) -> TorchModel:
    """Return the view of the last step; the earlier steps transform X as a whole."""
    final = pipeline.steps[-1][1]
    if final is None or isinstance(final, str):
        raise TypeError(
            f"Expected a model as the last step of the Pipeline, got {final!r}. "
            "Measure a pipeline that ends in a classifier or regressor."
        )
    view = model_view(final)
    if len(pipeline.steps) == 1:
        return view
    return view.with_prepare(lambda X, y: (_transformed(pipeline, X), y))


def _transformed(pipeline: Pipeline, X: Any) -> Any:
    """Pass X through the steps before the model, as the pipeline's predict does."""
    # Not by a pipeline of these steps: it counts as fitted only if the last of them
    # learned something.
    for _, step in pipeline.steps[:-1]:
        if step is not None and step != "passthrough":
            X = step.transform(X)
    return X


def _is_search(estimator: Any) -> bool:
    """Tell whether an estimator is a search over candidates, fitted or not."""
    # The searches have no public base class: they are known by their parameters.
    if hasattr(estimator, "best_estimator_"):
        return True
    if not hasattr(estimator, "get_params") or isinstance(estimator, NeuralNet):
        return False
    return {"estimator", "refit", "cv", "error_score"} <= set(
        estimator.get_params(deep=False)
    )


def _search_view(search: Any) -> TorchModel:
    """Return the view of the best estimator of a search."""
    if hasattr(search, "best_estimator_"):
        return model_view(search.best_estimator_)
    name = type(search).__name__
    if hasattr(search, "cv_results_"):
        raise ValueError(
            f"Expected {name} with a refitted best_estimator_, got "
            f"refit={search.refit!r}. Set refit=True, or measure an estimator of "
            "your choice."
        )
    raise NotFittedError(f"This {name} instance is not fitted yet. Call 'fit' first.")


_WRAPPERS: list[tuple[Callable[[Any], bool], Callable[[Any], TorchModel]]] = [
    (lambda estimator: isinstance(estimator, Pipeline), _pipeline_view),
    (
        lambda estimator: isinstance(estimator, FrozenEstimator),
        lambda frozen: model_view(frozen.estimator),
    ),
    (_is_search, _search_view),
]
