"""Where a variant was measured to be faster than the integer products: data of ``benchmarks/native_variants.py``."""

from __future__ import annotations

from collections.abc import Mapping

DECODE, PROMPT = "decode", "prompt"
"""Up to 8 rows of activations; more."""

PREFERENCE: Mapping[tuple[str, str, str], frozenset[str]] = {
    ("avx512", "native-bits", DECODE): frozenset({"w1a1", "w3a1"}),
    ("avx512", "native-bits", PROMPT): frozenset({"w1a1", "w1a2", "w2a1", "w3a1"}),
    ("avx2", "native-sums", DECODE): frozenset({"w1", "w3"}),
    ("avx2", "native-sums", PROMPT): frozenset({"w1"}),
    ("avx2", "native-triples", DECODE): frozenset({"ternary", "ternary coded"}),
}
"""``(instruction set, kernel, phase)`` to the widths (``w1a1``: bits of weight and activation) that it won.

On AVX512 a variant is here if the geometric mean of its times by those of the integer product of equal weights, over
shapes and threads, is below 1 on every machine that was measured: Zen 4 and Emerald Rapids (``benchmarks/results``). On
AVX2 it was measured on one machine only.
"""


def preferred(isa: str, kernel: str, key: str, rows: int | None) -> bool:
    """Whether a kernel was measured to win; where the number of rows is open, it must win in both phases."""
    phases = (DECODE, PROMPT) if rows is None else (DECODE,) if rows <= 8 else (PROMPT,)
    return all(key in PREFERENCE.get((isa, kernel, phase), frozenset()) for phase in phases)
