"""Reads a GGUF file's header: metadata and where its tensors lie. Nothing in it is believed before it is checked."""

from __future__ import annotations

import math
import mmap
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bitwright.errors import InputError
from bitwright.interop.gguf.cursor import Cursor, Value
from bitwright.interop.gguf.dequantize import dequantize
from bitwright.interop.gguf.types import TYPES, BlockType

MAGIC = b"GGUF"
ALIGNMENT = "general.alignment"
_VERSIONS = (2, 3)
_DEFAULT_ALIGNMENT = 32
_MOST_ALIGNMENT = 1 << 30
_MOST_KEYS, _MOST_TENSORS = 1 << 16, 1 << 18
_KEY_BYTES, _NAME_BYTES = (1 << 16) - 1, 1024
_MOST_DIMS = 4
# A key-value pair: length and one byte of key, type, one byte. A tensor: length and one byte, dims, type, offset.
_PAIR_BYTES, _TENSOR_BYTES = 8 + 1 + 4 + 1, 8 + 1 + 4 + 8 + 4 + 8


@dataclass(frozen=True)
class TensorEntry:
    """A tensor of the file: ``shape`` as torch says it (rows first); ``start`` and ``stop`` are bytes of the file."""

    name: str
    type: BlockType
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def bytes(self) -> int:
        """Stored bytes."""
        return self.stop - self.start


@dataclass(frozen=True)
class GgufFile:
    """A checked file; tensors are read when they are asked for."""

    path: Path
    version: int
    alignment: int
    metadata: Mapping[str, Value]
    tensors: Mapping[str, TensorEntry]
    _data: memoryview = field(repr=False, compare=False)

    def raw(self, name: str) -> memoryview:
        """A tensor's bytes.

        Raises:
            InputError: if there is no such tensor.
        """
        if name not in self.tensors:
            raise InputError(f"{self.path}: there is no tensor {name!r}; `bitwright inspect` lists them")
        entry = self.tensors[name]
        return self._data[entry.start : entry.stop]

    def load(self, name: str) -> Tensor:
        """A tensor's values as float32 (float64 and integers in their own type).

        Raises:
            InputError: if there is no such tensor, or its type is not read.
        """
        raw, entry = self.raw(name), self.tensors[name]
        values: NDArray[np.generic] = dequantize(np.frombuffer(raw, np.uint8), entry.type)
        return torch.from_numpy(values.reshape(entry.shape))


def is_gguf(path: Path) -> bool:
    """Whether a file says that it is GGUF."""
    try:
        with path.open("rb") as file:
            return file.read(4) == MAGIC
    except OSError:
        return False


def read_gguf(path: Path) -> GgufFile:
    """Read and check the header of a file.

    Raises:
        InputError: if it cannot be read, is not GGUF of version 2 or 3, or says something that cannot be true.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b"")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; give a GGUF file") from None
    cursor = Cursor(data, str(path))
    version = _version(cursor)
    tensors = cursor.count(_TENSOR_BYTES, _MOST_TENSORS, "tensors")
    pairs = cursor.count(_PAIR_BYTES, _MOST_KEYS, "keys")
    metadata = _metadata(cursor, pairs)
    alignment = _alignment(cursor, metadata)
    entries = [_entry(cursor) for _ in range(tensors)]
    start = -(-cursor.place // alignment) * alignment
    found: dict[str, TensorEntry] = {}
    for name, kind, shape, offset in entries:
        if name in found:
            raise cursor.wrong(f"two tensors are called {name!r}")
        if offset % alignment:
            raise cursor.wrong(f"tensor {name!r} begins at {offset:,}, which is no multiple of {alignment}")
        stop = start + offset + math.prod(shape) // kind.values * kind.bytes
        if stop > len(data):
            raise cursor.wrong(f"tensor {name!r} ends at byte {stop:,} and the file at {len(data):,}")
        found[name] = TensorEntry(name, kind, shape, start + offset, stop)
    _check_overlaps(cursor, found)
    return GgufFile(path, version, alignment, metadata, found, data)


def _version(cursor: Cursor) -> int:
    if bytes(cursor.take(4, "the magic")) != MAGIC:
        raise cursor.wrong("it does not begin as GGUF files do")
    found = cursor.unsigned(4, "the version")
    if found in _VERSIONS:
        return found
    if int.from_bytes(found.to_bytes(4, "little"), "big") in _VERSIONS:
        raise cursor.wrong("it was written for a big-endian machine")
    raise cursor.wrong(f"it has version {found} and 2 and 3 are read")


def _metadata(cursor: Cursor, count: int) -> dict[str, Value]:
    found: dict[str, Value] = {}
    for _ in range(count):
        key = cursor.string("a key", _KEY_BYTES)
        if not key or key in found:
            raise cursor.wrong(f"two keys are called {key!r}" if key else "a key is empty")
        kind = cursor.unsigned(4, f"the type of key {key!r}")
        found[key] = cursor.value(kind, f"key {key!r}")
    return found


def _alignment(cursor: Cursor, metadata: Mapping[str, Value]) -> int:
    found = metadata.get(ALIGNMENT, _DEFAULT_ALIGNMENT)
    whole = isinstance(found, int) and not isinstance(found, bool)
    if not whole or not 0 < found <= _MOST_ALIGNMENT or found & (found - 1):  # type: ignore[operator]
        raise cursor.wrong(f"{ALIGNMENT} is {found!r} and has to be a power of two")
    return int(found)  # type: ignore[arg-type]


def _entry(cursor: Cursor) -> tuple[str, BlockType, tuple[int, ...], int]:
    """Name, type, shape and offset of the next tensor."""
    name = cursor.string("a tensor's name", _NAME_BYTES)
    if not name:
        raise cursor.wrong("a tensor has no name")
    dims = cursor.unsigned(4, f"the dimensions of {name!r}")
    if not 0 < dims <= _MOST_DIMS:
        raise cursor.wrong(f"tensor {name!r} has {dims:,} dimensions and 1 to {_MOST_DIMS} are read")
    sides = [cursor.unsigned(8, f"the shape of {name!r}") for _ in range(dims)]
    number = cursor.unsigned(4, f"the type of {name!r}")
    offset = cursor.unsigned(8, f"the offset of {name!r}")
    if number not in TYPES:
        raise cursor.wrong(f"tensor {name!r} has the unknown type {number}")
    kind = TYPES[number]
    if min(sides) < 1 or math.prod(sides) >= 1 << 62:
        raise cursor.wrong(f"tensor {name!r} has the shape {sides}")
    if sides[0] % kind.values:
        raise cursor.wrong(f"tensor {name!r} has rows of {sides[0]:,} and {kind.name} comes in blocks of {kind.values}")
    return name, kind, tuple(reversed(sides)), offset


def _check_overlaps(cursor: Cursor, tensors: Mapping[str, TensorEntry]) -> None:
    ordered = sorted(tensors.values(), key=lambda entry: entry.start)
    for before, after in pairwise(ordered):
        if after.start < before.stop:
            raise cursor.wrong(f"tensors {before.name!r} and {after.name!r} share bytes")
