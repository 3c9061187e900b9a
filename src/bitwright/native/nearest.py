"""Ranges of groups and rounding to nearest by compiled code, equal to the definitions on torch in every bit."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bitwright.errors import InputError
from bitwright.native.buffers import FLOAT_CODES, NOTHING, Span, float_code, span
from bitwright.native.loading import Library, library

MOST_LEVELS = 32
"""Levels of a table up to which trying all borders is faster than torch."""

_PIECE = 1 << 16
"""Values of a group that one thread looks at; longer groups are looked at in pieces."""


@dataclass(frozen=True)
class Groups:
    """Lines of ``length`` values, cut into groups of ``size``; the last group of a line may be shorter."""

    lines: int
    length: int
    size: int

    @property
    def of_line(self) -> int:
        """Groups of a line."""
        return -(-self.length // self.size)


@dataclass(frozen=True, eq=False)
class ToIntegers:
    """Round to ``clamp(round(x / scale + zero), low, high)``; the code is ``level - low``."""

    low: float
    high: float


@dataclass(frozen=True, eq=False)
class ToLevels:
    """Round ``x / scale`` to one of ``n`` ascending levels: above ``borders[i]`` to a level behind ``i``.

    ``codes`` and ``values``, fp32 ``[2, n]``, are the levels' codes, and what these stand for, for numbers without and
    with a sign.
    """

    borders: Tensor
    values: Tensor
    codes: Tensor


def serving(x: Tensor, kernels: Library | None = None) -> Library | None:
    """The kernels that round ``x``; ``None`` where torch's operations do (they record gradients and fuse in graphs)."""
    if x.device.type != "cpu" or x.dtype not in FLOAT_CODES or x.numel() == 0 or torch.compiler.is_compiling():
        return None
    if torch.is_grad_enabled() and x.requires_grad:
        return None
    if kernels is not None:
        return kernels
    found = library()
    return None if found is None or found.name == "scalar" else found


def group_limits(x: Tensor, groups: Groups, kernels: Library) -> tuple[Tensor, Tensor]:
    """The smallest and the largest value of every group of contiguous ``x``, fp32 ``[lines, groups of a line]``.

    Both are NaN where a value is.

    Raises:
        InputError: if ``x`` holds less than the groups.
    """
    if groups.of_line == 1 and groups.length > 2 * _PIECE:
        pieces = group_limits(x, Groups(groups.lines, groups.length, _PIECE), kernels)
        return pieces[0].amin(1, keepdim=True), pieces[1].amax(1, keepdim=True)
    low, high = torch.empty(2, groups.lines, groups.of_line).unbind()
    place = span(x.detach()), span(low), span(high)
    try:
        kernels.group_limits(
            groups.lines, groups.length, groups.size, float_code(x.dtype), *place, torch.get_num_threads()
        )
    except ValueError as error:
        raise InputError(f"{groups} do not fit a tensor of shape {tuple(x.shape)}: {error}") from error
    return low, high


def round_groups(
    x: Tensor,
    groups: Groups,
    rule: ToIntegers | ToLevels,
    scale: Tensor,
    zero: Tensor | None,
    kernels: Library,
    codes: Tensor | None = None,
    values: Tensor | None = None,
) -> None:
    """Round contiguous, finite ``x`` into ``codes`` (uint8), ``values`` (of its type), or both, of as many elements.

    ``scale`` and ``zero`` (for integers) are fp32, one for every group.

    Raises:
        InputError: for buffers that do not fit the groups.
    """
    fine = torch.float32
    target: tuple[Span, Span] = span(codes, torch.uint8), span(values, x.dtype)
    shape, source = (groups.lines, groups.length, groups.size), (float_code(x.dtype), span(x.detach()))
    sizes = span(scale, fine)
    try:
        if isinstance(rule, ToIntegers):
            shift = NOTHING if zero is None else span(zero, fine)
            kernels.round_to_integers(
                *shape, sizes, shift, rule.low, rule.high, *source, *target, torch.get_num_threads()
            )
            return
        table = span(rule.borders, fine), span(rule.values, fine), span(rule.codes, fine)
        kernels.round_to_levels(*shape, sizes, rule.codes.shape[1], *table, *source, *target, torch.get_num_threads())
    except ValueError as error:
        raise InputError(f"{groups} do not fit a tensor of shape {tuple(x.shape)}: {error}") from error
