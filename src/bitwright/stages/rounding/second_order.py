"""Second-order rounding with linear feedback: GPTQ, in the LDL form of QuIP.

GPTQ (Frantar et al. 2022, arXiv:2210.17323, algorithm 1) pushes the rounding error of column j onto the columns that
are still free, with the rows of the upper Cholesky factor of the inverse Hessian. QuIP (Chee et al. 2023, theorem 6)
shows that this equals rounding column k of ``w + (w - w_hat) U`` where ``H = (U + I) D (U + I)^T`` with strictly upper
triangular ``U``. This form needs one Cholesky factorisation and no inverse: a third of the work.

Vectors of several columns are rounded at once: the same with blocks (BlockLDLQ of QuIP#).

Cost: ``in^3 / 3`` for the factor and ``out * in^2 / 2`` for the sweep, multiply-adds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bitwright.errors import InputError
from bitwright.native import factor as compiled
from bitwright.stages.bound import BoundQuantizer
from bitwright.stages.quantizer import WeightContext
from bitwright.stages.rounding.sweep import Factor, sweep
from bitwright.statistics import Hessian, Prefix, Statistic

Order = Literal["natural", "activation"]

# Damping is raised tenfold at most this often before a Hessian is given up.
_ATTEMPTS = 6


def feedback_factor(h: Tensor, damping: float, context: WeightContext) -> Factor:
    """Factorise ``H + damping * mean(diag H) * I``.

    Columns that saw no signal get the mean diagonal of the others: they are rounded to nearest and disturb nobody.
    A factorisation that fails in fp32 is tried in fp64; where that fails too the damping is raised tenfold, which is
    an event.

    Raises:
        InputError: if ``H`` holds NaN or Inf, or is indefinite at any damping.
    """
    low, high = h.aminmax()
    if not (math.isfinite(float(low)) and math.isfinite(float(high))):
        raise InputError(f"{context.where}: the calibration inputs hold NaN or Inf; check the float model on that text")
    diagonal = h.diagonal()
    live = diagonal > 0
    mean = float(diagonal[live].double().mean()) if bool(live.any()) else 1.0
    diagonal = diagonal.where(live, torch.tensor(mean, dtype=h.dtype))
    for attempt in range(_ATTEMPTS + 1):
        # Without damping the first raise goes to 10^-6 of the mean.
        amount = damping * 10.0**attempt if damping > 0 or attempt == 0 else 10.0 ** (attempt - 7)
        for dtype in (torch.float32, torch.float64):
            factor = _factorise(h, diagonal, amount * mean, dtype)
            if factor is not None:
                return factor
        context.events.record("damping raised", context.where, f"Hessian not positive definite at damping {amount:g}")
    raise InputError(f"{context.where}: the Hessian is indefinite at any damping; calibrate with more or other text")


def _factorise(h: Tensor, diagonal: Tensor, added: float, dtype: torch.dtype) -> Factor | None:
    """Factorise ``h`` with another diagonal; beside ``h`` at most two matrices of its size are held at a time."""
    kernels = compiled.serving(h) if dtype == torch.float32 else None
    if kernels is not None:
        found = compiled.upper_factor(h, diagonal + added, kernels)
        return None if found is None else Factor(*found)
    # Reversing rows and columns turns the lower Cholesky factor into the upper one that the sweep needs.
    damped = h.flip(0, 1).to(dtype)
    damped.diagonal().copy_(diagonal.flip(0)).add_(added)
    # LAPACK's factors lie column by column: the transpose of the upper one is the lower one, row by row.
    found, info = torch.linalg.cholesky_ex(damped, upper=True)
    del damped
    if int(info) != 0:
        return None
    upper = found.mT.flip(0, 1).float()
    del found
    pivots = upper.diagonal().clone()
    if not (float(pivots.min()) > 0 and math.isfinite(float(pivots.max()))):
        return None
    return Factor(upper.div_(pivots).triu_(1), pivots.square())


def block_feedback(factor: Factor, span: int) -> Factor:
    """Return the factor for spans of columns that are rounded at once: ``H = (V + I) D (V + I)^T`` by blocks.

    QuIP# (Tseng et al. 2024, arXiv:2402.04396, section 4.1): V is zero within the blocks of ``span`` columns, D is
    block-diagonal. With the blocks B of ``upper + I`` on the diagonal, ``V + I = (upper + I) B^-1``; the pivots are
    the diagonal of ``B diag(pivots) B^T``: what an error of that column alone costs.
    """
    if span == 1:
        return factor
    upper, pivots = factor.upper, factor.pivots.clone()
    identity = torch.eye(span)
    for start in range(0, len(pivots), span):
        stop = start + span
        block = upper[start:stop, start:stop] + identity
        above = upper[:start, start:stop]
        if start:
            above.copy_(torch.linalg.solve_triangular(block, above, upper=True, left=False, unitriangular=True))
        pivots[start:stop] = block.square() @ factor.pivots[start:stop]
        upper[start:stop, start:stop] = 0
    return Factor(upper, pivots)


def column_order(h: Tensor, order: Order, span: int = 1) -> Tensor:
    """Return the columns in the order of the sweep, int64 ``[in]``; spans of columns stay together."""
    if order == "activation":
        size = h.diagonal().reshape(-1, span).sum(1) if span > 1 else h.diagonal()
        blocks = torch.argsort(size, descending=True, stable=True)
        return (blocks.unsqueeze(1) * span + torch.arange(span)).view(-1) if span > 1 else blocks
    return torch.arange(h.shape[0])


def ordered(h: Tensor, order: Tensor) -> Tensor:
    """``h[in, in]`` with rows and columns in that order; itself where the order is the natural one."""
    return h if bool((order.diff() == 1).all()) else h[order][:, order]


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
    block: int = 512

    @property
    def needs(self) -> tuple[Statistic, ...]:
        """The Hessian of the input."""
        return (Hessian(self.prefix),)

    def solve(self, w: Tensor, bound: BoundQuantizer, context: WeightContext) -> Tensor:
        """Round ``w[out, in]``."""
        h = context.read(Hessian(self.prefix)).matrix
        order = column_order(h, self.order, bound.span)
        factor = block_feedback(feedback_factor(ordered(h, order), self.damping, context), bound.span)
        return sweep(w, bound, order, factor, block=self.block)
