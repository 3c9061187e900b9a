"""What a checkpoint holds and what serves it: kernels, what stayed float and why, online operations, decoding step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from bitwright.errors import InputError
from bitwright.jobs.opened_model import RunnableModel, open_runnable
from bitwright.jobs.report import REPORT
from bitwright.models import Checkpoint
from bitwright.models.checkpoint import inside, read_json
from bitwright.runtime import QuantModule
from bitwright.runtime.overview import (
    FloatArray,
    attention_words,
    float_arrays,
    module_kernels,
    online_kernels,
)

if TYPE_CHECKING:
    from bitwright.runtime.native_decoder import Found

_VECTORS = {"bias": "a bias: rules select matrices", "vector": "norm gains and other vectors: rules select matrices"}


def inspect_model(name: str, native: bool = True) -> dict[str, Any]:
    """Modules of a checkpoint with formats, bits and kernels; what stays float and why; what decodes it.

    Kernels are those for one token. ``kernel`` is taken where activations may be rounded to 8 bits (``generate``,
    ``bench``, ``serve``), ``kernel_exact`` where not (``load``, ``eval``, ``compare``, ``--exact``).

    Args:
        native: find out whether the compiled decoding step serves the model, which runs it on a few tokens.

    Raises:
        InputError: if the folder is missing or damaged.
    """
    opened = open_runnable(name, cache_weights=False, exact=False)
    found = _decoders(opened.module, native)
    modules, coded = _modules(opened.module)
    total, count = opened.stored_bytes, 0
    if opened.folder is not None:
        checkpoint = Checkpoint.open(opened.folder)
        total, count = sum(i.bytes for i in checkpoint.tensors.values()), len(checkpoint.tensors)
    manifest = opened.manifest or {}
    step = {} if found is None or found.network is None else found.network.kernels
    dtype = next((p.dtype for p in opened.module.parameters() if p.is_floating_point()), None)
    return {
        "model": name, "recipe": str(manifest.get("recipe", "float")), "modules": modules, "tensors": count,
        "bytes": total, "float_bytes": max(0, total - coded), "kv_cache": manifest.get("kv_cache"),
        "floats": _floats(opened, step), "removed": list(manifest.get("removed") or ()),
        "decoder": _decoder_words(found),
        "attention": None if found is None or dtype is None else attention_words(
            manifest.get("kv_cache"), dtype, found.native
        ),
    }  # fmt: skip


def _decoders(model: nn.Module, native: bool) -> Found | None:
    """Decoders of a language model; ``None`` for another network."""
    if not isinstance(getattr(getattr(model, "config", None), "vocab_size", None), int):
        return None
    try:
        from bitwright.runtime.native_decoder import find_decoders

        return find_decoders(model, native=native)
    except (ImportError, InputError):
        return None


def _decoder_words(found: Found | None) -> dict[str, Any] | None:
    if found is None:
        return None
    kernels = {} if found.network is None else found.network.kernels
    return {
        "decoder": "native" if found.native else "modules", "reason": found.reason, "error": found.error,
        "kernels": kernels,
    }  # fmt: skip


def _modules(model: nn.Module) -> tuple[list[dict[str, Any]], int]:
    """Rows of the quantized modules, and the bytes of their coded weights."""
    rows: list[dict[str, Any]] = []
    coded = 0
    for path, module in model.named_modules():
        if not isinstance(module, QuantModule):
            continue
        quantized, meta, names = module.quantized(), module.meta(), module_kernels(module)
        coded += 0 if quantized is None else quantized.storage_bits() // 8
        rows.append(
            {
                "path": path,
                "format": str(quantized.codes.format) if quantized is not None and quantized.codes else "float",
                "terms": quantized.normal_form if quantized is not None else "",
                "input": "" if meta["input"] is None else meta["input"]["format"],
                "online": [o["kind"] for o in meta["online"]],
                "online_kernels": online_kernels(module),
                "bits_per_weight": quantized.bits_per_weight if quantized is not None else None,
                "kernel": names.kernel,
                "kernel_exact": names.exact,
                "passed_over": [list(pair) for pair in names.passed_over],
            }
        )
    return rows, coded


def _floats(opened: RunnableModel, step: Mapping[str, str]) -> list[dict[str, Any]]:
    """Rows of the arrays that stay float; ``step`` names the kernels of the compiled decoding step."""
    reasons = _reasons(opened)
    rows = []
    for array in float_arrays(opened.module):
        paths = (array.module, *(name.rpartition(".")[0] for name in array.shared))
        compiled = [step[path] for path in paths if path in step and step[path] != "shared"]
        rows.append(
            {
                "name": array.name, "kind": array.kind, "shape": list(array.shape), "bytes": array.bytes,
                "reason": _reason(array, reasons, opened.manifest is not None), "kernel": array.kernel,
                "kernel_exact": array.kernel, "step": compiled[0] if compiled else None,
                "shared": list(array.shared),
            }
        )  # fmt: skip
    return rows


def _reasons(opened: RunnableModel) -> dict[str, str]:
    """Why layers stayed float, by path, as the report beside the weights says."""
    folder = opened.folder
    if folder is None or opened.manifest is None or not (folder / REPORT).is_file():
        return {}
    try:
        kept = read_json(inside(folder, REPORT)).get("kept_float")
    except InputError:  # the weights are sound without it
        return {}
    rows = kept if isinstance(kept, list) else []
    return {str(row["path"]): str(row.get("reason", "")) for row in rows if isinstance(row, dict) and "path" in row}


def _reason(array: FloatArray, reasons: Mapping[str, str], quantized: bool) -> str:
    if not quantized:
        return "the model is not quantized"
    known = reasons.get(array.module) or reasons.get(array.name)
    if known and array.kind not in _VECTORS:
        return known
    return _VECTORS.get(array.kind) or "no rule took it"
