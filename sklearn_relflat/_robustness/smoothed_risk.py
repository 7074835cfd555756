"""The risk of a model, smoothed over the local densities around its features."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

from sklearn_relflat._density.density_radius import DensityRadius
from sklearn_relflat._density.feature_metric import SHAPES, FeatureMetric
from sklearn_relflat._density.radius_memory import remembered_radius
from sklearn_relflat._robustness.smoothed_result import SmoothedRisk
from sklearn_relflat._robustness.smoother import open_smoother
from sklearn_relflat._robustness.smoothing import INPUT


def smoothed_risk(
    estimator: Any,
    X: Any,
    y: Any = None,
    *,
    layer: str | None = INPUT,
    radius: float | str | DensityRadius = "density",
    shape: str = "isotropic",
    n_draws: int = 16,
    rtol: float | None = None,
    loss: Any = None,
    metric: str | None = None,
    per_sample: bool = False,
    sample_weight: Any = None,
    random_state: Any = None,
) -> SmoothedRisk:
    r"""Estimate the risk of a model by its loss at perturbed features.

    The loss on the training sample plus its rise when each sample's features are
    perturbed as much as the data's own density says. Where labels do not change within
    that radius, it estimates the risk on new data from the training sample alone.

    Parameters
    ----------
    estimator : estimator
        A fitted model, see `relative_flatness`.
    X : {array-like, sparse matrix, Tensor, Dataset, dict} of shape (n_samples, ...)
        The sample; for judging a model, the one that it was trained on.
    y : array-like of shape (n_samples,) or (n_samples, n_outputs), default=None
        Targets; None only where X is a data set that carries them.
    layer : str or None, default="input"
        Whose features are perturbed: "input" for those that enter the model, behind
        the transformers of a pipeline, a name of `list_layers`, or None for the output
        layer. For images, the layer behind the last convolution was the best judge.
    radius : float or "density", default="density"
        Norm of the perturbations relative to that of the features; "density" is
        `density_radius` of these features, or of 5,000 of them if there are more.
    shape : {"isotropic", "within_class", "covariance"}, default="isotropic"
        Covariance of the perturbations up to their size, see `density_radius`.
    n_draws : int, default=16
        Perturbations of each sample, four or more, in pairs of opposite sign.
    rtol : float, default=None
        Draw again, n_draws at a time, until the standard error is below rtol times the
        value; None: once.
    loss : str, torch criterion or callable, default=None
        The loss; None is the one that the model was trained with.
    metric : {None, "error_rate"}, default=None
        "error_rate" averages wrong predictions instead of the loss.
    per_sample : bool, default=False
        Whether to return the smoothed loss of each sample.
    sample_weight : array-like of shape (n_samples,), default=None
        Weights of the samples.
    random_state : int, RandomState instance or None, default=None
        Seed of the perturbations. The same integer gives all models with the same
        number of features the same perturbations: compare models so.

    Returns
    -------
    result : SmoothedRisk
        Value, standard error, radius, and the loss without perturbation.

    Raises
    ------
    TypeError
        If the model, layer or loss is not supported, or the input is no array of real
        numbers.
    ValueError
        If an option or the data are not valid, or a loss at perturbed features is not
        finite.
    sklearn.exceptions.NotFittedError
        If the model is not fitted.

    Warns
    -----
    sklearn.exceptions.ConvergenceWarning
        If `rtol` is not reached with 4,096 draws.

    See Also
    --------
    density_radius : The radius.
    SmoothedRiskScorer : The same number in a search.
    feature_robustness : The rise for matrices that all samples share.

    Notes
    -----
    With features :math:`\phi_i` and A_i independent, Haar on the orthogonal group,

    .. math::
        S(\delta) = \frac1n \sum_i \mathbb E_{A_i}\,
            \ell\bigl(\psi(\phi_i + \delta A_i \phi_i), y_i\bigr)
            = E_{emp} + E_F(\delta),

    the second term of equation 3 of [1]_: the vicinal risk [2]_ of the trained model
    with the vicinity from the density. By equation 5 the risk is S plus what the local
    densities do not represent, which is about zero at the right radius as long as
    labels are locally constant. Where classes overlap within the radius, S is too
    large for good models; see the guide.

    As delta goes to 0, S is ``E_emp + delta^2 / (2m) kappa`` (Theorem 5). For the
    squared error of a linear model that holds for all delta, and S is exact. For other
    losses of linear models this term is a control variate. Otherwise S is the mean
    over pairs of opposite perturbations. Of 256 features on, four pairs turn one draw
    by random signed shifts: each is Haar, and they are uncorrelated to second order.

    The standard error is that of the draws. It is widened by Student's t where few
    samples decide, so that plus and minus two of it hold the exact value in about 95 %
    of cases.

    Of a convolution, A_i acts on its unfolded patches, as in `feature_robustness`, and
    the radius of such a layer is that of the flattened features.

    Costs one forward pass and n_draws passes of what is behind the layer; memory does
    not grow with the number of samples but for some numbers for each.

    References
    ----------
    .. [1] H. Petzka, M. Kamp, L. Adilova, C. Sminchisescu, M. Boley, "Relative Flatness
       and Generalization", NeurIPS 2021, equations 3 and 5, Theorem 5.
    .. [2] O. Chapelle, J. Weston, L. Bottou, V. Vapnik, "Vicinal risk minimization",
       NeurIPS 2000.

    Examples
    --------
    An over-confident model has the smaller training loss, and the larger smoothed risk:

    >>> from sklearn.datasets import load_breast_cancer
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.preprocessing import StandardScaler
    >>> from sklearn_relflat import smoothed_risk
    >>> X, y = load_breast_cancer(return_X_y=True)
    >>> X = StandardScaler().fit_transform(X)
    >>> for C in (0.1, 100.0):
    ...     model = LogisticRegression(C=C, max_iter=10000, tol=1e-6).fit(X, y)
    ...     result = smoothed_risk(model, X, y, random_state=0)
    ...     print(f"{C:5} {result.mean_loss:.1f} {result.value:.1f}")
      0.1 0.1 0.1
    100.0 0.0 0.7
    """
    size = _checked_options(radius, shape, n_draws, rtol, metric)
    with open_smoother(
        estimator,
        X,
        y,
        layer=layer,
        loss=loss,
        sample_weight=sample_weight,
        random_state=random_state,
        metric=metric,
    ) as smoother:
        features = None
        if isinstance(size, str) or shape != "isotropic":
            features, labels, weights = smoother.sample()
        space = FeatureMetric(shape)
        if shape != "isotropic":
            assert features is not None
            space = FeatureMetric.fit(features, shape, labels)
        density = size if isinstance(size, DensityRadius) else None
        if isinstance(size, str):
            assert features is not None
            density = remembered_radius(
                features, labels, shape=shape, sample_weight=weights
            )
        delta = float(size if density is None else density)
        return smoother.run(
            delta, space, n_draws, rtol, density=density, per_sample=per_sample
        )


def _checked_options(
    radius: Any, shape: Any, n_draws: Any, rtol: Any, metric: Any
) -> float | str | DensityRadius:
    """Return the radius after all options were checked."""
    if shape not in SHAPES:
        raise ValueError(f"Expected shape to be one of {SHAPES}, got {shape!r}.")
    if isinstance(n_draws, bool) or not isinstance(n_draws, Integral) or n_draws < 4:
        raise ValueError(
            f"Expected n_draws to be an integer of at least 4 (two pairs, for a "
            f"standard error), got {n_draws!r}."
        )
    if rtol is not None and not (isinstance(rtol, Real) and float(rtol) > 0):
        raise ValueError(f"Expected rtol to be a positive number, got {rtol!r}.")
    if metric not in (None, "error_rate"):
        raise ValueError(
            f"Expected metric to be None (the loss) or 'error_rate', got {metric!r}."
        )
    if isinstance(radius, DensityRadius):
        if radius.shape != shape:
            raise ValueError(
                f"Expected a radius of shape={shape!r}, got one of "
                f"{radius.shape!r}. Pass shape={radius.shape!r}."
            )
        return radius
    if isinstance(radius, str) and radius == "density":
        return radius
    is_number = isinstance(radius, Real) and not isinstance(radius, bool)
    if not (is_number and 0 <= float(radius) < math.inf):
        raise ValueError(
            "Expected radius to be 'density' or a finite number of at least 0, got "
            f"{radius!r}."
        )
    return float(radius)
