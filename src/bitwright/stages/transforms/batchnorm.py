"""BatchNorm folding: a normalisation with fixed statistics is a scale and a shift of the layer before it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bitwright.events import Events
from bitwright.stages.transforms.base import Block, DataFree, PairView, TransformReport
from bitwright.statistics import Statistic


@dataclass(frozen=True)
class FoldBatchNorm(DataFree):
    """Multiply every BatchNorm into the convolution (or linear) that it follows, and remove it.

    ``gain (W x + b - mean) / sqrt(var + eps) + bias`` is again a convolution; the layer gets a bias if it had none.
    Exact but for one rounding to the stored dtype (Krishnamoorthi 2018, section 3.1.2; Nagel et al. 2021, section
    2.3.1). Does nothing to networks without BatchNorm.
    """

    def apply(
        self,
        block: Block,
        statistics: Mapping[str, Mapping[Statistic, Any]],
        seed: int,
        events: Events,
    ) -> TransformReport:
        """Fold every proved pair of the unit."""
        places = []
        for pair in block.pairs:
            if pair.kind == "batchnorm_conv":
                scale = fold(block, pair).abs()
                places.append((pair.source, {"largest": float(scale.max()), "smallest": float(scale.min())}))
        return TransformReport("fold batchnorm", tuple(places))


def batchnorm_affine(block: Block, path: str, channels: int) -> tuple[Tensor, Tensor]:
    """Scale and shift ``[channels]`` of a BatchNorm in evaluation mode, float64."""
    mean = block.attribute(path, "running_mean").double()
    spread = (block.attribute(path, "running_var").double() + float(block.attribute(path, "eps"))).sqrt()
    gain, bias = block.attribute(path, "weight"), block.attribute(path, "bias")
    scale = (torch.ones(channels, dtype=torch.float64) if gain is None else gain.detach().double()) / spread
    shift = -mean * scale
    return scale, shift if bias is None else shift + bias.detach().double()


def fold(block: Block, pair: PairView) -> Tensor:
    """Fold ``pair.source`` into its one sink; returns the scale per output channel."""
    (path,) = pair.sinks
    w = block.weight(path)
    scale, shift = batchnorm_affine(block, pair.source, w.shape[0])
    bias = block.bias(path)
    block.set_weight(path, (w.double() * scale.unsqueeze(1)).float())
    block.set_bias(path, (shift if bias is None else bias.double() * scale + shift).float())
    block.remove(pair.source)
    return scale
