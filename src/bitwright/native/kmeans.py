"""One-dimensional weighted k-means of many lines, compiled."""

from __future__ import annotations

import torch
from torch import Tensor

from bitwright.native.buffers import span
from bitwright.native.loading import Library, library


def kmeans(
    values: Tensor,
    mass: Tensor,
    moment: Tensor,
    places: Tensor,
    levels: int,
    steps: int,
    swaps: int,
    kernels: Library | None = None,
) -> Tensor | None:
    """Return ascending centres ``[lines, levels]`` (fp32), or ``None`` where nothing compiled serves.

    Args:
        values: fp64 ``[lines, n]``, ascending.
        mass, moment: fp64 ``[lines, n + 1]``, prefix sums of the weights and of weight times value.
        places: int64 ``[lines, cells + 1]``, ascending in 0..n: the borders that the first clusters may have.
        levels: 2 to 256. steps: most steps of Lloyd's algorithm from each start. swaps: most further starts.
    """
    found = library() if kernels is None else kernels
    lines, count = values.shape
    if found is None or values.device.type != "cpu" or not 2 <= levels <= 256 or count == 0:
        return None
    centres = torch.empty(lines, levels)
    parts = [part.contiguous() for part in (values, mass, moment)]
    places = places.contiguous()
    found.kmeans(
        lines, count, places.shape[1] - 1, levels, steps, swaps, *(span(part, torch.float64) for part in parts),
        span(places, torch.int64), span(centres), torch.get_num_threads(),
    )  # fmt: skip
    return centres
