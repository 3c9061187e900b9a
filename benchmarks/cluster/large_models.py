"""The simulation of ``bitwright plan --cluster`` for models that nobody here has measured.

    python benchmarks/cluster/large_models.py

The structure is found on a narrow Llama of as many blocks, and its layers are then taken as wide as the large model's;
no weight exists. The rates of the machines are assumptions (``MACHINE``), not measurements.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from bitwright.jobs import Job
from bitwright.jobs.choice import choose, stream_needs
from bitwright.jobs.cluster_plan import Nodes, Rates, simulate
from bitwright.jobs.opening import Opened
from bitwright.jobs.request import build_recipe
from bitwright.models import discover, open_model
from bitwright.models.structure import ResidualStream

# hidden, MLP, key and value channels, blocks
SHAPES = {
    "8 B": (4096, 14336, 1024, 32),
    "70 B": (8192, 28672, 1024, 80),
    "405 B": (16384, 53248, 1024, 126),
    "1 T, dense": (20480, 71680, 1024, 190),
}
SEQUENCES, LENGTH, ROWS = 128, 2048, 8
MACHINE = "64 cores as 4 tasks of 16 threads, each 3e11 multiply-adds/s in products and half of it in solves; 25 Gb/s"
RATES = Rates(products=3e11, solve=1.5e11, handling=1e9, merging=5e9, task=0.02)
NODES = (1, 2, 4, 8, 16)


def opened_as(name: str, recipe_name: str) -> tuple[Job, Opened]:
    """A job on a model of the shape ``name``, as far as the simulation looks at one."""
    hidden, mlp, keys, blocks = SHAPES[name]
    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=blocks, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=LENGTH, tie_word_embeddings=False,
    )  # fmt: skip
    narrow = LlamaForCausalLM(config).eval()
    model = open_model(narrow)
    model.streamed = True  # as it would be from a folder
    ids = torch.zeros(ROWS, LENGTH, dtype=torch.long)
    found = discover(model, {"input_ids": ids[:1, :8]}, proofs=False)
    wide = {16: hidden, 24: mlp, 8: keys, 64: 128000}
    sites = tuple(dataclasses.replace(s, shape=(wide[s.shape[0]], wide[s.shape[1]])) for s in found.sites)
    structure = dataclasses.replace(found, sites=sites, residual=ResidualStream(hidden, (), (), (), (), None, 0.0))
    batches = [{"input_ids": ids}] * (SEQUENCES // ROWS)
    recipe = build_recipe(recipe_name, (), "int4 g128 asym")
    job = Job("", recipe, batches, out=Path("out"), max_memory=64 * 10**9)
    choices = choose(recipe, structure)
    return job, Opened(model, structure, choices, batches, *stream_needs(recipe, choices.values()))


def main() -> None:
    """Print a table and write it."""
    rows = []
    for name in SHAPES:
        job, opened = opened_as(name, "gptq")
        for count in NODES:
            planned = simulate(job, opened, Nodes(count, 512 * 10**9, 64, 25e9 / 8), RATES, 16)
            rows.append({"model": name, "recipe": "gptq", **dataclasses.asdict(planned)})
            hours = planned.seconds / 3600, planned.seconds_alone / 3600
            print(
                f"{name:11} {count:3} machines {hours[0]:8.1f} h, one task at a time alone {hours[1]:8.1f} h, "
                f"sent {planned.sent_bytes / 1e12:6.2f} TB, memory of the job {planned.driver_bytes / 1e9:6.1f} GB, "
                f"of a machine {planned.node_bytes / 1e9:6.1f} GB{'' if planned.fits else ', too much'}"
            )
    result = {
        "protocol": f"simulated, not measured: gptq int4 g128 asym, {SEQUENCES} x {LENGTH} tokens in batches of "
        f"{ROWS}; machines of {MACHINE}",
        "date": "2026-11-22",
        "rows": rows,
    }
    target = Path(__file__).parents[1] / "results" / "cluster_simulated.json"
    target.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
