"""What a GGUF file holds and what a model is made of, as plain values."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from bitwright.data.images import zoo_digits
from bitwright.errors import InputError
from bitwright.interop.gguf import is_gguf, read_gguf
from bitwright.jobs.request import model_source
from bitwright.models import Checkpoint, discover, open_model
from bitwright.models.experts import open_experts
from bitwright.models.rules import NO_RULES, read_rules

# Items of an array of metadata that are shown whole.
_SHOWN = 8


def gguf_path(name: str) -> Path | None:
    """The file that a name means, where it is a GGUF file."""
    path = Path(name)
    return path if path.is_file() and (path.suffix == ".gguf" or is_gguf(path)) else None


def inspect_gguf(path: Path) -> dict[str, Any]:
    """Metadata and tensors of a GGUF file, as JSON values; long arrays are cut to their first and last items.

    Raises:
        InputError: if the file cannot be trusted.
    """
    file = read_gguf(path)
    tensors = [
        {
            "name": t.name, "type": t.type.name, "shape": list(t.shape), "bytes": t.bytes,
            "bits_per_weight": t.type.bits,
        }
        for t in file.tensors.values()
    ]  # fmt: skip
    return {
        "model": str(path), "format": f"GGUF {file.version}", "alignment": file.alignment,
        "metadata": {key: _plain(value) for key, value in file.metadata.items()}, "tensors": tensors,
        "bytes": sum(t.bytes for t in file.tensors.values()),
    }  # fmt: skip


def _plain(value: Any) -> Any:
    """A metadata value as JSON says it."""
    if not isinstance(value, tuple | np.ndarray):
        # JSON has no NaN.
        return str(value) if isinstance(value, float) and not math.isfinite(value) else value
    items = [_plain(item) for item in (value if len(value) <= _SHOWN else (*value[:3], *value[-1:]))]
    items = [item.item() if isinstance(item, np.generic) else item for item in items]
    return items if len(value) <= _SHOWN else [*items[:3], f"({len(value) - 4:,} more)", items[3]]


def inspect_structure(name: str, rules: str = "") -> dict[str, Any]:
    """What discovery finds, as JSON values; ``rules`` is the path of a rule file.

    Raises:
        InputError: for a quantized folder (its float model was discovered when it was made).
    """
    source = model_source(name)
    said = read_rules(rules) if rules else NO_RULES
    if isinstance(source, nn.Module):
        example = next(iter(zoo_digits("test").first(2).for_module(source).batches(2)))
        return asdict(discover(open_model(source), example, rules=said))
    if "quantization_config" in Checkpoint.open(Path(source)).config:
        raise InputError(f"{name} is quantized; inspect the structure of the float model it was made from")
    model = open_model(source, stream=True)
    open_experts(model)
    return asdict(discover(model, rules=said))
