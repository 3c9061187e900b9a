"""Static ranges of an input that is seen through statistics instead of being held."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from bitwright.formats import Format
from bitwright.stages.quantizer import Fitted, Quantizer, WeightContext
from bitwright.stages.ranges.minmax import MinMax
from bitwright.statistics import Range, Statistic


@runtime_checkable
class ActivationRange(Protocol):
    """A range estimator that can also work from its own statistics of an input."""

    def fit_statistics(
        self, format: Format, statistics: Mapping[Statistic, Any]
    ) -> tuple[Format, Tensor, Tensor | None]:
        """Return the format (a search may choose another grid), scale ``[1]`` or ``[in]`` and zero point or None."""


def fit_activation(
    quantizer: Quantizer, statistics: Mapping[Statistic, Any]
) -> tuple[Format, Tensor, Tensor | None] | None:
    """Fit a static input quantizer; ``None`` where the layer was never called.

    Raises:
        TypeError: if the quantizer's range cannot work from statistics.
    """
    if not statistics:
        return None
    if not isinstance(quantizer.range, ActivationRange):
        raise TypeError(f"{quantizer.range!r} cannot fit a static activation range; use InputMinMax or a searched one")
    return quantizer.range.fit_statistics(quantizer.format, statistics)


@dataclass(frozen=True)
class InputMinMax:
    """The exact range of an input over all calibration tokens, per tensor."""

    statistic: Range = Range()

    @property
    def needs(self) -> tuple[Statistic, ...]:
        """Extrema of the input."""
        return (self.statistic,)

    def importance(self, context: WeightContext) -> Tensor | None:
        """Extrema have no weights."""
        return None

    def fit(self, g: Tensor, format: Format, mask: Tensor | None, importance: Tensor | None) -> Fitted:
        """The same rule on values that are held."""
        return MinMax().fit(g, format, mask, importance)

    def fit_statistics(
        self, format: Format, statistics: Mapping[Statistic, Any]
    ) -> tuple[Format, Tensor, Tensor | None]:
        """Scale and zero point of the whole tensor's range."""
        low, high = statistics[self.statistic]
        scale, zero = format.scale_from_range(torch.tensor([[low]]), torch.tensor([[high]]))
        return format, scale.flatten(), None if zero is None else zero.flatten()
