"""Corrections: cheap adjustments after the rounding."""

from bitwright.stages.corrections.base import Correction
from bitwright.stages.corrections.bias import EmpiricalBias

__all__ = ["Correction", "EmpiricalBias"]
