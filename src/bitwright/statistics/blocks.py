"""Second moments of neighbouring input channels: the diagonal blocks of the Hessian, for ranges chosen by output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional

from bitwright.statistics.base import Prefix, View


@dataclass(frozen=True, eq=False)
class BlockMoment:
    """``blocks[k, b, b]`` = mean over tokens of ``x x^T`` for channels ``k b .. (k + 1) b``; 0 beyond the last one."""

    blocks: Tensor
    channels: int
    count: int

    @property
    def diagonal(self) -> Tensor:
        """Mean square of every channel, ``[in]``."""
        return self.blocks.diagonal(dim1=1, dim2=2).flatten()[: self.channels]

    def of(self, columns: Tensor) -> Tensor:
        """Quadratic forms ``[groups, n, n]`` of groups of channels ``columns[groups, n]`` (-1 where a group is padded).

        Channels of different blocks count as uncorrelated, padding counts nothing.
        """
        size = self.blocks.shape[1]
        place = columns.clamp(min=0)
        block, inner = place // size, place % size
        form = self.blocks[block.unsqueeze(-1), inner.unsqueeze(-1), inner.unsqueeze(-2)]
        together = block.unsqueeze(-1) == block.unsqueeze(-2)
        real = columns >= 0
        return form * (together & real.unsqueeze(-1) & real.unsqueeze(-2))


class BlockMomentCollector:
    """Accumulates the diagonal blocks of ``X^T X``: one batched product in fp32 per batch, summed in fp64.

    Blocks of more than ``WIDE`` channels are summed in fp32, as the whole Hessian is.
    """

    WIDE = 2048

    def __init__(self, dim: int, size: int) -> None:
        self.dim = dim
        self.size = min(size, dim) or dim
        dtype = torch.float64 if self.size <= self.WIDE else torch.float32
        self.total = torch.zeros(-(-dim // self.size), self.size, self.size, dtype=dtype)
        self.count = 0

    def update(self, x: Tensor, twin: Tensor | None = None) -> None:
        """Take ``x[tokens, in]``."""
        padded = functional.pad(x.float(), (0, len(self.total) * self.size - self.dim))
        blocks = padded.reshape(len(x), -1, self.size).transpose(0, 1)
        self.total += blocks.transpose(1, 2) @ blocks
        self.count += len(x)

    def merge(self, other: Self) -> None:
        """Combine; equal to one pass up to rounding of the sum."""
        self.total += other.total
        self.count += other.count

    def result(self) -> BlockMoment:
        """Return the mean blocks."""
        return BlockMoment((self.total / max(self.count, 1)).float(), self.dim, self.count)


@dataclass(frozen=True)
class BlockHessian:
    """``E[x x^T]`` of a site's input within blocks of ``size`` neighbouring channels; 0 takes all channels as one."""

    size: int = 128
    prefix: Prefix = "float"
    reads_twin: bool = False
    view: View = "columns"
    spreads: ClassVar[bool] = True

    def open(self, dim: int) -> BlockMomentCollector:
        """Start collecting."""
        return BlockMomentCollector(dim, self.size)

    def memory_bytes(self, dim: int) -> int:
        """Bytes held, one batch's product included."""
        size = min(self.size, dim) or dim
        return 12 * -(-dim // size) * size * size
