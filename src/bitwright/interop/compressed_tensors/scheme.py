"""Which native formats compressed-tensors can express, and under which container and strategy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

from bitwright.formats import Block, Channel, FlatBlock, Format, Granularity, Group, IntGrid, MiniFloat, Tensor, parse
from bitwright.formats.scales import FLOAT_STORAGE
from bitwright.interop.compressed_tensors.activation import input_refusal
from bitwright.interop.compressed_tensors.refusal import Refusal

PACKED = "pack-quantized"
INTEGER = "int-quantized"
FLOAT8 = "float-quantized"
MXFP4 = "mxfp4-pack-quantized"
NVFP4 = "nvfp4-pack-quantized"

FP4 = MiniFloat(2, 1)
FP8 = MiniFloat(4, 3)


@dataclass(frozen=True)
class Scheme:
    """How one layer is stored.

    ``container`` is a ``format`` of compressed-tensors, ``strategy`` which weights share a scale, ``group`` the size of
    a group (None without groups), ``weight`` and ``input`` the native formats (``input`` None for float activations).
    """

    container: str
    strategy: str
    group: int | None
    weight: Format
    input: Format | None = None


def refuse(path: str, why: str, nearest: str) -> NoReturn:
    """Raise the error of something that compressed-tensors cannot express."""
    raise Refusal(why, nearest).error(path)


def legal_group(size: int, width: int) -> int:
    """Return the divisor of ``width`` that is nearest to ``size`` (the smaller one of two)."""
    return min((d for d in range(1, width + 1) if width % d == 0), key=lambda d: (abs(d - size), d))


def scheme_of(
    path: str, weight: Format, shape: tuple[int, int], given: Format | None = None, width: int | None = None
) -> Scheme:
    """Return how a layer ``[out, in]`` with this weight format and input format is stored.

    Raises:
        InputError: a format that compressed-tensors does not have, with the nearest one that it has.
    """
    found = find_scheme(weight, shape, given, width)
    if isinstance(found, Refusal):
        raise found.error(path)
    return found


def find_scheme(
    weight: Format, shape: tuple[int, int], given: Format | None = None, width: int | None = None
) -> Scheme | Refusal:
    """How a layer ``[out, in]`` is stored, or why compressed-tensors cannot express it.

    ``width`` is the greatest common divisor of all rows of the model, from which a legal group is named.
    """
    width = width or shape[1]
    if given is not None and (refusal := input_refusal(given, shape[1])) is not None:
        return refusal
    grid = weight.grid
    if weight.time == "dynamic":
        return Refusal("weights have stored scales", str(weight).removesuffix(" dynamic"))
    if isinstance(grid, IntGrid):
        return _integers(weight, shape, given, width)
    if grid == FP8:
        return _float8(weight, given)
    if grid == FP4:
        return _float4(weight, shape, given, width)
    why = f"its weights are {grid.text}, not integers of 2 to 8 bits, e4m3 or e2m1"
    return Refusal(why, _integer_text(weight, width))


def _integer_text(weight: Format, width: int) -> str:
    """The nearest format of integers."""
    bits = min(max(weight.grid.bits, 2), 8)
    symmetry = "sym" if weight.grid.min_level < 0 else "asym"
    return str(parse(f"int{bits} {_rows_text(weight.granularity, width)} {symmetry}"))


def _rows_text(granularity: Granularity, width: int) -> str:
    if isinstance(granularity, Group | FlatBlock):
        return f"g{legal_group(granularity.size, width)}"
    return "channel"


def _integers(weight: Format, shape: tuple[int, int], given: Format | None, width: int) -> Scheme | Refusal:
    bits = weight.grid.bits
    nearest = _integer_text(weight, width)
    if bits < 2:
        return Refusal("its integers have 1 bit and the format begins at 2", nearest)
    if weight.scale.storage not in FLOAT_STORAGE:
        return Refusal(f"integers have scales in fp16, bf16 or fp32, not {weight.scale.text}", nearest)
    if weight.zero is not None and weight.zero.storage != "code":
        return Refusal(f"zero points are integers of {bits} bits and these are {weight.zero.storage} numbers", nearest)
    rows = _row_strategy(weight, shape, width, nearest)
    if isinstance(rows, Refusal):
        return rows
    strategy, group = rows
    # A byte per code is what runtimes of quantized activations expect; narrower codes stay packed.
    container = INTEGER if given is not None and bits == 8 else PACKED
    return Scheme(container, strategy, group, weight, given)


def _row_strategy(weight: Format, shape: tuple[int, int], width: int, nearest: str) -> tuple[str, int | None] | Refusal:
    granularity, columns = weight.granularity, shape[1]
    if granularity in (Tensor(), Channel()) or (isinstance(granularity, Group) and granularity.axis == 1):
        if not isinstance(granularity, Group) or granularity.size > columns:
            return "channel", None
        if columns % granularity.size:
            why = f"groups of {granularity.size} do not divide its rows of {columns}"
            return Refusal(why, f"groups of {legal_group(granularity.size, width)}: {nearest}")
        return "group", granularity.size
    return Refusal(f"integers share a scale along a row, not per {granularity.text}", nearest)


def _float8(weight: Format, given: Format | None) -> Scheme | Refusal:
    if weight.scale.storage not in FLOAT_STORAGE:
        return Refusal(f"e4m3 weights have scales in fp16, bf16 or fp32, not {weight.scale.text}", "e4m3 channel")
    granularity = weight.granularity
    if granularity == Tensor():
        return Scheme(FLOAT8, "tensor", None, weight, given)
    if granularity == Channel():
        return Scheme(FLOAT8, "channel", None, weight, given)
    if isinstance(granularity, Block):
        return Scheme(FLOAT8, "block", None, weight, given)
    return Refusal(f"e4m3 weights have a scale per tensor, channel or block, not {granularity.text}", "e4m3 channel")


def _float4(weight: Format, shape: tuple[int, int], given: Format | None, width: int) -> Scheme | Refusal:
    storage, granularity = weight.scale.storage, weight.granularity
    kinds = {("e8m0", "g32"): (MXFP4, "group", 32), ("e4m3", "g16"): (NVFP4, "tensor_group", 16)}
    kind = kinds.get((storage, granularity.text))
    if kind is None:
        small = isinstance(granularity, Group) and granularity.size <= 16
        why = f"e2m1 weights come as mxfp4 (g32, e8m0 scales) or nvfp4 (g16, e4m3 scales), not as {weight}"
        return Refusal(why, "nvfp4" if small else "mxfp4")
    container, strategy, group = kind
    if shape[1] % group:
        fits = "nvfp4" if width % 16 == 0 else f"int4 g{legal_group(group, width)}"
        return Refusal(f"groups of {group} do not divide its rows of {shape[1]}", fits)
    return Scheme(container, strategy, group, weight, given)
