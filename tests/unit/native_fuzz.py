"""Calls the extension with wrong numbers and buffers; a program of its own, because what it looks for are crashes.

``python native_fuzz.py CASES SEED`` prints how many calls were refused and how many were served. Every refusal is one
of the expected exceptions; everything else ends the program with a traceback or a signal.
"""

from __future__ import annotations

import ctypes
import random
import sys
from typing import Any

from bitwright.native import _core

EXPECTED = (ValueError, TypeError, MemoryError)
EDGES = (-(2**63), -(2**31) - 1, -1, 0, 1, 2, 3, 7, 8, 9, 2**31, 2**31 + 1, 2**40, 2**62, 2**63 - 1, 2**63, 2**70)
WORDS = ("", None, 1.5, (1,), b"x", [])


class Wrong:
    """Draws numbers: mostly right ones, sometimes one at an edge or no number at all."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.kept: list[Any] = []

    def number(self, right: int, share: float = 0.02) -> Any:
        drawn = self.random.random()
        if drawn < share / 8:
            return self.random.choice(WORDS)
        return self.random.choice(EDGES) if drawn < share else right

    def span(self, size: int) -> Any:
        """A buffer that may be short, long, misaligned or absent; its bytes are really there."""
        drawn = self.random.random()
        actual = max(0, size + self.random.choice((-1, -2, -size, 1, 64)) if drawn < 0.06 else size)
        memory = (ctypes.c_ubyte * (actual + 72))()
        self.kept.append(memory)
        start = ctypes.addressof(memory)
        start += -start % 64
        if drawn > 0.99:
            return self.random.choice(((0, size), (start, -1), (-1, size), (start,), None, (2**64, 1)))
        if drawn > 0.97:
            return start + 1, max(actual - 1, 0)
        return start, actual


def one(wrong: Wrong) -> bool:
    """One weight and one product; whether both were served."""
    draw = wrong.random
    wrong.kept.clear()
    out, columns, bits = draw.randint(1, 40), draw.randint(1, 300), draw.randint(1, 8)
    block = draw.choice((16, 32, 64, 128, 256))
    per_scale, rows, width = draw.choice((1, 2, 100)), draw.randint(0, 12), draw.choice((0, 1, 2))
    tiles, blocks = -(-out // 16), -(-columns // block)
    parameters = tiles * 16 * -(-blocks // per_scale)
    packed = tiles * blocks * 16 * block * bits // 8
    sizes = (4, 2, 2)
    kernels = _core.Library(draw.choice(_core.instruction_sets()))
    threads = wrong.number(draw.randint(1, 3))
    shape = [wrong.number(out), wrong.number(columns), wrong.number(bits), wrong.number(block)]
    try:
        _core.packed_bytes(*shape)
        kernels.pack_weight(*shape, wrong.span(out * columns), wrong.span(packed), threads)
        kind, levels = draw.choice((0, 1, 2)), draw.choice((0, 0, 1, 2))
        weight = _core.Weight(
            *shape, wrong.number(per_scale), wrong.number(levels), wrong.span(packed),
            wrong.span(parameters * sizes[kind]), wrong.number(kind),
            wrong.span(parameters) if draw.random() < 0.5 else (0, 0),
            wrong.span(4 * parameters) if draw.random() < 0.5 else (0, 0),
            wrong.number(draw.randint(0, 255)), wrong.span(4 * (parameters << bits)),
        )  # fmt: skip
        kernels.unpack_weight(weight, wrong.span(out * columns), threads)
        kernels.linear(
            weight, wrong.span(rows * columns * sizes[width]), wrong.number(width), wrong.number(rows),
            wrong.span(rows * out * sizes[width]), wrong.span(4 * out) if draw.random() < 0.5 else (0, 0),
            draw.random() < 0.5, threads,
        )  # fmt: skip
    except EXPECTED:
        return False
    return True


def other_calls() -> None:
    """What has no buffers: memory of absurd sizes, a weight that was never made, instruction sets that do not exist."""
    unmade = _core.Weight.__new__(_core.Weight)
    library = _core.Library(_core.instruction_sets()[-1])
    for call in (
        lambda: _core.pages(0),
        lambda: _core.pages(-1),
        lambda: _core.pages(2**62),
        lambda: _core.Library("sse9"),
        lambda: library.unpack_weight(unmade, (0, 0), 1),
        lambda: library.linear(None, (0, 0), 0, 0, (0, 0), (0, 0), True, 1),
    ):
        try:
            call()
        except EXPECTED:
            continue
        raise AssertionError("a wrong call was served")


def main(arguments: list[str]) -> None:
    """Do what the module's docstring says."""
    cases, seed = map(int, arguments)
    wrong = Wrong(seed)
    served = sum(one(wrong) for _ in range(cases))
    other_calls()
    sys.stdout.write(f"{cases - served} refused, {served} served\n")


if __name__ == "__main__":
    main(sys.argv[1:])
