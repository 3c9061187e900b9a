"""The Hadamard transform: butterflies over the power of two, one small dense product over what is left of the size."""

# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import functools
import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from bitwright.errors import InputError
from bitwright.runtime.kernels.triton import launch
from bitwright.stages.transforms import hadamard as construction

LONGEST = 4096
"""Values of one run of butterflies; larger powers of two leave factors to the dense product."""


@triton.jit
def butterflies(
    x_ptr, signs_ptr, y_ptr, lines, lines_of_row, scale,
    INNER: tl.constexpr, STEPS: tl.constexpr, LINES: tl.constexpr, SIGN_FIRST: tl.constexpr, SIGN_LAST: tl.constexpr,
):  # fmt: skip
    """Multiply every run of ``INNER = 2^STEPS`` neighbours by Sylvester's matrix, ``LINES`` runs per program."""
    line = tl.program_id(0).to(tl.int64) * LINES + tl.arange(0, LINES)
    place = tl.arange(0, INNER)
    ok = (line < lines)[:, None] & (place < INNER)[None, :]
    offset = line[:, None] * INNER + place[None, :]
    sign_at = (line % lines_of_row)[:, None] * INNER + place[None, :]
    x = tl.load(x_ptr + offset, mask=ok, other=0.0).to(tl.float32)
    if SIGN_FIRST:
        x = x * tl.load(signs_ptr + sign_at, mask=ok, other=0.0)
    for step in tl.static_range(STEPS):
        pairs = x.reshape((LINES, INNER // (2 << step), 2, 1 << step)).permute((0, 1, 3, 2))
        upper, lower = tl.split(pairs)
        x = tl.join(upper + lower, upper - lower).permute((0, 1, 3, 2)).reshape((LINES, INNER))
    x = x * scale
    if SIGN_LAST:
        x = x * tl.load(signs_ptr + sign_at, mask=ok, other=0.0)
    tl.store(y_ptr + offset, x.to(y_ptr.dtype.element_ty), mask=ok)


@triton.jit
def dense_factor(
    x_ptr, matrix_ptr, signs_ptr, y_ptr, columns, dim, inner, scale,
    ORDER: tl.constexpr, BLOCK: tl.constexpr, COLUMNS: tl.constexpr,
    SIGN_FIRST: tl.constexpr, SIGN_LAST: tl.constexpr,
):  # fmt: skip
    """Multiply ``x[block, ORDER, inner]`` by ``matrix[ORDER, ORDER]`` on the left; columns run over block and inner."""
    column = tl.program_id(0).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    target = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    column_ok = column < columns
    start = (column // inner) * (ORDER * inner) + column % inner
    total = tl.zeros((BLOCK, COLUMNS), dtype=tl.float32)
    for first in range(0, ORDER, BLOCK):
        source = first + tl.arange(0, BLOCK)
        entry_ok = (target < ORDER)[:, None] & (source < ORDER)[None, :]
        entries = tl.load(matrix_ptr + target[:, None] * ORDER + source[None, :], mask=entry_ok, other=0.0)
        offset = start[None, :] + source[:, None] * inner
        ok = (source < ORDER)[:, None] & column_ok[None, :]
        x = tl.load(x_ptr + offset, mask=ok, other=0.0).to(tl.float32)
        if SIGN_FIRST:
            x = x * tl.load(signs_ptr + offset % dim, mask=ok, other=0.0)
        total = tl.dot(entries, x, acc=total, input_precision="ieee")
    offset = start[None, :] + target[:, None] * inner
    ok = (target < ORDER)[:, None] & column_ok[None, :]
    total = total * scale
    if SIGN_LAST:
        total = total * tl.load(signs_ptr + offset % dim, mask=ok, other=0.0)
    tl.store(y_ptr + offset, total.to(y_ptr.dtype.element_ty), mask=ok)


def factors(size: int) -> tuple[int, int] | None:
    """Return ``(order, inner)`` with ``size = order * inner``: a dense matrix and a power of two, or ``None``."""
    base = construction._base(size) if size > 0 else None
    if base is None:
        return None
    inner = min(size // base, LONGEST)
    return size // inner, inner


@torch.library.custom_op("bitwright::triton_hadamard", mutates_args=())
def triton_hadamard(x: Tensor, size: int, seed: int, inverse: bool) -> Tensor:
    """Rotate the last axis of ``x`` as :func:`bitwright.stages.transforms.hadamard.apply_hadamard` does.

    Raises:
        InputError: if ``size`` does not divide the axis or has no Hadamard matrix.
        UnsupportedError: a dtype or device that is not served.
    """
    launch.check(butterflies, x)
    dim = x.shape[-1]
    split = factors(size)
    if split is None or dim % size:
        raise InputError(f"no Hadamard transform in blocks of {size} for {dim} channels; choose a size that divides")
    x = x.contiguous()
    if x.numel() == 0:
        return x.clone()
    signs = None if seed < 0 else _signs(dim, seed, x.device)
    order, inner = split
    first, last = signs is not None and not inverse, signs is not None and inverse
    scale = 1.0 / math.sqrt(size)
    with launch.on_device(x):
        if order == 1:
            return _run_butterflies(x, signs, torch.empty_like(x), inner, scale, first, last)
        if inner > 1:
            between = torch.empty_like(x, dtype=torch.float32)
            x, given = _run_butterflies(x, signs, between, inner, 1.0, first, False), x
            return _run_dense(x, signs, torch.empty_like(given), split, scale, inverse, (False, last))
        return _run_dense(x, signs, torch.empty_like(x), split, scale, inverse, (first, last))


@triton_hadamard.register_fake
def _(x: Tensor, size: int, seed: int, inverse: bool) -> Tensor:
    return x.new_empty(x.shape)


def _run_butterflies(
    x: Tensor, signs: Tensor | None, y: Tensor, inner: int, scale: float, first: bool, last: bool
) -> Tensor:
    lines = x.numel() // inner
    together = min(max(LONGEST // inner, 1), launch.power_of_two(lines), 64)
    butterflies[(triton.cdiv(lines, together),)](
        x, signs, y, lines, x.shape[-1] // inner, scale, INNER=inner, STEPS=inner.bit_length() - 1, LINES=together,
        SIGN_FIRST=first, SIGN_LAST=last, num_warps=4 if together * inner <= 2048 else 8,
    )  # fmt: skip
    return y


def _run_dense(
    x: Tensor, signs: Tensor | None, y: Tensor, split: tuple[int, int], scale: float, inverse: bool,
    sign: tuple[bool, bool],
) -> Tensor:  # fmt: skip
    order, inner = split
    matrix = _matrix(order, inverse, x.device)
    columns = x.numel() // order
    block = 16 if order <= 16 else 32
    dense_factor[(triton.cdiv(columns, 64), triton.cdiv(order, block))](
        x, matrix, signs, y, columns, x.shape[-1], inner, scale, ORDER=order, BLOCK=block, COLUMNS=64,
        SIGN_FIRST=sign[0], SIGN_LAST=sign[1],
    )  # fmt: skip
    return y


@functools.lru_cache(maxsize=64)
def _signs(dim: int, seed: int, device: torch.device) -> Tensor:
    return construction.random_signs(dim, seed).to(device)


@functools.lru_cache(maxsize=64)
def _matrix(order: int, inverse: bool, device: torch.device) -> Tensor:
    """The matrix that acts from the left on columns: transposed, since vectors are rows, unless it is undone."""
    base = construction._base(order)
    assert base is not None
    first, second = (construction.hadamard_matrix(n) for n in (base, order // base))
    assert first is not None
    assert second is not None
    matrix = torch.kron(first, second)
    return (matrix if inverse else matrix.T).contiguous().to(device)
