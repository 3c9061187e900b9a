"""Blockwise Hadamard transforms: the operator ``bitwright::hadamard``."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bitwright.errors import InputError
from bitwright.native.buffers import FLOAT_CODES, float_code, fresh, span
from bitwright.native.loading import Library, library, require_library
from bitwright.native.operators import register

LANES = 16
"""The fast part of a transform is a power of two from here on."""


def serves(x: Tensor, power: int) -> bool:
    """Whether compiled kernels transform ``x`` in blocks whose fast part has ``power`` channels.

    They record no gradients, and a graph that is being compiled fuses torch's operations better.
    """
    if power < LANES or x.device.type != "cpu" or x.dtype not in FLOAT_CODES or torch.compiler.is_compiling():
        return False
    found = library()
    return found is not None and found.name != "scalar" and not (torch.is_grad_enabled() and x.requires_grad)


def hadamard(x: Tensor, size: int, factor: Tensor | None, signs: Tensor | None, inverse: bool) -> Tensor:
    """Turn the last axis of ``x`` (fp32, fp16, bf16) in blocks of ``size`` by an orthonormal matrix, in fp32.

    Args:
        x: ``[..., dim]``.
        size: channels of a block, ``base * 2^k`` with at least 16 in the power of two.
        factor: fp32 ``[base, base]``, what the rows of a block read as ``[base, 2^k]`` are multiplied by from the
            left; ``None`` for base 1.
        signs: fp32 ``[dim]``, multiplied before the transform, with ``inverse`` after it.

    Raises:
        InputError: for a dtype, device or shape that the kernels do not serve.
    """
    turned: Tensor = _OPERATOR(x, size, factor, signs, inverse)
    return turned


def _fake(x: Tensor, size: int, factor: Tensor | None, signs: Tensor | None, inverse: bool) -> Tensor:
    return x.new_empty(x.shape)


def _run(x: Tensor, size: int, factor: Tensor | None, signs: Tensor | None, inverse: bool) -> Tensor:
    return run(x, size, factor, signs, inverse)


def run(
    x: Tensor,
    size: int,
    factor: Tensor | None,
    signs: Tensor | None,
    inverse: bool,
    kernels: Library | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """As :func:`hadamard`, on a chosen instruction set and into ``out``, where it is given."""
    found = require_library() if kernels is None else kernels
    x = x.contiguous()
    y = fresh(*x.shape, dtype=x.dtype) if out is None else out
    dim = x.shape[-1]
    base = 1 if factor is None else factor.shape[0]
    mixed = None if factor is None else factor.to(torch.float32).contiguous()
    before, after = (None, signs) if inverse else (signs, None)
    try:
        found.hadamard(
            x.numel() // max(dim, 1), dim, base, size // base, span(mixed), span(before, torch.float32),
            span(after, torch.float32), 1.0 / math.sqrt(size), float_code(x.dtype), span(x.detach()), span(y, x.dtype),
            torch.get_num_threads(),
        )  # fmt: skip
    except ValueError as error:
        raise InputError(f"a Hadamard transform in blocks of {size} does not fit {dim} channels: {error}") from error
    return y


_OPERATOR = register(
    "hadamard",
    "(Tensor x, int size, Tensor? factor, Tensor? signs, bool inverse) -> Tensor",
    _run, _fake,
)  # fmt: skip
