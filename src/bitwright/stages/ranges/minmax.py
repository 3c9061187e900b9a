"""Absmax and min-max ranges."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bitwright.formats import Format
from bitwright.native import nearest
from bitwright.stages.quantizer import Fitted, WeightContext
from bitwright.statistics import Statistic


def group_limits(g: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Smallest and largest real value of each group of ``g[rows, groups, n]``, both ``[rows, groups]``."""
    if mask is None:
        kernels = nearest.serving(g)
        if kernels is None:
            low, high = g.aminmax(dim=-1)
            return low, high
        rows, groups, n = g.shape
        low, high = nearest.group_limits(g.contiguous(), nearest.Groups(rows * groups, n, n), kernels)
        return low.view(rows, groups), high.view(rows, groups)
    low = g.masked_fill(~mask, torch.inf).amin(-1)
    high = g.masked_fill(~mask, -torch.inf).amax(-1)
    empty = low > high
    return low.masked_fill(empty, 0.0), high.masked_fill(empty, 0.0)


@dataclass(frozen=True)
class MinMax:
    """The full range of the values: nothing is clipped."""

    @property
    def needs(self) -> tuple[Statistic, ...]:
        """Nothing."""
        return ()

    def importance(self, context: WeightContext) -> Tensor | None:
        """Extrema have no weights."""
        return None

    def fit(self, g: Tensor, format: Format, mask: Tensor | None, importance: Tensor | None) -> Fitted:
        """Cover every real value of each group."""
        low, high = group_limits(g, mask)
        return Fitted(*format.scale_from_range(low, high))
