"""Compiled products of weights that are coded as vectors: points of E8P, sums of entries of learned codebooks."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from bitwright.formats import AdditiveGrid, Codes, LatticeGrid, QuantizedTensor, pack, parse
from bitwright.formats.format import Format
from bitwright.formats.lattice import SPAN, base_points, e8_points
from bitwright.formats.vectors import join_words
from bitwright.native.linear import NativeWeight, tiled
from bitwright.native.product import AdditiveWeight, LatticeTables, Product, Way
from bitwright.runtime.dispatch import Kernel, Request
from bitwright.runtime.kernels.linear import native, prepared
from bitwright.runtime.kernels.linear.variants import forms, run
from bitwright.runtime.weight import PackedWeight

_RUN = 32  # inputs whose words lie together
_ROWS = 16

# What one step of a whole number is added to the first point for, so that all are positive, and of the second.
_FIRST, _SHORT = 11, 4
_FACTORS = {2: (1, 0), 3: (1, 1), 4: (7, 2)}


# -- points of E8P ------------------------------------------------------------------------------------------------


def _fields(numbers: Tensor, bits: int) -> Tensor:
    """uint8 ``[n / per byte, 256]``: whole numbers ``[256, n]`` of a few bits, the first of a byte lowest."""
    per = 8 // bits
    groups = numbers.to(torch.int64).view(256, -1, per) << (torch.arange(per) * bits)
    return groups.sum(2).t().to(torch.uint8).contiguous()


@functools.cache
def lattice_tables(bits: int) -> LatticeTables:
    """The tables of ``e8p`` (2 bits), ``e8p3`` and ``e8p4``; whole numbers of steps, plus :func:`lattice_zero`."""
    patterns = _fields(base_points().abs() - 0.5, 2)
    first, second = _FACTORS[bits]
    index = torch.arange(16)
    size = 2 + 4 * (index & 3).clamp(max=2)
    points = size * (1 - 2 * (index >> 2 & 1)) + 1 - 2 * (index >> 3 & 1)
    values = [first * (points + _FIRST), second * (points + _FIRST)]
    if bits == 3:
        patterns = torch.cat([patterns, _fields(e8_points() * 2 + _SHORT, 4)])
        values[1] = index
    return LatticeTables(patterns.contiguous(), torch.stack(values).to(torch.uint8).contiguous())


def lattice_zero(bits: int) -> int:
    """What is added to the whole numbers of :func:`lattice_tables`."""
    return {2: _FIRST, 3: _FIRST + _SHORT, 4: _FIRST * sum(_FACTORS[4])}[bits]


def lattice_codes(codes: Tensor, bits: int, block: int) -> Tensor:
    """Return uint8 codes ``[out, in]`` of E8P as planes (``native/core/vectors.h``)."""
    words = join_words(codes, SPAN, bits)
    out, spans = words.shape
    missing = -spans % (block // SPAN)
    words = torch.nn.functional.pad(words, (0, missing, 0, -out % _ROWS))
    runs = words.view(-1, _ROWS, (spans + missing) * SPAN // _RUN, _RUN // SPAN)
    planes = [(runs >> 8 * plane & 255).to(torch.uint8) for plane in range(bits)]
    return torch.stack(planes, 3).permute(0, 2, 3, 1, 4).contiguous().view(-1)


def lattice_product(weight: QuantizedTensor, way: Way) -> Product:
    """A product with points of E8P."""
    term = weight.terms[0]
    assert isinstance(term, Codes)
    grid = term.format.grid
    assert isinstance(grid, LatticeGrid)
    found = native.geometry(term.format, term.shape)
    assert not isinstance(found, str)
    block, per_scale = found
    scale = native.by_row(term, term.scale.effective) / grid.steps
    made = NativeWeight(
        codes=lattice_codes(term.codes, grid.bits, block),
        scale=tiled(native.smallest(scale)),
        zero=None,
        table=None,
        shape=term.shape,
        bits=grid.bits,
        block=block,
        blocks_per_scale=per_scale,
        constant_zero=lattice_zero(grid.bits),
    )
    return Product(way, made, terms=prepared.extra_terms(weight), points=lattice_tables(grid.bits))


def refuses_points(request: Request) -> str | None:
    """Why points of a lattice are not served."""
    reason = native.refuses(request)
    if reason is not None:
        return reason
    fmt = parse(request.format)
    if not isinstance(fmt.grid, LatticeGrid):
        return f"serves points of E8P, not {fmt.grid.text}"
    found = native.geometry(fmt, (request.shape[0], request.shape[1]))
    if isinstance(found, str) or found[0] % _RUN:
        return f"serves groups of a multiple of {_RUN} inputs"
    return None


def refuses_rounded_points(request: Request) -> str | None:
    """Why points of a lattice are not served with activations of 8 bits."""
    if request.exact:
        return "rounds activations to 8 bits, which was not allowed (exact)"
    if request.input is not None:
        return f"rounds activations by itself; the recipe codes them as {request.input}"
    return refuses_points(request)


# -- sums of entries ----------------------------------------------------------------------------------------------


def _group(fmt: Format, shape: tuple[int, int]) -> int:
    """Inputs that share a scale."""
    start, stop = fmt.granularity.layout(shape).spans()[0]
    return stop - start


def additive_product(weight: QuantizedTensor) -> Product:
    """A product with sums of entries of learned codebooks."""
    term = weight.terms[0]
    assert isinstance(term, Codes)
    grid = term.format.grid
    assert isinstance(grid, AdditiveGrid)
    assert term.codebook is not None
    made = AdditiveWeight(
        codes=pack(term.codes, grid.bits),
        scale=native.by_row(term, term.scale.effective).float().contiguous(),
        entries=term.codebook.to(torch.float16).contiguous(),
        shape=term.shape,
        index_bytes=grid.index_bits // 8,
        group=_group(term.format, term.shape),
    )
    return Product(Way.ADDITIVE, made, terms=prepared.extra_terms(weight))


def refuses_sums(request: Request) -> str | None:
    """Why sums of entries are not served."""
    if not request.format:
        return "serves weights of a known format"
    fmt = parse(request.format)
    grid = fmt.grid
    if not isinstance(grid, AdditiveGrid):
        return f"serves sums of codebook entries, not {grid.text}"
    if grid.span != SPAN or grid.index_bits not in (8, 16):
        return f"serves vectors of 8 weights with indices of 8 or 16 bits, not {grid.text}"
    shape = (request.shape[0], request.shape[1])
    if _group(fmt, shape) % 16 and _group(fmt, shape) != shape[1]:
        return f"serves groups of a multiple of 16 inputs, not of {_group(fmt, shape)}"
    return _without_groups(request)


def _without_groups(request: Request) -> str | None:
    """What every compiled product refuses, groups aside."""
    reason = native.unavailable()
    if reason is not None:
        return reason
    if request.dtype not in native.FLOAT_CODES:
        return f"serves float32, float16 and bfloat16, not {str(request.dtype).removeprefix('torch.')}"
    return None


# -- kernels ------------------------------------------------------------------------------------------------------


def _points(way: Way) -> Any:
    def prepare(packed: PackedWeight, dtype: torch.dtype) -> Product:
        del dtype
        return lattice_product(packed.unpack(), way)

    return prepare


def _sums(packed: PackedWeight, dtype: torch.dtype) -> Product:
    del dtype
    return additive_product(packed.unpack())


ROUNDED_POINTS = Kernel(
    name="linear/native-lattice-int8", op="linear", priority=60, forms=forms("vector"), devices=frozenset({"cpu"}),
    why="decodes points of E8P to integers and multiplies those, activations in 8 bits (compiled)",
    prepare=_points(Way.LATTICE), run=run, refuses=refuses_rounded_points,
)  # fmt: skip
POINTS = Kernel(
    name="linear/native-lattice", op="linear", priority=50, forms=forms("vector"), devices=frozenset({"cpu"}),
    why="decodes points of E8P once and multiplies in fp32 (compiled)",
    prepare=_points(Way.LATTICE_EXACT), run=run, refuses=refuses_points,
)  # fmt: skip
SUMS = Kernel(
    name="linear/native-additive", op="linear", priority=50, forms=forms("vector"), devices=frozenset({"cpu"}),
    why="adds codebook entries once and multiplies in fp32 (compiled)",
    prepare=_sums, run=run, refuses=refuses_sums,
)  # fmt: skip

KERNELS = (ROUNDED_POINTS, POINTS, SUMS)
