"""Cut a matrix into the groups that share parameters, and put it together again.

Every layout turns ``w[out, in]`` into ``g[rows, groups, n]``; parameters are ``[rows, groups]``. A group that the size
does not divide is shorter; in ``g`` it is padded with zeros and ``mask`` says which values are real.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from bitwright.errors import InputError

Rows = tuple[int, int]


class Layout(Protocol):
    """What a granularity makes of one shape ``(out, in)``."""

    @property
    def shape(self) -> tuple[int, int]: ...

    @property
    def params_shape(self) -> tuple[int, int]:
        """``(rows, groups)`` of the parameters."""
        ...

    @property
    def group_length(self) -> int:
        """``n``: values of a full group."""
        ...

    def split(self, w: Tensor) -> Tensor:
        """Return ``g[rows, groups, n]`` (a view of ``w`` where the groups divide it)."""
        ...

    def join(self, g: Tensor) -> Tensor:
        """Return ``w[out, in]`` of ``g[rows, groups, n]`` (inverse of split; padding is dropped)."""
        ...

    def mask(self, like: Tensor | None = None) -> Tensor | None:
        """Return bool, broadcastable to ``g``, True for real values, on the device of ``like``; None if all are."""
        ...

    def expand(self, params: Tensor) -> Tensor:
        """Return parameters ``[rows, groups]`` as a tensor that broadcasts to ``[out, in]``."""
        ...

    def group_of_column(self, column: int) -> int:
        """Return the index of the span of :meth:`spans` that holds the column."""
        ...

    def spans(self) -> list[tuple[int, int]]:
        """Return ``(start, stop)`` of the column ranges in which every row uses one group."""
        ...

    def row_chunks(self, elements: int) -> list[Rows]:
        """Return row ranges of about that many elements that cut no group, in order."""
        ...

    def params_of_rows(self, params: Tensor, rows: Rows) -> Tensor:
        """Return the view of ``params[rows, groups]`` that a chunk of :meth:`row_chunks` uses."""
        ...

    def of_rows(self, rows: Rows) -> Layout:
        """Return the layout of such a chunk."""
        ...


def _pad(flat: Tensor, length: int) -> Tensor:
    """Return ``flat[..., k]`` with zeros appended up to ``length``; the same tensor if nothing is missing."""
    missing = length - flat.shape[-1]
    return torch.nn.functional.pad(flat, (0, missing)) if missing else flat


def _check_join(g: Tensor, rows: int, groups: int) -> None:
    if tuple(g.shape[:2]) != (rows, groups):
        raise InputError(f"groups of shape {tuple(g.shape)} do not belong to a layout of {rows} x {groups} groups")


def _check_split(w: Tensor, shape: tuple[int, int]) -> None:
    if tuple(w.shape) != shape:
        raise InputError(f"a matrix of shape {tuple(w.shape)} does not fit the layout of {shape}; make a new layout")


def _cut_rows(shape: tuple[int, int], elements: int, multiple: int) -> list[Rows]:
    step = max(elements // shape[1] // multiple, 1) * multiple
    return [(start, min(start + step, shape[0])) for start in range(0, shape[0], step)]


@dataclass(frozen=True)
class AxisLayout:
    """Groups of ``size`` along the rows (or, ``transposed``, along the columns) of ``shape``."""

    shape: tuple[int, int]
    size: int
    transposed: bool = False

    @property
    def _length(self) -> int:
        return self.shape[0] if self.transposed else self.shape[1]

    @property
    def group_length(self) -> int:
        return min(self.size, self._length)

    @property
    def params_shape(self) -> tuple[int, int]:
        lines = self.shape[1] if self.transposed else self.shape[0]
        return lines, -(-self._length // self.group_length)

    def split(self, w: Tensor) -> Tensor:
        _check_split(w, self.shape)
        rows, groups = self.params_shape
        lines = w.t() if self.transposed else w
        return _pad(lines, groups * self.group_length).reshape(rows, groups, self.group_length)

    def join(self, g: Tensor) -> Tensor:
        _check_join(g, *self.params_shape)
        lines = g.reshape(g.shape[0], -1)[:, : self._length]
        return (lines.t() if self.transposed else lines).contiguous()

    def mask(self, like: Tensor | None = None) -> Tensor | None:
        groups = self.params_shape[1]
        if groups * self.group_length == self._length:
            return None
        place = torch.arange(groups * self.group_length, device=None if like is None else like.device)
        return (place < self._length).view(1, groups, self.group_length)

    def expand(self, params: Tensor) -> Tensor:
        if params.shape[1] == 1:
            return params.t() if self.transposed else params
        full = params.repeat_interleave(self.group_length, dim=1)[:, : self._length]
        return full.t() if self.transposed else full

    def spans(self) -> list[tuple[int, int]]:
        width = 1 if self.transposed else self.group_length
        return [(start, min(start + width, self.shape[1])) for start in range(0, self.shape[1], width)]

    def group_of_column(self, column: int) -> int:
        return column if self.transposed else column // self.group_length

    def row_chunks(self, elements: int) -> list[Rows]:
        if self.transposed:
            return [(0, self.shape[0])]
        return _cut_rows(self.shape, elements, 1)

    def params_of_rows(self, params: Tensor, rows: Rows) -> Tensor:
        return params if self.transposed else params[rows[0] : rows[1]]

    def of_rows(self, rows: Rows) -> AxisLayout:
        return AxisLayout((rows[1] - rows[0], self.shape[1]), self.size, self.transposed)


@dataclass(frozen=True)
class BlockLayout:
    """Blocks of ``rows`` x ``cols``; parameters ``[ceil(out/rows), ceil(in/cols)]``."""

    shape: tuple[int, int]
    rows: int
    cols: int

    @property
    def _sides(self) -> tuple[int, int]:
        return min(self.rows, self.shape[0]), min(self.cols, self.shape[1])

    @property
    def group_length(self) -> int:
        return self._sides[0] * self._sides[1]

    @property
    def params_shape(self) -> tuple[int, int]:
        rows, cols = self._sides
        return -(-self.shape[0] // rows), -(-self.shape[1] // cols)

    def split(self, w: Tensor) -> Tensor:
        _check_split(w, self.shape)
        (rows, cols), (down, across) = self._sides, self.params_shape
        padded = torch.nn.functional.pad(w, (0, across * cols - w.shape[1], 0, down * rows - w.shape[0]))
        return padded.view(down, rows, across, cols).transpose(1, 2).reshape(down, across, rows * cols)

    def join(self, g: Tensor) -> Tensor:
        _check_join(g, *self.params_shape)
        (rows, cols), (down, across) = self._sides, self.params_shape
        tiles = g.reshape(down, across, rows, cols).transpose(1, 2)
        return tiles.reshape(down * rows, across * cols)[: self.shape[0], : self.shape[1]].contiguous()

    def mask(self, like: Tensor | None = None) -> Tensor | None:
        (rows, cols), (down, across) = self._sides, self.params_shape
        if (down * rows, across * cols) == self.shape:
            return None
        return self.split(torch.ones(self.shape, dtype=torch.bool, device=None if like is None else like.device))

    def expand(self, params: Tensor) -> Tensor:
        rows, cols = self._sides
        full = params.repeat_interleave(rows, dim=0)[: self.shape[0]]
        return full.repeat_interleave(cols, dim=1)[:, : self.shape[1]]

    def spans(self) -> list[tuple[int, int]]:
        cols = self._sides[1]
        return [(start, min(start + cols, self.shape[1])) for start in range(0, self.shape[1], cols)]

    def group_of_column(self, column: int) -> int:
        return column // self._sides[1]

    def row_chunks(self, elements: int) -> list[Rows]:
        return _cut_rows(self.shape, elements, self._sides[0])

    def params_of_rows(self, params: Tensor, rows: Rows) -> Tensor:
        side = self._sides[0]
        return params[rows[0] // side : -(-rows[1] // side)]

    def of_rows(self, rows: Rows) -> BlockLayout:
        side, cols = self._sides
        return BlockLayout((rows[1] - rows[0], self.shape[1]), side, cols)


@dataclass(frozen=True)
class FlatLayout:
    """Runs of ``size`` values of the flattened matrix; parameters ``[1, ceil(out*in/size)]``."""

    shape: tuple[int, int]
    size: int

    @property
    def _count(self) -> int:
        return self.shape[0] * self.shape[1]

    @property
    def group_length(self) -> int:
        return min(self.size, self._count)

    @property
    def params_shape(self) -> tuple[int, int]:
        return 1, -(-self._count // self.group_length)

    def split(self, w: Tensor) -> Tensor:
        _check_split(w, self.shape)
        groups = self.params_shape[1]
        return _pad(w.reshape(-1), groups * self.group_length).reshape(1, groups, self.group_length)

    def join(self, g: Tensor) -> Tensor:
        _check_join(g, *self.params_shape)
        return g.reshape(-1)[: self._count].reshape(self.shape).contiguous()

    def mask(self, like: Tensor | None = None) -> Tensor | None:
        groups = self.params_shape[1]
        if groups * self.group_length == self._count:
            return None
        place = torch.arange(groups * self.group_length, device=None if like is None else like.device)
        return (place < self._count).view(1, groups, self.group_length)

    def expand(self, params: Tensor) -> Tensor:
        if params.shape[1] == 1:
            return params
        if self.shape[1] % self.group_length == 0:
            per_row = params.view(self.shape[0], -1)
            return per_row.repeat_interleave(self.group_length, dim=1)
        return params.reshape(-1).repeat_interleave(self.group_length)[: self._count].view(self.shape)

    def spans(self) -> list[tuple[int, int]]:
        # Within a row the borders lie at multiples of the greatest common divisor of run and row.
        columns = self.shape[1]
        width = columns if self.params_shape[1] == 1 else math.gcd(self.group_length, columns)
        return [(start, start + width) for start in range(0, columns, width)]

    def group_of_column(self, column: int) -> int:
        start, stop = self.spans()[0]
        return column // (stop - start)

    def row_chunks(self, elements: int) -> list[Rows]:
        if self.params_shape[1] == 1:
            return _cut_rows(self.shape, elements, 1)
        multiple = self.group_length // math.gcd(self.group_length, self.shape[1])
        return _cut_rows(self.shape, elements, multiple)

    def params_of_rows(self, params: Tensor, rows: Rows) -> Tensor:
        if params.shape[1] == 1:
            return params
        columns, size = self.shape[1], self.group_length
        return params[:, rows[0] * columns // size : -(-rows[1] * columns // size)]

    def of_rows(self, rows: Rows) -> FlatLayout:
        shape = (rows[1] - rows[0], self.shape[1])
        return FlatLayout(shape, shape[0] * shape[1] if self.params_shape[1] == 1 else self.group_length)
