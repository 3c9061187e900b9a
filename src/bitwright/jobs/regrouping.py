"""Calibration data cut anew for learning: other batch sizes, and the first positions of long sequences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bitwright.jobs.hidden import HiddenStates
from bitwright.jobs.runner import Batch, Runner
from bitwright.jobs.units import Unit
from bitwright.stages.learn.base import Learn

if TYPE_CHECKING:
    from bitwright.jobs.engine import Engine

Piece = tuple[int, int, int]
"""Batch, first row, row behind the last."""

# Largest share of the output's size by which a causal unit may differ when later positions are left out (rounding).
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Groups:
    """The batches that learning steps run on: rows of calibration batches, put together and cut to ``tokens``."""

    pieces: tuple[tuple[Piece, ...], ...]
    tokens: int = 0

    def __len__(self) -> int:
        return len(self.pieces)

    def take(self, read: Callable[[int], Tensor], group: int) -> Tensor:
        """Rows of a group, from a tensor per calibration batch; sequences ``[rows, tokens, ...]`` are cut."""
        rows = [read(index)[start:stop] for index, start, stop in self.pieces[group]]
        x = rows[0] if len(rows) == 1 else torch.cat(rows)
        return x[:, : self.tokens] if self.tokens else x

    def batches(self, batches: Sequence[Batch]) -> list[Batch]:
        """The model's inputs of every group."""
        found = []
        for group in range(len(self)):
            keys = batches[self.pieces[group][0][0]]
            found.append({key: self.take(lambda i, key=key: batches[i][key], group) for key in keys})  # type: ignore[misc]
        return found


def make_groups(batches: Sequence[Batch], size: int, tokens: int = 0) -> Groups:
    """Cut batches into groups of ``size`` rows (0: as they are); rows of different shapes never meet."""
    if not size:
        return Groups(tuple(((i, 0, _rows(b)),) for i, b in enumerate(batches)), tokens)
    found: list[tuple[Piece, ...]] = []
    current: list[Piece] = []
    missing, shape = size, None
    for index, batch in enumerate(batches):
        own = {k: v.shape[1:] for k, v in batch.items()}
        if current and own != shape:
            found.append(tuple(current))
            current, missing = [], size
        shape, start = own, 0
        while start < _rows(batch):
            stop = min(start + missing, _rows(batch))
            current.append((index, start, stop))
            missing -= stop - start
            start = stop
            if not missing:
                found.append(tuple(current))
                current, missing = [], size
    # A short rest would weigh its rows more than all others; it is left out unless nothing else is there.
    if current and not found:
        found.append(tuple(current))
    return Groups(tuple(found), tokens)


def _rows(batch: Batch) -> int:
    return next(iter(batch.values())).shape[0]


def learning_groups(engine: Engine, learn: Learn, unit: Unit) -> tuple[Groups, Runner]:
    """The groups that a Learn entry asks for and a float runner over them.

    Sequences are cut only if the unit is causal: the float unit must answer the first positions alike without the
    later ones, which is tried on one batch.
    """
    tokens = learn.tokens if _cuts(engine.batches, learn.tokens) else 0
    if not learn.batch and not tokens:
        return make_groups(engine.batches, 0), engine.float_runner
    groups = make_groups(engine.batches, learn.batch, tokens)
    runner = Runner(engine.float_runner.model, engine.structure, groups.batches(engine.batches))
    if tokens and not _causal(engine, unit, groups, runner):
        engine.events.record("sequences not cut", unit.name, "the unit is not causal; learning takes whole sequences")
        groups = make_groups(engine.batches, learn.batch)
        runner = Runner(engine.float_runner.model, engine.structure, groups.batches(engine.batches))
    return groups, runner


def _cuts(batches: Sequence[Batch], tokens: int) -> bool:
    """Whether every input of every batch is ``[rows, tokens]`` and some are longer than wanted."""
    shapes = [v.shape for batch in batches for v in batch.values()]
    return bool(tokens) and all(len(s) == 2 for s in shapes) and any(s[1] > tokens for s in shapes)


@torch.no_grad()
def _causal(engine: Engine, unit: Unit, groups: Groups, runner: Runner) -> bool:
    index = groups.pieces[0][0][0]
    whole = engine.float_runner.run(unit, index, engine.float[index])
    cut = runner.run(unit, 0, hidden_of(groups, engine.float, unit, 0))
    start, stop = groups.pieces[0][0][1:]
    expected = whole[start:stop, : groups.tokens]
    return bool((cut[: stop - start] - expected).abs().max() <= TOLERANCE * expected.abs().max())


def hidden_of(groups: Groups, states: HiddenStates, unit: Unit, group: int) -> Tensor | None:
    """The hidden state that enters a unit; ``None`` where the unit reads the model's inputs."""
    if unit.kind in ("prefix", "whole"):
        return None
    return groups.take(lambda index: held(states, index), group)


def held(states: HiddenStates, index: int) -> Tensor:
    """A hidden state that must be there."""
    x = states[index]
    if x is None:
        raise RuntimeError("a hidden state was read before it was computed")
    return x
