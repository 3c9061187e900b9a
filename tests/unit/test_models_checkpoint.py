"""Checkpoints are checked completely when they are opened; nothing in the file is trusted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitwright.errors import InputError
from bitwright.models.checkpoint import Checkpoint
from bitwright.models.header import parse_header, stored_bytes


def _write(path: Path, header: Any, data: bytes) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data)
    return path


def _entry(dtype: str = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def _model_folder(folder: Path, shards: int = 1) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    tensors = {f"layer.{i}.weight": torch.randn(3, 4, generator=generator) for i in range(4)}
    (folder / "config.json").write_text('{"model_type": "toy"}')
    if shards == 1:
        safetensors.torch.save_file(tensors, folder / "model.safetensors")
        return tensors
    weight_map = {}
    for i in range(shards):
        name = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = dict(list(tensors.items())[i::shards])
        safetensors.torch.save_file(part, folder / name)
        weight_map.update(dict.fromkeys(part, name))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return tensors


@pytest.mark.parametrize("shards", [1, 2])
def test_reads_what_safetensors_wrote(tmp_path: Path, shards: int) -> None:
    tensors = _model_folder(tmp_path, shards)
    checkpoint = Checkpoint.open(tmp_path)
    assert set(checkpoint.tensors) == set(tensors)
    assert len(checkpoint.headers) == shards
    assert checkpoint.config == {"model_type": "toy"}
    for name, tensor in tensors.items():
        assert torch.equal(checkpoint.load(name), tensor)
        assert bytes(checkpoint.raw(name)) == tensor.numpy().tobytes()


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool, torch.float8_e4m3fn]
)
def test_every_dtype_survives(tmp_path: Path, dtype: torch.dtype) -> None:
    values = torch.arange(6).reshape(2, 3).to(dtype)
    safetensors.torch.save_file(
        {"a": values, "empty": torch.zeros(0, 3), "scalar": torch.tensor(2.0)}, tmp_path / "m.safetensors"
    )
    checkpoint = Checkpoint.open(tmp_path / "m.safetensors")
    assert checkpoint.load("a").dtype == dtype
    assert torch.equal(checkpoint.load("a").float(), values.float())
    assert checkpoint.load("empty").shape == (0, 3)
    assert checkpoint.load("scalar").shape == ()


def test_an_unaligned_tensor_is_copied(tmp_path: Path) -> None:
    header = {"byte": _entry("U8", (1,), (0, 1)), "x": _entry("F32", (2,), (1, 9))}
    path = _write(tmp_path / "m.safetensors", header, b"\x07" + torch.tensor([1.5, -2.0]).numpy().tobytes())
    assert Checkpoint.open(path).load("x").tolist() == [1.5, -2.0]


def test_a_loaded_tensor_cannot_change_the_file(tmp_path: Path) -> None:
    _model_folder(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    Checkpoint.open(tmp_path).load("layer.0.weight").fill_(7.0)
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_extra_files_are_those_that_a_copy_needs(tmp_path: Path) -> None:
    _model_folder(tmp_path)
    for name in ("tokenizer.json", "README.md", "pytorch_model.bin", ".hidden", "other.gguf"):
        (tmp_path / name).write_text("{}")
    assert [item.name for item in Checkpoint.open(tmp_path).extra_files] == ["README.md", "tokenizer.json"]


def test_the_fingerprint_follows_names_sizes_and_config(tmp_path: Path) -> None:
    _model_folder(tmp_path)
    first = Checkpoint.open(tmp_path).fingerprint()
    assert first == Checkpoint.open(tmp_path).fingerprint()
    (tmp_path / "config.json").write_text('{"model_type": "other"}')
    second = Checkpoint.open(tmp_path).fingerprint()
    safetensors.torch.save_file({"layer.9.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    assert len({first, second, Checkpoint.open(tmp_path).fingerprint()}) == 3


def test_an_unknown_tensor_names_its_neighbour(tmp_path: Path) -> None:
    _model_folder(tmp_path)
    with pytest.raises(InputError, match=r"layer\.0\.weight"):
        Checkpoint.open(tmp_path).load("layer.0.weigth")


@pytest.mark.parametrize(
    ("header", "data", "word"),
    [
        (b"", b"", "not valid JSON"),
        (b"[]", b"", "not a JSON object"),
        (b'{"a": 1, "a": 2}', b"", "twice"),
        (b"\xff\xfe", b"", "not valid JSON"),
        (b"[" * 100_000, b"", "not valid JSON"),
        ({"__metadata__": {"format": 3}}, b"", "strings"),
        ({"a": 3}, bytes(8), "exactly dtype"),
        ({"a": {**_entry(), "more": 1}}, bytes(8), "exactly dtype"),
        ({"a": _entry("F31")}, bytes(8), "F31"),
        ({"a": _entry(shape=(-2,))}, bytes(8), "malformed"),
        ({"a": _entry(shape=(True, 2))}, bytes(8), "malformed"),
        ({"a": _entry(shape=(2.0,))}, bytes(8), "malformed"),
        ({"a": _entry(offsets=(8, 0))}, bytes(8), "offsets"),
        ({"a": _entry(offsets=(0, 8, 16))}, bytes(16), "malformed"),
        ({"a": _entry(shape=(3,))}, bytes(8), "need 12 bytes"),
        ({"a": _entry(shape=(2**62, 2**62), offsets=(0, 8))}, bytes(8), "offsets give 8"),
        ({"a": _entry(shape=[1] * 65, offsets=(0, 4))}, bytes(4), "dimensions"),
        ({"a": _entry()}, bytes(4), "cut off"),
        ({"a": _entry()}, bytes(12), "appended"),
        ({"a": _entry(), "b": _entry(offsets=(4, 12))}, bytes(12), "overlaps"),
        ({"a": _entry(), "b": _entry(offsets=(12, 20))}, bytes(20), "hole"),
        ({"a": _entry("F4", (3,), (0, 1))}, bytes(1), "whole bytes"),
    ],
)
def test_a_lying_header_is_refused(tmp_path: Path, header: Any, data: bytes, word: str) -> None:
    path = _write(tmp_path / "model.safetensors", header, data)
    with pytest.raises(InputError, match=word):
        Checkpoint.open(path)


def test_absurd_lengths_are_refused_before_reading(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    for content in (b"", b"abc", (2**63).to_bytes(8, "little") + b"{}", (10**9).to_bytes(8, "little") + b"{}"):
        path.write_bytes(content)
        with pytest.raises(InputError):
            Checkpoint.open(path)


def test_a_truncated_shard_is_refused(tmp_path: Path) -> None:
    _model_folder(tmp_path, 2)
    shard = tmp_path / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-3])
    with pytest.raises(InputError, match="cut off"):
        Checkpoint.open(tmp_path)


def test_a_missing_shard_is_refused(tmp_path: Path) -> None:
    _model_folder(tmp_path, 2)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(InputError, match="missing"):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", "C:\\x", "a\0b"])
def test_an_index_cannot_name_a_file_outside(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    _model_folder(tmp_path)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(InputError):
        Checkpoint.open(folder)


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    _model_folder(tmp_path)
    (folder / "model.safetensors").symlink_to(tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="leaves the folder"):
        Checkpoint.open(folder)


def test_links_of_a_hub_cache_are_followed(tmp_path: Path) -> None:
    blobs, folder = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    folder.mkdir(parents=True)
    _model_folder(blobs)
    for name in ("model.safetensors", "config.json"):
        (folder / name).symlink_to(blobs / name)
    assert len(Checkpoint.open(folder).tensors) == 4


def test_an_index_that_promises_too_much_is_refused(tmp_path: Path) -> None:
    _model_folder(tmp_path, 2)
    index = tmp_path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["ghost"] = "model-00001-of-00002.safetensors"
    index.write_text(json.dumps(content))
    with pytest.raises(InputError, match="ghost"):
        Checkpoint.open(tmp_path)


def test_a_tensor_that_the_index_forgot_is_kept_and_named(tmp_path: Path) -> None:
    _model_folder(tmp_path, 2)
    index = tmp_path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    del content["weight_map"]["layer.0.weight"]
    index.write_text(json.dumps(content))
    checkpoint = Checkpoint.open(tmp_path)
    assert checkpoint.unindexed == ("layer.0.weight",)
    assert "layer.0.weight" in checkpoint.tensors


def test_pickles_are_refused(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02.")
    with pytest.raises(InputError, match="pickled"):
        Checkpoint.open(tmp_path)
    with pytest.raises(InputError, match="pickled"):
        Checkpoint.open(tmp_path / "pytorch_model.bin")


@pytest.mark.parametrize("case", ["empty", "absent", "two files", "two indexes", "config", "index"])
def test_wrong_folders_get_one_sentence(tmp_path: Path, case: str) -> None:
    if case == "two files":
        for name in ("a", "b"):
            safetensors.torch.save_file({name: torch.zeros(1)}, tmp_path / f"{name}.safetensors")
    if case == "two indexes":
        for name in ("a", "b"):
            (tmp_path / f"{name}.safetensors.index.json").write_text("{}")
    if case == "config":
        _model_folder(tmp_path)
        (tmp_path / "config.json").write_text("{not json")
    if case == "index":
        (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": 3}}')
    with pytest.raises(InputError):
        Checkpoint.open(tmp_path / "none" if case == "absent" else tmp_path)


def test_stored_bytes_counts_bits() -> None:
    assert stored_bytes("F4", (3, 2)) == 3
    assert stored_bytes("F6_E2M3", (4,)) == 3
    assert stored_bytes("BF16", ()) == 2


_NUMBERS = st.one_of(st.integers(-5, 40), st.integers(0, 2**70), st.booleans(), st.floats(), st.text(max_size=3))
_ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "U8", "F4", "X", "BF16"]),
        "shape": st.lists(_NUMBERS, max_size=3),
        "data_offsets": st.lists(_NUMBERS, min_size=1, max_size=3),
    }
)


@given(st.dictionaries(st.text(max_size=4), _ENTRIES, max_size=3), st.integers(0, 64))
def test_any_header_is_refused_or_consistent(entries: dict[str, Any], size: int) -> None:
    raw = json.dumps(entries).encode()
    try:
        header = parse_header(raw, 8 + len(raw) + size, "fuzz")
    except InputError:
        return
    assert sum(entry.stop - entry.start for entry in header.entries.values()) == size
    for entry in header.entries.values():
        assert 8 + len(raw) <= entry.start <= entry.stop <= header.file_size
        assert stored_bytes(entry.dtype, entry.shape) == entry.stop - entry.start


@given(st.binary(max_size=60))
def test_any_bytes_are_refused_or_read(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.safetensors"
    path.write_bytes(content)
    try:
        checkpoint = Checkpoint.open(path)
    except InputError:
        return
    assert content.startswith((2).to_bytes(8, "little")) or checkpoint.tensors == {}
