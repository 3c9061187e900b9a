"""Compiled searches of vector codebooks; :mod:`bitwright.formats.search` has the definitions, equal bit for bit."""

from __future__ import annotations

import torch
from torch import Tensor

from bitwright.errors import InputError
from bitwright.native.buffers import span
from bitwright.native.loading import Library, library

MOST_BEAM = 1024
"""The widest beam that compiled code keeps."""


def beam_search(x: Tensor, books: Tensor, half: Tensor, beam: int, kernels: Library | None = None) -> Tensor | None:
    """Return int32 indices ``[n, m]`` for ``x[n, span]`` and ``books[m, entries, span]``, all fp32.

    ``half[m, entries]``: half the squared lengths of the entries. ``None`` where nothing compiled serves.

    Raises:
        InputError: for shapes that do not fit each other, or a beam that is none.
    """
    found = _serving(x, kernels)
    if found is None or beam > MOST_BEAM:
        return None
    count, width = x.shape
    source, rows, norms = x.contiguous(), books.contiguous(), half.contiguous()
    index = torch.empty(count, books.shape[0], dtype=torch.int32)
    try:
        found.beam_search(
            count, books.shape[0], books.shape[1], width, beam, span(source, torch.float32),
            span(rows, torch.float32), span(norms, torch.float32), span(index), torch.get_num_threads(),
        )  # fmt: skip
    except ValueError as error:
        raise InputError(f"vectors and codebooks do not fit: {error}") from error
    return index


def nearest_e8p(x: Tensor, base: Tensor, half: Tensor, kernels: Library | None = None) -> Tensor | None:
    """Return int32 codes ``[n]`` for ``x[n, 8]`` with the base points ``base[256, 8]`` and ``half[256]``, all fp32.

    ``None`` where nothing compiled serves.

    Raises:
        InputError: for base points that are none, or shapes that do not fit.
    """
    found = _serving(x, kernels)
    if found is None:
        return None
    source, points, norms = x.contiguous(), base.contiguous(), half.contiguous()
    codes = torch.empty(x.shape[0], dtype=torch.int32)
    try:
        found.nearest_e8p(
            x.shape[0], span(source, torch.float32), span(points, torch.float32), span(norms, torch.float32),
            span(codes), torch.get_num_threads(),
        )  # fmt: skip
    except ValueError as error:
        raise InputError(f"vectors and base points do not fit: {error}") from error
    return codes


def _serving(x: Tensor, kernels: Library | None) -> Library | None:
    """The kernels, where the tensor is one that they can read."""
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return None
    return library() if kernels is None else kernels
