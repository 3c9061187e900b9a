"""Per-channel moments and extrema of a site's input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from bitwright.statistics.base import Prefix, View


class AbsMaxCollector:
    """Largest magnitude of each channel."""

    def __init__(self, dim: int) -> None:
        self.values = torch.zeros(dim)

    def update(self, x: Tensor, twin: Tensor | None = None) -> None:
        """Take ``x[tokens, in]``."""
        if x.numel():
            self.values = torch.maximum(self.values, x.abs().amax(0).float())

    def merge(self, other: Self) -> None:
        """Combine exactly."""
        self.values = torch.maximum(self.values, other.values)

    def result(self) -> Tensor:
        """Return ``[in]``."""
        return self.values.clone()


@dataclass(frozen=True)
class AbsMax:
    """Largest magnitude per input channel, exact; SmoothQuant's and LLM-FP4's statistic."""

    prefix: Prefix = "float"
    reads_twin: bool = False
    view: View = "channels"
    spreads: ClassVar[bool] = True

    def open(self, dim: int) -> AbsMaxCollector:
        """Start collecting."""
        return AbsMaxCollector(dim)

    def memory_bytes(self, dim: int) -> int:
        """Bytes held."""
        return 4 * dim


@dataclass(frozen=True)
class Moments:
    """Means of one input: ``mean[in]``, ``mean_abs[in]``, ``mean_square[in]`` over ``count`` tokens."""

    mean: Tensor
    mean_abs: Tensor
    mean_square: Tensor
    count: int


class ChannelMeansCollector:
    """Sums of x, |x| and x^2 per channel in fp64."""

    def __init__(self, dim: int) -> None:
        self.sums = torch.zeros(3, dim, dtype=torch.float64)
        self.count = 0

    def update(self, x: Tensor, twin: Tensor | None = None) -> None:
        """Take ``x[tokens, in]``."""
        x = x.float()
        self.sums[0] += x.sum(0, dtype=torch.float64)
        self.sums[1] += x.abs().sum(0, dtype=torch.float64)
        self.sums[2] += x.square().sum(0, dtype=torch.float64)
        self.count += x.shape[0]

    def merge(self, other: Self) -> None:
        """Combine; equal to one pass up to fp64 rounding."""
        self.sums += other.sums
        self.count += other.count

    def result(self) -> Moments:
        """Return the means; zeros where no token was seen."""
        mean = (self.sums / max(self.count, 1)).float()
        return Moments(mean[0], mean[1], mean[2], self.count)


@dataclass(frozen=True)
class ChannelMeans:
    """Mean, mean magnitude and mean square per input channel."""

    prefix: Prefix = "float"
    reads_twin: bool = False
    view: View = "channels"
    spreads: ClassVar[bool] = True

    def open(self, dim: int) -> ChannelMeansCollector:
        """Start collecting."""
        return ChannelMeansCollector(dim)

    def memory_bytes(self, dim: int) -> int:
        """Bytes held."""
        return 24 * dim


class RangeCollector:
    """Smallest and largest value of the whole tensor."""

    def __init__(self) -> None:
        self.low = float("inf")
        self.high = float("-inf")

    def update(self, x: Tensor, twin: Tensor | None = None) -> None:
        """Take ``x`` of any shape."""
        if x.numel():
            low, high = x.aminmax()
            self.low = min(self.low, float(low))
            self.high = max(self.high, float(high))

    def merge(self, other: Self) -> None:
        """Combine exactly."""
        self.low = min(self.low, other.low)
        self.high = max(self.high, other.high)

    def result(self) -> tuple[float, float]:
        """Return ``(low, high)``; ``(0, 0)`` where nothing was seen."""
        return (self.low, self.high) if self.low <= self.high else (0.0, 0.0)


@dataclass(frozen=True)
class Range:
    """Smallest and largest value of the input tensor, exact."""

    prefix: Prefix = "block"
    reads_twin: bool = False
    view: View = "channels"
    spreads: ClassVar[bool] = True

    def open(self, dim: int) -> RangeCollector:
        """Start collecting."""
        return RangeCollector()

    def memory_bytes(self, dim: int) -> int:
        """Bytes held."""
        return 16
