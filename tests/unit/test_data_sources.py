"""Reading text and token ids: every form that is understood, and the sentence for every form that is not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from bitwright.data.sources import read_documents, read_ids
from bitwright.errors import InputError


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_plain_text_is_one_running_text_of_lines(tmp_path: Path) -> None:
    documents = read_documents(write(tmp_path / "a.txt", "one\n\n two \r\nthree\n"))
    assert documents.texts == ("one", "", " two ", "three", "")  # as they stand: joined again they are the file
    assert documents.filled == ("one", " two ", "three")
    assert (documents.kind, documents.source) == ("lines", "a.txt")


@pytest.mark.parametrize(
    ("text", "separator"),
    [
        ("first\nline\n<|endoftext|>\nsecond\n<|endoftext|>\n", None),
        ('<doc id="1">\nfirst\nline\n</doc>\n<doc id="2">\nsecond\n</doc>\n', None),
        ("first\nline\n=== 2\nsecond\n", "==="),
    ],
)
def test_documents_are_found_by_their_separator(tmp_path: Path, text: str, separator: str | None) -> None:
    documents = read_documents(write(tmp_path / "a.txt", text), separator)
    assert documents.texts == ("first\nline", "second")
    assert documents.kind == "documents"


def test_json_lines_hold_text_or_messages(tmp_path: Path) -> None:
    lines = [{"text": "one"}, {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}]
    path = write(tmp_path / "a.jsonl", "\n".join(json.dumps(line) for line in lines) + "\n")
    assert read_documents(path).texts == ("one", "q\na")


def test_several_files_and_strings(tmp_path: Path) -> None:
    paths = [write(tmp_path / "a.txt", "one\n"), write(tmp_path / "b.txt", "two\n")]
    both = read_documents(paths)
    assert (both.filled, both.source) == (("one", "two"), "a.txt+b.txt")
    strings = read_documents(["one", " ", "two"])
    assert (strings.texts, strings.kind) == (("one", "two"), "documents")
    assert strings.sha256 != strings.first(1).sha256


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "holds no text"),
        ("a.txt", b" \n\n", "holds no text"),
        ("a.txt", b"\xff\xfe\x00", "not UTF-8"),
        ("a.jsonl", b"{no}\n", "line 1 is not JSON"),
        ("a.jsonl", b'{"text": "fine"}\n{"body": 1}\n', 'line 2 has neither "text" nor "messages"'),
        ("a.jsonl", b'{"messages": [{"content": 3}]}\n', "neither"),
    ],
)
def test_unreadable_text_is_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_documents(tmp_path / name)


def test_missing_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_documents(tmp_path / "none.txt")
    with pytest.raises(InputError, match="list of texts is empty"):
        read_documents([" "])
    with pytest.raises(InputError, match="no text of the zoo"):
        read_documents("zoo:nothing")


def test_stored_ids_come_back(tmp_path: Path) -> None:
    ids = torch.tensor([[1, 5, 6], [1, 7, 0]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    save_file({"ids": ids.to(torch.int32), "mask": mask}, str(tmp_path / "a.safetensors"))
    np.savez(tmp_path / "a.npz", ids=ids.numpy().astype(np.uint16), mask=mask.numpy())
    for name in ("a.safetensors", "a.npz"):
        data = read_ids(tmp_path / name, vocabulary=8)
        assert torch.equal(data.ids, ids)
        assert data.lengths.tolist() == [3, 2]
        with pytest.raises(InputError, match="outside the vocabulary of 7"):
            read_ids(tmp_path / name, vocabulary=7)


def test_wrong_id_files_are_refused(tmp_path: Path) -> None:
    save_file({"tokens": torch.ones(2, 2, dtype=torch.int64)}, str(tmp_path / "name.safetensors"))
    save_file({"ids": torch.ones(2, 2)}, str(tmp_path / "float.safetensors"))
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\x00")
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04")
    (tmp_path / "a.bin").write_bytes(b"x")
    for name, message in [
        ("name.safetensors", "no tensor 'ids'"),
        ("float.safetensors", "store integers"),
        ("cut.safetensors", "cannot be read"),
        ("cut.npz", "cannot be read"),
        ("a.bin", "convert the file"),
        ("none.npz", "does not exist"),
    ]:
        with pytest.raises(InputError, match=message):
            read_ids(tmp_path / name)
