"""A small random layer with correlated inputs, and the objective that second-order methods minimise."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bitwright.events import Events
from bitwright.formats import Format, parse
from bitwright.stages.bound import BoundQuantizer
from bitwright.stages.quantizer import RangeEstimator, WeightContext
from bitwright.stages.ranges import MinMax
from bitwright.statistics import CrossHessian, Hessian
from bitwright.statistics.hessian import SecondMoment


@dataclass(frozen=True, eq=False)
class Layer:
    """``w[out, in]``, the mean second moment ``h[in, in]`` of its inputs and the cross moment of their own error."""

    w: Tensor
    h: Tensor
    cross: Tensor

    def context(self, prefix: str = "layer", events: Events | None = None) -> WeightContext:
        statistics = {
            Hessian(prefix): SecondMoment(self.h, 512),
            CrossHessian(prefix): SecondMoment(self.cross, 512),
        }
        return WeightContext("layer", statistics, 0, events or Events())

    def loss(self, value: Tensor) -> float:
        """Mean squared error of the layer's output, summed over outputs."""
        return float(self.row_loss(value).sum())

    def row_loss(self, value: Tensor) -> Tensor:
        error = (value - self.w).double()
        return ((error @ self.h.double()) * error).sum(1)

    def bind(self, text: str | Format, estimator: RangeEstimator | None = None) -> BoundQuantizer:
        fmt = parse(text) if isinstance(text, str) else text
        return BoundQuantizer(fmt, estimator or MinMax(), self.w)


def correlated_layer(out: int = 24, columns: int = 48, seed: int = 0, tokens: int = 512) -> Layer:
    """Inputs share a few strong directions and have channels of unequal size, as those of a network do."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=generator) / columns**0.5
    mix += torch.randn(columns, 3, generator=generator) @ torch.randn(3, columns, generator=generator) / columns**0.5
    x = torch.randn(tokens, columns, generator=generator) @ mix
    x *= torch.exp(0.7 * torch.randn(columns, generator=generator))
    noise = 0.1 * torch.randn(tokens, columns, generator=generator) * x.std(0) + 0.05 * x.roll(1, 1)
    w = torch.randn(out, columns, generator=generator) * columns**-0.5
    w *= torch.exp(0.5 * torch.randn(out, 1, generator=generator))
    return Layer(w, x.t() @ x / tokens, noise.t() @ x / tokens)
