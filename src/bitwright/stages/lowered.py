"""The plain form of a format that the column sweeps run on: an affine rule, a table of levels, or a learned table.

A sweep rounds one column after another, so the cost of a call counts as much as its arithmetic. A tile fetches the
parameters of a run of columns once, rounds with in-place operations into buffers, and makes the codes of the whole run
at its end, with the format's own encoder. Everything is held transposed, ``[columns, out]``: a column is contiguous.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from bitwright.formats import AdditiveGrid, CodebookGrid, IntGrid, TrellisGrid
from bitwright.formats.ascending import ascending
from bitwright.formats.format import AnyGrid
from bitwright.formats.tables import middles_below

# From here on a grid's own rounding, which has more to set up, is faster than a search per value.
_LARGE = 1 << 15


@dataclass(frozen=True, eq=False)
class Affine:
    """Round to an integer and clamp to ``low .. high``."""

    low: float
    high: float

    def round_(self, x: Tensor, out: Tensor) -> None:
        """Write the level nearest to ``x`` to ``out`` (of the same shape), in units of the scale."""
        torch.round(x, out=out)
        out.clamp_(self.low, self.high)


@dataclass(frozen=True, eq=False)
class Levels:
    """Ascending ``levels[n]``; ``borders[n-1]``: the largest fp32 number that still goes to the lower neighbour."""

    grid: AnyGrid
    levels: Tensor
    borders: Tensor

    def round_(self, x: Tensor, out: Tensor) -> None:
        """Write the level nearest to ``x`` to ``out`` (contiguous, of the same shape), in units of the scale."""
        if x.numel() >= _LARGE:
            out.copy_(self.grid.round(x))
            return
        place = torch.bucketize(x, self.borders, out_int32=True)
        torch.index_select(self.levels, 0, place.view(-1), out=out.view(-1))


@dataclass(frozen=True, eq=False)
class Spans:
    """Points of vectors: the last axis is rounded in whole spans; ``codebook``: that of a learned grid."""

    grid: AnyGrid
    codebook: Tensor | None = None

    def encode(self, x: Tensor, importance: Tensor | None = None) -> Tensor:
        """Return the uint8 codes of ``x[..., n]``, in units of the scale.

        ``importance[n]``: what a squared error in each column costs. Trellises count it; points of short vectors are
        the nearest ones.
        """
        if isinstance(self.grid, TrellisGrid):
            return self.grid.encode(x, importance)
        if isinstance(self.grid, AdditiveGrid) and self.codebook is not None:
            return self.grid.encode_with(x, self.codebook)
        return self.grid.encode(x)

    def decode(self, codes: Tensor) -> Tensor:
        """Return the fp32 values of ``codes[..., n]``, in units of the scale."""
        if isinstance(self.grid, AdditiveGrid) and self.codebook is not None:
            return self.grid.decode_with(codes, self.codebook)
        return self.grid.decode(codes)

    def round_(self, x: Tensor, out: Tensor) -> None:
        """Write the points nearest to ``x[..., n]`` to ``out`` (of the same shape), in units of the scale."""
        out.copy_(self.decode(self.encode(x)))


Form = Affine | Levels | Spans


def lower(grid: AnyGrid) -> Form:
    """Return the affine, table or vector form of ``grid``; it rounds as ``grid.round`` does, ties included.

    Raises:
        ValueError: for a learned codebook, which is no property of the grid.
    """
    if isinstance(grid, CodebookGrid | AdditiveGrid):
        raise ValueError("a learned codebook has no fixed levels")
    if grid.span > 1:
        return Spans(grid)
    if isinstance(grid, IntGrid):
        return Affine(grid.min_level, grid.max_level)
    form = ascending(grid)
    return Levels(grid, form.levels, form.borders)


class Tile(Protocol):
    """A run of columns that is about to be rounded."""

    def round(self, index: int, x: Tensor, out: Tensor) -> None:
        """Round column ``index`` of the run, ``x[out]``, and write its dequantized values to ``out``.

        Of vectors all columns of the span that begins at ``index``, ``x[span, out]`` and ``out`` likewise.
        """

    def codes(self) -> Tensor:
        """Return the uint8 codes ``[columns, out]`` once every column was rounded."""


class ScaledTile:
    """Columns whose values are ``(level - zero) * scale`` with fixed levels.

    ``form`` is what :func:`lower` makes of ``grid``; ``scale`` and ``zero`` hold one tensor ``[out or 1]`` per column.
    """

    def __init__(self, grid: AnyGrid, form: Form, scale: list[Tensor], zero: list[Tensor] | None, out: int) -> None:
        self._grid = grid
        self._form = form
        self._scaled = torch.empty(len(scale), out)
        self._rows = self._scaled.unbind()
        self._scale = scale
        self._zero = zero

    def round(self, index: int, x: Tensor, out: Tensor) -> None:
        """See :class:`Tile`."""
        scaled, scale = self._rows[index], self._scale[index]
        torch.div(x, scale, out=scaled)
        if self._zero is None:
            self._form.round_(scaled, out)
        else:
            scaled.add_(self._zero[index])
            self._form.round_(scaled, out)
            out.sub_(self._zero[index])
        out.mul_(scale)

    def codes(self) -> Tensor:
        """See :class:`Tile`."""
        return self._grid.encode(self._scaled)


class TableTile:
    """Columns whose rows look their values up in learned ascending tables.

    ``tables[count, levels]``; ``which[out or 1, columns or 1]`` is the table of every weight.
    """

    def __init__(self, tables: Tensor, which: Tensor, columns: int, out: int) -> None:
        self._tables = tables
        self._which = which.expand(out, -1)
        self._codes = torch.zeros(columns, out, dtype=torch.uint8)
        self._shared: tuple[Tensor, Tensor] | None = self._look_up(0) if which.shape[1] == 1 else None

    def _look_up(self, index: int) -> tuple[Tensor, Tensor]:
        table = self._tables[self._which[:, index]]
        return table, middles_below(table).contiguous()

    def round(self, index: int, x: Tensor, out: Tensor) -> None:
        """See :class:`Tile`."""
        table, borders = self._shared or self._look_up(index)
        place = torch.searchsorted(borders, x.unsqueeze(1).contiguous())
        self._codes[index] = place.squeeze(1)
        out.copy_(table.gather(1, place).squeeze(1))

    def codes(self) -> Tensor:
        """See :class:`Tile`."""
        return self._codes


class SpanTile:
    """Columns that are rounded in whole spans; ``scale`` holds one tensor ``[out or 1]`` per column.

    ``importance[columns]``: see :meth:`Spans.encode`.
    """

    def __init__(self, form: Spans, scale: list[Tensor], out: int, importance: Tensor | None = None) -> None:
        self._form = form
        self._importance = importance
        self._scale = scale
        self._codes = torch.zeros(len(scale), out, dtype=torch.uint8)

    def round(self, index: int, x: Tensor, out: Tensor) -> None:
        """See :class:`Tile`."""
        scale = self._scale[index]
        importance = None if self._importance is None else self._importance[index : index + len(x)].contiguous()
        codes = self._form.encode((x / scale).t().contiguous(), importance)
        self._codes[index : index + len(x)] = codes.t()
        torch.mul(self._form.decode(codes).t(), scale, out=out)

    def codes(self) -> Tensor:
        """See :class:`Tile`."""
        return self._codes
