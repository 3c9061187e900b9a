"""Time llm-compressor's GPTQ on one block of a real size: int4, groups of 128, its own `oneshot`.

Each run reports the whole and its parts: the Hessians (`hessian`), the solve of all seven layers (`solve`), and the
rest, which is the block's forward pass with and without quantized weights, tracing and bookkeeping (`rest`).
One run is one line of JSON, so that it can be called in turn with another tool's.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from block import read_block, write_block
from llmcompressor import __version__, oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from torch.utils.data import DataLoader

SPENT = {"hessian": 0.0, "solve": 0.0}


class TimedGPTQ(GPTQModifier):
    """The modifier itself with a clock around its two costly methods."""

    def calibrate_module(self, *arguments: object) -> None:
        """Accumulate a Hessian."""
        start = time.perf_counter()
        super().calibrate_module(*arguments)
        SPENT["hessian"] += time.perf_counter() - start

    def compress_modules(self) -> None:
        """Solve the layers seen so far."""
        start = time.perf_counter()
        super().compress_modules()
        SPENT["solve"] += time.perf_counter() - start


def main() -> None:
    """One run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    write_block(options.work)
    model, rows = read_block(options.work)
    batches = DataLoader([{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in rows])
    load, processor, start = os.getloadavg()[0], time.process_time(), time.perf_counter()
    oneshot(model=model, dataset=batches, recipe=TimedGPTQ(targets=["Linear"], scheme="W4A16", ignore=["lm_head"]))
    total = time.perf_counter() - start
    report = {
        "peer": "llm-compressor",
        "version": __version__,
        "method": "gptq int4 g128 sym",
        "seconds": round(total, 2),
        **{part: round(seconds, 2) for part, seconds in SPENT.items()},
        "rest": round(total - sum(SPENT.values()), 2),
        "processor_seconds": round(time.process_time() - processor, 2),
        "threads": options.threads,
        "load_average": round(load, 2),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
