"""A histogram of all values of a tensor whose range grows with the data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from bitwright.statistics.base import Prefix, View


@dataclass(frozen=True)
class HistogramResult:
    """``counts[bins]`` over equal bins of ``[low, high]``; exact extrema ``minimum`` and ``maximum``."""

    counts: Tensor
    low: float
    high: float
    minimum: float
    maximum: float

    @property
    def centres(self) -> Tensor:
        """Middle of each bin, ``[bins]``."""
        width = (self.high - self.low) / len(self.counts)
        return self.low + width * (torch.arange(len(self.counts)) + 0.5)


class HistogramCollector:
    """Symmetric range ``[-r, r]`` with ``r`` a power of two times the first limit.

    The range doubles by adding neighbouring bins, which is exact, so that merging does not depend on the order of the
    batches; a value's position is known within ``2 r / bins``.
    """

    def __init__(self, bins: int) -> None:
        self.counts = torch.zeros(bins, dtype=torch.float64)
        self.limit = 0.0
        self.minimum = float("inf")
        self.maximum = float("-inf")

    def update(self, x: Tensor, twin: Tensor | None = None) -> None:
        """Take ``x`` of any shape."""
        if not x.numel():
            return
        x = x.float().flatten()
        low, high = (float(v) for v in x.aminmax())
        self.minimum, self.maximum = min(self.minimum, low), max(self.maximum, high)
        self._reach(max(abs(low), abs(high)))
        if self.limit:
            self.counts += torch.histc(x, len(self.counts), -self.limit, self.limit).double()
        else:
            self.counts[len(self.counts) // 2] += x.numel()

    def _reach(self, value: float) -> None:
        if value == 0.0:
            return
        if self.limit == 0.0:
            zeros = float(self.counts.sum())
            # A power of two: limits of different shards then differ by exact doublings.
            self.limit = 2.0 ** float(torch.tensor(value).log2().ceil())
            self.counts.zero_()
            self.counts[len(self.counts) // 2] = zeros
        while self.limit < value:
            self.double()

    def double(self) -> None:
        """Widen the range by two; pairs of bins become one."""
        bins = len(self.counts)
        wide = torch.zeros_like(self.counts)
        wide[bins // 4 : bins // 4 + bins // 2] = self.counts.view(bins // 2, 2).sum(1)
        self.counts = wide
        self.limit *= 2

    def merge(self, other: Self) -> None:
        """Combine exactly (counts at the coarser of the two resolutions)."""
        self.minimum, self.maximum = min(self.minimum, other.minimum), max(self.maximum, other.maximum)
        self._reach(other.limit)
        twin = HistogramCollector(len(other.counts))
        twin.counts, twin.limit = other.counts.clone(), other.limit
        if self.limit:
            twin._reach(self.limit)
        self.counts += twin.counts

    def result(self) -> HistogramResult:
        """Return the counts; an empty histogram has limits 0."""
        seen = self.minimum <= self.maximum
        return HistogramResult(
            self.counts.float(),
            -self.limit,
            self.limit,
            self.minimum if seen else 0.0,
            self.maximum if seen else 0.0,
        )


@dataclass(frozen=True)
class Histogram:
    """Histogram of all values of a site's input; ``bins`` is a multiple of four."""

    bins: int = 2048
    prefix: Prefix = "block"
    reads_twin: bool = False
    view: View = "channels"

    def open(self, dim: int) -> HistogramCollector:
        """Start collecting."""
        return HistogramCollector(self.bins)

    def memory_bytes(self, dim: int) -> int:
        """Bytes held."""
        return 8 * self.bins
