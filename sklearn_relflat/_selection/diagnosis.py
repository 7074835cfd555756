"""Whether the conditions hold on which flatness and smoothed risk tell something."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from sklearn_relflat._flatness.relative_flatness import relative_flatness
from sklearn_relflat._layers.layers import list_layers
from sklearn_relflat._measures.norms import weight_norm
from sklearn_relflat._models.wrappers import is_search
from sklearn_relflat._results.result import TableReport
from sklearn_relflat._results.words import listed, number
from sklearn_relflat._robustness.smoothed_result import SmoothedRisk
from sklearn_relflat._robustness.smoothed_risk import smoothed_risk
from sklearn_relflat._robustness.smoother import open_smoother
from sklearn_relflat._robustness.smoothing import INPUT
from sklearn_relflat._selection.conditions import (
    FAILS,
    HOLDS,
    UNCLEAR,
    Condition,
    flatness_apart,
    labels_constant,
    losses_alike,
    minimum_reached,
    no_labels,
    representative,
)
from sklearn_relflat._selection.named_models import about, named_models, one_seed
from sklearn_relflat._selection.one_loss import check_one_loss
from sklearn_relflat._selection.other_labels import labels_are_classes, other_labels


@dataclass(frozen=True, eq=False, repr=False)
class FlatnessDiagnosis(TableReport):
    """The theory's conditions on one or several models.

    ``print(diagnosis)`` has the table; `frame` the numbers with their reasons.

    Attributes
    ----------
    conditions : list of Condition
        Each with name, model, value, interval (low, high), thresholds (holds_below,
        fails_above), reason, verdict and sentence.
    failing : list of str
        Names of the conditions that fail, of any model.
    sentence : str
        What fails, and what to do.
    radii : dict of str to float
        Radius at which labels were looked at, by the names of the models.
    layer, shape : str
        Whose features, and the shape of their local densities.
    n_samples : int
        Samples.
    """

    conditions: list[Condition]
    failing: list[str]
    sentence: str
    radii: dict[str, float]
    layer: str
    shape: str
    n_samples: int

    guide = "comparing"

    @property
    def title(self) -> str:
        """What the report is about."""
        radii = sorted(set(self.radii.values()))
        shown = f"{radii[0]:.3g}"
        if len(radii) > 1:
            shown += f" to {radii[-1]:.3g}"
        names = [*self.radii]
        return (
            f"{names[0] if len(names) == 1 else f'{len(names)} models'} on "
            f"{self.n_samples} samples; radius {shown} of {self.layer}, {self.shape}"
        )

    @property
    def remarks(self) -> list[str]:
        """What the verdicts mean, once for all models of which it is true."""
        models: dict[tuple[str, str, str], list[str]] = {}
        for c in self.conditions:
            models.setdefault((c.name, c.sentence, c.reason), []).append(c.model)
        lines, explained = [], set()
        for (name, sentence, reason), of in models.items():
            line = f"{name} ({listed(of)})" if len(self.radii) > 1 else name
            line += f": {sentence}"
            if reason and reason not in explained:
                line += f" Threshold: {reason}."
                explained.add(reason)
            lines.append(line)
        return lines

    def rows(self) -> list[dict[str, Any]]:
        """Return the conditions.

        Returns
        -------
        rows : list of dict
            One a condition and model, with the attributes of a condition.
        """
        return [asdict(condition) for condition in self.conditions]

    def cells(self) -> list[dict[str, str]]:
        """Return the conditions as they are shown.

        Returns
        -------
        cells : list of dict
            Short texts by column.
        """
        return [self._cells(condition) for condition in self.conditions]

    def _cells(self, condition: Condition) -> dict[str, str]:
        """One condition as it is shown."""
        c = condition
        cells = {"condition": c.name}
        if len(self.radii) > 1:
            cells["model"] = c.model
        interval = "" if c.low == c.high else f"{number(c.low)} to {number(c.high)}"
        if math.isnan(c.value):
            return (
                cells
                | dict.fromkeys(("value", "95 %", "holds", "fails"), "-")
                | {"verdict": c.verdict}
            )
        return cells | {
            "value": number(c.value),
            "95 %": interval or "exact",
            "holds": f"<= {number(c.holds_below)}",
            "fails": f"> {number(c.fails_above)}",
            "verdict": c.verdict,
        }


def flatness_diagnosis(
    estimator: Any,
    X: Any,
    y: Any = None,
    *,
    layer: str | None = None,
    radius: Any = "density",
    shape: str = "isotropic",
    loss: Any = None,
    cv: Any = None,
    n_draws: int = 16,
    sample_weight: Any = None,
    random_state: Any = 0,
) -> FlatnessDiagnosis:
    r"""Check the conditions on which flatness and smoothed risk tell something.

    Each condition is a number with an interval, a threshold with its reason, a verdict
    and a sentence that says what to do.

    Parameters
    ----------
    estimator : estimator, dict of str to estimator, list of estimator, or search
        A fitted model, see `relative_flatness`, or candidates that are to be compared;
        those of a fitted search as in `compare_models`.
    X : {array-like, sparse matrix, Tensor, Dataset, dict} of shape (n_samples, ...)
        The sample that the model was trained on.
    y : array-like of shape (n_samples,) or (n_samples, n_outputs), default=None
        Targets; None only where X is a data set that carries them.
    layer : str or None, default=None
        Whose features are looked at: a name of `list_layers`, None for the output
        layer, or "input" for those that enter the model; gradient and relative
        flatness are then those of the output layer.
    radius : float or "density", default="density"
        Radius of the local densities; "density" is `density_radius` of the features.
    shape : {"isotropic", "within_class", "covariance"}, default="isotropic"
        Their shape, see `density_radius`.
    loss : str, torch criterion or callable, default=None
        The loss; None is the one that the model was trained with.
    cv : int, cross-validation generator or iterable, default=None
        Folds in which clones of the model are fitted, to see whether the sample is
        representative; None does not check that.
    n_draws : int, default=16
        Perturbations of each sample, in the smoothed risk of these fits.
    sample_weight : array-like of shape (n_samples,), default=None
        Weights of the samples.
    random_state : int, RandomState instance or None, default=0
        Seed of the perturbations.

    Returns
    -------
    diagnosis : FlatnessDiagnosis
        The conditions.

    Raises
    ------
    TypeError
        If a model is not supported.
    ValueError
        If an option or the data are not valid, or several models were trained with
        different losses, or weights are given with a search.
    sklearn.exceptions.NotFittedError
        If a model or the search is not fitted.

    See Also
    --------
    compare_models : Which of several models to take.
    KDERepresentativeness : Representativeness at any layer, with more to it.
    density_radius : The radius.

    Notes
    -----
    The conditions of [1]_, Theorem 5 and equation 5:

    - *minimum reached*: ``|g| |w| / E_emp`` with the gradient g of the training loss in
      the layer's weight w. Scaling the loss, or one layer up and the next down, leaves
      it as it is. It is of the loss without penalty: a penalised model stops before the
      minimum.
    - *labels constant*: the share of the leave-one-out kernel density's mass at a
      sample that carries another label, averaged over samples, or 1,000 of them, with
      Wilson's interval. Features that were learned from the labels have absorbed them,
      noise included: there it says too little.
    - *representative*: over the folds, ``(E - S) / E`` of the held-out loss E and the
      smoothed risk S of the fits, with an interval from their spread that counts how
      much the fits overlap [2]_.
    - *training losses alike* and *flatness apart from loss*, of several models: the
      ratio of the largest to the smallest training loss, and Spearman's correlation of
      relative flatness and training loss.

    A number that is known for this sample has no interval: it is "exact". A condition
    that fails takes the theory's warrant away; a choice may be good nevertheless.

    References
    ----------
    .. [1] H. Petzka, M. Kamp, L. Adilova, C. Sminchisescu, M. Boley, "Relative Flatness
       and Generalization", NeurIPS 2021.
    .. [2] C. Nadeau, Y. Bengio, "Inference for the Generalization Error", Machine
       Learning 52, 2003.

    Examples
    --------
    Two classes that lie apart, until three in ten labels are flipped. They can be
    separated, so that a logistic regression has no minimum without its penalty:

    >>> import numpy as np
    >>> from sklearn.datasets import make_blobs
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn_relflat import flatness_diagnosis
    >>> X, y = make_blobs(300, centers=[[-4, 2], [4, 2]], random_state=0)
    >>> model = LogisticRegression()
    >>> flatness_diagnosis(model.fit(X, y), X, y).failing
    ['minimum reached']
    >>> noisy = np.where(np.random.default_rng(0).random(300) < 0.3, 1 - y, y)
    >>> flatness_diagnosis(model.fit(X, noisy), X, noisy).failing
    ['labels constant']
    """
    is_group = isinstance(estimator, dict | list | tuple) or is_search(estimator)
    named = named_models(
        estimator if is_group else {type(estimator).__name__: estimator},
        X,
        y,
        sample_weight=sample_weight,
    )
    seed = one_seed(random_state)
    options = {
        "layer": layer,
        "radius": radius,
        "shape": shape,
        "loss": loss,
        "n_draws": n_draws,
        "random_state": seed,
    }
    conditions: list[Condition] = []
    risks: dict[str, SmoothedRisk] = {}
    kappas = []
    for name, model in named.items():
        with about(name):
            risks[name] = smoothed_risk(
                model, X, y, sample_weight=sample_weight, **options
            )
            flatness = relative_flatness(
                model,
                X,
                y,
                layer=None if layer == INPUT else layer,
                loss=loss,
                sample_weight=sample_weight,
                random_state=seed,
            )
            norm = weight_norm(model, X, y, layer=flatness.layer, loss=loss)
            conditions += [
                minimum_reached(name, flatness, math.sqrt(float(norm))),
                _labels(name, model, X, y, loss, sample_weight, risks[name]),
                representative(
                    name,
                    model,
                    X,
                    y,
                    cv=cv,
                    sample_weight=sample_weight,
                    options=options,
                ),
            ]
        kappas.append(flatness.value)
    losses = np.array([risk.mean_loss for risk in risks.values()])
    if len(named) > 1:
        check_one_loss({name: risk.metric for name, risk in risks.items()}, y)
        conditions += [losses_alike(losses), flatness_apart(np.array(kappas), losses)]
    first = next(iter(risks.values()))
    return FlatnessDiagnosis(
        conditions=conditions,
        failing=_named(conditions, FAILS),
        sentence=_sentence(conditions),
        radii={name: risk.radius for name, risk in risks.items()},
        layer=first.layer,
        shape=first.shape,
        n_samples=first.n_samples,
    )


def _labels(
    name: str,
    model: Any,
    X: Any,
    y: Any,
    loss: Any,
    sample_weight: Any,
    risk: SmoothedRisk,
) -> Condition:
    """Look at the labels around each sample, in the features of the smoothed risk."""
    with open_smoother(
        model, X, y, layer=risk.layer, loss=loss, sample_weight=sample_weight
    ) as smoother:
        is_classification = smoother.is_classifier
        features, labels, weights = smoother.sample()
    if not is_classification or not labels_are_classes(labels):
        return no_labels(name, is_classification=is_classification)
    assert labels is not None
    found = other_labels(
        features, labels, risk.radius, shape=risk.shape, sample_weight=weights
    )
    # What a model with one layer takes is what was given.
    is_learned = risk.layer != INPUT and len(list_layers(model)) > 1
    return labels_constant(name, found, is_learned=is_learned)


def _named(conditions: list[Condition], verdict: str) -> list[str]:
    """Names of the conditions with a verdict, each once."""
    return [*dict.fromkeys(c.name for c in conditions if c.verdict == verdict)]


def _sentence(conditions: list[Condition]) -> str:
    """Say what fails."""
    judged = [c for c in conditions if c.verdict in (HOLDS, FAILS, UNCLEAR)]
    failing, unclear = _named(conditions, FAILS), _named(conditions, UNCLEAR)
    n = len({c.name for c in judged})
    if not n:
        return "No condition could be checked: see the reason of each."
    if failing:
        rest = f"; unclear: {listed(unclear)}" if unclear else ""
        return f"Of {n} conditions checked, these fail: {listed(failing)}{rest}."
    if unclear:
        return f"Of {n} conditions checked, none fails; unclear: {listed(unclear)}."
    return f"Conditions checked that hold: {listed(_named(conditions, HOLDS))}."
