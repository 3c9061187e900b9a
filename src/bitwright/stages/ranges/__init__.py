"""Range estimators: scale and zero point of groups of values."""

from bitwright.stages.ranges.half_quadratic import HalfQuadratic
from bitwright.stages.ranges.minmax import MinMax
from bitwright.stages.ranges.mse import Mse
from bitwright.stages.ranges.output_clip import OutputClip
from bitwright.stages.ranges.percentile import Percentile
from bitwright.stages.ranges.root_mean_square import RootMeanSquare

__all__ = ["HalfQuadratic", "MinMax", "Mse", "OutputClip", "Percentile", "RootMeanSquare"]
