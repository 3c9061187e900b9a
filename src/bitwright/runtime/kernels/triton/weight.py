"""A weight made ready for the kernels: tiles of codes, scales by row and group, and how codes become levels."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bitwright.errors import InputError
from bitwright.formats import CodebookGrid, Codes, Format, IntGrid, MiniFloat, parse
from bitwright.formats.layout import FlatLayout, Layout
from bitwright.runtime.dispatch import UnsupportedError
from bitwright.runtime.kernels.triton.tiles import COLUMNS, pack_tiles, tile_counts
from bitwright.runtime.weight import PackedWeight

INTEGER, MINIFLOAT, TABLE, CODEBOOK = 0, 1, 2, 3
"""How a code becomes a level: by a subtraction, by moving bits, by one table, by a table of its row and group."""

FLOAT_SCALE, E8M0_SCALE, E4M3_SCALE, NO_SCALE = 0, 1, 2, 3
"""How a scale is stored on the device: as a float, as an exponent byte, as an e4m3 byte, not at all."""


@dataclass(frozen=True)
class Levels:
    """How the codes of a grid become numbers.

    Attributes:
        kind: ``INTEGER`` ... ``CODEBOOK``.
        center: integers: the code of the level 0 (where no zero points say so).
        mantissa: minifloats: digits behind the point.
        factor: levels as the kernel sees them are to be multiplied by this power of two.
        table: fp32 ``[2^bits]``, for ``TABLE``.
    """

    kind: int
    center: int = 0
    mantissa: int = 0
    factor: float = 1.0
    table: Tensor | None = None


@dataclass(frozen=True)
class TileWeight:
    """What the linear kernels read.

    Attributes:
        shape: ``(out, in)``. bits: of a code. tiles: uint8, see :mod:`.tiles`.
        group: columns that share a scale. scale: ``[out, groups]`` as stored; empty without scales.
        scale_kind: ``FLOAT_SCALE`` ... ``NO_SCALE``.
        zero: ``[out, groups]``, uint8 codes or floats, or ``None``.
        table: fp32 ``[2^bits]``, or fp16 ``[out, groups, 2^bits]`` for learned codebooks, or ``None``.
        factor: every product is multiplied by it at the end.
    """

    shape: tuple[int, int]
    bits: int
    tiles: Tensor
    group: int
    scale: Tensor
    scale_kind: int
    zero: Tensor | None
    table: Tensor | None
    levels: Levels
    factor: float

    def bytes(self) -> int:
        """Bytes on the device."""
        return sum(t.nbytes for t in (self.tiles, self.scale, self.zero, self.table) if t is not None)


def unserved(format_text: str, shape: tuple[int, int]) -> str | None:
    """Return why the kernels do not serve a format at this shape, or ``None``; no tensor is looked at."""
    fmt = parse(format_text)
    width, groups = group_width(fmt.granularity.layout(shape))
    if groups > 1 and width % 8:
        return f"serves scales for whole rows or for multiples of 8 neighbouring columns, not '{fmt}' at {shape}"
    return None


def group_width(layout: Layout) -> tuple[int, int]:
    """Return how many neighbouring columns of a row share parameters, and how many such groups a row has."""
    spans = layout.spans()
    return spans[0][1] - spans[0][0], len(spans)


def prepare(weight: PackedWeight, dtype: torch.dtype) -> TileWeight:
    """Bring a weight of one coded term into the kernels' order, on its device.

    Raises:
        UnsupportedError: several terms, or scales that the kernels do not serve.
    """
    del dtype  # the kernels convert as they read
    terms = weight.unpack().terms
    if len(terms) != 1 or not isinstance(terms[0], Codes):
        raise UnsupportedError(f"the kernels of Triton serve one coded term, not {weight.form}; use the reference")
    return tile_weight(terms[0])


def tile_weight(term: Codes) -> TileWeight:
    """Return the prepared form of a coded term.

    Raises:
        UnsupportedError: scales that the kernels do not serve.
    """
    fmt, shape = term.format, term.shape
    limit = unserved(str(fmt), shape)
    if limit is not None:
        raise UnsupportedError(f"this kernel {limit}; use the reference")
    width, groups = group_width(fmt.granularity.layout(shape))
    levels = levels_of(fmt, term.codes.device)
    stored, kind, factor = _scales(term)
    return TileWeight(
        shape=shape,
        bits=fmt.grid.bits,
        tiles=pack_tiles(term.codes, fmt.grid.bits),
        group=tile_counts(shape)[1] * COLUMNS if groups == 1 else width,
        scale=stored if kind == NO_SCALE else _by_row(stored, term),
        scale_kind=kind,
        zero=None if term.zero is None else _by_row(term.zero, term),
        table=levels.table if term.codebook is None else _by_row(term.codebook, term),
        levels=levels,
        factor=factor * levels.factor,
    )


@functools.lru_cache(maxsize=256)
def levels_of(fmt: Format, device: torch.device) -> Levels:
    """Return how the codes of a format become levels."""
    grid = fmt.grid
    if isinstance(grid, CodebookGrid):
        return Levels(CODEBOOK)
    if isinstance(grid, IntGrid):
        return Levels(INTEGER, center=-grid.low)
    table = grid.levels()
    if isinstance(grid, MiniFloat) and grid.exponent <= 5:
        factor = 2.0 ** (15 - grid.bias)
        moved = moved_bits(torch.arange(len(table)), grid.bits, grid.mantissa).double() * factor
        finite = torch.isfinite(table)
        if torch.equal(moved[finite], table[finite].double()):
            return Levels(MINIFLOAT, mantissa=grid.mantissa, factor=factor)
    full = torch.zeros(1 << grid.bits)
    full[: len(table)] = torch.nan_to_num(table, 0.0, 0.0, 0.0)
    return Levels(TABLE, table=full.to(device))


def moved_bits(codes: Tensor, bits: int, mantissa: int) -> Tensor:
    """Return float32: the fp16 numbers that have a minifloat's sign, exponent and mantissa at fp16's places."""
    code = codes.to(torch.int32)
    magnitude = (code & ((1 << (bits - 1)) - 1)) << (10 - mantissa)
    pattern = magnitude | ((code >> (bits - 1)) << 15)
    return pattern.to(torch.int16).view(torch.float16).to(torch.float32)


def _scales(term: Codes) -> tuple[Tensor, int, float]:
    """Return scales as the kernel reads them, their kind, and the factor that belongs to all of them."""
    storage = term.format.scale.storage
    if storage == "none":
        return torch.empty(0, device=term.codes.device), NO_SCALE, 1.0
    if storage == "e8m0":
        return term.scale.stored, E8M0_SCALE, 2.0**term.format.step_exponent
    if storage == "e4m3":
        outer = 1.0 if term.scale.outer is None else float(term.scale.outer)
        factor = outer * 2.0**8  # e4m3 at fp16's places is 2^8 too small
        if not math.isfinite(factor):
            raise InputError(f"the outer scale {outer:.3g} is too large; quantize again")
        return term.scale.stored, E4M3_SCALE, factor
    stored = term.scale.effective if storage in ("uint8", "int8") else term.scale.stored
    return stored, FLOAT_SCALE, 1.0


def _by_row(params: Tensor, term: Codes) -> Tensor:
    """Return parameters ``[rows, groups, ...]`` of the format's layout as ``[out, groups of a row, ...]``."""
    out = term.shape[0]
    layout = term.format.granularity.layout(term.shape)
    width, groups = group_width(layout)
    tail = params.shape[2:]
    if params.shape[:2] == (out, groups):
        return params.contiguous()
    if params.shape[:2] == (1, 1):
        return params.expand(out, 1, *tail).contiguous()
    if isinstance(layout, FlatLayout) and params.shape[1] == out * groups:
        return params.reshape(out, groups, *tail).contiguous()
    places = _places(layout, params, width)
    return params.reshape(-1, *tail)[places.reshape(-1)].reshape(out, groups, *tail)


def _places(layout: Layout, params: Tensor, width: int) -> Tensor:
    """Return the index of the parameters (rows after each other) of every row and group, int64 ``[out, groups]``."""
    rows, groups = params.shape[:2]
    index = torch.arange(rows * groups, device=params.device).reshape(rows, groups)
    return layout.expand(index).expand(layout.shape)[:, ::width].contiguous()
