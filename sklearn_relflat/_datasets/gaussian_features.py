"""Four Gaussians in feature space, seen through an inverted network."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from scipy.special import log_ndtr
from sklearn.utils import Bunch, check_random_state

# Corners of a square, two of a class side by side or across the diagonal.
CORNERS = np.array([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]])
LABELS = {"adjacent": np.array([0, 0, 1, 1]), "opposite": np.array([0, 1, 1, 0])}

N_LAYERS = 4
SLOPE = 0.5  # of the leaky ReLU for negative inputs: far from 0, so well conditioned


def make_gaussian_features(
    n_samples: int = 500,
    n_features: int = 10,
    *,
    class_sep: float = 1.0,
    arrangement: str = "adjacent",
    random_state: Any = None,
    return_X_y: bool = False,
) -> Any:
    """Four Gaussians in feature space, and the inputs that a network maps there.

    The features come from four Gaussians of unit covariance, two a class. Their
    centres are the corners of a square of side ``2 * class_sep`` in a random plane. The
    inputs are what a random invertible network of four layers maps to these features.

    Parameters
    ----------
    n_samples : int, default=500
        Number of samples. Each is drawn from one of the four Gaussians, all equally
        likely.
    n_features : int, default=10
        Number of features and of inputs, at least 2.
    class_sep : float, default=1.0
        Half the side of the square, in standard deviations of a Gaussian. At 0 the
        labels are independent of the features.
    arrangement : {"adjacent", "opposite"}, default="adjacent"
        Where the two Gaussians of a class lie: on one side of the square, so that a
        linear classifier is optimal, or on a diagonal, where no linear classifier has
        more than three of the four on their side.
    random_state : int, RandomState instance or None, default=None
        Source of the plane, the network and the samples.
    return_X_y : bool, default=False
        Whether to return ``(X, y)`` in place of the Bunch.

    Returns
    -------
    Bunch or tuple of (ndarray, ndarray)
        ``(X, y)`` if `return_X_y`, otherwise a Bunch with the attributes

        - ``X``: float64 array of shape (n_samples, n_features), the inputs.
        - ``y``: int64 array of shape (n_samples,), the labels, 0 or 1.
        - ``features``: float64 array of shape (n_samples, n_features).
        - ``centers``: float64 array of shape (4, n_features).
        - ``center_labels``: int64 array of shape (4,), the class of each centre.
        - ``feature_map``: frozen float64 torch module that maps inputs to features. A
          linear layer on it is the paper's model.
        - ``inversion_error``: largest distance of ``feature_map(X)`` from ``features``,
          relative to the norm of that sample's features.
        - ``bayes_error``: probability that the best classifier errs, in closed form.
        - ``bayes_risk``: mean cross-entropy (natural logarithm) of the true
          probabilities, by integration in the plane to an absolute error below 1e-10.

    Raises
    ------
    ValueError
        If a parameter is out of its range.

    Notes
    -----
    Off the plane of the centres the features carry nothing about the label, so the
    Bayes risk is an integral over two dimensions, whatever ``n_features``. The four
    Gaussians are mirror images: one of them has the mean of all. The network does not
    change the risk, because it is invertible.

    References
    ----------
    H. Petzka, M. Kamp, L. Adilova, C. Sminchisescu, M. Boley. Relative flatness and
    generalization. NeurIPS 2021, Figure 3.

    Examples
    --------
    >>> from sklearn_relflat.datasets import make_gaussian_features
    >>> data = make_gaussian_features(100, class_sep=1.0, random_state=0)
    >>> data.X.shape
    (100, 10)
    >>> data.inversion_error < 1e-6
    True
    >>> print(f"{data.bayes_error:.4f}")  # the normal tail beyond class_sep
    0.1587
    """
    _check(n_samples, n_features, class_sep, arrangement)
    rng = check_random_state(random_state)
    plane = _orthogonal(rng, n_features)[:2]
    centers = class_sep * CORNERS @ plane
    component = rng.randint(4, size=n_samples)
    features = centers[component] + rng.standard_normal((n_samples, n_features))
    y = LABELS[arrangement][component].astype(np.int64)
    feature_map = _random_network(rng, n_features)
    X = _invert(feature_map, features)
    if return_X_y:
        return X, y
    with torch.no_grad():
        reached = feature_map(torch.from_numpy(X)).numpy()
    norms = np.linalg.norm(features, axis=1)
    return Bunch(
        X=X,
        y=y,
        features=features,
        centers=centers,
        center_labels=LABELS[arrangement].astype(np.int64),
        feature_map=feature_map,
        inversion_error=float(
            np.max(np.linalg.norm(reached - features, axis=1) / norms)
        ),
        bayes_error=_bayes_error(class_sep, arrangement),
        bayes_risk=_bayes_risk(class_sep, arrangement),
    )


def _check(n_samples: Any, n_features: Any, class_sep: Any, arrangement: Any) -> None:
    """Raise for the first parameter that is out of its range."""
    for name, value, least in [
        ("n_samples", n_samples, 1),
        ("n_features", n_features, 2),
    ]:
        if not isinstance(value, Integral) or value < least:
            raise ValueError(f"{name} must be an integer >= {least}, got {value!r}.")
    if not isinstance(class_sep, Real) or not 0 <= float(class_sep) < math.inf:
        raise ValueError(
            f"class_sep must be a finite number >= 0, got {class_sep!r}. "
            "It is in standard deviations: 0.5 to 5 is usual."
        )
    if arrangement not in LABELS:
        raise ValueError(
            f"arrangement must be one of {list(LABELS)}, got {arrangement!r}."
        )


def _orthogonal(rng: np.random.RandomState, n: int) -> np.ndarray:
    """Orthogonal matrix, uniformly distributed."""
    Q, R = np.linalg.qr(rng.standard_normal((n, n)))
    return Q * np.sign(np.diag(R))


def _random_network(rng: np.random.RandomState, n: int) -> torch.nn.Sequential:
    """Four square layers with leaky ReLUs between them, far from singular."""
    modules: list[torch.nn.Module] = []
    for layer in range(N_LAYERS):
        if layer:
            modules.append(torch.nn.LeakyReLU(SLOPE))
        # The singular values are bounded, so that the inverse loses few digits.
        stretch = np.exp(rng.uniform(-math.log(2), math.log(2), size=n))
        weight = _orthogonal(rng, n) * stretch @ _orthogonal(rng, n)
        # The module is told not to draw weights: the global seed stays as it was.
        linear = torch.nn.utils.skip_init(torch.nn.Linear, n, n, dtype=torch.float64)
        linear.weight.data = torch.from_numpy(weight)
        linear.bias.data = torch.from_numpy(rng.standard_normal(n))
        modules.append(linear)
    return torch.nn.Sequential(*modules).requires_grad_(False).eval()


def _invert(network: torch.nn.Sequential, features: np.ndarray) -> np.ndarray:
    """Find the inputs that the network maps to the features."""
    h = features
    for module in reversed(network):
        if isinstance(module, torch.nn.Linear):
            weight, bias = module.weight.numpy(), module.bias.numpy()
            h = np.linalg.solve(weight, (h - bias).T).T
        else:
            h = np.where(h < 0, h / SLOPE, h)
    return np.ascontiguousarray(h)


def _bayes_error(class_sep: float, arrangement: str) -> float:
    """Error of the best classifier: the sign of z1, or of the product z1 z2."""
    tail = math.exp(log_ndtr(-class_sep))
    return tail if arrangement == "adjacent" else 2 * tail * (1 - tail)


def _bayes_risk(class_sep: float, arrangement: str) -> float:
    """Cross-entropy of the true probabilities, by the trapezoid rule in the plane."""
    # The integrand is analytic within pi / (2 class_sep) of the real axis, so the rule
    # converges exponentially. Beyond class_sep = 10 the risk itself is below 1e-20.
    step = 0.25 / min(max(1.0, class_sep), 10.0)
    t = np.arange(-9.0, 9.0 + step / 2, step)
    weight = step * np.exp(-(t**2) / 2) / math.sqrt(2 * math.pi)
    z = class_sep + t  # about the corner (1, 1); the others are its mirror images
    if arrangement == "adjacent":
        return float(weight @ np.logaddexp(0, -2 * class_sep * z))
    plus = class_sep * np.abs(z[:, None] + z)
    minus = class_sep * np.abs(z[:, None] - z)
    log_cosh = [a + np.log1p(np.exp(-2 * a)) for a in (plus, minus)]
    return float(weight @ np.logaddexp(0, log_cosh[1] - log_cosh[0]) @ weight)
