"""The ledger of measured claims: one JSON line per claim, the newest measurement wins."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bitwright.models.writer import write_text


def read_ledger(path: Path) -> dict[str, dict[str, Any]]:
    """Claims by name; empty where there is no ledger."""
    if not path.is_file():
        return {}
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return {line["name"]: line for line in lines}


def write_ledger(path: Path, claims: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the ledger atomically, sorted by name."""
    text = "".join(json.dumps(claims[name], sort_keys=True) + "\n" for name in sorted(claims))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
