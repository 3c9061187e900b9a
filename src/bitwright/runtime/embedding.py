"""Embeddings on packed tables."""

from __future__ import annotations

from torch import Tensor

from bitwright.errors import InputError
from bitwright.formats import QuantizedTensor
from bitwright.runtime.module import PLAIN, Options, QuantModule


class QuantEmbedding(QuantModule):
    """Rows of a packed table ``[rows, dim]``; only those of a call are dequantized, into ``dtype``."""

    op = "embedding"

    @classmethod
    def from_quantized(cls, weight: QuantizedTensor, *, options: Options = PLAIN) -> QuantEmbedding:
        """Make the module of a quantized table; ``options.dtype`` is that of its results."""
        tensors, meta = weight.to_tensors()
        return cls(tensors, meta, weight.shape, options=options)

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
