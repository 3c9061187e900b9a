"""Hand tensors to compiled code: as an address and the bytes behind it, after checks."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bitwright.errors import InputError
from bitwright.native.loading import extension

LARGE = 32 << 20
"""Bytes from which the allocator of glibc never uses memory twice: every result would be made of fresh small pages."""

Span = tuple[int, int]
"""``(address, bytes)`` of a buffer; ``(0, 0)`` stands for none."""

NOTHING: Span = (0, 0)

FLOAT_CODES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
"""Numbers of the float types in compiled code."""


def span(tensor: Tensor | None, *dtypes: torch.dtype) -> Span:
    """The buffer of a dense CPU tensor of one of these dtypes (any, where none is named).

    Raises:
        InputError: if the tensor is elsewhere, has another dtype, or is not contiguous.
    """
    if tensor is None:
        return NOTHING
    if tensor.device.type != "cpu":
        raise InputError(f"compiled kernels read CPU tensors, not {tensor.device}; move it with .cpu()")
    if dtypes and tensor.dtype not in dtypes:
        raise InputError(f"compiled kernels take {' or '.join(map(str, dtypes))} here, not {tensor.dtype}")
    if not tensor.is_contiguous():
        raise InputError("compiled kernels read contiguous tensors; call .contiguous()")
    return tensor.data_ptr(), tensor.nbytes


def float_code(dtype: torch.dtype) -> int:
    """The number of a float type.

    Raises:
        InputError: for a type that compiled kernels do not read.
    """
    code = FLOAT_CODES.get(dtype)
    if code is None:
        raise InputError(f"compiled kernels take float32, float16 and bfloat16, not {dtype}")
    return code


def large_pages(size: int) -> Tensor:
    """Return ``size`` zeroed bytes that ask the system for large pages."""
    pages: Tensor = torch.from_dlpack(extension().pages(size))
    return pages


def fresh(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return memory for a result, contents undefined; on large pages where that is faster than many small ones."""
    size = math.prod(shape) * dtype.itemsize
    if size < LARGE:
        return torch.empty(shape, dtype=dtype)
    return large_pages(size).view(dtype).view(shape)
