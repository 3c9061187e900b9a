"""The column sweep on compiled kernels: the same rule as :mod:`bitwright.stages.rounding.sweep`, many times faster.

Columns are rounded by the same operations in fp32. Their sums of feedback are taken in another order than torch's
matrix products take them (:mod:`bitwright.native.sweep` says which), so a current value may differ in its last bits:
the codes are equal but where it lies within those bits of a border between two levels, and behind such a place in the
same row, since the error of that column is another one then.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from bitwright.formats.ascending import ascending
from bitwright.native.loading import Library
from bitwright.native.sweep import AFFINE, LEVELS, PIECE, ROW_TABLE, ColumnSweep, RoundingRule, padded, sweeping
from bitwright.stages.bound import BoundQuantizer
from bitwright.stages.lowered import Affine, Levels

# Entries of learned tables, one for every row and set: beyond, the tables alone would be as large as a matrix.
_MOST_ENTRIES = 1 << 26


def serves(w: Tensor, bound: BoundQuantizer) -> bool:
    """Whether compiled kernels round ``w`` through ``bound``."""
    if sweeping() is None or w.device.type != "cpu" or w.dtype != torch.float32:
        return False
    tables = bound.row_tables()
    if bound.learned:
        return tables is not None and tables.numel() <= _MOST_ENTRIES
    return isinstance(bound.form, Affine) or (isinstance(bound.form, Levels) and bound.zero is None)


def rounding_rule(bound: BoundQuantizer, columns: Tensor, first: int, total: int) -> RoundingRule:
    """The rule of the columns (int64) that stand at the places from ``first`` on of a sweep over ``total`` columns."""
    sets = torch.zeros(total, dtype=torch.int32)
    missing = padded(bound.shape[0]) - bound.shape[0]
    tables = bound.row_tables()
    if tables is not None:
        sets[first : first + len(columns)] = bound.table_sets(columns)
        table = torch.nn.functional.pad(tables, (0, missing))
        borders = torch.nn.functional.pad(bound.row_borders(), (0, missing))
        return RoundingRule(ROW_TABLE, sets, table=table.contiguous(), borders=borders.contiguous())
    index, scale, zero = bound.parameter_sets(columns)
    sets[first : first + len(columns)] = index
    scale = torch.nn.functional.pad(scale, (0, missing), value=1.0).contiguous()
    zero = None if zero is None else torch.nn.functional.pad(zero, (0, missing)).contiguous()
    if isinstance(bound.form, Affine):
        return RoundingRule(AFFINE, sets, scale, zero, bound.form.low, bound.form.high)
    assert isinstance(bound.form, Levels)
    form = ascending(bound.format.grid)
    return RoundingRule(LEVELS, sets, scale, table=form.levels, borders=form.borders, codes=form.codes)


def sweep_blocks(
    w: Tensor,
    bound: BoundQuantizer,
    order: Tensor,
    upper: Tensor,
    carry: Tensor | None,
    blocks: list[tuple[int, int]],
    spans: dict[int, int],
    importance: Tensor,
    kernels: Library | None = None,
) -> Tensor:
    """Round ``w[out, in]``, block after block, and return the dequantized weight.

    ``spans`` (start -> stop) are the groups to fit as the sweep enters them, each within one of the blocks unless it
    begins at column 0.
    """
    columns = w.shape[1]
    state = ColumnSweep(w, order, upper, carry, max(stop - start for start, stop in blocks), kernels)
    rule = None if spans else rounding_rule(bound, order, 0, columns)
    for start, stop in blocks:
        state.begin(start, stop)
        for first, last in _pieces(start, stop, spans):
            if first in spans:
                end = spans[first]
                # Before anything was rounded the current weights are the weights.
                if first > 0:
                    state.feed(start, first, first, end)
                bound.open(first, end, state.look(first, end) if first else w[:, :end], importance)
            fed = max((s for s in spans if s <= first), default=start)
            state.feed(max(start, fed), first, first, last)
            state.round(first, last, rule or rounding_rule(bound, order[first:last], first, columns))
    bound.accept(state.codes)
    return state.values()


def _pieces(start: int, stop: int, spans: dict[int, int]) -> list[tuple[int, int]]:
    """``start..stop`` cut where a span begins and then after every ``PIECE`` columns."""
    cuts = sorted({start, stop, *(first for first in spans if start < first < stop)})
    return [(first, min(first + PIECE, last)) for begin, last in pairwise(cuts) for first in range(begin, last, PIECE)]
