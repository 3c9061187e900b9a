"""The product with a coded weight: one kernel for a few tokens (sums in registers) and for many (matrix units)."""

# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import triton
import triton.language as tl

from bitwright.runtime.kernels.triton.decode import level, operand, stored_scale, tile_codes


@triton.jit(do_not_specialize=["tokens"])
def coded_linear(
    x_ptr, codes_ptr, scale_ptr, zero_ptr, table_ptr, sums_ptr, tokens, out, columns, tiles, tiles_per_split, factor,
    GROUP: tl.constexpr, GROUPS: tl.constexpr, RUN: tl.constexpr, BITS: tl.constexpr, KIND: tl.constexpr,
    CENTER: tl.constexpr, MANTISSA: tl.constexpr, HAS_ZERO: tl.constexpr, SCALE_KIND: tl.constexpr,
    ROWS: tl.constexpr, TILE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, DOT: tl.constexpr,
    DTYPE: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Write ``sums[split, token, row]``: fp32 sums of ``x[token, column] * w[row, column]`` over a split's columns.

    A program takes ``BLOCK_N`` rows, ``BLOCK_M`` tokens and one split. The matrix units (``DOT``) take weights rounded
    to the activations' type, as the reference does, and one product per tile: processors that keep sums in a memory of
    their own would copy them between several.
    """
    first_row = tl.program_id(0) * BLOCK_N
    rows = first_row + tl.arange(0, BLOCK_N)
    token = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    split = tl.program_id(2)
    row_ok = rows < out
    token_ok = token < tokens
    first_tile = split * tiles_per_split
    last_tile = tl.minimum(first_tile + tiles_per_split, tiles)
    block = (first_row // ROWS).to(tl.int64) * tiles + first_tile
    tile_ptr = codes_ptr + block * (BITS * ROWS * (TILE // 8))
    inside = first_row % ROWS + tl.arange(0, BLOCK_N)
    x_rows = x_ptr + token.to(tl.int64) * columns
    if DOT:
        total = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
    else:
        total = tl.zeros((BLOCK_M, BLOCK_N, TILE), dtype=tl.float32)
    for tile in range(first_tile, last_tile):
        code = tile_codes(tile_ptr, inside, BITS, ROWS, TILE).reshape((BLOCK_N, TILE // RUN, RUN))
        w = tile_weights(
            code, scale_ptr, zero_ptr, table_ptr, factor if DOT else 1.0, tile, rows, row_ok,
            GROUP, GROUPS, RUN, BITS, KIND, CENTER, MANTISSA, HAS_ZERO, SCALE_KIND, TILE,
        ).reshape((BLOCK_N, TILE))  # fmt: skip
        column = tile * TILE + tl.arange(0, TILE)
        column_ok = column < columns
        if DOT:
            x = tl.load(x_rows[None, :] + column[:, None], mask=column_ok[:, None] & token_ok[None, :], other=0.0)
            left = operand(w, DTYPE, WIDEN)
            total = tl.dot(left, operand(x, DTYPE, WIDEN), acc=total, input_precision="ieee")
        else:
            x = tl.load(x_rows[:, None] + column[None, :], mask=token_ok[:, None] & column_ok[None, :], other=0.0)
            total += x.to(tl.float32)[:, None, :] * w[None, :, :]
        tile_ptr += BITS * ROWS * (TILE // 8)
    if DOT:
        sums = tl.trans(total)
    else:
        sums = tl.sum(total, axis=2) * factor
    target = sums_ptr + (split.to(tl.int64) * tokens + token[:, None]) * out + rows[None, :]
    tl.store(target, sums, mask=token_ok[:, None] & row_ok[None, :])


@triton.jit
def tile_weights(
    code, scale_ptr, zero_ptr, table_ptr, factor, tile, rows, row_ok,
    GROUP: tl.constexpr, GROUPS: tl.constexpr, RUN: tl.constexpr, BITS: tl.constexpr, KIND: tl.constexpr,
    CENTER: tl.constexpr, MANTISSA: tl.constexpr, HAS_ZERO: tl.constexpr, SCALE_KIND: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Return the float32 weights ``[rows, TILE / RUN, RUN]`` of a tile's codes; a run shares its parameters."""
    group = (tile * TILE + tl.arange(0, TILE // RUN) * RUN) // GROUP
    group_ok = row_ok[:, None] & (group < GROUPS)[None, :]
    param = rows.to(tl.int64)[:, None] * GROUPS + group[None, :]
    scale = stored_scale(scale_ptr, param, group_ok, SCALE_KIND)
    if HAS_ZERO:
        zero = tl.load(zero_ptr + param, mask=group_ok, other=0).to(tl.float32)
    else:
        zero = scale
    w = level(
        code, zero[:, :, None], table_ptr, param[:, :, None], group_ok[:, :, None],
        KIND, CENTER, HAS_ZERO, MANTISSA, BITS,
    )  # fmt: skip
    # Two products: a scale near the largest float32 may only meet the factor after the level has.
    return (w * factor) * scale[:, :, None]


@triton.jit(do_not_specialize=["tokens"])
def add_splits(
    sums_ptr, bias_ptr, y_ptr, tokens, out,
    SPLITS: tl.constexpr, HAS_BIAS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write ``y[token, row] = sums of all splits, in their order, + bias[row]``."""
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    token = tl.program_id(1).to(tl.int64)
    row_ok = rows < out
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for split in range(SPLITS):
        total += tl.load(sums_ptr + (split * tokens + token) * out + rows, mask=row_ok, other=0.0)
    if HAS_BIAS:
        total += tl.load(bias_ptr + rows, mask=row_ok, other=0.0).to(tl.float32)
    tl.store(y_ptr + token * out + rows, total.to(y_ptr.dtype.element_ty), mask=row_ok)
