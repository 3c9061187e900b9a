"""Values of GGUF's blocks: functions of ``[blocks, bytes]`` of uint8 that give ``[blocks, values]`` of float32.

The layouts are in README.md beside this file. Sums and products are made in fp32 in the order in which llama.cpp makes
them, so that values agree to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from bitwright.errors import InputError
from bitwright.interop.gguf.types import BlockType

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

_PLAIN: Mapping[str, str] = MappingProxyType(
    {"F32": "<f4", "F64": "<f8", "I8": "<i1", "I16": "<i2", "I32": "<i4", "I64": "<i8"}
)
# Blocks that are widened at a time: intermediate values stay in the cache.
_BLOCKS = 1 << 14


def dequantize(raw: Bytes, kind: BlockType) -> NDArray[np.generic]:
    """Values of a tensor's bytes, flat: float32; float64 and integers in their own type.

    Raises:
        InputError: for a type that is known and not read.
    """
    if kind.name in _PLAIN:
        return raw.view(_PLAIN[kind.name]).copy()
    if kind.name not in _BLOCK_READERS:
        raise InputError(f"tensors of the type {kind.name} are not read; read are {', '.join(READABLE)}")
    read = _BLOCK_READERS[kind.name]
    blocks = raw.reshape(-1, kind.bytes)
    found = np.empty((len(blocks), kind.values), np.float32)
    step = max(1, _BLOCKS * 32 // kind.values)
    # A NaN or Inf scale is the file's; what comes of it is for the caller to find.
    with np.errstate(invalid="ignore", over="ignore"):
        for start in range(0, len(blocks), step):
            found[start : start + step] = read(blocks[start : start + step])
    return found.reshape(-1)


def _half(blocks: Bytes, place: int) -> Floats:
    """The fp16 number at a byte of every block, ``[blocks, 1]``."""
    return np.ascontiguousarray(blocks[:, place : place + 2]).view("<f2").astype(np.float32)


def _f16(blocks: Bytes) -> Floats:
    return np.ascontiguousarray(blocks).view("<f2").astype(np.float32)


def _bf16(blocks: Bytes) -> Floats:
    return (np.ascontiguousarray(blocks).view("<u2").astype(np.uint32) << 16).view(np.float32)


def _nibbles(packed: Bytes) -> Bytes:
    """Low nibbles of all bytes, then their high nibbles."""
    return np.concatenate([packed & 15, packed >> 4], axis=1)


def _fifth_bits(packed: Bytes) -> Bytes:
    """32 bits of 4 bytes, as 16: what they add to codes of four bits."""
    return np.left_shift(np.unpackbits(packed, axis=1, bitorder="little"), 4, dtype=np.uint8)


def _q8_0(b: Bytes) -> Floats:
    return b[:, 2:].view(np.int8).astype(np.float32) * _half(b, 0)


def _q4_0(b: Bytes) -> Floats:
    return (_nibbles(b[:, 2:]).astype(np.float32) - 8) * _half(b, 0)


def _q4_1(b: Bytes) -> Floats:
    return _nibbles(b[:, 4:]).astype(np.float32) * _half(b, 0) + _half(b, 2)


def _q5_0(b: Bytes) -> Floats:
    return ((_nibbles(b[:, 6:]) | _fifth_bits(b[:, 2:6])).astype(np.float32) - 16) * _half(b, 0)


def _q5_1(b: Bytes) -> Floats:
    return (_nibbles(b[:, 8:]) | _fifth_bits(b[:, 4:8])).astype(np.float32) * _half(b, 0) + _half(b, 2)


def _pairs_of_bits(packed: Bytes) -> Bytes:
    """2-bit codes of ``[blocks, halves * 32]`` bytes in the order of the values: half, pair of bits, byte."""
    halves = packed.reshape(len(packed), -1, 1, 32)
    shifts = np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 4, 1)
    return np.bitwise_and(halves >> shifts, 3, dtype=np.uint8).reshape(len(packed), -1)


def _spread(values: NDArray[np.generic], size: int) -> Floats:
    """One number per ``size`` values, repeated for each of them."""
    return np.repeat(values.astype(np.float32), size, axis=1)


def _q2_k(b: Bytes) -> Floats:
    scales, codes = b[:, :16], _pairs_of_bits(b[:, 16:80])
    scale = _half(b, 80) * (scales & 15).astype(np.float32)
    least = _half(b, 82) * (scales >> 4).astype(np.float32)
    return _spread(scale, 16) * codes - _spread(least, 16)


def _q3_k(b: Bytes) -> Floats:
    high, low, packed = b[:, :32], b[:, 32:96], b[:, 96:108]
    bits = np.concatenate([(high >> i) & 1 for i in range(8)], axis=1)
    codes = _pairs_of_bits(low).astype(np.int8) - (4 * (1 - bits.astype(np.int8)))
    fours = np.concatenate([packed[:, :8] & 15, packed[:, :8] >> 4], axis=1)
    twos = np.concatenate([(packed[:, 8:12] >> (2 * i)) & 3 for i in range(4)], axis=1)
    scale = (fours | (twos << 4)).astype(np.float32) - 32
    return _spread(_half(b, 108) * scale, 16) * codes.astype(np.float32)


def _six_bits(packed: Bytes) -> tuple[Bytes, Bytes]:
    """Eight scales and eight minima of six bits each, from 12 bytes."""
    first, second, rest = packed[:, :4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate([first & 63, (rest & 15) | ((first >> 6) << 4)], axis=1)
    minima = np.concatenate([second & 63, (rest >> 4) | ((second >> 6) << 4)], axis=1)
    return scales, minima


def _runs_of_32(packed: Bytes) -> Bytes:
    """Nibbles of 128 bytes: per 32 bytes their low nibbles, then their high ones."""
    quarters = packed.reshape(len(packed), 4, 1, 32)
    return np.concatenate([quarters & 15, quarters >> 4], axis=2).reshape(len(packed), 256)


def _scaled_with_minima(b: Bytes, codes: Bytes) -> Floats:
    scales, minima = _six_bits(b[:, 4:16])
    scale, least = _half(b, 0) * scales.astype(np.float32), _half(b, 2) * minima.astype(np.float32)
    return _spread(scale, 32) * codes.astype(np.float32) - _spread(least, 32)


def _q4_k(b: Bytes) -> Floats:
    return _scaled_with_minima(b, _runs_of_32(b[:, 16:]))


def _q5_k(b: Bytes) -> Floats:
    high = np.concatenate([(b[:, 16:48] >> i) & 1 for i in range(8)], axis=1)
    return _scaled_with_minima(b, _runs_of_32(b[:, 48:]) | np.left_shift(high, 4, dtype=np.uint8))


def _q6_k(b: Bytes) -> Floats:
    halves = b[:, :128].reshape(-1, 2, 64)
    low = np.concatenate([halves & 15, halves >> 4], axis=2).reshape(-1, 256)
    codes = (low | (_pairs_of_bits(b[:, 128:192]) << 4)).astype(np.float32) - 32
    scale = _half(b, 208) * b[:, 192:208].view(np.int8).astype(np.float32)
    return _spread(scale, 16) * codes


_BLOCK_READERS: Mapping[str, Callable[[Bytes], Floats]] = MappingProxyType({
    "F16": _f16, "BF16": _bf16, "Q8_0": _q8_0, "Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1,
    "Q2_K": _q2_k, "Q3_K": _q3_k, "Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k,
})  # fmt: skip

READABLE: tuple[str, ...] = (*_PLAIN, *_BLOCK_READERS)
"""Names of the types that :func:`dequantize` reads."""
