"""One piece of memory after the other for packed weights, on large pages that many weights share."""

from __future__ import annotations

from torch import Tensor

from bitwright.native.buffers import large_pages

_CHUNK = 64 << 20
_ALIGNMENT = 64


class Arena:
    """Gives out slices of chunks; a chunk is freed when the last of its slices is.

    A weight that had pages of its own would waste half a large page on average.
    """

    def __init__(self, chunk: int = _CHUNK) -> None:
        self._size = chunk
        self._chunk: Tensor | None = None
        self._used = 0

    def take(self, size: int) -> Tensor:
        """Return ``size`` zeroed bytes, uint8, aligned to a cache line."""
        padded = -(-size // _ALIGNMENT) * _ALIGNMENT
        if self._chunk is None or self._used + padded > self._chunk.numel():
            self._chunk, self._used = large_pages(max(self._size, padded)), 0
        start, self._used = self._used, self._used + padded
        return self._chunk[start : start + size]
