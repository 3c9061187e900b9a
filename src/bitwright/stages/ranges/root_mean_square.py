"""Scales from the size of all values of a group, for levels that are spread like normal weights."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from bitwright.errors import InputError
from bitwright.formats import Format
from bitwright.formats.scales import SMALLEST_SCALE
from bitwright.stages.quantizer import Fitted, WeightContext
from bitwright.statistics import Statistic


@dataclass(frozen=True)
class RootMeanSquare:
    """The scale is the root mean square of a group, times ``factor``: levels of unit variance meet the group's own.

    One pass over the weights, where a search of the range would have to code them for every scale that it tries. On
    normal weights of two bits the squared error is flat around its least: 0.0725, 0.0696, 0.0694 and 0.0693 for the
    factors 0.9, 0.985, 1 and 1.03. Fewer bits want a smaller factor (0.9 for one), more bits a slightly larger one.
    Points of E8P are best near 0.97; learned codebooks of vectors take whatever size they are given.
    """

    factor: float = 1.0

    @property
    def needs(self) -> tuple[Statistic, ...]:
        """None."""
        return ()

    def importance(self, context: WeightContext) -> Tensor | None:
        """All columns alike."""
        return None

    def fit(self, g: Tensor, format: Format, mask: Tensor | None, importance: Tensor | None) -> Fitted:
        """Fit ``g[rows, groups, n]``.

        Raises:
            InputError: a format whose levels have no unit variance.
        """
        if format.grid.span == 1:
            raise InputError(f"the root mean square fits levels of unit variance, not '{format}'; use Mse")
        square = g.float().square()
        if mask is None:
            mean = square.mean(-1)
        else:
            mean = (square * mask).sum(-1) / mask.sum(-1).clamp(min=1)
        scale = mean.sqrt() * self.factor * format.clip
        return Fitted(scale.where(mean > 0, 1.0).clamp(min=SMALLEST_SCALE), None)
