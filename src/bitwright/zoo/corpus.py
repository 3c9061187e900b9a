"""The text of the zoo's language model: Python source files of the running interpreter's own installation.

Nothing of the text is stored in this package. The files are found at run time in the standard library and in a
fixed list of installed packages; whole files are held out by a hash of their name, so the split is the same on
every machine that has the same versions.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

STDLIB = "stdlib"
PACKAGES = (
    "huggingface_hub",
    "matplotlib",
    "mpmath",
    "networkx",
    "numpy",
    "scipy",
    "sklearn",
    "sympy",
    "torch",
    "transformers",
)

# Folders left out, by the start of the file's name. The model folders of transformers repeat each other nearly word
# for word, so a held-out file among them would have copies in the training text.
EXCLUDED_PREFIXES = ("stdlib:site-packages/", "stdlib:lib2to3/tests/data/", "transformers:models/")

HELD_OUT_ONE_IN = 64
MIN_BYTES = 512
MAX_BYTES = 200_000
MAX_LINE = 1_000
MAX_DIGIT_SHARE = 0.15


@dataclass(frozen=True)
class CorpusFile:
    """One source file: `name` is `<package>:<path inside it>` and does not depend on the machine."""

    name: str
    path: Path


def is_held_out(name: str) -> bool:
    """Whether the file called `name` belongs to the evaluation split (about one file in 64)."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % HELD_OUT_ONE_IN == 0


def read_text(path: Path) -> str | None:
    """The file's text, or None where it is no useful text (not UTF-8, very short or long, mostly tables)."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    if not MIN_BYTES <= len(data) <= MAX_BYTES:
        return None
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return None
    if max(map(len, text.split("\n"))) > MAX_LINE:
        return None
    if sum(map(text.count, "0123456789")) > MAX_DIGIT_SHARE * len(text):
        return None
    return text


def corpus_files() -> Iterator[CorpusFile]:
    """Every candidate file of the installed sources, in an order that does not depend on the file system."""
    for source in (STDLIB, *PACKAGES):
        root = _root(source)
        if root is None:
            continue
        for path in sorted(root.rglob("*.py"), key=lambda p: p.relative_to(root).as_posix()):
            name = f"{source}:{path.relative_to(root).as_posix()}"
            if not name.startswith(EXCLUDED_PREFIXES):
                yield CorpusFile(name, path)


def locate(name: str) -> Path | None:
    """Where the file called `name` lies in this installation, or None if it is not there."""
    source, _, relative = name.partition(":")
    root = _root(source)
    if root is None or not (root / relative).is_file():
        return None
    return root / relative


def _root(source: str) -> Path | None:
    """The folder of a source. Looks a package up without importing it."""
    if source == STDLIB:
        return Path(sysconfig.get_paths()["stdlib"])
    spec = importlib.util.find_spec(source)
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent
