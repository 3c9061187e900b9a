"""The order in which the kernels read a coded weight: tiles of rows and columns, bit planes without straddling codes.

A tile is :data:`ROWS` rows by :data:`COLUMNS` columns. Codes are cut into parts of 8, 4, 2 or 1 bits (3 = 2 + 1,
5 = 4 + 1, 6 = 4 + 2, 7 = 4 + 2 + 1), lowest bits first; a part of w bits is a little-endian bit stream of 16 w bytes
per row of the tile. So a kernel reads a part of many rows as one run of bytes, every shift that it takes is a constant,
and no code straddles two bytes at any width. The bytes are ``[row blocks, tiles, ROWS * 16 * bits]``, the parts after
each other; what lies beyond the matrix is code 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitwright.formats import pack, unpack

ROWS = 128
COLUMNS = 128


def parts(bits: int) -> tuple[int, ...]:
    """Return the widths of the parts of a code of ``bits`` bits, the widest (and lowest) first."""
    return tuple(width for width in (8, 4, 2, 1) if bits & width)


def tile_counts(shape: tuple[int, int]) -> tuple[int, int]:
    """Return how many blocks of rows and how many tiles of columns a matrix ``(out, in)`` has."""
    return -(-shape[0] // ROWS), -(-shape[1] // COLUMNS)


def pack_tiles(codes: Tensor, bits: int) -> Tensor:
    """Return the tiles, uint8 ``[row blocks, tiles, ROWS * 16 * bits]``, of uint8 ``codes[out, in]``."""
    out, columns = codes.shape
    blocks, tiles = tile_counts((out, columns))
    padded = torch.nn.functional.pad(codes, (0, tiles * COLUMNS - columns, 0, blocks * ROWS - out))
    found, low = [], 0
    for width in parts(bits):
        rows = pack((padded >> low) & ((1 << width) - 1), width)
        found.append(rows.view(blocks, ROWS, tiles, -1).transpose(1, 2).reshape(blocks, tiles, -1))
        low += width
    return torch.cat(found, dim=2)


def unpack_tiles(packed: Tensor, bits: int, shape: tuple[int, int]) -> Tensor:
    """Return the codes ``[out, in]`` of tiles made by :func:`pack_tiles`."""
    blocks, tiles, _ = packed.shape
    codes = torch.zeros((blocks * ROWS, tiles * COLUMNS), dtype=torch.uint8, device=packed.device)
    low = 0
    for width, part in zip(parts(bits), packed.split([ROWS * 16 * w for w in parts(bits)], dim=2), strict=True):
        rows = part.reshape(blocks, tiles, ROWS, -1).transpose(1, 2).reshape(blocks * ROWS, -1)
        codes |= unpack(rows.contiguous(), width, tiles * COLUMNS) << low
        low += width
    return codes[: shape[0], : shape[1]].contiguous()
