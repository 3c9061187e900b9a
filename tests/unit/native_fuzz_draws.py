"""Draws numbers and buffers for the calls of ``native_fuzz.py``: mostly right ones, sometimes wrong in every way."""

from __future__ import annotations

import ctypes
import random
from array import array
from collections.abc import Sequence
from typing import Any

from bitwright.native import _core

EXPECTED = (ValueError, TypeError, MemoryError)
EDGES = (-(2**63), -(2**31) - 1, -1, 0, 1, 2, 3, 7, 8, 9, 2**31, 2**31 + 1, 2**40, 2**62, 2**63 - 1, 2**63, 2**70)
FLOATS = (float("nan"), float("inf"), -float("inf"), -1.0, 0.0, 1e-42, 1e30, 1e300, -1e300)
WORDS = ("", None, 1.5, (1,), b"x", [])
SIZES = (4, 2, 2)
"""Bytes of the float types."""

NONE = (0, 0)


class Wrong:
    """Draws arguments; ``share`` of the numbers and buffers are wrong."""

    def __init__(self, seed: int, share: float = 0.02) -> None:
        self.random = random.Random(seed)
        self.share = share
        self.kept: list[Any] = []

    def number(self, right: int) -> Any:
        """A whole number, or one at an edge, or no number at all."""
        drawn = self.random.random()
        if drawn < self.share / 8:
            return self.random.choice(WORDS)
        return self.random.choice(EDGES) if drawn < self.share else right

    def real(self, right: float) -> Any:
        """A float, or one that is no number, or no float at all."""
        drawn = self.random.random()
        if drawn < self.share / 8:
            return self.random.choice(("", None, (1,), b"x", []))
        return self.random.choice(FLOATS) if drawn < self.share else right

    def span(self, size: int, content: bytes | None = None) -> Any:
        """A buffer that may be short, long, misaligned or absent; its bytes are really there.

        What it holds is ``content``, or else zeros or random bytes.
        """
        drawn = self.random.random()
        wrong = 3 * self.share
        actual = max(0, size + self.random.choice((-1, -2, -size, 1, 64)) if drawn < wrong else size)
        memory = (ctypes.c_ubyte * (actual + 72))()
        self.kept.append(memory)
        start = ctypes.addressof(memory)
        start += -start % 64
        if content is None and self.random.random() < 0.5:
            content = self.random.randbytes(actual)
        if content is not None:
            ctypes.memmove(start, content, min(len(content), actual))
        if drawn > 1 - self.share / 2:
            return self.random.choice((NONE, (0, size), (start, -1), (-1, size), (start,), None, (2**64, 1)))
        if drawn > 1 - self.share:
            return start + 1, max(actual - 1, 0)
        return start, actual

    def floats(self, count: int) -> Any:
        """A buffer of small floats."""
        return self.span(4 * count, array("f", (self.random.gauss(0, 1) for _ in range(count))).tobytes())

    def numbers(self, values: Sequence[int], kind: str = "q") -> Any:
        """A buffer of whole numbers, one of which may be any other."""
        made = list(values)
        if made and self.random.random() < self.share:
            made[self.random.randrange(len(made))] = self.random.choice((-1, -(2**31), 2**31 - 1, len(made)))
        return self.span(array(kind, made).itemsize * len(made), array(kind, made).tobytes())

    def maybe(self, span: Any, share: float = 0.5) -> Any:
        """The buffer, or none."""
        return span if self.random.random() < share else NONE

    def shape(self) -> tuple[int, int, int, int, int]:
        """Rows, columns, bits, block and blocks of a scale of a packed weight."""
        draw = self.random
        bits, block = draw.randint(1, 8), draw.choice((16, 32, 64, 128, 256))
        if block == 16 and bits % 2:
            block = 32
        return draw.randint(1, 40), draw.randint(1, 300), bits, block, draw.choice((1, 2, 100))

    def weight(self, shape: tuple[int, int, int, int, int], levels: int) -> Any:
        """A packed weight of a shape, whose codes are any bytes."""
        out, columns, bits, block, per_scale = shape
        tiles, blocks = -(-out // 16), -(-columns // block)
        parameters = tiles * 16 * -(-blocks // per_scale)
        kind = self.random.choice((0, 1, 2))
        return _core.Weight(
            *map(self.number, shape), self.number(levels), self.span(tiles * blocks * 2 * block * bits),
            self.span(parameters * SIZES[kind]), self.number(kind), self.maybe(self.span(parameters)),
            self.maybe(self.span(4 * parameters)), self.number(self.random.randint(0, 255)),
            self.span(4 * (parameters << bits)),
        )  # fmt: skip

    def ternary(self, out: int, columns: int) -> Any:
        """A ternary weight, whose codes are any bytes."""
        tiles, kind = -(-out // 16), self.random.choice((0, 1, 2))
        return _core.TernaryWeight(
            self.number(out), self.number(columns), self.span(tiles * -(-columns // 20) * 64),
            self.span(tiles * 16 * SIZES[kind]), self.number(kind),
        )  # fmt: skip

    def tables(self, weight: Any, shape: tuple[int, int, int, int, int]) -> Any:
        """Byte tables for a weight; 16 levels, or tables for every row."""
        out, columns, _, block, per_scale = shape
        groups = -(-columns // (block * per_scale))
        by_row = self.random.random() < 0.5
        size = -(-out // 16) * groups * 256 if by_row else 16
        high = self.maybe(self.span(size), 1 if by_row else 0.5)
        return _core.ByteTables(weight, self.span(size), high, by_row, self.number(8192), self.real(0.5))


__all__ = ["EDGES", "EXPECTED", "FLOATS", "NONE", "SIZES", "WORDS", "Wrong"]
