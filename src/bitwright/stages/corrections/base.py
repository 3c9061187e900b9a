"""The contract of a correction."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor

from bitwright.statistics import Statistic


@runtime_checkable
class Correction(Protocol):
    """Adjusts a layer's float side (its bias) once its weight is quantized."""

    @property
    def needs(self) -> tuple[Statistic, ...]:
        """Statistics of the layer's input."""

    def bias(self, w: Tensor, quantized: Tensor, bias: Tensor | None, statistics: dict[Statistic, object]) -> Tensor | None:
        """New bias of a layer with float weight ``w[out, in]`` and dequantized weight ``quantized``."""
