"""How far the right class is ahead of the others, and how large the weights are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sklearn_relflat._curvature.linearization import wide
from sklearn_relflat._curvature.problem import Problem, open_problem, risk_of
from sklearn_relflat._layers.names import ALL_LAYERS
from sklearn_relflat._measures.badness import (
    counted,
    has_accuracy,
    labels_of,
    targets_of,
)
from sklearn_relflat._measures.matrices import (
    SQUARED_NORMS,
    check_norm,
    weight_matrices,
)
from sklearn_relflat._measures.measurement import (
    Measurement,
    UndefinedMeasureError,
    measured,
)

_COMBINATIONS = ("product", "sum")


def inverse_margin(
    estimator: Any,
    X: Any,
    y: Any = None,
    *,
    layer: str | Sequence[str] | None = ALL_LAYERS,
    loss: Any = None,
    norm: str | None = None,
    combine: str = "product",
    quantile: float = 0.1,
    sample_weight: Any = None,
) -> Measurement:
    """Inverse square of the margin between the classes, times norms of the weights.

    Parameters
    ----------
    estimator : estimator
        A fitted model, see `relative_flatness`.
    X : {array-like, sparse matrix, Tensor, Dataset, dict} of shape (n_samples, ...)
        The sample.
    y : array-like of shape (n_samples,) or (n_samples, n_outputs), default=None
        Targets; None only where X is a data set that carries them.
    layer : str or sequence of str, default="all"
        Layers whose weights enter with `norm`; the margin does not depend on them. None
        is the output layer, "all" the weights of all layers.
    loss : str, torch criterion or callable, default=None
        The loss; None is the one that the model was trained with.
    norm : {None, "spectral", "frobenius"}, default=None
        The norm of a layer's weight as a matrix, or None for the margin alone. The
        kernel of a convolution is a matrix of one row per output channel.
    combine : {"product", "sum"}, default="product"
        How the norms of the layers are combined, see the notes.
    quantile : float, default=0.1
        Share of the samples that may have a smaller margin than the one that counts.
    sample_weight : array-like of shape (n_samples,), default=None
        Weights of the samples.

    Returns
    -------
    result : Measurement
        ``1 / gamma^2``, times the norms. Large is complex.

    Raises
    ------
    ValueError
        If an option is not valid, the model is no classifier, or the margin is not
        positive: then more than a share of `quantile` of the samples is misclassified.

    See Also
    --------
    path_norm : A norm of the whole network.

    Notes
    -----
    The margin of a sample is ``f_y - max_{k != y} f_k`` with the raw outputs f, and
    ``f`` or ``-f`` where one output tells two classes apart. Where a sample has several
    labels, it is that of the worst. Then gamma is the smallest margin up to which the
    samples have a share of at least `quantile` of the weight: no interpolation. With d
    weight matrices W_j the value is::

        1 / gamma^2,                                     norm=None,
        prod_j ||W_j||^2 / gamma^2,                      combine="product",
        d (prod_j ||W_j||^2 / gamma^2)^(1 / d),          combine="sum".

    The sum is the least value of ``sum_j ||W_j||^2 / gamma^(2 / d)`` among networks of
    the same function, if factors can move between the layers. Biases and the gains of
    normalizations count in gamma alone. Nothing is divided by the number of samples.

    References
    ----------
    .. [1] Y. Jiang, B. Neyshabur, H. Mobahi, D. Krishnan, S. Bengio, "Fantastic
       Generalization Measures and Where to Find Them", ICLR 2020, appendix C.
    .. [2] P. Bartlett, D. J. Foster, M. Telgarsky, "Spectrally-normalized margin bounds
       for neural networks", NeurIPS 2017.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn_relflat import inverse_margin
    >>> X, y = load_iris(return_X_y=True)
    >>> X, y = X[:100], y[:100]
    >>> model = LogisticRegression().fit(X, y)
    >>> margins = np.where(y == 1, 1, -1) * model.decision_function(X)
    >>> gamma = np.sort(margins)[9]  # a tenth of 100 samples
    >>> bool(np.isclose(float(inverse_margin(model, X, y)), gamma**-2))
    True

    The distance to the boundary does not depend on the scale of the logits:

    >>> normalized = float(inverse_margin(model, X, y, norm="frobenius"))
    >>> bool(np.isclose(normalized, (gamma / np.linalg.norm(model.coef_)) ** -2))
    True
    """
    with open_problem(
        estimator,
        X,
        y,
        layer=layer,
        loss=loss,
        sample_weight=sample_weight,
        trusted=False,
    ) as problem:
        return inverse_margin_of(problem, norm=norm, combine=combine, quantile=quantile)


def inverse_margin_of(
    problem: Problem,
    *,
    norm: str | None = None,
    combine: str = "product",
    quantile: float = 0.1,
) -> Measurement:
    """Inverse squared margin of an open problem; see `inverse_margin`."""
    if norm is not None:
        check_norm(norm)
    if combine not in _COMBINATIONS:
        raise ValueError(
            f"Expected combine to be one of {list(_COMBINATIONS)}, got {combine!r}."
        )
    if not 0 < quantile < 1:
        raise ValueError(
            f"Expected quantile to be between 0 and 1, got {quantile!r}. It is a "
            "fraction: 0.1 for the tenth percentile."
        )
    gamma, mean_loss = _margin(problem, quantile)
    if not gamma > 0:
        raise UndefinedMeasureError(
            f"Expected a positive margin, got {gamma:.3g} at the quantile "
            f"{quantile!r}: that share of the samples is misclassified or undecided. "
            "Train the model to a higher accuracy, or choose a smaller quantile."
        )
    # Products over many layers are taken as sums of logarithms.
    log_value = -2 * math.log(gamma)
    squares = []
    if norm is not None:
        squares = [SQUARED_NORMS[norm](w) for w in weight_matrices(problem)]
        log_value += sum(
            math.log(square) if square else -math.inf for square in squares
        )
    if squares and combine == "sum":
        log_value = math.log(len(squares)) + log_value / len(squares)
    return measured(
        problem,
        "inverse_margin",
        math.exp(log_value) if log_value < _LARGEST_LOG else math.inf,
        method="margin" if norm is None else f"{combine}_of_{norm}_norms",
        mean_loss=mean_loss,
    )


# The exponential function overflows behind it.
_LARGEST_LOG = 709.0


def _margin(problem: Problem, quantile: float) -> tuple[float, float]:
    """Quantile of the margins, and the mean loss, from one pass over the data."""
    if not has_accuracy(problem):
        raise UndefinedMeasureError(
            f"Expected a classifier, for the margin between its classes, got "
            f"{problem.view.estimator_name} with the loss {problem.view.loss.name!r}."
        )
    total, denominator = 0.0, 0.0
    margins, weights = [], []
    with torch.no_grad():
        for batch in problem.source:
            outputs = wide(problem.view.outputs(batch.inputs))
            problem.view.check_outputs(outputs, batch)
            value, mass, weight, _ = risk_of(problem, batch, outputs)
            total += float((weight * value).sum())
            denominator += float((weight * mass).sum())
            found, kept = _margins(problem, targets_of(batch), outputs)
            margins.append(found[kept])
            weights.append(weight[:, None].expand_as(found)[kept])
    mean_loss = total / problem.denominator(denominator)
    gamma = _quantile(torch.cat(margins), torch.cat(weights), quantile)
    return gamma, mean_loss


def _margins(problem: Problem, y: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor]:
    """Margins of some samples and which of them count, (n, n_positions) both."""
    n, labels = len(outputs), labels_of(problem, y, outputs)
    if labels is None:
        found = torch.where(y > 0.5, outputs, -outputs).flatten(1).amin(1)
    elif outputs.numel() == n:
        found = torch.where(labels > 0, outputs.reshape(n), -outputs.reshape(n))
    else:
        # Labels that are ignored are no classes, and do not count below.
        index = labels.clamp(0, outputs.shape[1] - 1)[:, None]
        rivals = outputs.scatter(1, index, -math.inf).amax(1)
        found = outputs.gather(1, index)[:, 0] - rivals
    found = found.reshape(n, -1)
    kept = torch.ones_like(found, dtype=torch.bool)
    if not y.is_floating_point():
        kept = counted(problem, y).reshape(n, -1)
    return found, kept


def _quantile(values: Tensor, weights: Tensor, quantile: float) -> float:
    """Return the smallest value up to which the weights have a share of all."""
    order = values.argsort()
    sums = weights[order].cumsum(0)
    # A share that is reached exactly must not be missed by rounding.
    first = int((sums < quantile * (1 - 1e-12) * sums[-1]).sum())
    return float(values[order[first]])
