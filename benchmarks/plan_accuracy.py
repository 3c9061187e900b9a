"""The plan against the truth: planned and measured peak memory and time of the recipes on three models.

    python -m benchmarks.plan_accuracy --work /tmp/bench

Models: the embedded language model, a random Llama of 32 million parameters (8 layers, hidden 512, bf16), and a random
mixture of 8 experts of 25 million. Each job is planned (with the probe) and run in a fresh process on one thread, with
8 sequences of 64 tokens, learning for 20 steps, and a cap of a fifth more memory than planned; ``results/plan.json``
gets a row per job. ``peak_ratio`` and ``seconds_ratio`` are planned over measured. ``processor_ratio`` counts the
processor's seconds instead of the clock's: on a machine that others use too, only it says what the plan is worth.
Targets: 0.85 to 1.15 for memory, 0.5 to 2 for time.
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
from bitwright.zoo import lm_path

RESULTS = Path(__file__).parent / "results" / "plan.json"
LLAMA = Shape(8, 512, 1408, 8192, 8, 4)
_STEPS = ("steps", "20")


@dataclass(frozen=True)
class Planned:
    """A recipe with its settings and weight format."""

    recipe: str
    weights: str = "int4 g64"
    settings: tuple[tuple[str, str], ...] = ()


RECIPES = {
    "rtn": Planned("rtn"),
    "gptq": Planned("gptq"),
    "awq": Planned("awq"),
    "adaround": Planned("adaround", "int4 channel", (_STEPS, ("select", "linear"))),
    "brecq": Planned("brecq", "int4 channel", (_STEPS, ("select", "linear"))),
    "offset": Planned("brecq", "int4 g64", (_STEPS, ("select", "linear"), ("rounding", "offset"))),
    "quarot": Planned("quarot", ""),
    "quantease": Planned("quantease"),
    "squeezellm": Planned("squeezellm", "lut4 channel"),
}
MODELS = {
    "zoo": ("rtn", "gptq", "awq", "adaround", "brecq", "offset", "quarot", "quantease", "squeezellm"),
    "llama": ("rtn", "gptq", "awq", "adaround", "brecq", "offset", "quarot", "quantease", "squeezellm"),
    "experts": ("rtn", "gptq", "awq"),
}


def model_folder(name: str, work: Path) -> Path:
    """The checkpoint of a model; written where it is missing."""
    if name == "zoo":
        return lm_path()
    folder = work / f"plan-{name}"
    if not folder.exists():
        if name == "llama":
            write_checkpoint(folder, LLAMA)
        else:
            _write_experts(folder)
    return folder


def _write_experts(folder: Path) -> None:
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=4096, hidden_size=384, intermediate_size=512, moe_intermediate_size=512, num_hidden_layers=4,
        num_attention_heads=6, num_key_value_heads=3, head_dim=64, num_experts=8, num_experts_per_tok=2,
        decoder_sparse_step=1, mlp_only_layers=[], max_position_embeddings=2048, tie_word_embeddings=False,
    )  # fmt: skip
    Qwen3MoeForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)


def measure(model: str, name: str, work: Path) -> dict[str, object]:
    """One row: plan and run a job in this process."""
    torch.set_num_threads(1)
    folder, chosen = model_folder(model, work), RECIPES[name]
    vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
    ids = torch.randint(0, vocabulary, (8, 64), generator=torch.Generator().manual_seed(0))
    recipe = build_recipe(chosen.recipe, chosen.settings, chosen.weights)
    out = work / f"out-{model}-{name}"
    job = Job(folder, recipe, [{"input_ids": part} for part in ids.split(4)], out=out, fresh_process=True)
    return {"model": model, "job": name, **planned_run(job)}


def main() -> None:
    """Parse arguments, run each job in a process of its own, write the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--jobs", default=",".join(RECIPES))
    parser.add_argument("--one", action="store_true", help="measure in this process and print the row")
    options = parser.parse_args()
    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    for model in options.models.split(","):
        for name in options.jobs.split(","):
            if name not in MODELS[model]:
                continue
            if options.one:
                sys.stdout.write(json.dumps(measure(model, name, options.work)) + "\n")
                continue
            command = [sys.executable, "-m", "benchmarks.plan_accuracy", "--work", str(options.work), "--one"]
            done = subprocess.run(
                [*command, "--models", model, "--jobs", name], stdout=subprocess.PIPE, text=True, check=True
            )
            row = json.loads(done.stdout.splitlines()[-1])
            rows = [r for r in rows if (r["model"], r["job"]) != (model, name)] + [row]
            RESULTS.write_text(json.dumps(rows, indent=1) + "\n")
            sys.stdout.write(
                " ".join(f"{k}={row[k]}" for k in ("model", "job", *(k for k in row if "_ratio" in k))) + "\n"
            )
            sys.stdout.flush()


if __name__ == "__main__":
    main()
