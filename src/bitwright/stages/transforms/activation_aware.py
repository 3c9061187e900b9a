"""AWQ: scale salient input channels up before the rounding, by a search over one exponent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bitwright.events import Events
from bitwright.stages.quantizer import Quantizer
from bitwright.stages.solve import quantize_weight
from bitwright.stages.transforms.base import Block, PairView, TransformReport, WithinUnit
from bitwright.stages.transforms.pair import note_missing, scale_pair, shared_scale
from bitwright.statistics import ChannelMeans, Statistic


@dataclass(frozen=True)
class ActivationAwareScaling(WithinUnit):
    """``s = mean|x|^alpha`` with alpha from a grid, chosen by an output's error (Lin et al. 2023, eq. 4 and 5).

    The candidate weights ``Q(W s) / s`` of one pair's sinks are put into the smallest module that holds them all (the
    attention of query, key and value; the MLP of gate and up; a projection that is alone is its own), which is run on
    what ``batches`` calibration batches feed it; the alpha with the smallest squared change of its output wins. These
    are the modules that the published code names per architecture. Rounding in the search is to nearest in the
    recipe's format, without clipping. Pairs are searched in the order of the unit's flow.

    What differs from the published code: a fused projection that is a norm's only reader is scored by its own output
    instead of the attention's; the search reads ``batches`` batches instead of all calibration data.
    """

    points: int = 20
    batches: int = 1
    kinds: tuple[str, ...] = ("norm_linear", "linear_linear")

    @property
    def needs(self) -> tuple[Statistic, ...]:
        """Mean magnitudes of the float model's activations."""
        return (ChannelMeans("float"),)

    def apply(
        self,
        block: Block,
        statistics: Mapping[str, Mapping[Statistic, Any]],
        seed: int,
        events: Events,
    ) -> TransformReport:
        """Search and fold the scales of every pair of the unit."""
        places: list[tuple[str, Mapping[str, float]]] = []
        note_missing(block, self.kinds, "nothing to scale", events)
        for pair in block.pairs:
            quantizers = {sink: block.quantizer(sink) for sink in pair.sinks}
            if pair.kind not in self.kinds or all(q is None for q in quantizers.values()):
                continue
            means = statistics.get(pair.sinks[0], {}).get(ChannelMeans("float"))
            if means is None or means.count == 0:
                events.record("no calibration signal", pair.sinks[0], "not scaled: the layer was never called")
                continue
            alpha, gain, s = self._search(block, pair, quantizers, means.mean_abs)
            if alpha > 0:
                scale_pair(block, pair, s)
            places.append((pair.source, {"alpha": alpha, "error_ratio": gain}))
        return TransformReport("activation-aware scaling", tuple(places))

    def _search(
        self, block: Block, pair: PairView, quantizers: Mapping[str, Quantizer | None], magnitude: Tensor
    ) -> tuple[float, float, Tensor]:
        run = block.part(pair.sinks, self.batches)
        reference = run({})
        weights = {sink: block.weight(sink) for sink, q in quantizers.items() if q is not None}
        best: tuple[float, float, Tensor] | None = None
        first = 0.0
        for step in range(self.points):
            alpha = step / self.points
            s = shared_scale(pair, channel_scale(magnitude, alpha))
            trial = {}
            for sink, w in weights.items():
                quantizer = quantizers[sink]
                assert quantizer is not None
                trial[sink] = quantize_weight(w * s, Quantizer(quantizer.format)).dequantize() / s
            error = squared_difference(run(trial), reference)
            if step == 0:
                first = error
            if best is None or error < best[1]:
                best = (alpha, error, s)
        assert best is not None
        return best[0], best[1] / first if first else 1.0, best[2]


def channel_scale(magnitude: Tensor, alpha: float) -> Tensor:
    """``magnitude^alpha`` normalised so that the geometric mean of its extremes is 1; 1 for silent channels."""
    s = magnitude.clamp_min(1e-4).pow(alpha)
    return s / (s.max() * s.min()).sqrt()


def squared_difference(outputs: Sequence[Tensor], reference: Sequence[Tensor]) -> float:
    """Mean squared difference over all batches."""
    total = sum(float((y - z).square().sum(dtype=torch.float64)) for y, z in zip(outputs, reference, strict=True))
    return total / sum(z.numel() for z in reference)
