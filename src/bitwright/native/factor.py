"""The factor of second-order rounding by compiled code: equal bits on every instruction set and for any threads."""

from __future__ import annotations

import torch
from torch import Tensor

from bitwright.errors import InputError
from bitwright.native.buffers import LARGE, large_pages, span
from bitwright.native.loading import Library, library

SMALLEST = 64
"""Columns from which it is faster than torch's."""


def serving(h: Tensor) -> Library | None:
    """The kernels that factorize ``h``, or ``None`` where torch does."""
    found = library()
    if found is None or found.name == "scalar" or h.device.type != "cpu" or h.dtype != torch.float32:
        return None
    return found if len(h) >= SMALLEST else None


def upper_factor(h: Tensor, diagonal: Tensor, kernels: Library) -> tuple[Tensor, Tensor] | None:
    """Return ``U`` and the pivots ``d`` of ``H = (U + I) diag(d) (U + I)^T``; ``None`` if a pivot is not positive.

    Args:
        h: fp32 ``[n, n]``, symmetric; what is above its diagonal is read.
        diagonal: fp32 ``[n]``, taken instead of its own.

    Raises:
        InputError: for other dtypes or shapes.
    """
    size = len(diagonal)
    source, pivots = h.contiguous(), torch.empty(size)
    if 4 * size * size < LARGE:
        upper = torch.zeros(size, size)
    else:
        upper = large_pages(4 * size * size).view(torch.float32).view(size, size)
    places = span(source, torch.float32), span(diagonal.contiguous(), torch.float32), span(upper), span(pivots)
    try:
        found = kernels.upper_factor(size, *places, torch.get_num_threads())
    except ValueError as error:
        raise InputError(f"a matrix of shape {tuple(h.shape)} cannot be factorized: {error}") from error
    return (upper, pivots) if found else None
