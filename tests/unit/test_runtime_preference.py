"""What the dispatch prefers on AVX512 is what was faster on every machine whose figures are in the repository."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from bitwright.runtime.kernels.linear.preference import DECODE, PREFERENCE, PROMPT

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
FILES = sorted(RESULTS.glob("native_variants*.json"))
ROWS = {DECODE: 1, PROMPT: 128}


def mean_ratio(path: Path, case: str, other: str, rows: int) -> float | None:
    """Geometric mean, over shapes and threads, of one case's time by another's."""
    times = {
        (row["case"], row["out"], row["threads"]): row["median_us"]
        for row in json.loads(path.read_text())["results"]
        if row["rows"] == rows
    }
    logs = [
        math.log(time / times[other, out, threads])
        for (name, out, threads), time in times.items()
        if name == case and (other, out, threads) in times
    ]
    return math.exp(sum(logs) / len(logs)) if logs else None


@pytest.mark.parametrize("phase", ROWS)
def test_bits_serve_where_they_were_faster_everywhere(phase: str) -> None:
    assert len(FILES) >= 2
    found = set()
    for weight in range(1, 5):
        for given in range(1, 9):
            case, other = f"w{weight}a{given} bits", f"w{weight}a{weight} int8"
            ratios = [mean_ratio(path, case, other, ROWS[phase]) for path in FILES]
            if all(ratio is not None and ratio < 1 for ratio in ratios):
                found.add(f"w{weight}a{given}")
    assert found == PREFERENCE["avx512", "native-bits", phase]


@pytest.mark.parametrize("phase", ROWS)
def test_bf16_does_not_serve_tables_since_it_was_slower_somewhere(phase: str) -> None:
    ratios = [mean_ratio(path, "nf4 b64 bf16", "nf4 b64 lookup", ROWS[phase]) for path in FILES]
    assert any(ratio is not None and ratio > 1 for ratio in ratios)
    assert ("avx512", "native-bf16", phase) not in PREFERENCE
