"""Where a variant was measured to be faster than the integer products: data of ``benchmarks/native_variants.py``."""

from __future__ import annotations

from collections.abc import Mapping

DECODE, PROMPT = "decode", "prompt"
"""Up to 8 rows of activations; more."""

PREFERENCE: Mapping[tuple[str, str, str], frozenset[str]] = {}
"""``(instruction set, kernel, phase)`` to the widths (``w1a1``: bits of weight and activation) that it won."""


def preferred(isa: str, kernel: str, key: str, rows: int | None) -> bool:
    """Whether a kernel was measured to win; where the number of rows is open, it must win in both phases."""
    phases = (DECODE, PROMPT) if rows is None else (DECODE,) if rows <= 8 else (PROMPT,)
    return all(key in PREFERENCE.get((isa, kernel, phase), frozenset()) for phase in phases)
