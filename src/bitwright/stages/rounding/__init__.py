"""Rounding rules: which code each weight gets."""

from bitwright.stages.rounding.nearest import Nearest
from bitwright.stages.rounding.second_order import SecondOrder

__all__ = ["Nearest", "SecondOrder"]
