"""Second-order rounding with linear feedback: GPTQ, in the LDL form of QuIP.

GPTQ (Frantar et al. 2022, arXiv:2210.17323, algorithm 1) pushes the rounding error of column j onto the columns that
are still free, with the rows of the upper Cholesky factor of the inverse Hessian. QuIP (Chee et al. 2023, theorem 6)
shows that this equals rounding column k of ``w + (w - w_hat) U`` where ``H = (U + I) D (U + I)^T`` with strictly upper
triangular ``U``. This form needs one Cholesky factorisation and no inverse: a third of the work.

Cost: ``in^3 / 3`` for the factor and ``out * in^2`` for the sweep, multiply-adds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bitwright.stages.bound import BoundQuantizer
from bitwright.stages.quantizer import WeightContext
from bitwright.statistics import Hessian, Prefix, Statistic

Order = Literal["natural", "activation"]

# Damping is raised tenfold at most this often before a Hessian is given up.
_ATTEMPTS = 6


def feedback_factor(h: Tensor, damping: float, context: WeightContext) -> Tensor:
    """Return the strictly upper triangular ``U[in, in]`` with ``H + damping * mean(diag H) * I = (U+I) D (U+I)^T``.

    Columns that saw no signal get a unit diagonal: they are rounded to nearest and disturb nobody. Where the factor
    does not exist the damping is raised tenfold, which is an event.

    Raises:
        ArithmeticError: if no damping up to 10^6 times the first makes the matrix positive definite.
    """
    h = h.clone()
    diagonal = h.diagonal()
    diagonal[diagonal <= 0] = 1.0
    mean = float(diagonal.mean())
    for attempt in range(_ATTEMPTS):
        amount = damping * 10.0**attempt if damping > 0 or attempt == 0 else 10.0 ** (attempt - 8)
        damped = h.clone()
        damped.diagonal().add_(amount * mean)
        # Reversing rows and columns turns the lower Cholesky factor into the upper one that the sweep needs.
        lower, info = torch.linalg.cholesky_ex(damped.flip(0, 1))
        if int(info) == 0:
            upper = lower.flip(0, 1)
            upper = upper / upper.diagonal()
            return upper.triu_(1)
        context.events.record("damping raised", context.where, f"Hessian not positive definite at damping {amount:g}")
    raise ArithmeticError(f"{context.where}: the Hessian stays indefinite at any damping")


@dataclass(frozen=True)
class SecondOrder:
    """Round columns in turn; each column is corrected by the errors of those before it.

    Args:
        damping: share of the mean diagonal that is added to the Hessian's diagonal.
        order: ``natural``, or ``activation``: columns with the largest second moment first. With ``activation`` all
            groups are fitted to the original weights first, so that groups keep their original columns ("static
            groups"); with ``natural`` a group is fitted to the corrected weights when the sweep enters it.
        prefix: stream of the Hessian.
        block: columns per lazy batch; changes speed, not results beyond rounding of sums.
    """

    damping: float = 0.01
    order: Order = "natural"
    prefix: Prefix = "layer"
    block: int = 128

    @property
    def needs(self) -> tuple[Statistic, ...]:
        """The Hessian of the input."""
        return (Hessian(self.prefix),)

    def solve(self, w: Tensor, bound: BoundQuantizer, context: WeightContext) -> Tensor:
        """Round ``w[out, in]``."""
        h = context.read(Hessian(self.prefix)).matrix
        if self.order == "activation":
            order = torch.argsort(h.diagonal(), descending=True, stable=True)
        else:
            order = torch.arange(h.shape[0])
        factor = feedback_factor(h[order][:, order], self.damping, context)
        return sweep(w, bound, order, factor, self.block)


def sweep(w: Tensor, bound: BoundQuantizer, order: Tensor, factor: Tensor, block: int) -> Tensor:
    """Round the columns of ``w[out, in]`` in ``order`` with the feedback ``factor[in, in]`` (in that order).

    Everything is held transposed, ``[in, out]``, so that a column is contiguous.
    """
    columns = w.shape[1]
    target = w.t()[order].contiguous()
    natural = bool(torch.equal(order, torch.arange(columns)))
    refit = natural and bound.refits
    starts = {start: stop for start, stop in bound.spans} if refit else {}
    if not refit:
        bound.open_all(w)
    error = torch.zeros_like(target)
    value = torch.empty_like(target)
    start = 0
    while start < columns:
        stop = min(start + block, columns)
        if refit:
            inner = [s for s in starts if start < s < stop]
            stop = min(inner, default=stop)
            if start in starts:
                bound.open(start, starts[start], _corrected(target, error, factor, start, starts[start]).t())
        _round_block(_corrected(target, error, factor, start, stop), start, stop, target, bound, order, factor, error, value)
        start = stop
    result = torch.empty_like(value)
    result[order] = value
    return result.t().contiguous()


def _corrected(target: Tensor, error: Tensor, factor: Tensor, start: int, stop: int) -> Tensor:
    """Columns ``start..stop`` plus the feedback of all errors before ``start``, ``[stop - start, out]``."""
    if start == 0:
        return target[start:stop].clone()
    return torch.addmm(target[start:stop], factor[:start, start:stop].t(), error[:start])


def _round_block(
    current: Tensor,
    start: int,
    stop: int,
    target: Tensor,
    bound: BoundQuantizer,
    order: Tensor,
    factor: Tensor,
    error: Tensor,
    value: Tensor,
) -> None:
    positions = order[start:stop].tolist()
    for offset, column in enumerate(positions):
        j = start + offset
        x = current[offset]
        if offset:
            x = torch.addmv(x, error[start:j].t(), factor[start:j, j])
        rounded = bound.round(column, column + 1, x.unsqueeze(1)).squeeze(1)
        value[j] = rounded
        error[j] = target[j] - rounded
