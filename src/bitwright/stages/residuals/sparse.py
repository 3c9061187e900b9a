"""Outliers kept apart from the grid: SqueezeLLM's dense-and-sparse decomposition."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from bitwright.errors import InputError
from bitwright.formats import Sparse
from bitwright.stages.quantizer import WeightContext
from bitwright.statistics import Statistic
from bitwright.statistics.fisher import Fisher

_TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


@runtime_checkable
class Refitted(Protocol):
    """A sparse residual that is fitted again to what the rounding left."""

    @property
    def rounds(self) -> int:
        """How many times rounding and fitting alternate."""

    def refit(self, term: Sparse, rest: Tensor, context: WeightContext) -> Sparse:
        """Return the new term for ``rest[out, in]``: the weight less the values of all other terms."""


def largest(scores: Tensor, share: float) -> Tensor:
    """Mask of the ``round(share * size)`` largest scores of the whole matrix; of equal ones the first in row order."""
    count = round(share * scores.numel())
    mask = torch.zeros(scores.numel(), dtype=torch.bool)
    mask[torch.argsort(scores.flatten(), descending=True, stable=True)[:count]] = True
    return mask.view(scores.shape)


def sparse_bits(shape: tuple[int, int], entries: int, value_bytes: int) -> int:
    """Stored bits of a sparse term of a matrix ``[out, in]``, as :meth:`bitwright.formats.Sparse.storage_bits`."""
    none = torch.empty(0, dtype=torch.int32)
    index = Sparse(none, none, torch.empty(0), shape).index_type
    return 8 * (4 * (shape[0] + 1) + entries * (value_bytes + index.itemsize))


@dataclass(frozen=True)
class Outliers:
    """Take the largest weights and the weights that the loss feels most out of the matrix before it is rounded.

    Args:
        magnitude: share of the matrix taken by size; it narrows the range that the grid has to span.
        sensitive: share taken by Fisher information.
        storage: type of the values.
        fisher: the request for the Fisher information.

    Raises:
        InputError: for shares outside 0 .. 1.
    """

    magnitude: float = 0.004
    sensitive: float = 0.0005
    storage: Literal["fp16", "bf16", "fp32"] = "fp16"
    fisher: Fisher = field(default_factory=Fisher)

    def __post_init__(self) -> None:
        if not (0 <= self.magnitude <= 1 and 0 <= self.sensitive <= 1):
            raise InputError("the shares of sparse weights lie between 0 and 1; e.g. magnitude=0.004")

    @property
    def when(self) -> Literal["before", "after"]:
        """Before the rounding."""
        return "before"

    @property
    def needs(self) -> tuple[Statistic, ...]:
        """The Fisher information, where it is used."""
        return (self.fisher,) if self.sensitive > 0 else ()

    @property
    def exact_size(self) -> bool:
        """Whether :meth:`storage_bits` is exact: entries that both shares take count once."""
        return self.sensitive == 0 or self.magnitude == 0

    def storage_bits(self, shape: tuple[int, int]) -> int:
        """Stored bits for a weight ``[out, in]``; as many entries as two independent choices would take."""
        count = shape[0] * shape[1]
        entries = round(count * self.magnitude)
        entries += round(count * self.sensitive * (1 - entries / count))
        return sparse_bits(shape, entries, _TYPES[self.storage].itemsize)

    def fit(self, w: Tensor, context: WeightContext) -> Sparse:
        """Return the chosen entries of ``w[out, in]``."""
        mask = largest(w.abs(), self.magnitude)
        if self.sensitive > 0:
            mask |= largest(context.read(self.fisher), self.sensitive)
        return Sparse.where(w, mask, _TYPES[self.storage])

    @property
    def rounds(self) -> int:
        """One: the positions do not depend on the codes."""
        return 1

    def refit(self, term: Sparse, rest: Tensor, context: WeightContext) -> Sparse:
        """Keep the positions and take over what the codes have there."""
        rows, cols = term.rows.long(), term.cols.long()
        return Sparse(term.rows, term.cols, rest[rows, cols].to(term.values.dtype), term.shape)
