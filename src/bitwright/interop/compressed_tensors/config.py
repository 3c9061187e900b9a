"""The ``quantization_config`` of compressed-tensors: groups of layers, their arguments, and what is left alone."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bitwright.formats import IntGrid
from bitwright.interop.compressed_tensors.activation import input_args
from bitwright.interop.compressed_tensors.scheme import MXFP4, NVFP4, Scheme
from bitwright.interop.compressed_tensors.tensors import block_structure

SPECIFICATION = "0.20.0"
"""The version of compressed-tensors whose schema and bit order the files follow."""

_SCALE_TYPES = {MXFP4: "torch.uint8", NVFP4: "torch.float8_e4m3fn"}


def weight_args(scheme: Scheme) -> dict[str, Any]:
    """Return the ``weights`` arguments of a layer."""
    grid = scheme.weight.grid
    args: dict[str, Any] = {
        "num_bits": grid.bits,
        "type": "int" if isinstance(grid, IntGrid) else "float",
        "symmetric": not isinstance(grid, IntGrid) or grid.signed,
        "strategy": scheme.strategy,
        "group_size": scheme.group,
        "dynamic": False,
    }
    if scheme.strategy == "block":
        args["block_structure"] = block_structure(scheme)
    if scheme.container in _SCALE_TYPES:
        args["scale_dtype"] = _SCALE_TYPES[scheme.container]
    return args


def _group(scheme: Scheme) -> dict[str, Any]:
    return {
        "weights": weight_args(scheme),
        "input_activations": None if scheme.input is None else input_args(scheme.input),
        "output_activations": None,
        "format": scheme.container,
    }


def quantization_config(schemes: Mapping[str, Scheme], linears: Sequence[str]) -> dict[str, Any]:
    """Return the config of layers by path; ``linears`` are all linear layers of the network.

    One scheme is written as the class ``Linear`` with everything else in ``ignore``; several by patterns that hold for
    their own layers and for no other, or by exact names.
    """
    groups: dict[str, tuple[dict[str, Any], list[str]]] = {}
    for path, scheme in schemes.items():
        group = _group(scheme)
        groups.setdefault(json.dumps(group, sort_keys=True), (group, []))[1].append(path)
    ignore = [path for path in linears if path not in schemes]
    alone = len(groups) == 1
    written = {
        f"group_{number}": {"targets": ["Linear"] if alone else targets(paths, linears), **group}
        for number, (group, paths) in enumerate(groups.values())
    }
    return {
        "quant_method": "compressed-tensors",
        "version": SPECIFICATION,
        "format": summary(schemes.values()),
        "quantization_status": "compressed",
        "config_groups": written,
        "ignore": ignore,
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
        "sparsity_config": {},
        "transform_config": {},
    }


def summary(schemes: Iterable[Scheme]) -> str:
    """The format of the whole model: the one container, or ``mixed-precision``."""
    containers = sorted({scheme.container for scheme in schemes})
    return containers[0] if len(containers) == 1 else "mixed-precision"


def targets(paths: Sequence[str], linears: Sequence[str]) -> list[str]:
    """Return patterns (numbers left open) that match these layers and no other, exact names where none does."""
    own, found = set(paths), []
    for path in paths:
        pattern = "\\.".join("\\d+" if part.isdigit() else re.escape(part) for part in path.split(".")) + "$"
        matched = {other for other in linears if re.match(pattern, other)}
        target = f"re:{pattern}" if "\\d+" in pattern and matched <= own else path
        if target not in found:
            found.append(target)
    return found
