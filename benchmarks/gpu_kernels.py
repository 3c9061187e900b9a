"""Speed of Triton's kernels on the graphics processor that is here, each beside a copy on the same device.

    python -m benchmarks.gpu_kernels --rounds 20

Every round times the copy, each kernel and what torch offers for the same work, in turn, so that all of them meet the
same clocks; medians over the rounds are printed and written to ``benchmarks/results/gpu_kernels.json``, with the device
and the versions. ``bytes_per_second`` counts what has to be read and written once: codes, scales, inputs and results.
``copy_share`` is that over the copy's bytes per second (a copy reads and writes, and both are counted). Weights are
rotated over more memory than the cache of the device holds. Calls are replayed from a graph, so that the time is the
device's and not Python's; what cannot be recorded says ``graph: false``. Without a graphics processor it says so and
writes nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from bitwright.formats import QuantizedTensor, parse
from bitwright.runtime.dispatch import Kernel
from bitwright.runtime.kernels.attention import triton as attention_triton
from bitwright.runtime.kernels.hadamard import triton as hadamard_triton
from bitwright.runtime.kernels.linear import triton as linear_triton
from bitwright.runtime.kernels.linear import triton_scaled as linear_triton_scaled
from bitwright.runtime.kernels.table import REFERENCE
from bitwright.runtime.kernels.triton.available import missing
from bitwright.runtime.kernels.triton.coded_input import unserved_by
from bitwright.runtime.manifest import CacheSide
from bitwright.runtime.states import StateCoder, States
from bitwright.runtime.weight import PackedWeight

RESULTS = Path(__file__).parent / "results" / "gpu_kernels.json"
SHAPE = (8192, 8192)
FORMATS = (
    "int4 g128 sym", "int4 g128 asym", "int3 g128 asym", "int2 g64 asym", "int8 channel", "nf4 b64", "mxfp4", "nvfp4",
    "e4m3 channel",
)  # fmt: skip
PAIRS = (("e4m3 channel", "e4m3 token dynamic"), ("mxfp4", "mxfp4 dynamic"), ("nvfp4", "nvfp4 dynamic"))
CACHES = (
    ("int8 token", "int8 token"),
    ("int4 g32 axis=0 asym", "int4 g64 asym"),
    ("int2 g32 axis=0 asym", "int2 g32 asym"),
)


@dataclass(frozen=True)
class Work:
    """One thing to time: calls in turn (so that no cache holds their data), bytes of one call, operations of one."""

    name: str
    calls: tuple[Callable[[], object], ...]
    bytes: int
    operations: int = 0


def main() -> int:
    """Time everything and write the results."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=20)
    options.add_argument("--tokens", type=int, nargs="+", default=[1, 4, 8, 16, 64, 256, 2048])
    options.add_argument("--cache", type=int, default=32768, help="tokens in the key-value cache")
    chosen = options.parse_args()
    reason = missing() or (None if torch.cuda.is_available() else "there is no graphics processor here")
    if reason is not None:
        print(f"nothing is measured: {reason}", file=sys.stderr)
        return 0
    torch.manual_seed(0)
    works = [copy(), *linears(chosen.tokens), *scaled(chosen.tokens), *hadamards(), *attentions(chosen.cache)]
    rows = measure(works, chosen.rounds)
    found = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton_version(),
        "rows": rows,
    }
    RESULTS.write_text(json.dumps({"format_version": 1, "rounds": chosen.rounds, **found}, indent=1) + "\n")
    for row in rows:
        print(f"{row['name']:60} {row['microseconds']:10.1f} us {row['copy_share']:6.2f} of a copy")
    return 0


def triton_version() -> str:
    """The installed version."""
    import triton

    return str(triton.__version__)


def measure(works: list[Work], rounds: int) -> list[dict[str, object]]:
    """Time all works in turn, ``rounds`` times; the first of ``works`` is the copy that the others are set beside."""
    times: dict[str, list[float]] = {work.name: [] for work in works}
    graphs = {work.name: recorded(work) for work in works}
    for _ in range(rounds):
        for work in works:
            times[work.name].append(timed(work, graphs[work.name]))
    speed = works[0].bytes / statistics.median(times[works[0].name])
    return [
        {
            **row(work, statistics.median(times[work.name]), min(times[work.name]), speed),
            "graph": bool(graphs[work.name]),
        }
        for work in works
    ]


def recorded(work: Work) -> torch.cuda.CUDAGraph | None:
    """All calls as a graph (after they have been compiled), or ``None`` where one of them waits for the device."""
    for _ in range(2):
        for call in work.calls:
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            for call in work.calls:
                call()
    except RuntimeError as error:
        print(f"{work.name}: timed without a graph ({error!s:.80})", file=sys.stderr)
        torch.cuda.synchronize()
        return None
    return graph


def timed(work: Work, graph: torch.cuda.CUDAGraph | None) -> float:
    """Seconds of one call, over all calls of the work."""
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    if graph is not None:
        graph.replay()
    else:
        for call in work.calls:
            call()
    stop.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(stop)) / 1e3 / len(work.calls)


def row(work: Work, median: float, best: float, copy_speed: float) -> dict[str, object]:
    """What is written of one work."""
    return {
        "name": work.name,
        "microseconds": median * 1e6,
        "best_microseconds": best * 1e6,
        "bytes": work.bytes,
        "bytes_per_second": work.bytes / median,
        "copy_share": work.bytes / median / copy_speed,
        "operations_per_second": work.operations / median,
    }


def copy() -> Work:
    """A copy of one gigabyte: what the device's memory gives."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return Work("copy", (lambda: target.copy_(source),), 2 * source.nbytes)


def copies_of(size: int) -> int:
    """How many copies of a weight of that many bytes are more than the device's cache, four times over."""
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    return max(2, -(-4 * cache // size))


def packed(text: str) -> PackedWeight:
    """A random weight on the device."""
    tensors, meta = QuantizedTensor((parse(text).quantize(torch.randn(SHAPE, device="cuda")),)).to_tensors()
    return PackedWeight(tensors, meta, SHAPE, "", text)


def linears(tokens: list[int]) -> list[Work]:
    """Products with coded weights, and torch's product with a float weight of the same shape."""
    works = []
    dense = [torch.randn(SHAPE, device="cuda", dtype=torch.bfloat16) for _ in range(copies_of(SHAPE[0] * SHAPE[1]))]
    coded = {text: prepared_copies(packed(text)) for text in FORMATS}
    for count in tokens:
        x = torch.randn(count, SHAPE[1], device="cuda", dtype=torch.bfloat16)
        moved, operations = 2 * count * sum(SHAPE), 2 * count * SHAPE[0] * SHAPE[1]
        calls = tuple(lambda w=w, x=x: torch.nn.functional.linear(x, w) for w in dense)
        works.append(Work(f"torch bf16, {count} tokens", calls, dense[0].nbytes + moved, operations))
        for text, copies in coded.items():
            works.append(work_of(linear_triton.KERNEL, f"{text}, {count} tokens", x, copies, moved, operations))
    return works


def prepared_copies(weight: PackedWeight) -> list:
    """The weight in tiles, as often as the cache of the device needs it."""
    return [linear_triton.KERNEL.prepare(weight, torch.bfloat16) for _ in range(copies_of(weight.bytes()))]


def work_of(kernel: Kernel, name: str, x: torch.Tensor, prepared: list, moved: int, operations: int) -> Work:
    """The calls of a linear kernel on copies of one weight."""
    calls = tuple(lambda p=p: kernel.run(x, p, None, None) for p in prepared)
    return Work(f"{kernel.name} {name}", calls, prepared[0].bytes() + moved, operations)


def scaled(tokens: list[int]) -> list[Work]:
    """Products of codes with codes, where the processor has them; the coding of the input is part of the time."""
    from bitwright.runtime.activation import ActivationQuantizer

    works = []
    for text, given in PAIRS:
        if unserved_by(torch.cuda.get_device_capability(), text, given) is not None:
            continue
        prepared, quantizer = (
            linear_triton_scaled.prepare(packed(text), torch.bfloat16),
            ActivationQuantizer(parse(given)),
        )
        for count in tokens:
            if count < linear_triton_scaled.FEWEST_TOKENS:
                continue
            x = torch.randn(count, SHAPE[1], device="cuda", dtype=torch.bfloat16)
            size = prepared.codes.nbytes + prepared.scale.nbytes + 2 * count * sum(SHAPE)
            call = (lambda x=x, p=prepared, q=quantizer: linear_triton_scaled.run(x, p, None, q),)
            works.append(
                Work(f"linear/triton-scaled {text}, {count} tokens", call, size, 2 * count * SHAPE[0] * SHAPE[1])
            )
    return works


def hadamards() -> list[Work]:
    """The transform of 8192 tokens, ours and by torch's products."""
    works = []
    for size in (128, 4096, 14336):
        x = torch.randn(8192, size, device="cuda", dtype=torch.bfloat16)
        reference = next(kernel for kernel in REFERENCE.kernels if kernel.name == "hadamard/reference")
        for kernel in (hadamard_triton.KERNEL, reference):
            call = (lambda x=x, size=size, kernel=kernel: kernel.run(x, size, 0, False),)
            works.append(Work(f"{kernel.name} {size}", call, 2 * x.nbytes))
    return works


def attentions(tokens: int) -> list[Work]:
    """One query of 32 heads on 8 key heads of 128 channels, and torch's attention over the float cache."""
    q = torch.randn(1, 32, 1, 128, device="cuda", dtype=torch.bfloat16)
    x = [torch.randn(1, 8, tokens, 128, device="cuda", dtype=torch.bfloat16) for _ in range(2)]
    attention = torch.nn.functional.scaled_dot_product_attention
    works = [Work("torch attention bf16", (lambda: attention(q, *x, enable_gqa=True),), x[0].nbytes + x[1].nbytes)]
    for formats in CACHES:
        sides = [States(StateCoder(CacheSide(parse(text)), REFERENCE), 0) for text in formats]
        for side, values in zip(sides, x, strict=True):
            side.append(values)
        call = (lambda sides=sides: attention_triton.run(q, sides[0], sides[1]),)
        works.append(Work(f"attention/triton {' and '.join(formats)}", call, sides[0].bytes() + sides[1].bytes()))
    return works


if __name__ == "__main__":
    sys.exit(main())
