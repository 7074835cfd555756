"""Scorer that judges a model from its training sample by the smoothed risk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sklearn_relflat._selection.scorers import OptionsScorer


class SmoothedRiskScorer(OptionsScorer):
    r"""Scorer that returns minus the smoothed risk: larger is better.

    The loss of a model at perturbed features, on the samples that it was trained on,
    see `smoothed_risk`. It is read from the training split, or used with
    ``cv=WholeSample()``, which fits every candidate once.

    Parameters
    ----------
    layer : str or None, default="input"
        Whose features are perturbed. This and the following are the options of
        `smoothed_risk`.
    radius : float or "density", default="density"
        Norm of the perturbations relative to that of the features.
    shape : {"isotropic", "within_class", "covariance"}, default="isotropic"
        Covariance of the perturbations.
    n_draws : int, default=16
        Perturbations of each sample.
    loss : str, torch criterion or callable, default=None
        The loss; None is the one that the model was trained with. Name one where the
        candidates were trained with different losses.
    metric : {None, "error_rate"}, default=None
        "error_rate" averages wrong predictions instead of the loss.
    random_state : int, RandomState instance or None, default=0
        Seed of the perturbations. An integer gives all candidates the same
        perturbations, so that their differences are known better than their values.
    name : str, default=None
        Name of the score; None is "neg_smoothed_risk".

    See Also
    --------
    smoothed_risk : The measure, with a standard error.
    WholeSample : Splitter that fits each candidate once.
    SmoothedRiskSearchCV : Calibrates the radius by cross-validating a few candidates.

    Notes
    -----
    At the density's own radius it is a good judge where labels are locally constant;
    where classes overlap within that radius it prefers models that are too cautious.
    Then use `SmoothedRiskSearchCV`, or the ``radius_`` that it found.

    Where X is a data set with targets of its own, y is ignored, as by
    `RelativeFlatnessScorer`.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn_relflat import SmoothedRiskScorer, smoothed_risk
    >>> X, y = load_iris(return_X_y=True)
    >>> model = LogisticRegression(max_iter=1000).fit(X, y)
    >>> scorer = SmoothedRiskScorer()
    >>> scorer(model, X, y) == -smoothed_risk(model, X, y, random_state=0).value
    True
    """

    measure_name = "smoothed_risk"

    def __init__(
        self,
        *,
        layer: str | None = "input",
        radius: float | str = "density",
        shape: str = "isotropic",
        n_draws: int = 16,
        loss: Any = None,
        metric: str | None = None,
        random_state: Any = 0,
        name: str | None = None,
    ) -> None:
        self.layer = layer
        self.radius = radius
        self.shape = shape
        self.n_draws = n_draws
        self.loss = loss
        self.metric = metric
        self.random_state = random_state
        self.name = name

    def _measure(self) -> Callable[..., Any]:
        from sklearn_relflat._robustness.smoothed_risk import smoothed_risk

        return smoothed_risk
