"""Puts a coded module into the running model, exactly as a loader will do it from the file."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from bitwright.jobs.result import ModuleResult
from bitwright.runtime.install import install
from bitwright.runtime.kernels.table import REFERENCE
from bitwright.runtime.manifest import Manifest, ModuleEntry
from bitwright.runtime.online import run_online
from bitwright.stages.transforms import OnlineOperation


def install_module(root: nn.Module, result: ModuleResult, *, cache_weights: bool) -> None:
    """Replace the module at ``result.path`` by its quantized form, which runs by definition.

    Installing again over a quantized module needs the float one (its geometry), which is therefore kept beside the
    quantized one until the unit is finished; see :func:`forget_float`.
    """
    entry = ModuleEntry(
        result.kind,
        result.packed()[1] if result.weight is not None else None,
        result.input_format,
        result.online,
        result.bias is not None,
        result.transposed,
    )
    tensors = result.tensors()
    source = root.get_submodule(result.path)
    kept = getattr(source, "float_source", None)
    if kept is not None:
        parent, _, leaf = result.path.rpartition(".")
        setattr(root.get_submodule(parent), leaf, kept)
        source = kept
    install(root, Manifest({result.path: entry}), tensors, cache_weights=cache_weights, table=REFERENCE)
    # A plain attribute, not a submodule: the float module must not appear among the model's parameters.
    root.get_submodule(result.path).__dict__["float_source"] = source


def forget_float(root: nn.Module, paths: list[str]) -> None:
    """Let go of the float modules of a finished unit."""
    for path in paths:
        root.get_submodule(path).__dict__.pop("float_source", None)


def restore_float(root: nn.Module, paths: list[str]) -> None:
    """Put the float modules of a finished unit back, so that the unit can be emptied and its memory freed."""
    for path in paths:
        kept = root.get_submodule(path).__dict__.get("float_source")
        if kept is not None:
            parent, _, leaf = path.rpartition(".")
            setattr(root.get_submodule(parent), leaf, kept)


def install_online(root: nn.Module, path: str, operations: Sequence[OnlineOperation]) -> None:
    """Run operations on a float module's input, until a quantized module that owns them takes its place."""
    module = root.get_submodule(path)
    earlier = module.__dict__.get("bitwright_online")
    if earlier is not None:
        earlier.remove()
    kept = tuple(operations)
    handle = module.register_forward_pre_hook(lambda _, args: (run_online(args[0], kept, REFERENCE), *args[1:]))
    module.__dict__["bitwright_online"] = handle
