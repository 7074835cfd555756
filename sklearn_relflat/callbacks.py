"""Callbacks and mixins for skorch nets."""

from sklearn_relflat._training.module_sizes import ModuleSizes
from sklearn_relflat._training.monitor import RelativeFlatnessMonitor
from sklearn_relflat._training.recorder import RelativeFlatnessRecorder
from sklearn_relflat._training.regularized import FlatnessRegularized
from sklearn_relflat._training.seeded import Seeded
from sklearn_relflat._training.smoothed_monitor import SmoothedRiskMonitor
from sklearn_relflat._training.stopping import StopAtTrainingLoss

__all__ = [
    "FlatnessRegularized",
    "ModuleSizes",
    "RelativeFlatnessMonitor",
    "RelativeFlatnessRecorder",
    "Seeded",
    "SmoothedRiskMonitor",
    "StopAtTrainingLoss",
]
