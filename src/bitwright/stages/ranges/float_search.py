"""LLM-FP4's search: the exponent/mantissa split of a minifloat together with its clipping."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from bitwright.errors import InputError
from bitwright.formats import Format, MiniFloat
from bitwright.stages.quantizer import Fitted, WeightContext
from bitwright.stages.ranges.minmax import group_limits
from bitwright.stages.ranges.mse import Mse
from bitwright.statistics import Histogram, Statistic
from bitwright.statistics.histogram import HistogramResult


def splits(grid: MiniFloat) -> tuple[MiniFloat, ...]:
    """Every split of the same bits into exponent and mantissa, the grid's own first (at least one exponent bit)."""
    magnitude = grid.exponent + grid.mantissa
    others = [MiniFloat(e, magnitude - e) for e in range(1, magnitude + 1)]
    return (grid, *(g for g in others if g != grid))


def minifloat(format: Format) -> MiniFloat:
    """The grid of a minifloat format.

    Raises:
        InputError: for any other grid.
    """
    if not isinstance(format.grid, MiniFloat):
        raise InputError(f"the split search needs a minifloat such as e2m1, not '{format}'")
    return format.grid


@dataclass(frozen=True)
class FloatSearch:
    """Weights: per tensor the split, per group the clip, with the smallest squared error weighted by the inputs.

    The real-valued exponent bias of LLM-FP4 (Liu et al. 2023, section 3.1) is a real-valued scale here: a bias moves
    all levels by one factor. Its layer-output error is taken with the diagonal of the input's second moment.
    """

    clip: Mse = field(default_factory=lambda: Mse(importance_from="mean square"))

    @property
    def needs(self) -> tuple[Statistic, ...]:
        """Mean squares of the inputs."""
        return self.clip.needs

    def importance(self, context: WeightContext) -> Tensor | None:
        """See :class:`~bitwright.stages.ranges.mse.Mse`."""
        return self.clip.importance(context)

    def fit(self, g: Tensor, format: Format, mask: Tensor | None, importance: Tensor | None) -> Fitted:
        """Fit the clip of the chosen split."""
        return self.clip.fit(g, format, mask, importance)

    def choose(self, w: Tensor, format: Format, importance: Tensor | None) -> Format:
        """The split with the smallest error of the whole tensor ``w[out, in]``."""
        best: tuple[float, Format] | None = None
        for grid in splits(minifloat(format)):
            candidate = replace(format, grid=grid)
            layout = format.granularity.layout((w.shape[0], w.shape[1]))
            g = layout.split(w)
            weight = None if importance is None else layout.split(importance.expand_as(w).contiguous())
            fitted = self.fit(g, candidate, layout.mask(g), weight)
            stored = candidate.store_scale(fitted.scale).effective
            square = (candidate.round(g, stored, fitted.zero) - g).square()
            error = float((square if weight is None else square * weight).sum(dtype=torch.float64))
            if best is None or error < best[0]:
                best = (error, candidate)
        assert best is not None
        return best[1]


@dataclass(frozen=True)
class InputFloatSearch:
    """Inputs: the split and the clip of one static scale with the smallest squared error over a histogram.

    Args:
        search: ``False`` keeps the format's split and the full range (the min-max baseline).
        points: clips tried, from the full range down to ``smallest`` of it.
    """

    search: bool = True
    points: int = 60
    smallest: float = 0.2
    histogram: Histogram = field(default_factory=Histogram)

    @property
    def needs(self) -> tuple[Statistic, ...]:
        """A histogram of the input."""
        return (self.histogram,)

    def importance(self, context: WeightContext) -> Tensor | None:
        """All values count alike."""
        return None

    def fit(self, g: Tensor, format: Format, mask: Tensor | None, importance: Tensor | None) -> Fitted:
        """The full range of values that are held."""
        return Fitted(*format.scale_from_range(*group_limits(g, mask)))

    def fit_statistics(
        self, format: Format, statistics: Mapping[Statistic, Any]
    ) -> tuple[Format, Tensor, Tensor | None]:
        """Choose split and scale."""
        seen: HistogramResult = statistics[self.histogram]
        peak = max(abs(seen.minimum), abs(seen.maximum))
        if peak == 0.0:
            return format, torch.ones(1), None
        grid = format.grid
        grids = splits(minifloat(format)) if self.search and isinstance(grid, MiniFloat) else (grid,)
        ratios = torch.linspace(1.0, self.smallest, self.points) if self.search else torch.ones(1)
        best: tuple[float, Format, float] | None = None
        for candidate in grids:
            for ratio in ratios.tolist():
                scale = peak * ratio / candidate.max_level
                error = self._error(seen, candidate, scale)
                if best is None or error < best[0]:
                    best = (error, replace(format, grid=candidate), scale)
        assert best is not None
        return best[1], torch.tensor([best[2]]), None

    @staticmethod
    def _error(seen: HistogramResult, grid: Any, scale: float) -> float:
        x = seen.centres
        return float((seen.counts * (grid.round(x / scale) * scale - x).square()).sum(dtype=torch.float64))
