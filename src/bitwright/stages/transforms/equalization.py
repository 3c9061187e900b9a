"""Cross-layer equalization: make the weight ranges of consecutive layers alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bitwright.events import Events
from bitwright.stages.transforms.base import Block, DataFree, PairView, TransformReport
from bitwright.stages.transforms.pair import note_missing
from bitwright.statistics import Statistic

# A channel that is nearly dead on one side must not be blown up on the other.
LARGEST = 1e3


@dataclass(frozen=True)
class CrossLayerEqualization(DataFree):
    """``s_c = sqrt(r1_c / r2_c)`` between the largest weights of channel c: of the rows that write it (``r1``) and of
    the columns that read it (``r2``); the first layer is divided by s, the second multiplied (Nagel et al. 2019,
    eq. 11). Repeated over all pairs of the unit until nothing moves, since a layer can lie in two pairs.

    Only pairs whose function provably stays are touched (a ReLU between them, no ReLU6, no residual sum); BatchNorms
    between the layers must have been folded before. The absorption of high biases of that paper is left out: it needs
    the folded BatchNorm's statistics and pays for per-tensor activation ranges of clipped networks only.

    Args:
        passes: most passes over the pairs. tolerance: a pass whose largest ``|log s|`` is below it is the last.
    """

    passes: int = 20
    tolerance: float = 1e-3

    def apply(
        self,
        block: Block,
        statistics: Mapping[str, Mapping[Statistic, Any]],
        seed: int,
        events: Events,
    ) -> TransformReport:
        """Equalize every pair of the unit."""
        note_missing(block, ("conv_conv",), "nothing to equalize", events)
        pairs = [p for p in block.pairs if p.kind == "conv_conv" and self._ready(block, p, events)]
        before = {p.source: imbalance(block, p) for p in pairs}
        for _ in range(self.passes):
            moved = max((self._equalize(block, pair) for pair in pairs), default=0.0)
            if moved < self.tolerance:
                break
        places = [(p.source, {"before": before[p.source], "after": imbalance(block, p)}) for p in pairs]
        return TransformReport("cross-layer equalization", tuple(places))

    @staticmethod
    def _ready(block: Block, pair: PairView, events: Events) -> bool:
        for path in pair.through:
            if has_weight(block, path):
                events.record("not equalized", pair.source, f"{path} lies between the layers; fold it first")
                return False
        return True

    @staticmethod
    def _equalize(block: Block, pair: PairView) -> float:
        """One pair once; returns the largest ``|log s|``."""
        written, read = pair_ranges(block, pair)
        s = (written / read).sqrt().clamp(1 / LARGEST, LARGEST)
        s = torch.where((written > 0) & (read > 0), s, torch.ones_like(s))
        for sink in pair.sinks:
            columns = input_view(block, sink, len(s))
            w = (columns * s.view(columns.shape[0], 1, -1, 1)).reshape(block.weight(sink).shape)
            block.set_weight(sink, w)
        rows = source_rows(pair, len(s))
        w, bias = block.weight(pair.source), block.bias(pair.source)
        w[rows] = w[rows] / s.unsqueeze(1)
        block.set_weight(pair.source, w)
        if bias is not None:
            bias[rows] = bias[rows] / s
            block.set_bias(pair.source, bias)
        return float(s.log().abs().max())


def has_weight(block: Block, path: str) -> bool:
    """Whether a module (still) has a weight: a folded BatchNorm has become the identity."""
    try:
        return block.attribute(path, "weight") is not None
    except AttributeError:
        return False


def source_rows(pair: PairView, channels: int) -> Tensor:
    """The source's rows in the order of the sinks' channels, ``[channels]``."""
    return torch.arange(channels) if pair.rows is None else torch.tensor(pair.rows)


def input_view(block: Block, path: str, channels: int) -> Tensor:
    """A reader's weight as ``[groups, out / groups, channels / groups, taps]``, of a convolution or a linear."""
    w = block.weight(path)
    try:
        groups = int(block.attribute(path, "groups"))
    except AttributeError:  # a linear
        groups = 1
    return w.reshape(groups, w.shape[0] // groups, channels // groups, -1)


def pair_ranges(block: Block, pair: PairView) -> tuple[Tensor, Tensor]:
    """Largest absolute weight that writes and that reads each channel, both ``[channels]``."""
    w = block.weight(pair.source)
    channels = w.shape[0] if pair.rows is None else len(pair.rows)
    written = w.abs().amax(1)[source_rows(pair, channels)]
    read = [input_view(block, sink, channels).abs().amax((1, 3)).flatten() for sink in pair.sinks]
    return written, torch.stack(read).amax(0)


def imbalance(block: Block, pair: PairView) -> float:
    """Largest ratio between the two ranges of a channel, at least 1; channels that carry nothing do not count."""
    written, read = pair_ranges(block, pair)
    live = (written > 0) & (read > 0)
    if not bool(live.any()):
        return 1.0
    return float((written[live] / read[live]).log().abs().max().exp())
