"""Random changes of valid files, and what reads each kind of file. Shared by the tests and ``benchmarks/fuzz``.

A target is a kind of file: its valid content, a way to change it, and a reader. The reader must return or raise
:class:`InputError`; anything else is a finding.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from bitwright.data.sources import read_documents, read_ids
from bitwright.errors import InputError
from bitwright.formats import parse
from bitwright.interop.gguf import read_gguf
from bitwright.jobs.journal import Journal
from bitwright.jobs.request import Request
from bitwright.models import Checkpoint, open_model
from bitwright.models.rules import read_rules
from bitwright.runtime.load import load
from tests.fault.hostile import put_shard, read_shard
from tests.unit import gguf_writer

WEIGHTS = "model.safetensors"
VALUES: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 2, 7, 2**31, 2**63 - 1, 2**63, 2**64, 10**12, -(2**40), 1.5, 1e308, float("nan"),
    float("inf"), "", "0", "x", "../x", "\ud800", "a" * 300, [], {}, [[]], [0], [-1, 2**62], {"a": 1}, "F32", "U8",
    "int4 g16 asym", "lut30 channel", "int8 token dynamic", [2**31, 2**31], "linear", "embedding",
)  # fmt: skip
FORMATS = ("int4 g128 asym", "nf4 b64 scale=double", "table[-1,0,1] g32", "e2m1 g16 scale=e4m3", "lut4", "apot4")

Mutate = Callable[[bytes, Random], bytes]


@dataclass(frozen=True)
class Target:
    """A kind of file: the file of ``folder`` that is changed, how, and what reads the folder (or the file)."""

    folder: Path
    file: str
    mutate: Mutate
    read: Callable[[Path], object]

    def outcome(self, content: bytes, place: Path) -> str:
        """``accepted``, or the sentence that refuses ``content`` in the place of the file."""
        target = place / self.file
        target.write_bytes(content)
        try:
            self.read(place)
        except InputError as error:
            return str(error) or "an empty sentence"
        return "accepted"

    def valid(self) -> bytes:
        """The unchanged content."""
        return (self.folder / self.file).read_bytes()


def change_bytes(content: bytes, random: Random) -> bytes:
    """Flip, insert, remove, repeat or cut bytes at one to four places."""
    changed = bytearray(content)
    for _ in range(random.randint(1, 4)):
        at, length = random.randrange(len(changed) + 1), random.choice((1, 1, 2, 8, 64))
        # The first bytes decide most.
        at = at if random.random() < 0.5 else min(at, random.randrange(400))
        kind = random.randrange(6)
        if kind == 0:
            changed[at : at + 1] = bytes([random.randrange(256)])
        elif kind == 1:
            changed[at:at] = random.randbytes(length)
        elif kind == 2:
            del changed[at : at + length]
        elif kind == 3:
            changed[at : at + length] = random.choice((b"\xff", b"\0", b"9", b"[", b"{", b'"')) * length
        elif kind == 4:
            changed[at:at] = changed[at : at + length]
        elif random.random() < 0.3:
            del changed[at:]
    return bytes(changed)


def change_tree(value: Any, random: Random) -> Any:
    """Replace, remove, add or exchange one node of a JSON value."""
    places: list[tuple[Any, Any]] = []
    todo = [value]
    while todo:
        node = todo.pop()
        keys = list(node) if isinstance(node, dict) else list(range(len(node))) if isinstance(node, list) else []
        places += [(node, key) for key in keys]
        todo += [node[key] for key in keys]
    if not places or random.random() < 0.02:
        return random.choice(VALUES)
    parent, key = random.choice(places)
    kind = random.randrange(6)
    if kind == 0:
        del parent[key]
    elif kind == 1 and isinstance(parent, dict):
        parent[random.choice(("x", "", "\ud800", "shape", "dtype", "format"))] = random.choice(VALUES)
    elif kind == 2:
        other, place = random.choice(places)
        parent[key] = json.loads(json.dumps(other[place]))
    elif kind == 3 and isinstance(parent[key], int | float):
        parent[key] = parent[key] * random.choice((-1, 2, 10, 2**20, 2**40)) + random.choice((-1, 0, 1))
    else:
        parent[key] = random.choice(VALUES)
    return value


def change_json(content: bytes, random: Random) -> bytes:
    """Change one to three nodes of a JSON file."""
    value = json.loads(content)
    for _ in range(random.randint(1, 3)):
        value = change_tree(value, random)
    return json.dumps(value).encode()


def change_manifest(content: bytes, random: Random) -> bytes:
    """Change nodes of the manifest in a config only."""
    value = json.loads(content)
    for _ in range(random.randint(1, 2)):
        value["quantization_config"] = change_tree(value["quantization_config"], random)
    return json.dumps(value).encode()


def change_header(content: bytes, random: Random) -> bytes:
    """Change nodes of the header of a safetensors file, sometimes its length too."""
    count = int.from_bytes(content[:8], "little")
    raw = change_json(content[8 : 8 + count], random)
    length = len(raw) + (0 if random.random() < 0.9 else random.choice((-1, 1, 10**6, 2**40)))
    return max(0, length).to_bytes(8, "little") + raw + content[8 + count :]


def read_weights(folder: Path) -> None:
    """Open a checkpoint and touch every tensor."""
    checkpoint = Checkpoint.open(folder)
    checkpoint.fingerprint()
    for name in checkpoint.tensors:
        checkpoint.load(name).clone()


def read_network(folder: Path) -> None:
    """Build the skeleton of a float model."""
    open_model(folder, stream=True)


def run_native(folder: Path) -> None:
    """Load a native checkpoint and run it on two tokens."""
    with torch.no_grad():
        load(folder)(input_ids=torch.tensor([[3, 5]]), use_cache=False)


def read_tensors(folder: Path) -> None:
    """Read a GGUF file with all of its tensors."""
    file = read_gguf(folder / "model.gguf")
    for name in file.tensors:
        file.load(name)


def read_journal(folder: Path) -> None:
    """Open a journal as the job that began it."""
    journal = Journal(folder, {"seed": 0}, {"threads": 1})
    journal.open()
    journal.verified()


def targets(place: Path, model: Path, native: Path) -> Mapping[str, Target]:
    """All targets; ``model`` is a float folder, ``native`` the same quantized. Copies of them go to ``place``."""
    single, packed, files = place / "single", place / "packed", place / "files"
    for source, folder in ((model, single), (native, packed)):
        shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors*"))
        tensors = {k: v for path in sorted(source.glob("*.safetensors")) for k, v in load_file(path).items()}
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        header, data = read_shard(folder / WEIGHTS)
        put_shard(folder / WEIGHTS, header, data)
    files.mkdir()
    ids = torch.arange(64).reshape(4, 16)
    save_file({"ids": ids, "mask": torch.ones_like(ids)}, files / "ids.safetensors")
    np.savez_compressed(files / "ids.npz", ids=ids.numpy(), mask=np.ones((4, 16), dtype=bool))
    lines = ['{"text": "one two"}', '{"messages": [{"role": "user", "content": "three"}]}']
    (files / "text.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (files / "model.gguf").write_bytes(gguf_writer.valid().bytes())
    (files / "rules.toml").write_text('"layers.*" = "block"\n"class:*Norm" = ["float"]\n', encoding="utf-8")
    (files / "format.txt").write_text("\n".join(FORMATS), encoding="utf-8")
    (files / "job.json").write_text(Request("model", settings=(("damping", "0.1"),)).to_json(), encoding="utf-8")
    head = {"format_version": 1, "identity": {"seed": 0}, "machine": {"threads": 1}}
    unit = {"unit": "a", "file": "ids.npz", "sha256": "0" * 64, "facts": {}}
    (files / "journal.jsonl").write_text(f"{json.dumps(head)}\n{json.dumps(unit)}\n", encoding="utf-8")
    return {
        "checkpoint, bytes": Target(single, WEIGHTS, change_bytes, read_weights),
        "checkpoint, header": Target(single, WEIGHTS, change_header, read_weights),
        "index": Target(model, "model.safetensors.index.json", change_json, read_weights),
        "config": Target(single, "config.json", change_json, read_network),
        "native, bytes": Target(packed, WEIGHTS, change_bytes, run_native),
        "native, header": Target(packed, WEIGHTS, change_header, run_native),
        "native, manifest": Target(packed, "config.json", change_manifest, run_native),
        "ids, safetensors": Target(files, "ids.safetensors", change_bytes, lambda f: read_ids(f / "ids.safetensors")),
        "ids, npz": Target(files, "ids.npz", change_bytes, lambda f: read_ids(f / "ids.npz")),
        "text, jsonl": Target(files, "text.jsonl", change_bytes, lambda f: read_documents(f / "text.jsonl")),
        "gguf": Target(files, "model.gguf", change_bytes, read_tensors),
        "rules": Target(files, "rules.toml", change_bytes, lambda f: read_rules(f / "rules.toml")),
        "format": Target(files, "format.txt", change_bytes, _read_formats),
        "request": Target(files, "job.json", change_json, _read_request),
        "journal": Target(files, "journal.jsonl", change_bytes, read_journal),
    }


def _read_request(folder: Path) -> None:
    # As ``bitwright resume`` reads it.
    Request.from_json((folder / "job.json").read_text(encoding="utf-8", errors="replace"))


def _read_formats(folder: Path) -> None:
    for line in (folder / "format.txt").read_text(encoding="utf-8", errors="replace").split("\n"):
        fmt = parse(line)
        if parse(str(fmt)) != fmt:
            raise AssertionError(f"{line!r} reads as {fmt}, which reads as another format")
