"""Bring quantized tensors into the forms that the compiled products read (:mod:`bitwright.native.product`)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bitwright.errors import InputError
from bitwright.formats import Codes, Groups, IntGrid, LowRank, QuantizedTensor, Sparse
from bitwright.native.linear import AFFINE, ROWS, NativeWeight, pack_codes, tiled
from bitwright.native.product import ByteTables, Terms, TernaryWeight

_HALF = 1 << 13
"""Levels that are no multiples of a step are rounded to this many steps of the largest one."""

_DIGITS, _VECTOR = 5, 20
_UNIT, _TALL = 24, 64
"""Inputs and rows of a unit of ternary triples."""


@dataclass(frozen=True)
class IntegerLevels:
    """Levels ``step * integer``: integers ``[n]`` (int64), and whether that is exact."""

    integers: Tensor
    step: float
    exact: bool


def integer_levels(levels: Tensor) -> IntegerLevels:
    """Write levels as multiples of a step: of their smallest size or half of it where that is exact, else rounded."""
    sizes = levels.double().abs()
    found = sizes[sizes > 0]
    if found.numel():
        for part in (1, 2):
            step = float(found.min()) / part
            multiples = levels.double() / step
            if bool((multiples == multiples.round()).all()) and float(multiples.abs().max()) < _HALF:
                return IntegerLevels(multiples.to(torch.int64), step, True)
    step = float(sizes.max()) / (_HALF - 1) or 1.0
    return IntegerLevels((levels.double() / step).round().to(torch.int64), step, False)


def affine_levels(levels: Tensor) -> tuple[float, float] | None:
    """Return ``(step, zero)`` with ``levels == step * (code - zero)``, exactly, or ``None``."""
    if levels.numel() < 2:
        return None
    step = float(levels[1].double() - levels[0].double())
    if step == 0:
        return None
    codes = torch.arange(levels.numel(), dtype=torch.float64)
    zero = -float(levels[0]) / step
    exact = bool(torch.equal(step * (codes - zero), levels.double())) and zero * 2 == round(zero * 2)
    return (step, zero) if exact else None


def shared_tables(levels: Tensor) -> ByteTables:
    """Byte tables of one table for all rows: one where 7 bits hold every level, else two halves."""
    found = integer_levels(levels)
    lowest, highest = int(found.integers.min()), int(found.integers.max())
    table = torch.zeros(16, dtype=torch.int64)
    if found.exact and highest - min(lowest, 0) <= 127 and lowest >= -127:
        offset = max(-lowest, 0)
        table[: levels.numel()] = found.integers + offset
        return ByteTables(table.to(torch.uint8), None, offset, found.step)
    table[: levels.numel()] = found.integers + _HALF
    return ByteTables((table & 127).to(torch.uint8), (table >> 7).to(torch.uint8), _HALF, found.step)


def row_tables(codebook: Tensor) -> tuple[ByteTables, Tensor]:
    """Byte tables of ``codebook[out, groups, n]``, and their steps ``[out, groups]``."""
    out, groups, count = codebook.shape
    levels = codebook.double()
    step = levels.abs().amax(-1) / (_HALF - 1)
    step = torch.where(step > 0, step, torch.ones_like(step)).float()
    integers = (levels / step.double().unsqueeze(-1)).round().to(torch.int64) + _HALF
    integers = torch.nn.functional.pad(integers, (0, 16 - count, 0, 0, 0, -out % ROWS), value=0)
    # [tiles, run, vector, groups, 16] -> [tiles, groups, vector, run, 16]
    ordered = integers.view(-1, 4, 4, groups, 16).permute(0, 3, 2, 1, 4).contiguous()
    low, high = (ordered & 127).to(torch.uint8), (ordered >> 7).clamp_(max=127).to(torch.uint8)
    return ByteTables(low, high, _HALF, 1.0, by_row=True), step


def by_rows(codes: Tensor, block: int) -> Tensor:
    """Exchange rows and inputs of ``codes[out, in]`` so that 16 neighbouring packed bytes belong to one row.

    Within 16 rows by 16 inputs, row ``4 L + i`` and input ``4 d + j`` go to row ``4 L + d`` and input ``4 i + j``.
    """
    out, columns = codes.shape
    padded = torch.nn.functional.pad(codes, (0, -columns % block, 0, -out % ROWS))
    cut = padded.view(padded.shape[0] // 16, 4, 4, padded.shape[1] // 16, 4, 4)
    return cut.transpose(2, 4).reshape(padded.shape).contiguous()


def native_codes(
    codes: Tensor, bits: int, block: int, per_scale: int, scale: Tensor, zero: Tensor | None = None, constant: int = 0
) -> NativeWeight:
    """Return an affine weight; ``scale`` and ``zero`` are ``[out, groups]``."""
    return NativeWeight(
        codes=pack_codes(codes.contiguous(), bits, block),
        scale=tiled(scale),
        zero=None if zero is None else tiled(zero),
        table=None,
        shape=(int(codes.shape[0]), int(codes.shape[1])),
        bits=bits,
        block=block,
        blocks_per_scale=per_scale,
        levels=AFFINE,
        constant_zero=constant,
    )


def ternary_weight(digits: Tensor, scale: Tensor) -> TernaryWeight:
    """Pack ``digits[out, in]`` (0, 1, 2 for -1, 0, 1), five in a byte; ``scale`` is ``[out, 1]``."""
    out, columns = digits.shape
    padded = torch.nn.functional.pad(digits, (0, -columns % _VECTOR, 0, -out % ROWS), value=0)
    cut = padded.view(-1, ROWS, padded.shape[1] // _VECTOR, _DIGITS, 4).to(torch.int32)
    value = cut[:, :, :, 0]
    for digit in range(1, _DIGITS):
        value = value * 3 + cut[:, :, :, digit]
    codes = ((value * 256 + 242) // 243).to(torch.uint8).permute(0, 2, 1, 3).contiguous()
    return TernaryWeight(codes, tiled(scale).contiguous(), (out, columns))


def triples_weight(digits: Tensor, scale: Tensor) -> TernaryWeight:
    """Pack ``digits[out, in]`` (0, 1, 2 for -1, 0, 1), three in five bits; ``scale`` is ``[out, 1]``.

    Raises:
        InputError: for other digits.
    """
    if digits.numel() and int(digits.max()) > 2:
        raise InputError("ternary digits are 0, 1 and 2; check the codes")
    out, columns = digits.shape
    padded = torch.nn.functional.pad(digits, (0, -columns % _UNIT, 0, -out % _TALL), value=1).to(torch.int16) - 1
    cut = padded.view(-1, 2, _TALL // 2, padded.shape[1] // _UNIT, _UNIT // 3, 3)
    value = 9 * cut[..., 0] + 3 * cut[..., 1] + cut[..., 2]
    size, sign = value.abs().unflatten(-1, (4, 2)), (value < 0).to(torch.int16)
    sizes = size[..., 0] | size[..., 1] << 4
    signs = (sign << torch.arange(8, dtype=torch.int16)).sum(-1, keepdim=True)
    # [talls, half, 32, units, 5] -> [talls, units, 5, 32, half]
    codes = torch.cat((sizes, signs), -1).permute(0, 3, 4, 2, 1).to(torch.uint8).contiguous()
    return TernaryWeight(codes, tiled(scale).contiguous(), (out, columns), triples=True)


def bit_planes(codes: Tensor, bits: int, block: int) -> Tensor:
    """Pack each bit of ``codes[out, in]`` as a plane of its own, the lowest first."""
    planes = [pack_codes(((codes >> bit) & 1).contiguous(), 1, block) for bit in range(bits)]
    return torch.cat(planes)


def code_sums(codes: Tensor, groups: int, width: int) -> Tensor:
    """Sums of codes ``[tiles, groups, 16]``, int32; a group has ``width`` inputs."""
    padded = torch.nn.functional.pad(codes, (0, groups * width - codes.shape[1]))
    return tiled(padded.view(len(codes), groups, width).sum(-1, dtype=torch.int32))


def sum_nibbles(codes: Tensor, bits: int, block: int) -> Tensor:
    """Pack ``codes[out, in]`` for tables of sums: each bit of 4 inputs as a nibble, 64 rows beside each other."""
    padded = torch.nn.functional.pad(codes, (0, -codes.shape[1] % block))
    cut = padded.view(-1, 64, padded.shape[1] // block, block // 8, 2, 4)
    planes = []
    for bit in range(bits):
        four = (cut >> bit) & 1
        nibble = four[..., 0] | four[..., 1] << 1 | four[..., 2] << 2 | four[..., 3] << 3
        planes.append(nibble[..., 0] | nibble[..., 1] << 4)
    # [tiles, 64, blocks, planes, pairs] -> [tiles, blocks, planes, pairs, 64]
    return torch.stack(planes, 3).permute(0, 2, 3, 4, 1).contiguous().flatten()


def pair_nibbles(digits: Tensor, block: int) -> Tensor:
    """Pack ternary ``digits[out, in]`` for tables of sums: two as the nibble ``3 d0 + d1``, 64 rows side by side."""
    padded = torch.nn.functional.pad(digits, (0, -digits.shape[1] % block))
    cut = padded.view(-1, 64, padded.shape[1] // block, block // 4, 2, 2)
    nibble = cut[..., 0] * 3 + cut[..., 1]
    return (nibble[..., 0] | nibble[..., 1] << 4).permute(0, 2, 3, 1).contiguous().flatten()


def extra_terms(weight: QuantizedTensor) -> Terms | None:
    """Single weights and narrow factors of a sum, several of a kind joined; ``None`` without any."""
    sparse = [term for term in weight.terms if isinstance(term, Sparse)]
    groups = next((term for term in weight.terms if isinstance(term, Groups)), None)
    narrow = [term for term in weight.terms if isinstance(term, LowRank)]
    if not sparse and not narrow and groups is None:
        return None
    starts = columns = values = left = right = None
    if sparse:
        rows = torch.cat([term.rows for term in sparse]).long()
        order = torch.argsort(rows, stable=True)
        columns = torch.cat([term.cols for term in sparse])[order].contiguous()
        values = torch.cat([term.values.float() for term in sparse])[order].contiguous()
        counts = torch.bincount(rows, minlength=weight.shape[0])
        starts = torch.cat((counts.new_zeros(1), counts.cumsum(0))).to(torch.int32)
    if narrow:
        left = tiled(torch.cat([_floats(term.left) for term in narrow], 1))
        right = torch.cat([_floats(term.right) for term in narrow], 0).contiguous()
    made = Terms(starts, columns, values, left, right)
    return made if groups is None else replace(made, **chosen_blocks(groups))


def chosen_blocks(term: Groups) -> dict[str, Any]:
    """The codes of chosen groups as blocks, and their numbers."""
    codes = term.codes
    zero = None if codes.zero is None else codes.zero
    constant = torch.full_like(codes.codes[:, : term.count], -int(codes.format.grid.min_level))
    made = native_codes(
        codes.codes, codes.format.grid.bits, term.size, 1, codes.scale.effective, constant if zero is None else zero
    )
    return {"chosen": made, "which": tiled(term.which)}


def _floats(factor: Tensor | Codes) -> Tensor:
    return factor.dequantize() if isinstance(factor, Codes) else factor.float()


def run_sums(weight: QuantizedTensor, run: int) -> Tensor:
    """Sums ``[tiles, runs, 16]`` of the coded weights over runs of inputs: what a zero point is multiplied by."""
    values = weight.terms[0].dequantize().double()
    for term in weight.terms:
        if isinstance(term, Groups):
            values = values + term.dequantize().double()
    runs = math.ceil(values.shape[1] / run)
    padded = torch.nn.functional.pad(values, (0, runs * run - values.shape[1]))
    return tiled(padded.view(len(values), runs, -1).sum(-1).float())


def is_ternary(term: Codes) -> bool:
    """Whether the levels are -1, 0, 1 times a step."""
    grid = term.format.grid
    if term.codebook is not None or isinstance(grid, IntGrid):
        return False
    found = affine_levels(grid.levels())
    return grid.levels().numel() == 3 and found is not None and found[1] == 1
