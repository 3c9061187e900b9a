"""Coordinate descent on the layer's output error: QuantEase.

Behdin et al. 2023 (arXiv:2309.01885): with ``S = X X^T`` the error ``||(W - Q) X||^2`` is quadratic in each column of
Q alone, with its minimum at ``beta_j = q_j + ((W - Q) S)_j / S_jj`` (lemma 1), and the best level is the one nearest to
it. Columns are visited in turn, all rows at once; every third sweep leaves the columns unrounded, which lets them leave
a local minimum. No inverse, no factorisation.

Cost: ``sweeps * out * in^2`` multiply-adds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bitwright.native.descent import PIECE, ColumnDescent
from bitwright.stages.bound import BoundQuantizer
from bitwright.stages.quantizer import WeightContext
from bitwright.stages.rounding.compiled import rounding_rule, serves
from bitwright.stages.rounding.nearest import Nearest
from bitwright.stages.rounding.second_order import SecondOrder
from bitwright.statistics import Hessian, Prefix, Statistic

Start = Literal["weight", "nearest", "second-order"]

_BLOCK = 128
_RUN = 32


def descent_matrix(h: Tensor, damping: float) -> Tensor:
    """Return ``S + damping * mean(diag S) * I``; columns that saw no signal get the mean diagonal of the others."""
    h = h.clone()
    diagonal = h.diagonal()
    live = diagonal > 0
    mean = float(diagonal[live].double().mean()) if bool(live.any()) else 1.0
    diagonal[~live] = mean
    diagonal.add_(damping * mean)
    return h


@dataclass(frozen=True)
class CoordinateDescent:
    """Cyclic coordinate descent over columns.

    Args:
        sweeps: passes over all columns.
        relax: every ``relax``-th sweep leaves its columns unrounded (the last sweep never does); 0 rounds in all, and
            then the error never rises from one sweep to the next.
        start: ``weight`` (the paper's: nothing is rounded yet), ``nearest``, or ``second-order``. With the last two
            no row ends worse than it began: the best visited rounding of each row is kept.
        damping: share of the mean diagonal added to the diagonal of S; nothing is inverted, so none is needed (the
            second-order start has its own).
        prefix: stream of the Hessian.
    """

    sweeps: int = 25
    relax: int = 3
    start: Start = "second-order"
    damping: float = 0.0
    prefix: Prefix = "layer"

    @property
    def needs(self) -> tuple[Statistic, ...]:
        """The Hessian of the input."""
        return (Hessian(self.prefix),)

    def solve(self, w: Tensor, bound: BoundQuantizer, context: WeightContext) -> Tensor:
        """Round ``w[out, in]``."""
        bound.refuse_vectors("coordinate descent")
        s = descent_matrix(context.read(Hessian(self.prefix)).matrix, self.damping)
        first = self._first(w, bound, context)
        state = _CompiledDescent(w, first, s, bound) if serves(w, bound) else _Descent(w, first, s, bound)
        if self.start != "weight":
            state.keep_better_rows()
        for sweep in range(self.sweeps):
            last = sweep == self.sweeps - 1
            moved = state.sweep(rounded=last or not self._relaxed(sweep))
            if last or self._relaxed(sweep + 1) or not moved:
                state.keep_better_rows()
            if not moved:
                break
        return bound.round(0, w.shape[1], state.best_value().t().contiguous())

    def _relaxed(self, sweep: int) -> bool:
        """Whether a sweep leaves its columns unrounded: the second of every three, as published."""
        return self.relax > 0 and sweep % self.relax == 1 and sweep < self.sweeps - 1

    def _first(self, w: Tensor, bound: BoundQuantizer, context: WeightContext) -> Tensor:
        if self.start == "second-order":
            rule = SecondOrder(order="activation", prefix=self.prefix)
            return rule.solve(w, bound, context)
        value = Nearest().solve(w, bound, context)
        return w if self.start == "weight" else value


class _BestRows:
    """The best rounding of each row so far, ``[in, out]``."""

    def __init__(self, s: Tensor, rows: int) -> None:
        self.s = s
        self.best: Tensor | None = None
        self.best_loss = torch.full((rows,), torch.inf, dtype=torch.float64)

    def keep(self, value: Tensor, error: Tensor) -> None:
        """Remember the rows of ``value`` that are better than any before, with ``error`` left to the weight."""
        loss = (error * (self.s @ error)).sum(0, dtype=torch.float64)
        better = loss < self.best_loss
        self.best_loss = torch.where(better, loss, self.best_loss)
        if self.best is None:
            self.best = value.clone()
        else:
            torch.where(better, value, self.best, out=self.best)

    def best_value(self) -> Tensor:
        """The best rounding of every row, ``[in, out]``."""
        assert self.best is not None
        return self.best


class _CompiledDescent(_BestRows):
    """The state of a descent on compiled kernels: the same visits, their sums in another order."""

    def __init__(self, w: Tensor, value: Tensor, s: Tensor, bound: BoundQuantizer) -> None:
        super().__init__(s, w.shape[0])
        self.state = ColumnDescent(w, value, s)
        columns = w.shape[1]
        self.rule = rounding_rule(bound, torch.arange(columns), 0, columns)
        self.handle = self.rule.handle(*w.shape)

    def sweep(self, rounded: bool) -> bool:
        """Visit every column once; return whether any value changed."""
        columns, moved = len(self.s), False
        for start in range(0, columns, PIECE):
            stop = min(start + PIECE, columns)
            moved = self.state.visit(start, stop, self.handle if rounded else None) or moved
        return moved

    def keep_better_rows(self) -> None:
        """As of :class:`_Descent`."""
        self.keep(self.state.value(), self.state.error())


class _Descent(_BestRows):
    """Transposed state ``[in, out]``: current value, its distance from the weight."""

    def __init__(self, w: Tensor, value: Tensor, s: Tensor, bound: BoundQuantizer) -> None:
        super().__init__(s, w.shape[0])
        self.bound = bound
        self.weight = w.t().contiguous()
        self.value = value.t().contiguous()
        self.error = self.weight - self.value

    def sweep(self, rounded: bool) -> bool:
        """Visit every column once; return whether any value changed."""
        columns = len(self.s)
        moved = False
        for start in range(0, columns, _BLOCK):
            stop = min(start + _BLOCK, columns)
            gradient = self.s[start:stop] @ self.error
            delta = torch.empty_like(gradient)
            for first in range(start, stop, _RUN):
                last = min(first + _RUN, stop)
                here = slice(first - start, last - start)
                if first > start:
                    gradient[here].addmm_(self.s[first:last, start:first], delta[: first - start], alpha=-1)
                self._run(first, last, gradient[here], delta[here], rounded)
            moved = moved or bool(delta.any())
        return moved

    def _run(self, first: int, last: int, gradient: Tensor, delta: Tensor, rounded: bool) -> None:
        tile = self.bound.tile(torch.arange(first, last)) if rounded else None
        block = self.s[first:last, first:last].contiguous()
        curvature = block.diagonal().tolist()
        value, error = self.value[first:last], self.error[first:last]
        wanted = torch.empty(value.shape[1])
        for index in range(last - first):
            slope = gradient[index]
            if index:
                slope.addmv_(delta[:index].t(), block[index, :index], alpha=-1)
            torch.add(value[index], slope, alpha=1.0 / curvature[index], out=wanted)
            if tile is not None:
                # The slope is spent; its row takes the rounded column.
                tile.round(index, wanted, slope)
                new = slope
            else:
                new = wanted
            torch.sub(new, value[index], out=delta[index])
            value[index] = new
        torch.sub(self.weight[first:last], value, out=error)

    def keep_better_rows(self) -> None:
        """Remember the rows that are better than any rounding of theirs before; call it after a rounded sweep."""
        self.keep(self.value, self.error)
