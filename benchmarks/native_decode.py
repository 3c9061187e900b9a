"""Decoding and prompts of a whole 1 B-parameter Llama shape, beside llama.cpp in the same run.

    python -m benchmarks.native_decode --llama-bench BIN/llama-bench --llama-quantize BIN/llama-quantize --models DIR

Both sides run the same shape (hidden 2048, MLP 8192, 16 layers, 32/8 heads, vocabulary 32,000, tied head) on random
weights, one after the other, several rounds for every case; medians and bests are written, with the machine's read
bandwidth measured between them. Our weights are random codes in the kernels' layout; llama.cpp's files are made once
from a random fp16 file. A case that is in the results is not run again (``--again`` runs all). Without llama.cpp's
programs only our side runs. ``--busy`` adds the same with busy loops beside: two of low priority, two and four of
normal priority.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bitwright.machine import processor
from bitwright.native import extension, require_library
from bitwright.native.arena import Arena
from bitwright.native.buffers import span
from bitwright.native.linear import NativeWeight
from bitwright.native.probe import read_speed

HIDDEN, INNER, LAYERS, HEADS, KEY_HEADS, VOCABULARY, CONTEXT = 2048, 8192, 16, 32, 8, 32000, 4096
HEAD = HIDDEN // HEADS
PROMPT, NEW = 128, 24


@dataclass(frozen=True)
class Case:
    """One of our formats: bits, inputs of a scale, zero point; and llama.cpp's types that it is compared with.

    0 bits: ternary digits, five in a byte, one scale for a row; the head is int4 g128 there, as llama.cpp's is longer.
    """

    name: str
    bits: int
    group: int
    zero: int
    others: tuple[str, ...]


CASES = (
    Case("int4 g128", 4, 128, 8, ("Q4_0",)),
    Case("int2 g128", 2, 128, 2, ("Q2_K",)),
    Case("int3 g128", 3, 128, 4, ("Q3_K_M",)),
    Case("ternary channel", 0, 0, 1, ("TQ2_0", "TQ1_0")),
    Case("int8 g128", 8, 128, 128, ("Q8_0",)),
)


class Network:
    """The shape with random weights of one format; the head is the embedding table."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.arena = Arena()
        self.kept: list[Any] = []
        self.bytes = 0
        self.handle = extension().Network(require_library(), HIDDEN, VOCABULARY, HEADS, KEY_HEADS, HEAD, CONTEXT)
        angle = torch.outer(torch.arange(CONTEXT), 10000.0 ** -(torch.arange(0, HEAD, 2) / HEAD))
        rotary = self.handle.rotary(CONTEXT, HEAD // 2, self._floats(angle.cos()), self._floats(angle.sin()), False)
        for _ in range(LAYERS):
            self._layer(rotary)
        head = self._matrix(VOCABULARY, HIDDEN)
        self.handle.finish(head, 1.0, self._norm(), head, 1.0, 0.0)

    def _layer(self, rotary: int) -> None:
        width = KEY_HEADS * HEAD
        qkv = [self._matrix(HIDDEN, HIDDEN), self._matrix(width, HIDDEN), self._matrix(width, HIDDEN)]
        output = self._matrix(HIDDEN, HIDDEN)
        feed = [self._matrix(INNER, HIDDEN), self._matrix(INNER, HIDDEN)]
        down = self._matrix(HIDDEN, INNER)
        whole = [self._norm(), -1, -1, rotary, 0, output, -1, self._norm(), 1, 1, down, -1]
        self.handle.layer(qkv, feed, [(0, 0), (1, 0), (2, 0), (0, 0), (1, 0)], whole, [HEAD**-0.5, 0.0, 1.0, 1.0])

    def _ternary(self, out: int, columns: int) -> int:
        codes = self.arena.take(out * -(-columns // 20) * 4)
        codes.random_(0, 256)
        scale = self.arena.take(out * 2).view(torch.float16)
        scale.fill_(0.02)
        self.kept += [codes, scale]
        self.bytes += codes.nbytes + scale.nbytes
        weight = extension().TernaryWeight(out, columns, span(codes), span(scale), 1, False)
        return int(self.handle.ternary(weight, (0, 0)))

    def _matrix(self, out: int, columns: int) -> int:
        case = self.case
        if case.bits == 0 and out != VOCABULARY:
            return self._ternary(out, columns)
        case = CASES[0] if case.bits == 0 else case
        size = int(extension().packed_bytes(out, columns, case.bits, 128))
        codes = self.arena.take(size)
        codes.view(torch.int64).random_(-(2**63), 2**63 - 1)
        per_scale = columns // 128 if case.group == 0 else case.group // 128
        groups = columns // 128 // per_scale
        scale = self.arena.take(out * groups * 2).view(torch.float16).view(out // 16, groups, 16)
        scale.fill_(0.02 / (1 << case.bits))
        weight = NativeWeight(
            codes, scale, None, None, (out, columns), case.bits, 128, per_scale, constant_zero=case.zero
        )
        self.kept += [codes, scale]
        self.bytes += weight.bytes()
        return int(self.handle.packed(weight.handle(), (0, 0), False))

    def _norm(self) -> int:
        return int(self.handle.norm(HIDDEN, self._floats(torch.ones(HIDDEN)), (0, 0), 1e-5, False))

    def _floats(self, tensor: torch.Tensor) -> tuple[int, int]:
        held = tensor.float().contiguous()
        self.kept.append(held)
        return span(held)

    def measure(self, threads: int, prompt: int = PROMPT) -> tuple[float, list[float]]:
        """Tokens per second of a prompt, and of every new token."""
        reader, logits = extension().Reader(self.handle, 0, [], [], [1.0, 1.0], 0), torch.empty(VOCABULARY)
        ids = torch.randint(0, VOCABULARY, (PROMPT,))
        reader.read(span(ids[:1]), span(logits), threads)
        reader.crop(0)
        start = time.perf_counter()
        reader.read(span(ids[:prompt]), span(logits), threads)
        read = prompt / (time.perf_counter() - start)
        speeds = []
        for _ in range(NEW):
            start = time.perf_counter()
            token = logits.argmax().reshape(1)
            reader.read(span(token), span(logits), threads)
            speeds.append(1 / (time.perf_counter() - start))
        return read, speeds


def write_gguf(path: Path) -> None:
    """The shape as a GGUF of random fp16 weights."""
    import gguf

    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HEAD)
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("no_vocab")
    writer.add_file_type(1)
    random = np.random.default_rng(0)

    def add(name: str, *shape: int) -> None:
        values = (random.standard_normal(shape, dtype=np.float32) * 0.02).astype(np.float16)
        writer.add_tensor(name, values)

    add("token_embd.weight", VOCABULARY, HIDDEN)
    writer.add_tensor("output_norm.weight", np.ones(HIDDEN, np.float32))
    width = KEY_HEADS * HEAD
    for layer in range(LAYERS):
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{norm}.weight", np.ones(HIDDEN, np.float32))
        for name, out, columns in (
            ("attn_q", HIDDEN, HIDDEN), ("attn_k", width, HIDDEN), ("attn_v", width, HIDDEN),
            ("attn_output", HIDDEN, HIDDEN), ("ffn_gate", INNER, HIDDEN), ("ffn_up", INNER, HIDDEN),
            ("ffn_down", HIDDEN, INNER),
        ):  # fmt: skip
            add(f"blk.{layer}.{name}.weight", out, columns)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def model_of(kind: str, options: argparse.Namespace) -> Path:
    """llama.cpp's file of one type, made where it is missing."""
    folder: Path = options.models
    folder.mkdir(parents=True, exist_ok=True)
    path, floats = folder / f"1b-{kind}.gguf", folder / "1b-f16.gguf"
    if not path.exists():
        if not floats.exists():
            write_gguf(floats)
        part = path.with_suffix(".part")
        command = [options.llama_quantize, str(floats), str(part), kind, "2"]
        subprocess.run(command, check=True, capture_output=True)
        part.rename(path)
    return path


def llama(path: Path, options: argparse.Namespace, threads: int, prompt: int, new: int) -> dict[str, float]:
    """Tokens per second of llama.cpp: ``prompt`` and ``decode`` (0: not measured)."""
    command = [options.llama_bench, "-m", str(path), "-t", str(threads), "-p", str(prompt), "-n", str(new), "-r", "1",
               "-o", "json"]  # fmt: skip
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found = {"prompt": 0.0, "decode": 0.0}
    for row in json.loads(done.stdout):
        found["decode" if row["n_gen"] else "prompt"] = float(row["avg_ts"])
    return found


def summary(values: list[float]) -> dict[str, float]:
    """Median and best."""
    return {"median": round(statistics.median(values), 2), "best": round(max(values), 2)} if values else {}


def measure(case: Case, threads: int, options: argparse.Namespace) -> dict[str, Any]:
    """Both sides in turn."""
    network = Network(case)
    others = {kind: model_of(kind, options) for kind in case.others} if options.llama_bench else {}
    ours: dict[str, list[float]] = {"prompt": [], "decode": []}
    theirs: dict[str, dict[str, list[float]]] = {kind: {"prompt": [], "decode": []} for kind in others}
    bandwidth = []
    for _ in range(options.rounds):
        bandwidth.append(read_speed(threads, seconds=0.2))
        read, speeds = network.measure(threads)
        ours["prompt"].append(read)
        ours["decode"] += speeds
        for kind, path in others.items():
            found = llama(path, options, threads, PROMPT, NEW)
            for name, value in found.items():
                theirs[kind][name].append(value)
    row: dict[str, Any] = {
        "case": case.name, "threads": threads, "bytes_per_token": network.bytes,
        "read_bytes_per_second": summary(bandwidth),
        "ours": {name: summary(values) for name, values in ours.items()},
        "llama.cpp": {
            kind: {name: summary(values) for name, values in found.items()} | {"bytes": others[kind].stat().st_size}
            for kind, found in theirs.items()
        },
    }  # fmt: skip
    row["share_of_bandwidth"] = {
        which: round(row["ours"]["decode"][which] * network.bytes / row["read_bytes_per_second"][which], 3)
        for which in ("median", "best")
    }
    row["decode_ratio"] = {
        kind: {w: round(row["ours"]["decode"][w] / row["llama.cpp"][kind]["decode"][w], 3) for w in ("median", "best")}
        for kind in others
    }
    row["prompt_ratio"] = {
        kind: {w: round(row["ours"]["prompt"][w] / row["llama.cpp"][kind]["prompt"][w], 3) for w in ("median", "best")}
        for kind in others
    }
    return row


@contextmanager
def load(count: int, niceness: int) -> Iterator[None]:
    """Busy loops beside."""
    program = f"import os\nos.nice({niceness})\nwhile True: pass"
    loops = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(count)]
    time.sleep(0.5)
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


LOADS = {"alone": (0, 0), "two of niceness 10": (2, 10), "two": (2, 0), "four": (4, 0)}
"""Busy loops beside, and their niceness."""


def measure_busy(case: Case, options: argparse.Namespace) -> dict[str, Any]:
    """Decoding on two threads alone and with busy loops beside, both sides in turn."""
    network = Network(case)
    path = model_of(case.others[0], options) if options.llama_bench else None
    row: dict[str, Any] = {"case": f"{case.name}, busy", "threads": 2}
    for name, (loops, niceness) in LOADS.items():
        with load(loops, niceness):
            ours: list[float] = []
            theirs: list[float] = []
            for _ in range(options.rounds):
                ours += network.measure(2, prompt=4)[1]
                if path is not None:
                    theirs.append(llama(path, options, 2, 0, 8)["decode"])
        row[name] = {"ours": summary(ours), "llama.cpp": summary(theirs)}
        for side in ("ours", "llama.cpp"):
            if row[name][side]:
                row[name][f"kept by {side}"] = round(row[name][side]["median"] / row["alone"][side]["median"], 3)
        if path is not None:
            row[name]["ratio"] = round(row[name]["ours"]["median"] / row[name]["llama.cpp"]["median"], 2)
    return row


def main() -> None:
    """Parse arguments, run what is missing until the time is up, write after every case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--llama-bench", default="")
    parser.add_argument("--llama-quantize", default="")
    parser.add_argument("--models", type=Path, default=Path("models"))
    parser.add_argument("--only", default="", help="a part of a case's name")
    parser.add_argument("--threads", type=int, nargs="+", default=[2, 1])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--busy", action="store_true")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--limit", type=float, default=600, help="seconds after which no new case is begun")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "native_decode.json")
    options = parser.parse_args()
    began = time.monotonic()
    torch.set_num_threads(max(options.threads))
    rows: list[dict[str, Any]] = json.loads(options.results.read_text()) if options.results.exists() else []
    commit = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True).stdout.strip()
    wanted = [(case, threads) for case in CASES for threads in options.threads if options.only in case.name]
    jobs: list[tuple[Case, int]] = [(CASES[0], 0)] if options.busy else wanted
    for case, threads in jobs:
        name = f"{case.name}, busy" if options.busy else case.name
        mine = [row for row in rows if row["processor"] == processor().name]  # every machine keeps its rows
        known = [row for row in mine if (row["case"], row["threads"]) == (name, threads or 2)]
        if (known and not options.again) or time.monotonic() - began > options.limit:
            continue
        row = measure_busy(case, options) if options.busy else measure(case, threads, options)
        row |= {
            "commit": commit, "date": datetime.date.today().isoformat(), "processor": processor().name,
            "load": round(os.getloadavg()[0], 2), "instruction_set": require_library().name,
        }  # fmt: skip
        rows = [other for other in rows if other not in known] + [row]
        options.results.parent.mkdir(parents=True, exist_ok=True)
        options.results.write_text(json.dumps(rows, indent=1) + "\n")
        print(json.dumps(row))


if __name__ == "__main__":
    main()
