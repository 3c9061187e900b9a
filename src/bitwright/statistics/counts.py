"""How many tokens reach a layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from torch import Tensor

from bitwright.statistics.base import Prefix, View


class TokenCountCollector:
    """Counts rows."""

    def __init__(self) -> None:
        self.count = 0

    def update(self, x: Tensor, twin: Tensor | None = None) -> None:
        """Take ``x[tokens, in]``."""
        self.count += x.shape[0]

    def merge(self, other: Self) -> None:
        """Combine."""
        self.count += other.count

    def result(self) -> int:
        """Return the number of tokens."""
        return self.count


@dataclass(frozen=True)
class TokenCount:
    """The number of tokens that a layer was called on; experts of a mixture differ in it."""

    prefix: Prefix = "float"
    reads_twin: bool = False
    view: View = "columns"
    spreads: ClassVar[bool] = True

    def open(self, dim: int) -> TokenCountCollector:
        """Start counting."""
        return TokenCountCollector()

    def memory_bytes(self, dim: int) -> int:
        """Bytes held."""
        return 8
