"""Dense streams of codes of 1 to 8 bits, packed and unpacked by compiled code."""

from __future__ import annotations

import torch
from torch import Tensor

from bitwright.native.buffers import fresh, span
from bitwright.native.loading import Library, library


def pack_bits(codes: Tensor, bits: int, kernels: Library | None = None, out: Tensor | None = None) -> Tensor | None:
    """Pack uint8 ``codes[rows, n]`` to uint8 ``[rows, ceil(n * bits / 8)]``; ``None`` where nothing compiled serves.

    The first code of a row lies in the lowest bits of its stream; a row starts at a byte, its end is padded with zeros.
    ``out`` takes the result: fresh memory costs several times what packing costs.
    """
    kernels = _serving(codes, kernels)
    if kernels is None:
        return None
    rows, n = codes.shape
    packed = fresh(rows, (n * bits + 7) // 8, dtype=torch.uint8) if out is None else out
    source = codes.contiguous()
    kernels.pack_bits(rows, n, bits, span(source, torch.uint8), span(packed, torch.uint8), torch.get_num_threads())
    return packed


def unpack_bits(
    packed: Tensor, bits: int, n: int, kernels: Library | None = None, out: Tensor | None = None
) -> Tensor | None:
    """Return uint8 codes ``[rows, n]`` of what :func:`pack_bits` made; ``None`` where nothing compiled serves."""
    kernels = _serving(packed, kernels)
    if kernels is None:
        return None
    rows = packed.shape[0]
    codes = fresh(rows, n, dtype=torch.uint8) if out is None else out
    source = packed.contiguous()
    kernels.unpack_bits(rows, n, bits, span(source, torch.uint8), span(codes, torch.uint8), torch.get_num_threads())
    return codes


def _serving(tensor: Tensor, kernels: Library | None) -> Library | None:
    """The kernels, where the tensor is one that they can read."""
    if tensor.device.type != "cpu" or torch.compiler.is_compiling():
        return None
    return library() if kernels is None else kernels
