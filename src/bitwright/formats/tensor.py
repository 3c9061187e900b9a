"""Quantized matrices: an ordered sum of coded, sparse and low-rank terms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bitwright.errors import InputError
from bitwright.formats.format import Format
from bitwright.formats.scales import Scale

Shape = tuple[int, int]

_VALUE_TYPES = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True, eq=False)
class Codes:
    """One code per weight: uint8 ``codes[out, in]`` (unpacked), and the parameters that give them values.

    A grid of vectors spreads the word of a vector over the codes of its columns (:mod:`bitwright.formats.vectors`).
    ``zero`` is stored as the format says (uint8 or float ``[rows, groups]``), ``codebook`` is fp16 of the shape
    ``format.codebook_shape(shape)`` for learned grids.

    Raises:
        InputError: parts whose shape or type does not belong to the format.
    """

    codes: Tensor
    format: Format
    scale: Scale
    zero: Tensor | None = None
    codebook: Tensor | None = None

    def __post_init__(self) -> None:
        if self.codes.dtype != torch.uint8 or self.codes.dim() != 2:
            raise InputError(f"codes are a uint8 matrix, not {self.codes.dtype} of shape {tuple(self.codes.shape)}")
        self.format.check_shape(self.shape)
        params = self.format.granularity.layout(self.shape).params_shape
        if tuple(self.scale.effective.shape) != params:
            raise InputError(f"scales of shape {tuple(self.scale.effective.shape)} do not fit {self.format}: {params}")
        if (self.zero is None) != (self.format.zero is None):
            raise InputError(f"{self.format} {'has no' if self.format.zero is None else 'needs'} zero points")
        if self.zero is not None and tuple(self.zero.shape) != params:
            raise InputError(f"zero points of shape {tuple(self.zero.shape)} do not fit {self.format}: {params}")
        book = self.format.codebook_shape(self.shape)
        if (book is None) != (self.codebook is None):
            raise InputError(f"{self.format} {'has no' if book is None else 'needs a'} codebook")
        if self.codebook is not None and tuple(self.codebook.shape) != book:
            raise InputError(f"a codebook of shape {tuple(self.codebook.shape)} does not fit {self.format}")

    @property
    def shape(self) -> Shape:
        """``(out, in)``."""
        return int(self.codes.shape[0]), int(self.codes.shape[1])

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the values ``[out, in]``."""
        layout = self.format.granularity.layout(self.shape)
        values = self.format.decode(layout.split(self.codes), self.scale.effective, self.zero, self.codebook)
        return layout.join(values).to(dtype)

    def storage_bits(self) -> int:
        """Return the stored bits: codes, scales, outer scales, zero points, codebook."""
        return self.format.storage_bits(self.shape)

    @property
    def kind(self) -> str:
        """That of the grid: ``affine``, ``table``, ``codebook`` or ``vector``."""
        return self.format.grid.kind


@dataclass(frozen=True, eq=False)
class Sparse:
    """A few weights kept as they are: ``values[k]`` (fp16, bf16 or fp32) at int32 ``rows[k]``, ``cols[k]``.

    Entries are sorted by row, then column; positions are unique. Saved as compressed rows.

    Raises:
        InputError: lengths, types or positions that do not fit.
    """

    rows: Tensor
    cols: Tensor
    values: Tensor
    shape: Shape

    def __post_init__(self) -> None:
        if not self.rows.shape == self.cols.shape == self.values.shape or self.rows.dim() != 1:
            raise InputError("a sparse term has as many rows as columns and values")
        if self.rows.dtype != torch.int32 or self.cols.dtype != torch.int32 or self.values.dtype not in _VALUE_TYPES:
            raise InputError("a sparse term has int32 positions and fp16, bf16 or fp32 values")
        if self.rows.numel() == 0:
            return
        place = self.rows.to(torch.int64) * self.shape[1] + self.cols
        in_columns = bool(((self.cols >= 0) & (self.cols < self.shape[1])).all())
        if not in_columns or int(place[0]) < 0 or int(place[-1]) >= self.shape[0] * self.shape[1]:
            raise InputError(f"a sparse term has positions outside of {self.shape}")
        if not bool((place[1:] > place[:-1]).all()):
            raise InputError("the positions of a sparse term are sorted by row and column and occur once")

    @classmethod
    def where(cls, w: Tensor, mask: Tensor, dtype: torch.dtype = torch.float16) -> Sparse:
        """Return the entries of ``w[out, in]`` where ``mask`` (bool, same shape) is set."""
        rows, cols = torch.nonzero(mask, as_tuple=True)
        values = w[rows, cols].to(dtype)
        if not bool(torch.isfinite(values).all()):
            raise InputError(f"a sparse value does not fit {dtype}; keep them in bfloat16 or float32")
        return cls(rows.to(torch.int32), cols.to(torch.int32), values, (int(w.shape[0]), int(w.shape[1])))

    @property
    def index_type(self) -> torch.dtype:
        """The type in which column indices are saved: int16 while they fit."""
        return torch.int16 if self.shape[1] <= 1 << 15 else torch.int32

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the values ``[out, in]``, zero elsewhere."""
        full = torch.zeros(self.shape, dtype=dtype, device=self.values.device)
        full[self.rows.to(torch.int64), self.cols.to(torch.int64)] = self.values.to(dtype)
        return full

    def storage_bits(self) -> int:
        """Return the stored bits: row pointers, column indices, values."""
        entry = self.values.element_size() + self.index_type.itemsize
        return 8 * (4 * (self.shape[0] + 1) + self.values.numel() * entry)

    @property
    def kind(self) -> str:
        return "sparse"


@dataclass(frozen=True, eq=False)
class LowRank:
    """A product ``left[out, r] @ right[r, in]`` of stored floats (fp16, bf16, fp32) or of coded matrices.

    Raises:
        InputError: shapes that do not multiply, or another type.
    """

    left: Tensor | Codes
    right: Tensor | Codes

    def __post_init__(self) -> None:
        for factor in (self.left, self.right):
            if isinstance(factor, Tensor) and (factor.dtype not in _VALUE_TYPES or factor.dim() != 2):
                raise InputError(f"a low-rank factor is a float matrix or codes, not {factor.dtype}, {factor.dim()}-d")
        if self.left.shape[1] != self.right.shape[0]:
            raise InputError(f"factors of shape {tuple(self.left.shape)} and {tuple(self.right.shape)} do not multiply")

    @property
    def shape(self) -> Shape:
        return int(self.left.shape[0]), int(self.right.shape[1])

    @property
    def rank(self) -> int:
        return int(self.left.shape[1])

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the product ``[out, in]``, computed in float32."""
        left, right = (f.dequantize() if isinstance(f, Codes) else f.float() for f in (self.left, self.right))
        return (left @ right).to(dtype)

    def storage_bits(self) -> int:
        """Return the stored bits of both factors."""
        return sum(
            f.storage_bits() if isinstance(f, Codes) else 8 * f.numel() * f.element_size()
            for f in (self.left, self.right)
        )

    @property
    def kind(self) -> str:
        return "lowrank"


Term = Codes | Sparse | LowRank


@dataclass(frozen=True, eq=False)
class QuantizedTensor:
    """A matrix as an ordered sum of terms of one shape, the worthiest first.

    Raises:
        InputError: no terms, or terms of different shapes.
    """

    terms: tuple[Term, ...]

    def __post_init__(self) -> None:
        if not self.terms:
            raise InputError("a quantized tensor needs at least one term")
        if len({tuple(term.shape) for term in self.terms}) != 1:
            raise InputError(f"the terms have different shapes: {[tuple(term.shape) for term in self.terms]}")

    @property
    def shape(self) -> Shape:
        """``(out, in)``."""
        return self.terms[0].shape

    @property
    def codes(self) -> Codes | None:
        """The first coded term, if there is one."""
        return next((term for term in self.terms if isinstance(term, Codes)), None)

    def dequantize(self, dtype: torch.dtype = torch.float32, level: int | None = None) -> Tensor:
        """Return the sum ``[out, in]`` of all terms, or of the first ``level``; summed in float32."""
        total = self.terms[0].dequantize()
        for term in self.terms[1:level]:
            if isinstance(term, Sparse):
                total[term.rows.to(torch.int64), term.cols.to(torch.int64)] += term.values.float()
            else:
                total = total + term.dequantize()
        return total.to(dtype)

    def storage_bits(self) -> int:
        """Return the exact stored bits of all terms."""
        return sum(term.storage_bits() for term in self.terms)

    @property
    def bits_per_weight(self) -> float:
        """``storage_bits`` over the number of weights."""
        return self.storage_bits() / (self.shape[0] * self.shape[1])

    @property
    def normal_form(self) -> str:
        """The kinds of the terms joined by ``+``: ``affine``, ``table``, ``codebook+sparse``, ..."""
        return "+".join(term.kind for term in self.terms)

    def to_tensors(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return packed tensors and JSON-able metadata; see :mod:`bitwright.formats.saving`."""
        from bitwright.formats.saving import to_tensors

        return to_tensors(self)

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], meta: dict[str, Any]) -> QuantizedTensor:
        """Return the tensor of :meth:`to_tensors`; everything is checked.

        Raises:
            InputError: a missing or unknown tensor, shape, type or key.
        """
        from bitwright.formats.saving import from_tensors

        return from_tensors(tensors, meta)
