"""Embeddings on packed tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bitwright.errors import InputError
from bitwright.formats import QuantizedTensor
from bitwright.runtime.dispatch import Table
from bitwright.runtime.kernels.table import TABLE
from bitwright.runtime.module import QuantModule


class QuantEmbedding(QuantModule):
    """Rows of a packed table ``[rows, dim]``; only those of a call are dequantized, into ``dtype``."""

    op = "embedding"

    def __init__(
        self,
        weight: Mapping[str, Tensor],
        meta: Mapping[str, Any],
        shape: tuple[int, int],
        *,
        dtype: torch.dtype = torch.float32,
        cache_weights: bool = False,
        table: Table = TABLE,
    ) -> None:
        super().__init__(weight, meta, shape, cache_weights=cache_weights, table=table, dtype=dtype)

    @classmethod
    def from_quantized(
        cls,
        weight: QuantizedTensor,
        *,
        dtype: torch.dtype = torch.float32,
        cache_weights: bool = False,
        table: Table = TABLE,
    ) -> QuantEmbedding:
        """Make the module of a quantized table; ``dtype`` is that of its results."""
        tensors, meta = weight.to_tensors()
        return cls(tensors, meta, weight.shape, dtype=dtype, cache_weights=cache_weights, table=table)

    @property
    def num_embeddings(self) -> int:
        """Rows of the table."""
        return self.shape[0]

    @property
    def embedding_dim(self) -> int:
        """Length of a row."""
        return self.shape[1]

    def forward(self, ids: Tensor) -> Tensor:
        """Return ``[*ids.shape, dim]``.

        Raises:
            InputError: for an id outside of the table.
        """
        if ids.numel() and (int(ids.min()) < 0 or int(ids.max()) >= self.shape[0]):
            raise InputError(f"token ids must lie in 0..{self.shape[0] - 1}; check the tokenizer")
        choice, prepared = self.kernel_for(ids, self.dtype, ids.numel())
        y: Tensor = choice.kernel.run(ids, prepared, self.dtype)
        return y
