"""The header of a safetensors file, checked completely before a single byte of tensor data is touched.

File layout (the safetensors specification): an unsigned 64-bit little-endian length ``n``, then ``n`` bytes of JSON
``{name: {"dtype", "shape", "data_offsets": [start, stop]}}`` with an optional ``__metadata__`` of strings, then the
data. Offsets count from the end of the header. Nothing in the file is trusted: every number is checked against the
size of the file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitwright.errors import InputError

# The format allows 100 MB; a quarter of it describes 200,000 tensors in one shard, and parsed JSON takes many times its
# size in memory.
MAX_HEADER_BYTES = 25_000_000
MAX_DIMENSIONS = 64
MAX_NAME = 4096
# Commas and brackets of a JSON file: each begins at most two values, so they bound what parsing it allocates.
MAX_JSON_MARKS = 2_500_000
MAX_JSON_DEPTH = 64
# What the first bytes of other files say.
MAGIC = {
    b"GGUF": "a GGUF file, which Bitwright inspects but does not open as a model: give the model's safetensors",
    b"PK\x03\x04": "a zip archive or a pickle of torch, which can run code: convert it to safetensors",
    b"\x80": "a pickle, which can run code: convert it to safetensors",
    b"\x89HDF": "an HDF5 file: convert it to safetensors",
    b"version https://git-lfs": "a pointer of Git LFS and not the file itself: fetch it (git lfs pull)",
}

# Stored bits of one element of every dtype that the format names.
DTYPE_BITS: Mapping[str, int] = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64,
    "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip


@dataclass(frozen=True)
class HeaderEntry:
    """One tensor as its header describes it; ``start`` and ``stop`` are byte positions in the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Header:
    """A checked header: the tensors in file order, the metadata, and the raw JSON bytes (for fingerprints)."""

    entries: dict[str, HeaderEntry]
    metadata: dict[str, str]
    raw: bytes
    file_size: int


def stored_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes that a tensor of ``dtype`` and ``shape`` takes in a file.

    Raises:
        InputError: for an unknown dtype, or where the elements do not fill whole bytes.
    """
    if dtype not in DTYPE_BITS:
        raise InputError(f"the dtype {dtype!r} is not one that safetensors knows ({', '.join(sorted(DTYPE_BITS))})")
    bits = DTYPE_BITS[dtype]
    for size in shape:
        bits *= size
    if bits % 8:
        raise InputError(f"a tensor of dtype {dtype} and shape {list(shape)} does not fill whole bytes")
    return bits // 8


def read_header(path: Path) -> Header:
    """Read and check the header of one safetensors file.

    Raises:
        InputError: when the file is missing, cut off, or its header contradicts itself or the size of the file.
    """
    try:
        if not path.is_file():  # a pipe would never end, a device has no size
            raise InputError(f"{path}: is no regular file; give a safetensors file")
        size = path.stat().st_size
        with path.open("rb") as file:
            first = file.read(32)
            _refuse_other_files(path, first)
            if len(first) < 8:
                raise InputError(f"{path}: the file is only {size} bytes long; download the shard again")
            count = int.from_bytes(first[:8], "little")
            if 8 + count > size:
                raise InputError(
                    f"{path}: the header claims {count} bytes but the file has {size}; this is no safetensors file "
                    "or it was cut off: download it again"
                )
            if count > MAX_HEADER_BYTES:
                raise InputError(
                    f"{path}: the header has {count} bytes, at most {MAX_HEADER_BYTES} are read; split the file"
                )
            if count and first[8:9] != b"{":
                raise InputError(f"{path}: the header is not valid JSON (not a JSON object); download the file again")
            file.seek(8)
            raw = file.read(count)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from error
    return parse_header(raw, size, str(path))


def _refuse_other_files(path: Path, first: bytes) -> None:
    for magic, what in MAGIC.items():
        # A header of a length that ends in 0x80 is followed by JSON, a pickle is not.
        if first.startswith(magic) and first[8:9] != b"{":
            raise InputError(f"{path}: is {what}")


def parse_json(raw: bytes, strict: bool = False) -> Any:
    """Parse JSON of a stranger in bounded memory and depth; ``strict`` refuses ``NaN`` and a key that appears twice.

    Raises:
        ValueError: saying what is wrong.
    """
    marks = sum(raw.count(mark) for mark in (b",", b"[", b"{"))
    if marks > MAX_JSON_MARKS:
        raise ValueError(f"it has more than {MAX_JSON_MARKS} values")
    try:
        text = raw.decode("utf-8")
        if strict:
            parsed = json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_no_constant)
        else:  # configs in the wild hold Infinity
            parsed = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    _check_depth(parsed)
    return parsed


def _check_depth(parsed: Any) -> None:
    level, depth = [parsed], 0
    while level:
        if depth > MAX_JSON_DEPTH:
            raise ValueError(f"it is nested deeper than {MAX_JSON_DEPTH} levels")
        inner = [item for item in level if isinstance(item, dict | list)]
        level = [value for item in inner for value in (item.values() if isinstance(item, dict) else item)]
        depth += 1


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is no JSON")


def parse_header(raw: bytes, file_size: int, where: str) -> Header:
    """Check the JSON of a header against the size of its file; ``where`` names the file in errors.

    Raises:
        InputError: naming the first entry that is wrong.
    """
    try:
        parsed = parse_json(raw, strict=True)
    except ValueError as error:
        raise InputError(f"{where}: the header is not valid JSON ({error}); download the file again") from error
    if not isinstance(parsed, dict):
        raise InputError(f"{where}: the header is not a JSON object; download the file again")
    metadata = _check_metadata(parsed.pop("__metadata__", {}), where)
    data_start = 8 + len(raw)
    entries = {name: _check_entry(name, value, data_start, file_size, where) for name, value in parsed.items()}
    ordered = dict(sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)))
    position = data_start
    for name, entry in ordered.items():
        if entry.start != position:
            word = "overlaps the tensor before it" if entry.start < position else "leaves a hole before it"
            raise InputError(f"{where}: tensor {name!r} {word}; the file is damaged or forged: download it again")
        position = entry.stop
    if position != file_size:
        raise InputError(
            f"{where}: its tensors end at byte {position} but the file has {file_size}; it was cut off or "
            "appended to: download it again"
        )
    return Header(ordered, metadata, raw, file_size)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key appears twice")
    return result


def _check_metadata(value: Any, where: str) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise InputError(f"{where}: __metadata__ is not a map of strings; download the file again")
    return value


def _check_entry(name: str, value: Any, data_start: int, file_size: int, where: str) -> HeaderEntry:
    if len(name) > MAX_NAME or not _encodable(name):
        raise InputError(f"{where}: the tensor name {name[:40]!r} is too long or no Unicode; download the file again")
    wrong = f"{where}: tensor {name!r}"
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise InputError(f"{wrong} must have exactly dtype, shape and data_offsets; download the file again")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2:
        raise InputError(f"{wrong} has a malformed dtype, shape or data_offsets; download the file again")
    if len(shape) > MAX_DIMENSIONS:
        raise InputError(f"{wrong} has {len(shape)} dimensions (at most {MAX_DIMENSIONS}); download the file again")
    try:
        expected = stored_bytes(dtype, tuple(shape))
    except InputError as error:
        raise InputError(f"{wrong}: {error}") from error
    start, stop = offsets
    if stop - start != expected:
        raise InputError(
            f"{wrong}: dtype {dtype} and shape {shape} need {expected} bytes, its offsets give {stop - start}; "
            "the file is damaged or forged: download it again"
        )
    if math.prod(size for size in shape if size) >= 2**60:  # torch counts bytes in 63 bits, also beside a zero
        raise InputError(f"{wrong} has the absurd shape {shape}; the file is damaged or forged: download it again")
    if data_start + stop > file_size:
        raise InputError(f"{wrong} ends behind the end of the file; it was cut off: download it again")
    return HeaderEntry(dtype, tuple(shape), data_start + start, data_start + stop)


def _encodable(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in name


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)
