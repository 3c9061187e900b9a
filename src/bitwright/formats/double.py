"""Double quantization of scales as in bitsandbytes: 8-bit dynamic-map codes, blocks of 256, float32 outer, mean offset.

QLoRA (arXiv:2305.14314), section 3: ``scale[i] = map[code[i]] * outer[i // 256] + offset``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitwright.formats.derived import dynamic_tree
from bitwright.formats.tables import TableGrid

BLOCK = 256


def dynamic_map() -> TableGrid:
    """Return the grid of the 256 levels of the signed dynamic map."""
    return TableGrid("dynamic8", dynamic_tree())


def fit(scale: Tensor) -> Tensor:
    """Return float32 ``[1 + ceil(count/256)]``: the mean, then the largest distance from it in each block."""
    flat = scale.to(torch.float32).reshape(-1)
    offset = flat.mean().reshape(1)
    blocks = -(-flat.numel() // BLOCK)
    centred = torch.nn.functional.pad(flat - offset, (0, blocks * BLOCK - flat.numel())).view(blocks, BLOCK)
    outer = centred.abs().amax(dim=1)
    # Equal scales leave nothing to code: any positive outer value serves, and none may be zero.
    return torch.cat([offset, torch.where(outer > 0, outer, torch.ones_like(outer))])


def _spread(outer: Tensor, count: int) -> Tensor:
    return outer.repeat_interleave(BLOCK)[:count]


def encode(scale: Tensor, outer: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    """Return uint8 codes and the positive float32 effective scales, both in the shape of ``scale``."""
    flat = scale.to(torch.float32).reshape(-1)
    grid, spread = dynamic_map(), _spread(outer, flat.numel())
    codes = grid.encode((flat - offset) / spread)
    levels = grid.levels().to(flat.device)
    # A scale far below the mean may decode to zero or less: it takes the first code whose value is positive.
    smallest = torch.searchsorted(levels, (-offset / outer).contiguous(), right=True).clamp(max=255)
    positive = levels[smallest] * outer + offset > 0
    smallest = torch.where(positive, smallest, (smallest + 1).clamp(max=255)).to(torch.uint8)
    codes = torch.maximum(codes, _spread(smallest, flat.numel()))
    return codes.view(scale.shape), decode(codes, outer, offset).view(scale.shape)


def decode(codes: Tensor, outer: Tensor, offset: Tensor) -> Tensor:
    """Return the float32 effective scales of uint8 codes, in their shape."""
    flat = dynamic_map().decode(codes).reshape(-1)
    return (flat * _spread(outer, flat.numel()) + offset).view(codes.shape)
