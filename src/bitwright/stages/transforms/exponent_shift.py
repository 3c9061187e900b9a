"""LLM-FP4's pre-shifted exponent bias: integer exponents per input channel, moved into the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bitwright.events import Events
from bitwright.stages.transforms.base import Block, TransformReport, WithinUnit
from bitwright.stages.transforms.pair import note_missing, scale_pair, shared_scale
from bitwright.statistics import AbsMax, Statistic


@dataclass(frozen=True)
class ExponentShift(WithinUnit):
    """``b_j = clip(round(log2(max_k |x_k| / |x_j|)), 0, limit)`` per channel (Liu et al. 2023, eq. 10-12).

    Quiet channels are multiplied by ``2^b_j`` so that one tensor scale serves all; the weights' columns are divided by
    it. Powers of two change no mantissa, so the float function stays exactly. The multiplication is folded into
    whatever writes the channel.

    Args:
        limit: largest shift; the paper's is ``2^e - 1`` of the activation format's exponent bits.
    """

    limit: int = 3
    kinds: tuple[str, ...] = ("norm_linear", "linear_linear")

    @property
    def needs(self) -> tuple[Statistic, ...]:
        """Channel maxima of the float model's activations."""
        return (AbsMax("float"),)

    def apply(
        self,
        block: Block,
        statistics: Mapping[str, Mapping[Statistic, Any]],
        seed: int,
        events: Events,
    ) -> TransformReport:
        """Shift the input channels of every pair's sinks."""
        places = []
        note_missing(block, self.kinds, "nothing to shift", events)
        for pair in block.pairs:
            if pair.kind not in self.kinds:
                continue
            found = statistics.get(pair.sinks[0], {}).get(AbsMax("float"))
            if found is None:
                events.record("no calibration signal", pair.sinks[0], "not shifted: the layer was never called")
                continue
            shift = channel_shift(shared_scale(pair, found.clamp_min(1e-30)), self.limit)
            scale_pair(block, pair, torch.exp2(-shift))
            places.append((pair.source, {"mean_shift": float(shift.mean())}))
        return TransformReport("exponent shift", tuple(places))


def channel_shift(peaks: Tensor, limit: int) -> Tensor:
    """Integer shifts of channels with maxima ``peaks[in]``; the loudest channel has 0."""
    return torch.log2(peaks.max() / peaks).round().clamp(0, limit)
