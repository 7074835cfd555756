"""A meta-estimator that splits a model at a layer into features and head."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import Any, Self

import numpy as np
import torch
from sklearn import get_config
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    MetaEstimatorMixin,
    TransformerMixin,
    clone,
    is_classifier,
)
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import PoissonRegressor
from sklearn.utils import Tags, check_array, get_tags
from sklearn.utils.metadata_routing import (
    MetadataRouter,
    MethodMapping,
    process_routing,
)
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import type_of_target
from sklearn.utils.validation import check_is_fitted
from skorch import NeuralNet

from sklearn_relflat._data.estimator_data import (
    EstimatorData,
    estimator_data,
    final_model,
    is_net,
)
from sklearn_relflat._flatness.relative_flatness import relative_flatness
from sklearn_relflat._flatness.result import RelativeFlatness
from sklearn_relflat._layers.layers import find_layer
from sklearn_relflat._models.bare_modules import refuse_bare
from sklearn_relflat._models.torch_model import TorchModel
from sklearn_relflat._models.view import model_view
from sklearn_relflat._results.documented import Documented
from sklearn_relflat._split.split_model import (
    SplitModel,
    head_outputs,
    layer_features,
    split_model,
)


def _model_has(method: str) -> Callable[["FeatureSplit"], bool]:
    """Check for `available_if`: whether the model has a method to delegate to."""

    def check(self: "FeatureSplit") -> bool:
        estimator = getattr(self, "estimator_", self.estimator)
        is_skorch = isinstance(final_model(estimator), NeuralNet)
        if method == "predict_proba" and is_skorch and not is_classifier(self):
            # skorch's regressors have the method as well.
            return False
        # The AttributeError of this line says what is missing.
        getattr(estimator, method)
        return True

    return check


def _fitted_model(estimator: Any) -> Any:
    """Return the fitted model behind pipelines, frozen estimators and searches."""
    model = final_model(estimator)
    while hasattr(model, "best_estimator_"):
        model = final_model(model.best_estimator_)
    return model


def _held_out(model: Any) -> str | None:
    """Return the setting that keeps data out of the training, if there is one."""
    if isinstance(model, NeuralNet):
        split = model.train_split
        return None if split is None else f"train_split={split!r}"
    return "early_stopping=True" if getattr(model, "early_stopping", False) else None


class FeatureSplit(
    Documented,
    ClassNamePrefixFeaturesOutMixin,
    MetaEstimatorMixin,
    TransformerMixin,
    BaseEstimator,
):
    r"""A model :math:`f(x) = g(w \phi(x) + b)`, split at the layer with weight w.

    As a transformer it returns the features :math:`\phi(x)` that enter the layer. As a
    predictor it is the model, and `predict_from_features` is the part of it behind the
    features. It also makes a skorch net an ordinary estimator of scikit-learn: labels
    of any kind, arrays of float64 and data frames are taken.

    Parameters
    ----------
    estimator : estimator
        The model, cloned and fitted by `fit`: whatever `relative_flatness` supports.
        Wrap a model that is fitted already in `sklearn.frozen.FrozenEstimator`. To
        scale the data of a net, put this estimator at the end of a pipeline, rather
        than a pipeline into this estimator: then arrays of float64 are taken.
    layer : str, default=None
        Name of the layer, see `list_layers`; None is the output layer.
    training_flatness : bool or dict, default=False
        Whether `fit` ends by measuring the relative flatness on the samples that it
        was given. A dict holds options of `relative_flatness`. The result,
        `training_flatness_`, is what `TrainingFlatnessScorer` reads.

    Attributes
    ----------
    estimator_ : estimator
        The fitted model.
    layer_ : str
        Name of the layer.
    weight_ : ndarray of shape (n_neurons, n_features)
        Copy of the layer's weight w.
    bias_ : ndarray of shape (n_neurons,) or None
        Copy of the layer's bias b.
    training_flatness_ : RelativeFlatness
        Relative flatness on the samples passed to `fit`, if asked for.
    classes_ : ndarray of shape (n_classes,)
        Class labels; classifiers only.
    n_features_in_ : int
        Number of columns of X.
    feature_names_in_ : ndarray of shape (n_columns,)
        Names of the columns of X, where these are strings.

    See Also
    --------
    relative_flatness : Takes a FeatureSplit, and measures its layer.
    TrainingFlatnessScorer : Reads `training_flatness_` in a search.

    Notes
    -----
    For a net, arrays are cast to float32, integer ones only if its module has no
    embedding. Class labels are replaced by 0, 1, ... in sorted order; those of a frozen
    net are left alone. The y of a regressor, of shape (n_samples,), becomes a column if
    the module returns one. X may also be a dict or data set, as the net takes it.

    Two samples of X are kept if the layer is a hidden one, see
    `predict_from_features`; otherwise none.

    Examples
    --------
    The features and the layer together make the outputs of the model:

    >>> import numpy as np
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.neural_network import MLPClassifier
    >>> from sklearn_relflat import FeatureSplit
    >>> X, y = load_iris(return_X_y=True)
    >>> mlp = MLPClassifier((4,), solver="lbfgs", max_iter=2000, random_state=0)
    >>> split = FeatureSplit(mlp).fit(X, y)
    >>> split.layer_, split.weight_.shape
    ('coefs.1', (3, 4))
    >>> logits = split.transform(X) @ split.weight_.T + split.bias_
    >>> np.array_equal(split.classes_[logits.argmax(axis=1)], split.predict(X))
    True
    """

    _parameter_constraints = {  # noqa: RUF012 - scikit-learn reads it from the class
        "estimator": "no_validation",
        "layer": [str, None],
        "training_flatness": ["boolean", dict],
    }

    classes_: np.ndarray
    n_features_in_: int
    training_flatness_: RelativeFlatness

    def __init__(
        self,
        estimator: Any,
        *,
        layer: str | None = None,
        training_flatness: bool | dict[str, Any] = False,
    ) -> None:
        self.estimator = estimator
        self.layer = layer
        self.training_flatness = training_flatness

    def fit(self, X: Any, y: Any = None, **fit_params: Any) -> Self:
        """Fit the model and find the layer in it.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), or what else the model takes
            Training samples.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs), default=None
            Targets. None only where the model is frozen or X carries the targets.
        **fit_params : dict
            Passed to the model's `fit`, or routed to it if metadata routing is on. A
            `sample_weight` also weighs the training flatness.

        Returns
        -------
        self : FeatureSplit
            The fitted estimator.

        Raises
        ------
        TypeError
            If the estimator has no `fit`, or the model is not supported.
        ValueError
            If the layer does not exist, or the data do not suit the model.
        """
        self._validate_params()
        self._check_parameters()
        if get_config()["enable_metadata_routing"]:
            routed = process_routing(self, "fit", **fit_params)
            fit_params = routed.estimator.fit
        self.estimator_ = clone(self.estimator)
        self._data: EstimatorData = estimator_data(self.estimator)
        X_model, y_model = self._data.fit(self, X, y)
        self.estimator_.fit(X_model, y_model, **fit_params)
        self._set_labels(y)
        self._split: SplitModel = split_model(self._view(), X, self.layer)
        self._data.check_outputs(self._split.output_shape)
        self.layer_ = self._split.layer
        self._n_features_out = self._split.n_columns
        if self.training_flatness is not False:
            weight = fit_params.get("sample_weight")
            options = {} if self.training_flatness is True else self.training_flatness
            self.training_flatness_ = relative_flatness(
                self, X, y, **{"sample_weight": weight, **options}
            )
        return self

    def _check_parameters(self) -> None:
        """Check what scikit-learn's validation of parameters cannot."""
        refuse_bare(final_model(self.estimator), type(self).__name__)
        if isinstance(self.estimator, type) or not hasattr(self.estimator, "fit"):
            raise TypeError(
                "Expected estimator to be an instance with a method fit, got "
                f"{self.estimator!r}. Pass a model, such as LogisticRegression()."
            )
        frozen = isinstance(self.estimator, FrozenEstimator)
        if frozen or self.training_flatness is False:
            return
        model = final_model(self.estimator)
        held_out = _held_out(model)
        if held_out is not None:
            raise ValueError(
                "Expected a model that trains on all samples passed to fit, to measure "
                f"its training flatness, got {type(model).__name__} with {held_out}. "
                "Switch that off, or use training_flatness=False and give a skorch net "
                "the callback RelativeFlatnessRecorder, which knows what it trains on."
            )

    def _set_labels(self, y: Any) -> None:
        """Set the attributes that say what X and y were."""
        for name in ("n_features_in_", "feature_names_in_"):
            if not is_net(self.estimator) and hasattr(self.estimator_, name):
                setattr(self, name, getattr(self.estimator_, name))
        self._multilabel = False
        if is_classifier(self):
            known = self._data.classes
            self.classes_ = self.estimator_.classes_ if known is None else known
            kind = "unknown" if y is None else type_of_target(y)
            self._multilabel = kind.startswith("multilabel")

    # -----------------------------------------------------------------------
    # The layer
    # -----------------------------------------------------------------------
    def _as_torch_model(self) -> TorchModel:
        """Return the view of the model that takes the data of this estimator."""
        check_is_fitted(self)
        return replace(self._view(), default_layer=self.layer_)

    def _view(self) -> TorchModel:
        """Return the view of the model with the model's own default layer."""
        # The loss is left to those who need one: features exist without it.
        return model_view(self.estimator_).with_prepare(self._prepared)

    def _prepared(self, X: Any, y: Any) -> tuple[Any, Any]:
        """Return data of this estimator as the model takes them."""
        return self._data.inputs(self, X), self._data.targets(y)

    @property
    def weight_(self) -> np.ndarray:
        """Copy of the layer's weight, (n_neurons, n_features)."""
        check_is_fitted(self)
        layer = find_layer(self._as_torch_model(), self.layer_)
        return layer.weight.cpu().numpy().copy()

    @property
    def bias_(self) -> np.ndarray | None:
        """Copy of the layer's bias, (n_neurons,), or None."""
        check_is_fitted(self)
        bias = find_layer(self._as_torch_model(), self.layer_).bias
        return None if bias is None else bias.cpu().numpy().copy()

    def transform(self, X: Any) -> np.ndarray:
        """Return the features that enter the layer.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), or what else the model takes
            Samples.

        Returns
        -------
        features : ndarray of shape (n_samples, n_features_layer * n_positions)
            For a layer that is applied at one position, its inputs. For several
            positions (tokens, or pixels, whose features are unfolded patches), the
            matrix (n_features_layer, n_positions) of each sample, flattened row by
            row. Dense, also where X is sparse.
        """
        check_is_fitted(self)
        return layer_features(self._as_torch_model(), self._split, X)

    def predict_from_features(self, Z: Any) -> np.ndarray:
        """Predict from the features that enter the layer.

        For an output layer this is a matrix product and the step from outputs to
        predictions. For a hidden layer, the model runs on samples kept from `fit` while
        the layer returns w Z + b in place of what it would.

        Parameters
        ----------
        Z : array-like of shape (n_samples, n_features_layer * n_positions)
            Features, as `transform` returns them.

        Returns
        -------
        predictions : ndarray of shape (n_samples,) or (n_samples, n_outputs)
            What `predict` returns for samples with these features. For a skorch net
            that is neither classifier nor regressor, the raw outputs.

        Raises
        ------
        ValueError
            If Z has another number of columns, or if the model has a connection from
            its input that skips the layer: then the features do not determine the
            prediction. Also if a wrapper makes something else of the model's outputs,
            such as a threshold or a calibration.
        """
        check_is_fitted(self)
        view = self._as_torch_model()
        if view.finished_by is not None:
            raise ValueError(
                "Expected a model whose outputs are its predictions, got "
                f"{view.finished_by}, which makes its own of them. Split the model "
                f"inside of it: FeatureSplit({view.estimator_name}(...))."
            )
        dtype = torch.empty(0, dtype=view.dtype).numpy().dtype
        Z = check_array(Z, dtype=dtype, input_name="Z")
        if Z.shape[1] != self._n_features_out:
            raise ValueError(
                f"Expected Z with the {self._n_features_out} features that enter layer "
                f"{self.layer_!r}, got {Z.shape[1]}. Pass what transform returns."
            )
        outputs = head_outputs(view, self._split, Z).cpu().numpy()
        if is_classifier(self):
            return self._labels(outputs)
        return self._values(outputs)

    def _labels(self, outputs: np.ndarray) -> np.ndarray:
        """Class labels from raw outputs."""
        if self._multilabel:
            return (outputs > 0).astype(np.int64)
        if outputs[:1].size > 1:
            return self.classes_[outputs.argmax(axis=1)]
        share = getattr(_fitted_model(self.estimator_), "threshold", 0.5)
        # A probability above the threshold is a logit above that of the threshold.
        with np.errstate(divide="ignore"):
            positive = outputs.reshape(-1) > np.log(share) - np.log1p(-share)
        return self.classes_[positive.astype(np.int64)]

    def _values(self, outputs: np.ndarray) -> np.ndarray:
        """Predicted values from the raw outputs of a regressor."""
        model = _fitted_model(self.estimator_)
        if isinstance(model, NeuralNet):
            return self._data.predictions(outputs)
        is_rate = isinstance(model, PoissonRegressor)
        if is_rate or getattr(model, "out_activation_", "identity") == "exp":
            outputs = np.exp(outputs)
        # scikit-learn's models keep in their coefficients whether y had columns.
        coef = getattr(model, "coef_", getattr(model, "dual_coef_", None))
        n_dims = coef.ndim if coef is not None else min(2, outputs.shape[1])
        return outputs[:, 0] if n_dims == 1 else outputs

    # -----------------------------------------------------------------------
    # The model
    # -----------------------------------------------------------------------
    @available_if(_model_has("predict"))
    def predict(self, X: Any) -> np.ndarray:
        """Predict with the model.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), or what else the model takes
            Samples.

        Returns
        -------
        predictions : ndarray of shape (n_samples,) or (n_samples, n_outputs)
            Class labels or values.
        """
        check_is_fitted(self)
        inputs = self._data.inputs(self, X)
        return self._data.predictions(self.estimator_.predict(inputs))

    @available_if(_model_has("predict_proba"))
    def predict_proba(self, X: Any) -> np.ndarray:
        """Predict class probabilities with the model.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), or what else the model takes
            Samples.

        Returns
        -------
        probabilities : ndarray of shape (n_samples, n_classes)
            In the order of `classes_`.
        """
        check_is_fitted(self)
        return self.estimator_.predict_proba(self._data.inputs(self, X))

    @available_if(_model_has("decision_function"))
    def decision_function(self, X: Any) -> np.ndarray:
        """Evaluate the decision function of the model.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), or what else the model takes
            Samples.

        Returns
        -------
        decision : ndarray of shape (n_samples,) or (n_samples, n_classes)
            As the model returns it.
        """
        check_is_fitted(self)
        return self.estimator_.decision_function(self._data.inputs(self, X))

    @available_if(_model_has("score"))
    def score(self, X: Any, y: Any = None, **score_params: Any) -> float:
        """Score the model by its own method.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), or what else the model takes
            Samples.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs), default=None
            Targets.
        **score_params : dict
            Passed to the model's `score`, or routed to it if metadata routing is on.

        Returns
        -------
        score : float
            Accuracy of a classifier, R2 of a regressor.
        """
        check_is_fitted(self)
        if get_config()["enable_metadata_routing"]:
            score_params = process_routing(
                self, "score", **score_params
            ).estimator.score
        inputs = self._data.inputs(self, X)
        targets = self._data.scored_targets(y)
        return self.estimator_.score(inputs, targets, **score_params)

    # -----------------------------------------------------------------------
    # scikit-learn
    # -----------------------------------------------------------------------
    def get_metadata_routing(self) -> MetadataRouter:
        """Return how metadata reach the model.

        Returns
        -------
        routing : MetadataRouter
            `fit` and `score` hand over what the model's methods request.
        """
        mapping = MethodMapping()
        for method in ("fit", "score"):
            mapping = mapping.add(caller=method, callee=method)
        router = MetadataRouter(owner=type(self).__name__)
        return router.add(estimator=self.estimator, method_mapping=mapping)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        inner = deepcopy(get_tags(self.estimator))
        tags.estimator_type = inner.estimator_type
        tags.classifier_tags = inner.classifier_tags
        tags.regressor_tags = inner.regressor_tags
        tags.target_tags = inner.target_tags
        tags.target_tags.required = True
        tags.input_tags = inner.input_tags
        tags.non_deterministic = inner.non_deterministic
        if is_net(self.estimator):
            tags.input_tags.sparse = False
            tags.target_tags.multi_output = inner.regressor_tags is not None
            tags.transformer_tags.preserves_dtype = ["float32"]
        return tags
