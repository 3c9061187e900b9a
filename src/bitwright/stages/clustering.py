"""Channels with outliers beside each other, so that few blocks of an activation need 8 bits (COMET's FMPQ).

COMET (arXiv:2410.12168), section 3: activations are cut into blocks of channels; a block that holds an outlier is coded
in 8 bits, all others in 4. An order that puts the channels with outliers last makes those blocks few.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitwright.errors import InputError
from bitwright.stages.transforms import OnlineOperation


def outliers(absmax: Tensor, ratio: float) -> Tensor:
    """Return bool ``[in]``: channels whose largest magnitude is above ``ratio`` times the median channel's."""
    return absmax > ratio * absmax.median()


def wide_blocks(absmax: Tensor, size: int, ratio: float) -> int:
    """Return how many blocks of ``size`` neighbouring channels hold an outlier."""
    found = torch.nn.functional.pad(outliers(absmax, ratio), (0, -absmax.numel() % size))
    return int(found.view(-1, size).any(1).sum())


def clustered(absmax: Tensor, size: int, ratio: float) -> tuple[OnlineOperation, int]:
    """Return the order that puts channels with outliers last, and how many channels at the end then need 8 bits.

    The blocks at the end are filled with the largest of the other channels. The weight's columns take the same order.

    Args:
        absmax: largest magnitude of each channel, ``[in]``. size: channels of a block, which divide the channels.
        ratio: see :func:`outliers`.

    Raises:
        InputError: blocks that do not divide the channels.
    """
    count = absmax.numel()
    if size < 1 or count % size:
        raise InputError(f"blocks of {size} do not divide {count} channels; choose a divisor")
    wide = -(-int(outliers(absmax, ratio).sum()) // size) * size
    last = absmax.topk(wide).indices.sort().values.tolist()
    return OnlineOperation("order", (("size", count), ("last", ",".join(map(str, last))))), wide
