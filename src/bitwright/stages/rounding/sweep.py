"""The column sweep that second-order rounding rules share.

Column k of the current weight is ``w_k + sum_(j<k) U_jk (w_j - q_j)``, where ``q`` are the rounded columns, and, for
rules that also follow the input's own error, ``+ sum_(j<k) G_jk c_j`` with the current columns ``c``. The sums are
taken lazily: over all earlier blocks in one matrix product per block, within a block half by half (the first half is
finished, then feeds back to the second in one product), and column by column only within runs of a few.

Where compiled kernels are installed they do all of this (:mod:`bitwright.stages.rounding.compiled`); what follows here
is for installations without, and the tests' reference.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bitwright.stages.bound import BoundQuantizer
from bitwright.stages.lowered import Tile
from bitwright.stages.rounding.compiled import serves, sweep_blocks

# Columns per innermost run: few enough that their history stays in the cache.
_RUN = 32


@dataclass(frozen=True, eq=False)
class Factor:
    """``H = (upper + I) diag(pivots) (upper + I)^T``; ``upper[in, in]`` is strictly upper triangular, ``pivots[in]``.

    A pivot is what a squared rounding error of its column costs once the columns after it have made up for it.
    """

    upper: Tensor
    pivots: Tensor


def sweep(
    w: Tensor, bound: BoundQuantizer, order: Tensor, factor: Factor, carry: Tensor | None = None, block: int = 512
) -> Tensor:
    """Round the columns of ``w[out, in]`` in ``order`` and return the dequantized weight.

    Args:
        bound: the quantizer; groups are refitted as the sweep enters them if the order is natural and it can.
        order: int64 ``[in]``.
        factor: feedback of rounding errors (its ``upper`` is U) and what is left of each column's error (its pivots;
            ranges are fitted with them), in that order.
        carry: strictly upper triangular ``G[in, in]`` in that order, feedback of current columns.
        block: columns per lazy batch.
    """
    columns = w.shape[1]
    natural = bool(torch.equal(order, torch.arange(columns)))
    importance = torch.empty(columns)
    importance[order] = factor.pivots
    refit = natural and bound.refits
    spans = dict(bound.spans) if refit else {}
    if not refit:
        bound.open_all(w, importance)
    if serves(w, bound):
        # A window holds whole spans, but for one that is all columns.
        width = max((stop - start for start, stop in spans.items() if start > 0), default=0)
        blocks = _blocks(columns, max(block, width), spans)
        return sweep_blocks(w, bound, order, factor.upper, carry, blocks, spans, importance)
    state = _State(w, bound, order, factor.upper, carry, importance)
    for start, stop in _blocks(columns, max(block // bound.span, 1) * bound.span, spans):
        state.round_block(start, stop, spans)
    value = state.target if natural else state.target[torch.argsort(order)]
    return value.t().contiguous()


def _blocks(columns: int, block: int, spans: dict[int, int]) -> list[tuple[int, int]]:
    """Lazy batches of about ``block`` columns; a span that is not longer than one is not cut."""
    width = max((stop - start for start, stop in spans.items()), default=1)
    step = block // width * width if width <= block else block
    return [(start, min(start + step, columns)) for start in range(0, columns, step)]


def _cut(first: int, last: int, spans: dict[int, int], run: int) -> int | None:
    """Where to halve ``first..last``: between spans while there are several, then between runs; ``None``: nowhere."""
    borders = [s for s in spans if first < s < last]
    if borders:
        return borders[len(borders) // 2]
    if last - first <= run:
        return None
    runs = -(-(last - first) // run)
    return first + (runs + 1) // 2 * run


class _State:
    """Transposed buffers ``[in, out]`` of one sweep; a finished column of ``target`` holds its rounded values."""

    def __init__(
        self,
        w: Tensor,
        bound: BoundQuantizer,
        order: Tensor,
        upper: Tensor,
        carry: Tensor | None,
        importance: Tensor,
    ) -> None:
        self.bound = bound
        self.importance = importance
        self.order = order
        self.upper = upper
        self.carry = carry
        # Transposed first: picking contiguous columns is much faster than picking strided ones.
        self.target = w.t().contiguous()[order]
        self.error = torch.empty_like(self.target)
        self.current = None if carry is None else torch.empty_like(self.target)
        span = bound.span
        self.rounded = torch.empty(w.shape[0]) if span == 1 else torch.empty(span, w.shape[0])
        # Whole spans of vectors.
        self.run = max(_RUN // span, 1) * span

    def add_feedback(self, x: Tensor, start: int, stop: int, first: int, last: int) -> None:
        """Add to ``x``, the columns ``first..last``, what the finished columns ``start..stop`` feed back."""
        if start == stop:
            return
        x.addmm_(self.upper[start:stop, first:last].t(), self.error[start:stop])
        if self.carry is not None and self.current is not None:
            x.addmm_(self.carry[start:stop, first:last].t(), self.current[start:stop])

    def round_block(self, start: int, stop: int, spans: dict[int, int]) -> None:
        """Round the columns ``start..stop``; ``spans`` (start -> stop) are the groups to fit on entry."""
        x = self.target[start:stop].clone()
        self.add_feedback(x, 0, start, start, stop)
        self._visit(x, start, stop, spans)

    def _visit(self, x: Tensor, first: int, last: int, spans: dict[int, int]) -> None:
        """Round the columns ``first..last``; their current values ``x`` know of all columns before ``first``."""
        middle = _cut(first, last, spans, self.run)
        if first in spans and not any(first < s < last for s in spans):
            self._open(x, first, spans[first], last)
            spans = {}
        if middle is None:
            self._round_run(x, first, last)
            return
        self._visit(x[: middle - first], first, middle, spans)
        self.add_feedback(x[middle - first :], first, middle, middle, last)
        self._visit(x[middle - first :], middle, last, spans)

    def _open(self, x: Tensor, first: int, last: int, known: int) -> None:
        """Fit the span ``first..last`` to its current weights; ``x`` holds those of ``first..known``.

        A current weight is the best one while all later columns are free, also those of the span before it: column k
        of the span counts the change ``d_j = c_j - w_j`` of the earlier ones as if they were not going to be rounded.
        With the feedback f of the finished columns that is ``d (I + U) = f`` over the span.
        """
        target = self.target[first:last]
        if last <= known:
            change = x[: last - first].clone()
        else:
            change = target.clone()
            self.add_feedback(change, 0, first, first, last)
        change -= target
        system = self.upper[first:last, first:last].t()
        change = torch.linalg.solve_triangular(system, change, upper=False, unitriangular=True)
        self.bound.open(first, last, change.add_(target).t(), self.importance)

    def _round_run(self, x: Tensor, first: int, last: int) -> None:
        positions = self.order[first:last]
        tile = self.bound.tile(positions, self.importance[positions])
        upper = self.upper[first:last, first:last].t().contiguous()
        carry = None if self.carry is None else self.carry[first:last, first:last].t().contiguous()
        error, target = self.error[first:last], self.target[first:last]
        current = None if self.current is None else self.current[first:last]
        if self.bound.span > 1:
            self._round_spans(x, tile, upper, error, target)
            self.bound.take(positions, tile)
            return
        for index, column in enumerate(x.unbind()):
            if index:
                column.addmv_(error[:index].t(), upper[index, :index])
                if carry is not None and current is not None:
                    column.addmv_(current[:index].t(), carry[index, :index])
            if current is not None:
                current[index] = column
            tile.round(index, column, self.rounded)
            torch.sub(target[index], self.rounded, out=error[index])
            target[index] = self.rounded
        self.bound.take(positions, tile)

    def _round_spans(self, x: Tensor, tile: Tile, upper: Tensor, error: Tensor, target: Tensor) -> None:
        """Round a run of whole spans; ``upper`` (transposed) is zero within a span."""
        span = self.bound.span
        for start in range(0, len(x), span):
            stop = start + span
            column = x[start:stop]
            if start:
                column.addmm_(upper[start:stop, :start], error[:start])
            tile.round(start, column, self.rounded)
            torch.sub(target[start:stop], self.rounded, out=error[start:stop])
            target[start:stop] = self.rounded
