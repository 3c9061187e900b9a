"""Embedding lookup that dequantizes only the rows that are asked for."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from bitwright.runtime.dispatch import Kernel
from bitwright.runtime.rows import dequantize_rows
from bitwright.runtime.weight import PackedWeight


def run(ids: Tensor, prepared: PackedWeight, dtype: torch.dtype) -> Tensor:
    """Return the rows ``[*ids.shape, dim]`` in ``dtype``."""
    wanted, place = torch.unique(ids, return_inverse=True)
    rows = dequantize_rows(prepared, wanted.reshape(-1), dtype)
    return functional.embedding(place, rows)


KERNEL = Kernel(
    name="embedding/reference",
    op="embedding",
    priority=0,
    why="serves every form; dequantizes the rows of this call",
    prepare=PackedWeight.packed,
    run=run,
)
