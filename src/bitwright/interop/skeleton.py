"""The float network behind a quantized folder, without memory: which layers it has and what they share."""

from __future__ import annotations

from collections import Counter

from torch import nn

from bitwright.errors import InputError
from bitwright.interop.network import Network
from bitwright.models.checkpoint import Checkpoint
from bitwright.models.model import skeleton_of
from bitwright.runtime import Manifest


def network_of(checkpoint: Checkpoint, manifest: Manifest) -> Network:
    """Say what an exporter has to know of the network in a folder.

    Raises:
        InputError: a folder that was written for a plain module, or whose network cannot be built.
    """
    if "model_type" not in checkpoint.config:
        raise InputError(
            f"{checkpoint.path}: not representable because it was written for a plain nn.Module and its readers are "
            "transformers; nearest legal: quantize the transformers folder of the model"
        )
    module = skeleton_of(checkpoint)
    linears = {path: layer for path, layer in module.named_modules() if isinstance(layer, nn.Linear)}
    uses = Counter(id(parameter) for _, parameter in module.named_parameters(remove_duplicate=False))
    return Network(
        manifest=manifest,
        config=checkpoint.config,
        linears=tuple(linears),
        biases=frozenset(path for path, layer in linears.items() if layer.bias is not None),
        tied=frozenset(path for path, layer in linears.items() if uses[id(layer.weight)] > 1),
    )
