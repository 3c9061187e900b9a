"""Writes small native checkpoints from the description of the manifest alone, without the engine."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from bitwright.formats import QuantizedTensor, parse


def coded(w: Tensor, text: str) -> QuantizedTensor:
    """Round a flattened weight to nearest."""
    return QuantizedTensor((parse(text).quantize(w.float().flatten(1)),))


def write_native(
    folder: Path,
    model: nn.Module,
    weights: Mapping[str, str],
    *,
    kinds: Mapping[str, str] | None = None,
    inputs: Mapping[str, str] | None = None,
    online: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    removed: Sequence[str] = (),
    kv_cache: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
    shards: int = 1,
    extra: Mapping[str, Tensor] | None = None,
    drop: Sequence[str] = (),
) -> None:
    """Write ``model`` with the modules of ``weights`` (path to format text) coded.

    ``extra`` replaces or adds tensors, ``drop`` leaves tensors out.
    """
    kinds, inputs, online = kinds or {}, inputs or {}, online or {}
    folder.mkdir(parents=True, exist_ok=True)
    state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in model.state_dict().items()}
    modules: dict[str, Any] = {}
    for path in {**weights, **inputs}:
        module = model.get_submodule(path)
        transposed = type(module).__name__ == "Conv1D"
        entry: dict[str, Any] = {
            "kind": kinds.get(path, "linear"),
            "transposed": transposed,
            "weight": None,
            "input": {"format": inputs[path]} if path in inputs else None,
            "online": list(online.get(path, ())),
            "bias": f"{path}.bias" in state,
        }
        if path in weights:
            w = state.pop(f"{path}.weight")
            tensors, entry["weight"] = coded(w.T if transposed else w, weights[path]).to_tensors()
            state.update({f"{path}.weight_{key.replace('.', '_')}": value for key, value in tensors.items()})
        modules[path] = entry
    for path in removed:
        for name in [n for n in state if n.startswith(f"{path}.")]:
            del state[name]
    state.update(extra or {})
    for name in drop:
        del state[name]
    manifest = {
        "quant_method": "bitwright",
        "format_version": 1,
        "recipe": "rtn",
        "bitwright_version": "0.1.0",
        "modules": modules,
        "removed": list(removed),
        "kv_cache": kv_cache,
    }
    text = json.dumps({**(config or {}), "quantization_config": manifest})
    (folder / "config.json").write_text(text, encoding="utf-8")
    _write_shards(folder, state, shards)


def _write_shards(folder: Path, state: Mapping[str, Tensor], shards: int) -> None:
    unique: dict[int, str] = {}
    kept = {name: value.contiguous() for name, value in state.items() if unique.setdefault(id(value), name) == name}
    if shards == 1:
        save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
        return
    names = sorted(kept)
    weight_map: dict[str, str] = {}
    for index in range(shards):
        file = f"model-{index + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: kept[name] for name in names[index::shards]}
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(part, file))
    index_text = json.dumps({"metadata": {"total_size": 0}, "weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(index_text, encoding="utf-8")


def dequantized_twin(model: nn.Module, weights: Mapping[str, str], dtype: torch.dtype) -> nn.Module:
    """Put the rounded weights into the float model itself (changed in place): what a loaded checkpoint must equal."""
    model.to(dtype).float()
    for path, text in weights.items():
        parameter = model.get_submodule(path).weight
        w = parameter.detach()
        if type(model.get_submodule(path)).__name__ == "Conv1D":
            parameter.data = coded(w.T, text).dequantize().T.contiguous()
        else:
            parameter.data = coded(w, text).dequantize().view_as(w)
    return model
