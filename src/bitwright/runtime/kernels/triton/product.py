"""The operator ``bitwright::triton_linear``: checks, the shape of the launch, and what tracing needs to know of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from bitwright.errors import InputError
from bitwright.runtime.kernels.triton import launch
from bitwright.runtime.kernels.triton.linear import add_splits, coded_linear
from bitwright.runtime.kernels.triton.tiles import COLUMNS, ROWS, tile_counts
from bitwright.runtime.kernels.triton.weight import CODEBOOK, NO_SCALE, TABLE, TileWeight

FEW_TOKENS = 8
"""Up to so many tokens the products are summed in registers; more go through the matrix units."""

_SCHEMA = (
    "(Tensor x, Tensor tiles, Tensor scale, Tensor? zero, Tensor? table, Tensor? bias, int out, int group, int kind, "
    "int center, int mantissa, int scale_kind, float factor, int splits) -> Tensor"
)


@dataclass(frozen=True)
class LaunchShape:
    """How the work is cut: rows and tokens of a program, tiles of a split, and how many splits there are."""

    rows: int
    tokens: int
    dot: bool
    tiles_per_split: int
    splits: int
    warps: int


def launch_shape(tokens: int, out: int, tiles: int, processors: int, splits: int = 0) -> LaunchShape:
    """Return how the work is cut. It depends on these numbers only, so that equal calls give equal bits.

    ``splits`` 0 cuts the columns until about four programs run on every processor; partial sums are added in the
    order of the splits by a second kernel, never by atomic additions.
    """
    dot = tokens > FEW_TOKENS
    if not dot:
        rows, block = 32 if tokens <= 2 else 16, launch.power_of_two(tokens)
    else:
        rows, block = (64, 16) if tokens <= 16 else (64, 32) if tokens <= 32 else (ROWS, 64)
    programs = triton.cdiv(out, rows) * triton.cdiv(tokens, block)
    wanted = splits or min(max(4 * processors // programs, 1), max(tiles // 2, 1))
    per_split = triton.cdiv(tiles, min(wanted, tiles))
    return LaunchShape(rows, block, dot, per_split, triton.cdiv(tiles, per_split), 8 if rows == ROWS else 4)


def linear(x: Tensor, weight: TileWeight, bias: Tensor | None = None, splits: int = 0) -> Tensor:
    """Return ``x[..., in] @ w.T + bias`` in the dtype of x; products are summed in float32.

    ``splits`` is the number of parts that the columns are cut in (0: chosen from the shape and the device).

    Raises:
        InputError: shapes or devices that do not fit together.
        UnsupportedError: a dtype or device that is not served.
    """
    if x.shape[-1] != weight.shape[1]:
        raise InputError(f"the weight takes {weight.shape[1]} channels, not {x.shape[-1]}; check the input")
    rows = x.reshape(-1, weight.shape[1]).contiguous()
    y: Tensor = torch.ops.bitwright.triton_linear(
        rows, weight.tiles, weight.scale, weight.zero, weight.table, bias, weight.shape[0], weight.group,
        weight.levels.kind, weight.levels.center, weight.levels.mantissa, weight.scale_kind, weight.factor, splits,
    )  # fmt: skip
    return y.reshape(*x.shape[:-1], weight.shape[0])


@torch.library.custom_op("bitwright::triton_linear", mutates_args=(), schema=_SCHEMA)
def triton_linear(
    x: Tensor, tiles: Tensor, scale: Tensor, zero: Tensor | None, table: Tensor | None, bias: Tensor | None,
    out: int, group: int, kind: int, center: int, mantissa: int, scale_kind: int, factor: float, splits: int,
) -> Tensor:  # fmt: skip
    """Run the kernel on ``x[tokens, in]``; see :func:`linear`."""
    launch.check(coded_linear, x, tiles, scale, zero, table, bias)
    tokens, columns = x.shape
    y = x.new_empty((tokens, out))
    if tokens == 0:
        return y
    groups = _check_parts(columns, tiles, scale, zero, table, bias, out, group, kind, scale_kind)
    cut = launch_shape(tokens, out, tiles.shape[1], launch.processors(x), splits)
    sums = x.new_empty((cut.splits, tokens, out), dtype=torch.float32)
    with launch.on_device(x):
        grid = (triton.cdiv(out, cut.rows), triton.cdiv(tokens, cut.tokens), cut.splits)
        coded_linear[grid](
            x.contiguous(), tiles, scale, zero, table, sums, tokens, out, columns, tiles.shape[1],
            cut.tiles_per_split, factor, GROUP=group, GROUPS=groups, RUN=_run(group), BITS=_bits(tiles), KIND=kind,
            CENTER=center, MANTISSA=mantissa, HAS_ZERO=zero is not None, SCALE_KIND=scale_kind, ROWS=ROWS,
            TILE=COLUMNS, BLOCK_N=cut.rows, BLOCK_M=cut.tokens, DOT=cut.dot, DTYPE=launch.TYPES[x.dtype],
            WIDEN=launch.widen(coded_linear, x.dtype), num_warps=cut.warps,
            num_stages=stages(_bits(tiles), x.dtype),
        )  # fmt: skip
        add_splits[(triton.cdiv(out, 256), tokens)](
            sums, bias, y, tokens, out, SPLITS=cut.splits, HAS_BIAS=bias is not None, BLOCK=256
        )
    return y


@triton_linear.register_fake
def _(
    x: Tensor, tiles: Tensor, scale: Tensor, zero: Tensor | None, table: Tensor | None, bias: Tensor | None,
    out: int, group: int, kind: int, center: int, mantissa: int, scale_kind: int, factor: float, splits: int,
) -> Tensor:  # fmt: skip
    return x.new_empty((x.shape[0], out))


def stages(bits: int, dtype: torch.dtype) -> int:
    """Return how many tiles are copied ahead: as many as fit the smallest shared memory (99 KiB) of the processors."""
    if dtype == torch.float32:
        return 1
    return 2 if bits > 4 else 3


def _run(group: int) -> int:
    """Return how many columns surely share a group: the largest power of two that divides it, at most a tile."""
    return min(group & -group, COLUMNS)


def _bits(tiles: Tensor) -> int:
    return tiles.shape[2] * 8 // (ROWS * COLUMNS)


def _check_parts(
    columns: int, tiles: Tensor, scale: Tensor, zero: Tensor | None, table: Tensor | None, bias: Tensor | None,
    out: int, group: int, kind: int, scale_kind: int,
) -> int:  # fmt: skip
    """Check that nothing is smaller than what the kernel reads; return the groups of a row.

    Raises:
        InputError: naming the part.
    """
    if tiles.dim() != 3 or tiles.dtype != torch.uint8 or not tiles.is_contiguous():
        raise InputError("the weight is not in tiles; prepare it again")
    bits = _bits(tiles)
    want = (*tile_counts((out, columns)), ROWS * COLUMNS // 8 * bits)
    if tuple(tiles.shape) != want or not 1 <= bits <= 8:
        raise InputError(f"tiles of shape {tuple(tiles.shape)} do not fit {(out, columns)}; prepare the weight again")
    if group < 1 or group % 8:
        raise InputError(f"groups of {group} columns are no multiple of 8; prepare the weight again")
    groups = -(-columns // group)
    expected = {"scale": (scale, 0 if scale_kind == NO_SCALE else out * groups), "zero": (zero, out * groups)}
    if kind in (TABLE, CODEBOOK):
        expected["table"] = table, (1 << bits) * (1 if kind == TABLE else out * groups)
        if table is None:
            raise InputError("the levels are missing; prepare the weight again")
    expected["bias"] = bias, out
    for name, (tensor, count) in expected.items():
        if tensor is not None and (tensor.numel() != count or not tensor.is_contiguous()):
            raise InputError(f"{name} has {tensor.numel()} values where the kernel reads {count}; prepare it again")
    return groups
