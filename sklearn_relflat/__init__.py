"""Relative flatness and generalization for scikit-learn and skorch models."""

import lazy_loader as _lazy

from sklearn_relflat._results.plottable import displays_are_in as _displays_are_in

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
_displays_are_in("sklearn_relflat._displays.of_results")
