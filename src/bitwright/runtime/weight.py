"""A quantized weight as it is stored: packed tensors beside the JSON that explains them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bitwright.formats import QuantizedTensor


@dataclass(frozen=True)
class PackedWeight:
    """What a kernel prepares itself from.

    Args:
        tensors: the packed tensors by their keys in :meth:`QuantizedTensor.to_tensors`.
        meta: the JSON of that call.
        shape: ``(out, in)``.
        form: normal form (``affine``, ``table``, ...). format: text of the first term's format.
    """

    tensors: Mapping[str, Tensor]
    meta: Mapping[str, Any]
    shape: tuple[int, int]
    form: str
    format: str

    def unpack(self) -> QuantizedTensor:
        """Return the quantized tensor (codes one byte each)."""
        return QuantizedTensor.from_tensors(dict(self.tensors), dict(self.meta))

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """Return the weight ``[out, in]``, made new at every call."""
        return self.unpack().dequantize(dtype)

    def packed(self, dtype: torch.dtype) -> PackedWeight:
        """Itself: what a kernel prepares that reads the packed tensors at every call."""
        del dtype
        return self

    def bytes(self) -> int:
        """Bytes that the packed tensors take."""
        return sum(tensor.nbytes for tensor in self.tensors.values())
