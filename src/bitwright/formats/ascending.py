"""A grid as ascending levels with borders between them: how kernels and column sweeps round to any fixed grid."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from bitwright.formats.grids import Grid
from bitwright.formats.tables import middles_below


@dataclass(frozen=True, eq=False)
class Ascending:
    """Distinct finite levels of a grid; it rounds as ``grid.round`` does, ties included.

    Attributes:
        levels: fp32 ``[n]``, ascending.
        borders: fp32 ``[n - 1]``: the largest number that still goes to the lower neighbour.
        codes: uint8 ``[2, n]``: the code of each level for numbers without and with a sign (minifloats have two zeros).
    """

    levels: Tensor
    borders: Tensor
    codes: Tensor


@functools.lru_cache(maxsize=64)
def ascending(grid: Grid) -> Ascending:
    """The ascending form of a grid with fixed levels; kept, so its tensors must not be written to."""
    with torch.inference_mode(False):
        levels = grid.levels()
        levels = torch.unique(levels[torch.isfinite(levels)] + 0.0)
        borders = middles_below(levels)
        tie_goes_up = grid.round(borders) > levels[:-1]
        below = torch.nextafter(borders, torch.full_like(borders, -torch.inf))
        codes = torch.stack([grid.encode(side) for side in (levels, levels.where(levels != 0, -0.0))])
        return Ascending(levels, torch.where(tie_goes_up, below, borders), codes)
