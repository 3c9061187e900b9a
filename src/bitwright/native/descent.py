"""Coordinate descent over columns, compiled.

A visit moves column k to ``value + slope * (1 / S_kk)``, one fused multiply-add in fp32, or to the level nearest to it.
Its slope is the sum over j = 0, 1, ... of ``S_jk`` times the error of column j as it stood when the columns that are
visited together (at most ``PIECE``) were entered, then of ``S_ik`` times what has left the ones among them that were
visited before, all by fused multiply-adds in this order: threads and instruction sets do not change a bit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bitwright.errors import InputError
from bitwright.native.buffers import span
from bitwright.native.loading import Library, extension
from bitwright.native.sweep import PIECE, ROWS, padded, sweeping

__all__ = ["PIECE", "ColumnDescent"]


class ColumnDescent:
    """The state of a descent from ``value[out, in]`` towards ``w[out, in]`` (fp32) under ``moments[in, in]``.

    Raises:
        InputError: for other dtypes or shapes, or without compiled kernels.
    """

    def __init__(self, w: Tensor, value: Tensor, moments: Tensor, kernels: Library | None = None) -> None:
        found = sweeping(kernels)
        if found is None:
            raise InputError("there are no compiled descents here; use the ones on torch")
        self._kernels = found
        self.shape = (w.shape[0], w.shape[1])
        self._weight, self._value = _tiled(w), _tiled(value)
        self._error = self._weight - self._value
        self._moments = moments.contiguous()
        self._inverse = moments.diagonal().reciprocal().contiguous()
        try:
            self._descent = extension().Descent(
                *self.shape, span(self._moments, torch.float32), span(self._inverse, torch.float32),
                span(self._weight, torch.float32), span(self._value, torch.float32), span(self._error),
            )  # fmt: skip
        except ValueError as error:
            raise InputError(f"a descent does not fit its weight: {error}") from error

    def visit(self, first: int, last: int, rule: Any) -> bool:
        """Visit the columns ``first..last``, at most ``PIECE``; return whether a value changed.

        ``rule`` is the handle of a rounding rule; ``None`` leaves the columns unrounded.
        """
        return bool(self._kernels.descend(self._descent, first, last, rule, torch.get_num_threads()))

    def value(self) -> Tensor:
        """The current values, ``[in, out]``."""
        return self._turned(self._value)

    def error(self) -> Tensor:
        """The weight less the current values, ``[in, out]``."""
        return self._turned(self._error)

    def _turned(self, tiles: Tensor) -> Tensor:
        return tiles.transpose(0, 1).reshape(self.shape[1], -1)[:, : self.shape[0]].contiguous()


def _tiled(matrix: Tensor) -> Tensor:
    """``matrix[out, in]`` as ``[tiles, in, 32]``; rows that are not there are zero."""
    rows = torch.nn.functional.pad(matrix, (0, 0, 0, padded(len(matrix)) - len(matrix)))
    return rows.view(-1, ROWS, matrix.shape[1]).transpose(1, 2).contiguous()
