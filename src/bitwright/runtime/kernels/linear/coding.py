"""How the recipe's own quantizer of an input goes into integer products: as codes, or why not."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from bitwright.formats import IntGrid, TableGrid
from bitwright.formats.derived import bipolar
from bitwright.formats.format import Format
from bitwright.formats.granularity import Group, Token
from bitwright.formats.granularity import Tensor as WholeTensor
from bitwright.native.product import Coding
from bitwright.runtime.activation import ActivationQuantizer, is_static


def coding_of(fmt: Format, features: int) -> Coding | str:
    """Return the coding of an input's format, scale not yet given where it is fixed, or why there is none."""
    grid = fmt.grid
    if fmt.wide:
        return "codes all activations in one width"
    if not isinstance(grid, IntGrid) and not is_bipolar(fmt):
        return f"codes activations in integers, not in {grid.text}"
    if isinstance(grid, IntGrid) and not grid.signed and fmt.zero is None:
        return "codes activations in signed integers, or in unsigned ones with a zero point"
    if fmt.zero is not None and fmt.zero.storage != "code":
        return "takes zero points of activations that are codes"
    if not is_static(fmt) and (fmt.scale.storage != "fp32" or fmt.scale.outer is not None):
        return f"measures scales of activations in fp32, not in {fmt.scale.storage}"
    granularity = fmt.granularity
    if isinstance(granularity, Token | WholeTensor):
        run = features
    elif isinstance(granularity, Group) and granularity.axis == 1:
        run = min(granularity.size, features)
    else:
        return f"takes a scale for every token, group of inputs or tensor, not for every {granularity.text}"
    if not isinstance(grid, IntGrid):
        half = 1 << (grid.bits - 1)
        return Coding(run, -half, half - 1, half - 0.5, clip=fmt.clip, bipolar=True)
    steps = grid.max_level
    if grid.signed and not grid.narrow and grid.bits > 1:
        steps = ((1 << grid.bits) - 1) / 2
    elif grid.signed and not grid.narrow:
        steps = 1.0
    return Coding(run, grid.min_level, grid.max_level, steps, fmt.zero is not None, fmt.clip)


def mixed_coding(fmt: Format, features: int) -> Coding | str:
    """Return the coding of an input whose last channels have 8 bits, or why there is none."""
    if not fmt.wide or fmt.wide > features:
        return "codes activations of two widths"
    coding = coding_of(fmt.parts[0], features)
    return coding if isinstance(coding, str) else replace(coding, wide=features - fmt.wide)


def is_bipolar(fmt: Format) -> bool:
    """Whether the levels are all odd integers up to ``2^bits - 1``: twice a signed code and one."""
    grid = fmt.grid
    if not isinstance(grid, TableGrid) or len(grid.values) != 1 << grid.bits:
        return False
    return grid.values == bipolar(grid.bits)


def misfit(coding: Coding, block: int, features: int) -> str | None:
    """Why a coding does not go with the weight's blocks of inputs."""
    if coding.run < features and coding.run % block:
        return f"takes scales of activations for multiples of {block} inputs here, not of {coding.run}"
    return None


def coding_for(quantizer: ActivationQuantizer, x: Tensor) -> Coding:
    """Return the coding of this very input ``x[..., features]``, with its scale where there is one for all of it."""
    fmt = quantizer.format
    coding = coding_of(fmt, x.shape[-1])
    assert isinstance(coding, Coding)
    step = 2.0 if coding.bipolar else 1.0  # from a level to the next
    if quantizer.scale is not None:
        zero = 0.0 if quantizer.zero is None else float(quantizer.zero.reshape(-1)[0])
        return replace(coding, given=True, scale=step * float(quantizer.scale.reshape(-1)[0]), zero=zero)
    if not isinstance(fmt.granularity, WholeTensor) or x.numel() == 0:
        return coding
    scale, found = fmt.scale_from_range(x.amin().reshape(1, 1), x.amax().reshape(1, 1))
    stored = fmt.store_zero(found)
    zero = 0.0 if stored is None else float(stored.reshape(-1)[0])
    effective = float(fmt.store_scale(scale).effective.reshape(-1)[0])
    return replace(coding, given=True, scale=step * effective, zero=zero)
