"""Static ranges of an input that is seen through statistics instead of being held."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from bitwright.formats import Format
from bitwright.stages.quantizer import Fitted, Quantizer, WeightContext
from bitwright.stages.ranges.minmax import MinMax
from bitwright.stages.ranges.mse import Mse
from bitwright.statistics import Histogram, Range, Statistic


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
    estimator: object = quantizer.range
    if not isinstance(estimator, ActivationRange):
        raise TypeError(f"{estimator!r} cannot fit a static activation range; use InputMinMax or a searched one")
    return estimator.fit_statistics(quantizer.format, statistics)


@dataclass(frozen=True)
class InputMinMax:
    """The exact range of an input over all calibration tokens, per tensor."""

    statistic: Range = field(default_factory=Range)

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


@dataclass(frozen=True)
class InputMse:
    """The range per tensor with the smallest squared rounding error over a histogram of the input.

    Tries ``steps`` shares of each end of the exact range, of both ends together where the format is symmetric (Nagel
    et al. 2021, section 3.1). The error is that of bin centres, so a bin must be small against a step of the format:
    meant for at most 8 bits with the default 4096 bins.
    """

    smallest: float = 0.3
    steps: int = 29
    statistic: Histogram = field(default_factory=lambda: Histogram(bins=4096))

    @property
    def needs(self) -> tuple[Statistic, ...]:
        """A histogram of the input."""
        return (self.statistic,)

    def importance(self, context: WeightContext) -> Tensor | None:
        """Every token counts alike."""
        return None

    def fit(self, g: Tensor, format: Format, mask: Tensor | None, importance: Tensor | None) -> Fitted:
        """The same search on values that are held."""
        return Mse(smallest=self.smallest, steps=self.steps).fit(g, format, mask, importance)

    def fit_statistics(
        self, format: Format, statistics: Mapping[Statistic, Any]
    ) -> tuple[Format, Tensor, Tensor | None]:
        """Scale and zero point of the best candidate."""
        found = statistics[self.statistic]
        shares = torch.linspace(1.0, self.smallest, self.steps)
        low, high = shares * min(found.minimum, 0.0), shares * max(found.maximum, 0.0)
        if format.asymmetric:
            # An end at zero has one candidate; equal ones would only cost time.
            low, high = (t.flatten() for t in torch.meshgrid(low.unique(), high.unique(), indexing="ij"))
        scale, zero = format.scale_from_range(low.unsqueeze(1), high.unsqueeze(1))
        stored, stored_zero = format.store_scale(scale).effective, format.store_zero(zero)
        seen = found.counts > 0
        x, counts = found.centres[seen], found.counts[seen]
        x = x.clamp(found.minimum, found.maximum)
        errors = torch.stack([
            (format.round(x.view(1, 1, -1), stored[i : i + 1], None if stored_zero is None else stored_zero[i : i + 1])
             .flatten().sub_(x).square_() * counts).sum()
            for i in range(len(stored))
        ])  # fmt: skip
        best = int(errors.argmin())
        return format, scale[best], None if zero is None else zero[best]
