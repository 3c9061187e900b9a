"""The operator ``bitwright::triton_attention`` and how it is called on coded keys and values."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from bitwright.errors import InputError
from bitwright.formats import CodebookGrid, granularity, packed_columns
from bitwright.runtime.dispatch import UnsupportedError
from bitwright.runtime.kernels.triton import launch
from bitwright.runtime.kernels.triton.attention import coded_attention, join_splits
from bitwright.runtime.kernels.triton.weight import E4M3_SCALE, E8M0_SCALE, FLOAT_SCALE, TABLE, levels_of
from bitwright.runtime.states import States

LARGEST_HEAD = 256
"""Channels of a head that a program keeps in registers."""

BLOCK_TOKENS = 64
"""Tokens that a program decodes at a time; fewer where fewer are coded together, so that they share their scales."""

STAGES = 1
"""No copies ahead into shared memory: what is read is spread over many small loads, and would not fit."""

_SCHEMA = (
    "(Tensor q, Tensor key_tail, Tensor value_tail, Tensor?[] key, Tensor?[] value, Tensor? mask, int[] key_form, "
    "int[] value_form, float key_factor, float value_factor, float scale, bool causal, int window, int splits) "
    "-> Tensor"
)


@dataclass(frozen=True)
class Side:
    """The keys or the values as the kernel reads them.

    Attributes:
        tail: float tokens ``[batch, heads, tokens, head_dim]`` after the coded ones.
        parts: codes, scales, zero points and levels (``None`` where there are none).
        form: bits (0: nothing is coded), tokens that are coded together, channels that share a scale, scales of a row,
            bytes of a row, kind of level, center, mantissa, kind of scale, coded tokens.
        factor: every value is multiplied by it.
    """

    tail: Tensor
    parts: tuple[Tensor | None, ...]
    form: tuple[int, ...]
    factor: float


def side_of(states: States, dtype: torch.dtype) -> Side:
    """Return what the kernel reads of coded states, without a copy of what is coded.

    Raises:
        UnsupportedError: a format that the kernel does not serve.
    """
    assert states.tail is not None
    tail = states.tail.to(dtype).contiguous()
    if states.coded is None or states.coder is None:
        return Side(tail, (None,) * 4, (0, 1, 1, 1, 1, 0, 0, 0, 0, 0), 1.0)
    fmt, dim = states.coder.format, tail.shape[-1]
    if isinstance(fmt.grid, CodebookGrid) or fmt.grid.span > 1:
        raise UnsupportedError(f"attention on coded keys and values serves no codebooks, not '{fmt}'")
    together, levels = states.coder.group, levels_of(fmt, tail.device)
    scale, zero = states.coded["scale"], states.coded.get("zero")
    width = dim if together == 1 else together
    params = scale.shape[-1]
    form = fmt.granularity
    channels = form.size if params > 1 and isinstance(form, granularity.Group) else width
    kind = {"e8m0": E8M0_SCALE, "e4m3": E4M3_SCALE}.get(fmt.scale.storage, FLOAT_SCALE)
    factor = levels.factor * {E8M0_SCALE: 2.0**fmt.step_exponent, E4M3_SCALE: 2.0**8}.get(kind, 1.0)
    bits = fmt.grid.bits
    described = (
        bits, together, channels, params, packed_columns(width, bits), levels.kind, levels.center, levels.mantissa,
        kind, states.coded_tokens,
    )  # fmt: skip
    parts = (states.coded["codes"].contiguous(), scale.contiguous(), None if zero is None else zero.contiguous())
    return Side(tail, (*parts, levels.table), described, factor)


def attend(
    q: Tensor, key: Side, value: Side, scale: float, causal: bool, window: int, mask: Tensor | None, splits: int = 0
) -> Tensor:
    """Return ``[batch, heads, queries, head_dim]``; see :func:`bitwright.runtime.kernels.attention.reference.run`.

    ``splits`` is the number of parts that the tokens are cut in (0: chosen from the shape and the device).
    """
    y: Tensor = torch.ops.bitwright.triton_attention(
        q, key.tail, value.tail, list(key.parts), list(value.parts), mask, key.form, value.form, key.factor,
        value.factor, scale, causal, window, splits,
    )  # fmt: skip
    return y


@torch.library.custom_op("bitwright::triton_attention", mutates_args=(), schema=_SCHEMA)
def triton_attention(
    q: Tensor, key_tail: Tensor, value_tail: Tensor, key: list[Tensor | None], value: list[Tensor | None],
    mask: Tensor | None, key_form: list[int], value_form: list[int], key_factor: float, value_factor: float,
    scale: float, causal: bool, window: int, splits: int,
) -> Tensor:  # fmt: skip
    """Run the kernels; see :func:`attend`."""
    launch.check(coded_attention, q, key_tail, value_tail, *key, *value, mask)
    batch, query_heads, queries, dim = q.shape
    heads = key_tail.shape[1]
    y = torch.empty_like(q, memory_format=torch.contiguous_format)
    if q.numel() == 0:
        return y
    tokens = _check_side("keys", q, key_tail, key, key_form)
    if _check_side("values", q, value_tail, value, value_form) != tokens or tokens < queries:
        raise InputError(f"{tokens} keys do not fit the values or {queries} queries; append both sides")
    if dim > LARGEST_HEAD:
        raise UnsupportedError(f"attention in Triton serves heads of up to {LARGEST_HEAD} channels, not {dim}")
    repeat = query_heads // heads
    rows = repeat * queries
    block = min(launch.power_of_two(rows, 16), 64)
    programs = triton.cdiv(rows, block) * batch * heads
    block_tokens = tokens_of_block(key_form[1])
    blocks = triton.cdiv(tokens, block_tokens)
    wanted = min(splits or max(2 * launch.processors(q) // programs, 1), blocks)
    per_split = triton.cdiv(blocks, wanted) * block_tokens
    splits = triton.cdiv(tokens, per_split)
    sums = q.new_empty((splits, batch * heads * rows, dim), dtype=torch.float32)
    largest, weight = (torch.empty(sums.shape[:2], dtype=torch.float32, device=q.device) for _ in range(2))
    mask_at = _mask_strides(mask, q, tokens)
    with launch.on_device(q):
        coded_attention[(triton.cdiv(rows, block), batch * heads, splits)](
            q.contiguous(), *key, key_tail.contiguous(), *value, value_tail.contiguous(),
            None if mask is None else mask.contiguous(), sums, largest, weight, key_factor, value_factor, scale, rows,
            queries, tokens, key_form[9], value_form[9], per_split, window, *mask_at, repeat, heads, dim,
            launch.power_of_two(dim, 16), block, block_tokens, *key_form[:9], key[2] is not None, *value_form[:9],
            value[2] is not None, causal, mask is not None, launch.TYPES[q.dtype],
            launch.widen(coded_attention, q.dtype), num_warps=4, num_stages=STAGES,
        )  # fmt: skip
        join_splits[(batch * heads * rows,)](
            sums, largest, weight, y, batch * heads * rows, SPLITS=splits, DIM=dim, BLOCK_D=launch.power_of_two(dim)
        )
    return y


@triton_attention.register_fake
def _(
    q: Tensor, key_tail: Tensor, value_tail: Tensor, key: list[Tensor | None], value: list[Tensor | None],
    mask: Tensor | None, key_form: list[int], value_form: list[int], key_factor: float, value_factor: float,
    scale: float, causal: bool, window: int, splits: int,
) -> Tensor:  # fmt: skip
    return q.new_empty(q.shape)


def tokens_of_block(together: int) -> int:
    """Return how many tokens a program decodes at a time where ``together`` keys are coded together."""
    common = min(together & -together, BLOCK_TOKENS)
    return common if common >= 16 else BLOCK_TOKENS


def _mask_strides(mask: Tensor | None, q: Tensor, tokens: int) -> tuple[int, int]:
    """Return the steps of the mask from batch entry to batch entry and from head to head (0 where it is shared)."""
    if mask is None:
        return 0, 0
    wanted = (q.shape[0], q.shape[1], q.shape[2], tokens)
    shape = tuple(mask.shape)
    if mask.dtype != torch.float32 or len(shape) != 4 or shape[2:] != wanted[2:]:
        raise InputError(f"the mask is {mask.dtype} of shape {shape}, not torch.float32 of {wanted}")
    if shape[0] not in (1, wanted[0]) or shape[1] not in (1, wanted[1]):
        raise InputError(f"a mask of shape {shape} does not fit scores of shape {wanted}")
    plane = shape[2] * shape[3]
    return 0 if shape[0] == 1 else shape[1] * plane, 0 if shape[1] == 1 else plane


def _check_side(what: str, q: Tensor, tail: Tensor, parts: list[Tensor | None], form: list[int]) -> int:
    """Check that nothing is smaller than what the kernel reads; return the tokens.

    Raises:
        InputError: naming the part.
    """
    if len(form) != 10 or len(parts) != 4 or tail.dim() != 4 or tail.dtype != q.dtype:
        raise InputError(f"the {what} are not described as the kernel reads them; make them with side_of")
    batch, heads, rest, dim = tail.shape
    if q.dim() != 4 or q.shape[0] != batch or q.shape[3] != dim or heads == 0 or q.shape[1] % heads:
        raise InputError(f"queries of shape {tuple(q.shape)} do not fit {what} of shape {tuple(tail.shape)}")
    bits, together, channels, params, row_bytes, kind = form[:6]
    coded = form[9]
    if bits == 0:
        return rest
    width = dim if together == 1 else together
    if not 1 <= bits <= 8 or together < 1 or coded % together or row_bytes != packed_columns(width, bits):
        raise InputError(f"the form of the {what} contradicts itself; make it with side_of")
    if channels < 1 or -(-width // channels) != params:
        raise InputError(f"{params} scales do not fit rows of {width} values by {channels}; make them with side_of")
    rows = batch * heads * (coded if together == 1 else coded // together * dim)
    counts = (rows * row_bytes, rows * params, rows * params, 1 << bits)
    for name, tensor, count in zip(("codes", "scale", "zero", "levels"), parts, counts, strict=True):
        needed = name in ("codes", "scale") or (name == "levels" and kind == TABLE)
        if (tensor is None and needed) or (
            tensor is not None and (tensor.numel() < count or not tensor.is_contiguous())
        ):
            raise InputError(f"the {name} of the {what} hold fewer values than the {count} that are read")
    return rest + coded
