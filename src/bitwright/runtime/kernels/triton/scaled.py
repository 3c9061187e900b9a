"""Products of coded weights with coded inputs, on matrix units that take FP8, MXFP4, MXFP8 and NVFP4 themselves."""

# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from bitwright.errors import InputError
from bitwright.runtime.kernels.triton import launch
from bitwright.runtime.kernels.triton.coded_input import COLUMNS, PER_BYTE
from bitwright.runtime.kernels.triton.decode import minifloat, spread

_TYPES = {"e4m3": tl.float8e4nv, "e5m2": tl.float8e5, "e2m1": tl.uint8}

_SCHEMA = (
    "(Tensor x, Tensor x_scale, Tensor w, Tensor w_scale, Tensor? bias, str x_format, str w_format, int shared, "
    "float factor, ScalarType dtype) -> Tensor"
)


@triton.jit
def block_values(codes, scale, FORMAT: tl.constexpr, SHARED: tl.constexpr, E4M3: tl.constexpr):
    """Return float32 ``[rows, columns]`` of coded rows, ``SHARED`` neighbours of which share a scale byte."""
    if FORMAT == "e2m1":
        values = minifloat(spread(codes, 4).to(tl.int32), 4, 1).to(tl.float32) * 16384.0
    elif FORMAT == "e4m3":
        values = minifloat(codes.to(tl.int32), 8, 3).to(tl.float32) * 256.0
    else:
        values = minifloat(codes.to(tl.int32), 8, 2).to(tl.float32)
    if E4M3:
        steps = minifloat(scale.to(tl.int32), 8, 3).to(tl.float32) * 256.0
    else:
        steps = tl.where(scale == 0, 1 << 22, scale.to(tl.int32) << 23).to(tl.float32, bitcast=True)
    rows: tl.constexpr = values.shape[0]
    columns: tl.constexpr = values.shape[1]
    scaled = values.reshape((rows, columns // SHARED, SHARED)) * steps[:, :, None]
    return scaled.reshape((rows, columns))


@triton.jit(do_not_specialize=["tokens"])
def scaled_linear(
    x_ptr, x_scale_ptr, w_ptr, w_scale_ptr, bias_ptr, y_ptr, tokens, out, columns, factor,
    X_FORMAT: tl.constexpr, W_FORMAT: tl.constexpr, X_PER_BYTE: tl.constexpr, W_PER_BYTE: tl.constexpr,
    X_TYPE: tl.constexpr, W_TYPE: tl.constexpr, SHARED: tl.constexpr, E4M3: tl.constexpr, NATIVE: tl.constexpr,
    HAS_BIAS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Write ``y[token, row]`` of coded ``x[tokens, columns]`` and ``w[out, columns]``.

    ``SHARED`` columns share a scale byte (e8m0, or e4m3); 0: codes of 8 bits with one fp32 scale per token and row,
    which multiply the sums. Sums leave the matrix units after every ``BLOCK_K`` columns, since some of them add FP8
    products in fewer digits than float32 has. ``NATIVE`` false multiplies decoded numbers.
    """
    token = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    row = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    token_ok = token < tokens
    row_ok = row < out
    x_bytes = token.to(tl.int64)[:, None] * (columns // X_PER_BYTE) + tl.arange(0, BLOCK_K // X_PER_BYTE)[None, :]
    w_bytes = row.to(tl.int64)[:, None] * (columns // W_PER_BYTE) + tl.arange(0, BLOCK_K // W_PER_BYTE)[None, :]
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(0, columns, BLOCK_K):
        x = tl.load(x_ptr + x_bytes + start // X_PER_BYTE, mask=token_ok[:, None], other=0)
        w = tl.load(w_ptr + w_bytes + start // W_PER_BYTE, mask=row_ok[:, None], other=0)
        if SHARED > 0:
            step = start // SHARED + tl.arange(0, BLOCK_K // SHARED)
            x_step = token.to(tl.int64)[:, None] * (columns // SHARED) + step[None, :]
            w_step = row.to(tl.int64)[:, None] * (columns // SHARED) + step[None, :]
            x_scale = tl.load(x_scale_ptr + x_step, mask=token_ok[:, None], other=0)
            w_scale = tl.load(w_scale_ptr + w_step, mask=row_ok[:, None], other=0)
            if NATIVE:
                if E4M3:
                    x_scale = x_scale.to(tl.float8e4nv, bitcast=True)
                    w_scale = w_scale.to(tl.float8e4nv, bitcast=True)
                total = tl.dot_scaled(x, x_scale, X_FORMAT, tl.trans(w), w_scale, W_FORMAT, acc=total)
            else:
                left = block_values(x, x_scale, X_FORMAT, SHARED, E4M3)
                right = block_values(w, w_scale, W_FORMAT, SHARED, E4M3)
                total = tl.dot(left, tl.trans(right), acc=total, input_precision="ieee")
        else:
            left = x.to(X_TYPE, bitcast=True)
            right = tl.trans(w.to(W_TYPE, bitcast=True))
            total += tl.dot(left, right, max_num_imprecise_acc=BLOCK_K)
    if SHARED == 0:
        total = total * tl.load(x_scale_ptr + token, mask=token_ok, other=0.0)[:, None]
        total = total * tl.load(w_scale_ptr + row, mask=row_ok, other=0.0)[None, :]
    total = total * factor
    if HAS_BIAS:
        total += tl.load(bias_ptr + row, mask=row_ok, other=0.0).to(tl.float32)[None, :]
    y_at = token.to(tl.int64)[:, None] * out + row[None, :]
    tl.store(y_ptr + y_at, total.to(y_ptr.dtype.element_ty), mask=token_ok[:, None] & row_ok[None, :])


@torch.library.custom_op("bitwright::triton_scaled_linear", mutates_args=(), schema=_SCHEMA)
def triton_scaled_linear(
    x: Tensor, x_scale: Tensor, w: Tensor, w_scale: Tensor, bias: Tensor | None, x_format: str, w_format: str,
    shared: int, factor: float, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """Run the kernel on codes and scales as :mod:`.coded_input` makes them.

    Raises:
        InputError: parts that do not fit together.
        UnsupportedError: a dtype or device that is not served.
    """
    tokens, out = x.shape[0], w.shape[0]
    y = x.new_empty((tokens, out), dtype=dtype)
    launch.check(scaled_linear, y, x, x_scale, w, w_scale, bias)
    if tokens == 0:
        return y
    columns = _check_parts(x, x_scale, w, w_scale, bias, x_format, w_format, shared)
    block = block_tokens(tokens, shared)
    native = not launch.interpreted(scaled_linear)
    with launch.on_device(y):
        scaled_linear[(triton.cdiv(tokens, block), triton.cdiv(out, 128))](
            x, x_scale, w, w_scale, bias, y, tokens, out, columns, factor, X_FORMAT=x_format, W_FORMAT=w_format,
            X_PER_BYTE=PER_BYTE[x_format], W_PER_BYTE=PER_BYTE[w_format], X_TYPE=_TYPES[x_format],
            W_TYPE=_TYPES[w_format], SHARED=shared, E4M3=shared == 16, NATIVE=native, HAS_BIAS=bias is not None,
            BLOCK_M=block, BLOCK_N=128, BLOCK_K=COLUMNS, num_warps=8,
        )  # fmt: skip
    return y


@triton_scaled_linear.register_fake
def _(
    x: Tensor, x_scale: Tensor, w: Tensor, w_scale: Tensor, bias: Tensor | None, x_format: str, w_format: str,
    shared: int, factor: float, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    return x.new_empty((x.shape[0], w.shape[0]), dtype=dtype)


def block_tokens(tokens: int, shared: int) -> int:
    """Return the tokens of a program; with scales inside, data-centre Blackwells multiply 128 at a time only."""
    return 128 if shared or tokens > 64 else 64


def _check_parts(
    x: Tensor, x_scale: Tensor, w: Tensor, w_scale: Tensor, bias: Tensor | None, x_format: str, w_format: str,
    shared: int,
) -> int:  # fmt: skip
    """Check that nothing is smaller than what the kernel reads; return the columns.

    Raises:
        InputError: naming the part.
    """
    if x_format not in PER_BYTE or w_format not in PER_BYTE or shared not in (0, 16, 32):
        raise InputError(f"no products of {x_format} and {w_format} with a scale per {shared}; use the reference")
    if shared == 0 and "e2m1" in (x_format, w_format):
        raise InputError("codes of 4 bits have a scale per 16 or 32 columns; prepare the weight again")
    columns = x.shape[1] * PER_BYTE[x_format]
    for name, codes, scale, per_byte in (
        ("activations", x, x_scale, PER_BYTE[x_format]),
        ("weight", w, w_scale, PER_BYTE[w_format]),
    ):
        scales = codes.shape[0] * (columns // shared if shared else 1)
        kind = torch.uint8 if shared else torch.float32
        fits = codes.dim() == 2 and codes.dtype == torch.uint8 and codes.shape[1] * per_byte == columns
        if not fits or columns % COLUMNS or scale.numel() != scales or scale.dtype != kind:
            raise InputError(f"codes and scales of the {name} do not fit {columns} columns; prepare them again")
        if not codes.is_contiguous() or not scale.is_contiguous():
            raise InputError(f"codes and scales of the {name} must be contiguous; prepare them again")
    if bias is not None and bias.numel() != w.shape[0]:
        raise InputError(f"bias has {bias.numel()} values for {w.shape[0]} rows")
    return columns
