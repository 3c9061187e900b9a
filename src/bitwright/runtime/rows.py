"""Dequantize some rows of a packed matrix, for embeddings: the cost follows the rows that are asked for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bitwright.formats import CodebookGrid, Format, QuantizedTensor, pack, parse, unpack
from bitwright.formats.layout import AxisLayout, FlatLayout
from bitwright.runtime.weight import PackedWeight


def dequantize_rows(weight: PackedWeight, rows: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the rows ``[len(rows), in]`` of ``weight[out, in]``, equal to those of the whole dequantized matrix.

    Where scales are shared between rows (per tensor, blocks, double quantization) or there are residual terms the
    whole matrix is dequantized.
    """
    if rows.numel() == 0:
        return torch.empty((0, weight.shape[1]), dtype=dtype, device=rows.device)
    part = _select(weight, rows)
    if part is None:
        return weight.dequantize(dtype)[rows]
    tensors, meta = part
    return QuantizedTensor.from_tensors(tensors, meta).dequantize(dtype)


def _select(weight: PackedWeight, rows: Tensor) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Packed tensors and metadata of the chosen rows, or ``None`` where rows do not own their parameters."""
    terms = weight.meta["terms"]
    if len(terms) != 1 or terms[0]["kind"] != "codes":
        return None
    fmt = parse(terms[0]["format"])
    if not _rows_own_scales(fmt, weight.shape):
        return None
    prefix = terms[0]["prefix"]
    count = weight.shape[0]
    tensors: dict[str, Tensor] = {}
    for name, tensor in weight.tensors.items():
        key = name.removeprefix(prefix)
        if key == "codes":
            tensors[name] = tensor[rows]
        elif key == "scale_outer" or (key == "codebook" and not isinstance(fmt.grid, CodebookGrid)):
            tensors[name] = tensor
        elif key == "zero" and fmt.zero is not None and fmt.zero.storage == "code":
            tensors[name] = _select_zeros(tensor, rows, fmt, weight.shape)
        else:
            flat = tensor.shape[0] != count
            chosen = tensor.reshape(count, -1, *tensor.shape[2:])[rows]
            tensors[name] = chosen.reshape(1, -1, *tensor.shape[2:]) if flat else chosen
    return tensors, {**weight.meta, "shape": [len(rows), weight.shape[1]]}


def _rows_own_scales(fmt: Format, shape: tuple[int, int]) -> bool:
    layout = fmt.granularity.layout(shape)
    if fmt.scale.storage == "uint8":
        return False
    if isinstance(layout, FlatLayout):
        return shape[1] % layout.group_length == 0
    return isinstance(layout, AxisLayout) and not layout.transposed


def _select_zeros(stream: Tensor, rows: Tensor, fmt: Format, shape: tuple[int, int]) -> Tensor:
    """Zero points are one stream of codes over all rows: unpack, choose, pack."""
    params = fmt.granularity.layout(shape).params_shape
    codes = unpack(stream.view(1, -1), fmt.grid.bits, params[0] * params[1])
    return pack(codes.view(shape[0], -1)[rows].reshape(1, -1), fmt.grid.bits).view(-1)
