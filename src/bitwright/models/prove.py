"""Prove an equivalence: exchange parameters for the length of one call and see whether the output moves.

The smallest part of the model that holds the change is run: one block on its recorded input, the layers behind the last
block, or the whole model. Nothing is written into the model (``torch.func.functional_call``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.func import functional_call

from bitwright.models.calling import call_module
from bitwright.models.materialise import materialised
from bitwright.models.record import Run
from bitwright.models.stream import BatchCalls, BlockStream, hidden_of, logits_of

Edits = Mapping[str, torch.Tensor]
SUFFIX, WHOLE = -1, -2


@dataclass
class Prover:
    """Runs parts of a model with exchanged parameters. A region is a block number, ``SUFFIX`` or ``WHOLE``."""

    stream: BlockStream
    run: Run
    example: Any
    calls: BatchCalls | None
    hidden: list[torch.Tensor]
    _plain: dict[int, torch.Tensor] = field(default_factory=dict)

    def region(self, first_op: int, last_op: int, blocks: set[int | None]) -> int:
        """The smallest region that holds operations ``first_op`` .. ``last_op`` of modules in ``blocks``."""
        if len(blocks) == 1 and None not in blocks:
            return next(block for block in blocks if block is not None)
        end = self.run.calls_of(self.stream.blocks[-1])[0].exit if self.stream.blocks else 0
        return SUFFIX if blocks == {None} and self.stream.blocks and first_op >= end else WHOLE

    def output(self, region: int, edits: Edits | None = None, hidden: torch.Tensor | None = None) -> torch.Tensor:
        """The region's output with exchanged parameters (full names), on ``hidden`` or its recorded input."""
        plain = not edits and hidden is None
        if plain and region in self._plain:
            return self._plain[region]
        with torch.no_grad():
            result = self._compute(region, edits or {}, hidden)
        if plain:
            self._plain[region] = result
        return result

    def error(self, region: int, edits: Edits) -> float:
        """Largest relative change of the region's output under ``edits``."""
        return relative_error(self.output(region, edits), self.output(region))

    def prefix(self, edits: Edits) -> torch.Tensor:
        """The hidden state that enters the first block, under ``edits``."""
        with _Exchanged(self.stream, edits):
            return self.stream.prefix_inputs([self.example])[0].hidden

    def forget(self) -> None:
        """Let go of kept outputs."""
        self._plain.clear()

    def _compute(self, region: int, edits: Edits, hidden: torch.Tensor | None) -> torch.Tensor:
        model = self.stream.model
        if region >= 0:
            assert self.calls is not None
            path = self.stream.blocks[region]
            state = self.hidden[region] if hidden is None else hidden
            args, kwargs = self.calls.blocks[region].filled(state)
            own = {name.removeprefix(f"{path}."): value for name, value in edits.items()}
            with materialised(model):
                block = model.module.get_submodule(path)
                return hidden_of(functional_call(block, own, args, kwargs, tie_weights=False))
        with _Exchanged(self.stream, edits):
            if region == SUFFIX:
                assert self.calls is not None
                return logits_of(self.stream.run_suffix(self.calls, self.hidden[-1] if hidden is None else hidden))
            with materialised(model):
                return logits_of(call_module(model.module, self.example))


class _Exchanged:
    """Put other tensors in the place of parameters while the context lasts."""

    def __init__(self, stream: BlockStream, edits: Edits) -> None:
        self._module = stream.model.module
        self._edits = edits
        self._before: list[tuple[torch.nn.Module, str, torch.nn.Parameter | None]] = []

    def __enter__(self) -> None:
        for name, value in self._edits.items():
            path, _, leaf = name.rpartition(".")
            owner = self._module.get_submodule(path)
            self._before.append((owner, leaf, owner._parameters[leaf]))
            owner._parameters[leaf] = torch.nn.Parameter(value, requires_grad=False)

    def __exit__(self, *error: Any) -> None:
        for owner, leaf, parameter in self._before:
            owner._parameters[leaf] = parameter


def relative_error(value: torch.Tensor, reference: torch.Tensor) -> float:
    """Largest absolute difference over the largest absolute value of the reference (infinite for NaN)."""
    size = float(reference.abs().max())
    error = float((value - reference).abs().max()) / (size or 1.0)
    return error if error == error else float("inf")
