"""Ranges that minimise the rounding error: some values are clipped so that all others get a finer step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bitwright.formats import Format, IntGrid
from bitwright.stages.lowered import lower
from bitwright.stages.quantizer import Fitted, WeightContext
from bitwright.stages.ranges.chunks import Piece, outer_of, pieces, weighted_sum
from bitwright.stages.ranges.minmax import group_limits
from bitwright.statistics import ChannelMeans, Hessian, Prefix, Statistic

Importance = Literal["solver", "mean square", "hessian"]


@dataclass(frozen=True)
class Mse:
    """Search each group's range for the smallest (weighted) squared error, measured with the stored scale and zero.

    First a grid: the extreme values times ``1 .. smallest``. Then a refinement: each end moves by a share of the
    range that is halved ``refinements`` times, and stays moved where that helps. The error never exceeds that of the
    full range (except where scales share an outer scale, which is fitted afterwards).

    Args:
        smallest: smallest share of the full range that is tried.
        steps: size of the grid.
        refinements: halvings of the step around the best grid point.
        importance_from: what a column's squared error counts: ``solver``: what the rounding rule says (all alike for
            round-to-nearest; second-order rules know what is left of it after their corrections); ``mean square`` of
            the column's input (its share of the output's error if inputs were uncorrelated); ``hessian``: the same
            number, taken from the Hessian where the rounding asks for it anyway.
        prefix: stream of the importance.
    """

    smallest: float = 0.3
    steps: int = 12
    refinements: int = 3
    importance_from: Importance = "solver"
    prefix: Prefix = "float"

    @property
    def needs(self) -> tuple[Statistic, ...]:
        """What the importance is made from."""
        if self.importance_from == "solver":
            return ()
        return (Hessian(self.prefix) if self.importance_from == "hessian" else ChannelMeans(self.prefix),)

    def importance(self, context: WeightContext) -> Tensor | None:
        """Mean square of every input column, ``[in]``, or ``None``."""
        if self.importance_from == "solver":
            return None
        if self.importance_from == "hessian":
            mean_square: Tensor = context.read(Hessian(self.prefix)).matrix.diagonal()
        else:
            mean_square = context.read(ChannelMeans(self.prefix)).mean_square
        # A column without signal still counts a little: its error must not be unbounded on other inputs.
        floor = 1e-4 * float(mean_square.mean())
        return mean_square.clamp(min=floor if floor > 0 else 1.0)

    def fit(self, g: Tensor, format: Format, mask: Tensor | None, importance: Tensor | None) -> Fitted:
        """Fit ``g[rows, groups, n]``."""
        low, high = group_limits(g, mask)
        outer = format.fit_outer(*format.scale_from_range(low, high))
        for piece in pieces(g, mask, importance):
            at = piece.rows, piece.groups
            low[at], high[at] = _Search(piece, format, outer_of(format, outer, piece.rows), low[at], high[at]).run(self)
        return Fitted(*format.scale_from_range(low, high))

    def factors(self, format: Format) -> list[float]:
        """Shares of the full range on the grid, the full range first."""
        if format.scale.storage == "e8m0":
            return [1.0, 2.0, 0.5, 0.25]
        shrinking = torch.linspace(1.0, self.smallest, self.steps).tolist()
        # Where levels are not evenly spaced a wider range can put many values on better levels (FP4's 4 and 6).
        wider = [] if isinstance(format.grid, IntGrid) else torch.linspace(1.02, 1.6, self.steps // 2).tolist()
        return shrinking + wider


class _Search:
    """State of the search over one piece."""

    def __init__(self, piece: Piece, format: Format, outer: Tensor | None, low: Tensor, high: Tensor) -> None:
        self.piece = piece
        self.format = format
        self.outer = outer
        self.form = lower(format.grid)
        self.level = torch.empty(piece.g.shape)
        self.low, self.high = low.clone(), high.clone()
        self.best = self._error(low, high)

    def _error(self, low: Tensor, high: Tensor) -> Tensor:
        scale, zero = self.format.scale_from_range(low, high)
        stored = self.format.store_scale(scale, self.outer).effective
        scaled = self.piece.g / stored.unsqueeze(-1)
        offset = self.format.store_zero(zero)
        if offset is not None:
            scaled.add_(offset.float().unsqueeze(-1))
        # The error in steps of the grid: neither zero point nor scale has to be undone value by value.
        self.form.round_(scaled, self.level)
        return weighted_sum(scaled.sub_(self.level).square_(), self.piece.weight).mul_(stored.square())

    def _try(self, low: Tensor, high: Tensor) -> None:
        error = self._error(low, high)
        better = error < self.best
        self.best = torch.where(better, error, self.best)
        self.low = torch.where(better, low, self.low)
        self.high = torch.where(better, high, self.high)

    def run(self, plan: Mse) -> tuple[Tensor, Tensor]:
        low, high = self.low, self.high
        factors = plan.factors(self.format)
        for factor in factors[1:]:
            self._try(low * factor, high * factor)
        if self.format.scale.storage == "e8m0":
            return self.low, self.high
        extent = high - low
        step = (1.0 - plan.smallest) / max(plan.steps - 1, 1)
        for _ in range(plan.refinements):
            step /= 2
            for sign in (-step, step):
                if self.format.asymmetric:
                    self._try(self.low + sign * extent, self.high)
                    self._try(self.low, self.high + sign * extent)
                else:
                    self._try(self.low - sign * extent, self.high + sign * extent)
        return self.low, self.high
