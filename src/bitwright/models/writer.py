"""Write safetensors files tensor by tensor, atomically, with raw bytes where nothing changed.

A file is written beside its name (``NAME.partial``), synced, and renamed; a reader never sees half a file.
"""

from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from bitwright.errors import InputError
from bitwright.models.checkpoint import TORCH_DTYPES
from bitwright.models.header import stored_bytes

logger = logging.getLogger(__name__)

INDEX_NAME = "model.safetensors.index.json"
_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}


@dataclass(frozen=True)
class TensorLayout:
    """What a header says of a tensor before its bytes exist: safetensors dtype name and shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Stored size in bytes."""
        return stored_bytes(self.dtype, self.shape)


@dataclass(frozen=True)
class RawTensor:
    """A tensor given as stored bytes in pieces (never turned into a torch tensor)."""

    layout: TensorLayout
    chunks: Iterable[bytes | memoryview]


def layout_of(tensor: torch.Tensor) -> TensorLayout:
    """The layout of a torch tensor.

    Raises:
        InputError: for a dtype that safetensors does not have.
    """
    if tensor.dtype not in _NAMES:
        raise InputError(f"a tensor of {tensor.dtype} cannot be stored in safetensors; convert it first")
    return TensorLayout(_NAMES[tensor.dtype], tuple(tensor.shape))


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor in row-major order (little endian, as the format demands)."""
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy().data).cast("B") if flat.numel() else memoryview(b"")


class ShardWriter:
    """One safetensors file whose layout is known before its data; tensors may arrive in any order.

    Use as a context manager: a normal exit checks that every tensor was written, syncs and renames; an exception
    removes the partial file.
    """

    def __init__(
        self, path: str | Path, layouts: Mapping[str, TensorLayout], metadata: Mapping[str, str] | None = None
    ) -> None:
        self.path = Path(path)
        self.partial = self.path.with_name(self.path.name + ".partial")
        # Wide elements first, so that every tensor is aligned to its element (the header is padded to 8).
        ordered = sorted(layouts.items(), key=lambda item: (-_alignment(item[1]), item[0]))
        header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
        position = 0
        self._spans: dict[str, tuple[int, int]] = {}
        for name, layout in ordered:
            stop = position + layout.bytes
            header[name] = {"dtype": layout.dtype, "shape": list(layout.shape), "data_offsets": [position, stop]}
            self._spans[name] = (position, stop)
            position = stop
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        self._start = 8 + len(text)
        self._size = self._start + position
        self._pending = set(self._spans)
        with _clear_errors(self.path):
            self._file = self.partial.open("wb")
            try:
                self._file.write(len(text).to_bytes(8, "little") + text)
            except OSError:
                self.abort()
                raise

    def write(self, name: str, data: torch.Tensor | bytes | memoryview | Iterable[bytes | memoryview]) -> None:
        """Write the bytes of one tensor; iterables are written piece by piece.

        Raises:
            InputError: for a name that was not announced or came before, a wrong length, or a full disk.
        """
        if name not in self._pending:
            raise InputError(f"{self.path}: tensor {name!r} was not announced, or written twice")
        start, stop = self._spans[name]
        if isinstance(data, torch.Tensor):
            pieces: Iterable[bytes | memoryview] = [tensor_bytes(data)]
        else:
            pieces = [data] if isinstance(data, bytes | memoryview) else data
        written = 0
        with _clear_errors(self.path):
            self._file.seek(self._start + start)
            for piece in pieces:
                written += len(piece) if isinstance(piece, bytes) else piece.nbytes
                if written > stop - start:
                    break
                self._file.write(piece)
        if written != stop - start:
            raise InputError(f"{self.path}: tensor {name!r} needs {stop - start} bytes and got {written}")
        self._pending.discard(name)

    def close(self) -> None:
        """Check completeness, sync to disk and rename to the final name.

        Raises:
            InputError: when tensors are missing or the disk refuses.
        """
        if self._pending:
            raise InputError(f"{self.path}: {len(self._pending)} tensors were not written, e.g. {min(self._pending)!r}")
        with _clear_errors(self.path):
            self._file.truncate(self._size)
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            os.replace(self.partial, self.path)
            sync_folder(self.path.parent)

    def abort(self) -> None:
        """Remove the partial file."""
        try:
            self._file.close()
        except OSError:  # a full disk cannot take what is still in memory; that is no loss here
            logger.debug("%s: what was left to write is dropped", self.partial)
        finally:
            self.partial.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.abort()
            return
        try:
            self.close()
        except BaseException:
            self.abort()
            raise


def write_safetensors(
    path: str | Path, tensors: Mapping[str, torch.Tensor | RawTensor], metadata: Mapping[str, str] | None = None
) -> int:
    """Write one file atomically and return its size in bytes.

    Raises:
        InputError: for a dtype that cannot be stored, wrong byte counts, or a disk that is full or read-only.
    """
    layouts = {name: value.layout if isinstance(value, RawTensor) else layout_of(value)
               for name, value in tensors.items()}  # fmt: skip
    with ShardWriter(path, layouts, metadata) as writer:
        for name, value in tensors.items():
            writer.write(name, value.chunks if isinstance(value, RawTensor) else value)
    return Path(path).stat().st_size


def write_index(
    folder: str | Path, weight_map: Mapping[str, str], total_size: int, metadata: Mapping[str, object] | None = None
) -> Path:
    """Write ``model.safetensors.index.json`` atomically; ``total_size`` counts tensor bytes."""
    head = {**(metadata or {}), "total_size": total_size}
    content = {"metadata": head, "weight_map": dict(sorted(weight_map.items()))}
    path = Path(folder) / INDEX_NAME
    write_text(path, json.dumps(content, indent=2) + "\n")
    return path


def write_text(path: str | Path, text: str) -> None:
    """Write a small text file atomically (beside, sync, rename)."""
    target = Path(path)
    partial = target.with_name(target.name + ".partial")
    with _clear_errors(target):
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, target)
        sync_folder(target.parent)


def plan_shards(sizes: Mapping[str, int], max_bytes: int) -> list[tuple[str, ...]]:
    """Split names (in their order) into shards of at most ``max_bytes``; a larger tensor gets a shard of its own."""
    shards: list[tuple[str, ...]] = []
    current: list[str] = []
    filled = 0
    for name, size in sizes.items():
        if current and filled + size > max_bytes:
            shards.append(tuple(current))
            current, filled = [], 0
        current.append(name)
        filled += size
    return [*shards, tuple(current)] if current else shards


def shard_name(number: int, count: int) -> str:
    """File name of shard ``number`` (from 1) of ``count``, as the ecosystem names it."""
    return "model.safetensors" if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"


def sync_folder(folder: Path) -> None:
    """Make a rename in ``folder`` survive a power loss."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _alignment(layout: TensorLayout) -> int:
    dtype = TORCH_DTYPES.get(layout.dtype)
    return dtype.itemsize if dtype is not None else 1


class _clear_errors:
    """Turn errors of the disk into one sentence with the mend."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not isinstance(error, OSError):
            return
        mends = {
            errno.ENOSPC: "the disk is full; free some space and run the same command again",
            errno.EROFS: "the disk is read-only; choose another output folder",
            errno.EACCES: "writing is not permitted; choose another output folder",
            errno.ENOENT: "the folder does not exist; create it first",
        }
        mend = mends.get(error.errno or 0, f"{error.strerror or error}; check the disk")
        raise InputError(f"{self.path}: {mend}") from error
