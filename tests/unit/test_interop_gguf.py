"""GGUF files: what is read of a right one, and how the command line shows it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bitwright.cli.main import run as command
from bitwright.errors import InputError
from bitwright.interop.gguf import TYPES, is_gguf, read_gguf
from tests.unit.gguf_writer import Wanted, info, size, valid


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(valid().bytes())
    return path


def test_every_type_of_value_is_read(file: Path) -> None:
    found = read_gguf(file)
    assert (found.version, found.alignment) == (3, 32)
    assert [found.metadata[f"n.{i}"] for i in range(11)] == [1, 1, 1, 1, 1, 1, 1.0, True, 1, 1, 1.0]
    assert found.metadata["n.7"] is True
    assert found.metadata["list.words"] == ("a", "ü")
    assert found.metadata["list.numbers"].tolist() == [1, -2, 3]  # type: ignore[union-attr]
    assert found.metadata["list.truths"].tolist() == [False, True]  # type: ignore[union-attr]
    inner = found.metadata["list.lists"]
    assert isinstance(inner, tuple)
    assert inner[1] == ("a", "ü")


def test_tensors_have_the_shape_of_torch_and_their_values(file: Path) -> None:
    found = read_gguf(file)
    assert found.tensors["a.weight"].shape == (2, 32)
    assert found.tensors["a.weight"].bytes == 68
    assert torch.equal(found.load("a.weight"), torch.zeros(2, 32))
    assert torch.equal(found.load("b.bias"), torch.tensor([1.0, 2.0, 3.0]))
    with pytest.raises(InputError, match=r"there is no tensor 'c'"):
        found.load("c")


def test_a_type_that_is_known_and_not_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(Wanted(infos=[info("a", (256,), 19, 0)], data=bytes(size((256,), 19))).bytes())
    found = read_gguf(path)
    assert found.tensors["a"].type.name == "IQ1_S"
    with pytest.raises(InputError, match=r"type IQ1_S are not read; read are F32"):
        found.load("a")


def test_another_alignment(tmp_path: Path) -> None:
    from tests.unit.gguf_writer import pair

    path = tmp_path / "model.gguf"
    key = pair("general.alignment", 4, (64).to_bytes(4, "little"))
    path.write_bytes(Wanted([key], [info("a", (1,), 0, 0)], b"\x00\x00\x80\x3f", alignment=64).bytes())
    found = read_gguf(path)
    assert found.tensors["a"].start % 64 == 0
    assert float(found.load("a")) == 1.0


def test_bits_of_the_types() -> None:
    assert {TYPES[n].name: TYPES[n].bits for n in (2, 8, 12, 14)} == {
        "Q4_0": 4.5, "Q8_0": 8.5, "Q4_K": 4.5, "Q6_K": 6.5625,
    }  # fmt: skip


def test_inspect_shows_a_file(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert is_gguf(file)
    assert command(["inspect", str(file), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tensors"] == [
        {"name": "a.weight", "type": "Q8_0", "shape": [2, 32], "bytes": 68, "bits_per_weight": 8.5},
        {"name": "b.bias", "type": "F32", "shape": [3], "bytes": 12, "bits_per_weight": 32.0},
    ]
    assert found["metadata"]["general.architecture"] == "llama"
    assert found["metadata"]["list.words"] == ["a", "ü"]
    assert found["bytes"] == 80
    assert command(["inspect", str(file)]) == 0
    assert "a.weight" in capsys.readouterr().out
    assert command(["inspect", str(file), "--structure"]) == 2
