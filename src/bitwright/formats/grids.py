"""Integer grids, and what every grid can do: encode, decode and round scaled values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from bitwright.errors import InputError


@runtime_checkable
class Grid(Protocol):
    """The set of levels that one code can name; values are already divided by their scale.

    ``bits`` are stored per code, ``text`` is the word in a format's text, ``kind`` the normal form of a matrix that is
    coded with it, ``affine`` says that the levels are consecutive integers (so that a zero point is allowed),
    ``max_level`` and ``min_level`` are the finite ends. ``span`` is the number of neighbours of a row that are coded
    together: 1, or that of a grid of vectors, whose methods see the last axis in whole spans.
    """

    @property
    def span(self) -> int: ...

    @property
    def kind(self) -> str: ...

    @property
    def bits(self) -> int: ...

    @property
    def text(self) -> str: ...

    @property
    def affine(self) -> bool: ...

    @property
    def max_level(self) -> float: ...

    @property
    def min_level(self) -> float: ...

    def levels(self) -> Tensor:
        """Return float32 ``[n]``: the level of every code, the index is the code."""
        ...

    def encode(self, x: Tensor) -> Tensor:
        """Return the uint8 code of the nearest level for every element; values beyond the ends saturate."""
        ...

    def decode(self, codes: Tensor) -> Tensor:
        """Return the float32 level of every code."""
        ...

    def round(self, x: Tensor) -> Tensor:
        """Return ``decode(encode(x))`` without making codes."""
        ...


@dataclass(frozen=True)
class IntGrid:
    """Consecutive integers of 1 to 8 bits; the stored code is ``level - min_level``.

    Signed: ``-2^(b-1) .. 2^(b-1)-1``; ``narrow`` drops the lowest level, so that the grid is symmetric about zero;
    unsigned: ``0 .. 2^b-1``. A signed grid of one bit has the levels -1 and 0 (``binary`` has -1 and +1).

    Raises:
        InputError: bits outside 1..8, narrow on an unsigned grid, or narrow with one bit (a single level).
    """

    bits: int
    signed: bool = True
    narrow: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 8:
            raise InputError(f"an integer grid has 1 to 8 bits, not {self.bits}; choose int1 to int8")
        if self.narrow and not self.signed:
            raise InputError("a narrow range belongs to signed integers; drop 'narrow' or 'asym'")
        if self.narrow and self.bits == 1:
            raise InputError("int1 narrow has a single level; use 'binary' (-1 and +1) or 'int1 asym'")

    @property
    def span(self) -> int:
        return 1

    @property
    def kind(self) -> str:
        return "affine"

    @property
    def text(self) -> str:
        return f"int{self.bits}" if self.signed else f"uint{self.bits}"

    @property
    def affine(self) -> bool:
        return True

    @property
    def low(self) -> int:
        """The lowest level."""
        return (-(1 << (self.bits - 1)) + int(self.narrow)) if self.signed else 0

    @property
    def high(self) -> int:
        """The highest level."""
        return ((1 << (self.bits - 1)) if self.signed else (1 << self.bits)) - 1

    @property
    def max_level(self) -> float:
        return float(self.high)

    @property
    def min_level(self) -> float:
        return float(self.low)

    def levels(self) -> Tensor:
        return torch.arange(self.low, self.high + 1, dtype=torch.float32)

    def encode(self, x: Tensor) -> Tensor:
        rounded = x.to(torch.float32).round().clamp_(self.low, self.high)
        # The conversion by way of int16 is several times faster than the direct one.
        return rounded.sub_(self.low).to(torch.int16).to(torch.uint8)

    def decode(self, codes: Tensor) -> Tensor:
        return codes.to(torch.float32).add_(self.low)

    def round(self, x: Tensor) -> Tensor:
        # A rounded small negative is -0.0; adding 0.0 makes it the same +0.0 that decode gives.
        return x.to(torch.float32).round().clamp_(self.low, self.high).add_(0.0)
