__all__ = [
    # Relative flatness
    "RelativeFlatness",
    "layerwise_relative_flatness",
    "list_layers",
    "relative_flatness",
    # Features
    "FeatureSplit",
    # Model selection
    "FlattestWithin",
    "MeasureScorer",
    "RelativeFlatnessScorer",
    "TrainingFlatnessScorer",
    # Feature robustness
    "FeatureRobustness",
    "feature_robustness",
    # Representativeness and the bound
    "KDERepresentativeness",
    "VariableKernelDensity",
    "generalization_bound",
    # Ridge and logistic regression
    "RelativeFlatnessLogisticRegression",
    "RelativeFlatnessRidge",
    "relative_flatness_path",
    # Competing measures
    "Measurement",
    "asam_sharpness",
    "compare_measures",
    "fisher_rao_norm",
    "hessian_max_eigenvalue",
    "hessian_trace",
    "pac_bayes_flatness",
    "sam_sharpness",
    "weight_norm",
    # Reparameterization
    "invariance_report",
    "output_change",
    "reparameterize_layers",
    "reparameterize_neurons",
]

from ._compare import compare_measures
from ._feature_robustness import FeatureRobustness, feature_robustness
from ._feature_split import FeatureSplit
from ._flatness_result import RelativeFlatness
from ._flattest_within import FlattestWithin
from ._generalization_bound import generalization_bound
from ._hessian_measures import hessian_trace
from ._invariance import invariance_report
from ._kernel_density import VariableKernelDensity
from ._layers import list_layers
from ._logistic import RelativeFlatnessLogisticRegression
from ._max_eigenvalue import hessian_max_eigenvalue
from ._measurement import Measurement
from ._norms import fisher_rao_norm, weight_norm
from ._pac_bayes import pac_bayes_flatness
from ._relative_flatness import layerwise_relative_flatness, relative_flatness
from ._reparameterize import reparameterize_layers, reparameterize_neurons
from ._representativeness import KDERepresentativeness
from ._rescaled_copies import output_change
from ._ridge import RelativeFlatnessRidge, relative_flatness_path
from ._scorers import MeasureScorer, RelativeFlatnessScorer, TrainingFlatnessScorer
from ._sharpness import asam_sharpness, sam_sharpness
