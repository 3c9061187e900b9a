"""The float network behind a quantized folder, without memory: which layers it has and what they share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bitwright.errors import InputError
from bitwright.interop.network import Network
from bitwright.runtime import Manifest


def network_of(folder: Path, config: Mapping[str, Any], manifest: Manifest) -> Network:
    """Say what an exporter has to know of the network in a folder.

    Raises:
        InputError: a folder that was written for a plain module, or whose network cannot be built.
    """
    if "model_type" not in config:
        raise InputError(
            f"{folder}: not representable because it was written for a plain nn.Module and its readers are "
            "transformers; nearest legal: quantize the transformers folder of the model"
        )
    module = _build(folder, config)
    linears = {path: layer for path, layer in module.named_modules() if isinstance(layer, nn.Linear)}
    uses = Counter(id(parameter) for _, parameter in module.named_parameters(remove_duplicate=False))
    return Network(
        manifest=manifest,
        config=config,
        linears=tuple(linears),
        biases=frozenset(path for path, layer in linears.items() if layer.bias is not None),
        tied=frozenset(path for path, layer in linears.items() if uses[id(layer.weight)] > 1),
    )


def _build(folder: Path, config: Mapping[str, Any]) -> nn.Module:
    """The module on the meta device, of the class that config.json names."""
    try:
        import transformers
    except ImportError as error:
        raise InputError("exporting a model folder needs transformers; install bitwright[hf]") from error
    try:
        found = transformers.AutoConfig.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
        if hasattr(found, "quantization_config"):
            del found.quantization_config
        build: Any = transformers.AutoModel.from_config
        for name in config.get("architectures") or ():
            kind = getattr(transformers, str(name), None)
            if isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel):
                build = kind
                break
        with torch.device("meta"):
            module: nn.Module = build(found)
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(f"{folder}: its network cannot be built ({lines[0]}); check config.json") from error
    tie = getattr(module, "tie_weights", None)
    if callable(tie):
        tie()
    return module
