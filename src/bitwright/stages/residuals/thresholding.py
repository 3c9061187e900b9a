"""Outliers that are learned together with the rounding: the outlier-aware form of QuantEase.

Behdin et al. 2023 (arXiv:2309.01885, algorithm 3): minimise ``||(W - Q - H) X||^2`` over codes Q and a sparse H of k
entries. For fixed Q, iterative hard thresholding: ``H <- top_k(H + (W - Q - H) S / lambda_max(S))``, ``S = X X^T``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bitwright.errors import InputError
from bitwright.formats import Sparse
from bitwright.stages.quantizer import WeightContext
from bitwright.stages.residuals.sparse import largest, sparse_bits
from bitwright.statistics import Hessian, Prefix, Statistic


@dataclass(frozen=True)
class ThresholdedOutliers:
    """A share of the entries in fp16, chosen and valued for the layer's output.

    Args:
        share: entries kept, as a share of the matrix.
        rounds: how many times rounding and thresholding alternate (the paper takes one step of each in turn).
        steps: thresholding steps per round.
        prefix: stream of the Hessian.

    Raises:
        InputError: for a share outside 0 .. 1.
    """

    share: float = 0.01
    rounds: int = 3
    steps: int = 10
    prefix: Prefix = "layer"

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise InputError(f"outliers are a share of the weights between 0 and 1, not {self.share}; e.g. 0.01")

    @property
    def when(self) -> Literal["before", "after"]:
        """Before the rounding, and fitted again after it."""
        return "before"

    @property
    def needs(self) -> tuple[Statistic, ...]:
        """The Hessian of the input."""
        return (Hessian(self.prefix),)

    @property
    def exact_size(self) -> bool:
        """No: an entry that falls to zero is not stored."""
        return False

    def storage_bits(self, shape: tuple[int, int]) -> int:
        """Stored bits for a weight ``[out, in]``, at most."""
        return sparse_bits(shape, round(self.share * shape[0] * shape[1]), 2)

    def fit(self, w: Tensor, context: WeightContext) -> Sparse:
        """Begin with the largest weights."""
        return Sparse.where(w, largest(w.abs(), self.share))

    def refit(self, term: Sparse, rest: Tensor, context: WeightContext) -> Sparse:
        """Threshold towards ``rest[out, in]``; never worse in the layer's output than the term as it was."""
        s = context.read(Hessian(self.prefix)).matrix
        step = 1.0 / max(largest_eigenvalue(s), 1e-30)
        before = term.dequantize()
        value = before
        for _ in range(self.steps):
            value = value + step * ((rest - value) @ s)
            value = value * largest(value.abs(), self.share)
        found = Sparse.where(value, value != 0)
        if _loss(rest - found.dequantize(), s) <= _loss(rest - before, s):
            return found
        return term


def _loss(error: Tensor, s: Tensor) -> float:
    return float(((error @ s) * error).sum(dtype=torch.float64))


def largest_eigenvalue(s: Tensor, steps: int = 60) -> float:
    """A close upper bound of the largest eigenvalue of a positive semidefinite ``s[n, n]``.

    Power iteration from the diagonal, then the bound ``||s v|| + residual`` that holds for symmetric matrices where v
    is near the leading direction.
    """
    vector = s.diagonal().clone() + 1e-12
    for _ in range(steps):
        vector = s @ (vector / vector.norm().clamp(min=1e-30))
    size = float(vector.norm())
    unit = vector / max(size, 1e-30)
    return size + float((s @ unit - size * unit).norm())
