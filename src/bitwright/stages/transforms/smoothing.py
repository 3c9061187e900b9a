"""SmoothQuant: move the difficulty of activations into the weights."""

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
class Smoothing(WithinUnit):
    """``s_j = max|x_j|^alpha / max|w_j|^(1-alpha)`` per input channel (Xiao et al. 2022, eq. 4).

    Inputs are divided by ``s`` (folded into what writes them), weights multiplied. ``kinds`` are the pairs it works
    on; the paper smooths what follows a norm.
    """

    alpha: float = 0.5
    kinds: tuple[str, ...] = ("norm_linear",)

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
        """Smooth every pair of the unit."""
        places = []
        note_missing(block, self.kinds, "nothing to smooth", events)
        for pair in block.pairs:
            if pair.kind not in self.kinds:
                continue
            found = statistics.get(pair.sinks[0], {}).get(AbsMax("float"))
            if found is None:
                events.record("no calibration signal", pair.sinks[0], "not smoothed: the layer was never called")
                continue
            weight = torch.stack([block.weight(sink).abs().amax(0) for sink in pair.sinks]).amax(0)
            s = shared_scale(pair, smoothing_scale(found, weight, self.alpha))
            scale_pair(block, pair, s)
            places.append((pair.source, {"largest": float(s.max()), "smallest": float(s.min())}))
        return TransformReport("smoothing", tuple(places))


def smoothing_scale(activation: Tensor, weight: Tensor, alpha: float) -> Tensor:
    """The scale per channel from maxima ``activation[in]`` and ``weight[in]``; 1 where a channel carries nothing."""
    s = activation.clamp_min(1e-5).pow(alpha) / weight.clamp_min(1e-5).pow(1 - alpha)
    return torch.where((activation > 0) & (weight > 0), s, torch.ones_like(s))
