"""What a checkpoint holds and what a model is made of, as plain values."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from bitwright.data.images import zoo_digits
from bitwright.errors import InputError
from bitwright.jobs.opened_model import open_runnable
from bitwright.jobs.request import model_source
from bitwright.models import Checkpoint, discover, open_model
from bitwright.models.experts import open_experts
from bitwright.models.rules import NO_RULES, read_rules
from bitwright.runtime import QuantModule, describe


def inspect_model(name: str) -> dict[str, Any]:
    """Modules of a checkpoint with formats, bits and kernels; bytes that stay float."""
    opened = open_runnable(name, cache_weights=False)
    served = {s.path: s for s in describe(opened.module, rows=1)}
    modules = []
    coded = 0
    for path, module in opened.module.named_modules():
        if not isinstance(module, QuantModule):
            continue
        quantized = module.quantized()
        if quantized is not None:
            coded += quantized.storage_bits() // 8
        meta = module.meta()
        modules.append(
            {
                "path": path,
                "format": str(quantized.codes.format) if quantized is not None and quantized.codes else "float",
                "terms": quantized.normal_form if quantized is not None else "",
                "input": "" if meta["input"] is None else meta["input"]["format"],
                "online": [o["kind"] for o in meta["online"]],
                "bits_per_weight": quantized.bits_per_weight if quantized is not None else None,
                "kernel": served[path].kernel if path in served else "torch",
            }
        )
    total, count = opened.stored_bytes, 0
    if opened.folder is not None:
        checkpoint = Checkpoint.open(opened.folder)
        total, count = sum(i.bytes for i in checkpoint.tensors.values()), len(checkpoint.tensors)
    recipe = str((opened.manifest or {}).get("recipe", "float"))
    return {
        "model": name, "recipe": recipe, "modules": modules, "tensors": count, "bytes": total,
        "float_bytes": max(0, total - coded), "kv_cache": (opened.manifest or {}).get("kv_cache"),
    }  # fmt: skip


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
