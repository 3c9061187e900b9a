"""Dense bit streams: codes of b bits one after the other, the first code in the lowest bits (little-endian)."""

from __future__ import annotations

import torch
from torch import Tensor

from bitwright.errors import InputError
from bitwright.native.bits import pack_bits, unpack_bits


def _check_bits(bits: int) -> None:
    if not 1 <= bits <= 8:
        raise InputError(f"codes of {bits} bits cannot be packed; packing serves 1 to 8 bits")


def packed_columns(n: int, bits: int) -> int:
    """Return the bytes of one packed row of ``n`` codes: ``ceil(n * bits / 8)``."""
    return (n * bits + 7) // 8


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack uint8 ``codes[rows, n]``, each below ``2^bits``, to uint8 ``[rows, ceil(n*bits/8)]``.

    Code k of a row lies at bits ``k*bits .. (k+1)*bits-1`` of the row's little-endian stream; the last byte is padded
    with zero bits. Values are not checked.

    Raises:
        InputError: bits outside 1..8, or codes that are not a uint8 matrix.
    """
    _check_bits(bits)
    if codes.dtype != torch.uint8 or codes.dim() != 2:
        raise InputError(f"pack takes a uint8 matrix, not {codes.dtype} of shape {tuple(codes.shape)}")
    compiled = pack_bits(codes, bits)
    if compiled is not None:
        return compiled
    return _pack_by_words(codes, bits)


def _pack_by_words(codes: Tensor, bits: int) -> Tensor:
    """The plain form of :func:`pack`."""
    rows, n = codes.shape
    if bits == 8:
        return codes.clone()
    octets = -(-n // 8)
    # Flat, since a single row may call itself contiguous and yet have a stride that no word divides.
    padded = torch.nn.functional.pad(codes, (0, octets * 8 - n)).contiguous().view(-1)
    words = padded.view(torch.int64)
    if bits in (1, 2, 4):
        packed = _fold(words, bits).view(rows, octets * bits)
    else:
        # Three times, two neighbours of width b, 2b, 4b close the gap between them.
        for lane, gap in ((8, 8 - bits), (16, 16 - 2 * bits), (32, 32 - 4 * bits)):
            low = _lanes(lane)
            words = (words & low) | ((words & _signed(low << lane)) >> gap)
        packed = words.view(torch.uint8).view(rows, octets, 8)[:, :, :bits].reshape(rows, octets * bits)
    return packed[:, : packed_columns(n, bits)].contiguous()


def _lanes(lane: int) -> int:
    """Return the mask of the lower of each two lanes of that many bits in a 64-bit word."""
    return sum(((1 << lane) - 1) << start for start in range(0, 64, 2 * lane))


def _fold(words: Tensor, bits: int) -> Tensor:
    """Pack bytes of 1, 2 or 4 used bits: the same shifts, in words just wide enough for one byte of the result."""
    dtype = {4: torch.int16, 2: torch.int32, 1: torch.int64}[bits]
    folded = words.view(dtype)
    shift, width = 8 - bits, 8
    while width < folded.element_size() * 8:
        folded = folded | (folded >> shift)
        shift, width = shift * 2, width * 2
    return folded.to(torch.uint8)


def unpack(packed: Tensor, bits: int, n: int) -> Tensor:
    """Return uint8 codes ``[rows, n]`` of a matrix made by :func:`pack`.

    Raises:
        InputError: bits outside 1..8, not a uint8 matrix, or a row length that does not belong to ``n`` codes.
    """
    _check_bits(bits)
    if packed.dtype != torch.uint8 or packed.dim() != 2:
        raise InputError(f"unpack takes a uint8 matrix, not {packed.dtype} of shape {tuple(packed.shape)}")
    width = packed.shape[1]
    if width != packed_columns(n, bits):
        raise InputError(f"{n} codes of {bits} bits take {packed_columns(n, bits)} bytes a row, not {width}")
    compiled = unpack_bits(packed, bits, n)
    return _unpack_by_words(packed, bits, n) if compiled is None else compiled


def _unpack_by_words(packed: Tensor, bits: int, n: int) -> Tensor:
    """The plain form of :func:`unpack`."""
    rows, width = packed.shape
    if bits == 8:
        return packed.clone()
    if bits in (1, 2, 4):
        shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device)
        spread = (packed.unsqueeze(-1) >> shifts) & ((1 << bits) - 1)
        return spread.view(rows, width * (8 // bits))[:, :n].contiguous()
    octets = -(-n // 8)
    full = torch.nn.functional.pad(packed, (0, octets * bits - width)).view(rows, octets, bits)
    words = torch.nn.functional.pad(full, (0, 8 - bits)).contiguous().view(torch.int64)
    for lane, gap in ((32, 32 - 4 * bits), (16, 16 - 2 * bits), (8, 8 - bits)):
        used = (1 << (lane - gap)) - 1
        low = sum(used << start for start in range(0, 64, 2 * lane))
        words = (words & low) | ((words << gap) & _signed(low << lane))
    return words.view(torch.uint8).view(rows, octets * 8)[:, :n].contiguous()


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value
