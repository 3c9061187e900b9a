"""Plan against measurement: peak memory, time and disk of jobs on checkpoints of three sizes, under a cap.

    python benchmarks/memory.py --work /tmp/bench --threads 2 --sizes small,medium,large

Writes random bf16 Llama checkpoints of about 0.3, 0.9 and 2.3 GB, plans and runs ``rtn`` and ``gptq`` on each in a
fresh process with ``--max-memory``, and writes ``benchmarks/results/memory.json``: a row per size and recipe with the
planned and the measured figures. The cap is the planned peak and a fifth. An interrupted run keeps the rows it has.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from bitwright.jobs.opening import Job
from bitwright.jobs.plan import plan
from bitwright.jobs.request import build_recipe
from bitwright.jobs.run import run

RESULTS = Path(__file__).parent / "results" / "memory.json"
SEQUENCES, LENGTH = 16, 256


@dataclass(frozen=True)
class Size:
    """Shape of a Llama: layers, hidden size, width of the MLP, vocabulary."""

    layers: int
    hidden: int
    mlp: int
    vocabulary: int


SIZES = {
    "small": Size(12, 1024, 2816, 4096),
    "medium": Size(24, 1280, 3456, 8192),
    "large": Size(24, 2048, 5632, 16000),
}


def write_checkpoint(folder: Path, size: Size) -> None:
    """Write random weights in shards of one block each, with index and config."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    weight_map: dict[str, str] = {}

    def random(*shape: int) -> torch.Tensor:
        return (torch.randn(shape, generator=generator) * 0.02).to(torch.bfloat16)

    def save(name: str, tensors: dict[str, torch.Tensor]) -> None:
        save_file(tensors, folder / name, {"format": "pt"})
        weight_map.update(dict.fromkeys(tensors, name))

    hidden, mlp = size.hidden, size.mlp
    ones = torch.ones(hidden, dtype=torch.bfloat16)
    outer = {"model.embed_tokens.weight": random(size.vocabulary, hidden), "model.norm.weight": ones}
    save("outer.safetensors", outer | {"lm_head.weight": random(size.vocabulary, hidden)})
    shapes = {
        "self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (hidden // 4, hidden),
        "self_attn.v_proj": (hidden // 4, hidden), "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (mlp, hidden), "mlp.up_proj": (mlp, hidden), "mlp.down_proj": (hidden, mlp),
    }  # fmt: skip
    for layer in range(size.layers):
        p = f"model.layers.{layer}."
        tensors = {f"{p}{name}.weight": random(*shape) for name, shape in shapes.items()}
        tensors |= {f"{p}{n}.weight": ones.clone() for n in ("input_layernorm", "post_attention_layernorm")}
        save(f"block-{layer:02d}.safetensors", tensors)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden, "intermediate_size": mlp,
        "num_hidden_layers": size.layers, "num_attention_heads": hidden // 64, "num_key_value_heads": hidden // 256,
        "vocab_size": size.vocabulary, "max_position_embeddings": 2048, "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))


def measure(model: Path, recipe: str, threads: int, out: Path) -> dict[str, object]:
    """Plan and run one job in this process; the cap is a fifth more than the planned peak."""
    torch.set_num_threads(threads)
    shutil.rmtree(out, ignore_errors=True)
    vocabulary = json.loads((model / "config.json").read_text())["vocab_size"]
    ids = torch.randint(0, vocabulary, (SEQUENCES, LENGTH), generator=torch.Generator().manual_seed(0))
    data = [{"input_ids": part} for part in ids.split(8)] if recipe != "rtn" else None
    built = build_recipe(recipe, (), "int4 g128")
    wide = Job(model, built, data, out=out, fresh_process=True, max_memory=1 << 40)
    need = plan(wide).peak_memory_bytes
    cap = need * 6 // 5
    job = Job(model, built, data, out=out, fresh_process=True, max_memory=cap)
    started = time.perf_counter()
    planned = plan(job, probe=True)
    planning = time.perf_counter() - started
    result = run(job)
    written = sum(p.stat().st_size for p in out.rglob("*") if p.is_file())
    index = json.loads((out / "model.safetensors.index.json").read_text())
    shutil.rmtree(out)
    return {
        "recipe": recipe, "checkpoint_bytes": sum(p.stat().st_size for p in model.glob("*.safetensors")),
        "cap": cap, "planned_peak": planned.peak_memory_bytes, "measured_peak": result.peak_memory_bytes,
        "planned_seconds": round(planned.seconds, 1), "measured_seconds": round(result.seconds, 1),
        "planning_seconds": round(planning, 1), "planned_bytes": planned.bytes,
        "written_bytes": index["metadata"]["total_size"], "planned_disk": planned.disk_bytes, "written_disk": written,
        "threads": threads, "load": os.getloadavg()[0],
    }  # fmt: skip


def main() -> None:
    """Parse arguments, run each size and recipe in a process of its own, write the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sizes", default=",".join(SIZES))
    parser.add_argument("--recipes", default="rtn,gptq")
    parser.add_argument("--one", action="store_true", help="measure in this process and print the row")
    options = parser.parse_args()
    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    for name in options.sizes.split(","):
        model = options.work / f"llama-{name}"
        if not model.exists():
            write_checkpoint(model, SIZES[name])
        for recipe in options.recipes.split(","):
            if options.one:
                row = measure(model, recipe, options.threads, options.work / "out")
                sys.stdout.write(json.dumps({"size": name, **row}) + "\n")
                continue
            command = [sys.executable, __file__, "--work", str(options.work), "--threads", str(options.threads)]
            command += ["--sizes", name, "--recipes", recipe, "--one"]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            row = json.loads(done.stdout.splitlines()[-1])
            rows = [r for r in rows if (r["size"], r["recipe"]) != (name, recipe)] + [row]
            RESULTS.write_text(json.dumps(rows, indent=1) + "\n")
            sys.stdout.write(json.dumps(row) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
