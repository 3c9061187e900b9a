"""Rounding whole matrices to nearest with compiled kernels, where the grid and the groups are ones that they serve."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from bitwright.formats.ascending import ascending
from bitwright.formats.format import AnyGrid, Format
from bitwright.formats.grids import IntGrid
from bitwright.formats.layout import AxisLayout, FlatLayout, Layout
from bitwright.formats.tables import CodebookGrid
from bitwright.native.buffers import fresh
from bitwright.native.loading import Library
from bitwright.native.nearest import MOST_LEVELS, Groups, ToIntegers, ToLevels, group_limits, round_groups, serving


@dataclass(frozen=True, eq=False)
class Rounder:
    """Rounds one contiguous matrix ``x`` of a format; results equal the definitions of :class:`Format` bit for bit."""

    x: Tensor
    layout: Layout
    groups: Groups
    rule: ToIntegers | ToLevels
    kernels: Library

    def limits(self) -> tuple[Tensor, Tensor] | None:
        """Smallest and largest value of each group, in the shape of parameters; ``None`` where a value is not finite.

        Padding of a short group counts as zeros, as in a split matrix.
        """
        low, high = group_limits(self.x, self.groups, self.kernels)
        if not bool((torch.isfinite(low) & torch.isfinite(high)).all()):
            return None
        if self.groups.length % self.groups.size:
            low[:, -1].clamp_(max=0.0)
            high[:, -1].clamp_(min=0.0)
        return low.view(self.layout.params_shape), high.view(self.layout.params_shape)

    def codes(self, scale: Tensor, zero: Tensor | None) -> Tensor:
        """uint8 codes in the shape of the matrix; ``scale`` and ``zero`` ``[rows, groups]`` as they are stored."""
        codes = fresh(*self.x.shape, dtype=torch.uint8)
        round_groups(self.x, self.groups, self.rule, *_plain(scale, zero), self.kernels, codes=codes)
        return codes

    def values(self, scale: Tensor, zero: Tensor | None) -> Tensor:
        """Rounded values in the matrix's shape and type."""
        values = fresh(*self.x.shape, dtype=self.x.dtype)
        round_groups(self.x, self.groups, self.rule, *_plain(scale, zero), self.kernels, values=values)
        return values

    def both(self, scale: Tensor, zero: Tensor | None) -> tuple[Tensor, Tensor]:
        """Codes, and the rounded values in the matrix's type."""
        codes = fresh(*self.x.shape, dtype=torch.uint8)
        values = fresh(*self.x.shape, dtype=self.x.dtype)
        round_groups(self.x, self.groups, self.rule, *_plain(scale, zero), self.kernels, codes=codes, values=values)
        return codes, values


def rounder(fmt: Format, x: Tensor, layout: Layout, kernels: Library | None = None) -> Rounder | None:
    """What rounds ``x[rows, columns]`` of any float type, or ``None`` where only torch does.

    ``kernels`` asks for an instruction set; by default it is the fastest, unless that is the plain one.
    """
    found = serving(x, kernels)
    groups, rule = _groups(layout), _rule(fmt.grid)
    if found is None or groups is None or rule is None:
        return None
    return Rounder(x.contiguous(), layout, groups, rule, found)


def _plain(scale: Tensor, zero: Tensor | None) -> tuple[Tensor, Tensor | None]:
    return scale.contiguous(), None if zero is None else zero.to(torch.float32).contiguous()


def _groups(layout: Layout) -> Groups | None:
    if isinstance(layout, FlatLayout):
        return Groups(1, layout.shape[0] * layout.shape[1], layout.group_length)
    if isinstance(layout, AxisLayout) and not layout.transposed:
        return Groups(*layout.shape, layout.group_length)
    return None


@functools.lru_cache(maxsize=64)
def _rule(grid: AnyGrid) -> ToIntegers | ToLevels | None:
    """How kernels round to a grid; ``None`` for learned tables, vectors, and more levels than are worth trying."""
    if isinstance(grid, IntGrid):
        return ToIntegers(grid.min_level, grid.max_level)
    if isinstance(grid, CodebookGrid) or grid.span > 1 or grid.bits > MOST_LEVELS.bit_length():
        return None
    form = ascending(grid)
    if len(form.levels) > MOST_LEVELS:
        return None
    with torch.inference_mode(False):
        return ToLevels(form.borders, grid.decode(form.codes), form.codes.float())
