"""Time the compiled loops of quantizing beside torch, the peers and the machine's bandwidth, in alternation.

    python -m benchmarks.native_solvers --work DIR --envs DIR

Second-order rounding of one 2048 x 8192 layer to int4 g128 in natural order: Bitwright's compiled sweep, its sweep on
torch, and each peer's own functions in the peer's interpreter (`ENVS/gptqmodel`, `ENVS/llm_compressor`; one that is not
there is left out). `factor` is what is made of the Hessian, `sweep` the rest. Then Hadamard transforms, packing and
unpacking in bytes read plus written per second, beside a copy of as many bytes and a read in the same minute; the
`fresh` ones make the memory of their result too, as `clone` does beside `copy`. A round runs everything once; medians
and the best of all rounds are written. Last, in seconds beside torch's form of the same: second moments of tokens, a
weight rounded to nearest, activations rounded by token. Rounds stop early, so that all of it ends within the limit.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from bitwright.formats import nearest, pack, parse, unpack
from bitwright.formats.packing import _pack_by_words, _unpack_by_words
from bitwright.native import chosen, factor, hadamard, moments
from bitwright.native.bits import pack_bits, unpack_bits
from bitwright.stages.bound import BoundQuantizer
from bitwright.stages.quantizer import WeightContext
from bitwright.stages.ranges import MinMax
from bitwright.stages.rounding import sweep as rounding
from bitwright.stages.rounding.second_order import feedback_factor
from bitwright.stages.transforms.hadamard import _multiply, apply_hadamard
from bitwright.statistics.hessian import HessianCollector

HERE = Path(__file__).resolve().parent
TABLE = HERE / "results" / "native_solvers.json"
OUT, IN, FORMAT = 2048, 8192, "int4 g128"
BYTES = 1 << 27
"""Of one buffer of the bandwidth probe and, about, of the transforms and streams."""

Times = dict[str, float]


def problem(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """A random weight and a Hessian with strong directions; written once."""
    if not path.exists():
        random = torch.Generator().manual_seed(0)
        x = torch.randn(1024, IN, generator=random) * torch.exp(0.5 * torch.randn(IN, generator=random))
        x += torch.randn(1024, 16, generator=random) @ torch.randn(16, IN, generator=random)
        h = x.t() @ x / len(x)
        h.diagonal().add_(0.05 * h.diagonal().mean())
        save_file({"w": torch.randn(OUT, IN, generator=random) * 0.02, "h": h}, path)
    tensors = load_file(path)
    return tensors["w"], tensors["h"]


def solve(w: torch.Tensor, h: torch.Tensor, compiled: bool) -> Times:
    """One solve of ours."""
    bound = BoundQuantizer(parse(FORMAT), MinMax(), w)
    with only_torch(not compiled):
        start = time.perf_counter()
        found = feedback_factor(h, 0.01, WeightContext())
        middle = time.perf_counter()
        rounding.sweep(w, bound, torch.arange(w.shape[1]), found)
        _ = bound.codes
        end = time.perf_counter()
    return {"seconds": end - start, "factor": middle - start, "sweep": end - middle}


@contextlib.contextmanager
def only_torch(wanted: bool) -> Iterator[None]:
    """Solving, moments and rounding to nearest on torch, as where nothing is compiled."""
    kept = rounding.serves, factor.serving, moments.serving, nearest.rounder
    if wanted:
        rounding.serves = lambda w, bound: False
        factor.serving = moments.serving = lambda h: None
        nearest.rounder = lambda fmt, x, layout: None
    try:
        yield
    finally:
        rounding.serves, factor.serving, moments.serving, nearest.rounder = kept


class Peer:
    """A tool's process that solves when it is asked to."""

    def __init__(self, tool: str, python: Path, file: Path, threads: int) -> None:
        command = [python, HERE / "peers" / "solve_layer.py", "--tool", tool, "--file", file, "--threads", str(threads)]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        self._process = subprocess.Popen(
            list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True, env=environment,
        )  # fmt: skip
        self.facts = self._answer()

    def solve(self) -> Times:
        """One solve of the tool."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        times = self._answer()
        return {**times, "sweep": times["seconds"] - times["factor"]}

    def end(self) -> None:
        """Let the process go."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> dict[str, Any]:
        """The next line of JSON; tools print other lines too."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                found: dict[str, Any] = json.loads(line)
                return found
        raise RuntimeError("the peer's process ended")


def streams(size: int = BYTES) -> dict[str, tuple[int, Callable[[], object]]]:
    """What is measured in bytes per second: the bytes that are read and written, and the call."""
    floats, target = torch.randn(size // 4), torch.empty(size // 4)
    codes = torch.randint(0, 256, (1024, size // 1024), dtype=torch.uint8)
    measured: dict[str, tuple[int, Callable[[], object]]] = {
        "copy": (2 * size, lambda: target.copy_(floats)),
        "clone": (2 * size, floats.clone),
        "read": (size, floats.sum),
    }
    for dtype in (torch.float32, torch.bfloat16):
        x = floats.view(-1, IN).to(dtype)
        y = torch.empty_like(x)
        name = str(dtype).removeprefix("torch.")
        for block in (128, IN):
            measured[f"hadamard {block} {name}"] = (
                2 * x.nbytes,
                partial(hadamard.run, x, block, None, None, False, out=y),
            )
        measured[f"fresh hadamard {IN} {name}"] = (2 * x.nbytes, partial(apply_hadamard, x, IN))
    x = floats.view(-1, IN)
    measured[f"torch hadamard {IN} float32"] = (2 * x.nbytes, partial(_multiply, x, IN, 1, False))
    for bits in range(1, 8):
        plain = codes >> (8 - bits)
        packed, target_codes = pack(plain, bits), torch.empty_like(plain)
        moved, n = plain.nbytes + packed.nbytes, plain.shape[1]
        measured[f"pack {bits}"] = (moved, partial(pack_bits, plain, bits, out=torch.empty_like(packed)))
        measured[f"unpack {bits}"] = (moved, partial(unpack_bits, packed, bits, n, out=target_codes))
        if bits in (3, 4):
            measured[f"fresh pack {bits}"] = (moved, partial(pack, plain, bits))
            measured[f"fresh unpack {bits}"] = (moved, partial(unpack, packed, bits, n))
            measured[f"torch pack {bits}"] = (moved, partial(_pack_by_words, plain, bits))
            measured[f"torch unpack {bits}"] = (moved, partial(_unpack_by_words, packed, bits, n))
    return measured


def loops() -> dict[str, Callable[[], object]]:
    """What is measured in seconds beside the same on torch."""
    tokens, weight = torch.randn(2048, 4096), torch.randn(4096, 4096)
    activations = torch.randn(512, 4096)
    sums = HessianCollector(4096)
    return {
        "moments 2048 x 4096 float32": partial(sums.update, tokens),
        "moments 2048 x 4096 bfloat16": partial(sums.update, tokens.bfloat16()),
        "nearest 4096 x 4096 int4 g128": partial(parse("int4 g128").quantize, weight),
        "nearest 4096 x 4096 int4 g128 asym": partial(parse("int4 g128 asym").quantize, weight),
        "nearest 4096 x 4096 nf4 b64": partial(parse("nf4 b64").quantize, weight),
        "activations 512 x 4096 int8 token float32": partial(parse("int8 token dynamic").fake_quantize, activations),
        "activations 512 x 4096 int8 token bfloat16": partial(
            parse("int8 token dynamic").fake_quantize, activations.bfloat16()
        ),
    }


def time_loops(calls: dict[str, Callable[[], object]], found: dict[str, list[Times]]) -> None:
    """Each of them three times compiled and on torch, in alternation."""
    for name, call in calls.items():
        for _ in range(3):
            for kind in ("compiled", "torch"):
                with only_torch(kind == "torch"):
                    begin = time.perf_counter()
                    call()
                    found.setdefault(f"{kind} {name}", []).append({"seconds": time.perf_counter() - begin})


def rounds(options: argparse.Namespace) -> dict[str, list[Times]]:
    """Every round runs everything once, until the time is up."""
    began = time.monotonic()
    file = options.work / f"layer_{OUT}_{IN}.safetensors"
    w, h = problem(file)
    peers = {}
    for tool in ("llm_compressor", "gptqmodel"):
        python = options.envs / tool / "bin" / "python" if options.envs else Path("none")
        if python.exists():
            peers[tool] = Peer(tool, python, file, options.threads)
    measured, calls = streams(), loops()
    found: dict[str, list[Times]] = {}
    longest = 0.0
    for _ in range(options.rounds):
        start = time.monotonic()
        if start - began + 1.1 * longest > options.limit:
            break
        found.setdefault("compiled", []).append(solve(w, h, True))
        found.setdefault("torch", []).append(solve(w, h, False))
        for tool, peer in peers.items():
            found.setdefault(tool, []).append(peer.solve())
        for name, (moved, call) in measured.items():
            for _ in range(3):
                begin = time.perf_counter()
                call()
                found.setdefault(name, []).append({"bytes_per_second": moved / (time.perf_counter() - begin)})
        time_loops(calls, found)
        longest = max(longest, time.monotonic() - start)
        print(json.dumps({name: times[-1] for name, times in found.items()}), file=sys.stderr, flush=True)
    for peer in peers.values():
        peer.end()
    return found


def summary(runs: list[Times]) -> dict[str, Any]:
    """Median and best of each quantity; the best time is the smallest, the best rate the largest."""
    table: dict[str, Any] = {"runs": len(runs)}
    for key in runs[0]:
        values = [run[key] for run in runs]
        best = max(values) if key == "bytes_per_second" else min(values)
        table[key] = {"median": statistics.median(values), "best": best}
    return table


def ratios(table: dict[str, dict[str, Any]]) -> dict[str, float]:
    """The peers' and torch's times over ours, and rates as shares of the copy's, by medians."""
    found = {}
    for name in ("torch", "llm_compressor", "gptqmodel"):
        for part in ("seconds", "sweep"):
            if name in table:
                found[f"{name} {part} / compiled"] = table[name][part]["median"] / table["compiled"][part]["median"]
    for name, row in table.items():
        if name.startswith("compiled "):
            other = "torch" + name.removeprefix("compiled")
            found[f"{other} / compiled"] = table[other]["seconds"]["median"] / row["seconds"]["median"]
    copy = table["copy"]["bytes_per_second"]
    for name, row in table.items():
        if "bytes_per_second" in row and name != "copy":
            found[f"{name} / copy"] = row["bytes_per_second"]["median"] / copy["median"]
    return {name: round(value, 3) for name, value in found.items()}


def main() -> None:
    """Parse arguments, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--envs", type=Path, help="folder with an environment for each peer")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--limit", type=float, default=330, help="seconds after which no further round begins")
    parser.add_argument("--note", default="", help="words about the state of the machine")
    parser.add_argument("--out", type=Path, default=TABLE)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    load = os.getloadavg()[0]
    with torch.inference_mode():
        table = {name: summary(runs) for name, runs in rounds(options).items()}
    commit = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True).stdout.strip()
    facts = {
        "date": datetime.date.today().isoformat(), "commit": commit, "threads": options.threads,
        "machine": f"{platform.machine()}, {os.cpu_count()} processors, torch {torch.__version__}, "
                   f"{torch.backends.cpu.get_cpu_capability()}, kernels {chosen()}",
        "load_before": load, "load_after": os.getloadavg()[0], "note": options.note,
        "protocol": f"{OUT} x {IN}, {FORMAT}, natural order, damping 0.01; everything once a round, in one process "
                    "but for the peers; times in seconds, rates in bytes read and written per second",
    }  # fmt: skip
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({**facts, "ratios": ratios(table), "rows": table}, indent=1) + "\n")
    print(json.dumps(ratios(table), indent=1))


if __name__ == "__main__":
    main()
