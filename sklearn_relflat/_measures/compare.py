"""All measures of one model side by side, with what each of them cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sklearn_relflat._measures.evaluations import evaluate, measure_options
from sklearn_relflat._results.tables import make_table


def compare_measures(
    estimator: Any,
    X: Any,
    y: Any = None,
    *,
    layers: Sequence[str] | None = None,
    measures: Sequence[str] | Mapping[str, Mapping[str, Any]] | None = None,
    loss: Any = None,
    sample_weight: Any = None,
    random_state: Any = None,
) -> Any:
    """Measure a model in all ways, and say what each way cost.

    Parameters
    ----------
    estimator : estimator
        A fitted model, see `relative_flatness`.
    X : {array-like, sparse matrix, Tensor, Dataset, dict} of shape (n_samples, ...)
        The sample.
    y : array-like of shape (n_samples,) or (n_samples, n_outputs), default=None
        Targets; None only where X is a data set that carries them.
    layers : sequence of str, default=None
        Layers to measure; "all" stands for all of them together. None is every layer
        for what is cheap by layer (relative flatness, Hessian trace, weight norm,
        distances between classes and to the initialization), and the whole network for
        the other measures.
    measures : sequence of str or dict of str to dict, default=None
        Names of measures, or a dict of their options by name. None is all that the
        model has: PAC-Bayes flatness, margins and distances between classes need a
        classifier, and what needs an option (`distance_to_initialization`) is named.
        ``table.attrs["not_measured"]`` says why others are not there.
    loss : str, torch criterion or callable, default=None
        The loss; None is the one that the model was trained with.
    sample_weight : array-like of shape (n_samples,), default=None
        Weights of the samples.
    random_state : int, RandomState instance or None, default=None
        Seed; every measure begins with it.

    Returns
    -------
    table : DataFrame
        One row per measure and layer, with the columns

        - measure, layer : what was measured;
        - value, stderr, tolerance : see `Measurement`;
        - method : the route;
        - seconds, passes : time and passes over the data of the evaluation;
        - evaluation : its number. Rows of one number came from the same passes, so
          that their cost is to be counted once.

        A list of dicts that prints as a table where pandas is not installed.

    Raises
    ------
    ValueError
        If a measure or an option of it is not known, or as the measures do.

    See Also
    --------
    invariance_report : Which of them survive a change of parameters.

    Notes
    -----
    Relative flatness, raw and normalized, and Hessian traces of all layers come from
    one pass over the data (and one more for the standard deviations of the features).
    There is no relative flatness of "all" layers: it is a quantity of one.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.neural_network import MLPClassifier
    >>> from sklearn_relflat import compare_measures, relative_flatness
    >>> X, y = load_iris(return_X_y=True)
    >>> mlp = MLPClassifier((8,), solver="lbfgs", max_iter=2000, random_state=0)
    >>> names = ["relative_flatness", "hessian_trace", "fisher_rao_norm"]
    >>> table = compare_measures(mlp.fit(X, y), X, y, measures=names)
    >>> table[["measure", "layer", "evaluation"]]
                 measure    layer  evaluation
    0  relative_flatness  coefs.0           0
    1  relative_flatness  coefs.1           0
    2      hessian_trace  coefs.0           0
    3      hessian_trace  coefs.1           0
    4      hessian_trace      all           0
    5    fisher_rao_norm      all           1
    >>> kappa = relative_flatness(mlp, X, y, layer="coefs.0")
    >>> bool(abs(table["value"][0] / kappa.value - 1) < 1e-9)
    True
    """
    options = measure_options(measures)
    rows, not_measured = evaluate(
        estimator,
        X,
        y,
        layers=layers,
        options=options,
        automatic=measures is None,
        loss=loss,
        sample_weight=sample_weight,
        random_state=random_state,
    )
    return make_table(rows, not_measured=not_measured)
