"""Round whole matrices to nearest, in chunks of rows that stay in the processor's cache."""

from __future__ import annotations

import torch
from torch import Tensor

from bitwright.errors import InputError
from bitwright.formats.compiled import rounder
from bitwright.formats.format import Format
from bitwright.formats.grids import IntGrid
from bitwright.formats.layout import Layout
from bitwright.formats.tensor import Codes

CHUNK = 1 << 17
"""Elements handled at once: half a megabyte of float32 for each of a few temporaries."""


def group_range(w: Tensor, layout: Layout, absolute: bool) -> tuple[Tensor, Tensor]:
    """Return float32 lowest and highest value ``[rows, groups]``; with ``absolute`` minus and plus the largest size.

    Padding of a short group counts as zeros, which every range holds anyway.
    """
    # Two plain reductions in float32 are several times faster than aminmax or a maximum norm on the CPU.
    g = layout.split(w.to(torch.float32))
    if absolute:
        high = g.abs().amax(dim=-1)
        return -high, high
    return g.amin(dim=-1), g.amax(dim=-1)


def _one_size(fmt: Format) -> bool:
    """Whether the scale depends on the largest absolute value alone (uneven tables look at each end by itself)."""
    signed_integers = isinstance(fmt.grid, IntGrid) and fmt.grid.signed
    return fmt.zero is None and (signed_integers or fmt.grid.min_level == -fmt.grid.max_level)


def _matrix_range(fmt: Format, w: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    chunks = layout.row_chunks(CHUNK)
    ranges = [group_range(w[a:b], layout.of_rows((a, b)), _one_size(fmt)) for a, b in chunks]
    lows, highs = [low for low, _ in ranges], [high for _, high in ranges]
    if layout.params_shape == (1, 1):
        return torch.stack(lows).amin(dim=0), torch.stack(highs).amax(dim=0)
    axis = 1 if layout.params_shape[0] == 1 and len(chunks) > 1 else 0
    return torch.cat(lows, dim=axis), torch.cat(highs, dim=axis)


def quantize(fmt: Format, w: Tensor, outer: Tensor | None = None) -> Codes:
    """Return the codes of ``w[out, in]`` (any float type) by round-to-nearest with ranges from the extreme values.

    ``outer`` overrides the outer scales (shared by fused matrices). Equal, bit for bit, to splitting the matrix and
    calling ``scale_from_range``, ``store_scale``, ``encode`` and ``join``.

    Raises:
        InputError: NaN or Inf in ``w``; a grid with a learned codebook; a scale that its type cannot hold.
    """
    if fmt.learned:
        raise InputError(f"{fmt} has a learned codebook; use a recipe that fits one, e.g. squeezellm")
    fmt.check_shape(tuple(w.shape))
    layout = fmt.granularity.layout(tuple(w.shape))
    compiled = rounder(fmt, w, layout)
    found = None if compiled is None else compiled.limits()
    low, high = _matrix_range(fmt, w, layout) if found is None else found
    if not bool((torch.isfinite(low) & torch.isfinite(high)).all()):
        raise InputError("the matrix holds NaN or Inf; mend the checkpoint before quantizing")
    raw, zero = fmt.scale_from_range(low, high)
    scale = fmt.store_scale(raw, outer)
    stored_zero = fmt.store_zero(zero)
    if compiled is not None:
        return Codes(compiled.codes(scale.effective, stored_zero), fmt, scale, stored_zero)
    codes = torch.empty(w.shape, dtype=torch.uint8, device=w.device)
    for rows in layout.row_chunks(CHUNK):
        part = layout.of_rows(rows)
        chunk_scale = layout.params_of_rows(scale.effective, rows)
        chunk_zero = None if stored_zero is None else layout.params_of_rows(stored_zero, rows)
        encoded = fmt.encode(part.split(w[rows[0] : rows[1]]), chunk_scale, chunk_zero)
        codes[rows[0] : rows[1]] = part.join(encoded)
    return Codes(codes, fmt, scale, stored_zero)


def fake_quantize(fmt: Format, x: Tensor) -> Tensor:
    """Return ``x[..., features]`` rounded with ranges from its extreme values; same shape and type.

    On processors compiled kernels do it where they serve (:mod:`bitwright.formats.compiled`), with equal bits.
    """
    fmt.check_shape(tuple(x.shape))
    matrix = x.reshape(-1, x.shape[-1])
    layout = fmt.granularity.layout(tuple(matrix.shape))
    compiled = rounder(fmt, matrix, layout)
    limits = None if compiled is None else compiled.limits()
    if compiled is not None and limits is not None:
        raw, zero = fmt.scale_from_range(*limits)
        return compiled.values(fmt.store_scale(raw).effective, fmt.store_zero(zero)).view(x.shape)
    g = layout.split(matrix)
    low, high = g.amin(dim=-1), g.amax(dim=-1)
    raw, zero = fmt.scale_from_range(low, high)
    scale = fmt.store_scale(raw).effective
    rounded = fmt.round(g, scale, fmt.store_zero(zero))
    return layout.join(rounded).view(x.shape).to(x.dtype)
