"""Range estimators: scale and zero point of groups of values."""

from bitwright.stages.ranges.minmax import MinMax

__all__ = ["MinMax"]
