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
    # Density
    "VariableKernelDensity",
    # Ridge and logistic regression
    "RelativeFlatnessLogisticRegression",
    "RelativeFlatnessRidge",
    "relative_flatness_path",
]

from ._feature_split import FeatureSplit
from ._flatness_result import RelativeFlatness
from ._flattest_within import FlattestWithin
from ._kernel_density import VariableKernelDensity
from ._layers import list_layers
from ._logistic import RelativeFlatnessLogisticRegression
from ._relative_flatness import layerwise_relative_flatness, relative_flatness
from ._ridge import RelativeFlatnessRidge, relative_flatness_path
from ._scorers import MeasureScorer, RelativeFlatnessScorer, TrainingFlatnessScorer
