"""Stored dtypes of a checkpoint's tensors."""

from __future__ import annotations

import torch

from bitwright.models import Checkpoint
from bitwright.models.checkpoint import TORCH_DTYPES


def stored_dtype(checkpoint: Checkpoint, key: str) -> torch.dtype:
    """The dtype in which tensor ``key`` is stored."""
    return TORCH_DTYPES[checkpoint.tensors[key].dtype]
