"""Runs one unit of a model on the calibration batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from bitwright.jobs.sweep import StopSweep
from bitwright.jobs.units import Unit
from bitwright.models import Model, Structure
from bitwright.models.calling import call_module
from bitwright.models.discover import block_stream
from bitwright.models.stream import BatchCalls, logits_of

Batch = dict[str, Tensor]


class Runner:
    """Knows how to run any unit of one model on batch ``i`` given the hidden state that enters the unit.

    The arguments with which the model calls its blocks are recorded once per batch (masks, position embeddings); the
    hidden states themselves belong to the streams.
    """

    def __init__(self, model: Model, structure: Structure, batches: Sequence[Batch]) -> None:
        self.model = model
        self.stream = block_stream(model, structure)
        self.batches = batches
        self._calls: dict[int, BatchCalls] = {}

    @property
    def count(self) -> int:
        """Number of batches."""
        return len(self.batches)

    def keep(self, index: int) -> Tensor | None:
        """True where a token is real, ``[sequences, tokens]``; ``None`` where nothing is padded."""
        mask = self.batches[index].get("attention_mask")
        if mask is None or bool(mask.all()):
            return None
        return mask.bool()

    def calls(self, index: int) -> BatchCalls:
        """Recorded block calls of a batch."""
        if index not in self._calls:
            calls = self.stream.prefix_inputs([self.batches[index]])[0]
            # The streams hold the hidden states; a second copy here would double them.
            self._calls[index] = replace(calls, hidden=calls.hidden.new_empty(0))
        return self._calls[index]

    def run(self, unit: Unit, index: int, hidden: Tensor | None) -> Tensor:
        """Run one unit on one batch and return its output tensor (the hidden state, or the model's output)."""
        if unit.kind == "whole":
            return logits_of(call_module(self.model.module, self.batches[index]))
        if unit.kind == "prefix":
            # Run anew every time: the prefix may have been quantized since the calls were recorded.
            return self.stream.prefix_inputs([self.batches[index]])[0].hidden
        if hidden is None:
            raise RuntimeError(f"{unit.name} needs the hidden state of the unit before it")
        calls = self.calls(index)
        if unit.kind == "block":
            assert unit.block is not None
            return self.stream.run_block(unit.block, calls, hidden)
        return logits_of(self.stream.run_suffix(calls, hidden))

    def until_stopped(self, unit: Unit, index: int, hidden: Tensor | None) -> Tensor | None:
        """Run for the hooks' sake and return the output; ``None`` where a hook ended the pass early."""
        try:
            with torch.no_grad():
                return self.run(unit, index, hidden)
        except StopSweep:
            return None
