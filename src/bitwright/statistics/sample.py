"""A bounded uniform sample of a site's input tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from bitwright.statistics.base import Prefix, View


class InputSampleCollector:
    """Keeps the ``size`` tokens with the smallest random keys, so that merging shards is exact reservoir sampling."""

    def __init__(self, dim: int, size: int, seed: int) -> None:
        self.size = size
        self.generator = torch.Generator().manual_seed(seed)
        self.keys = torch.empty(0)
        self.rows = torch.empty(0, dim)

    def update(self, x: Tensor, twin: Tensor | None = None) -> None:
        """Take ``x[tokens, in]``."""
        keys = torch.rand(x.shape[0], generator=self.generator)
        if len(self.keys) == self.size:
            chosen = keys < self.keys[-1]
            keys, x = keys[chosen], x[chosen]
        self._keep(keys, x.float())

    def _keep(self, keys: Tensor, rows: Tensor) -> None:
        keys = torch.cat([self.keys, keys])
        order = keys.argsort()[: self.size]
        self.rows = torch.cat([self.rows, rows])[order]
        self.keys = keys[order]

    def merge(self, other: Self) -> None:
        """Combine; the result is again a uniform sample."""
        self._keep(other.keys, other.rows)

    def result(self) -> Tensor:
        """Return ``[<= size, in]``."""
        return self.rows.clone()


@dataclass(frozen=True)
class InputSample:
    """At most ``size`` tokens drawn uniformly without replacement."""

    size: int = 1024
    seed: int = 0
    prefix: Prefix = "float"
    reads_twin: bool = False
    view: View = "channels"

    def open(self, dim: int) -> InputSampleCollector:
        """Start collecting."""
        return InputSampleCollector(dim, self.size, self.seed)

    def memory_bytes(self, dim: int) -> int:
        """Bytes held."""
        return 4 * self.size * dim
