__all__ = [
    "RelativeFlatness",
    "layerwise_relative_flatness",
    "list_layers",
    "relative_flatness",
]

from ._layers import list_layers
from ._relative_flatness import (
    RelativeFlatness,
    layerwise_relative_flatness,
    relative_flatness,
)
