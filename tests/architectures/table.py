"""Measure classes one after another, each in a process of its own, and write what was found.

    python -m tests.architectures.table run causal [--only TYPE,TYPE] [--again] [--stale] [--timeout 180]
    python -m tests.architectures.table page

Results are kept, one line per class, in ``benchmarks/results/architectures.jsonl``: a class that is there is not
measured again without ``--again``, so a run that was stopped continues; ``--stale`` measures those again that were made
by another state of the code. The page is ``docs/architectures.md``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import resource
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "architectures.jsonl"
MEMORY = 8 * 2**30


def read(path: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """Rows by key; the last one of a key counts (a torn last line is left out)."""
    rows: dict[str, dict[str, Any]] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        rows[row["key"]] = row
    return rows


def write(rows: Iterable[dict[str, Any]], path: Path) -> None:
    """All rows, in the order of their keys."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ordered = sorted(rows, key=lambda row: str(row["key"]))
    path.write_text("".join(json.dumps(row, sort_keys=True) + "\n" for row in ordered))


def run(mapping: str, only: set[str], again: bool, stale: bool, timeout: float, path: Path) -> None:
    """Measure a mapping's classes that have no row yet (with ``stale`` also those of another state of the code)."""
    from tests.architectures.mappings import MAPPINGS, entries
    from tests.architectures.others import entries_of

    known, state = read(path), state_of_code()
    for entry in entries(mapping) if mapping in MAPPINGS else entries_of(mapping):
        done = entry.key in known and (not stale or known[entry.key].get("code") == state)
        if (only and entry.model_type not in only) or (done and not again):
            continue
        row = {**_apart(entry, timeout), "code": state}
        with path.open("a") as file:
            file.write(json.dumps(row, sort_keys=True) + "\n")
        print(_line(row), flush=True)
    write(read(path).values(), path)


def state_of_code() -> str:
    """A digest of the sources that a row follows from: discovery, transforms, and how the table is made."""
    folders = ("src/bitwright/models", "src/bitwright/stages/transforms", "tests/architectures")
    digest = hashlib.sha256()
    for path in sorted(path for folder in folders for path in (ROOT / folder).glob("*.py")):
        if path.name not in ("page.py", "table.py") and not path.name.startswith("test_"):
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def _apart(entry: Any, timeout: float) -> dict[str, Any]:
    """Measure one class in a forked process, which may crash or hang."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_work, args=(entry, sender))
    child.start()
    sender.close()
    row: dict[str, Any] | None = None
    try:
        row = receiver.recv() if receiver.poll(timeout) else None
    except EOFError:
        row = {"key": entry.key, "built": False, "reason": "the process ended without a word"}
    if row is None:
        row = {"key": entry.key, "built": False, "reason": f"not done after {timeout:.0f} s"}
        child.kill()
    child.join()
    return row


def _work(entry: Any, sender: Any) -> None:
    from tests.architectures.measuring import Row, measure

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    os.close(2)
    os.open(os.devnull, os.O_WRONLY)
    try:
        row = measure(entry)
    except BaseException as error:
        row = Row(entry.key, reason=f"{type(error).__name__}: {str(error)[:300]}")
    sender.send(asdict(row))


def _warm_up() -> None:
    """Import once, before the processes are forked, what every measurement needs."""
    import torch

    from tests.architectures.mappings import Entry
    from tests.architectures.measuring import measure

    torch.set_num_threads(1)
    measure(Entry("causal", "llama", "LlamaForCausalLM"))


def _line(row: dict[str, Any]) -> str:
    if not row["built"]:
        return f"{row['key']}: {row['reason']}"
    kept = {name: value["error"] if value["error"] is not None else "-" for name, value in row["kept"].items()}
    return (
        f"{row['key']}: blocks {row['blocks']} accounted {row['accounted']:.3f} coded {row['coded']:.3f} "
        f"rtn {row['rtn'][:40]} gptq {row['gptq'][:40]} kept {kept} {row['seconds']} s {row['reason']}"
    )


def main(arguments: list[str]) -> None:
    """Run or write the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("action", choices=["run", "page"])
    parser.add_argument("mapping", nargs="*", default=["causal"])
    parser.add_argument("--only", default="")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--stale", action="store_true")
    parser.add_argument("--timeout", type=float, default=180.0)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    if options.action == "page":
        from tests.architectures.page import page

        (ROOT / "docs" / "architectures.md").write_text(page(read(options.results)))
        return
    _warm_up()
    for mapping in options.mapping:
        run(
            mapping,
            set(filter(None, options.only.split(","))),
            options.again,
            options.stale,
            options.timeout,
            options.results,
        )


if __name__ == "__main__":
    main(sys.argv[1:])
