"""Where a variant was measured to be faster than the integer products: data of ``benchmarks/native_variants.py``."""

from __future__ import annotations

from collections.abc import Mapping

DECODE, PROMPT = "decode", "prompt"
"""Up to 8 rows of activations; more."""

PREFERENCE: Mapping[tuple[str, str, str], frozenset[str]] = {
    ("avx512", "native-bf16", DECODE): frozenset({"tables of two bytes"}),
    ("avx512", "native-bf16", PROMPT): frozenset({"tables of two bytes"}),
    ("avx512", "native-bits", DECODE): frozenset(
        {"w1a1", "w1a2", "w1a3", "w1a4", "w2a1", "w2a2", "w2a3", "w2a4", "w3a1", "w3a2", "w3a3", "w4a1"}
    ),
    ("avx512", "native-bits", PROMPT): frozenset({"w1a1", "w1a2", "w1a3", "w2a1", "w2a2", "w3a1", "w3a2", "w4a1"}),
    ("avx2", "native-sums", DECODE): frozenset({"w1", "w3"}),
    ("avx2", "native-sums", PROMPT): frozenset({"w1"}),
    ("avx2", "native-triples", DECODE): frozenset({"ternary", "ternary coded"}),
}
"""``(instruction set, kernel, phase)`` to the widths (``w1a1``: bits of weight and activation) that it won."""


def preferred(isa: str, kernel: str, key: str, rows: int | None) -> bool:
    """Whether a kernel was measured to win; where the number of rows is open, it must win in both phases."""
    phases = (DECODE, PROMPT) if rows is None else (DECODE,) if rows <= 8 else (PROMPT,)
    return all(key in PREFERENCE.get((isa, kernel, phase), frozenset()) for phase in phases)
