"""The measures by name, all with the signature of `relative_flatness`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from sklearn_relflat._flatness.relative_flatness import relative_flatness
from sklearn_relflat._measures.average_sharpness import average_sharpness
from sklearn_relflat._measures.class_distance import (
    class_distance_normalized_variance,
)
from sklearn_relflat._measures.distance_to_initialization import (
    distance_to_initialization,
)
from sklearn_relflat._measures.hessian_trace import hessian_trace
from sklearn_relflat._measures.inverse_margin import inverse_margin
from sklearn_relflat._measures.linf_sharpness import linf_sharpness
from sklearn_relflat._measures.max_eigenvalue import hessian_max_eigenvalue
from sklearn_relflat._measures.norms import fisher_rao_norm, weight_norm
from sklearn_relflat._measures.pac_bayes import pac_bayes_flatness
from sklearn_relflat._measures.path_norm import path_norm
from sklearn_relflat._measures.sharpness import asam_sharpness, sam_sharpness

#: Name to function ``(estimator, X, y=None, *, layer, loss, sample_weight, ...)``. Its
#: result is a number for ``float``; large is sharp. A new measure is one row.
MEASURES: dict[str, Callable[..., Any]] = {
    "relative_flatness": relative_flatness,
    "relative_flatness_std": partial(relative_flatness, normalize="std"),
    "hessian_trace": hessian_trace,
    "hessian_max_eigenvalue": hessian_max_eigenvalue,
    "fisher_rao_norm": fisher_rao_norm,
    "pac_bayes_flatness": pac_bayes_flatness,
    "pac_bayes_flatness_magnitude": partial(pac_bayes_flatness, magnitude_aware=True),
    "weight_norm": weight_norm,
    "sam_sharpness": sam_sharpness,
    "asam_sharpness": asam_sharpness,
    "linf_sharpness": linf_sharpness,
    "linf_sharpness_magnitude": partial(linf_sharpness, magnitude_aware=True),
    "average_sharpness": average_sharpness,
    "average_sharpness_magnitude": partial(average_sharpness, magnitude_aware=True),
    "inverse_margin": inverse_margin,
    "inverse_margin_spectral": partial(inverse_margin, norm="spectral"),
    "inverse_margin_frobenius": partial(inverse_margin, norm="frobenius"),
    "path_norm": path_norm,
    "class_distance_normalized_variance": class_distance_normalized_variance,
    "distance_to_initialization": distance_to_initialization,
}
#: Options without which a measure cannot be taken, by its name.
NEEDED_OPTIONS: dict[str, tuple[str, ...]] = {
    "distance_to_initialization": ("initial",)
}
