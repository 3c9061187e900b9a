"""GPTAQ: second-order rounding towards the float model's output, not towards the output on quantized inputs.

GPTQ keeps ``W X`` on the inputs X that the quantized layers before it produce. GPTAQ (Li et al. 2025,
arXiv:2504.02692) keeps ``W X_float``: each column k brings its own residual ``w_k (x_float - x)_k`` along, which is
pushed onto the columns that are still free. With ``H^-1 = R^T R`` (R upper triangular) and ``A = E[(x_float - x) x^T]``
the update of the free columns by the current column c_k is, besides GPTQ's, ``c_k P_k`` with ``P = triu(A R^T, 1) R``
(the mask keeps what is free when column k's turn comes).

In the LDL form of :mod:`bitwright.stages.rounding.second_order`, ``R (U + I)`` is diagonal, so all updates together
are: current column ``c_j = w_j + sum_(k<j) U_kj (w_k - q_k) + sum_(k<j) G_kj c_k`` with
``G = P (U + I) = triu(A (U + I)^-T, 1) D^-1``: one triangular solve, no inverse.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bitwright.errors import InputError
from bitwright.stages.bound import BoundQuantizer
from bitwright.stages.quantizer import WeightContext
from bitwright.stages.rounding.second_order import Order, column_order, feedback_factor, ordered
from bitwright.stages.rounding.sweep import Factor, sweep
from bitwright.statistics import CrossHessian, Hessian, Prefix, Statistic


def carry_factor(cross: Tensor, factor: Factor) -> Tensor:
    """Return the strictly upper triangular ``G[in, in]`` for the cross moment ``A[in, in]`` (rows: error)."""
    solved: Tensor = torch.linalg.solve_triangular(factor.upper.t(), cross, upper=False, left=False, unitriangular=True)
    return solved.div_(factor.pivots).triu_(1)


@dataclass(frozen=True)
class Asymmetric:
    """Second-order rounding that also cancels the error that earlier layers left in the input.

    Args:
        alpha: share of the input's error that is cancelled; 1 is the paper's formula, the published code takes 0.25.
            At 0, or where quantized and float inputs agree, the result is :class:`SecondOrder`'s, bit for bit.
        damping, order, prefix, block: as in :class:`SecondOrder`; the prefix must be a quantized one.
    """

    damping: float = 0.01
    order: Order = "natural"
    prefix: Prefix = "layer"
    alpha: float = 1.0
    block: int = 512

    def __post_init__(self) -> None:
        if self.prefix == "float":
            raise InputError("the float stream has no input error to cancel; use prefix=layer or prefix=block")

    @property
    def needs(self) -> tuple[Statistic, ...]:
        """Second moment of the quantized inputs and their cross moment with their own error."""
        return (Hessian(self.prefix), CrossHessian(self.prefix))

    def solve(self, w: Tensor, bound: BoundQuantizer, context: WeightContext) -> Tensor:
        """Round ``w[out, in]``."""
        bound.refuse_vectors("GPTAQ")
        h = context.read(Hessian(self.prefix)).matrix
        cross = context.read(CrossHessian(self.prefix)).matrix
        order = column_order(h, self.order)
        factor = feedback_factor(ordered(h, order), self.damping, context)
        carry = carry_factor(self.alpha * ordered(cross, order), factor) if self.alpha and bool(cross.any()) else None
        return sweep(w, bound, order, factor, carry, self.block)
