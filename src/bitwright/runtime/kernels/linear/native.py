"""Linear on the compiled kernels: packed weights of 1 to 8 bits, never dequantized as a whole."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bitwright.formats import Codes, IntGrid, parse
from bitwright.formats.format import Format
from bitwright.formats.layout import AxisLayout
from bitwright.native import unavailable
from bitwright.native.buffers import FLOAT_CODES
from bitwright.native.linear import AFFINE, ROW_TABLE, TABLE, NativeWeight, block_of, linear, pack_codes, tiled
from bitwright.runtime.activation import ActivationQuantizer
from bitwright.runtime.dispatch import Kernel, Request
from bitwright.runtime.weight import PackedWeight

# A block may be padded by at most this share of the row where no group asks for a block.
_PADDING = 0.125


def geometry(fmt: Format, shape: tuple[int, int]) -> tuple[int, int] | str:
    """Inputs of a block and blocks of a scale for a format, or why the kernels cannot serve it."""
    spans = fmt.granularity.layout(shape).spans()
    bits = fmt.grid.bits
    widths = {stop - start for start, stop in spans[:-1]}
    if not widths:
        sizes = [(b, -(-shape[1] // b) * b) for b in (128, 64, 32)]
        block = next((b for b, size in sizes if size <= shape[1] * (1 + _PADDING)), 32)
        return block, -(-shape[1] // block)
    width = next(iter(widths))
    found = block_of(width, bits)
    if len(widths) > 1 or found is None:
        return f"serves groups of a multiple of 32 inputs (16 for 2, 4, 6 and 8 bits), not of {width}"
    return found, width // found


def refuses(request: Request) -> str | None:
    """Why a request is not served."""
    reason = unavailable()
    if reason is not None:
        return reason
    if not request.format:
        return "serves weights of a known format"
    if request.dtype not in FLOAT_CODES:
        return f"serves float32, float16 and bfloat16, not {str(request.dtype).removeprefix('torch.')}"
    found = geometry(parse(request.format), (request.shape[0], request.shape[1]))
    return found if isinstance(found, str) else None


def refuses_rounding(request: Request) -> str | None:
    """Why a request is not served with activations of 8 bits."""
    if request.exact:
        return "rounds activations to 8 bits, which was not allowed (exact)"
    if request.form != "affine":
        return f"multiplies integers, which {request.form} weights are not"
    if request.input is not None:
        return f"rounds activations by itself; the recipe codes them as {request.input}"
    return refuses(request)


def prepare(packed: PackedWeight, dtype: torch.dtype) -> NativeWeight:
    """Bring a packed weight into the kernels' layout."""
    del dtype
    term = packed.unpack().terms[0]
    assert isinstance(term, Codes)
    return native_weight(term)


def serves(term: Codes) -> bool:
    """Whether a coded term has a place in the kernels' layout."""
    return term.format.grid.span == 1 and not isinstance(geometry(term.format, term.shape), str)


def native_weight(term: Codes) -> NativeWeight:
    """Return a coded term ``[out, in]`` in the kernels' layout."""
    fmt, shape, grid = term.format, term.shape, term.format.grid
    found = geometry(fmt, shape)
    assert not isinstance(found, str)
    block, per_scale = found
    scale = by_row(term, term.scale.effective)
    zero = None if term.zero is None else by_row(term, term.zero)
    constant, table, levels = 0, None, AFFINE
    if term.codebook is not None:
        rows = by_row(term, term.codebook.float())
        levels, table = ROW_TABLE, tiled(rows)
    elif isinstance(grid, IntGrid):
        low = int(grid.min_level)
        constant = -low if zero is None else 0
        if zero is not None and (zero.dtype != torch.uint8 or low != 0):
            zero = zero.float() - low
    else:
        levels, table = TABLE, padded(grid.levels(), 1 << grid.bits)
    return NativeWeight(
        codes=pack_codes(term.codes.contiguous(), grid.bits, block),
        scale=tiled(smallest(scale)),
        zero=None if zero is None else tiled(zero),
        table=table,
        shape=shape,
        bits=grid.bits,
        block=block,
        blocks_per_scale=per_scale,
        levels=levels,
        constant_zero=constant,
    )


def padded(levels: Tensor, count: int) -> Tensor:
    """A table with an entry for every code; codes that no weight has (NaN, Inf, unused) mean zero."""
    table = torch.zeros(count)
    table[: levels.numel()] = levels
    return table.nan_to_num_(0.0, 0.0, 0.0)


def by_row(term: Codes, parameters: Tensor) -> Tensor:
    """Parameters ``[rows, groups, ...]`` of a layout as ``[out, spans, ...]``."""
    layout = term.format.granularity.layout(term.shape)
    if isinstance(layout, AxisLayout) and not layout.transposed:
        return parameters
    starts = torch.tensor([start for start, _ in layout.spans()])
    numbers = torch.arange(parameters.shape[0] * parameters.shape[1]).view(parameters.shape[:2])
    chosen = layout.expand(numbers).expand(term.shape)[:, starts]
    return parameters.flatten(0, 1)[chosen]


def smallest(scale: Tensor) -> Tensor:
    """Scales in 16 bits where that changes none of them, else in fp32."""
    for dtype in (torch.float16, torch.bfloat16):
        short = scale.to(dtype)
        if torch.equal(short.float(), scale):
            return short
    return scale


def run(x: Tensor, prepared: NativeWeight, bias: Tensor | None, quantizer: ActivationQuantizer | None) -> Tensor:
    """Return ``quantizer(x)[..., in] @ w.T + bias``, accumulated in fp32."""
    return linear(x if quantizer is None else quantizer(x), prepared, bias)


def run_rounded(x: Tensor, prepared: NativeWeight, bias: Tensor | None, quantizer: Any) -> Tensor:
    """Return ``x[..., in] @ w.T + bias`` with x in 8 bits, a scale for every row and block."""
    assert quantizer is None
    return linear(x, prepared, bias, exact=False)


KERNEL = Kernel(
    name="linear/native",
    op="linear",
    priority=50,
    why="reads the packed weight once and multiplies in fp32 (compiled)",
    prepare=prepare,
    run=run,
    forms=frozenset({"affine", "table", "codebook"}),
    devices=frozenset({"cpu"}),
    refuses=refuses,
)

ROUNDED = Kernel(
    name="linear/native-int8",
    op="linear",
    priority=60,
    why="reads the packed weight once and multiplies integers, activations in 8 bits (compiled)",
    prepare=prepare,
    run=run_rounded,
    forms=frozenset({"affine"}),
    devices=frozenset({"cpu"}),
    refuses=refuses_rounding,
)
