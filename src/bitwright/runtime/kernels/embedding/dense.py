"""Embedding lookup in a dequantized table that is kept."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from bitwright.runtime.dispatch import Kernel
from bitwright.runtime.kernels.linear.dense import refuses
from bitwright.runtime.weight import PackedWeight


def run(ids: Tensor, prepared: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the rows ``[*ids.shape, dim]`` in ``dtype``."""
    return functional.embedding(ids, prepared).to(dtype)


KERNEL = Kernel(
    name="embedding/dense",
    op="embedding",
    priority=100,
    why="the table was dequantized once and kept (cache_weights)",
    prepare=PackedWeight.dequantize,
    run=run,
    refuses=refuses,
)
