"""Rounding rules: which code each weight gets."""

from bitwright.stages.rounding.additive import AdditiveDescent
from bitwright.stages.rounding.asymmetric import Asymmetric
from bitwright.stages.rounding.coordinate_descent import CoordinateDescent
from bitwright.stages.rounding.nearest import Nearest
from bitwright.stages.rounding.second_order import SecondOrder

__all__ = ["AdditiveDescent", "Asymmetric", "CoordinateDescent", "Nearest", "SecondOrder"]
