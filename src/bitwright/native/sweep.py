"""The buffers and calls of a compiled column sweep; :mod:`bitwright.stages.rounding.compiled` drives it.

The current value of column k is its weight, to which what each earlier column j = 0, 1, ... feeds back is added in that
order, by one fused multiply-add for its error and then, with a carry, one for its current value, all in fp32. So the
result depends neither on the number of threads, nor on how the calls cut the columns, nor on the instruction set.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bitwright.errors import InputError
from bitwright.native.buffers import NOTHING, fresh, span
from bitwright.native.loading import Library, extension, library

AFFINE, LEVELS, ROW_TABLE = 0, 1, 2

ROWS = 32
"""Rows of a tile."""

PIECE = 128
"""Most columns that one call rounds."""


def sweeping(kernels: Library | None = None) -> Library | None:
    """The kernels that sweeps run on, or ``None``: without vector instructions torch's products are faster."""
    found = library() if kernels is None else kernels
    return None if found is None or (kernels is None and found.name == "scalar") else found


def padded(rows: int) -> int:
    """Rows that parameters of ``rows`` rows are padded to."""
    return -(-rows // ROWS) * ROWS


@dataclass(frozen=True, eq=False)
class RoundingRule:
    """How columns are rounded; a value that is no number goes to the lowest level.

    ``AFFINE``: to ``(clamp(round(x / scale + zero), low, high) - zero) * scale``, code ``level - low``.
    ``LEVELS``: to the level of ``table[n]`` that ``borders[n - 1]`` choose (``x / scale`` above a border goes up),
    times the scale; ``codes[2, n]``, uint8, are the levels' codes without and with a sign of ``x``.
    ``ROW_TABLE``: likewise in ``table[sets, n, rows]`` with ``borders[sets, n - 1, rows]``, without a scale; the code
    is the place in the table.

    ``scale`` and ``zero`` are fp32 ``[sets, rows]`` with rows padded to tiles (scales with 1); ``sets[in]``, int32, is
    the set of every column in the order of the sweep.
    """

    kind: int
    sets: Tensor
    scale: Tensor | None = None
    zero: Tensor | None = None
    low: float = 0.0
    high: float = 0.0
    table: Tensor | None = None
    borders: Tensor | None = None
    codes: Tensor | None = None

    def handle(self, rows: int, columns: int) -> Any:
        """The compiled view for a weight of this shape; every buffer is checked against it."""
        parameters = self.scale if self.scale is not None else self.table
        levels = 0
        if self.table is not None:
            levels = self.table.shape[0] if self.kind == LEVELS else self.table.shape[1]
        try:
            return extension().Rounding(
                padded(rows) // ROWS, columns, self.kind, 0 if parameters is None else parameters.shape[0],
                span(self.sets, torch.int32), span(self.scale, torch.float32), span(self.zero, torch.float32),
                self.low, self.high, levels, span(self.table, torch.float32), span(self.borders, torch.float32),
                span(self.codes, torch.uint8),
            )  # fmt: skip
        except ValueError as error:
            raise InputError(f"a rounding rule does not fit its weight: {error}") from error


class ColumnSweep:
    """One sweep over ``w[out, in]``.

    Args:
        w: fp32.
        order: int64 ``[in]``, the columns in the order of the sweep.
        upper, carry: fp32 ``[in, in]`` in that order; row j says how the error of column j (for the carry: its current
            value) feeds back to the later ones. Only what is above the diagonal is read.
        width: columns of the window that :meth:`begin` opens.
        kernels: the instruction set, by default the fastest.

    Raises:
        InputError: for other dtypes or shapes, or an order that is none.
    """

    def __init__(
        self, w: Tensor, order: Tensor, upper: Tensor, carry: Tensor | None, width: int, kernels: Library | None = None
    ) -> None:
        found = sweeping(kernels)
        if found is None:
            raise InputError("there are no compiled sweeps here; use the ones on torch")
        self._kernels = found
        self._threads = torch.get_num_threads()
        self._out, self._in = w.shape
        rows = padded(self._out)
        self._target = fresh(rows * self._in)
        self._history = fresh(rows * self._in * (1 if carry is None else 2))
        self._x = fresh(rows * width)
        self._single = carry is None
        self._window = (0, 0)
        self.codes = fresh(*w.shape, dtype=torch.uint8)
        # What the compiled view points to.
        self._kept = (order.contiguous(), upper.contiguous(), None if carry is None else carry.contiguous())
        try:
            self._sweep = extension().Sweep(
                self._out, self._in, span(self._kept[1], torch.float32),
                NOTHING if self._kept[2] is None else span(self._kept[2], torch.float32),
                span(self._kept[0], torch.int64), span(self._target), span(self._history),
            )  # fmt: skip
            source = w.contiguous()
            found.sweep_load(self._sweep, span(source, torch.float32), self._threads)
        except ValueError as error:
            raise InputError(f"a column sweep does not fit its weight: {error}") from error

    def begin(self, start: int, stop: int) -> None:
        """Open the window ``start..stop``: its columns take in what all columns before ``start`` feed back."""
        self._window = (start, stop - start)
        self._kernels.sweep_begin(self._sweep, *self._window, self._span(), self._threads)
        self.feed(0, start, start, stop)

    def feed(self, start: int, stop: int, first: int, last: int) -> None:
        """The columns ``first..last`` of the window take in what the finished columns ``start..stop`` feed back."""
        if start < stop and first < last:
            place = (*self._window, self._span(), start, stop, first, last)
            self._kernels.sweep_feed(self._sweep, *place, self._threads)

    def look(self, first: int, last: int) -> Tensor:
        """What the columns ``first..last`` would be if none of them were rounded, ``[out, last - first]``.

        They must know of all columns before ``first``; the window stays as it is.
        """
        current = torch.empty(self._out, last - first)
        kept = self._x.clone() if last - first > PIECE else None
        for start in range(first, last, PIECE):
            stop = min(start + PIECE, last)
            self.feed(first, start, start, stop)
            place = (*self._window, self._span(), start, stop, span(current), last - first, start - first)
            self._kernels.sweep_look(self._sweep, *place, self._threads)
        if kept is not None:
            self._x = kept
        return current

    def round(self, first: int, last: int, rule: RoundingRule) -> None:
        """Round the columns ``first..last``, at most ``PIECE``; they must know of all columns before ``first``."""
        place = (*self._window, self._span(), first, last, rule.handle(self._out, self._in), span(self.codes))
        self._kernels.sweep_round(self._sweep, *place, self._threads)

    def values(self) -> Tensor:
        """The rounded weight ``[out, in]``, once every column was rounded; ends the sweep."""
        count = self._out * self._in
        # What columns feed back is not needed any more: its memory is there, other memory would have to be made.
        values = self._history[:count].view(self._out, self._in) if self._single else fresh(self._out, self._in)
        self._kernels.sweep_values(self._sweep, span(values), self._threads)
        self._sweep = None
        return values

    def _span(self) -> tuple[int, int]:
        return span(self._x)
