"""Native codes to the tensors of compressed-tensors and back, without rounding anything."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from bitwright.errors import InputError
from bitwright.formats import Block, Codes, IntGrid, Scale
from bitwright.formats import Tensor as WholeTensor
from bitwright.formats.packing import pack as pack_bits
from bitwright.formats.packing import packed_columns
from bitwright.formats.packing import unpack as unpack_bits
from bitwright.formats.scales import load as load_scale
from bitwright.interop.compressed_tensors.scheme import FLOAT8, INTEGER, MXFP4, NVFP4, PACKED, Scheme

GLOBAL_SCALE_SEARCH = 64
"""How many float32 neighbours of the reciprocal are tried on each side."""


def pack_words(codes: Tensor, bits: int) -> Tensor:
    """Return int32 ``[rows, ceil(n*bits/32)]`` of uint8 ``codes[rows, n]``: a dense little-endian bit stream."""
    # Cloned: a matrix of one row keeps odd strides through contiguous(), and then cannot be viewed as words.
    packed = pack_bits(codes.clone(memory_format=torch.contiguous_format) if codes.shape[0] == 1 else codes, bits)
    padded = torch.nn.functional.pad(packed, (0, -packed.shape[1] % 4))
    return padded.reshape(-1).view(torch.int32).view(codes.shape[0], -1)


def unpack_words(words: Tensor, bits: int, n: int) -> Tensor:
    """Return uint8 ``[rows, n]`` of :func:`pack_words`."""
    octets = words.reshape(-1).view(torch.uint8).view(words.shape[0], -1)[:, : packed_columns(n, bits)]
    return unpack_bits(octets.clone(memory_format=torch.contiguous_format), bits, n)


def pack(codes: Codes, scheme: Scheme) -> dict[str, Tensor]:
    """Return the tensors of one layer by local name (``weight_packed``, ``weight_scale``, ...)."""
    if scheme.container in (PACKED, INTEGER):
        return _pack_integers(codes, scheme)
    if scheme.container == FLOAT8:
        stored = codes.scale.stored
        scale = stored.reshape(1) if scheme.strategy == "tensor" else stored
        return {"weight": codes.codes.view(torch.float8_e4m3fn), "weight_scale": scale}
    tensors = {"weight_packed": pack_bits(codes.codes, 4)}
    if scheme.container == MXFP4:
        return {**tensors, "weight_scale": codes.scale.stored}
    assert codes.scale.outer is not None
    tensors["weight_scale"] = codes.scale.stored.view(torch.float8_e4m3fn)
    return {**tensors, "weight_global_scale": global_scale(codes.scale.outer, codes.scale.stored)}


def _pack_integers(codes: Codes, scheme: Scheme) -> dict[str, Tensor]:
    grid, rows = scheme.weight.grid, codes.shape[0]
    bits = grid.bits
    # Their code is the signed level + 2^(b-1); ours counts from the lowest level, which a narrow grid has one higher.
    shift = int(grid.min_level) + (1 << bits - 1) if _signed(scheme) else 0
    unsigned = codes.codes + shift if shift else codes.codes
    scale = _per_row(codes.scale.stored, rows)
    zero = None if _signed(scheme) else _per_row(_zero(codes), rows)
    if scheme.container == PACKED:
        shape = torch.tensor(codes.shape, dtype=torch.int64)
        tensors = {"weight_packed": pack_words(unsigned, bits), "weight_scale": scale, "weight_shape": shape}
        if zero is not None:
            tensors["weight_zero_point"] = pack_words(zero.t().contiguous(), bits).t().contiguous()
        return tensors
    tensors = {"weight": _centred(unsigned, bits), "weight_scale": scale}
    if zero is not None:
        tensors["weight_zero_point"] = _centred(zero, bits)
    return tensors


def _signed(scheme: Scheme) -> bool:
    grid = scheme.weight.grid
    return isinstance(grid, IntGrid) and grid.signed


def _zero(codes: Codes) -> Tensor:
    """Zero points as codes; unsigned integers without any have their zero at level 0."""
    return torch.zeros_like(codes.scale.stored, dtype=torch.uint8) if codes.zero is None else codes.zero


def _per_row(params: Tensor, rows: int) -> Tensor:
    """Repeat the parameter of a whole tensor for every row; runtimes read integers per channel or group only."""
    return params.expand(rows, 1).contiguous() if params.shape[0] == 1 and rows > 1 else params


def _centred(unsigned: Tensor, bits: int) -> Tensor:
    return (unsigned.to(torch.int16) - (1 << bits - 1)).to(torch.int8)


def global_scale(outer: Tensor, inner: Tensor) -> Tensor:
    """Return float32 ``[1]`` g such that ``level * (scale / g)`` is our ``level * (scale * outer)`` in bfloat16.

    Readers divide by their global scale where we multiply by ours, and compute weights in bfloat16. The reciprocal
    itself may round a product to the other side, so its neighbours are tried too; ``inner`` are the uint8 patterns of
    the e4m3 scales. Where none gives every value, the one with the fewest differences is returned.
    """
    levels = torch.tensor([0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
    scales = torch.unique(inner).view(torch.float8_e4m3fn).to(torch.float32).unsqueeze(1)
    wanted = (levels * (scales * outer)).to(torch.bfloat16)
    middle = (1.0 / outer.to(torch.float64)).to(torch.float32).view(torch.int32)
    best, fewest = middle, wanted.numel() + 1
    for step in sorted(range(-GLOBAL_SCALE_SEARCH, GLOBAL_SCALE_SEARCH + 1), key=abs):
        candidate = middle + step
        found = (levels * (scales / candidate.view(torch.float32))).to(torch.bfloat16)
        wrong = int((found != wanted).sum())
        if wrong < fewest:
            best, fewest = candidate, wrong
        if not wrong:
            break
    return best.view(torch.float32).reshape(1)


def pack_input(scheme: Scheme, scale: Tensor | None, zero: Tensor | None) -> dict[str, Tensor]:
    """Return the tensors of a static input (none for a measured one)."""
    if scheme.input is None or scale is None:
        return {}
    tensors = {"input_scale": scale.reshape(1)}
    if zero is not None:
        tensors["input_zero_point"] = _centred(zero.reshape(1), scheme.input.grid.bits)
    return tensors


def unpack(tensors: Mapping[str, Tensor], scheme: Scheme, shape: tuple[int, int]) -> Codes:
    """Return the native codes of one layer ``[out, in]``; inverse of :func:`pack`.

    Raises:
        InputError: a missing tensor, or one of another shape.
    """
    if scheme.container in (PACKED, INTEGER):
        return _unpack_integers(tensors, scheme, shape)
    fmt = scheme.weight
    params = fmt.granularity.layout(shape).params_shape
    if scheme.container == FLOAT8:
        stored = _take(tensors, "weight_scale", (1,) if scheme.strategy == "tensor" else params).reshape(params)
        codes = _take(tensors, "weight", shape).view(torch.uint8)
        return Codes(codes, fmt, Scale(stored, stored.to(torch.float32)))
    codes = unpack_bits(_take(tensors, "weight_packed", (shape[0], packed_columns(shape[1], 4))), 4, shape[1])
    stored = _take(tensors, "weight_scale", params).view(torch.uint8)
    outer = None if scheme.container != NVFP4 else 1.0 / _take(tensors, "weight_global_scale", (1,))
    return Codes(codes, fmt, load_scale(fmt.scale, stored, fmt.step_exponent, outer, None))


def _unpack_integers(tensors: Mapping[str, Tensor], scheme: Scheme, shape: tuple[int, int]) -> Codes:
    fmt, (rows, columns) = scheme.weight, shape
    bits = fmt.grid.bits
    groups = 1 if scheme.group is None else columns // scheme.group
    zero = None
    if scheme.container == PACKED:
        words = _take(tensors, "weight_packed", (rows, -(-columns * bits // 32)))
        unsigned = unpack_words(words, bits, columns)
        if fmt.zero is not None:
            stored = _take(tensors, "weight_zero_point", (-(-rows * bits // 32), groups))
            zero = unpack_words(stored.t(), bits, rows).t().contiguous()
    else:
        unsigned = _uncentred(_take(tensors, "weight", shape), bits)
        if fmt.zero is not None:
            zero = _uncentred(_take(tensors, "weight_zero_point", (rows, groups)), bits)
    shift = int(fmt.grid.min_level) + (1 << bits - 1) if _signed(scheme) else 0
    scale = _take(tensors, "weight_scale", (rows, groups))
    if fmt.granularity == WholeTensor():
        scale, zero = scale[:1], None if zero is None else zero[:1]
    return Codes(unsigned - shift if shift else unsigned, fmt, Scale(scale, scale.to(torch.float32)), zero)


def _uncentred(signed: Tensor, bits: int) -> Tensor:
    return (signed.to(torch.int16) + (1 << bits - 1)).to(torch.uint8)


def _take(tensors: Mapping[str, Tensor], name: str, shape: tuple[int, ...]) -> Tensor:
    if name not in tensors:
        raise InputError(f"the tensor {name!r} is missing; the file is incomplete, download or export it again")
    if tuple(tensors[name].shape) != shape:
        raise InputError(f"the tensor {name!r} has the shape {tuple(tensors[name].shape)}, expected {shape}")
    return tensors[name]


def block_structure(scheme: Scheme) -> list[int] | None:
    """Return ``[rows, cols]`` of blocks, or None."""
    granularity = scheme.weight.granularity
    return [granularity.rows, granularity.cols] if isinstance(granularity, Block) else None
