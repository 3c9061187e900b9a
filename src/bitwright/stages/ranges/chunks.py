"""Groups in pieces: searches over ranges keep their temporaries in the cache."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bitwright.formats import Format

# Elements per piece: a few fp32 temporaries of this size (smaller ones pay more for the calls than the cache saves).
_CHUNK = 1 << 18


@dataclass(frozen=True, eq=False)
class Piece:
    """A run of rows (or of groups, where there is one row) of ``g[rows, groups, n]`` with its mask and importance."""

    g: Tensor
    weight: Tensor | None
    rows: slice
    groups: slice


def pieces(g: Tensor, mask: Tensor | None, importance: Tensor | None) -> Iterator[Piece]:
    """Cut ``g`` into pieces of bounded size; ``weight`` joins mask and importance, and broadcasts to the piece."""
    rows, groups, n = g.shape
    by_row = max(1, _CHUNK // (groups * n))
    by_group = groups if groups * n <= _CHUNK else max(1, _CHUNK // n)
    for row in range(0, rows, by_row):
        for group in range(0, groups, by_group):
            at = slice(row, min(row + by_row, rows)), slice(group, min(group + by_group, groups))
            yield Piece(g[at], _weight(mask, importance, at), *at)


def _weight(mask: Tensor | None, importance: Tensor | None, at: tuple[slice, slice]) -> Tensor | None:
    parts = [_part(t.float(), at) for t in (mask, importance) if t is not None]
    if not parts:
        return None
    return parts[0] if len(parts) == 1 else parts[0] * parts[1]


def _part(t: Tensor, at: tuple[slice, slice]) -> Tensor:
    """The piece of a tensor that may have one row or one group for all."""
    rows = slice(None) if t.shape[0] == 1 else at[0]
    groups = slice(None) if t.shape[1] == 1 else at[1]
    return t[rows, groups]


def weighted_sum(values: Tensor, weight: Tensor | None) -> Tensor:
    """Sum over the last axis in fp32; ``values`` are spent."""
    if weight is not None:
        values.mul_(weight)
    return torch.sum(values, -1)


def outer_of(format: Format, outer: Tensor | None, rows: slice) -> Tensor | None:
    """Return the outer scales that the rows of a piece use."""
    by_row = format.scale.outer is not None and format.scale.outer.rows
    return outer[rows] if by_row and outer is not None else outer
