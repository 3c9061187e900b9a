"""Ranges that leave a fixed share of the values outside."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bitwright.errors import InputError
from bitwright.formats import Format
from bitwright.stages.quantizer import Fitted, WeightContext
from bitwright.stages.ranges.chunks import pieces
from bitwright.statistics import Statistic


@dataclass(frozen=True)
class Percentile:
    """The central ``share`` of each group's values, e.g. 0.999; what lies outside is clipped.

    Quantiles are interpolated between neighbours, so small groups change little at large shares.

    Raises:
        InputError: if ``share`` is not in (0, 1].
    """

    share: float = 0.999

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise InputError(f"a percentile range keeps a share in (0, 1], not {self.share}; e.g. 0.999")

    @property
    def needs(self) -> tuple[Statistic, ...]:
        """Nothing."""
        return ()

    def importance(self, context: WeightContext) -> Tensor | None:
        """Quantiles have no weights."""
        return None

    def fit(self, g: Tensor, format: Format, mask: Tensor | None, importance: Tensor | None) -> Fitted:
        """Fit ``g[rows, groups, n]``."""
        low = g.new_zeros(g.shape[:2])
        high = low.clone()
        for piece in pieces(g, mask, None):
            at = piece.rows, piece.groups
            values = piece.g if piece.weight is None else piece.g.masked_fill(piece.weight == 0, torch.nan)
            tail = (1 - self.share) / 2
            low[at] = quantile(values, tail).nan_to_num(0.0)
            high[at] = quantile(values, 1 - tail).nan_to_num(0.0)
        return Fitted(*format.scale_from_range(low, high))


def quantile(values: Tensor, q: float) -> Tensor:
    """Quantile along the last axis with linear interpolation; NaN are left out (all NaN gives NaN); any size."""
    ordered = values.sort(dim=-1).values
    count = (~torch.isnan(ordered)).sum(-1, keepdim=True)
    place = q * (count - 1).clamp(min=0).to(torch.float64)
    below = place.floor()
    left = ordered.gather(-1, below.long())
    right = ordered.gather(-1, place.ceil().long())
    return torch.lerp(left, right, (place - below).to(left.dtype)).squeeze(-1)
