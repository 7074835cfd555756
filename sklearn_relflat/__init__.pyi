__all__ = [
    # Relative flatness
    "RelativeFlatness",
    "layerwise_relative_flatness",
    "list_layers",
    "relative_flatness",
    # Features
    "FeatureSplit",
    # Smoothed risk
    "DensityRadius",
    "SmoothedRisk",
    "density_radius",
    "smoothed_risk",
    # Model selection
    "FlatnessDiagnosis",
    "FlattestWithin",
    "MeasureScorer",
    "ModelComparison",
    "RelativeFlatnessScorer",
    "SmoothedRiskScorer",
    "SmoothedRiskSearchCV",
    "TrainingFlatnessScorer",
    "WholeSample",
    "compare_models",
    "flatness_diagnosis",
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
    "RelativeFlatnessRidgeCV",
    "relative_flatness_path",
    # Competing measures
    "HessianEigenvalues",
    "HessianSpectrum",
    "Measurement",
    "asam_sharpness",
    "average_sharpness",
    "class_distance_normalized_variance",
    "compare_measures",
    "distance_to_initialization",
    "fisher_rao_norm",
    "hessian_eigenvalues",
    "hessian_max_eigenvalue",
    "hessian_spectrum",
    "hessian_trace",
    "inverse_margin",
    "linf_sharpness",
    "pac_bayes_flatness",
    "path_norm",
    "sam_sharpness",
    "weight_norm",
    # Evidence
    "RankCorrelations",
    "rank_correlations",
    # Reparameterization
    "invariance_report",
    "output_change",
    "reparameterize_layers",
    "reparameterize_neurons",
    # Displays
    "DensityRadiusDisplay",
    "FeatureRobustnessDisplay",
    "FlatnessAccuracyDisplay",
    "GeneralizationBoundDisplay",
    "HessianSpectrumDisplay",
    "LayerProfileDisplay",
    "LossSurfaceDisplay",
    "MeasureCorrelationDisplay",
    "ModelComparisonDisplay",
    "RelativeFlatnessPathDisplay",
    "TrainingDisplay",
]

from ._density.density_radius import DensityRadius, density_radius
from ._density.kernel_density import VariableKernelDensity
from ._displays.density_radius import DensityRadiusDisplay
from ._displays.feature_robustness import FeatureRobustnessDisplay
from ._displays.flatness_accuracy import FlatnessAccuracyDisplay
from ._displays.generalization_bound import GeneralizationBoundDisplay
from ._displays.hessian_spectrum import HessianSpectrumDisplay
from ._displays.layer_profile import LayerProfileDisplay
from ._displays.loss_surface import LossSurfaceDisplay
from ._displays.measure_correlation import MeasureCorrelationDisplay
from ._displays.model_comparison import ModelComparisonDisplay
from ._displays.ridge_path import RelativeFlatnessPathDisplay
from ._displays.training import TrainingDisplay
from ._evidence.rank_correlations import RankCorrelations, rank_correlations
from ._flatness.relative_flatness import layerwise_relative_flatness, relative_flatness
from ._flatness.result import RelativeFlatness
from ._invariance.reparameterize import reparameterize_layers, reparameterize_neurons
from ._invariance.report import invariance_report
from ._invariance.rescaled_copies import output_change
from ._layers.layers import list_layers
from ._linear.logistic import RelativeFlatnessLogisticRegression
from ._linear.ridge import RelativeFlatnessRidge, relative_flatness_path
from ._linear.ridge_cv import RelativeFlatnessRidgeCV
from ._measures.average_sharpness import average_sharpness
from ._measures.class_distance import class_distance_normalized_variance
from ._measures.compare import compare_measures
from ._measures.distance_to_initialization import distance_to_initialization
from ._measures.eigenvalues import HessianEigenvalues, hessian_eigenvalues
from ._measures.hessian_trace import hessian_trace
from ._measures.inverse_margin import inverse_margin
from ._measures.linf_sharpness import linf_sharpness
from ._measures.max_eigenvalue import hessian_max_eigenvalue
from ._measures.measurement import Measurement
from ._measures.norms import fisher_rao_norm, weight_norm
from ._measures.pac_bayes import pac_bayes_flatness
from ._measures.path_norm import path_norm
from ._measures.sharpness import asam_sharpness, sam_sharpness
from ._measures.spectrum import hessian_spectrum
from ._measures.spectrum_result import HessianSpectrum
from ._representativeness.generalization_bound import generalization_bound
from ._representativeness.representativeness import KDERepresentativeness
from ._robustness.feature_robustness import FeatureRobustness, feature_robustness
from ._robustness.smoothed_result import SmoothedRisk
from ._robustness.smoothed_risk import smoothed_risk
from ._selection.compare_models import ModelComparison, compare_models
from ._selection.diagnosis import FlatnessDiagnosis, flatness_diagnosis
from ._selection.flattest_within import FlattestWithin
from ._selection.scorers import (
    MeasureScorer,
    RelativeFlatnessScorer,
    TrainingFlatnessScorer,
)
from ._selection.smoothed_scorer import SmoothedRiskScorer
from ._selection.smoothed_search import SmoothedRiskSearchCV
from ._selection.whole_sample import WholeSample
from ._split.feature_split import FeatureSplit
