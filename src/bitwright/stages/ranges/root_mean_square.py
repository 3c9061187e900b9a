"""Scales that bring groups to unit size, for codebooks that are learned on what is left."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bitwright.formats import Format
from bitwright.stages.quantizer import Fitted, WeightContext
from bitwright.statistics import Statistic


@dataclass(frozen=True)
class RootMeanSquare:
    """The root of the mean square of each group's values; 1 for a group of zeros."""

    @property
    def needs(self) -> tuple[Statistic, ...]:
        """Nothing."""
        return ()

    def importance(self, context: WeightContext) -> Tensor | None:
        """Every value counts alike."""
        return None

    def fit(self, g: Tensor, format: Format, mask: Tensor | None, importance: Tensor | None) -> Fitted:
        """Fit ``g[rows, groups, n]``."""
        square = g.float().square()
        count = torch.tensor(float(g.shape[-1]))
        if mask is not None:
            square, count = square * mask, mask.float().sum(-1).clamp(min=1)
        size = (square.sum(-1) / count).sqrt()
        return Fitted(torch.where(size > 0, size, torch.ones_like(size)), None)
