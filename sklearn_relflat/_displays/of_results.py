"""Which Display draws which result."""

from typing import Any

from sklearn_relflat._density.density_radius import DensityRadius
from sklearn_relflat._displays.density_radius import DensityRadiusDisplay
from sklearn_relflat._displays.feature_robustness import FeatureRobustnessDisplay
from sklearn_relflat._displays.generalization_bound import GeneralizationBoundDisplay
from sklearn_relflat._displays.hessian_spectrum import HessianSpectrumDisplay
from sklearn_relflat._displays.layer_profile import LayerProfileDisplay
from sklearn_relflat._displays.measure_correlation import MeasureCorrelationDisplay
from sklearn_relflat._displays.model_comparison import ModelComparisonDisplay
from sklearn_relflat._evidence.rank_correlations import RankCorrelations
from sklearn_relflat._flatness.result import LayerwiseRelativeFlatness
from sklearn_relflat._measures.spectrum_result import HessianSpectrum
from sklearn_relflat._representativeness.generalization_bound import (
    GeneralizationBound,
)
from sklearn_relflat._robustness.feature_robustness import FeatureRobustness
from sklearn_relflat._selection.compare_models import ModelComparison

#: Displays by the type of the results that their ``from_result`` takes.
DISPLAYS: dict[type, Any] = {
    DensityRadius: DensityRadiusDisplay,
    FeatureRobustness: FeatureRobustnessDisplay,
    GeneralizationBound: GeneralizationBoundDisplay,
    HessianSpectrum: HessianSpectrumDisplay,
    LayerwiseRelativeFlatness: LayerProfileDisplay,
    ModelComparison: ModelComparisonDisplay,
    RankCorrelations: MeasureCorrelationDisplay,
}
