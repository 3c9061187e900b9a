"""Files are written atomically, readable by safetensors, and byte for byte where bytes were given."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from bitwright.errors import InputError
from bitwright.models.checkpoint import Checkpoint
from bitwright.models.header import read_header
from bitwright.models.writer import (
    RawTensor,
    ShardWriter,
    TensorLayout,
    layout_of,
    plan_shards,
    shard_name,
    write_index,
    write_safetensors,
)


def test_safetensors_reads_what_we_wrote(tmp_path: Path) -> None:
    tensors = {
        "half": torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).half(),
        "transposed": torch.arange(6.0).reshape(2, 3).T,
        "flag": torch.tensor([True, False]),
        "float8": torch.tensor([0.5, -1.0]).to(torch.float8_e4m3fn),
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(3),
    }
    path = tmp_path / "out.safetensors"
    size = write_safetensors(path, tensors, {"format": "pt"})
    assert size == path.stat().st_size
    back = safetensors.torch.load_file(path)
    assert {name: value.dtype for name, value in back.items()} == {n: v.dtype for n, v in tensors.items()}
    assert all(torch.equal(back[name].float(), tensors[name].float()) for name in tensors)
    assert read_header(path).metadata == {"format": "pt"}


def test_raw_copies_are_equal_bytes(tmp_path: Path) -> None:
    safetensors.torch.save_file({"a": torch.randn(64, 3), "b": torch.randn(5).bfloat16()}, tmp_path / "in.safetensors")
    source = Checkpoint.open(tmp_path / "in.safetensors")
    raw = {}
    for name, info in source.tensors.items():
        view = source.raw(name)
        pieces = [view[i : i + 7] for i in range(0, len(view), 7)]
        raw[name] = RawTensor(TensorLayout(info.dtype, info.shape), pieces)
    write_safetensors(tmp_path / "out.safetensors", raw)
    copy = Checkpoint.open(tmp_path / "out.safetensors")
    assert all(bytes(copy.raw(name)) == bytes(source.raw(name)) for name in source.tensors)


def test_tensors_arrive_in_any_order(tmp_path: Path) -> None:
    values = {"a": torch.arange(3.0), "b": torch.arange(5, dtype=torch.uint8)}
    with ShardWriter(tmp_path / "x.safetensors", {n: layout_of(v) for n, v in values.items()}) as writer:
        for name in ("b", "a"):
            writer.write(name, values[name])
    back = safetensors.torch.load_file(tmp_path / "x.safetensors")
    assert torch.equal(back["a"], values["a"])
    assert torch.equal(back["b"], values["b"])


_MISTAKES: dict[str, list[tuple[str, Any]]] = {
    "unknown": [("b", bytes(8))],
    "short": [("a", bytes(4))],
    "long": [("a", [bytes(8), bytes(4)])],
    "twice": [("a", bytes(8)), ("a", bytes(8))],
    "forgotten": [],
}


@pytest.mark.parametrize("mistake", list(_MISTAKES))
def test_a_mistake_leaves_no_file(tmp_path: Path, mistake: str) -> None:
    def write() -> None:
        with ShardWriter(path, {"a": TensorLayout("F32", (2,))}) as writer:
            for name, data in _MISTAKES[mistake]:
                writer.write(name, data)

    path = tmp_path / "x.safetensors"
    path.write_bytes(b"the old file")
    with pytest.raises(InputError):
        write()
    assert path.read_bytes() == b"the old file"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    def full() -> object:
        raise OSError(errno.ENOSPC, "No space left on device")
        yield b""

    with pytest.raises(InputError, match="disk is full"):
        write_safetensors(tmp_path / "x.safetensors", {"a": RawTensor(TensorLayout("F32", (2,)), full())})  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        write_safetensors(tmp_path / "none" / "x.safetensors", {"a": torch.zeros(1)})


def test_a_dtype_that_cannot_be_stored_is_refused() -> None:
    with pytest.raises(InputError, match="complex128"):
        layout_of(torch.zeros(1, dtype=torch.complex128))


def test_shards_are_planned_in_order() -> None:
    assert plan_shards({"a": 4, "b": 4, "c": 9, "d": 1}, 8) == [("a", "b"), ("c",), ("d",)]
    assert plan_shards({}, 8) == []
    assert shard_name(1, 1) == "model.safetensors"
    assert shard_name(2, 12) == "model-00002-of-00012.safetensors"


def test_the_index_opens_again(tmp_path: Path) -> None:
    weight_map = {}
    for i in (1, 2):
        name = shard_name(i, 2)
        write_safetensors(tmp_path / name, {f"t{i}": torch.full((2,), float(i))})
        weight_map[f"t{i}"] = name
    write_index(tmp_path, weight_map, 16, {"note": "x"})
    assert json.loads((tmp_path / "model.safetensors.index.json").read_text())["metadata"] == {
        "note": "x",
        "total_size": 16,
    }
    assert Checkpoint.open(tmp_path).load("t2").tolist() == [2.0, 2.0]
