"""Time Bitwright's GPTQ on one block of a real size: int4, groups of 128, the whole job in memory.

`hessian` is the sums over the inputs, `solve` the seven layers' rounding, `rest` discovery, the forward passes of the
sweeps (which replay what earlier sweeps of the block ran) and bookkeeping. `clip=False` rounds with the peers' full
ranges.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from block_clock import Parts, report

from bitwright import __version__
from bitwright.jobs import solving
from bitwright.jobs.api import quantize as run_job
from bitwright.statistics.hessian import HessianCollector

PARTS = Parts()


def quantize(model: torch.nn.Module, rows: torch.Tensor) -> None:
    """The job as `bitwright.quantize` runs it, with a clock around its two costly functions."""
    update, solve = HessianCollector.update, solving.quantize_weight

    def timed_update(*arguments: object) -> None:
        with PARTS.counted("hessian"):
            update(*arguments)

    def timed_solve(*arguments: object) -> object:
        with PARTS.counted("solve"):
            return solve(*arguments)

    HessianCollector.update, solving.quantize_weight = timed_update, timed_solve
    batches = [{"input_ids": row.unsqueeze(0)} for row in rows]
    run_job(model, "gptq", batches, weights="int4 g128", settings={"clip": "false"})


def import_everything() -> None:
    """Run a tiny job: the peers' scripts import what they use before the clock starts, ours is imported as it runs."""
    config = LlamaConfig(
        hidden_size=64, intermediate_size=64, num_attention_heads=2, num_hidden_layers=1, vocab_size=64
    )
    model = LlamaForCausalLM(config).eval()
    run_job(model, "gptq", [{"input_ids": torch.ones(1, 4, dtype=torch.long)}], weights="int4 g32")


if __name__ == "__main__":
    import_everything()
    report(__doc__ or "", "bitwright", __version__, PARTS, quantize)
