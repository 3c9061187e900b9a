"""The quantizer: one value that says how a site is coded.

A quantizer is a format, a range estimator (or a codebook), a rounding and residual terms. Post-training quantization,
learning, the runtime and the exporters share it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from torch import Tensor

from bitwright.events import Events
from bitwright.formats import Format, LowRank, Sparse
from bitwright.statistics import Statistic
from bitwright.statistics.blocks import BlockMoment

if TYPE_CHECKING:
    from bitwright.stages.bound import BoundQuantizer


@dataclass(frozen=True)
class WeightContext:
    """What a stage may read beside the weight: results of the statistics it asked for, a seed, where it is."""

    where: str = "weight"
    statistics: Mapping[Statistic, Any] = field(default_factory=dict)
    seed: int = 0
    events: Events = field(default_factory=Events)

    def read(self, request: Statistic) -> Any:
        """Return the result of a statistic that was asked for.

        Raises:
            KeyError: if the engine did not gather it (a bug of the stage: it did not list it in ``needs``).
        """
        return self.statistics[request]


@dataclass(frozen=True)
class Fitted:
    """Parameters of groups ``g[rows, groups, n]``: ``scale`` and ``zero``, ``[rows, groups]``, not yet stored."""

    scale: Tensor
    zero: Tensor | None


@runtime_checkable
class RangeEstimator(Protocol):
    """Chooses scale and zero point of groups of values."""

    @property
    def needs(self) -> tuple[Statistic, ...]:
        """Statistics of the site's input that ``importance`` is made from."""

    def importance(self, context: WeightContext) -> Tensor | BlockMoment | None:
        """Weight of each input column's squared error, ``[in]``, or ``None`` for equal weights.

        Second moments of neighbouring columns weigh products of errors too.
        """

    def fit(self, g: Tensor, format: Format, mask: Tensor | None, importance: Tensor | None) -> Fitted:
        """Fit ``g[rows, groups, n]``; ``mask`` is true where a value is real, ``importance`` broadcasts to ``g``.

        Where :meth:`importance` gave second moments, it holds quadratic forms ``[1, groups, n, n]`` instead, if the
        groups run along rows.
        """


@runtime_checkable
class FormatChooser(Protocol):
    """A range estimator that also chooses the format (LLM-FP4's exponent/mantissa split)."""

    def choose(self, w: Tensor, format: Format, importance: Tensor | None) -> Format:
        """Return the format for ``w[out, in]``, of the same bits as ``format``."""


@runtime_checkable
class Rounding(Protocol):
    """Chooses the code of every weight, given a bound quantizer."""

    @property
    def needs(self) -> tuple[Statistic, ...]:
        """Statistics of the site's input."""

    def solve(self, w: Tensor, bound: BoundQuantizer, context: WeightContext) -> Tensor:
        """Round ``w[out, in]`` through ``bound`` and return the dequantized weight."""


@runtime_checkable
class CodebookLearner(Protocol):
    """Learns the table of a codebook format."""

    @property
    def needs(self) -> tuple[Statistic, ...]:
        """Statistics of the site's input or weight."""

    def fit(self, w: Tensor, format: Format, keep: Tensor | None, context: WeightContext) -> Tensor:
        """Return tables ``[rows, groups, levels]``, ascending, or for vectors codebooks ``[books, entries, span]``.

        ``keep[out, in]`` is false where a weight is coded by another term.
        """


@runtime_checkable
class Residual(Protocol):
    """A further term of the sum: taken out before the rounding, or fitted to the error after it."""

    @property
    def when(self) -> Literal["before", "after"]:
        """Side of the rounding."""

    @property
    def needs(self) -> tuple[Statistic, ...]:
        """Statistics of the site's input or weight."""

    def fit(self, w: Tensor, context: WeightContext) -> Sparse | LowRank:
        """``before``: take a part out of the weight ``w``; ``after``: represent the error ``w``."""


@dataclass(frozen=True)
class Quantizer:
    """Format, range or codebook, rounding and residual terms of one kind of site.

    ``range`` and ``rounding`` default to absmax (codebooks of vectors: the root of the mean square) and nearest.
    ``codebook`` is required by formats with a learned table and forbidden for the others.
    """

    format: Format
    range: RangeEstimator | None = None
    rounding: Rounding | None = None
    codebook: CodebookLearner | None = None
    residuals: tuple[Residual, ...] = ()

    @property
    def needs(self) -> tuple[Statistic, ...]:
        """Every statistic that some part asks for, without repeats."""
        parts = [self.range, self.rounding, self.codebook, *self.residuals]
        requests = [request for part in parts if part is not None for request in part.needs]
        return tuple(dict.fromkeys(requests))
