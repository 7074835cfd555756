"""How well a sample and its local densities stand for the data they come from."""

from collections.abc import Iterator
from copy import deepcopy
from numbers import Integral, Real
from typing import Any, ClassVar, Self

import numpy as np
from sklearn.base import BaseEstimator, DensityMixin, _fit_context, clone
from sklearn.frozen import FrozenEstimator
from sklearn.utils import Tags, get_tags
from sklearn.utils._param_validation import Interval, RealNotInt, StrOptions
from sklearn.utils.validation import check_is_fitted, validate_data
from skorch import NeuralNet
from torch import nn
from torch.utils.data import Dataset

from sklearn_relflat._density.kernel_density import VariableKernelDensity
from sklearn_relflat._density.radial_kernels import RADIAL_KERNELS, Seed
from sklearn_relflat._progress.side_by_side import side_by_side
from sklearn_relflat._representativeness.local_risk import LocalDensities
from sklearn_relflat._representativeness.split_errors import (
    measured,
    overlap_factor,
    own_random_state,
    random_splits,
    split_errors,
)
from sklearn_relflat._results.documented import Documented
from sklearn_relflat._split.feature_split import FeatureSplit


def _held_out_density(
    density: VariableKernelDensity, X: np.ndarray, train: np.ndarray, test: np.ndarray
) -> float:
    """Mean log-density that one part gives to the other."""
    return float(density.fit(X[train]).score_samples(X[test]).mean())


class KDERepresentativeness(Documented, DensityMixin, BaseEstimator):
    """Estimate how well a sample represents the distribution it was drawn from.

    A sample is *representative* for a model f if the local densities around its
    features, with the label of the sample, have the same risk as the data
    distribution. With an estimator, the signed error of that is measured on random
    splits of the sample. Without one, X holds features, and what is measured is the
    log-density that the kernel density of one part gives to the other.

    Parameters
    ----------
    estimator : estimator, default=None
        The model, cloned and fitted by `fit`: whatever `relative_flatness` supports.
        Wrap a model that is fitted already in `sklearn.frozen.FrozenEstimator`. With
        None, X holds the features themselves.
    layer : str, default=None
        Name of the layer whose features are perturbed, see `list_layers`; None is the
        output layer.
    delta : float, default=0.1
        Bandwidth of the local density of a sample, relative to the norm of its
        features.
    kernel : {"auto", "truncated_gaussian", "epanechnikov", "uniform", "gaussian"}, \
            default="auto"
        Kernel of the local densities, see `VariableKernelDensity`. "auto" is
        "truncated_gaussian" with an estimator, as in Proposition 2 of [1]_, and
        "gaussian" without one: the log-density of a kernel with compact support is
        -inf for held-out samples outside of all bandwidths, in many dimensions most.
    n_splits : int, default=10
        Number of random splits.
    test_size : float or int, default=0.2
        Share of the samples, or their number, that each split holds out. The classes
        of a classifier are held out in equal shares, and one sample of each class is
        always kept for training.
    n_draws : int, default=8
        Draws from each local density, in antithetic pairs; an odd number counts as the
        next even one. None are needed for the squared error on the output layer, where
        the expectation is known.
    refit : {"head", "estimator", None}, default="head"
        What is fitted to the training part of each split.

        - "head": the output layer, to the features of the trained model. Its loss is
          minimised from scratch, with the ridge penalty that the trained layer
          implies: that of training, if it converged to a minimum; else one under which
          a refit to the whole sample does not have a larger norm.
          Features that were learned from X have seen the held-out samples, and the
          errors of a network come out much too small.
        - "estimator": a clone of the whole estimator.
        - None: nothing. Right only for a frozen model that has not seen X: a model
          that has will look as if its sample were representative.
    random_state : int, RandomState instance or None, default=None
        Seed of the splits and draws. None takes fresh entropy and leaves NumPy's
        global random state alone.
    n_jobs : int, default=None
        Number of processes that refit the estimator, or the densities where there is
        none, one split each; -1 is all cores. The numbers are the same for any, if each
        fit of the estimator is a function of its data: give it a seed.
    verbose : int, default=0
        1 shows a bar that counts the splits, with the time left.

    Attributes
    ----------
    representativeness_ : float
        Mean of `split_errors_`.
    representativeness_std_ : float
        Standard deviation of `split_errors_` over the splits.
    representativeness_stderr_ : float
        Standard error of `representativeness_`, corrected for the overlap of the splits
        [2]_.
    split_errors_ : ndarray of shape (n_splits,)
        With an estimator: held-out risk minus smoothed training risk. Positive: the
        data hold worse than what the sample and its surroundings show. Without one:
        mean log-density of the held-out part.
    split_gaps_ : ndarray of shape (n_splits,)
        Held-out risk minus training risk of the same refitted models, the ordinary
        cross-validated gap. Only with an estimator, like all that follow but the last
        four.
    monte_carlo_stderr_ : float
        Standard error of `representativeness_` that the draws cause.
    empirical_risk_ : float
        Mean loss of `estimator_` on the whole sample.
    smoothed_risk_ : float
        Its mean loss under the local densities of the whole sample. The difference
        of the two is its feature robustness, averaged over the matrices of
        Proposition 2.
    smoothed_risk_stderr_ : float
        Standard error of `smoothed_risk_` that the draws cause.
    estimator_ : FeatureSplit
        The model, fitted to the whole sample. None without an estimator.
    density_ : VariableKernelDensity
        Kernel density of the features of the whole sample.
    n_features_in_ : int
        Number of columns of X.
    feature_names_in_ : ndarray of shape (n_features,)
        Names of the columns of X, where these are strings.

    See Also
    --------
    generalization_bound : Adds the flatness term.
    VariableKernelDensity : The density.

    Notes
    -----
    For a sample S with features phi_i, local densities lambda_i around zero and a
    model ``f = psi(phi)`` with the risk E(f), Definition 2 of [1]_ is

        E_Rep(f, S) = E(f) - mean_i E_xi l(psi(phi_i + xi), y_i),    xi ~ lambda_i,

    and with the feature robustness E_F, the generalization gap is exactly
    ``E_gen = E_Rep + E_F`` (equation 5). E(f) is not known: it is estimated by the
    loss on the held-out part of a split, and the sample is its training part.

    Losses are means over samples, as the criterion weights them. Features that are all
    zero are not perturbed (in `density_` they get the smallest bandwidth). Where the
    layer is applied at several positions (pixels, tokens), one random matrix acts on
    all positions of a sample, and `density_` is that of the flattened features.

    References
    ----------
    .. [1] Petzka, Kamp, Adilova, Sminchisescu, Boley, "Relative Flatness and
       Generalization", NeurIPS 2021, Definition 2, Proposition 2 and equation 5.
    .. [2] Nadeau, Bengio, "Inference for the Generalization Error", Machine Learning
       52 (2003).

    Examples
    --------
    The gap of least squares, taken apart: what the surroundings of the sample already
    show (robustness), and what they do not (representativeness).

    >>> import numpy as np
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.linear_model import LinearRegression
    >>> from sklearn_relflat import KDERepresentativeness, relative_flatness
    >>> X, y = load_diabetes(return_X_y=True)
    >>> measure = KDERepresentativeness(LinearRegression(), delta=0.5, random_state=0)
    >>> measure = measure.fit(X, y)
    >>> bool(measure.representativeness_ < measure.split_gaps_.mean())
    True
    >>> robustness = measure.smoothed_risk_ - measure.empirical_risk_
    >>> kappa = float(relative_flatness(measure.estimator_, X, y))
    >>> 0 < robustness < 0.5**2 / (2 * 10) * kappa  # the flatness term bounds it
    True
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "estimator": "no_validation",
        "layer": [str, None],
        "delta": [Interval(Real, 0, np.inf, closed="neither")],
        "kernel": [StrOptions({"auto", *RADIAL_KERNELS})],
        "n_splits": [Interval(Integral, 2, None, closed="left")],
        "test_size": [
            Interval(RealNotInt, 0, 1, closed="neither"),
            Interval(Integral, 1, None, closed="left"),
        ],
        "n_draws": [Interval(Integral, 4, None, closed="left")],
        "refit": [StrOptions({"head", "estimator"}), None],
        "random_state": ["random_state"],
        "n_jobs": [Integral, None],
        "verbose": ["verbose"],
    }

    estimator_: FeatureSplit | None

    def __init__(
        self,
        estimator: Any = None,
        *,
        layer: str | None = None,
        delta: float = 0.1,
        kernel: str = "auto",
        n_splits: int = 10,
        test_size: float = 0.2,
        n_draws: int = 8,
        refit: str | None = "head",
        random_state: Seed = None,
        n_jobs: int | None = None,
        verbose: int = 0,
    ) -> None:
        self.estimator = estimator
        self.layer = layer
        self.delta = delta
        self.kernel = kernel
        self.n_splits = n_splits
        self.test_size = test_size
        self.n_draws = n_draws
        self.refit = refit
        self.random_state = random_state
        self.n_jobs = n_jobs
        self.verbose = verbose

    @_fit_context(prefer_skip_nested_validation=False)
    def fit(self, X: Any, y: Any = None) -> Self:
        """Fit the model and the density, and measure the errors over the splits.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), or what else the model takes
            Sample.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs), default=None
            Targets. Ignored without an estimator.

        Returns
        -------
        self : KDERepresentativeness
            The fitted estimator.

        Raises
        ------
        TypeError
            If the estimator is not supported.
        ValueError
            If parameters do not fit together, or the sample cannot be split, or all
            features are zero.
        """
        rng = own_random_state(self.random_state)
        if self.estimator is None:
            return self._fit_features(X, rng)
        return self._fit_model(X, y, rng)

    def _fit_features(self, X: Any, rng: np.random.RandomState) -> Self:
        """Measure held-out log-densities, without a model."""
        if self.layer is not None:
            raise ValueError(
                "Expected layer=None without an estimator, where X holds the features, "
                f"got layer={self.layer!r}. Give the estimator that has this layer."
            )
        X = validate_data(self, X, dtype=np.float64, ensure_min_samples=2)
        self.estimator_ = None
        self.density_ = self._fitted_density(X)
        bandwidth = self.density_.bandwidth_
        no_classes = np.zeros(len(X), dtype=np.int64)
        splits = list(random_splits(no_classes, self.n_splits, self.test_size, rng))
        densities = [
            VariableKernelDensity(
                bandwidth=bandwidth[train], kernel=self.density_.kernel
            )
            for train, _ in splits
        ]
        tasks = [(d, X, *split) for d, split in zip(densities, splits, strict=True)]
        values = side_by_side(
            _held_out_density,
            tasks,
            self.n_jobs,
            title="splits",
            unit="split",
            verbose=self.verbose,
        )
        train, test = splits[0]
        self._set_errors(np.array(list(values)), len(test) / len(train))
        return self

    def _fit_model(self, X: Any, y: Any, rng: np.random.RandomState) -> Self:
        """Measure the errors of a model over the splits."""
        if y is None and not isinstance(X, Dataset):
            raise ValueError(
                f"{type(self).__name__} with an estimator requires y to be passed, but "
                "the target y is None."
            )
        check_refit(self.estimator, self.refit)
        learner = FeatureSplit(self.estimator, layer=self.layer)
        model = clone(learner).fit(X, y)
        self.estimator_ = model
        for name in ("n_features_in_", "feature_names_in_"):
            if hasattr(model, name):
                setattr(self, name, getattr(model, name))
        local = LocalDensities(np.array([self.delta]), self._kernel(), self.n_draws)
        risk, result = split_errors(
            model,
            learner,
            X,
            y,
            local,
            refit=self.refit,
            n_splits=self.n_splits,
            test_size=self.test_size,
            rng=rng,
            n_jobs=self.n_jobs,
            verbose=self.verbose,
        )
        self.density_ = self._fitted_density(risk.features.reshape(len(risk), -1))
        self._set_errors(result.errors[0], result.test_ratio)
        self.split_gaps_ = result.gaps
        self.monte_carlo_stderr_ = float(result.monte_carlo_stderr[0])
        self.empirical_risk_ = result.empirical_risk
        self.smoothed_risk_ = float(result.smoothed_risk[0])
        self.smoothed_risk_stderr_ = float(np.sqrt(result.smoothed_variance[0]))
        return self

    def _set_errors(self, errors: np.ndarray, test_ratio: float) -> None:
        """Set what is known from the value of each split."""
        self.split_errors_ = errors
        self.representativeness_ = float(errors.mean())
        self.representativeness_std_ = np.inf
        if np.isfinite(errors).all():
            self.representativeness_std_ = float(errors.std(ddof=1))
        factor = overlap_factor(len(errors), test_ratio)
        self.representativeness_stderr_ = factor * self.representativeness_std_

    def _kernel(self) -> str:
        """Return the name of the kernel."""
        if self.kernel != "auto":
            return self.kernel
        return "gaussian" if self.estimator is None else "truncated_gaussian"

    def _fitted_density(self, features: np.ndarray) -> VariableKernelDensity:
        """Fit the density of features."""
        if not features.any():
            raise ValueError(
                f"Expected features of which some are not zero, got {len(features)} "
                "rows of zeros: the bandwidth delta * ||phi|| makes no density. Check "
                "the layers below (silent neurons), or choose another layer."
            )
        density = VariableKernelDensity(delta=self.delta, kernel=self._kernel())
        return density.fit(features)

    # -----------------------------------------------------------------------
    # Other data
    # -----------------------------------------------------------------------
    def score_samples(self, X: Any) -> np.ndarray:
        """Log-density of the features under the kernel density of the sample.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), or what else the model takes
            Samples.

        Returns
        -------
        log_density : ndarray of shape (n_samples,)
            -inf for a kernel with compact support, where no feature of the sample is
            within its bandwidth. ``kernel="gaussian"`` ranks all inputs.
        """
        check_is_fitted(self)
        if self.estimator_ is None:
            features = validate_data(self, X, dtype=np.float64, reset=False)
        else:
            features = self.estimator_.transform(X)
        return self.density_.score_samples(np.asarray(features))

    def score(self, X: Any, y: Any = None) -> float:
        """Judge the sample passed to `fit` by other data.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), or what else the model takes
            Held-out samples.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs), default=None
            Their targets. Ignored without an estimator.

        Returns
        -------
        score : float
            Larger is more representative. With an estimator, minus the absolute
            difference between the risk of `estimator_` on X, y and `smoothed_risk_`.
            Without one, the mean log-density of X.

        Raises
        ------
        ValueError
            If there is an estimator and y is None.
        """
        check_is_fitted(self)
        if self.estimator_ is None:
            return float(self.score_samples(X).mean())
        risk = measured(self.estimator_, X, y)
        return -abs(float(risk.mean(risk.losses())) - self.smoothed_risk_)

    # -----------------------------------------------------------------------
    # scikit-learn
    # -----------------------------------------------------------------------
    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.non_deterministic = False
        if self.estimator is not None:
            inner = deepcopy(get_tags(FeatureSplit(self.estimator)))
            tags.target_tags = inner.target_tags
            tags.target_tags.required = True
            tags.classifier_tags = inner.classifier_tags
            tags.regressor_tags = inner.regressor_tags
            tags.input_tags = inner.input_tags
            tags.non_deterministic = inner.non_deterministic
        return tags


def check_refit(estimator: Any, refit: str | None) -> None:
    """Raise where an estimator cannot be refitted from the start.

    Parameters
    ----------
    estimator : estimator
        What is to be refitted.
    refit : {"head", "estimator"} or None
        Only with "estimator" the whole model is trained again.

    Raises
    ------
    ValueError
        If it is frozen, or its clones would begin with trained weights.
    """
    if refit != "estimator":
        return
    if isinstance(estimator, FrozenEstimator):
        raise ValueError(
            "Expected an estimator that can be refitted, for refit='estimator', got a "
            f"FrozenEstimator of {type(estimator.estimator).__name__}. Pass the "
            "estimator without FrozenEstimator, or use refit='head', which refits its "
            "output layer only."
        )
    for net in _nets(estimator):
        trained = sorted(
            name
            for name, value in net.get_params(deep=False).items()
            if isinstance(value, nn.Module)
            and any(True for _ in value.parameters())
            and net.initialized_
        )
        if trained:
            raise ValueError(
                f"Expected a net that can be trained again from the start, got "
                f"{type(net).__name__} with the instance of a module as "
                f"{', '.join(trained)}: its clones keep the weights that it was "
                "trained to, on the samples to be held out as well. Pass the class of "
                "the module, with its arguments as module__..., or use refit='head'."
            )


def _nets(estimator: Any) -> Iterator[NeuralNet]:
    """Yield the skorch nets in an estimator, at any depth."""
    if isinstance(estimator, NeuralNet):
        yield estimator
        return
    inner = estimator.get_params(deep=True) if hasattr(estimator, "get_params") else {}
    for value in inner.values():
        if isinstance(value, NeuralNet):
            yield value
    # A fitted pipeline or search may hold trained nets whose parts are its own.
    for name in ("steps", "transformers"):
        for part in getattr(estimator, name, None) or ():
            if not isinstance(part[1], NeuralNet) and hasattr(part[1], "get_params"):
                yield from _nets(part[1])
