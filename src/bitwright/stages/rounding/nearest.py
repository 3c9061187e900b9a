"""Round to nearest."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from bitwright.stages.bound import BoundQuantizer
from bitwright.stages.quantizer import WeightContext
from bitwright.statistics import Statistic


@dataclass(frozen=True)
class Nearest:
    """Every weight goes to the nearest level of its grid."""

    @property
    def needs(self) -> tuple[Statistic, ...]:
        """Nothing."""
        return ()

    def solve(self, w: Tensor, bound: BoundQuantizer, context: WeightContext) -> Tensor:
        """Fit all groups, round all columns."""
        bound.open_all(w)
        return bound.round(0, w.shape[1], w)
