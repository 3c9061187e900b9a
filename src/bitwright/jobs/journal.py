"""The journal of a job: what is finished, and under which inputs it was made.

``OUT.partial/journal.jsonl`` begins with a header line that names everything the result depends on; each finished unit
adds one line with the digests of its files. A line is synced before the next unit starts, so a torn last line only
costs that unit. Keys keep their order, so that a resumed job lists its modules as an uninterrupted one does.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitwright.errors import InputError

FORMAT_VERSION = 1
NAME = "journal.jsonl"


@dataclass(frozen=True)
class Entry:
    """A finished unit: its name, its shard file and the file's sha256, and small facts for the report."""

    unit: str
    file: str
    sha256: str
    facts: Mapping[str, Any]

    def as_json(self) -> dict[str, Any]:
        """The journal line."""
        return {"unit": self.unit, "file": self.file, "sha256": self.sha256, "facts": dict(self.facts)}


class Journal:
    """Append-only record in the job's working folder."""

    def __init__(self, folder: Path, identity: Mapping[str, Any], machine: Mapping[str, Any]) -> None:
        self.path = folder / NAME
        self.header: dict[str, Any] = {"format_version": FORMAT_VERSION, "identity": dict(identity)}
        self.header["machine"] = dict(machine)
        self.moved: list[str] = []
        self.entries: list[Entry] = []

    def open(self) -> None:
        """Read what an earlier run left, or begin.

        ``moved`` then says in words what differs of the machine (instruction set, threads, versions): the job can go
        on there, but the bytes may not be those of an uninterrupted run.

        Raises:
            InputError: if the earlier run had other inputs; the difference is named.
        """
        lines = _complete_lines(self.path)
        if lines:
            self._check(lines[0])
            for line in lines[1:]:
                entry = _entry(line)
                if entry is None:
                    break
                self.entries.append(entry)
        # Drops a torn last line.
        self._rewrite([*(lines[:1] or [self.header]), *(entry.as_json() for entry in self.entries)])

    def _rewrite(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Put other lines in the place of the journal's, by one rename."""
        partial = self.path.with_suffix(".new")
        with partial.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, self.path)

    def _check(self, header: Mapping[str, Any]) -> None:
        known = all(isinstance(header.get(part), dict) for part in ("identity", "machine"))
        if header.get("format_version") != FORMAT_VERSION or not known:
            raise InputError(f"{self.path} was written by another version; remove {self.path.parent} to start anew")
        earlier = header.get("identity", {})
        current = self.header["identity"]
        for key in sorted({*earlier, *current}):
            if earlier.get(key) != current.get(key):
                words = _difference(earlier.get(key), current.get(key))
                raise InputError(
                    f"{self.path.parent} holds a job with another {key} ({words}); use the same {key}, another --out, "
                    "or remove the folder"
                )
        before, now = header.get("machine", {}), self.header["machine"]
        differing = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
        self.moved = [f"{key} was {before.get(key)} and is {now.get(key)}" for key in differing]

    def add(self, entry: Entry) -> None:
        """Record a finished unit; returns once it is on disk."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry.as_json()) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.entries.append(entry)

    def verified(self) -> list[Entry]:
        """The finished units whose files still have the recorded digest, up to the first that does not."""
        good = []
        for entry in self.entries:
            path = self.path.parent / entry.file
            if not path.is_file() or file_digest(path) != entry.sha256:
                break
            good.append(entry)
        return good

    def truncate(self, count: int) -> None:
        """Forget all but the first ``count`` units (their files were damaged)."""
        if count == len(self.entries):
            return
        self.entries = self.entries[:count]
        self._rewrite([self.header, *(entry.as_json() for entry in self.entries)])


def recorded_machine(folder: Path) -> dict[str, Any]:
    """What the journal in ``folder`` says of the machine where its job began; empty without a journal."""
    lines = _complete_lines(folder / NAME)
    found = lines[0].get("machine") if lines else None
    return dict(found) if isinstance(found, dict) else {}


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _complete_lines(path: Path) -> list[dict[str, Any]]:
    """The lines up to the first that is no JSON object: a torn one, or what a power loss left of its block."""
    if not path.is_file():
        return []
    found: list[dict[str, Any]] = []
    for text in path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]:
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            break
        if not isinstance(line, dict):
            break
        found.append(line)
    return found


def _entry(line: Mapping[str, Any]) -> Entry | None:
    """A finished unit as its line describes it; None where the line is none of ours."""
    unit, file, digest, facts = (line.get(key) for key in ("unit", "file", "sha256", "facts"))
    if not (isinstance(unit, str) and isinstance(file, str) and isinstance(digest, str) and isinstance(facts, dict)):
        return None
    return Entry(unit, file, digest, facts) if Path(file).name == file else None


def _difference(before: object, now: object) -> str:
    """Two values in words, long ones from where they begin to differ."""
    first, second = (json.dumps(value, sort_keys=True) for value in (before, now))
    start = next((i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), 0)
    start = max(0, start - 60) if max(len(first), len(second)) > 80 else 0
    return f"{_cut(first, start)} there, {_cut(second, start)} now"


def _cut(text: str, start: int) -> str:
    part = text[start : start + 80]
    return ("..." if start else "") + part + ("..." if start + 80 < len(text) else "")
