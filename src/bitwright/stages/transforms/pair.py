"""Moves a scale from the input channels of some layers into whatever writes them."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from bitwright.events import Events
from bitwright.stages.transforms.base import Block, PairView


def note_missing(block: Block, kinds: Collection[str], what: str, events: Events) -> None:
    """Record that a unit of several coded layers has no proved pair of these kinds, so that ``what`` changes nothing.

    A unit of one layer (a head, a stem) has nothing to balance and is passed over.
    """
    coded = [path for path in block.linears if block.quantizer(path) is not None]
    if len(coded) > 1 and not any(pair.kind in kinds for pair in block.pairs):
        events.record(what, block.name, "no layer whose channels another one reads was proved; it is coded as it is")


def source_rows(pair: PairView, channels: int) -> Tensor:
    """For each of the sinks' input ``channels`` the row of the source that feeds it, ``[channels]``."""
    column = torch.arange(channels)
    if pair.repeat > 1:
        head = column // pair.head_dim // pair.repeat
        column = head * pair.head_dim + column % pair.head_dim
    return column if pair.rows is None else torch.tensor(pair.rows)[column]


def own_rows(pair: PairView, channels: int) -> Tensor:
    """The rows of the source that feed the sinks' input ``channels``, each once and in channel order."""
    return torch.tensor(range(channels // pair.repeat) if pair.rows is None else pair.rows)


def shared_scale(pair: PairView, s: Tensor) -> Tensor:
    """Make ``s[channels]`` constant over channels that one source row feeds (geometric mean)."""
    if pair.repeat == 1:
        return s
    rows = source_rows(PairView(pair.kind, pair.source, pair.sinks, pair.repeat, pair.head_dim), len(s))
    count = int(rows.max()) + 1
    total = torch.zeros(count).index_add_(0, rows, s.log()) / pair.repeat
    return total.exp()[rows]


def scale_pair(block: Block, pair: PairView, s: Tensor) -> None:
    """Multiply the sinks' input channels by ``s[channels]`` and divide the source's outputs by it.

    The function of the network does not change; ``s`` must come from :func:`shared_scale` where heads repeat.
    """
    for sink in pair.sinks:
        block.set_weight(sink, block.weight(sink) * s)
    divide_source(block, pair, s)


def divide_source(block: Block, pair: PairView, s: Tensor) -> None:
    """Divide the outputs of the pair's source by ``s[channels]``."""
    rows = source_rows(pair, len(s))
    for path in (pair.source, *pair.through):
        w = block.weight(path)
        factor = torch.ones(w.shape[0])
        factor[rows] = s
        if w.ndim == 1:
            block.set_weight(path, (w + pair.offset) / factor - pair.offset)
        else:
            block.set_weight(path, w / factor.unsqueeze(1))
        bias = block.bias(path)
        if bias is not None:
            block.set_bias(path, bias / factor)
