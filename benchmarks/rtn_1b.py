"""Float-to-file round to nearest of a 1 B-parameter Llama-shaped checkpoint: seconds and peak memory.

    python -m benchmarks.rtn_1b --work /tmp/bench --threads 2

Writes random bf16 weights (hidden 2048, MLP 8192, 16 layers, 32/8 heads, vocabulary 32,000, tied head) once, then runs
``bitwright quantize`` on them in a fresh process several times and appends a row per run to
``benchmarks/results/rtn_1b.jsonl``. The target is 25 s and 2 GB of added memory on two cores.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch

from benchmarks.random_llama import Shape, write_checkpoint

SHAPE = Shape(layers=16, hidden=2048, mlp=8192, vocabulary=32000, heads=32, key_heads=8, tied=True)


def run(model: Path, out: Path, threads: int, verify: bool) -> dict[str, object]:
    """Quantize once in a fresh process; seconds are those of the job, ``wall`` those of the whole process."""
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "bitwright.cli.main", "quantize", str(model), "--recipe", "rtn", "--weights",
               "int4 g128", "--out", str(out), "--threads", str(threads), "--json"]  # fmt: skip
    if not verify:
        command.append("--no-verify")
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    wall = time.perf_counter() - started
    summary = json.loads(done.stdout)
    return {
        "seconds": round(float(summary["seconds"]), 2), "wall": round(wall, 2), "verify": verify, "threads": threads,
        "peak_memory_bytes": summary["peak_memory_bytes"], "bytes": summary["bytes"],
        "bits_per_weight": summary["bits_per_weight"], "load": os.getloadavg()[0],
    }  # fmt: skip


def main() -> None:
    """Parse arguments, run, append the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "rtn_1b.jsonl")
    options = parser.parse_args()
    model = options.work / "llama-1b"
    if not model.exists():
        write_checkpoint(model, SHAPE)
    commit = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True).stdout.strip()
    options.results.parent.mkdir(parents=True, exist_ok=True)
    for number in range(options.runs):
        row = run(model, options.work / "out", options.threads, verify=number == options.runs - 1)
        row |= {"commit": commit, "date": datetime.date.today().isoformat(), "torch": torch.__version__.split("+")[0]}
        with options.results.open("a") as file:
            file.write(json.dumps(row) + "\n")
        sys.stdout.write(json.dumps(row) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
