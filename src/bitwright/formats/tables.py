"""Grids given by a table of levels, and codebooks that are learned per tensor, channel or group."""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from bitwright.errors import InputError
from bitwright.formats.derived import derived_table
from bitwright.formats.minifloat import take_levels

_LOOKUP_FROM = 1 << 14
"""Elements from which the table of upper bits is worth its 64 kB."""

_AMBIGUOUS = 255


def middles_below(ordered: Tensor) -> Tensor:
    """Return the largest float32 not above the middle of each two neighbours of ``ordered`` (float32, ascending).

    ``x <= middle`` then compares exactly as in real numbers for every float32 ``x``.
    """
    exact = (ordered[..., 1:].to(torch.float64) + ordered[..., :-1].to(torch.float64)) / 2
    near = exact.to(torch.float32)
    below = torch.nextafter(near, torch.full_like(near, -math.inf))
    return torch.where(near.to(torch.float64) > exact, below, near)


@dataclass(frozen=True)
class TableGrid:
    """Any fixed table of 2 to 256 levels; the code is the index into ``values``; ties go to the smaller level.

    Raises:
        InputError: a wrong number of levels, a level that is not finite, or a table without a positive level.
    """

    name: str
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if not 2 <= len(self.values) <= 256:
            raise InputError(f"table {self.name} has {len(self.values)} levels; a table has 2 to 256")
        if not all(math.isfinite(value) for value in self.values):
            raise InputError(f"table {self.name} has a level that is not finite; remove it")
        if max(self.values) <= 0:
            raise InputError(f"table {self.name} has no positive level; add one, so that a scale can be fitted")

    @classmethod
    def derived(cls, name: str) -> TableGrid:
        """Return a table by its name (``nf4``, ``fp4-bnb``, ``pot4``, ``apot4``, ``ternary``, ``binary``, ``lloyd4``).

        Raises:
            InputError: no such name.
        """
        values = derived_table(name)
        if values is None:
            raise InputError(f"no table is named {name!r}; e.g. nf4, fp4-bnb, pot4, apot4, ternary, binary, lloyd4")
        return cls(name, values)

    @property
    def custom(self) -> bool:
        """Whether the table is given by its levels and not by a name."""
        return self.name.startswith("table[")

    @property
    def bits(self) -> int:
        return (len(self.values) - 1).bit_length()

    @property
    def text(self) -> str:
        return self.name

    @property
    def span(self) -> int:
        return 1

    @property
    def kind(self) -> str:
        return "table"

    @property
    def affine(self) -> bool:
        return False

    @property
    def max_level(self) -> float:
        return max(self.values)

    @property
    def min_level(self) -> float:
        return min(self.values)

    def levels(self) -> Tensor:
        return torch.tensor(self.values, dtype=torch.float32)

    def _ordered(self) -> tuple[Tensor, Tensor]:
        """Return the distinct levels in ascending order and the first code of each."""
        first: dict[float, int] = {}
        for code, value in enumerate(self.levels().tolist()):
            first.setdefault(value + 0.0, code)
        ordered = sorted(first)
        return torch.tensor(ordered, dtype=torch.float32), torch.tensor([first[v] for v in ordered], dtype=torch.uint8)

    def encode(self, x: Tensor) -> Tensor:
        x = x.to(torch.float32)
        if x.device.type == "cpu" and x.numel() >= _LOOKUP_FROM and len(self.values) < _AMBIGUOUS:
            return self._encode_by_lookup(x.contiguous())
        return self._encode_by_search(x)

    def _encode_by_search(self, x: Tensor) -> Tensor:
        ordered, first = self._ordered()
        middles = middles_below(ordered).to(x.device)
        place = torch.bucketize(x, middles, out_int32=True)
        if bool((first == torch.arange(len(first), dtype=torch.uint8)).all()):
            return place.to(torch.uint8)
        return first.to(x.device).index_select(0, place.view(-1)).view(x.shape)

    def _encode_by_lookup(self, x: Tensor) -> Tensor:
        """Return the same codes: the upper 16 bits decide nearly every value, the few others are searched."""
        key = (x.view(-1).view(torch.int32) >> 16).bitwise_and_(0xFFFF)
        codes = _codes_of_upper_bits(self).index_select(0, key)
        open_places = torch.nonzero(codes == _AMBIGUOUS).view(-1)
        codes[open_places] = self._encode_by_search(x.view(-1)[open_places])
        return codes.view(x.shape)

    def decode(self, codes: Tensor) -> Tensor:
        return take_levels(self.levels(), codes)

    def round(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))


@functools.cache
def _codes_of_upper_bits(grid: TableGrid) -> Tensor:
    """Return uint8 ``[65536]``: the code of the float32 values with these upper bits, 255 if they have several."""
    first = torch.arange(1 << 16, dtype=torch.int32) << 16
    ends = [grid._encode_by_search(bits.view(torch.float32)) for bits in (first, first | 0xFFFF)]
    return torch.where(ends[0] == ends[1], ends[0], torch.full_like(ends[0], _AMBIGUOUS))


def table(values: tuple[float, ...] | list[float]) -> TableGrid:
    """Return a grid for any levels; its text is ``table[v0,v1,...]`` with float32 values."""
    exact = torch.tensor(list(values), dtype=torch.float32).tolist()
    return TableGrid("table[" + ",".join(f"{value:.9g}" for value in exact) + "]", tuple(exact))


class LearnedGrid(ABC):
    """What grids share whose levels travel with the tensor: by themselves they have none, and refuse to round."""

    @property
    @abstractmethod
    def text(self) -> str:
        """The word in a format's text."""

    @property
    def affine(self) -> bool:
        return False

    @property
    def max_level(self) -> float:
        return 1.0

    @property
    def min_level(self) -> float:
        return -1.0

    def _refuse(self) -> InputError:
        return InputError(f"{self.text} has no levels of its own; give the tensor's codebook to the format's methods")

    def levels(self) -> Tensor:
        raise self._refuse()

    def encode(self, x: Tensor) -> Tensor:
        raise self._refuse()

    def decode(self, codes: Tensor) -> Tensor:
        raise self._refuse()

    def round(self, x: Tensor) -> Tensor:
        raise self._refuse()


@dataclass(frozen=True)
class CodebookGrid(LearnedGrid):
    """A learned table of ``2^bits`` levels that travels with the tensor, one per scale group (text ``lut4``).

    ``levels``, ``encode``, ``decode`` and ``round`` of the plain grid are refused: use the format's own, which take the
    codebook ``[rows, groups, 2^bits]``.

    Raises:
        InputError: bits outside 1..8.
    """

    bits: int

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 8:
            raise InputError(f"a codebook grid has 1 to 8 bits, not {self.bits}; choose lut1 to lut8")

    @property
    def text(self) -> str:
        return f"lut{self.bits}"

    @property
    def span(self) -> int:
        return 1

    @property
    def kind(self) -> str:
        return "codebook"

    def encode_with(self, x: Tensor, codebook: Tensor) -> Tensor:
        """Return uint8 codes of ``x[rows, groups, n]`` in ``codebook[rows, groups, 2^bits]``, ties to the smaller.

        The codebook need not be sorted; of equal levels any may be named.
        """
        ordered, order = codebook.to(torch.float32).sort(dim=-1, stable=True)
        place = torch.searchsorted(middles_below(ordered).contiguous(), x.to(torch.float32).contiguous())
        return order.gather(-1, place).to(torch.uint8)

    def decode_with(self, codes: Tensor, codebook: Tensor) -> Tensor:
        """Return float32 levels of ``codes[rows, groups, n]``."""
        return codebook.to(torch.float32).gather(-1, codes.to(torch.int64))
