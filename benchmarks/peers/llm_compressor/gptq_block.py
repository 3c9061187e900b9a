"""Time llm-compressor's GPTQ on one block of a real size: int4, groups of 128, its own `oneshot`.

`hessian` is the sums over the inputs, `solve` the seven layers' quantization, `rest` the forward pass of the block with
float and with quantized weights, tracing and bookkeeping.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from block_clock import Parts, report
from llmcompressor import __version__, oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from torch.utils.data import DataLoader

PARTS = Parts()


class TimedGPTQ(GPTQModifier):
    """The modifier itself with a clock around its two costly methods."""

    def calibrate_module(self, *arguments: object) -> None:
        """Accumulate a Hessian."""
        with PARTS.counted("hessian"):
            super().calibrate_module(*arguments)

    def compress_modules(self) -> None:
        """Solve the layers seen so far."""
        with PARTS.counted("solve"):
            super().compress_modules()


def quantize(model: torch.nn.Module, rows: torch.Tensor) -> None:
    """The tool's own way through the model."""
    batches = DataLoader([{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in rows])
    oneshot(model=model, dataset=batches, recipe=TimedGPTQ(targets=["Linear"], scheme="W4A16", ignore=["lm_head"]))


if __name__ == "__main__":
    report(__doc__ or "", "llm-compressor", __version__, PARTS, quantize)
