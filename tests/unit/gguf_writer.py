"""Writes GGUF files byte by byte, right ones and wrong ones."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from bitwright.interop.gguf import TYPES


def text(value: str | bytes) -> bytes:
    """A string with its length."""
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def pair(key: str | bytes, kind: int, value: bytes) -> bytes:
    """A key with its type and value."""
    return text(key) + struct.pack("<I", kind) + value


def array(kind: int, count: int, values: bytes) -> bytes:
    """The value of an array."""
    return struct.pack("<IQ", kind, count) + values


def info(name: str, sides: tuple[int, ...], kind: int, offset: int) -> bytes:
    """A tensor's entry; the row's length is the first side."""
    dims = struct.pack(f"<I{len(sides)}Q", len(sides), *sides)
    return text(name) + dims + struct.pack("<IQ", kind, offset)


def size(sides: tuple[int, ...], kind: int) -> int:
    """Bytes of a tensor."""
    count = 1
    for side in sides:
        count *= side
    return count // TYPES[kind].values * TYPES[kind].bytes


@dataclass
class Wanted:
    """What to write; ``tensors`` and ``pairs`` may lie about themselves, and so may the counts."""

    pairs: list[bytes] = field(default_factory=list)
    infos: list[bytes] = field(default_factory=list)
    data: bytes = b""
    magic: bytes = b"GGUF"
    version: int = 3
    alignment: int = 32
    counts: tuple[int, int] | None = None

    def bytes(self) -> bytes:
        """The file."""
        tensors, pairs = self.counts or (len(self.infos), len(self.pairs))
        head = self.magic + struct.pack("<IQQ", self.version, tensors, pairs) + b"".join(self.pairs + self.infos)
        return head + bytes(-len(head) % self.alignment) + self.data


def valid() -> Wanted:
    """A file with every type of value, and tensors of two types."""
    numbers = [pair(f"n.{i}", kind, struct.pack(f"<{code}", 1)) for i, (kind, code) in enumerate(_CODES)]
    words = array(8, 2, text("a") + text("ü"))
    lists = [
        pair("list.words", 8 + 1, words),
        pair("list.numbers", 9, array(5, 3, struct.pack("<3i", 1, -2, 3))),
        pair("list.truths", 9, array(7, 2, b"\x00\x01")),
        pair("list.lists", 9, array(9, 2, array(4, 1, struct.pack("<I", 7)) + words)),
        pair("general.architecture", 8, text("llama")),
    ]
    infos = [info("a.weight", (32, 2), 8, 0), info("b.bias", (3,), 0, 96)]
    data = bytes(68) + bytes(28) + struct.pack("<3f", 1.0, 2.0, 3.0)
    return Wanted(numbers + lists, infos, data)


_CODES = (
    (0, "B"),
    (1, "b"),
    (2, "H"),
    (3, "h"),
    (4, "I"),
    (5, "i"),
    (6, "f"),
    (7, "B"),
    (10, "Q"),
    (11, "q"),
    (12, "d"),
)
