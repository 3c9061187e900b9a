"""Further terms of a quantized weight: outliers kept apart, and low-rank models of the rounding error."""

from bitwright.stages.residuals.low_rank import LowRankError
from bitwright.stages.residuals.sparse import Outliers
from bitwright.stages.residuals.thresholding import ThresholdedOutliers

__all__ = ["LowRankError", "Outliers", "ThresholdedOutliers"]
