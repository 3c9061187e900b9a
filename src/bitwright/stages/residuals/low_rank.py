"""Low-rank compensation of the rounding error: LoRC.

Yao et al. 2023 (ZeroQuant-V2, arXiv:2303.08302, section 5): with the singular value decomposition of the error
``E = W - Q = U S V^T`` the best rank-r correction is ``(U_r S_r^1/2) (S_r^1/2 V_r^T)``. No data are read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bitwright.errors import InputError
from bitwright.formats import LowRank, parse
from bitwright.stages.quantizer import WeightContext
from bitwright.statistics import Statistic

# Up to this size (or where most directions are wanted) the decomposition is exact, beyond it by subspace iteration.
_EXACT = 1024
_EXTRA = 16
_ITERATIONS = 12


def leading_factors(error: Tensor, rank: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return ``left[out, rank]`` and ``right[rank, in]``, whose product is the best one of that rank."""
    smaller = min(error.shape)
    rank = min(rank, smaller)
    if smaller <= _EXACT or 4 * rank >= smaller:
        u, s, vt = torch.linalg.svd(error.double(), full_matrices=False)
    else:
        u, s, vt = _subspace_iteration(error, rank, seed)
    root = s[:rank].sqrt()
    return (u[:, :rank] * root).float(), (root[:, None] * vt[:rank]).float()


def _subspace_iteration(error: Tensor, rank: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Randomised range finder (Halko, Martinsson, Tropp 2011, algorithm 4.4) with a few extra directions."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.randn(error.shape[1], rank + _EXTRA, generator=generator)
    for _ in range(_ITERATIONS):
        basis = torch.linalg.qr(error @ basis).Q
        basis = torch.linalg.qr(error.t() @ basis).Q
    u, s, vt = torch.linalg.svd(error @ basis, full_matrices=False)
    return u, s, vt @ basis.t()


@dataclass(frozen=True)
class LowRankError:
    """Add the rank-``rank`` part of the rounding error to the weight.

    Args:
        rank: number of directions; at the full rank the sum is exact up to the storage.
        storage: ``fp16``, or ``int8``: both factors with one scale per direction.

    Raises:
        InputError: for a rank below 1.
    """

    rank: int = 8
    storage: Literal["fp16", "int8", "fp32"] = "fp16"

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise InputError(f"a low-rank correction has a rank of at least 1, not {self.rank}")

    @property
    def when(self) -> Literal["before", "after"]:
        """After the rounding."""
        return "after"

    @property
    def needs(self) -> tuple[Statistic, ...]:
        """Nothing."""
        return ()

    def storage_bits(self, shape: tuple[int, int]) -> int:
        """Stored bits for a weight ``[out, in]``."""
        rank = min(self.rank, *shape)
        if self.storage == "int8":
            left, right = parse("int8 channel axis=1"), parse("int8 channel")
            return left.storage_bits((shape[0], rank)) + right.storage_bits((rank, shape[1]))
        return rank * (shape[0] + shape[1]) * (16 if self.storage == "fp16" else 32)

    def fit(self, w: Tensor, context: WeightContext) -> LowRank:
        """Return the leading part of the error ``w[out, in]``."""
        left, right = leading_factors(w, self.rank, context.seed)
        if self.storage == "int8":
            return LowRank(parse("int8 channel axis=1").quantize(left), parse("int8 channel").quantize(right))
        dtype = torch.float16 if self.storage == "fp16" else torch.float32
        return LowRank(left.to(dtype), right.to(dtype))
