"""Attention of a few queries over coded keys and values, read as they are stored; device functions."""

# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import triton
import triton.language as tl

from bitwright.runtime.kernels.triton.decode import level, operand, stored_scale


@triton.jit
def stored_codes(codes_ptr, row, position, ok, ROW_BYTES: tl.constexpr, BITS: tl.constexpr):
    """Return int32 codes number ``position`` of the little-endian bit streams ``row``."""
    bit = position * BITS
    byte_ptr = codes_ptr + row * ROW_BYTES + (bit >> 3)
    code = tl.load(byte_ptr, mask=ok, other=0).to(tl.int32) >> (bit & 7)
    if 8 % BITS != 0:
        beyond = ok & ((bit & 7) + BITS > 8)
        code = code | (tl.load(byte_ptr + 1, mask=beyond, other=0).to(tl.int32) << (8 - (bit & 7)))
    return code & ((1 << BITS) - 1)


@triton.jit
def state_values(
    codes_ptr, scale_ptr, zero_ptr, table_ptr, tail_ptr, factor, head, start, channel, coded, tokens,
    BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr, DIM: tl.constexpr, BITS: tl.constexpr, TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr, PARAMS: tl.constexpr, ROW_BYTES: tl.constexpr, KIND: tl.constexpr, CENTER: tl.constexpr,
    MANTISSA: tl.constexpr, SCALE_KIND: tl.constexpr, HAS_ZERO: tl.constexpr,
):  # fmt: skip
    """Return float32 ``[BLOCK_T, BLOCK_D]`` of one head: the first ``coded`` tokens decoded, later ones of the tail.

    ``TOKENS`` are coded together, channel by channel; where it is 1 a token is a row whose ``CHANNELS`` neighbours
    share a scale, ``PARAMS`` scales per row. ``BITS`` 0: nothing is coded.
    """
    token = start + tl.arange(0, BLOCK_T)
    channel_ok = (channel < DIM)[None, :]
    tail_at = (head * (tokens - coded) + (token - coded))[:, None] * DIM + channel[None, :]
    tail_ok = ((token >= coded) & (token < tokens))[:, None] & channel_ok
    values = tl.load(tail_ptr + tail_at, mask=tail_ok, other=0.0).to(tl.float32)
    if BITS > 0:
        coded_ok = (token < coded)[:, None]
        ok = coded_ok & channel_ok
        if TOKENS == 1:
            row = (head * coded + token)[:, None] + tl.zeros_like(channel)[None, :]
            position = channel[None, :] + tl.zeros_like(token)[:, None]
        else:
            row = (head * (coded // TOKENS) + token // TOKENS)[:, None] * DIM + channel[None, :]
            position = (token % TOKENS)[:, None] + tl.zeros_like(channel)[None, :]
        if TOKENS == 1 and PARAMS * CHANNELS == BLOCK_D:  # each scale is read once and spread in registers
            param = (head * coded + token)[:, None] * PARAMS + tl.arange(0, PARAMS)[None, :]
            param_ok = coded_ok & (tl.arange(0, PARAMS) < PARAMS)[None, :]
        elif TOKENS == 1:
            param = row * PARAMS + (channel // CHANNELS)[None, :]
            param_ok = ok
        elif TOKENS % BLOCK_T == 0:  # all tokens of the block lie in one group
            param = ((head * (coded // TOKENS) + start // TOKENS) * DIM + channel)[None, :]
            param_ok = channel_ok & (start < coded)
        else:
            param = row
            param_ok = ok
        scale = stored_scale(scale_ptr, param, param_ok, SCALE_KIND) * factor
        if HAS_ZERO:
            zero = tl.load(zero_ptr + param, mask=param_ok, other=0).to(tl.float32)
        else:
            zero = scale
        if TOKENS == 1 and PARAMS * CHANNELS == BLOCK_D:
            scale = spread_params(scale, CHANNELS)
            zero = spread_params(zero, CHANNELS)
        code = stored_codes(codes_ptr, row, position, ok, ROW_BYTES, BITS)
        decoded = level(code, zero, table_ptr, row, ok, KIND, CENTER, HAS_ZERO, MANTISSA, BITS)
        values = tl.where(ok, decoded * scale, values)
    return values


@triton.jit
def spread_params(params, CHANNELS: tl.constexpr):
    """Return ``[rows, n * CHANNELS]``: every column of ``params[rows, n]`` repeated."""
    rows: tl.constexpr = params.shape[0]
    count: tl.constexpr = params.shape[1]
    return tl.broadcast_to(params[:, :, None], (rows, count, CHANNELS)).reshape((rows, count * CHANNELS))


@triton.jit(do_not_specialize=["tokens", "k_coded", "v_coded", "tokens_per_split", "window", "queries", "rows"])
def coded_attention(
    q_ptr, k_codes, k_scale, k_zero, k_table, k_tail, v_codes, v_scale, v_zero, v_table, v_tail, mask_ptr,
    sums_ptr, largest_ptr, weight_ptr, k_factor, v_factor, softmax_scale, rows, queries, tokens, k_coded, v_coded,
    tokens_per_split, window, mask_batch, mask_head, repeat, heads,
    DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_T: tl.constexpr, K_BITS: tl.constexpr,
    K_TOKENS: tl.constexpr, K_CHANNELS: tl.constexpr, K_PARAMS: tl.constexpr, K_BYTES: tl.constexpr,
    K_KIND: tl.constexpr, K_CENTER: tl.constexpr, K_MANTISSA: tl.constexpr, K_SCALE: tl.constexpr,
    K_HAS_ZERO: tl.constexpr, V_BITS: tl.constexpr, V_TOKENS: tl.constexpr, V_CHANNELS: tl.constexpr,
    V_PARAMS: tl.constexpr, V_BYTES: tl.constexpr, V_KIND: tl.constexpr, V_CENTER: tl.constexpr,
    V_MANTISSA: tl.constexpr, V_SCALE: tl.constexpr, V_HAS_ZERO: tl.constexpr, CAUSAL: tl.constexpr,
    HAS_MASK: tl.constexpr, DTYPE: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Write a split's sums of values, largest scores and sums of weights for the query rows of one key head.

    The rows of a key head are its query heads' queries after each other, so that grouped heads share what is decoded.
    Softmax is kept online (Milakov and Gimelshein 2018, arXiv:1805.02867): sums are scaled to the largest score so far.
    """
    head = tl.program_id(1).to(tl.int64)
    split = tl.program_id(2)
    row, channel = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_D)
    row_ok = row < rows
    at = tokens - queries + row % queries
    q_at = (head * rows + row)[:, None] * DIM + channel[None, :]
    q_ok = row_ok[:, None] & (channel < DIM)[None, :]
    left = operand(tl.load(q_ptr + q_at, mask=q_ok, other=0.0), DTYPE, WIDEN)
    total = tl.zeros((BLOCK_R, BLOCK_D), dtype=tl.float32)
    weight = tl.zeros((BLOCK_R,), dtype=tl.float32)
    largest = tl.full((BLOCK_R,), float("-inf"), dtype=tl.float32)
    first = split * tokens_per_split
    for start in range(first, tl.minimum(first + tokens_per_split, tokens), BLOCK_T):
        token = start + tl.arange(0, BLOCK_T)
        keys = state_values(
            k_codes, k_scale, k_zero, k_table, k_tail, k_factor, head, start, channel, k_coded, tokens, BLOCK_T,
            BLOCK_D, DIM, K_BITS, K_TOKENS, K_CHANNELS, K_PARAMS, K_BYTES, K_KIND, K_CENTER, K_MANTISSA,
            K_SCALE, K_HAS_ZERO,
        )  # fmt: skip
        scores = tl.dot(left, tl.trans(operand(keys, DTYPE, WIDEN)), input_precision="ieee") * softmax_scale
        scores = visible_scores(
            scores, mask_ptr, head, row, row_ok, at, token, queries, tokens, window, mask_batch, mask_head, repeat,
            heads, CAUSAL, HAS_MASK,
        )  # fmt: skip
        now = tl.maximum(largest, tl.max(scores, axis=1))
        # A row that has seen nothing keeps minus infinity; 0 stands for it, where a difference would be no number.
        base = tl.where(now == float("-inf"), 0.0, now)
        share = tl.exp(scores - base[:, None])
        shrink = tl.exp(largest - base)
        values = state_values(
            v_codes, v_scale, v_zero, v_table, v_tail, v_factor, head, start, channel, v_coded, tokens, BLOCK_T,
            BLOCK_D, DIM, V_BITS, V_TOKENS, V_CHANNELS, V_PARAMS, V_BYTES, V_KIND, V_CENTER, V_MANTISSA,
            V_SCALE, V_HAS_ZERO,
        )  # fmt: skip
        left_share, right = operand(share, DTYPE, WIDEN), operand(values, DTYPE, WIDEN)
        total = tl.dot(left_share, right, acc=total * shrink[:, None], input_precision="ieee")
        weight = weight * shrink + tl.sum(share, axis=1)
        largest = now
    part = (split.to(tl.int64) * tl.num_programs(1) + head) * rows + row
    tl.store(largest_ptr + part, largest, mask=row_ok)
    tl.store(weight_ptr + part, weight, mask=row_ok)
    tl.store(sums_ptr + part[:, None] * DIM + channel[None, :], total, mask=q_ok)


@triton.jit
def visible_scores(
    scores, mask_ptr, head, row, row_ok, at, token, queries, tokens, window, mask_batch, mask_head, repeat, heads,
    CAUSAL: tl.constexpr, HAS_MASK: tl.constexpr,
):  # fmt: skip
    """Return the scores plus the mask, minus infinity where a row does not see a token."""
    seen = row_ok[:, None] & (token < tokens)[None, :]
    if CAUSAL:
        seen = seen & (token[None, :] <= at[:, None])
    seen = seen & ((window <= 0) | (token[None, :] > at[:, None] - window))
    if HAS_MASK:
        plane = (head // heads) * mask_batch + ((head % heads) * repeat + row // queries) * mask_head
        place = plane[:, None] + (row % queries)[:, None] * tokens + token[None, :]
        scores += tl.load(mask_ptr + place, mask=seen, other=0.0)
    return tl.where(seen, scores, float("-inf"))


@triton.jit
def join_splits(
    sums_ptr, largest_ptr, weight_ptr, y_ptr, rows,
    SPLITS: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Write the attention of one query row: the splits' sums on one scale, added in their order."""
    row = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, BLOCK_D)
    largest = tl.load(largest_ptr + row)
    for split in range(1, SPLITS):
        largest = tl.maximum(largest, tl.load(largest_ptr + split * rows + row))
    base = tl.where(largest == float("-inf"), 0.0, largest)
    total = tl.zeros((BLOCK_D,), dtype=tl.float32)
    weight = 0.0
    for split in range(SPLITS):
        share = tl.exp(tl.load(largest_ptr + split * rows + row) - base)
        weight += share * tl.load(weight_ptr + split * rows + row)
        sums = tl.load(sums_ptr + (split * rows + row) * DIM + channel, mask=channel < DIM, other=0.0)
        total += share * sums
    y = tl.where(weight > 0, total / tl.where(weight > 0, weight, 1.0), 0.0)
    tl.store(y_ptr + row * DIM + channel, y.to(y_ptr.dtype.element_ty), mask=channel < DIM)
