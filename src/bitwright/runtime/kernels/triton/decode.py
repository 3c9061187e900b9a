"""Device functions: codes and stored scales become numbers, in registers."""

# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def exact_float(code):
    """Return small non-negative integers as float32 by arithmetic: the last digits of ``2^23 + code``."""
    return (code.to(tl.int32) | 0x4B000000).to(tl.float32, bitcast=True) - 8388608.0


@triton.jit
def minifloat(code, BITS: tl.constexpr, MANTISSA: tl.constexpr):
    """Return fp16 numbers whose sign, exponent and mantissa are those of the codes: a power of two too small."""
    magnitude = (code & ((1 << (BITS - 1)) - 1)) << (10 - MANTISSA)
    pattern = magnitude | ((code >> (BITS - 1)) << 15)
    return pattern.to(tl.int16).to(tl.float16, bitcast=True)


@triton.jit
def level(
    code,
    zero,
    table,
    place,
    place_ok,
    KIND: tl.constexpr,
    CENTER: tl.constexpr,
    HAS_ZERO: tl.constexpr,
    MANTISSA: tl.constexpr,
    BITS: tl.constexpr,
):
    """Return the float32 levels of int32 codes; ``place`` is the index of a code's own table (codebooks)."""
    if KIND == 0:
        if HAS_ZERO:
            found = exact_float(code) - zero
        else:
            found = exact_float(code) - CENTER
    elif KIND == 1:
        found = minifloat(code, BITS, MANTISSA).to(tl.float32)
    elif KIND == 2:
        found = tl.load(table + code).to(tl.float32)
    else:
        found = tl.load(table + (place * (1 << BITS) + code), mask=place_ok, other=0.0).to(tl.float32)
    return found


@triton.jit
def stored_scale(scale, place, place_ok, KIND: tl.constexpr):
    """Return scales as float32: floats, powers of two (e8m0), or e4m3 bytes (2^8 too small)."""
    if KIND == 0:
        found = tl.load(scale + place, mask=place_ok, other=0.0).to(tl.float32)
    elif KIND == 1:
        byte = tl.load(scale + place, mask=place_ok, other=0).to(tl.int32)
        # The byte 0 is 2^-127, a float32 subnormal.
        found = tl.where(byte == 0, 1 << 22, byte << 23).to(tl.float32, bitcast=True)
    elif KIND == 2:
        byte = tl.load(scale + place, mask=place_ok, other=0).to(tl.int32)
        found = minifloat(byte, 8, 3).to(tl.float32)
    else:
        found = tl.where(place_ok, 1.0, 0.0)
    return found


@triton.jit
def operand(value, DTYPE: tl.constexpr, WIDEN: tl.constexpr):
    """Round to the type that is multiplied; ``WIDEN`` then multiplies in float32 (Triton's interpreter has no bf16)."""
    if WIDEN:
        rounded = value.to(DTYPE).to(tl.float32)
    else:
        rounded = value.to(DTYPE)
    return rounded


@triton.jit
def spread(packed, WIDTH: tl.constexpr):
    """Return the ``[rows, n * 8 / WIDTH]`` int32 codes of ``packed[rows, n]`` bytes, in their order, in registers."""
    if WIDTH == 8:
        codes = packed
    elif WIDTH == 4:
        codes = pair(packed & 15, packed >> 4)
    elif WIDTH == 2:
        even = pair(packed & 3, (packed >> 4) & 3)
        odd = pair((packed >> 2) & 3, packed >> 6)
        codes = pair(even, odd)
    else:
        first = pair(pair(packed & 1, (packed >> 4) & 1), pair((packed >> 2) & 1, (packed >> 6) & 1))
        second = pair(pair((packed >> 1) & 1, (packed >> 5) & 1), pair((packed >> 3) & 1, packed >> 7))
        codes = pair(first, second)
    return codes


@triton.jit
def pair(first, second):
    """Return ``[rows, 2 n]``: the columns of two matrices in turn."""
    rows: tl.constexpr = first.shape[0]
    columns: tl.constexpr = first.shape[1]
    return tl.join(first, second).reshape((rows, 2 * columns))


@triton.jit
def part_codes(tile_ptr, rows, LOW: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr):
    """Return a part of the codes ``[rows, TILE]`` of a tile as uint8: ``WIDTH`` bits that lie above ``LOW`` others."""
    row_bytes: tl.constexpr = WIDTH * (TILE // 8)
    start = LOW * ROWS * (TILE // 8)
    place = rows[:, None] * row_bytes + tl.arange(0, row_bytes)[None, :]
    return spread(tl.load(tile_ptr + start + place), WIDTH)


@triton.jit
def tile_codes(tile_ptr, rows, BITS: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr):
    """Return the uint8 codes ``[rows, TILE]`` of a tile; see :mod:`bitwright.runtime.kernels.triton.tiles`."""
    if BITS == 8:
        code = part_codes(tile_ptr, rows, 0, 8, ROWS, TILE)
    elif BITS >= 4:
        code = part_codes(tile_ptr, rows, 0, 4, ROWS, TILE)
        if BITS & 2:
            code = code | (part_codes(tile_ptr, rows, 4, 2, ROWS, TILE) << 4)
        if BITS & 1:
            code = code | (part_codes(tile_ptr, rows, BITS - 1, 1, ROWS, TILE) << (BITS - 1))
    elif BITS >= 2:
        code = part_codes(tile_ptr, rows, 0, 2, ROWS, TILE)
        if BITS & 1:
            code = code | (part_codes(tile_ptr, rows, 2, 1, ROWS, TILE) << 2)
    else:
        code = part_codes(tile_ptr, rows, 0, 1, ROWS, TILE)
    return code.to(tl.int32)
