"""Products of int4 weights beside torch's own operators, in alternation in one process.

    python -m benchmarks.native_torch [--rounds 7] [--out benchmarks/results/native_torch.json]

One row of activations (decoding): ours with activations rounded to 8 bits, torch's int4 operator with bf16 activations
(`_weight_int4pack_mm_for_cpu`, groups of 128) and its bf16 linear. 128 rows (a prompt): ours and oneDNN's product of
8-bit activations with 8-bit weights (`onednn.qlinear_pointwise`). Weights are rotated over 600 MB, so that no cache
holds them. A round runs every side once at one and at two threads; medians and bests are written, ratios are of medians
and of bests.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bitwright.machine import processor
from bitwright.native import chosen
from bitwright.native.arena import Arena
from bitwright.native.linear import NativeWeight, linear, pack_codes, tiled
from bitwright.native.probe import read_speed

SHAPES = ((8192, 2048), (4096, 11008))
GROUP, PROMPT, ROTATED = 128, 128, 600 << 20

Side = Callable[[int], object]


def copies(size: int) -> int:
    """How many weights of a size fill the memory that is rotated over."""
    return max(2, -(-ROTATED // size))


def ours(out: int, columns: int, x: Tensor) -> tuple[Side, int]:
    """Products with packed weights of 4 bits, and bytes of one."""
    codes = pack_codes(torch.randint(0, 16, (out, columns), dtype=torch.uint8), 4, GROUP)
    scale = tiled(torch.full((out, columns // GROUP), 0.01, dtype=torch.float16))
    arena, weights = Arena(), []
    for _ in range(copies(codes.nbytes)):
        place = arena.take(codes.nbytes).view(codes.shape)
        place.copy_(codes)
        weights.append(NativeWeight(place, scale, None, None, (out, columns), 4, GROUP, 1, constant_zero=8))
    kept = arena, weights
    return lambda turn: linear(x, kept[1][turn % len(weights)], exact=False), codes.nbytes + scale.nbytes


def torch_int4(out: int, columns: int, x: Tensor) -> Side:
    """torch's int4 operator with bf16 activations."""
    codes = torch.randint(0, 16, (out, columns), dtype=torch.int32)
    packed = torch._convert_weight_to_int4pack_for_cpu(codes, 2)
    scales = torch.full((columns // GROUP, out, 2), 0.01, dtype=torch.bfloat16)
    weights = [packed.clone() for _ in range(copies(packed.nbytes))]
    short = x.bfloat16()
    return lambda turn: torch._weight_int4pack_mm_for_cpu(short, weights[turn % len(weights)], GROUP, scales)


def torch_bf16(out: int, columns: int, x: Tensor) -> Side:
    """torch's linear layer in bf16."""
    weights = [torch.randn(out, columns).bfloat16() for _ in range(copies(out * columns * 2))]
    short = x.bfloat16()
    return lambda turn: torch.nn.functional.linear(short, weights[turn % len(weights)])


def onednn_int8(out: int, columns: int, x: Tensor) -> Side:
    """oneDNN's product of bytes, a scale for every output."""
    plain = torch.randint(-127, 128, (out, columns), dtype=torch.int8)
    operators = torch.ops.onednn
    weights = [
        operators.qlinear_prepack(plain.t().contiguous().t(), list(x.shape)) for _ in range(copies(out * columns))
    ]
    scale, zero = torch.full((out,), 0.01), torch.zeros(out, dtype=torch.int64)
    codes = torch.randint(0, 256, x.shape, dtype=torch.uint8)

    def run(turn: int) -> Tensor:
        y: Tensor = operators.qlinear_pointwise(
            codes, 0.02, 128, weights[turn % len(weights)], scale, zero, None, 1.0, 0, torch.float32, "none", [], ""
        )
        return y

    return run


def clock(side: Side, calls: int, start: int) -> float:
    """Seconds of a call, the mean over `calls` with other weights."""
    began = time.perf_counter()
    for turn in range(start, start + calls):
        side(turn)
    return (time.perf_counter() - began) / calls


def measure(shape: tuple[int, int], rows: int, rounds: int) -> list[dict[str, Any]]:
    """All sides of one shape in turn."""
    x = torch.randn(rows, shape[1])
    mine, size = ours(*shape, x)
    sides: dict[str, Side] = {"bitwright int4 g128": mine}
    if rows == 1:
        sides |= {"torch int4": torch_int4(*shape, x), "torch bf16": torch_bf16(*shape, x)}
    else:
        sides |= {"onednn int8": onednn_int8(*shape, x)}
    calls = 24 if rows == 1 else 4
    found: dict[int, dict[str, list[float]]] = {threads: {name: [] for name in sides} for threads in (1, 2)}
    read: dict[int, list[float]] = {1: [], 2: []}
    for turn in range(rounds + 1):
        for threads, times in found.items():
            torch.set_num_threads(threads)
            speed = read_speed(threads, seconds=0.1)
            for name, side in sides.items():
                seconds = clock(side, calls, turn * calls)
                if turn:  # the first round warms up
                    times[name].append(seconds)
            if turn:
                read[threads].append(speed)
    return [row(shape, rows, threads, times, size, read[threads]) for threads, times in found.items()]


def row(
    shape: tuple[int, int], rows: int, threads: int, times: dict[str, list[float]], size: int, read: list[float]
) -> dict[str, Any]:
    """Medians, bests, and how much faster ours is."""
    first, *others = times
    kinds: dict[str, Callable[[list[float]], float]] = {"median": statistics.median, "best": min}
    made: dict[str, Any] = {
        "shape": list(shape), "rows": rows, "threads": threads, "rounds": len(read),
        "microseconds": {
            name: {kind: round(pick(values) * 1e6, 1) for kind, pick in kinds.items()} for name, values in times.items()
        },
        "ratio": {
            name: {kind: round(pick(times[name]) / pick(times[first]), 3) for kind, pick in kinds.items()}
            for name in others
        },
    }  # fmt: skip
    if rows == 1:
        bandwidth = {"median": statistics.median(read), "best": max(read)}
        made["read_bytes_per_second"] = {kind: round(value) for kind, value in bandwidth.items()}
        made["share_of_bandwidth"] = {
            kind: round(size / pick(times[first]) / bandwidth[kind], 3) for kind, pick in kinds.items()
        }
    return made


def main() -> None:
    """Measure both shapes with one and with many rows; write after every one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "native_torch.json")
    options = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True).stdout.strip()
    found: list[dict[str, Any]] = []
    for rows in (1, PROMPT):
        for shape in SHAPES:
            found += measure(shape, rows, options.rounds)
            facts = {
                "commit": commit, "date": datetime.date.today().isoformat(), "processor": processor().name,
                "instruction_set": chosen(), "torch": torch.__version__, "load": round(os.getloadavg()[0], 2),
            }  # fmt: skip
            options.out.write_text(json.dumps({**facts, "rows": found}, indent=1) + "\n")
            print(json.dumps(found[-2:]))


if __name__ == "__main__":
    main()
