"""Views of estimators that wrap a model: what they do to its data, and what is refused.

A wrapper that changes X or y before the model does so to the data of the view. What it
makes of the model's raw outputs afterwards (a threshold, a calibration, the inverse of
a transformation) is no part of the view, which has its name in ``finished_by``.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import TransformedTargetRegressor
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import (
    FixedThresholdClassifier,
    TunedThresholdClassifierCV,
)
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted
from skorch import NeuralNet
from torch.utils.data import Dataset

from sklearn_relflat._data.inputs import as_numpy
from sklearn_relflat._models.torch_model import TorchModel

# Gives the view of what is wrapped, which may be a wrapper itself.
ModelView = Callable[[Any], TorchModel]


# ---------------------------------------------------------------------------
# Wrappers whose predictions are those of the inner model
# ---------------------------------------------------------------------------
def _pipeline_view(pipeline: Pipeline, model_view: ModelView) -> TorchModel:
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


def is_search(estimator: Any) -> bool:
    """Tell whether an estimator is a search over candidates, fitted or not.

    Parameters
    ----------
    estimator : Any
        An estimator, or anything else.

    Returns
    -------
    answer : bool
        True for the searches of scikit-learn and what has their parameters.
    """
    # The searches have no public base class: they are known by their parameters.
    if hasattr(estimator, "best_estimator_"):
        return True
    if not hasattr(estimator, "get_params") or isinstance(estimator, NeuralNet):
        return False
    return {"estimator", "refit", "cv", "error_score"} <= set(
        estimator.get_params(deep=False)
    )


def _search_view(search: Any, model_view: ModelView) -> TorchModel:
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


# ---------------------------------------------------------------------------
# Wrappers that make something else of the outputs
# ---------------------------------------------------------------------------
def _finished(view: TorchModel, wrapper: Any) -> TorchModel:
    """Return the view of an inner model, with the name of its wrapper."""
    return dataclasses.replace(view, finished_by=type(wrapper).__name__)


def _threshold_view(classifier: Any, model_view: ModelView) -> TorchModel:
    """Return the view of a classifier whose scores are compared with a threshold."""
    # A fixed threshold needs no fit where the classifier inside of it has one.
    if isinstance(classifier, TunedThresholdClassifierCV):
        check_is_fitted(classifier, "estimator_")
    inner = getattr(classifier, "estimator_", classifier.estimator)
    return _finished(model_view(inner), classifier)


def _transformed_target_view(regressor: Any, model_view: ModelView) -> TorchModel:
    """Return the view of a regressor of transformed targets."""
    check_is_fitted(regressor, "regressor_")

    def prepare(X: Any, y: Any) -> tuple[Any, Any]:
        """Transform the targets, as the fit of the wrapper does."""
        if y is None and isinstance(X, Dataset):
            raise ValueError(
                "Expected y for a TransformedTargetRegressor, which transforms it, got "
                f"None with X as {type(X).__name__!r}. Pass the targets as y."
            )
        return X, None if y is None else _transformed_targets(regressor, y)

    return _finished(model_view(regressor.regressor_).with_prepare(prepare), regressor)


def _transformed_targets(regressor: TransformedTargetRegressor, y: Any) -> np.ndarray:
    """Return y in the units of the inner regressor, with as many dimensions."""
    y = np.asarray(as_numpy(y, "y"))
    transformed = regressor.transformer_.transform(
        y.reshape(-1, 1) if y.ndim == 1 else y
    )
    one_column = transformed.ndim == 2 and transformed.shape[1] == 1
    return transformed[:, 0] if y.ndim == 1 and one_column else transformed


def _calibrated_view(classifier: Any, model_view: ModelView) -> TorchModel:
    """Return the view of the one classifier that is calibrated."""
    check_is_fitted(classifier, "calibrated_classifiers_")
    n_classifiers = len(classifier.calibrated_classifiers_)
    if n_classifiers != 1:
        raise ValueError(
            "Expected a CalibratedClassifierCV of one classifier, got "
            f"{n_classifiers} with ensemble={classifier.ensemble!r}, whose calibrated "
            "probabilities are averaged. Fit it with ensemble=False, or measure each "
            "of [one.estimator for one in model.calibrated_classifiers_]."
        )
    (calibrated,) = classifier.calibrated_classifiers_
    return _finished(model_view(calibrated.estimator), classifier)


def _is(*kinds: type) -> Callable[[Any], bool]:
    """Return what tells whether an estimator is of one of some classes."""
    return lambda estimator: isinstance(estimator, kinds)


WRAPPERS: list[tuple[Callable[[Any], bool], Callable[[Any, ModelView], TorchModel]]] = [
    (_is(Pipeline), _pipeline_view),
    (_is(FrozenEstimator), lambda frozen, model_view: model_view(frozen.estimator)),
    (_is(FixedThresholdClassifier, TunedThresholdClassifierCV), _threshold_view),
    (_is(TransformedTargetRegressor), _transformed_target_view),
    (_is(CalibratedClassifierCV), _calibrated_view),
    (is_search, _search_view),
]
