"""A number format: grid x granularity x scales x zero points, and the arithmetic that it defines."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from bitwright.errors import InputError
from bitwright.formats import scales
from bitwright.formats.granularity import Block, Channel, FlatBlock, Granularity, Group, Token
from bitwright.formats.grids import IntGrid
from bitwright.formats.lattice import LatticeGrid
from bitwright.formats.minifloat import MiniFloat
from bitwright.formats.packing import packed_columns
from bitwright.formats.scales import SMALLEST_SCALE, Scale, ScaleFormat, ZeroFormat
from bitwright.formats.tables import CodebookGrid, TableGrid
from bitwright.formats.trellis import TrellisGrid
from bitwright.formats.vectors import AdditiveGrid

if TYPE_CHECKING:
    from bitwright.formats.tensor import Codes

AnyGrid = IntGrid | MiniFloat | TableGrid | CodebookGrid | AdditiveGrid | LatticeGrid | TrellisGrid
Time = Literal["static", "dynamic"]


def default_scale(grid: AnyGrid, granularity: Granularity, time: Time) -> ScaleFormat:
    """Return how scales are stored unless a text says so: fp16; fp32 for activations; none for learned levels."""
    if isinstance(grid, CodebookGrid):
        return ScaleFormat("none")
    return ScaleFormat("fp32" if time == "dynamic" or isinstance(granularity, Token) else "fp16")


@dataclass(frozen=True)
class Format:
    """What the numbers of one tensor look like.

    ``zero`` is given for asymmetric integers (their grid is unsigned); ``time`` says whether ranges are fixed before
    use (static) or measured on every input (dynamic). ``clip`` is the share of a given range that is covered; values
    beyond it saturate. ``str(format)`` is the canonical text of :func:`parse`.

    Raises:
        InputError: parts that exclude each other.
    """

    grid: AnyGrid
    granularity: Granularity
    scale: ScaleFormat = field(default_factory=ScaleFormat)
    zero: ZeroFormat | None = None
    time: Time = "static"
    clip: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.clip <= 2:
            raise InputError(f"clip={self.clip:g} is no share of a range; give a number above 0, such as clip=0.9")
        if self.time not in ("static", "dynamic"):
            raise InputError(f"time is 'static' or 'dynamic', not {self.time!r}")
        if self.zero is not None and not (isinstance(self.grid, IntGrid) and not self.grid.signed):
            raise InputError(f"zero points need unsigned integers, not {self.grid.text}; e.g. 'int4 g128 asym'")
        if self.scale.storage == "none" and not isinstance(self.grid, CodebookGrid):
            raise InputError(f"scale=none belongs to learned codebooks, not to {self.grid.text}; use scale=fp16")
        if self.scale.storage == "uint8" and not isinstance(self.granularity, FlatBlock):
            # Blocks of 256 scales follow the flattened tensor; only then does a file of bitsandbytes say the same.
            raise InputError("double-quantized scales go with flat blocks; e.g. 'nf4 b64 scale=double'")

        self._check_span()

    def _check_span(self) -> None:
        """Vectors lie within one row and one group."""
        span, cut = self.grid.span, self.granularity
        if span == 1:
            return
        if isinstance(cut, Channel | Group) and cut.axis != (0 if isinstance(cut, Channel) else 1):
            raise InputError(f"vectors of {span} weights lie along the rows, {cut.text!r} cuts across; use channel")
        size = cut.size if isinstance(cut, Group | FlatBlock) else cut.cols if isinstance(cut, Block) else span
        if size % span:
            raise InputError(f"{self.grid.text} codes {span} weights at once, which groups of {size} would cut")

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Refuse a matrix whose rows are not whole spans of the grid.

        Raises:
            InputError: columns that the span does not divide.
        """
        if shape[-1] % self.grid.span:
            raise InputError(
                f"{self.grid.text} codes {self.grid.span} neighbouring weights at once; rows of {shape[-1]} are not "
                "whole such vectors, choose a scalar format for this layer"
            )

    @property
    def learned(self) -> bool:
        """Whether the levels are learned and travel with the tensor."""
        return isinstance(self.grid, CodebookGrid | AdditiveGrid)

    def codebook_shape(self, shape: tuple[int, ...]) -> tuple[int, ...] | None:
        """Return the shape of a matrix's learned codebook: ``[rows, groups, 2^b]``, or that of additive codebooks."""
        if isinstance(self.grid, AdditiveGrid):
            return self.grid.codebook_shape
        if isinstance(self.grid, CodebookGrid):
            return (*self.granularity.layout(shape).params_shape, 1 << self.grid.bits)
        return None

    def __str__(self) -> str:
        from bitwright.formats.text import format_text

        return format_text(self)

    @property
    def asymmetric(self) -> bool:
        """Whether the format has zero points."""
        return self.zero is not None

    @property
    def step_exponent(self) -> int:
        """Exponent of the step that an E8M0 scale of 1 stands for: -(b-2) for integers (MXINT8: 2^-6), else 0."""
        if self.scale.storage == "e8m0" and isinstance(self.grid, IntGrid) and self.grid.signed:
            return -max(self.grid.bits - 2, 0)
        return 0

    # -- bits ---------------------------------------------------------------------------------------------------

    def storage_bits(self, shape: tuple[int, ...]) -> int:
        """Return the stored bits of a matrix: 8 times the bytes of ``QuantizedTensor.to_tensors``.

        Packed rows of codes end on a byte; zero points are packed as one stream; codebooks are fp16, the levels of a
        custom table float32.
        """
        self.check_shape(shape)
        out, columns = shape
        rows, groups = self.granularity.layout(shape).params_shape
        count = rows * groups
        bits = out * packed_columns(columns, self.grid.bits) * 8
        bits += self.scale.storage_bits(count)
        if self.zero is not None:
            bits += packed_columns(count, self.zero.bits(self.grid.bits)) * 8
        if (book := self.codebook_shape(shape)) is not None:
            bits += math.prod(book) * 16
        if isinstance(self.grid, TableGrid) and self.grid.custom:
            bits += len(self.grid.values) * 32
        return bits

    def bits_per_weight(self, shape: tuple[int, ...]) -> float:
        """Return ``storage_bits`` over the number of weights."""
        return self.storage_bits(shape) / (shape[0] * shape[1])

    # -- parameters ---------------------------------------------------------------------------------------------

    def scale_from_range(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return float32 scale and zero point (None without one), not yet rounded to storage, for ranges of values.

        ``low`` and ``high`` have any shape, usually ``[rows, groups]``. Signed integers: ``absmax / ((2^b-1)/2)``,
        narrow ones ``absmax / (2^(b-1)-1)``; asymmetric: the range widened to hold 0, over ``2^b - 1`` steps; other
        grids: ``absmax / max_level``; E8M0: the power of two of the scale's rule. A range of zero gives 1, or
        the smallest scale where an outer scale follows the largest one. All of it for the share ``clip`` of the range.
        """
        low, high = low.to(torch.float32), high.to(torch.float32)
        if self.clip != 1:
            low, high = low * self.clip, high * self.clip
        if self.zero is not None:
            return self._asymmetric_range(low, high)
        absmax = torch.maximum(low.abs(), high.abs())
        if self.scale.storage == "e8m0":
            return self._power_of_two_scale(absmax), None
        return self._positive(self._absmax_scale(low, high, absmax), absmax), None

    def _absmax_scale(self, low: Tensor, high: Tensor, absmax: Tensor) -> Tensor:
        grid = self.grid
        if isinstance(grid, IntGrid):
            if not grid.signed:
                return high / grid.max_level
            if grid.narrow:
                return absmax / grid.max_level
            # One bit has the levels -1 and 0: half a step would round every value to 0, so a whole one is taken.
            return absmax / (((1 << grid.bits) - 1) / 2 if grid.bits > 1 else 1)
        if grid.min_level == -grid.max_level or grid.min_level >= 0:
            return absmax / grid.max_level
        return torch.maximum(high / grid.max_level, low / grid.min_level)

    def _positive(self, scale: Tensor, extent: Tensor) -> Tensor:
        """Replace the scale of an empty range and keep the others above the float32 subnormals."""
        neutral = SMALLEST_SCALE if self.scale.outer is not None else 1.0
        return torch.where(extent > 0, scale.clamp(min=SMALLEST_SCALE), torch.full_like(scale, neutral))

    def _asymmetric_range(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        steps = self.grid.max_level
        low, high = low.clamp(max=0.0), high.clamp(min=0.0)
        scale = self._positive((high - low) / steps, high - low)
        if self.scale.storage == "e8m0":
            scale = self._rounded_up(scale)
        zero = -low / scale
        if self.zero is not None and self.zero.storage == "code":
            zero = zero.round().clamp(0.0, steps)
        return scale, zero

    def _power_of_two_scale(self, absmax: Tensor) -> Tensor:
        """Return the E8M0 scale times the grid's step, by exact bit arithmetic; see :class:`ScaleFormat`."""
        grid = self.grid
        if isinstance(grid, MiniFloat):
            top, mantissa = grid.max_exponent, (grid.mantissa if grid.bits < 8 else 1)
        elif isinstance(grid, IntGrid) and grid.signed:
            top, mantissa = 0, max(grid.bits - 2, 0)
        else:
            return self._rounded_up(self._positive(absmax / grid.max_level, absmax))
        rounding = 1 << (22 - mantissa) if self.scale.rule == "ct" else 0
        byte = scales.exponent_byte(absmax, top, rounding)
        byte = torch.where(absmax > 0, byte, torch.full_like(byte, 127))
        return scales.power_of_two(byte) * 2.0**self.step_exponent

    @staticmethod
    def _rounded_up(scale: Tensor) -> Tensor:
        """Return the smallest powers of two that are not below the scales."""
        return scales.power_of_two(scales.exponent_byte(scale, 0, (1 << 23) - 1))

    def store_scale(self, scale: Tensor, outer: Tensor | None = None) -> Scale:
        """Round float32 scales ``[rows, groups]`` to their stored form.

        ``outer`` is the result of :meth:`fit_outer`; without it, it is fitted to ``scale``. Use ``Scale.effective``
        for all arithmetic that follows. Scales that underflow become the smallest positive stored value.

        Raises:
            InputError: a scale beyond the range of its stored type.
        """
        return scales.store(self.scale, scale, self.step_exponent, outer)

    def fit_outer(self, scale: Tensor) -> Tensor | None:
        """Return the outer scales for all inner scales of a tensor, or None; see :func:`scales.fit_outer`."""
        return scales.fit_outer(self.scale, scale)

    def store_zero(self, zero: Tensor | None) -> Tensor | None:
        """Return zero points in their stored type (uint8 codes or floats); None stays None."""
        if self.zero is None or zero is None:
            return None
        return self.zero.store(zero, self.grid.bits)

    # -- codes --------------------------------------------------------------------------------------------------

    def _scaled(self, g: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
        scaled = g.to(torch.float32) / scale.unsqueeze(-1)
        return scaled if zero is None else scaled.add_(zero.to(torch.float32).unsqueeze(-1))

    def _learned_grid(self, codebook: Tensor | None) -> CodebookGrid | AdditiveGrid | None:
        if not isinstance(self.grid, CodebookGrid | AdditiveGrid):
            return None
        if codebook is None:
            raise InputError(f"the format {self} needs a codebook: that of its tensor")
        return self.grid

    def encode(self, g: Tensor, scale: Tensor, zero: Tensor | None = None, codebook: Tensor | None = None) -> Tensor:
        """Return uint8 codes of ``g[rows, groups, n]``: nearest level of ``g / scale (+ zero)``, saturating.

        ``scale`` is the effective float32 scale ``[rows, groups]``, ``zero`` in any type, ``codebook``
        of the shape :meth:`codebook_shape` for learned grids. NaN must be refused before.
        """
        learned = self._learned_grid(codebook)
        scaled = self._scaled(g, scale, zero)
        if learned is not None and codebook is not None:
            return learned.encode_with(scaled, codebook)
        return self.grid.encode(scaled)

    def decode(
        self, codes: Tensor, scale: Tensor, zero: Tensor | None = None, codebook: Tensor | None = None
    ) -> Tensor:
        """Return float32 values ``(level - zero) * scale`` of codes ``[rows, groups, n]``."""
        learned = self._learned_grid(codebook)
        if learned is not None and codebook is not None:
            levels = learned.decode_with(codes, codebook)
        else:
            levels = self.grid.decode(codes)
        if zero is not None:
            levels = levels.sub_(zero.to(torch.float32).unsqueeze(-1))
        return levels.mul_(scale.unsqueeze(-1))

    def round(self, g: Tensor, scale: Tensor, zero: Tensor | None = None, codebook: Tensor | None = None) -> Tensor:
        """Return ``decode(encode(g))`` as float32 ``[rows, groups, n]`` without making codes where possible."""
        if self.learned:
            return self.decode(self.encode(g, scale, zero, codebook), scale, zero, codebook)
        levels = self.grid.round(self._scaled(g, scale, zero))
        if zero is not None:
            levels = levels.sub_(zero.to(torch.float32).unsqueeze(-1))
        return levels.mul_(scale.unsqueeze(-1))

    # -- whole matrices -----------------------------------------------------------------------------------------

    def quantize(self, w: Tensor, outer: Tensor | None = None) -> Codes:
        """Round a matrix ``w[out, in]`` to nearest with ranges from its largest values; see :mod:`.nearest`.

        Raises:
            InputError: NaN or Inf in ``w``, or a learned grid (which needs a codebook from a stage).
        """
        from bitwright.formats.nearest import quantize

        return quantize(self, w, outer)

    def fake_quantize(self, x: Tensor) -> Tensor:
        """Return ``x`` (``[..., features]``) rounded by absmax round-to-nearest, in its own shape and type."""
        from bitwright.formats.nearest import fake_quantize

        return fake_quantize(self, x)
