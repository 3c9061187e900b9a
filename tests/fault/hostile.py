"""Files that an attacker could send: each is made from a tiny valid checkpoint when it is needed, none is kept."""

from __future__ import annotations

import json
import os
import pickle
import resource
import signal
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

SHARD = "model-00001-of-00002.safetensors"
INDEX = "model.safetensors.index.json"
CONFIG = "config.json"
GIB = 2**30

Change = Callable[[Path], object]


class Payload:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (Path.touch, (self.mark,))


def read_shard(path: Path) -> tuple[dict[str, Any], bytes]:
    """The header of a safetensors file as JSON, and its data."""
    content = path.read_bytes()
    count = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + count]), content[8 + count :]


def put_shard(path: Path, header: object, data: bytes) -> None:
    """Write a safetensors file whatever its header says (bytes are taken as they are)."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data)


def entry(change: Callable[[dict[str, Any]], object]) -> Change:
    """Change what the header says of the first tensor."""

    def apply(folder: Path) -> None:
        header, data = read_shard(folder / SHARD)
        change(header[min(name for name in header if name != "__metadata__")])
        put_shard(folder / SHARD, header, data)

    return apply


def raw_header(text: bytes) -> Change:
    """Put other bytes in the place of the header."""
    return lambda folder: put_shard(folder / SHARD, text, read_shard(folder / SHARD)[1])


def json_file(name: str, change: Callable[[dict[str, Any]], object]) -> Change:
    """Change a JSON file of the folder."""

    def apply(folder: Path) -> None:
        content = json.loads((folder / name).read_text(encoding="utf-8"))
        change(content)
        (folder / name).write_text(json.dumps(content), encoding="utf-8")

    return apply


def config(**entries: object) -> Change:
    """Set entries of config.json."""
    return json_file(CONFIG, lambda content: content.update(entries))


def nested(depth: int) -> str:
    """An object in an object in an object."""
    return '{"a":' * depth + "1" + "}" * depth


def text_file(name: str, text: str | bytes) -> Change:
    """Put another content into a file."""
    return lambda folder: (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())


def sparse(name: str, size: int, begin: bytes = b"") -> Change:
    """A file of ``size`` bytes that takes no room on the disk."""

    def apply(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        with (folder / name).open("wb") as file:
            file.write(begin)
            file.truncate(size)

    return apply


def pipe(name: str) -> Change:
    """A named pipe that nobody writes to: whoever reads it waits for ever."""

    def apply(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return apply


def link(name: str, target: str) -> Change:
    """A link out of the folder (to a good copy beside it where ``target`` names a file of the model)."""

    def apply(folder: Path) -> None:
        there = Path(target)
        if not there.is_absolute():
            there = folder.parent / f"beside-{folder.name}"
            (folder / name).rename(there)
        else:
            (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(there)

    return apply


def shard_named(name: str) -> Change:
    """An index that puts its first tensor into another file."""
    return json_file(INDEX, lambda content: content["weight_map"].update({min(content["weight_map"]): name}))


def with_code(folder: Path) -> None:
    """A config and a tokenizer that name Python files of the folder, which leave a mark when they run."""
    mark = folder.parent / "executed"
    (folder / "evil.py").write_text(f"open({str(mark)!r}, 'w').close()\nclass Evil:\n    pass\n", encoding="utf-8")
    names = {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil", "AutoModel": "evil.Evil"}
    config(auto_map=names, model_type="evil", architectures=["Evil"])(folder)
    tokens = {"auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}, "tokenizer_class": "Evil"}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokens), encoding="utf-8")


def only_pickle(folder: Path) -> None:
    """The weights as a pickle that runs code, and no safetensors."""
    for path in (*folder.glob("*.safetensors"), folder / INDEX):
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(folder.parent / "executed")))


def disguised(write: Callable[[Path], object]) -> Change:
    """Another kind of file under the name of the first shard."""
    return lambda folder: write(folder / SHARD)


def write_pickle(path: Path) -> None:
    """A pickle that runs code."""
    path.write_bytes(pickle.dumps(Payload(path.parent.parent / "executed")) + bytes(64))


def write_zip(path: Path) -> None:
    """What ``torch.save`` writes, with a pickle that runs code."""
    torch.save(Payload(path.parent.parent / "executed"), path)


def write_gguf(path: Path) -> None:
    """A GGUF header that announces 2^60 tensors and a key of 2^62 bytes."""
    counts = (3).to_bytes(4, "little") + (2**60).to_bytes(8, "little") * 2 + (2**62).to_bytes(8, "little")
    path.write_bytes(b"GGUF" + counts + b"general.name")


def write_bomb(path: Path) -> None:
    """An archive of some megabytes that unpacks to 1.2 GB of ids."""
    head = {"shape": (300_000, 512), "fortran_order": False, "descr": "<i8"}
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("ids.npy", "w", force_zip64=True) as file,
    ):
        np.lib.format.write_array_header_1_0(file, head)
        for _ in range(300):
            file.write(bytes(4096 * 1000))


def write_lying_npz(path: Path) -> None:
    """An array of sixteen numbers that claims 10^12."""
    with zipfile.ZipFile(path, "w") as archive, archive.open("ids.npy", "w") as file:
        np.lib.format.write_array_header_1_0(file, {"shape": (10**6, 10**6), "fortran_order": False, "descr": "<i8"})
        file.write(bytes(128))


def write_objects(path: Path) -> None:
    """Ids as an array of Python objects, which numpy stores as a pickle."""
    np.savez(path, ids=np.array([Payload(path.parent / "executed"), None], dtype=object))


def ids(**tensors: torch.Tensor) -> Callable[[Path], object]:
    """Stored ids as safetensors."""
    return lambda path: save_file(tensors, path)


def manifest(change: Callable[[dict[str, Any]], object]) -> Change:
    """Change the manifest of a native checkpoint."""
    return json_file(CONFIG, lambda content: change(content["quantization_config"]))


def module(change: Callable[[dict[str, Any]], object]) -> Change:
    """Change what the manifest says of its first coded module."""
    return manifest(lambda m: change(m["modules"][min(m["modules"])]))


def term(**entries: object) -> Change:
    """Change the first term of the first coded weight."""
    return module(lambda m: m["weight"]["terms"][0].update(entries))


def bounded(work: Callable[[], int], memory: int = 768 * 2**20, seconds: int = 60) -> int:
    """Run ``work`` in a forked child that may add so much memory and take so long; return its result (0 to 100).

    101 when it raised, negative when it was killed (by the clock: -SIGALRM).
    """
    child = os.fork()
    if child == 0:
        status = 101
        try:
            torch.set_num_threads(1)
            pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
            resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + memory,) * 2)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(seconds)
            status = work()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
