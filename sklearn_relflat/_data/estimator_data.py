"""What a model needs of X and y, and what scikit-learn's conventions give it."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from scipy import sparse
from sklearn.base import BaseEstimator, clone, is_classifier, is_regressor
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import validate_data
from skorch import NeuralNet, NeuralNetBinaryClassifier
from torch import nn
from torch.utils.data import Dataset

from sklearn_relflat._data.inputs import as_numpy
from sklearn_relflat._data.sklearn_data import encode_labels


def final_model(estimator: Any) -> Any:
    """Return the model behind pipelines and frozen estimators.

    Parameters
    ----------
    estimator : estimator
        Fitted or not.

    Returns
    -------
    model : estimator
        What makes the predictions.
    """
    while True:
        if isinstance(estimator, FrozenEstimator):
            estimator = estimator.estimator
        elif isinstance(estimator, Pipeline):
            estimator = estimator.steps[-1][1]
        else:
            return estimator


def is_net(estimator: Any) -> bool:
    """Tell whether an estimator is a skorch net, with no pipeline in front of it.

    Parameters
    ----------
    estimator : estimator
        Fitted or not.

    Returns
    -------
    answer : bool
        True also for a frozen net.
    """
    while isinstance(estimator, FrozenEstimator):
        estimator = estimator.estimator
    return isinstance(estimator, NeuralNet)


class EstimatorData:
    """X and y for a model that follows scikit-learn's conventions: as they are.

    Attributes
    ----------
    classes : ndarray of shape (n_classes,) or None
        Class labels, if the model takes their positions instead.
    """

    classes: np.ndarray | None = None

    def fit(self, owner: BaseEstimator, X: Any, y: Any) -> tuple[Any, Any]:
        """Validate training data and learn how to transform them.

        Parameters
        ----------
        owner : estimator
            Gets ``n_features_in_`` and ``feature_names_in_``, where it validates.
        X : array-like of shape (n_samples, n_features), or what else the model takes
            Samples.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs) or None
            Targets.

        Returns
        -------
        X, y : Any
            What the model is to be fitted on.
        """
        return X, y

    def check_outputs(self, shape: tuple[int, ...]) -> None:
        """Raise where the fitted model's outputs cannot be compared with its y."""

    def inputs(self, owner: BaseEstimator, X: Any) -> Any:
        """Return X as the model takes it."""
        return X

    def targets(self, y: Any) -> Any:
        """Return y as the model takes it; an unseen label is an error."""
        return y

    def scored_targets(self, y: Any) -> Any:
        """Return y as the model takes it; an unseen label counts as wrong."""
        return y

    def predictions(self, predicted: Any) -> Any:
        """Return what the model predicts in terms of the y of fit."""
        return predicted


class NetData(EstimatorData):
    """X and y for a skorch net, which takes float32 and class indices.

    Parameters
    ----------
    net : skorch.NeuralNet
        The net, initialized or not.
    arrays : bool
        Whether X goes to the net as it is; False behind the steps of a pipeline.
    frozen : bool
        Whether the net is fitted already, and its labels are what they are.
    """

    def __init__(self, net: NeuralNet, *, arrays: bool, frozen: bool) -> None:
        self._arrays = arrays
        self._frozen = frozen
        self._is_binary = isinstance(net, NeuralNetBinaryClassifier)
        self._is_regressor = is_regressor(net)
        self._is_classifier = is_classifier(net)
        self._keeps_integers = False
        self._is_column = False
        self._dtype = _floating_dtype(net) if frozen else np.float32

    # -----------------------------------------------------------------------
    def fit(self, owner: BaseEstimator, X: Any, y: Any) -> tuple[Any, Any]:
        """See `EstimatorData.fit`."""
        net = final_model(owner.estimator)
        if self._arrays and not _is_for_nets(X):
            X, y = self._validated(owner, net, X, y)
        if y is None:
            return X, y
        if self._is_classifier and not self._frozen:
            self._learn_classes(type(net).__name__, y)
        elif self._is_regressor and np.asarray(y).ndim == 1:
            self._is_column = not self._arrays or _output_ndim(net, X) == 2
        return X, self.targets(y)

    def _validated(
        self, owner: BaseEstimator, net: NeuralNet, X: Any, y: Any
    ) -> tuple[Any, Any]:
        """Return arrays of X and y after scikit-learn's own checks."""
        X = as_numpy(X)
        # Sparse matrices have a dtype, but do not become arrays; lists the reverse.
        dtype = X.dtype if hasattr(X, "dtype") else np.asarray(X).dtype
        if dtype.kind in "iu":
            initialized = net if self._frozen else _initialized(net)
            self._keeps_integers = _looks_up_indices(initialized.module_)
        supervised = self._is_classifier or self._is_regressor
        if y is None and (self._frozen or not supervised):
            return validate_data(owner, X, **self._options()), None
        options = {}
        if self._is_regressor:
            options = {"y_numeric": True, "multi_output": np.asarray(y).ndim > 1}
        elif not self._is_classifier:
            options = {"multi_output": True}
        X, y = validate_data(owner, X, as_numpy(y), **self._options(), **options)
        return X, y

    def _options(self) -> dict[str, Any]:
        """Return how arrays are validated; images and sequences are welcome."""
        dtype = "numeric" if self._keeps_integers else self._dtype
        return {"dtype": dtype, "allow_nd": True}

    def _learn_classes(self, name: str, y: Any) -> None:
        """Learn the class labels."""
        check_classification_targets(as_numpy(y))
        self.classes = np.unique(as_numpy(y))
        if self._is_binary and len(self.classes) > 2:
            raise ValueError(
                f"Expected two classes for {name}, got {len(self.classes)}: "
                f"{self.classes[:10].tolist()!r}. Use NeuralNetClassifier."
            )

    def check_outputs(self, shape: tuple[int, ...]) -> None:
        """See `EstimatorData.check_outputs`."""
        if self._is_column and not shape:
            raise ValueError(
                "Expected the module of a regressor to return a column, of shape "
                "(n_samples, 1), got outputs with one dimension: the criterion "
                "compares each of them with every target. End the module in a layer "
                "with one output, without squeezing it."
            )

    # -----------------------------------------------------------------------
    def inputs(self, owner: BaseEstimator, X: Any) -> Any:
        """See `EstimatorData.inputs`."""
        if not self._arrays or _is_for_nets(X):
            return X
        return validate_data(owner, as_numpy(X), reset=False, **self._options())

    def targets(self, y: Any) -> Any:
        """See `EstimatorData.targets`."""
        if y is None:
            return None
        if self.classes is not None:
            return self._typed(encode_labels(y, self.classes, "FeatureSplit"))
        return self._regression_targets(y)

    def scored_targets(self, y: Any) -> Any:
        """See `EstimatorData.scored_targets`."""
        if self.classes is None:
            return self._regression_targets(y)
        y = np.asarray(as_numpy(y))
        known = np.isin(y, self.classes)
        codes = np.full(y.shape, -1, dtype=np.int64)
        codes[known] = encode_labels(y[known], self.classes, "FeatureSplit")
        return self._typed(codes)

    def _typed(self, codes: np.ndarray) -> np.ndarray:
        """Return class indices in the dtype of the net's criterion."""
        return codes.astype(self._dtype) if self._is_binary else codes

    def _regression_targets(self, y: Any) -> Any:
        """Return targets of a regressor as the net takes them, shaped as outputs."""
        if not self._is_regressor or y is None:
            return y
        y = np.asarray(as_numpy(y), dtype=self._dtype)
        return y[:, np.newaxis] if self._is_column and y.ndim == 1 else y

    def predictions(self, predicted: Any) -> Any:
        """See `EstimatorData.predictions`."""
        if self.classes is not None:
            return self.classes[np.asarray(predicted, dtype=np.int64)]
        if not self._is_regressor:
            return predicted
        # As scikit-learn's own regressors, whatever the dtype of X.
        predicted = predicted.astype(np.float64)
        return predicted[:, 0] if self._is_column else predicted


def estimator_data(estimator: Any) -> EstimatorData:
    """Return how data are made to fit an estimator.

    Parameters
    ----------
    estimator : estimator
        Fitted or not.

    Returns
    -------
    data : EstimatorData
        Not yet fitted.
    """
    model = final_model(estimator)
    if not isinstance(model, NeuralNet):
        return EstimatorData()
    return NetData(
        model, arrays=is_net(estimator), frozen=isinstance(estimator, FrozenEstimator)
    )


def _is_for_nets(X: Any) -> bool:
    """Tell whether X is a dict of inputs or a data set, which only nets take."""
    # One of scipy's sparse matrices is a dict, too.
    return isinstance(X, Mapping | Dataset) and not sparse.issparse(X)


def _initialized(net: NeuralNet) -> NeuralNet:
    """Return an initialized copy of a net, to look at."""
    with torch.random.fork_rng(devices=[]):
        return clone(net).initialize()


def _floating_dtype(net: NeuralNet) -> type[np.floating]:
    """Return NumPy's type for the parameters of a fitted net."""
    module = getattr(net, "module_", None)
    parameters = () if module is None else module.parameters()
    floating = (p.dtype for p in parameters if p.is_floating_point())
    return np.float64 if next(floating, None) is torch.float64 else np.float32


def _looks_up_indices(module: nn.Module) -> bool:
    """Tell whether a module has a table that integer inputs are indices of."""
    tables = (nn.Embedding, nn.EmbeddingBag)
    return any(isinstance(part, tables) for part in module.modules())


def _output_ndim(net: NeuralNet, X: np.ndarray) -> int:
    """Return the dimensions of what the module of a net returns for a batch."""
    initialized = _initialized(net)
    initialized.module_.eval()
    try:
        with torch.no_grad():
            outputs = initialized.infer(torch.from_numpy(X[:2].copy()).to(net.device))
    except RuntimeError:
        # A module whose sizes are set when training begins cannot be asked before.
        return 2
    return (outputs[0] if isinstance(outputs, tuple) else outputs).ndim
