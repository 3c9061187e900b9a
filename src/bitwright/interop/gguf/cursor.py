"""Reads values from a buffer, one behind the other; every length is held against what is left before it is used."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from bitwright.errors import InputError

Number = int | float | bool
Value = Number | str | NDArray[np.generic] | tuple["Value", ...]
"""A metadata value; arrays of numbers are numpy arrays, arrays of strings and of arrays are tuples."""

_NUMBERS: Mapping[int, str] = MappingProxyType({
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "<u1", 10: "<u8", 11: "<i8", 12: "<f8",
})  # fmt: skip
_BOOL, _STRING, _ARRAY = 7, 8, 9
# Arrays in arrays: none are known to be in use; a few levels are read.
_DEPTH = 4
# Strings and arrays within one array; a vocabulary has some hundred thousand. Numbers are bounded by the file alone.
_ITEMS = 1 << 24


class Cursor:
    """A place in a buffer.

    Args:
        data: the whole file.
        where: what errors call it.
    """

    def __init__(self, data: memoryview, where: str) -> None:
        self._data = data
        self._where = where
        self.place = 0

    @property
    def left(self) -> int:
        """Bytes behind the place."""
        return len(self._data) - self.place

    def wrong(self, why: str) -> InputError:
        """The error of a file that cannot be trusted."""
        return InputError(f"{self._where}: {why}; download or convert the file again")

    def take(self, count: int, what: str) -> memoryview:
        """The next ``count`` bytes.

        Raises:
            InputError: if the file ends before.
        """
        if count > self.left:
            raise self.wrong(f"{what} wants {count:,} bytes at byte {self.place:,} and {self.left:,} are left")
        self.place += count
        return self._data[self.place - count : self.place]

    def unsigned(self, size: int, what: str) -> int:
        """An unsigned integer of ``size`` bytes."""
        return int.from_bytes(self.take(size, what), "little")

    def count(self, least: int, most: int, what: str) -> int:
        """A number of things that take at least ``least`` bytes each.

        Raises:
            InputError: if they are more than ``most`` or than the file can hold.
        """
        found = self.unsigned(8, f"the number of {what}")
        if found > most or found * least > self.left:
            raise self.wrong(f"it says that it holds {found:,} {what}, which cannot be in the {self.left:,} bytes left")
        return found

    def string(self, what: str, most: int = 1 << 40) -> str:
        """A string of at most ``most`` bytes in UTF-8."""
        length = self.unsigned(8, f"the length of {what}")
        if length > most:
            raise self.wrong(f"{what} says that it has {length:,} bytes and {most:,} are allowed")
        try:
            return bytes(self.take(length, what)).decode("utf-8")
        except UnicodeDecodeError:
            raise self.wrong(f"{what} is not UTF-8") from None

    def value(self, kind: int, what: str, depth: int = 0) -> Value:
        """A metadata value of type ``kind``."""
        if kind in _NUMBERS:
            return self._number(kind, what)
        if kind == _STRING:
            return self.string(what)
        if kind == _ARRAY:
            return self._array(what, depth)
        raise self.wrong(f"{what} has the unknown value type {kind}")

    def _number(self, kind: int, what: str) -> Number:
        code = _NUMBERS[kind]
        found = struct.unpack(f"<{_STRUCT[code]}", self.take(int(code[-1]), what))[0]
        if kind == _BOOL and found > 1:
            raise self.wrong(f"{what} is a truth value of {found}")
        return bool(found) if kind == _BOOL else found  # type: ignore[no-any-return]

    def _array(self, what: str, depth: int) -> Value:
        if depth == _DEPTH:
            raise self.wrong(f"{what} is an array within more than {_DEPTH} arrays")
        kind = self.unsigned(4, f"the type of {what}")
        if kind in _NUMBERS:
            code = _NUMBERS[kind]
            count = self.count(int(code[-1]), 1 << 62, f"numbers of {what}")
            numbers = np.frombuffer(self.take(count * int(code[-1]), what), dtype=code)
            if kind == _BOOL and (numbers > 1).any():
                raise self.wrong(f"{what} holds truth values other than 0 and 1")
            return numbers.astype(bool) if kind == _BOOL else numbers.copy()
        if kind not in (_STRING, _ARRAY):
            raise self.wrong(f"{what} is an array of the unknown value type {kind}")
        least = 8 if kind == _STRING else 12
        count = self.count(least, _ITEMS, f"items of {what}")
        return tuple(self.value(kind, what, depth + 1) for _ in range(count))


_STRUCT = MappingProxyType({
    "<u1": "B", "<i1": "b", "<u2": "H", "<i2": "h", "<u4": "I", "<i4": "i", "<f4": "f", "<u8": "Q", "<i8": "q",
    "<f8": "d",
})  # fmt: skip
