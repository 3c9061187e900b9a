"""Reading text and token ids: plain text, JSON lines, stored ids, the embedded zoo, or strings in memory."""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from bitwright.data.files import MAX_ARRAY_BYTES, MAX_TEXT_BYTES, check_file, check_npz
from bitwright.data.tokens import TokenData, token_data
from bitwright.errors import InputError

Source = str | Path | Sequence[str] | Sequence[Path]
Kind = Literal["lines", "documents"]

_INTEGERS = frozenset({
    torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16, torch.uint32, torch.uint64,
})  # fmt: skip
_BROKEN = (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, MemoryError)

ZOO_CHARACTERS = 32_768  # of one source file, so that no file dominates
END_OF_TEXT = "<|endoftext|>"  # the marker of most published story and web corpora


@dataclass(frozen=True)
class Documents:
    """Texts in their order.

    ``kind`` says how they belong together: ``lines`` are consecutive lines of one running text (joined again by a
    newline when they are packed, blank ones included), ``documents`` are independent (each starts anew with the begin
    token).
    """

    texts: tuple[str, ...]
    source: str
    kind: Kind
    sha256: str

    @property
    def filled(self) -> tuple[str, ...]:
        """The texts without blank ones."""
        return tuple(text for text in self.texts if text.strip())

    def first(self, count: int) -> Documents:
        """Return the first ``count`` documents."""
        return replace(self, texts=self.texts[:count], sha256=_hash(self.texts[:count]))


def read_documents(source: Source, separator: str | None = None) -> Documents:
    r"""Read texts.

    Args:
        source: a path or several (``.jsonl``: one object a line with ``text`` or ``messages``; anything else is UTF-8
            text), ``zoo`` or ``zoo:heldout`` (the texts of the embedded model), or a list of strings.
        separator: beginning of the lines that stand between two documents of a text file (they are dropped). By
            default ``<|endoftext|>`` where such a line is found, ``<doc `` and ``</doc>`` where the file begins with
            the former (WikiExtractor's form); otherwise the file is one running text and every line one entry.

    Raises:
        InputError: if a file is missing, unreadable or empty, or a JSON line has no text.
    """
    if isinstance(source, str) and source.split(":")[0] == "zoo":
        return zoo_documents(source)
    if isinstance(source, str | Path):
        return _read_files([Path(source)], separator)
    if source and all(isinstance(s, Path) for s in source):
        return _read_files([Path(s) for s in source], separator)
    texts = tuple(str(s) for s in source if str(s).strip())
    if not texts:
        raise InputError("the list of texts is empty; give at least one text")
    return Documents(texts, "texts", "documents", _hash(texts))


def _read_files(paths: list[Path], separator: str | None) -> Documents:
    texts: list[str] = []
    kinds: set[Kind] = set()
    for path in paths:
        more, kind = _read_file(path, separator)
        texts += more
        kinds.add(kind)
    name = "+".join(p.name for p in paths)
    return Documents(tuple(texts), name, "lines" if kinds == {"lines"} else "documents", _hash(texts))


def _read_file(path: Path, separator: str | None) -> tuple[list[str], Kind]:
    try:
        check_file(path, MAX_TEXT_BYTES)
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error.reason}); convert it to UTF-8") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); give the path of an existing text file") from error
    kind: Kind = "documents"
    if path.suffix == ".jsonl":
        texts = [_json_text(path, number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    else:
        lines = text.split("\n")
        separators = _separators(lines) if separator is None else (separator,)
        if separators:
            texts = _split(lines, separators)
        else:
            texts, kind = lines, "lines"
    if kind == "lines":
        texts = [t.rstrip("\r") for t in texts]
    else:
        texts = [t.strip() for t in texts if t.strip()]
    if not any(t.strip() for t in texts):
        raise InputError(f"{path} holds no text; give a file with at least one line")
    return texts, kind


def _separators(lines: list[str]) -> tuple[str, ...]:
    if lines[0].startswith("<doc "):
        return ("<doc ", "</doc>")
    return (END_OF_TEXT,) if any(line.strip() == END_OF_TEXT for line in lines) else ()


def _split(lines: list[str], separators: tuple[str, ...]) -> list[str]:
    documents: list[list[str]] = [[]]
    for line in lines:
        if line.startswith(separators):
            documents.append([])
        else:
            documents[-1].append(line)
    return ["\n".join(d) for d in documents]


def _json_text(path: Path, number: int, line: str) -> str:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}, line {number} is not JSON ({error}); write one object a line") from error
    if isinstance(record, dict) and isinstance(record.get("text"), str):
        return str(record["text"])
    if isinstance(record, dict) and isinstance(record.get("messages"), list):
        contents = [m.get("content") for m in record["messages"] if isinstance(m, dict)]
        if contents and all(isinstance(c, str) for c in contents):
            return "\n".join(str(c) for c in contents)
    raise InputError(f'{path}, line {number} has neither "text" nor "messages" with string contents; add one of them')


def zoo_documents(source: str = "zoo", seed: int = 0, count: int = 64) -> Documents:
    """Return the embedded model's texts: ``zoo`` (``count`` source files drawn by ``seed``) or ``zoo:heldout`` (all).

    Raises:
        InputError: for another name, or where this installation has none of the held-out files.
    """
    from bitwright import zoo  # the zoo reads the standard library's text: only when it is asked for

    wanted = source.partition(":")[2] or "calibration"
    if wanted == "heldout":
        texts = tuple(text for _, text in zoo.heldout_texts())
    elif wanted == "calibration":
        texts = tuple(text[:ZOO_CHARACTERS] for text in zoo.calibration_texts(seed, count))
    else:
        raise InputError(f"{source!r} is no text of the zoo; use 'zoo' (calibration) or 'zoo:heldout'")
    if not texts:
        raise InputError(
            "none of the zoo's held-out files is installed in its listed version; evaluate on 'zoo' instead"
        )
    return Documents(texts, source, "documents", _hash(texts))


def read_ids(path: Path | str, vocabulary: int | None = None, score_from: int | None = 1) -> TokenData:
    """Read token ids from a ``.safetensors`` or ``.npz`` file with an integer tensor ``ids`` ``[sequences, length]``.

    An optional ``mask`` of the same shape marks the real tokens (a prefix of every row).

    Raises:
        InputError: if the file or the tensor is missing or misshapen, or an id is outside the vocabulary.
    """
    path = Path(path)
    arrays = _load_arrays(path)
    if "ids" not in arrays:
        raise InputError(f"{path} has no tensor 'ids' (it has: {', '.join(arrays) or 'none'}); store the ids under it")
    ids = arrays["ids"]
    if ids.dtype not in _INTEGERS or ids.ndim not in (1, 2) or ids.numel() == 0:
        raise InputError(
            f"{path}: 'ids' is {ids.dtype} of shape {tuple(ids.shape)}; store integers [sequences, length]"
        )
    ids = ids.to(torch.int64).reshape(-1, ids.shape[-1])
    mask = arrays.get("mask", torch.ones_like(ids))
    if mask.numel() != ids.numel() or mask.is_complex():
        raise InputError(f"{path}: 'mask' has shape {tuple(mask.shape)}; store one flag per token of 'ids'")
    mask = mask.reshape(ids.shape).bool()
    rows = [row[keep] for row, keep in zip(ids, mask, strict=True)]
    start = "no token" if score_from is None else f"every token from position {score_from}"
    protocol = f"{path.name}: {len(rows)} sequences of stored token ids, {start} scored"
    return token_data(rows, path.name, protocol, score_from, vocabulary)


def _load_arrays(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise InputError(f"{path} does not exist; give a .safetensors or .npz file with a tensor 'ids'")
    try:
        check_file(path, MAX_ARRAY_BYTES)
        if path.suffix == ".safetensors":
            with safe_open(str(path), framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys() if name in ("ids", "mask")}  # noqa: SIM118
        if path.suffix == ".npz":
            check_npz(path, ("ids", "mask"))
            with np.load(path, allow_pickle=False) as file:
                return {name: _integers(file[name]) for name in ("ids", "mask") if name in file.files}
    except InputError:
        raise
    except (*_BROKEN, SafetensorError, RuntimeError, TypeError) as error:
        raise InputError(f"{path} cannot be read as token ids ({error}); write it again") from error
    raise InputError(f"{path}: token ids are read from .safetensors or .npz; convert the file")


def _integers(array: np.ndarray) -> Tensor:
    if array.dtype.kind not in "biu":
        return torch.from_numpy(array)  # refused by its dtype
    return torch.from_numpy(array.astype(np.int64) if array.dtype.kind == "u" else np.ascontiguousarray(array))


def _hash(texts: Iterable[str]) -> str:
    state = hashlib.sha256()
    for text in texts:
        state.update(text.encode("utf-8", "surrogatepass") + b"\0")
    return state.hexdigest()
