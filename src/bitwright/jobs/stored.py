"""What is asked of a checkpoint's tensors before they are copied: their stored dtypes, and whether they are numbers."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor

from bitwright.models import Checkpoint, Model
from bitwright.models.checkpoint import TORCH_DTYPES


def stored_dtype(checkpoint: Checkpoint, key: str) -> torch.dtype:
    """The dtype in which tensor ``key`` is stored."""
    return TORCH_DTYPES[checkpoint.tensors[key].dtype]


def usual_dtype(checkpoint: Checkpoint) -> str:
    """Name of the float dtype that most of a checkpoint's values have, as a config says it: ``bfloat16``."""
    counts: Counter[torch.dtype] = Counter()
    for info in checkpoint.tensors.values():
        dtype = TORCH_DTYPES.get(info.dtype)
        if dtype is not None and dtype.is_floating_point and dtype.itemsize > 1:
            counts[dtype] += info.bytes // dtype.itemsize
    return str(max(counts, key=lambda dtype: (counts[dtype], str(dtype)), default=torch.float32)).removeprefix("torch.")


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


def source_keys(model: Model, parameter: str) -> tuple[str, ...]:
    """The stored tensors that make a parameter (several for fused experts); () where none does."""
    if model.checkpoint is None or model.names is None:
        return ()
    source = model.names.sources.get(parameter) or model.names.sources.get(model.names.aliases.get(parameter, ""))
    return source.keys if source is not None else ()


def source_bytes(model: Model, parameter: str) -> int:
    """Stored bytes behind a parameter; one expert of a stored stack has its share of it."""
    checkpoint = model.checkpoint
    keys = source_keys(model, parameter)
    if checkpoint is None:
        return model.module.get_parameter(parameter).nbytes
    total = sum(checkpoint.tensors[key].bytes for key in keys if key in checkpoint.tensors)
    experts = next((f.experts for f in model.experts if parameter.startswith(f"{f.path}.")), 1)
    if experts == 1:
        return total
    shared = sum(parameter_keys == keys for parameter_keys in _stack_keys(model, parameter))
    return total // max(1, shared)


def _stack_keys(model: Model, parameter: str) -> list[tuple[str, ...]]:
    """The stored tensors of every expert of the stack that ``parameter`` belongs to."""
    stack = next(f for f in model.experts if parameter.startswith(f"{f.path}."))
    return [source_keys(model, name) for name in stack.names()]


def parameter_dtype(model: Model, parameter: str) -> torch.dtype | None:
    """The dtype in which a parameter is stored; ``None`` where the checkpoint does not have it."""
    checkpoint = model.checkpoint
    keys = source_keys(model, parameter)
    if checkpoint is None or not keys or keys[0] not in checkpoint.tensors:
        return None
    return stored_dtype(checkpoint, keys[0])
