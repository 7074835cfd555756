"""Relative flatness of a layer (Petzka et al., NeurIPS 2021, Definition 3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.utils import check_random_state
from torch import Tensor

from sklearn_relflat._curvature import (
    FormSums,
    Plan,
    RiskSums,
    Route,
    closed_form_sums,
    curvature_sums,
    make_plan,
)
from sklearn_relflat._feature_scales import feature_scales
from sklearn_relflat._layers import (
    WeightLayer,
    find_layer,
    unsupported_layers,
    weight_layers,
)
from sklearn_relflat._models import TorchModel, as_torch_model
from sklearn_relflat._neuron_blocks import neuron_blocks
from sklearn_relflat._quadratic_forms import QuadraticForm, weight_form

# Backward passes (factors of the loss Hessian, or second-order products) up to which
# "auto" stays exact. A 10-class net takes 10; 1,000 classes are sampled.
_MAX_EXACT_PASSES = 256

_CHOICES: dict[str, tuple[Any, ...]] = {
    "curvature": ("hessian", "gauss_newton"),
    "method": ("auto", "exact", "sampled"),
    "normalize": (None, "std"),
    "statistic": ("trace", "max_eigenvalue"),
}


@dataclass(frozen=True, eq=False)
class RelativeFlatness:
    """Relative flatness of one layer, with how it was obtained.

    ``float(result)`` is its value. Large is sharp, small is flat.

    Attributes
    ----------
    value : float
        kappa, in units of the loss.
    stderr : float
        Standard error of the sampling for the given data; 0.0 when exact.
    layer : str
        The layer.
    loss : str
        The loss.
    curvature : {"hessian", "gauss_newton"}
        Which matrix was asked for.
    method : {"closed_form", "exact", "sampled"}
        The route taken.
    normalize : {None, "std"}
        Whether features were divided by their standard deviations.
    statistic : {"trace", "max_eigenvalue"}
        kappa_Tr or kappa_max.
    n_samples : int
        Number of samples.
    n_features : int
        Number of features m that enter the layer.
    mean_loss : float
        Empirical risk on these samples.
    gradient_norm : float
        Frobenius norm of the gradient of the empirical risk in the layer's weight: how
        far the model is from a minimum, in units of the loss per unit of weight.
    per_sample : ndarray of shape (n_samples,) or None
        Contributions of the samples; their mean is the value.
    """

    value: float
    stderr: float
    layer: str
    loss: str
    curvature: str
    method: str
    normalize: str | None
    statistic: str
    n_samples: int
    n_features: int
    mean_loss: float
    gradient_norm: float
    per_sample: np.ndarray | None = None

    def __float__(self) -> float:
        """Return the value."""
        return self.value

    def __repr__(self) -> str:
        """Return a summary in one line."""
        error = f" +- {self.stderr:.2g}" if self.stderr else ""
        name = "kappa_max" if self.statistic == "max_eigenvalue" else "kappa"
        normalized = ", std-normalized" if self.normalize else ""
        return (
            f"<RelativeFlatness {name} = {self.value:.6g}{error} of layer "
            f"{self.layer!r}{normalized}; {self.loss} {self.mean_loss:.4g} on "
            f"{self.n_samples} samples, gradient norm {self.gradient_norm:.2g}; "
            f"{self.curvature}, {self.method}>"
        )


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
        ridge of scikit-learn, or a pipeline, frozen estimator or search around one.
    X : {array-like, sparse matrix, Tensor, Dataset, dict} of shape (n_samples, ...)
        The sample on which the loss surface is looked at: the *training* sample, for
        the relative flatness of the paper.
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
        route takes.
    normalize : {None, "std"}, default=None
        "std" divides the features by their standard deviations and multiplies the
        weight by them, which makes the measure invariant to neuron-wise rescaling
        (Theorem 4). The model itself is never edited.
    statistic : {"trace", "max_eigenvalue"}, default="trace"
        kappa_Tr, or kappa_max, the sum over neurons of the squared weight norm times
        the largest eigenvalue of the neuron's Hessian block (always exact).
    weight_decay : float, default=0.0
        Coefficient c of a penalty c / 2 * ||w||^2 to count as part of the loss, as
        torch's optimizers do.
    rtol : float, default=0.01
        Relative standard error at which sampling stops.
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
        [layer],
        _Options(
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
    layers: Sequence[str] | None = None,
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
) -> dict[str, RelativeFlatness]:
    """Measure the relative flatness of several layers in one pass over the data.

    Parameters
    ----------
    estimator : estimator
        A fitted model, see `relative_flatness`.
    X : {array-like, sparse matrix, Tensor, Dataset, dict} of shape (n_samples, ...)
        The sample.
    y : array-like of shape (n_samples,) or (n_samples, n_outputs), default=None
        Targets.
    layers : sequence of str, default=None
        Names of layers; None is every weight layer of the model.
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
        One result per layer, in the order of `layers`.

    Raises
    ------
    TypeError
        If the model, a layer or the loss is not supported. With ``layers=None`` also if
        the model has weight layers that cannot be measured: name those you want.
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
        layers,
        _Options(
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


@dataclass(frozen=True)
class _Options:
    """Keyword arguments of the public functions, checked."""

    loss: Any
    curvature: str
    method: str
    normalize: str | None
    statistic: str
    weight_decay: float
    rtol: float
    per_sample: bool
    sample_weight: Any
    random_state: Any

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(
                    f"Expected {name} to be one of {list(allowed)}, got {value!r}."
                )
        for name in ("weight_decay", "rtol"):
            value = getattr(self, name)
            if not value >= 0:
                raise ValueError(
                    f"Expected {name} to be a number of at least 0, got {value!r}."
                )
        if self.statistic == "max_eigenvalue":
            if self.method == "sampled":
                raise ValueError(
                    'statistic="max_eigenvalue" is always exact, got method="sampled". '
                    'Use method="auto".'
                )
            if self.per_sample:
                raise ValueError(
                    'statistic="max_eigenvalue" is no mean over samples, got '
                    'per_sample=True. Use statistic="trace".'
                )


def make_generator(random_state: Any, device: torch.device) -> torch.Generator:
    """Torch generator from a scikit-learn random state.

    Parameters
    ----------
    random_state : int, RandomState instance or None
        None takes fresh entropy and leaves NumPy's global state alone.
    device : torch.device
        The generator's device.

    Returns
    -------
    generator : torch.Generator
        Seeded.
    """
    if random_state is None:
        random_state = np.random.RandomState(np.random.MT19937())
    seed = check_random_state(random_state).randint(np.iinfo(np.int32).max)
    return torch.Generator(device=device).manual_seed(int(seed))


def _select_layers(
    view: TorchModel, source: Any, names: Sequence[str | None] | None
) -> dict[str, WeightLayer]:
    """Layers by name; [None] is the output layer, None all of them."""
    if names is None:
        refused = unsupported_layers(view)
        if refused:
            raise TypeError(
                f"{view.estimator_name} has weight layers that cannot be measured: "
                f"{refused}. Pass layers=, some of {list(weight_layers(view))}."
            )
        names = list(weight_layers(view))
    if isinstance(names, str):
        raise TypeError(
            f"Expected layers to be a list of names, got the string {names!r}. "
            f"Pass [{names!r}]."
        )
    if not weight_layers(view):
        raise TypeError(
            f"{view.estimator_name} has no weight layer that can be measured. "
            f"Found: {unsupported_layers(view)}."
        )
    if list(names) == [None]:
        name = view.default_layer
        if name is None:
            plan = make_plan(view, source, weight_layers(view), required=False)
            name = plan.order[-1] if plan.order else next(iter(weight_layers(view)))
        names = [name]
    found = [find_layer(view, name) for name in names]  # type: ignore[arg-type]
    for layer in found:
        if not bool(torch.isfinite(layer.weight).all()):
            raise ValueError(
                f"Expected finite weights, got NaN or infinity in layer {layer.name!r} "
                f"of {view.estimator_name}. Train it with a smaller learning rate."
            )
    return {layer.name: layer for layer in found}


def _measure(
    estimator: Any,
    X: Any,
    y: Any,
    names: Sequence[str | None] | None,
    options: _Options,
) -> dict[str, RelativeFlatness]:
    """Results by layer."""
    view = as_torch_model(estimator, loss=options.loss)
    source = view.batches(X, y, options.sample_weight)
    generator = make_generator(options.random_state, view.device)
    with view.measuring():
        layers = _select_layers(view, source, names)
        plan = make_plan(view, source, layers)
        scales: dict[str, Tensor] = {}
        if options.normalize == "std":
            scales = feature_scales(view, source, layers)
        if options.statistic == "max_eigenvalue":
            return {
                name: _max_eigenvalue(
                    view, source, layer, plan, scales.get(name), options, generator
                )
                for name, layer in layers.items()
            }
        forms = [weight_form(layer, scales.get(name)) for name, layer in layers.items()]
        run = _Run(view, source, forms, plan, options, generator)
        estimate = run.evaluate()
        return {
            form.layer.name: _result(view, form, estimate, i, scales, options)
            for i, form in enumerate(forms)
        }


# ---------------------------------------------------------------------------
# Routes
# ---------------------------------------------------------------------------
@dataclass
class _Estimate:
    """Means over draws of what the passes found, for each form."""

    method: str
    sums: RiskSums
    totals: list[float]
    variances: list[float]
    values: list[Tensor]


@dataclass(frozen=True)
class _Run:
    """One evaluation: picks the route and repeats passes where it samples."""

    view: TorchModel
    source: Any
    forms: list[QuadraticForm]
    plan: Plan
    options: _Options
    generator: torch.Generator

    def evaluate(self) -> _Estimate:
        """Evaluate by the route that the options ask for."""
        method = self.options.method
        if method == "auto" and [self.plan.output_layer] == [
            form.layer.name for form in self.forms
        ]:
            sums = closed_form_sums(
                self.view, self.source, self.forms[0], keep=self.options.per_sample
            )
            return self._exact("closed_form", sums)
        gauss_newton = {"auto": self._affordable(self.plan.n_factors)}.get(
            method, method
        )
        residual = "none"
        if self.options.curvature == "hessian":
            probes = sum(self.plan.n_residual_probes(form) for form in self.forms)
            residual = {"auto": self._affordable(probes)}.get(method, method)
        route = Route(gauss_newton, residual)
        sums = self._pass(route)
        sampled = gauss_newton == "sampled" or (sums.smooth and residual == "sampled")
        if not sampled:
            return self._exact("exact", sums)
        return self._repeat(route, sums)

    @staticmethod
    def _affordable(n_passes: int) -> str:
        return "exact" if n_passes <= _MAX_EXACT_PASSES else "sampled"

    def _pass(self, route: Route) -> RiskSums:
        return curvature_sums(
            self.view,
            self.source,
            self.forms,
            self.plan,
            route,
            generator=self.generator,
            keep=self.options.per_sample,
        )

    @staticmethod
    def _exact(method: str, sums: RiskSums) -> _Estimate:
        return _Estimate(
            method,
            sums,
            [form.total for form in sums.forms],
            [0.0] * len(sums.forms),
            [torch.cat(form.values) for form in sums.forms if form.values],
        )

    def _repeat(self, route: Route, first: RiskSums) -> _Estimate:
        """Repeat passes until the relative standard errors are below rtol."""
        estimate = self._exact("sampled", first)
        estimate.variances = [_spread(form, first.n_samples) for form in first.forms]
        limit = self.plan.n_factors
        if first.smooth:
            limit += sum(self.plan.n_residual_probes(form) for form in self.forms)
        n_draws, n_pairs = 1, 0
        single_draw = np.zeros(len(self.forms))
        while n_draws < limit and not self._converged(estimate):
            sums = self._pass(Route(route.gauss_newton, route.residual, n_draws=2))
            n_pairs += 1
            share = 2 / (n_draws + 2)
            n_draws += 2
            for i, form in enumerate(sums.forms):
                estimate.totals[i] += share * (form.total - estimate.totals[i])
                if form.values:
                    step = torch.cat(form.values) - estimate.values[i]
                    estimate.values[i] = estimate.values[i] + share * step
            # Two draws of the same sample tell the variance of the sampling alone; the
            # single draw of the first pass enters the mean but not this estimate.
            single_draw += [form.draw_variance for form in sums.forms]
            estimate.variances = (single_draw / n_pairs / n_draws).tolist()
        return estimate

    def _converged(self, estimate: _Estimate) -> bool:
        return all(
            math.sqrt(variance) <= self.options.rtol * abs(total)
            for total, variance in zip(estimate.totals, estimate.variances, strict=True)
        )


def _spread(form: FormSums, n_samples: int) -> float:
    """Upper bound of the variance of a total with one draw: the spread over samples."""
    if n_samples < 2 or form.weight == 0:
        return math.inf
    center = form.total / form.weight
    squares = form.squares - 2 * center * form.weighted + center**2 * form.square_weight
    return max(squares, 0.0) * n_samples / (n_samples - 1)


def _denominator(view: TorchModel, sums: RiskSums) -> float:
    """Find what the sums are divided by, as the criterion defines it."""
    if view.loss.reduction == "sum":
        return 1.0
    if not sums.denominator > 0:
        raise ValueError(
            "Expected samples with a positive total weight, got "
            f"{sums.denominator!r}: every sample is ignored or has weight zero. Check "
            "sample_weight, the class weights and ignore_index."
        )
    return sums.denominator


def _penalty(layer: WeightLayer, scale: Tensor | None, weight_decay: float) -> float:
    """Relative flatness of the penalty weight_decay / 2 * ||w||^2."""
    if not weight_decay:
        return 0.0
    weight = layer.weight.double().cpu()
    inverse = torch.ones(layer.n_features, dtype=torch.float64)
    if scale is not None:
        weight, inverse = weight * scale.cpu(), 1.0 / scale.cpu()
    return weight_decay * float(weight.square().sum() * inverse.square().sum())


def _result(
    view: TorchModel,
    form: QuadraticForm,
    estimate: _Estimate,
    i: int,
    scales: dict[str, Tensor],
    options: _Options,
) -> RelativeFlatness:
    """Public result of one form."""
    layer, sums = form.layer, estimate.sums
    denominator = _denominator(view, sums)
    penalty = _penalty(layer, scales.get(layer.name), options.weight_decay)
    per_sample = None
    if options.per_sample:
        values = estimate.values[i].cpu().numpy()
        per_sample = values * (len(values) / denominator) + penalty
    return _make_result(
        view,
        layer,
        sums,
        options,
        value=estimate.totals[i] / denominator + penalty,
        stderr=math.sqrt(estimate.variances[i]) / denominator,
        method=estimate.method,
        per_sample=per_sample,
    )


def _max_eigenvalue(
    view: TorchModel,
    source: Any,
    layer: WeightLayer,
    plan: Plan,
    scale: Tensor | None,
    options: _Options,
    generator: torch.Generator,
) -> RelativeFlatness:
    """kappa_max = sum_s ||w_s||^2 lambda_max(H_(s,s))."""
    blocks, sums = neuron_blocks(
        view, source, layer, plan, curvature=options.curvature, generator=generator
    )
    blocks /= _denominator(view, sums)
    blocks.diagonal(dim1=1, dim2=2).add_(options.weight_decay)
    weight = layer.weight.to(blocks.dtype)
    if scale is not None:
        weight = weight * scale
        blocks = blocks / (scale[:, None] * scale)
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
    options: _Options,
    *,
    value: float,
    stderr: float,
    method: str,
    per_sample: np.ndarray | None = None,
) -> RelativeFlatness:
    """Make the result with what all routes report alike."""
    denominator = _denominator(view, sums)
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
