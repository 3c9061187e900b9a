"""Weights and inputs as codes for matrix units that take small floats themselves: which pairs, and how they lie."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bitwright.errors import InputError
from bitwright.formats import Codes, Format, Group, MiniFloat, Token, granularity, pack, parse
from bitwright.formats.scales import Scale
from bitwright.runtime.activation import ActivationQuantizer
from bitwright.runtime.dispatch import UnsupportedError

COLUMNS = 128
"""Rows are filled up with zeros to a multiple of so many columns."""

PER_BYTE = {"e4m3": 1, "e5m2": 1, "e2m1": 2}
"""Element types that matrix units take, and how many of them are in a byte."""


@dataclass(frozen=True)
class CodedRows:
    """Rows of codes: uint8 ``[rows, columns / per byte]``; scales: a byte per ``shared`` columns, or fp32 per row.

    ``factor`` multiplies every value (the outer scale of NVFP4).
    """

    codes: Tensor
    scale: Tensor
    element: str
    shared: int
    factor: float
    columns: int


def element_of(fmt: Format) -> str | None:
    """Return ``e4m3``, ``e5m2`` or ``e2m1`` where the grid is that type of the matrix units, else ``None``."""
    grid = fmt.grid
    names = {(4, 3, "fn"): "e4m3", (5, 2, "ieee"): "e5m2", (2, 1, "fn"): "e2m1"}
    return names.get((grid.exponent, grid.mantissa, grid.convention)) if isinstance(grid, MiniFloat) else None


def shared_columns(fmt: Format) -> int | None:
    """Return how many columns share a scale byte (32: MX, 16: NVFP4), 0 for one scale a row, ``None`` for others."""
    form, storage = fmt.granularity, fmt.scale.storage
    if isinstance(form, Group) and form.axis == 1 and (storage, form.size) in (("e8m0", 32), ("e4m3", 16)):
        return form.size
    by_row = isinstance(form, Token | granularity.Tensor) or (isinstance(form, granularity.Channel) and form.axis == 0)
    return 0 if by_row and storage in ("fp16", "bf16", "fp32") else None


def unserved_pair(weight: str, given: str | None) -> str | None:
    """Return why matrix units do not take a weight and an input of these formats as they are, or ``None``."""
    if given is None:
        return "multiplies coded activations; this input is float"
    formats = parse(weight), parse(given)
    elements, shared = [element_of(f) for f in formats], [shared_columns(f) for f in formats]
    fits = None not in elements and None not in shared and shared[0] == shared[1]
    if fits and shared[0] == 16:
        fits = elements == ["e2m1", "e2m1"]
    if fits and shared[0] == 0:
        fits = "e2m1" not in elements
    if not fits:
        return (
            f"serves FP8 with scales per row and token, MXFP4, MXFP8 and NVFP4 on both sides, not '{weight}', '{given}'"
        )
    return None


def unserved_by(capability: tuple[int, int], weight: str, given: str) -> str | None:
    """Return why a processor of this compute capability does not multiply such a pair itself, or ``None``.

    FP8 from 8.9 on, MX and NVFP4 from 10.0 on; 12.x only with equal element types on both sides. That is what
    Triton 3.7 compiles to instructions of the matrix units; it decodes the others before the product.
    """
    found = f"{capability[0]}.{capability[1]}"
    if shared_columns(parse(weight)) == 0:
        return None if capability >= (8, 9) else f"needs compute capability 8.9 for FP8, not {found}"
    if capability < (10, 0):
        return f"needs compute capability 10.0 for MX and NVFP4, not {found}"
    if capability[0] >= 12 and element_of(parse(weight)) != element_of(parse(given)):
        return f"needs equal element types on both sides at compute capability {found}"
    return None


def coded_weight(term: Codes) -> CodedRows:
    """Bring a coded weight into rows.

    Raises:
        UnsupportedError: a format that matrix units do not take.
    """
    limit = unserved_pair(str(term.format), str(term.format))
    if limit is not None:
        raise UnsupportedError(f"this kernel {limit}; use the reference")
    return _rows(term.codes, term.scale, term.format)


def coded_activations(x: Tensor, quantizer: ActivationQuantizer) -> CodedRows:
    """Code activations ``x[tokens, columns]`` as the quantizer rounds them; NaN is not kept.

    Raises:
        InputError: stored scales per channel, which do not come out of a sum over the channels.
    """
    fmt = quantizer.format
    if quantizer.scale is not None:
        if quantizer.scale.numel() != 1:
            raise InputError("stored input scales per channel cannot be applied after a product; use the reference")
        effective = quantizer.scale.float().reshape(1, 1).expand(x.shape[0], 1)
        codes = fmt.grid.encode(x.float() / effective)
        return _rows(codes, Scale(effective, effective), fmt)
    layout = fmt.granularity.layout((x.shape[0], x.shape[1]))
    groups = layout.split(x)
    raw, zero = fmt.scale_from_range(groups.amin(dim=-1), groups.amax(dim=-1))
    scale = fmt.store_scale(raw)
    return _rows(layout.join(fmt.encode(groups, scale.effective, zero)), scale, fmt)


def _rows(codes: Tensor, scale: Scale, fmt: Format) -> CodedRows:
    element, shared = element_of(fmt), shared_columns(fmt)
    assert element is not None
    assert shared is not None
    rows, columns = codes.shape
    missing = -columns % COLUMNS
    filled = torch.nn.functional.pad(codes, (0, missing))
    packed = pack(filled, 8 // PER_BYTE[element])
    if shared == 0:
        steps = scale.effective.float().expand(rows, 1).reshape(-1).contiguous()
        return CodedRows(packed, steps, element, shared, 1.0, columns)
    wanted = filled.shape[1] // shared
    steps = torch.nn.functional.pad(scale.stored, (0, wanted - scale.stored.shape[1])).contiguous()
    factor = 1.0 if scale.outer is None else float(scale.outer)
    return CodedRows(packed, steps, element, shared, factor, columns)
