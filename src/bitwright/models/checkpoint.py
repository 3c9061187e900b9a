"""A checkpoint on disk: a folder of safetensors shards, opened without reading a single weight.

Everything that the folder claims is checked when it is opened (see :mod:`bitwright.models.header`); weights are then
read through memory maps, so a checkpoint of any size costs only the pages that are touched.
"""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bitwright.errors import InputError, nearest_key
from bitwright.models.header import Header, parse_json, read_header

MAX_JSON_BYTES = 64 * 2**20
PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".h5", ".msgpack"})
TORCH_DTYPES: Mapping[str, torch.dtype] = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "U16": torch.uint16,
    "I32": torch.int32, "U32": torch.uint32, "I64": torch.int64, "U64": torch.uint64, "F16": torch.float16,
    "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64, "C64": torch.complex64,
    "F8_E5M2": torch.float8_e5m2, "F8_E4M3": torch.float8_e4m3fn, "F8_E8M0": torch.float8_e8m0fnu,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz, "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
}  # fmt: skip


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies: shard file name, safetensors dtype, shape, byte positions in the shard."""

    shard: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def bytes(self) -> int:
        """Stored size in bytes."""
        return self.stop - self.start


@dataclass
class Checkpoint:
    """Checked headers of a checkpoint folder; load tensors one by one with :meth:`load` or :meth:`raw`."""

    path: Path
    tensors: dict[str, TensorInfo]
    config: dict[str, Any]
    headers: dict[str, Header]
    extra_files: tuple[Path, ...]
    unindexed: tuple[str, ...] = ()
    _maps: dict[str, mmap.mmap] = field(default_factory=dict, repr=False)

    @classmethod
    def open(cls, path: str | Path) -> Checkpoint:
        """Open a folder (single file or index) or one ``.safetensors`` file.

        Raises:
            InputError: when the folder has no safetensors weights, a shard is missing, cut off or lies, a shard name
                or link leaves the folder, or only pickled weights are there.
        """
        place = Path(path)
        if place.is_file():
            _refuse_pickle(place)
            folder, weight_map, shards = place.parent, None, [place.name]
            config: dict[str, Any] = {}
        elif place.is_dir():
            folder = place
            weight_map, shards = _find_shards(folder)
            config = read_json(inside(folder, "config.json")) if (folder / "config.json").exists() else {}
        else:
            raise InputError(f"{place}: no such folder or file; give a folder that holds config.json and safetensors")
        headers = {shard: read_header(inside(folder, shard)) for shard in shards}
        tensors, unindexed = _collect(folder, headers, weight_map)
        extra = _extra_files(folder, set(shards)) if place.is_dir() else ()
        return cls(folder, tensors, config, headers, extra, unindexed)

    def raw(self, name: str) -> memoryview:
        """The stored bytes of a tensor, as a view of the file (for copies byte by byte)."""
        info = self._info(name)
        if info.start == info.stop:
            return memoryview(b"")
        return memoryview(self._map(info.shard))[info.start : info.stop]

    def load(self, name: str) -> torch.Tensor:
        """The tensor in its stored dtype; its memory is a private map of the file, pages are read when touched.

        Raises:
            InputError: for an unknown name or a dtype that torch does not have.
        """
        info = self._info(name)
        if info.dtype not in TORCH_DTYPES:
            raise InputError(f"tensor {name!r} has dtype {info.dtype}, which torch cannot hold; keep it by raw copy")
        dtype = TORCH_DTYPES[info.dtype]
        if info.start == info.stop:
            return torch.empty(info.shape, dtype=dtype)
        count = info.bytes // dtype.itemsize
        if info.start % dtype.itemsize:
            buffer = bytearray(self.raw(name))
            return torch.frombuffer(buffer, dtype=dtype, count=count).reshape(info.shape)
        flat = torch.frombuffer(self._map(info.shard), dtype=dtype, count=count, offset=info.start)
        return flat.reshape(info.shape)

    def fingerprint(self) -> str:
        """A sha256 over every header, file size and the config; it names the checkpoint without reading all bytes."""
        digest = hashlib.sha256()
        for shard in sorted(self.headers):
            header = self.headers[shard]
            digest.update(f"{shard}\0{header.file_size}\0".encode())
            digest.update(header.raw)
        digest.update(json.dumps(self.config, sort_keys=True).encode())
        return digest.hexdigest()

    def close(self) -> None:
        """Forget the memory maps; the memory goes when the last tensor that looks into them goes."""
        self._maps.clear()

    def _info(self, name: str) -> TensorInfo:
        if name not in self.tensors:
            raise InputError(f"{self.path} has no tensor {name!r}; {nearest_key(name, self.tensors)}")
        return self.tensors[name]

    def _map(self, shard: str) -> mmap.mmap:
        if shard not in self._maps:
            path = inside(self.path, shard)
            with path.open("rb") as file:
                # Copy-on-write: torch gets a writable buffer, the file can never be changed through it.
                view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            if len(view) != self.headers[shard].file_size:
                raise InputError(f"{path}: the file changed while it was open; do not write into the model's folder")
            self._maps[shard] = view
        return self._maps[shard]


def inside(folder: Path, name: str) -> Path:
    """The path of ``name`` in ``folder``, refused if it or its link leads out (a hub cache's blobs are allowed).

    Raises:
        InputError: for a name with separators, or a link that leaves the folder.
    """
    plain = name and name not in {".", ".."} and not any(mark in name for mark in "/\\\0:")
    if not plain or len(name.encode(errors="replace")) > 255:
        raise InputError(f"{folder}: the file name {name[:255]!r} leaves the folder; only plain names are accepted")
    path = folder / name
    if not path.exists():
        raise InputError(f"{path}: the file is missing; download the model again or mend its index")
    resolved, roots = path.resolve(), [folder.resolve()]
    if folder.resolve().parent.name == "snapshots":
        roots.append(folder.resolve().parent.parent / "blobs")
    if not any(resolved.is_relative_to(root) for root in roots):
        raise InputError(f"{path}: is a link that leaves the folder; copy the real file there")
    if not resolved.is_file():
        raise InputError(f"{path}: is no regular file; put the real file there")
    return path


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object of at most 64 MiB and 64 levels.

    Raises:
        InputError: when it is too large, unreadable or not an object.
    """
    try:
        if not path.is_file():
            raise InputError(f"{path}: is no regular file; put the real file there")
        if path.stat().st_size > MAX_JSON_BYTES:
            raise InputError(f"{path}: is larger than {MAX_JSON_BYTES} bytes, no such file is needed; check it")
        value = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: is not readable JSON ({error}); download it again") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: must hold a JSON object; download it again")
    return value


def _refuse_pickle(path: Path) -> None:
    if path.suffix in PICKLE_SUFFIXES:
        raise InputError(f"{path}: pickled weights can run code and are refused; convert them to safetensors first")


def _find_shards(folder: Path) -> tuple[dict[str, str] | None, list[str]]:
    """The weight map of the index (or None) and the shard names of a folder."""
    indexes = sorted(folder.glob("*.safetensors.index.json"))
    if len(indexes) > 1:
        raise InputError(f"{folder}: has {len(indexes)} indexes; keep one of {', '.join(i.name for i in indexes)}")
    if indexes:
        weight_map = read_json(inside(folder, indexes[0].name)).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
            raise InputError(f"{indexes[0]}: weight_map must map tensor names to file names; download it again")
        if not weight_map:
            raise InputError(f"{indexes[0]}: names no tensor; download it again")
        return weight_map, sorted(set(weight_map.values()))
    files = sorted(item.name for item in folder.glob("*.safetensors"))
    if "model.safetensors" in files:
        return None, ["model.safetensors"]
    if len(files) == 1:
        return None, files
    if files:
        raise InputError(f"{folder}: has {len(files)} shards but no model.safetensors.index.json; download it again")
    if any(item.suffix in PICKLE_SUFFIXES for item in folder.iterdir()):
        raise InputError(f"{folder}: holds only pickled weights, which can run code; convert them to safetensors")
    raise InputError(f"{folder}: holds no safetensors weights; give the folder of a model")


def _collect(
    folder: Path, headers: dict[str, Header], weight_map: dict[str, str] | None
) -> tuple[dict[str, TensorInfo], tuple[str, ...]]:
    """All tensors by name (the index decides between shards) and the names that the index forgot."""
    tensors: dict[str, TensorInfo] = {}
    unindexed: list[str] = []
    for shard, header in headers.items():
        for name, entry in header.entries.items():
            if weight_map is not None and weight_map.get(name, shard) != shard:
                continue
            if weight_map is not None and name not in weight_map:
                if name in tensors:
                    raise InputError(f"{folder}: tensor {name!r} lies in two shards and the index names neither")
                unindexed.append(name)
            tensors[name] = TensorInfo(shard, entry.dtype, entry.shape, entry.start, entry.stop)
    missing = [name for name in weight_map or () if name not in tensors]
    if missing:
        shard = (weight_map or {})[missing[0]]
        raise InputError(
            f"{folder}: the index puts {missing[0]!r} into {shard}, which does not have it "
            f"({len(missing)} such tensors); download the shard again"
        )
    return tensors, tuple(unindexed)


def _extra_files(folder: Path, shards: set[str]) -> tuple[Path, ...]:
    """Files beside the weights that a copy of the model needs: tokenizer, generation config, licence."""
    kept = []
    for item in sorted(folder.iterdir()):
        if not item.is_file() and not item.is_dir() and item.exists():  # whoever reads a pipe waits for ever
            raise InputError(f"{item}: is no regular file; remove it")
        weights = item.name in shards or item.suffix in PICKLE_SUFFIXES or item.suffix in {".safetensors", ".gguf"}
        if weights or item.name.startswith(".") or not item.is_file() or item.name == "config.json":
            continue
        if item.name.endswith(".safetensors.index.json") or item.name.endswith(".bin.index.json"):
            continue
        kept.append(inside(folder, item.name))
    return tuple(kept)
