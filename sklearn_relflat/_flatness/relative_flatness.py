"""Relative flatness of a layer (Petzka et al., NeurIPS 2021, Definition 3)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sklearn_relflat._curvature.estimate import (
    Estimate,
    FormEstimator,
    Settings,
    denominator_of,
)
from sklearn_relflat._curvature.feature_scales import feature_scales
from sklearn_relflat._curvature.neuron_blocks import neuron_blocks
from sklearn_relflat._curvature.plan import Plan
from sklearn_relflat._curvature.problem import open_problem
from sklearn_relflat._curvature.quadratic_forms import (
    QuadraticForm,
    inverse_scale,
    weight_form,
)
from sklearn_relflat._curvature.sums import RiskSums
from sklearn_relflat._flatness.options import Options
from sklearn_relflat._flatness.result import (
    LayerwiseRelativeFlatness,
    RelativeFlatness,
)
from sklearn_relflat._layers.layers import WeightLayer
from sklearn_relflat._layers.names import ALL_LAYERS
from sklearn_relflat._models.torch_model import TorchModel


def relative_flatness(
    estimator: Any,
    X: Any,
    y: Any = None,
    *,
    layer: str | None = None,
    loss: Any = None,
    curvature: str = "hessian",
    method: str = "auto",
    normalize: str | None = None,
    statistic: str = "trace",
    weight_decay: float = 0.0,
    rtol: float = 0.01,
    per_sample: bool = False,
    sample_weight: Any = None,
    random_state: Any = None,
) -> RelativeFlatness:
    """Measure the relative flatness of one layer of a fitted model.

    Parameters
    ----------
    estimator : estimator
        A fitted model: a skorch net, a linear model, multi-layer perceptron or kernel
        ridge of scikit-learn, or a pipeline, frozen estimator or search around one; or
        a bare torch module, with `loss`.
    X : {array-like, sparse matrix, Tensor, Dataset, dict} of shape (n_samples, ...)
        The sample on which the loss surface is looked at: the *training* sample, for
        the relative flatness of the paper. For a bare module also a DataLoader, which
        stands for all samples of its data set, in their order.
    y : array-like of shape (n_samples,) or (n_samples, n_outputs), default=None
        Targets; None only where X is a data set that carries them.
    layer : str, default=None
        Name of the layer, see `list_layers`; None is the output layer.
    loss : str, torch criterion or callable, default=None
        The loss; None is the one that the model was trained with. Which loss matters:
        see the user guide before comparing models.
    curvature : {"hessian", "gauss_newton"}, default="hessian"
        The Hessian of Definition 3 or its Gauss-Newton part. They are equal where the
        model behind the layer is piecewise linear.
    method : {"auto", "exact", "sampled"}, default="auto"
        "auto" takes the cheapest exact route, and samples only where outputs or neurons
        are too many for that. "sampled" draws one random factor of the loss Hessian per
        sample and pass until `rtol` is met, with at most as many passes as the exact
        route takes. Where so few draws could not tell their error (very few samples, or
        one that outweighs the others), it is exact and says so.
    normalize : {None, "std"}, default=None
        "std" divides the features by their standard deviations and multiplies the
        weight by them, which makes the measure invariant to neuron-wise rescaling
        (Theorem 4). A constant feature takes its absolute value instead, and one that
        is always zero (a dead unit) is dropped. The model itself is never edited.
    statistic : {"trace", "max_eigenvalue"}, default="trace"
        kappa_Tr, or kappa_max, the sum over neurons of the squared weight norm times
        the largest eigenvalue of the neuron's Hessian block (always exact).
    weight_decay : float, default=0.0
        Coefficient c of a penalty c / 2 * ||w||^2 to count as part of the loss, as
        torch's optimizers do.
    rtol : float, default=0.01
        Relative standard error at which sampling stops; infinity stops after one draw,
        whose error is the spread over the samples, an upper bound.
    per_sample : bool, default=False
        Whether to return the contribution of each sample.
    sample_weight : array-like of shape (n_samples,), default=None
        Weights of the samples.
    random_state : int, RandomState instance or None, default=None
        Seed of the sampling; exact routes do not depend on it.

    Returns
    -------
    result : RelativeFlatness
        The value, its standard error, and how it was obtained.

    Raises
    ------
    TypeError
        If the model, the layer or the loss is not supported.
    ValueError
        If an option, the layer's name or the data are not valid, or a number that is
        not finite turns up.
    sklearn.exceptions.NotFittedError
        If the model is not fitted.

    See Also
    --------
    layerwise_relative_flatness : All layers in one pass over the data.
    RelativeFlatnessScorer : The same as a scorer of scikit-learn.

    Notes
    -----
    For a model ``f(x) = g(w phi(x))`` with weight w of shape (d, m) and the mean loss
    E_emp on the sample,

        kappa_Tr(w) = sum_{s,s'} <w_s, w_s'> Tr H_{s,s'},

    where ``H_{s,s'}`` is the (m, m) matrix of second derivatives of E_emp in the rows
    ``w_s`` and ``w_s'``. The bias is not part of w. The value can be negative away from
    a minimum; it is never clipped. Means, not sums: kappa does not grow with n_samples
    (unless the criterion's own reduction is "sum").

    References
    ----------
    .. [1] H. Petzka, M. Kamp, L. Adilova, C. Sminchisescu, M. Boley, "Relative Flatness
       and Generalization", NeurIPS 2021, Definition 3 and Theorem 4.

    Examples
    --------
    For least squares, kappa is 2 ||w||^2 times the mean of ||x||^2:

    >>> import numpy as np
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.linear_model import LinearRegression
    >>> from sklearn_relflat import relative_flatness
    >>> X, y = load_diabetes(return_X_y=True)
    >>> model = LinearRegression().fit(X, y)
    >>> kappa = relative_flatness(model, X, y)
    >>> expected = 2 * np.sum(model.coef_**2) * np.mean(np.sum(X**2, axis=1))
    >>> bool(np.isclose(float(kappa), expected, rtol=1e-12))
    True
    """
    results = _measure(
        estimator,
        X,
        y,
        _one_name(layer),
        Options(
            loss=loss,
            curvature=curvature,
            method=method,
            normalize=normalize,
            statistic=statistic,
            weight_decay=weight_decay,
            rtol=rtol,
            per_sample=per_sample,
            sample_weight=sample_weight,
            random_state=random_state,
        ),
    )
    return next(iter(results.values()))


def layerwise_relative_flatness(
    estimator: Any,
    X: Any,
    y: Any = None,
    *,
    layers: Iterable[str] | None = None,
    loss: Any = None,
    curvature: str = "hessian",
    method: str = "auto",
    normalize: str | None = None,
    statistic: str = "trace",
    weight_decay: float = 0.0,
    rtol: float = 0.01,
    per_sample: bool = False,
    sample_weight: Any = None,
    random_state: Any = None,
) -> LayerwiseRelativeFlatness:
    """Measure the relative flatness of several layers in one pass over the data.

    Parameters
    ----------
    estimator : estimator
        A fitted model, see `relative_flatness`.
    X : {array-like, sparse matrix, Tensor, Dataset, dict} of shape (n_samples, ...)
        The sample.
    y : array-like of shape (n_samples,) or (n_samples, n_outputs), default=None
        Targets.
    layers : iterable of str, default=None
        Names of layers; None is every weight layer of the model that can be measured.
    loss : str, torch criterion or callable, default=None
        As in `relative_flatness`, like all parameters below.
    curvature : {"hessian", "gauss_newton"}, default="hessian"
        Which matrix.
    method : {"auto", "exact", "sampled"}, default="auto"
        How. All layers share the backward passes.
    normalize : {None, "std"}, default=None
        Whether to divide features by their standard deviations.
    statistic : {"trace", "max_eigenvalue"}, default="trace"
        kappa_Tr or kappa_max; the latter takes one pass per layer.
    weight_decay : float, default=0.0
        Coefficient of a penalty that is part of the loss.
    rtol : float, default=0.01
        Relative standard error at which sampling stops, for every layer.
    per_sample : bool, default=False
        Whether to return the contribution of each sample.
    sample_weight : array-like of shape (n_samples,), default=None
        Weights of the samples.
    random_state : int, RandomState instance or None, default=None
        Seed of the sampling.

    Returns
    -------
    results : dict of str to RelativeFlatness
        One result per layer, in the order of `layers`. With ``layers=None``, its
        attribute `not_measured` has the layers that were left out, with the reasons.

    Raises
    ------
    TypeError
        If the model, a layer or the loss is not supported.
    ValueError
        As in `relative_flatness`.

    See Also
    --------
    relative_flatness : One layer.
    list_layers : The names.

    References
    ----------
    .. [1] H. Petzka, M. Kamp, L. Adilova, C. Sminchisescu, M. Boley, "Relative Flatness
       and Generalization", NeurIPS 2021, Definition 3.

    Examples
    --------
    In a network of ReLU units without biases, every layer has the same curvature along
    its own weight; kappa itself differs from layer to layer:

    >>> from sklearn.datasets import load_iris
    >>> from sklearn.neural_network import MLPClassifier
    >>> from sklearn_relflat import layerwise_relative_flatness, relative_flatness
    >>> X, y = load_iris(return_X_y=True)
    >>> mlp = MLPClassifier((8,), solver="lbfgs", max_iter=2000, random_state=0)
    >>> table = layerwise_relative_flatness(mlp.fit(X, y), X, y)
    >>> list(table)
    ['coefs.0', 'coefs.1']
    >>> last = relative_flatness(mlp, X, y)
    >>> last.layer, abs(last.value / table["coefs.1"].value - 1) < 1e-9
    ('coefs.1', True)
    """
    return _measure(
        estimator,
        X,
        y,
        _several_names(layers),
        Options(
            loss=loss,
            curvature=curvature,
            method=method,
            normalize=normalize,
            statistic=statistic,
            weight_decay=weight_decay,
            rtol=rtol,
            per_sample=per_sample,
            sample_weight=sample_weight,
            random_state=random_state,
        ),
    )


def _one_name(layer: Any) -> Any:
    """Name of one layer, or None for the output layer."""
    if layer is not None and not isinstance(layer, str):
        raise TypeError(
            f"Expected layer to be the name of a layer or None, got {layer!r}. "
            "layerwise_relative_flatness takes several."
        )
    # Of one layer alone, "all" is a name like any other.
    return [layer] if layer == ALL_LAYERS else layer


def _several_names(layers: Any) -> Any:
    """Names of several layers."""
    if isinstance(layers, str) and layers != ALL_LAYERS:
        raise TypeError(
            f"Expected layers to be a list of names, got the string {layers!r}. "
            f"Pass [{layers!r}]."
        )
    return ALL_LAYERS if layers is None else layers


def _measure(
    estimator: Any,
    X: Any,
    y: Any,
    names: Any,
    options: Options,
) -> LayerwiseRelativeFlatness:
    """Results by layer."""
    with open_problem(
        estimator,
        X,
        y,
        layer=names,
        loss=options.loss,
        sample_weight=options.sample_weight,
        random_state=options.random_state,
    ) as problem:
        view, source, layers = problem.view, problem.source, problem.layers
        generator = problem.generator()
        scales: dict[str, Tensor] = {}
        if options.normalize == "std":
            scales = feature_scales(view, source, layers)
        if options.statistic == "max_eigenvalue":
            results = {
                name: _max_eigenvalue(
                    view,
                    source,
                    layer,
                    problem.plan,
                    scales.get(name),
                    options,
                    generator,
                )
                for name, layer in layers.items()
            }
        else:
            forms = [
                weight_form(layer, scales.get(name)) for name, layer in layers.items()
            ]
            settings = Settings(
                options.curvature, options.method, options.rtol, options.per_sample
            )
            estimates = FormEstimator(
                view, source, forms, problem.plan, settings, generator
            ).evaluate()
            results = {
                form.layer.name: _result(view, form, estimate, scales, options)
                for form, estimate in zip(forms, estimates, strict=True)
            }
        return LayerwiseRelativeFlatness(results, problem.refusals)


def _penalty(layer: WeightLayer, scale: Tensor | None, weight_decay: float) -> float:
    """Relative flatness of the penalty weight_decay / 2 * ||w||^2."""
    if not weight_decay:
        return 0.0
    weight = layer.weight.double().cpu()
    inverse = torch.ones(layer.n_features, dtype=torch.float64)
    if scale is not None:
        # A dropped feature takes its weights out of the penalty, too.
        weight, inverse = weight * scale.cpu(), inverse_scale(scale.cpu())
    return weight_decay * float(weight.square().sum() * inverse.square().sum())


def _result(
    view: TorchModel,
    form: QuadraticForm,
    estimate: Estimate,
    scales: dict[str, Tensor],
    options: Options,
) -> RelativeFlatness:
    """Public result of one form."""
    layer, sums = form.layer, estimate.sums
    denominator = denominator_of(view, sums)
    penalty = _penalty(layer, scales.get(layer.name), options.weight_decay)
    per_sample = None
    if estimate.values is not None:
        values = estimate.values.cpu().numpy()
        per_sample = values * (len(values) / denominator) + penalty
    return _make_result(
        view,
        layer,
        sums,
        options,
        value=estimate.total / denominator + penalty,
        stderr=estimate.stderr / denominator,
        method=estimate.method,
        per_sample=per_sample,
    )


def _max_eigenvalue(
    view: TorchModel,
    source: Any,
    layer: WeightLayer,
    plan: Plan,
    scale: Tensor | None,
    options: Options,
    generator: torch.Generator,
) -> RelativeFlatness:
    """kappa_max = sum_s ||w_s||^2 lambda_max(H_(s,s))."""
    blocks, sums = neuron_blocks(
        view, source, layer, plan, curvature=options.curvature, generator=generator
    )
    blocks /= denominator_of(view, sums)
    blocks.diagonal(dim1=1, dim2=2).add_(options.weight_decay)
    weight = layer.weight.to(blocks.dtype)
    if scale is not None:
        weight = weight * scale
        inverse = inverse_scale(scale)
        blocks = blocks * (inverse[:, None] * inverse)
    top = torch.linalg.eigvalsh(blocks)[:, -1]
    return _make_result(
        view,
        layer,
        sums,
        options,
        value=float((weight.square().sum(1) * top).sum()),
        stderr=0.0,
        method="exact",
    )


def _make_result(
    view: TorchModel,
    layer: WeightLayer,
    sums: RiskSums,
    options: Options,
    *,
    value: float,
    stderr: float,
    method: str,
    per_sample: np.ndarray | None = None,
) -> RelativeFlatness:
    """Make the result with what all routes report alike."""
    denominator = denominator_of(view, sums)
    if not math.isfinite(value):
        raise ValueError(
            f"The curvature of layer {layer.name!r} is not finite ({value!r}) although "
            "the loss is: the second derivatives overflow. Use float64, or scale the "
            "features."
        )
    gradient = sums.gradients[layer.name] / denominator
    return RelativeFlatness(
        value=value,
        stderr=stderr,
        layer=layer.name,
        loss=view.loss.name,
        curvature=options.curvature,
        method=method,
        normalize=options.normalize,
        statistic=options.statistic,
        n_samples=sums.n_samples,
        n_features=layer.n_features,
        mean_loss=sums.loss / denominator,
        gradient_norm=float(torch.linalg.norm(gradient)),
        per_sample=per_sample,
    )
