"""Scorers: measures of a fitted model with the sign and signature of scikit-learn."""

import functools
import inspect
import math
import sys
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

from sklearn.base import BaseEstimator
from sklearn.utils import metadata_routing

from sklearn_relflat._results.documented import Documented


def _named_measure(name: str) -> Callable[..., Any]:
    """Return one of the package's measures."""
    # The measures need torch, so they are imported when a scorer is called.
    from sklearn_relflat._measures.by_name import MEASURES

    if name not in MEASURES:
        raise ValueError(
            f"Expected measure to be one of {list(MEASURES)} or a callable "
            f"measure(estimator, X, y), got {name!r}."
        )
    return MEASURES[name]


class _BaseScorer(Documented, BaseEstimator, ABC):
    """A number about a fitted model and a sample, as a scorer.

    It is no plain function because scikit-learn and skorch ask for more than a call: a
    ``__name__``, metadata requests, which come from the signature of ``score``, and
    whether sample weights are taken.
    """

    # The model is no metadatum that a user could request.
    __metadata_request__score = {"estimator": metadata_routing.UNUSED}  # noqa: RUF012 - scikit-learn reads it from the class

    name: str | None

    @property
    def __name__(self) -> str:
        """Name of the score, for displays and columns."""
        return self.name or self._default_name()

    @abstractmethod
    def _default_name(self) -> str:
        """Return the name for name=None."""

    @abstractmethod
    def score(self, estimator: Any, X: Any = None, y: Any = None) -> float:
        """Return the score."""

    def __call__(
        self, estimator: Any, X: Any = None, y: Any = None, **params: Any
    ) -> float:
        """Score a fitted model on a sample: `score` for those who call scorers."""
        return self.score(estimator, X, y, **params)

    def _accept_sample_weight(self) -> bool:
        """Tell whether a search may hand over sample weights; scikit-learn asks."""
        return "sample_weight" in inspect.signature(self.score).parameters


def _as_score(value: Any, name: str) -> float:
    """Return a number that is not NaN."""
    try:
        score = float(value)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"Expected the measure {name!r} to return a number, got {value!r}. Return "
            "a float, or an object that float() takes."
        ) from error
    if math.isnan(score):
        raise ValueError(
            f"Expected the measure {name!r} to return a number, got NaN. Check the "
            "model and the sample that it was measured on."
        )
    return score


def _aligned_targets(X: Any, y: Any) -> Any:
    """Return the targets to measure with; None where X is a data set with its own."""
    # skorch's EpochScoring hands over a data set, in its own order, together with the
    # targets that it has cached in the shuffled order of the epoch.
    data = sys.modules.get("torch.utils.data")
    if data is None or not isinstance(X, data.Dataset):
        return y
    from sklearn_relflat._data.skorch_data import has_targets

    return None if has_targets(X) else y


class OptionsScorer(_BaseScorer):
    """Scorer that returns minus one measure; its parameters are the measure's options.

    Attributes
    ----------
    measure_name : str
        Name of the measure.
    """

    measure_name: ClassVar[str]

    _parameter_constraints = {  # noqa: RUF012 - scikit-learn reads it from the class
        # The others are checked by the measure itself, whose messages say more.
        "name": [str, None],
    }

    @abstractmethod
    def _measure(self) -> Callable[..., Any]:
        """Return the measure, which needs torch, when it is called."""

    def _default_name(self) -> str:
        return f"neg_{self.measure_name}"

    def score(
        self, estimator: Any, X: Any = None, y: Any = None, *, sample_weight: Any = None
    ) -> float:
        """Return minus the measure of a fitted model.

        Parameters
        ----------
        estimator : estimator
            A fitted model.
        X : array-like of shape (n_samples, n_features), or what else the model takes
            Samples.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs), default=None
            Targets; None where X is a data set that carries them.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the samples.

        Returns
        -------
        score : float
            Larger is better. NaN, with a warning, where y has a class that the model
            was not fitted on, as the test split of a fold may have.
        """
        from sklearn_relflat._losses.base import UnseenLabelsError

        self._validate_params()
        options = self.get_params(deep=False)
        del options["name"]
        try:
            result = self._measure()(
                estimator,
                X,
                _aligned_targets(X, y),
                sample_weight=sample_weight,
                **options,
            )
        except UnseenLabelsError as error:
            # A rare class may be in the test split of a fold alone, whose score
            # nobody reads: that must not end a search.
            warnings.warn(f"The score is NaN: {error}", stacklevel=2)
            return math.nan
        return -_as_score(result, self.measure_name)


class RelativeFlatnessScorer(OptionsScorer):
    r"""Scorer that returns minus the relative flatness: larger is flatter.

    For everything in scikit-learn and skorch that takes ``scoring``. Relative flatness
    is a quantity of the *training* sample: read it from the training split
    (``return_train_score=True`` and `FlattestWithin`), or score with
    `TrainingFlatnessScorer`.

    Parameters
    ----------
    layer : str, default=None
        Name of the layer; None is the output layer. This and the following are the
        options of `relative_flatness`.
    loss : str, torch criterion or callable, default=None
        The loss; None is the one that the model was trained with.
    curvature : {"hessian", "gauss_newton"}, default="hessian"
        Which matrix.
    method : {"auto", "exact", "sampled"}, default="auto"
        How to compute it.
    normalize : {None, "std"}, default=None
        Whether to divide features by their standard deviations.
    statistic : {"trace", "max_eigenvalue"}, default="trace"
        Whether to return kappa_Tr or kappa_max.
    weight_decay : float, default=0.0
        Coefficient of a penalty that is part of the loss.
    rtol : float, default=0.01
        Relative standard error at which sampling stops.
    random_state : int, RandomState instance or None, default=None
        Seed of the sampling. With an integer every call draws the same numbers, in
        any number of processes.
    name : str, default=None
        Name of the score; None is "neg_relative_flatness".

    See Also
    --------
    relative_flatness : The measure, with more to its result than one number.
    FlattestWithin : Chooses a candidate by accuracy first, then by flatness.
    MeasureScorer : The same for any other measure.

    Notes
    -----
    Where X is a data set with targets of its own, y is ignored: skorch's EpochScoring
    with its default cache passes the targets of a shuffled epoch in the wrong order.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn_relflat import RelativeFlatnessScorer, relative_flatness
    >>> X, y = load_iris(return_X_y=True)
    >>> model = LogisticRegression(max_iter=1000).fit(X, y)
    >>> scorer = RelativeFlatnessScorer()
    >>> scorer(model, X, y) == -relative_flatness(model, X, y).value
    True
    >>> scorer.__name__
    'neg_relative_flatness'
    """

    measure_name = "relative_flatness"

    def __init__(
        self,
        *,
        layer: str | None = None,
        loss: Any = None,
        curvature: str = "hessian",
        method: str = "auto",
        normalize: str | None = None,
        statistic: str = "trace",
        weight_decay: float = 0.0,
        rtol: float = 0.01,
        random_state: Any = None,
        name: str | None = None,
    ) -> None:
        self.layer = layer
        self.loss = loss
        self.curvature = curvature
        self.method = method
        self.normalize = normalize
        self.statistic = statistic
        self.weight_decay = weight_decay
        self.rtol = rtol
        self.random_state = random_state
        self.name = name

    def _measure(self) -> Callable[..., Any]:
        from sklearn_relflat._flatness.relative_flatness import relative_flatness

        return relative_flatness


class MeasureScorer(_BaseScorer):
    """Scorer made of any measure of a fitted model.

    Parameters
    ----------
    measure : str or callable
        ``measure(estimator, X, y, **measure_kwargs)`` returns a number, or the name of
        one of the package's measures, such as "hessian_trace".
    greater_is_better : bool, default=False
        Whether large values are good. The score is minus the measure if not.
    measure_kwargs : dict, default=None
        Options of the measure.
    name : str, default=None
        Name of the score; None is that of the measure, with ``neg_`` in front if its
        sign is changed.

    See Also
    --------
    RelativeFlatnessScorer : The scorer for relative flatness.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn_relflat import MeasureScorer
    >>> X, y = load_iris(return_X_y=True)
    >>> model = LogisticRegression(max_iter=1000).fit(X, y)
    >>> def squared_norm(estimator, X, y):
    ...     return np.sum(estimator.coef_**2)
    >>> scorer = MeasureScorer(squared_norm)
    >>> scorer.__name__, bool(scorer(model, X, y) == -np.sum(model.coef_**2))
    ('neg_squared_norm', True)
    """

    _parameter_constraints = {  # noqa: RUF012 - scikit-learn reads it from the class
        "measure": [str, callable],
        "greater_is_better": ["boolean"],
        "measure_kwargs": [dict, None],
        "name": [str, None],
    }

    def __init__(
        self,
        measure: str | Callable[..., Any],
        *,
        greater_is_better: bool = False,
        measure_kwargs: dict[str, Any] | None = None,
        name: str | None = None,
    ) -> None:
        self.measure = measure
        self.greater_is_better = greater_is_better
        self.measure_kwargs = measure_kwargs
        self.name = name

    def _default_name(self) -> str:
        return ("" if self.greater_is_better else "neg_") + self._measure_name()

    def _measure_name(self) -> str:
        """Return the name of the measure."""
        measure = self.measure
        while isinstance(measure, functools.partial):
            measure = measure.func
        if isinstance(measure, str):
            return measure
        return getattr(measure, "__name__", type(measure).__name__)

    def _function(self) -> Callable[..., Any]:
        """Return the measure itself."""
        if isinstance(self.measure, str):
            return _named_measure(self.measure)
        return self.measure

    def score(
        self, estimator: Any, X: Any = None, y: Any = None, *, sample_weight: Any = None
    ) -> float:
        """Return the measure of a fitted model, with its sign.

        Parameters
        ----------
        estimator : estimator
            A fitted model.
        X : array-like of shape (n_samples, n_features), or what else the model takes
            Samples.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs), default=None
            Targets; None where X is a data set that carries them.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the samples, for a measure that takes them.

        Returns
        -------
        score : float
            Larger is better.
        """
        self._validate_params()
        options = dict(self.measure_kwargs or {})
        if sample_weight is not None:
            options["sample_weight"] = sample_weight
        value = self._function()(estimator, X, _aligned_targets(X, y), **options)
        score = _as_score(value, self._measure_name())
        return score if self.greater_is_better else -score

    def _accept_sample_weight(self) -> bool:
        """Tell whether the measure takes sample weights."""
        parameters = inspect.signature(self._function()).parameters.values()
        return any(
            parameter.name == "sample_weight" or parameter.kind is parameter.VAR_KEYWORD
            for parameter in parameters
        )


class TrainingFlatnessScorer(_BaseScorer):
    """Scorer that reads the flatness which a model noted at the end of its training.

    It computes nothing and looks at no data. The number comes from a
    `callbacks.RelativeFlatnessRecorder` of a skorch net or from
    ``FeatureSplit(..., training_flatness=True)``, on exactly the samples that the model
    was trained on. So it may be read from the column of the test split, and works where
    there is no column for the training split: successive halving, `cross_val_score`,
    ``refit="..."``.

    Parameters
    ----------
    name : str, default=None
        Name of the score; None is "neg_training_flatness".

    See Also
    --------
    RelativeFlatnessScorer : Computes the flatness on the samples that it is given.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn_relflat import FeatureSplit, TrainingFlatnessScorer
    >>> from sklearn_relflat import relative_flatness
    >>> X, y = load_iris(return_X_y=True)
    >>> model = LogisticRegression(max_iter=1000)
    >>> split = FeatureSplit(model, training_flatness=True).fit(X, y)
    >>> score = TrainingFlatnessScorer()(split)
    >>> score == -relative_flatness(split.estimator_, X, y).value
    True
    """

    _parameter_constraints = {  # noqa: RUF012 - scikit-learn reads it from the class
        "name": [str, None],
    }

    def __init__(self, *, name: str | None = None) -> None:
        self.name = name

    def _default_name(self) -> str:
        return "neg_training_flatness"

    def score(self, estimator: Any, X: Any = None, y: Any = None) -> float:
        """Return minus the training flatness that a model noted.

        Parameters
        ----------
        estimator : estimator
            A fitted model, also inside of pipelines, searches and other wrappers.
        X : object, default=None
            Ignored.
        y : object, default=None
            Ignored.

        Returns
        -------
        score : float
            Larger is flatter.
        """
        self._validate_params()
        return -_as_score(_training_flatness(estimator), "training_flatness_")

    def __call__(
        self, estimator: Any, X: Any = None, y: Any = None, **params: Any
    ) -> float:
        """Score a fitted model; nothing but the model is looked at."""
        return self.score(estimator)

    def _accept_sample_weight(self) -> bool:
        # Weights of the training are in the number already; "no" would make searches
        # warn that they are ignored.
        return True


def _training_flatness(estimator: Any) -> Any:
    """Return the noted flatness of a model behind any wrappers."""
    model, seen = estimator, []
    while model is not None:
        seen.append(type(model).__name__)
        value = getattr(model, "training_flatness_", None)
        if value is not None:
            return value
        model = _wrapped(model)
    raise ValueError(
        "Expected a fitted model that noted its training flatness, got "
        f"{' around '.join(seen)} without training_flatness_. Give a skorch net the "
        "callback RelativeFlatnessRecorder, or wrap a model in "
        "FeatureSplit(..., training_flatness=True)."
    )


def _wrapped(model: Any) -> Any:
    """Return the fitted model inside of another one, or None."""
    for name in ("best_estimator_", "estimator_", "regressor_"):
        if hasattr(model, name):
            return getattr(model, name)
    steps = getattr(model, "steps", None)
    return steps[-1][1] if steps else None
