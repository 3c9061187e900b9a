"""Linear on trellis-coded weights: columns are decoded from the bits before them while they are multiplied.

With float activations any computed code is multiplied in fp32. With activations in 8 bits a weight of the code 1MAD, a
sum of four bytes, is multiplied in integers without being decoded to a float at all.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitwright.formats import Codes, TrellisGrid, parse
from bitwright.formats.format import Format
from bitwright.native import unavailable
from bitwright.native.buffers import FLOAT_CODES
from bitwright.native.linear import tiled
from bitwright.native.trellis import MOST_SPAN, ONE_MAD, RUN, THREE_INST, TrellisWeight, linear, pack
from bitwright.runtime.activation import ActivationQuantizer
from bitwright.runtime.dispatch import Kernel, Request
from bitwright.runtime.kernels.linear import native
from bitwright.runtime.weight import PackedWeight

_CENTRE = {"1mad": 510.0, "3inst": 0.0}
"""What compiled code counts its numbers from."""


def runs_per_scale(fmt: Format, shape: tuple[int, int]) -> int | str:
    """How many runs of the trellis share a scale, or why the kernels cannot serve the format."""
    grid = fmt.grid
    assert isinstance(grid, TrellisGrid)
    if grid.span % RUN or grid.span > MOST_SPAN:
        return f"serves trellises over a multiple of {RUN} columns, up to {MOST_SPAN}, not over {grid.span}"
    spans = fmt.granularity.layout(shape).spans()
    widths = {stop - start for start, stop in spans[:-1]} or {shape[1]}
    width = next(iter(widths))
    if len(widths) > 1 or width % grid.span:
        return f"serves groups of whole runs of {grid.span} columns"
    return width // grid.span


def refuses(request: Request) -> str | None:
    """Why a request is not served."""
    reason = unavailable()
    if reason is not None:
        return reason
    if request.dtype not in FLOAT_CODES:
        return f"serves float32, float16 and bfloat16, not {str(request.dtype).removeprefix('torch.')}"
    found = runs_per_scale(parse(request.format), (request.shape[0], request.shape[1]))
    return found if isinstance(found, str) else None


def refuses_rounding(request: Request) -> str | None:
    """Why a request is not served with activations of 8 bits."""
    if request.exact:
        return "rounds activations to 8 bits, which was not allowed (exact)"
    if request.input is not None:
        return f"rounds activations by itself; the recipe codes them as {request.input}"
    grid = parse(request.format).grid
    if isinstance(grid, TrellisGrid) and grid.code != "1mad":
        return f"multiplies sums of bytes in integers (1mad), not the code of {grid.text}"
    return refuses(request)


def trellis_weight(term: Codes) -> TrellisWeight:
    """Return a trellis-coded term ``[out, in]`` in the kernels' layout."""
    grid, shape = term.format.grid, term.shape
    assert isinstance(grid, TrellisGrid)
    runs = runs_per_scale(term.format, shape)
    assert isinstance(runs, int)
    mean, deviation = grid.normal()
    scale = native.by_row(term, term.scale.effective) / deviation
    return TrellisWeight(
        codes=pack(term.codes.contiguous(), grid.span, grid.bits, grid.state_bits),
        scale=tiled(scale),
        shape=shape,
        columns=grid.span,
        bits=grid.bits,
        state_bits=grid.state_bits,
        code=ONE_MAD if grid.code == "1mad" else THREE_INST,
        blocks_per_scale=runs,
        offset=_CENTRE[grid.code] - mean,
    )


def prepare(packed: PackedWeight, dtype: torch.dtype) -> TrellisWeight:
    """Bring a packed weight into the kernels' layout."""
    del dtype
    term = packed.unpack().terms[0]
    assert isinstance(term, Codes)
    return trellis_weight(term)


def run(x: Tensor, weight: TrellisWeight, bias: Tensor | None, quantizer: ActivationQuantizer | None) -> Tensor:
    """Return ``quantizer(x)[..., in] @ w.T + bias``, accumulated in fp32."""
    return linear(x if quantizer is None else quantizer(x), weight, bias)


def run_rounded(x: Tensor, weight: TrellisWeight, bias: Tensor | None, quantizer: ActivationQuantizer | None) -> Tensor:
    """Return ``x[..., in] @ w.T + bias`` with x in 8 bits, a scale for every row and run."""
    assert quantizer is None
    return linear(x, weight, bias, exact=False)


EXACT = Kernel(
    name="linear/native-trellis",
    op="linear",
    priority=50,
    why="decodes trellis codes while it multiplies in fp32 (compiled)",
    prepare=prepare,
    run=run,
    forms=frozenset({"trellis"}),
    devices=frozenset({"cpu"}),
    refuses=refuses,
)

ROUNDED = Kernel(
    name="linear/native-trellis-int8",
    op="linear",
    priority=60,
    why="multiplies trellis codes by activations in 8 bits, in integers (compiled)",
    prepare=prepare,
    run=run_rounded,
    forms=frozenset({"trellis"}),
    devices=frozenset({"cpu"}),
    refuses=refuses_rounding,
)

KERNELS = (ROUNDED, EXACT)
