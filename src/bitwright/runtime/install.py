"""Put quantized modules into a model, as a manifest says: on loaded models and on skeletons without memory."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from bitwright.errors import InputError
from bitwright.formats.saving import check_tensors
from bitwright.models.experts import eager_experts, is_expert_layer, put_stack
from bitwright.runtime.activation import ActivationQuantizer, is_static, static_size
from bitwright.runtime.conv import QuantConv1d, QuantConv2d
from bitwright.runtime.dispatch import Table
from bitwright.runtime.embedding import QuantEmbedding
from bitwright.runtime.geometry import ConvGeometry
from bitwright.runtime.kernels.table import TABLE
from bitwright.runtime.linear import QuantLinear
from bitwright.runtime.manifest import Manifest, ModuleEntry, StackEntry
from bitwright.runtime.module import Options, QuantModule, buffer_name


def install(
    model: nn.Module,
    manifest: Manifest,
    tensors: Mapping[str, Tensor],
    *,
    cache_weights: bool = False,
    table: Table = TABLE,
) -> nn.Module:
    """Replace the modules of ``manifest`` in place and return the model.

    Args:
        model: the float network, in memory or on the meta device.
        manifest: from :func:`bitwright.runtime.manifest.read_manifest`.
        tensors: the checkpoint's tensors by full name, ``<path>.weight_codes`` and so on; tensors on the meta device
            make a skeleton that is filled later (``load_state_dict(..., assign=True)``).
        cache_weights: let modules keep one dequantized copy of their weight: fast on small models, large on others.
        table: kernels to choose from.

    Raises:
        InputError: if a path is not in the model, or tensors are missing or do not fit.
    """
    for path, stack in manifest.experts.items():
        _open_stack(model, path, stack)
    if manifest.experts:
        eager_experts(model)
    for path in manifest.removed:
        _replace(model, path, nn.Identity())
    for path, entry in manifest.modules.items():
        source = _submodule(model, path)
        made = _make(path, entry, source, tensors, cache_weights, table)
        _replace(model, path, made.train(source.training))
    return model


def _open_stack(model: nn.Module, path: str, stack: StackEntry) -> None:
    """Put layers in the place of a parameter that holds several experts (nothing to do where they are there already).

    Raises:
        InputError: if the network has no such parameter.
    """
    parent, _, leaf = path.rpartition(".")
    owner = _submodule(model, parent)
    if is_expert_layer(getattr(owner, leaf, None)):
        return
    parameter = owner._parameters.get(leaf)
    stored = stack.shape[::-1] if stack.transposed else stack.shape
    shapes = ((stack.experts, *stored), (stack.experts * stored[0], stored[1]))
    if parameter is None or tuple(parameter.shape) not in shapes:
        raise InputError(f"the network has no parameter {path} of {stack.experts} experts; the config does not fit")
    put_stack(model, path, stack.transposed, stack.experts)


def _make(
    path: str, entry: ModuleEntry, source: nn.Module, tensors: Mapping[str, Tensor], cache_weights: bool, table: Table
) -> QuantModule:
    shape = _shape(path, entry, source)
    weight = None
    if entry.weight is not None:
        weight = packed_tensors(path, entry.weight, tensors)
        check_weight(path, entry.weight, weight)
    for operation in entry.online:
        if shape[1] % int(operation.option("size")):
            raise InputError(f"{path} has {shape[1]} inputs, which {operation} does not fit; quantize again")
    bias = _bias(path, entry, source, tensors)
    dtype = _weight_of(path, source).dtype
    quantizer = _quantizer(path, entry, shape[1], tensors)
    options = Options(quantizer, entry.online, cache_weights=cache_weights, table=table, dtype=dtype)
    if entry.kind == "embedding":
        if entry.weight is None or quantizer is not None or entry.online:
            raise InputError(f"the embedding {path} can only have a quantized weight; quantize again")
        return QuantEmbedding(weight, entry.weight, shape, options=options)
    made: QuantModule
    if entry.kind == "conv":
        if not isinstance(source, nn.Conv1d | nn.Conv2d):
            raise InputError(f"{path} is a {type(source).__name__}; only Conv1d and Conv2d modules run as convolutions")
        kind = QuantConv1d if isinstance(source, nn.Conv1d) else QuantConv2d
        made = kind(weight, entry.weight, shape, bias, ConvGeometry.of(source), options=options)
    else:
        made = QuantLinear(weight, entry.weight, shape, bias, options=options)
        made.transposed = entry.transposed
    if entry.weight is None:
        name = f"{path}.weight"
        made.weight = nn.Parameter(tensors[name] if name in tensors else _weight_of(path, source), requires_grad=False)
    return made


def _quantizer(
    path: str, entry: ModuleEntry, columns: int, tensors: Mapping[str, Tensor]
) -> ActivationQuantizer | None:
    if entry.input is None:
        return None
    if not is_static(entry.input):
        return ActivationQuantizer(entry.input)
    scale = _required(f"{path}.input_scale", tensors)
    if scale.numel() not in (1, static_size(entry.input, columns)) and entry.kind == "linear":
        raise InputError(f"{path}.input_scale has {scale.numel()} values for {columns} channels; quantize again")
    zero = _required(f"{path}.input_zero", tensors) if entry.input.asymmetric else None
    return ActivationQuantizer(entry.input, scale, zero)


def packed_tensors(path: str, meta: Mapping[str, object], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the packed tensors of a module's weight by their keys in ``QuantizedTensor.to_tensors``.

    Raises:
        InputError: if one is missing.
    """
    found: dict[str, Tensor] = {}
    for key, required in weight_keys(meta):
        name = f"{path}.{buffer_name(key)}"
        if name in tensors:
            found[key] = tensors[name]
        elif required:
            raise InputError(f"the checkpoint lacks the tensor {name}; quantize again")
    return found


def check_weight(path: str, meta: Mapping[str, object], tensors: Mapping[str, Tensor]) -> None:
    """Check the packed tensors of a module against its metadata, by shape and type.

    Raises:
        InputError: naming the module.
    """
    try:
        check_tensors(tensors, meta)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def weight_keys(meta: Mapping[str, object]) -> list[tuple[str, bool]]:
    """Keys that the terms of ``meta`` may have, and whether each must be there."""
    coded = [
        ("codes", True), ("scale", False), ("scale_outer", False), ("scale_offset", False), ("zero", False),
        ("codebook", False),
    ]  # fmt: skip
    keys: list[tuple[str, bool]] = []
    terms = meta.get("terms")
    if not isinstance(terms, list | tuple) or not all(isinstance(term, Mapping) for term in terms):
        raise InputError("the metadata's terms are not a list of objects; quantize again")
    for term in terms:
        prefix, kind = str(term.get("prefix", "")), term.get("kind")
        if kind == "codes":
            keys += [(prefix + name, required) for name, required in coded]
        elif kind == "sparse":
            keys += [(prefix + name, True) for name in ("indptr", "indices", "values")]
        elif kind == "groups":
            keys += [(prefix + name, required) for name, required in coded] + [(prefix + "which", True)]
        elif kind == "lowrank":
            for side in ("left", "right"):
                if term.get(side) == "float":
                    keys.append((prefix + side, True))
                else:
                    keys += [(f"{prefix}{side}.{name}", required) for name, required in coded]
    return keys


def _shape(path: str, entry: ModuleEntry, source: nn.Module) -> tuple[int, int]:
    """``(out, in)``: from the metadata, checked against the float module where that still has its weight."""
    weight = _weight_of(path, source)
    if weight.dim() == 2 and entry.transposed:
        expected = (weight.shape[1], weight.shape[0])
    else:
        expected = (weight.shape[0], weight[0].numel() if weight.shape[0] else 0)
    if entry.weight is None:
        return expected
    stored = entry.weight.get("shape")
    if not isinstance(stored, list | tuple) or tuple(stored) != expected:
        raise InputError(f"{path} is {expected} in the network and {stored} in the checkpoint; the config does not fit")
    return expected


def _bias(path: str, entry: ModuleEntry, source: nn.Module, tensors: Mapping[str, Tensor]) -> Tensor | None:
    if not entry.bias:
        return None
    name = f"{path}.bias"
    if name in tensors:
        bias = tensors[name]
        weight = _weight_of(path, source)
        # A skeleton is filled later; what is there now takes the dtype of the module it replaces.
        return bias.to(weight.dtype) if bias.is_floating_point() else bias
    present = getattr(source, "bias", None)
    if not isinstance(present, Tensor):
        raise InputError(f"the checkpoint lacks the tensor {name}; quantize again")
    return present.detach()


def _required(name: str, tensors: Mapping[str, Tensor]) -> Tensor:
    if name not in tensors:
        raise InputError(f"the checkpoint lacks the tensor {name}; quantize again")
    return tensors[name]


def _weight_of(path: str, source: nn.Module) -> Tensor:
    weight = getattr(source, "weight", None)
    if not isinstance(weight, torch.Tensor):
        raise InputError(f"{path} is a {type(source).__name__} without a weight; the manifest does not fit the network")
    return weight.detach()


def _submodule(model: nn.Module, path: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        raise InputError(f"the network has no module {path}; the manifest does not fit it") from error


def _replace(model: nn.Module, path: str, module: nn.Module) -> None:
    _submodule(model, path)
    if not path:
        raise InputError("the whole network cannot be one quantized module; wrap it in a container")
    parent, _, leaf = path.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)
