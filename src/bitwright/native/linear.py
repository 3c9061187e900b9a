"""Products with packed weights: the weight in the kernels' layout, and the operator ``bitwright::linear``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bitwright.errors import InputError
from bitwright.native.arena import Arena
from bitwright.native.buffers import FLOAT_CODES, float_code, span
from bitwright.native.loading import extension, require_library
from bitwright.native.operators import register

ROWS = 16
"""Rows of a tile."""

BLOCKS = (128, 64, 32, 16)
"""Inputs of a block, the preferred first; one scale serves a whole number of blocks."""

AFFINE, TABLE, ROW_TABLE = 0, 1, 2
_SCALES = (torch.float32, torch.float16, torch.bfloat16)
_NUMBERS = 7  # of NativeWeight.geometry


def block_of(group: int, bits: int) -> int | None:
    """The block for groups of that many inputs, or ``None`` where none divides them."""
    for block in BLOCKS:
        # A plane of one bit fills a vector with 32 inputs.
        if group % block == 0 and not (block == 16 and bits in (1, 3, 5, 7)):
            return block
    return None


@dataclass(frozen=True, eq=False)
class NativeWeight:
    """A matrix ``[out, in]`` in the kernels' layout (``native/core/weight.h``): tiles of 16 rows, blocks of inputs.

    Attributes:
        codes: uint8, packed. scale: fp32, fp16 or bf16 ``[tiles, groups, 16]``. zero: uint8 or fp32 likewise, or
            ``None``. table: fp32 ``[2^bits]`` or ``[tiles, groups, 16, 2^bits]``, or ``None``.
        shape: ``(out, in)``. bits: of a code. block: inputs of a block. blocks_per_scale: blocks of a group.
        levels: ``AFFINE``: ``scale * (code - zero)``; ``TABLE``, ``ROW_TABLE``: ``scale * table[code]``.
        constant_zero: zero point where ``zero`` is ``None``.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor | None
    table: Tensor | None
    shape: tuple[int, int]
    bits: int
    block: int
    blocks_per_scale: int
    levels: int = AFFINE
    constant_zero: int = 0

    def geometry(self) -> list[int]:
        """The whole numbers of the weight, as the operator takes them."""
        return [*self.shape, self.bits, self.block, self.blocks_per_scale, self.levels, self.constant_zero]

    def handle(self) -> Any:
        """The compiled view; every buffer is checked against the geometry."""
        return _handle(self.codes, self.scale, self.zero, self.table, self.geometry())

    def unpack(self) -> Tensor:
        """Return the codes, uint8 ``[out, in]``."""
        codes = torch.empty(self.shape, dtype=torch.uint8)
        require_library().unpack_weight(self.handle(), span(codes), torch.get_num_threads())
        return codes

    def bytes(self) -> int:
        """Bytes that a product reads."""
        return sum(t.nbytes for t in (self.codes, self.scale, self.zero, self.table) if t is not None)


def _handle(codes: Tensor, scale: Tensor, zero: Tensor | None, table: Tensor | None, geometry: list[int]) -> Any:
    if len(geometry) != _NUMBERS:
        raise InputError(f"a packed weight is described by {_NUMBERS} numbers, not {len(geometry)}")
    if zero is not None and zero.numel() == 0:
        raise InputError("zero points are given, but none is in the tensor")
    out, columns, bits, block, per_scale, levels, constant = geometry
    zero_codes, zeros = (zero, None) if zero is not None and zero.dtype == torch.uint8 else (None, zero)
    try:
        return extension().Weight(
            out, columns, bits, block, per_scale, levels,
            span(codes, torch.uint8), span(scale, *_SCALES), FLOAT_CODES[scale.dtype],
            span(zero_codes), span(zeros, torch.float32), constant, span(table, torch.float32),
        )  # fmt: skip
    except (ValueError, TypeError) as error:
        raise InputError(f"a packed weight does not fit its geometry: {error}") from error


def pack_codes(codes: Tensor, bits: int, block: int, arena: Arena | None = None) -> Tensor:
    """Return uint8 ``codes[out, in]`` in the kernels' layout.

    Raises:
        InputError: for codes that are not a contiguous uint8 matrix, or a wrong width or block.
    """
    library = require_library()
    if codes.dim() != 2:
        raise InputError(f"codes are a matrix [out, in], not of {codes.dim()} dimensions")
    out, columns = codes.shape
    try:
        size = int(extension().packed_bytes(out, columns, bits, block))
        packed = torch.empty(size, dtype=torch.uint8) if arena is None else arena.take(size)
        source = span(codes, torch.uint8)
        library.pack_weight(out, columns, bits, block, source, span(packed), torch.get_num_threads())
    except (ValueError, TypeError) as error:
        raise InputError(f"codes cannot be packed: {error}") from error
    return packed


def tiled(parameters: Tensor) -> Tensor:
    """Return ``parameters[out, groups, ...]`` as ``[tiles, groups, 16, ...]``; rows that are not there are zero."""
    out = parameters.shape[0]
    missing = -out % ROWS
    if missing:
        parameters = torch.cat((parameters, parameters.new_zeros((missing, *parameters.shape[1:]))))
    return parameters.unflatten(0, (-1, ROWS)).transpose(1, 2).contiguous()


def linear(x: Tensor, weight: NativeWeight, bias: Tensor | None = None, *, exact: bool = True) -> Tensor:
    """Return ``x[..., in] @ w.T + bias`` in the dtype of x (fp32, fp16, bf16), accumulated in fp32.

    ``exact``: activations as they are. Otherwise they are rounded to 8 bits, a scale for every row and block, and
    multiplied in integers: 0.6 to 0.7 % error of an output on Gaussian activations.

    Raises:
        InputError: for a dtype, device or shape that the kernels do not serve.
    """
    y: Tensor = _OPERATOR(x, weight.codes, weight.scale, weight.zero, weight.table, bias, weight.geometry(), exact)
    return y


def _fake(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    table: Tensor | None,
    bias: Tensor | None,
    geometry: list[int],
    exact: bool,
) -> Tensor:
    return x.new_empty((*x.shape[:-1], geometry[0]))


def _run(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    table: Tensor | None,
    bias: Tensor | None,
    geometry: list[int],
    exact: bool,
) -> Tensor:
    handle = _handle(codes, scale, zero, table, geometry)
    channels = x.shape[-1] if x.dim() else 0
    if channels != geometry[1]:
        raise InputError(f"the weight takes {geometry[1]} channels, not {channels}; check the input")
    if bias is not None and bias.shape != (geometry[0],):
        raise InputError(f"a bias for {geometry[0]} outputs has {tuple(bias.shape)} numbers; check the layer")
    kind = float_code(x.dtype)
    x = x.contiguous()
    y = x.new_empty((*x.shape[:-1], geometry[0]))
    bias = None if bias is None else bias.detach().float().contiguous()
    rows = x.numel() // geometry[1]
    threads = torch.get_num_threads()
    require_library().linear(handle, span(x.detach()), kind, rows, span(y), span(bias), exact, threads)
    return y


_OPERATOR = register(
    "linear",
    "(Tensor x, Tensor codes, Tensor scale, Tensor? zero, Tensor? table, Tensor? bias, int[] geometry, bool exact)"
    " -> Tensor",
    _run, _fake,
)  # fmt: skip
