"""Every compiled product and its variants: microseconds and GB/s, beside a read-bandwidth probe of the same minute.

    python -m benchmarks.native_variants [--out benchmarks/results/native_variants.json] [--seconds 330]

Each turn of a case measures the probe and the case at one and at two threads; medians and the best of the turns are
kept. Weights are rotated over 600 MB, so that no cache holds them. GB/s counts the bytes of the packed
weight, processor time says what a kernel costs where others take the clock; at 128 rows GOP/s is 2 x rows x out x in
over the time.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from bitwright.formats import TrellisGrid, parse
from bitwright.native import require_library, trellis
from bitwright.native.arena import Arena
from bitwright.native.buffers import span
from bitwright.native.linear import ROW_TABLE, TABLE, NativeWeight, pack_codes, tiled
from bitwright.native.loading import Library
from bitwright.native.product import AdditiveWeight, Coding, Product, Terms, Way, call
from bitwright.runtime.kernels.linear import native, prepared, products, vectors

SHAPES = ((8192, 2048), (4096, 11008))
ROTATED = 600 << 20


@dataclass(frozen=True, eq=False)
class TrellisProduct:
    """A product of trellis codes, with the face of the others."""

    weight: trellis.TrellisWeight
    exact: bool

    def bytes(self) -> int:
        return self.weight.bytes()


AnyProduct = Product | TrellisProduct
Make = Callable[[int, int], AnyProduct]


@dataclass(frozen=True)
class Case:
    """A product to measure: how it is made, how its input is coded (bits, or ``None``)."""

    name: str
    make: Make
    coded: int | None = None
    prompt: bool = True


def codes_of(out: int, columns: int, levels: int) -> Tensor:
    return torch.randint(0, levels, (out, columns), dtype=torch.uint8)


def affine(bits: int, way: Way, group: int = 128) -> Make:
    def make(out: int, columns: int) -> Product:
        codes, groups = codes_of(out, columns, 1 << bits), -(-columns // group)
        scale = torch.rand(out, groups).half()
        weight = prepared.native_codes(codes, bits, min(group, 128), max(group // 128, 1), scale, None, 1 << (bits - 1))
        levels = torch.arange(1 << bits).to(torch.bfloat16) if way == Way.BF16 else None
        return Product(way, weight, levels=levels)

    return make


def channel(bits: int, way: Way) -> Make:
    """One scale for a row: what coded activations with a scale for every token go with."""

    def make(out: int, columns: int) -> Product:
        levels = 3 if way in (Way.PAIRS, Way.TRIPLES) else 1 << bits
        codes = codes_of(out, columns, levels)
        if way == Way.TRIPLES:
            return Product(way, prepared.triples_weight(codes, torch.rand(out, 1).half()))
        blocks = -(-columns // 128)
        plain = prepared.native_codes(codes, bits, 128, blocks, torch.rand(out, 1).half(), None, 1 << (bits - 1))
        if way == Way.BITS:
            sums = prepared.code_sums(codes, 1, blocks * 128)
            return Product(way, replace(plain, codes=prepared.bit_planes(codes, bits, 128)), levels=sums)
        if way == Way.SUMS:
            return Product(way, replace(plain, codes=prepared.sum_nibbles(codes, bits, 128)))
        if way == Way.PAIRS:
            return Product(way, replace(plain, codes=prepared.pair_nibbles(codes, 128)))
        if way == Way.PRODUCTS:
            return Product(way, plain, levels=products.table_of(torch.arange(4), torch.arange(4) - 2))
        if way == Way.NIBBLES:
            sums = tiled((codes.int() - 8).sum(1, keepdim=True, dtype=torch.int32))
            made = replace(plain, codes=pack_codes(codes ^ 8, 4, 128), constant_zero=0)
            return Product(way, made, levels=sums)
        if way == Way.TWO_LEVEL:
            parameters = torch.randint(1, 16, (2, -(-out // 16), blocks, 16), dtype=torch.uint8)
            return Product(way, plain, levels=parameters)
        return Product(way, plain)

    return make


def uneven(out: int, columns: int) -> Product:
    """2-bit weights and inputs with levels of two bytes."""
    made = channel(2, Way.PRODUCTS)(out, columns)
    table = products.table_of(torch.tensor([-5, -1, 2, 7]), torch.tensor([-30, -3, 4, 40]))
    return replace(made, levels=table)


def promoted(out: int, columns: int) -> Product:
    """Groups of 64 with 2 bits, an eighth of them with 4."""
    made, count = affine(2, Way.INT8, 64)(out, columns), columns // 512
    chosen = prepared.native_codes(codes_of(out, count * 64, 4), 2, 64, 1, torch.rand(out, count).half())
    which = torch.rand(out, columns // 64).topk(count, dim=1).indices.sort(dim=1).values.to(torch.int32)
    return replace(made, terms=Terms(chosen=chosen, which=tiled(which)))


def table(text: str, way: Way) -> Make:
    def make(out: int, columns: int) -> Product:
        fmt = parse(text)
        block, per_scale = native.geometry(fmt, (out, columns))  # type: ignore[misc]
        levels, bits = fmt.grid.levels(), fmt.grid.bits
        groups = -(-columns // (int(block) * int(per_scale)))
        weight = prepared.native_codes(
            codes_of(out, columns, levels.numel()), bits, int(block), int(per_scale), torch.rand(out, groups).half()
        )
        padded = native.padded(levels, 1 << bits)
        if way == Way.LOOKUP:
            return Product(way, weight, prepared.shared_tables(levels))
        if way == Way.BF16:
            return Product(way, weight, levels=padded.to(torch.bfloat16))
        return Product(way, replace(weight, levels=TABLE, table=padded))

    return make


def learned(way: Way) -> Make:
    """A codebook of 16 levels for every row."""

    def make(out: int, columns: int) -> Product:
        codes, book = codes_of(out, columns, 16), torch.randn(out, 1, 16)
        blocks = -(-columns // 128)
        if way == Way.LOOKUP:
            tables, step = prepared.row_tables(book)
            weight = prepared.native_codes(prepared.by_rows(codes, 128), 4, 128, blocks, step)
            return Product(way, replace(weight, shape=(out, columns)), tables)
        weight = prepared.native_codes(codes, 4, 128, blocks, torch.ones(out, 1))
        return Product(way, replace(weight, levels=ROW_TABLE, table=tiled(book)))

    return make


def trellis_of(text: str, exact: bool) -> Make:
    """A trellis with one scale for every row."""

    def make(out: int, columns: int) -> TrellisProduct:
        grid = parse(text).grid
        assert isinstance(grid, TrellisGrid)
        packed = trellis.pack(codes_of(out, columns, 1 << grid.bits), grid.span, grid.bits, grid.state_bits)
        code = trellis.ONE_MAD if grid.code == "1mad" else trellis.THREE_INST
        weight = trellis.TrellisWeight(
            packed, tiled(torch.rand(out, 1)), (out, columns), grid.span, grid.bits, grid.state_bits, code,
            columns // grid.span, 0.0,
        )  # fmt: skip
        return TrellisProduct(weight, exact)

    return make


def points(bits: int, way: Way) -> Make:
    """Points of E8P with one scale for a row."""

    def make(out: int, columns: int) -> Product:
        words = torch.randint(0, 256, (-(-out // 16) * -(-columns // 128) * 16 * 16 * bits,), dtype=torch.uint8)
        weight = NativeWeight(
            words, tiled(torch.rand(out, 1).half()), None, None, (out, columns), bits, 128, -(-columns // 128),
            constant_zero=vectors.lattice_zero(bits),
        )  # fmt: skip
        return Product(way, weight, points=vectors.lattice_tables(bits))

    return make


def entries(books: int, index_bytes: int) -> Make:
    """Sums of entries of codebooks of 8 weights with one scale for a row."""

    def make(out: int, columns: int) -> Product:
        codes = torch.randint(0, 256, (out, columns // 8 * books * index_bytes), dtype=torch.uint8)
        book = torch.randn(books, 1 << 8 * index_bytes, 8).half()
        weight = AdditiveWeight(codes, torch.rand(out, 1), book, (out, columns), index_bytes, columns)
        return Product(Way.ADDITIVE, weight)

    return make


def ternary(out: int, columns: int) -> Product:
    return Product(Way.TERNARY, prepared.ternary_weight(codes_of(out, columns, 3), torch.rand(out, 1).half()))


def with_terms(out: int, columns: int) -> Product:
    """int4 g128 with 0.5 % single weights and factors of rank 32."""
    made = affine(4, Way.INT8)(out, columns)
    assert isinstance(made, Product)
    each = columns // 200
    starts = torch.arange(out + 1, dtype=torch.int32) * each
    places = torch.randint(0, columns, (out * each,), dtype=torch.int32)
    left, right = tiled(torch.randn(out, 32)), torch.randn(32, columns)
    return replace(made, terms=Terms(starts, places, torch.randn(out * each), left, right))


COUNTED = (
    (1, 1),
    (1, 2),
    (1, 3),
    (1, 4),
    (1, 8),
    (2, 1),
    (2, 2),
    (2, 3),
    (2, 4),
    (3, 1),
    (3, 2),
    (3, 3),
    (4, 1),
    (4, 4),
)
"""Bits of weight and activation of the bit-serial products; their rivals depend on the weight alone."""

CASES = (
    Case("int4 g128 int8", affine(4, Way.INT8)),
    Case("int4 g128 bf16", affine(4, Way.BF16)),
    Case("int4 g128 fp32", affine(4, Way.EXACT), prompt=False),
    Case("int4 g128 + sparse 0.5 % + rank 32", with_terms),
    Case("nf4 b64 lookup", table("nf4 b64", Way.LOOKUP)),
    Case("nf4 b64 bf16", table("nf4 b64", Way.BF16)),
    Case("nf4 b64 fp32", table("nf4 b64", Way.EXACT), prompt=False),
    Case("mxfp4 lookup", table("mxfp4", Way.LOOKUP)),
    Case("mxfp4 bf16", table("mxfp4", Way.BF16)),
    Case("nvfp4 lookup", table("nvfp4", Way.LOOKUP)),
    Case("lut4 channel lookup", learned(Way.LOOKUP)),
    Case("lut4 channel fp32", learned(Way.EXACT), prompt=False),
    Case("e4m3 channel bf16", table("e4m3 channel", Way.BF16)),
    Case("e4m3 channel fp32", table("e4m3 channel", Way.EXACT), prompt=False),
    Case("mxfp6 bf16", table("mxfp6_e3m2", Way.BF16)),
    Case("e8p int8", points(2, Way.LATTICE)),
    Case("e8p fp32", points(2, Way.LATTICE_EXACT)),
    Case("e8p3 int8", points(3, Way.LATTICE)),
    Case("e8p4 int8", points(4, Way.LATTICE)),
    Case("vq2x8d8 fp32", entries(2, 1)),
    Case("vq1x16d8 fp32", entries(1, 2)),
    Case("ternary base 3", ternary),
    Case("ternary 2 bits", channel(2, Way.INT8)),
    Case("ternary TL1", channel(2, Way.PAIRS)),
    Case("ternary TL2", channel(2, Way.TRIPLES)),
    Case("w2a2 products", channel(2, Way.PRODUCTS), 2),
    Case("w2a2 products of two bytes", uneven, 2),
    Case("2 bits g64", affine(2, Way.INT8, 64)),
    Case("2 bits g64, an eighth with 4", promoted),
    Case("trellis2 int8", trellis_of("trellis2", False)),
    Case("trellis2 fp32", trellis_of("trellis2", True)),
    Case("trellis2 3inst fp32", trellis_of("trellis2-3inst", True)),
    Case("trellis3 int8", trellis_of("trellis3", False)),
    Case("w8a8", channel(8, Way.INT8), 8),
    Case("w4a8", channel(4, Way.INT8), 8),
    Case("w4a8 upper halves", channel(4, Way.NIBBLES), 8),
    Case("w4a8 g128", affine(4, Way.INT8), 8),
    Case("w4a8 g128 two levels", channel(4, Way.TWO_LEVEL), 8),
    Case("w4a4 g128", affine(4, Way.INT8), 4),
    Case("w4a4 g128, an eighth of inputs with 8", affine(4, Way.MIXED), 4),
    *(Case(f"w{bits} int8", channel(bits, Way.INT8)) for bits in (1, 2, 3, 4)),
    *(Case(f"w{bits} sums", channel(bits, Way.SUMS)) for bits in (1, 2, 3, 4)),
    *(Case(f"w{bits}a{bits} int8", channel(bits, Way.INT8), bits) for bits in (1, 2, 3, 4)),
    *(Case(f"w{p}a{q} bits", channel(p, Way.BITS), q) for p, q in COUNTED),
)


def rotated(made: AnyProduct, arena: Arena) -> list[AnyProduct]:
    """Copies of a product whose codes fill more memory than caches hold."""
    codes = made.weight.codes
    copies: list[AnyProduct] = []
    for _ in range(max(2, -(-ROTATED // codes.nbytes))):
        place = arena.take(codes.nbytes).view(codes.dtype)
        place.copy_(codes.view(-1))
        weight = replace(made.weight, codes=place.view(codes.shape))
        copies.append(replace(made, weight=weight))  # type: ignore[arg-type]
    return copies


def coding_of(case: Case, columns: int) -> Coding | None:
    if case.coded is None:
        return None
    low, high = (-(1 << (case.coded - 1)), (1 << (case.coded - 1)) - 1) if case.coded > 1 else (0, 1)
    wide = columns - columns // 1024 * 128 if "eighth of inputs" in case.name else -1
    return Coding(columns, low, high, max((high - low) / 2, 1.0), wide=wide)


def probe(memory: Tensor) -> float:
    """GB/s of a sum over memory that no cache holds."""
    start = time.perf_counter()
    memory.sum()
    return memory.nbytes / (time.perf_counter() - start) / 1e9


def trellis_once(made: TrellisProduct, x: Tensor, kernels: Library) -> None:
    y = torch.empty(len(x), made.weight.shape[0])
    kernels.trellis_linear(
        made.weight.handle(), span(x), 0, len(x), span(y), (0, 0), made.exact, torch.get_num_threads()
    )


def once(
    products: list[AnyProduct], x: Tensor, coding: Coding | None, calls: int, instruction_set: str | None
) -> tuple[float, float]:
    """Microseconds of a call, the mean over `calls` of them: by the clock, and of all processors' time."""
    kernels = require_library(instruction_set)
    numbers = coding.numbers() if coding is not None else []
    start, busy = time.perf_counter(), time.process_time()
    for index in range(calls):
        made = products[index % len(products)]
        if isinstance(made, TrellisProduct):
            trellis_once(made, x, kernels)
            continue
        y, arguments = call(x, made.parts(), None, made.geometry(), [made.step(), *numbers])
        kernels.product(*arguments, torch.get_num_threads())
        del y
    return (time.perf_counter() - start) / calls * 1e6, (time.process_time() - busy) / calls * 1e6


def measure(
    case: Case, shape: tuple[int, int], turns: int, memory: Tensor, instruction_set: str | None
) -> list[dict[str, object]]:
    out, columns = shape
    made = case.make(out, columns)
    size = made.bytes()
    copies = rotated(made, Arena())
    coding = coding_of(case, columns)
    found: list[dict[str, object]] = []
    for rows in (1, 128) if case.prompt else (1,):
        x = torch.randn(rows, columns)
        times: dict[int, list[tuple[float, float]]] = {1: [], 2: []}
        speeds: dict[int, list[float]] = {1: [], 2: []}
        for _ in range(turns if rows == 1 else max(turns // 2, 1)):
            for threads in (1, 2):
                torch.set_num_threads(threads)
                speeds[threads].append(probe(memory))
                times[threads].append(once(copies, x, coding, len(copies) if rows == 1 else 1, instruction_set))
        for threads in (1, 2):
            clock, busy = zip(*times[threads], strict=True)
            median, best = statistics.median(clock), min(clock)
            found.append({
                "case": case.name, "out": out, "in": columns, "rows": rows, "threads": threads, "bytes": size,
                "median_us": round(median, 1), "best_us": round(best, 1),
                "median_cpu_us": round(statistics.median(busy), 1), "best_cpu_us": round(min(busy), 1),
                "median_gb_s": round(size / median / 1e3, 2), "best_gb_s": round(size / best / 1e3, 2),
                "median_gop_s": round(2 * rows * out * columns / median / 1e3, 1),
                "probe_gb_s_median": round(statistics.median(speeds[threads]), 1),
                "probe_gb_s_best": round(max(speeds[threads]), 1),
            })  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/native_variants.json"))
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=330, help="stop after so long; what is measured is written")
    parser.add_argument("--only", default="", help="cases that hold this text")
    parser.add_argument("--instruction-set", default=None, help="by default the fastest of the machine")
    options = parser.parse_args()
    torch.manual_seed(0)
    memory = torch.ones(64 << 20)
    end = time.monotonic() + options.seconds
    results: list[dict[str, object]] = []
    for shape in SHAPES:
        for case in CASES:
            known = "bf16" not in case.name or require_library(options.instruction_set).has_bf16
            if known and options.only in case.name and time.monotonic() < end:
                rows = measure(case, shape, options.turns, memory, options.instruction_set)
                results += rows
                for row in rows:
                    print(json.dumps(row), flush=True)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    machine = {
        "processor": platform.processor() or platform.machine(),
        "instruction_set": require_library(options.instruction_set).name,
        "load": os.getloadavg(),
    }
    protocol = "alternating turns of a probe (sum over 256 MB of fp32) and the case, weights rotated over 200 MB"
    options.out.parent.mkdir(parents=True, exist_ok=True)
    text = {"commit": commit, "machine": machine, "protocol": protocol, "turns": options.turns, "results": results}
    options.out.write_text(json.dumps(text, indent=1) + "\n")


if __name__ == "__main__":
    main()
