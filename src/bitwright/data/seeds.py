"""Seeds of independent random streams, so that the order in which things happen cannot change a result."""

from __future__ import annotations

import hashlib

import torch


def stream(seed: int, *names: str) -> torch.Generator:
    """Return a CPU generator whose seed is a hash of ``seed`` and ``names`` (what the stream is for)."""
    digest = hashlib.sha256("/".join([str(seed), *names]).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
