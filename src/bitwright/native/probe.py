"""What this machine can do at most, measured: bytes read per second, multiply-adds of bytes per second."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from bitwright.native.buffers import large_pages, span
from bitwright.native.loading import require_library

_SIZE = 1 << 28
_DOT = 4096 * 12 * 64 * 2  # operations of a turn: a multiplication and an addition for every byte


def read_speed(threads: int, seconds: float = 0.5, instruction_set: str | None = None) -> float:
    """Bytes per second that ``threads`` threads read from memory: the best pass over 256 MiB on large pages.

    Raises:
        InputError: without compiled kernels.
    """
    library: Any = require_library(instruction_set)
    data = large_pages(_SIZE)
    data.fill_(3)
    return _SIZE / _best(lambda: library.read_all(span(data), threads), seconds)


def dot_speed(threads: int, seconds: float = 0.3, instruction_set: str | None = None) -> float:
    """Operations per second (a multiply-add counts two) of dot products of bytes, from registers and the first cache.

    Raises:
        InputError: without compiled kernels.
    """
    library: Any = require_library(instruction_set)
    turns = 16 * threads
    return turns * _DOT / _best(lambda: library.multiply_bytes(turns, threads), seconds)


def _best(work: Callable[[], object], seconds: float) -> float:
    """Seconds of the fastest call within about ``seconds``."""
    best = float("inf")
    end = time.perf_counter() + seconds
    while best == float("inf") or time.perf_counter() < end:
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best
