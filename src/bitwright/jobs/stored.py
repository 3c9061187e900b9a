"""What is asked of a checkpoint's tensors before they are copied: their stored dtypes, and whether they are numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from bitwright.models import Checkpoint
from bitwright.models.checkpoint import TORCH_DTYPES


def stored_dtype(checkpoint: Checkpoint, key: str) -> torch.dtype:
    """The dtype in which tensor ``key`` is stored."""
    return TORCH_DTYPES[checkpoint.tensors[key].dtype]


PIECE = 1 << 18


def all_finite(x: Tensor) -> bool:
    """Whether a tensor of any dtype holds neither NaN nor Inf; integers always are, empty tensors too.

    The smallest and the largest value of a piece tell (NaN comes through both): several times faster than asking of
    every element, and no slower than copying it.
    """
    if not x.is_floating_point():
        return True
    for piece in x.reshape(-1).split(PIECE):
        if piece.numel():
            low, high = torch.aminmax(piece.float() if piece.dtype.itemsize == 1 else piece)
            if not (torch.isfinite(low) and torch.isfinite(high)):
                return False
    return True
