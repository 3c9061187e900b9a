"""Peak memory under a cap: jobs on checkpoints of several sizes, planned and measured.

    python -m benchmarks.memory --work /tmp/bench --threads 2 --cases small,medium,large

Writes random Llama checkpoints (bf16 ones of about 0.3, 0.9 and 2.3 GB, and a small one with a wide vocabulary), plans
and runs each of their recipes in a fresh process with ``--max-memory``, and writes ``benchmarks/results/memory.json``:
a row per case and recipe. The cap is the planned peak and a fifth, or what the case names. An interrupted run keeps the
rows that it has.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.planned_run import planned_run
from benchmarks.random_llama import Shape, write_checkpoint
from bitwright.jobs.opening import Job
from bitwright.jobs.request import build_recipe

RESULTS = Path(__file__).parent / "results" / "memory.json"


@dataclass(frozen=True)
class Case:
    """A checkpoint, its recipes, and the cap in bytes (0: the planned peak and a fifth)."""

    shape: Shape
    recipes: tuple[str, ...] = ("rtn", "gptq")
    cap: int = 0
    sequences: int = 16
    length: int = 256


CASES = {
    "small": Case(Shape(12, 1024, 2816, 4096, 16, 4)),
    "medium": Case(Shape(24, 1280, 3456, 8192, 20, 5)),
    "large": Case(Shape(24, 2048, 5632, 16000, 32, 8), sequences=8, length=128),
    # Embedding and head are as large as eight blocks, and each of them is more than a third of the cap.
    "wide vocabulary": Case(Shape(26, 512, 512, 8192, 8, 4, dtype="float32"), ("gptq",), 48_000_000, 4, 32),
}


def measure(case: Case, recipe: str, model: Path, threads: int) -> dict[str, object]:
    """One row: a job of the case in this process."""
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, case.shape.vocabulary, (case.sequences, case.length), generator=generator)
    data = [{"input_ids": part} for part in ids.split(8)] if recipe != "rtn" else None
    job = Job(model, build_recipe(recipe, (), "int4 g128"), data, out=model.with_name("out"), fresh_process=True)
    checkpoint = sum(p.stat().st_size for p in model.glob("*.safetensors"))
    return {"checkpoint_bytes": checkpoint, **planned_run(job, case.cap), "threads": threads}


def main() -> None:
    """Parse arguments, run each case and recipe in a process of its own, write the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--recipe", default="", help="measure one recipe in this process and print the row")
    options = parser.parse_args()
    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    for name in options.cases.split(","):
        case, model = CASES[name], options.work / f"llama-{name.replace(' ', '-')}"
        if not model.exists():
            write_checkpoint(model, case.shape)
        if options.recipe:
            sys.stdout.write(json.dumps({"case": name, **measure(case, options.recipe, model, options.threads)}) + "\n")
            continue
        for recipe in case.recipes:
            command = [sys.executable, "-m", "benchmarks.memory", "--work", str(options.work), "--cases", name]
            command += ["--threads", str(options.threads), "--recipe", recipe]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            row = json.loads(done.stdout.splitlines()[-1])
            rows = [r for r in rows if (r["case"], r["recipe"]) != (name, recipe)] + [row]
            RESULTS.write_text(json.dumps(rows, indent=1) + "\n")
            sys.stdout.write(json.dumps(row) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
