"""Plans the export of a network: everything is decided, or refused, before a byte is written."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bitwright.formats import Block, Codes, QuantizedTensor, parse
from bitwright.interop.compressed_tensors.config import quantization_config, weight_args
from bitwright.interop.compressed_tensors.scheme import MXFP4, NVFP4, PACKED, Scheme, refuse, scheme_of
from bitwright.interop.compressed_tensors.tensors import pack, pack_input
from bitwright.interop.network import Network
from bitwright.runtime.manifest import ModuleEntry

FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Layers that runtimes join into one matrix with one global scale (vLLM)."""

_DTYPES = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}


@dataclass(frozen=True)
class CompressedTensorsPlan:
    """The schemes of all layers and the config that says them; ``widen`` stores scales as float32."""

    schemes: Mapping[str, Scheme]
    config: Mapping[str, Any]
    notes: tuple[str, ...]
    widen: bool = False

    @property
    def summary(self) -> str:
        """The format in config.json."""
        return str(self.config["quantization_config"]["format"])

    def pack(
        self, path: str, weight: QuantizedTensor, input_scale: Tensor | None, input_zero: Tensor | None
    ) -> dict[str, Tensor]:
        """Return the layer's tensors by full name."""
        scheme = self.schemes[path]
        codes = weight.terms[0]
        assert isinstance(codes, Codes)  # plan() refused everything else
        tensors = {**pack(codes, scheme), **pack_input(scheme, input_scale, input_zero)}
        if self.widen:
            tensors["weight_scale"] = tensors["weight_scale"].to(torch.float32)
        return {f"{path}.{name}": tensor for name, tensor in tensors.items()}

    def closing_notes(self, scalars: Mapping[str, Tensor]) -> tuple[str, ...]:
        """Say which layers that runtimes join have global scales of their own."""
        differing = 0
        for path in self.schemes:
            parent, _, leaf = path.rpartition(".")
            for names in FUSED:
                if leaf == names[0]:
                    values = [scalars.get(f"{parent}.{name}.weight_global_scale") for name in names]
                    differing += len({float(v) for v in values if v is not None}) > 1
        if not differing:
            return ()
        return (
            f"{differing} groups of layers that vLLM joins (q, k, v; gate, up) have different global scales: "
            "transformers reads them exactly, vLLM takes the largest for all",
        )


def plan(network: Network) -> CompressedTensorsPlan:
    """Decide how every layer is written.

    Raises:
        InputError: what compressed-tensors cannot express, with the nearest thing that it can.
    """
    manifest = network.manifest
    if manifest.kv_cache is not None:
        refuse("kv_cache", "stored caches have one static scale per layer and ours are measured", "a float cache")
    if manifest.removed:
        refuse(manifest.removed[0], "readers build every module of the architecture", "a recipe that folds nothing")
    shapes = {path: _coded_shape(path, entry, network) for path, entry in manifest.modules.items()}
    width = math.gcd(*(shape[1] for shape in shapes.values())) if shapes else 0
    if not shapes:
        refuse("the model", "no weight of it is quantized", "the float folder itself")
    schemes = {
        path: scheme_of(path, parse(_text(manifest.modules[path])), shape, manifest.modules[path].input, width)
        for path, shape in shapes.items()
    }
    config = dict(network.config)
    config["quantization_config"] = quantization_config(schemes, network.linears)
    if network.tied & set(schemes):
        config["tie_word_embeddings"] = False  # a coded head can no longer be the embedding
    return _for_readers(config, schemes, shapes)


def _text(entry: ModuleEntry) -> str:
    assert entry.weight is not None
    return str(entry.weight["terms"][0]["format"])


def _coded_shape(path: str, entry: ModuleEntry, network: Network) -> tuple[int, int]:
    """The shape ``[out, in]`` of a layer that is one term of codes on a plain ``nn.Linear``; others are refused."""
    if entry.kind != "linear" or path not in network.linears:
        what = "transposed" if entry.transposed else f"of the kind {entry.kind}"
        refuse(path, f"the layer is {what} and readers quantize nn.Linear only", "a float layer (select=linear)")
    if entry.online:
        kinds = ", ".join(sorted({operation.kind for operation in entry.online}))
        refuse(path, f"its input passes online operations ({kinds})", "a recipe without online operations, e.g. gptq")
    if entry.weight is None:
        refuse(path, "its input is quantized and its weight is float", "int8 channel weights")
    if entry.bias and path not in network.biases:
        refuse(path, "a correction added a bias that the architecture lacks", "the recipe without corrections")
    terms = entry.weight["terms"]
    if len(terms) != 1 or terms[0]["kind"] != "codes":
        kinds = " + ".join(str(term["kind"]) for term in terms)
        refuse(path, f"its weight is a sum of terms ({kinds})", "the recipe without residuals, one term of codes")
    shape = entry.weight["shape"]
    return int(shape[0]), int(shape[1])


def _for_readers(
    config: dict[str, Any], schemes: Mapping[str, Scheme], shapes: Mapping[str, tuple[int, int]]
) -> CompressedTensorsPlan:
    """Choose how transformers has to read the folder, and say what a reader has to know; see README.md, Readers."""
    quantization = config["quantization_config"]
    key = "dtype" if "dtype" in config or "torch_dtype" not in config else "torch_dtype"
    model = str(config.get(key) or "float32")
    used = list(schemes.values())
    scales = {_DTYPES[s.weight.scale.storage] for s in used if s.weight.scale.storage in _DTYPES}
    cast = bool(scales - {model})
    zeros = any(s.container == PACKED and not _symmetric(s) for s in used)
    float4 = any(s.container in (MXFP4, NVFP4) for s in used)
    plain = len(quantization["config_groups"]) == 1 and all(s.input is None for s in used)
    notes = _reader_notes(used, model)
    unpacked = plain and (zeros or (float4 and model != "bfloat16") or (cast and model != "float32"))
    if unpacked:
        quantization["dequantize"] = True
    elif zeros:
        notes.append(
            "transformers with compressed-tensors up to 0.20 opens packed zero points only where all layers share one "
            "scheme and inputs are float; other readers open these"
        )
    elif float4 and model != "bfloat16":
        config[key] = "bfloat16"
        notes.append(f"readers compute 4-bit floats in bfloat16, so config.json says so instead of {model}")
    elif cast and model != "float32":
        what = ", ".join(sorted(scales - {model}))
        notes.append(f"scales are {what} and readers cast them to {model}; load with dtype=float32 for exact weights")
    ragged = [p for p, s in schemes.items() if isinstance(b := s.weight.granularity, Block) and shapes[p][1] % b.cols]
    if ragged:
        notes.append(f"blocks do not divide the columns of {ragged[0]}: transformers pads them, vLLM refuses")
    return CompressedTensorsPlan(schemes, config, tuple(notes), widen=unpacked and cast)


def _reader_notes(used: list[Scheme], model: str) -> list[str]:
    notes = []
    dense = sorted({s.weight.grid.bits for s in used if s.container == PACKED} & {3, 5, 6, 7})
    if dense:
        bits = ", ".join(map(str, dense))
        notes.append(f"codes of {bits} bits are one dense bit stream: readers need compressed-tensors 0.16 or newer")
    if model != "bfloat16" and any(s.container == NVFP4 for s in used):
        notes.append("readers round nvfp4 weights to bfloat16")
    if model != "float32" and any(s.input is not None for s in used):
        notes.append(f"readers measure input scales in {model}, bitwright in float32")
    return notes


def _symmetric(scheme: Scheme) -> bool:
    return bool(weight_args(scheme)["symmetric"])
