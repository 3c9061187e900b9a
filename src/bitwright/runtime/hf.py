"""How transformers loads native checkpoints: its quantizer and configuration classes for ``quant_method: bitwright``.

:func:`register` is called by ``import bitwright.transformers`` and by our own loader; it is the one side effect.
"""

from __future__ import annotations

import copy
import re
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.quantizers.auto import (
    AUTO_QUANTIZATION_CONFIG_MAPPING,
    register_quantization_config,
    register_quantizer,
)
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from bitwright.errors import InputError
from bitwright.models.checkpoint import TORCH_DTYPES
from bitwright.models.header import read_header
from bitwright.runtime.cache import attach_cache, cache_factory
from bitwright.runtime.install import install
from bitwright.runtime.manifest import QUANT_METHOD, Manifest, read_manifest

_REGISTERING = threading.Lock()


class BitwrightConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """The manifest as transformers' ``model.config.quantization_config``; it saves back as the same JSON.

    Raises:
        InputError: for a manifest that this version cannot read.
    """

    def __init__(self, manifest: dict[str, Any]) -> None:
        self.quant_method = QUANT_METHOD
        self.raw = copy.deepcopy(manifest)
        self.manifest: Manifest = read_manifest(self.raw)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """Make it of the JSON; keyword arguments of transformers are handed back unused."""
        config = cls(config_dict)
        return (config, kwargs) if return_unused_kwargs else config

    def to_dict(self) -> dict[str, Any]:
        """The JSON of ``config.json``."""
        return copy.deepcopy(self.raw)

    def __deepcopy__(self, memo: dict[int, Any]) -> BitwrightConfig:
        return BitwrightConfig(self.raw)


class BitwrightQuantizer(HfQuantizer):  # type: ignore[misc]
    """Puts packed modules into the skeleton before transformers fills it from the checkpoint."""

    requires_calibration = True

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        """Refuse what would need the float weights."""
        if not self.pre_quantized:
            raise InputError("bitwright quantizes with `bitwright quantize`, not while loading; load its output folder")

    def _process_model_before_weight_loading(
        self, model: nn.Module, checkpoint_files: Sequence[str] | None = None, **kwargs: Any
    ) -> nn.Module:
        stored = stored_tensors(checkpoint_files or ())
        manifest, names = _in_names_of(model, self.quantization_config.manifest)
        install(model, manifest, {**stored, **{new: stored[old] for new, old in names(stored).items()}})
        untie(model, manifest)
        return model

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        manifest: Manifest = self.quantization_config.manifest
        # Packed tensors have the module's own names; `save_pretrained` must not turn names back to older ones.
        model._weight_conversions = []  # type: ignore[assignment]
        if manifest.kv_cache is not None:
            attach_cache(model, cache_factory(manifest.kv_cache, getattr(model, "config", None)))
        return model

    def get_new_dtype(self, converter: Any, param: Any, dtype: torch.dtype | None) -> torch.dtype | None:
        """Keep the types of packed tensors whatever dtype the model is loaded in."""
        names = getattr(converter, "target_patterns", None) or ()
        if any(_is_packed(str(name)) for name in names):
            return None
        wanted: torch.dtype | None = super().get_new_dtype(converter, param, dtype)
        return wanted

    def update_weight_conversions(self, weight_conversions: list[Any], model: nn.Module) -> list[Any]:
        """Keep the library's conversions of whole stacks away from experts that are stored one by one."""
        names = [f"{path}.0.weight" for path in self.quantization_config.manifest.experts]
        return [_whole_names_only(rule, names) for rule in weight_conversions]

    def is_serializable(self) -> bool:
        """``save_pretrained`` writes the packed tensors and the manifest."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Packed weights have no gradients."""
        return False


def register() -> None:
    """Tell transformers how to load native checkpoints; a second call does nothing."""
    with _REGISTERING:
        if QUANT_METHOD not in AUTO_QUANTIZATION_CONFIG_MAPPING:
            register_quantization_config(QUANT_METHOD)(BitwrightConfig)
            register_quantizer(QUANT_METHOD)(BitwrightQuantizer)


def stored_tensors(files: Sequence[str]) -> dict[str, Tensor]:
    """Return every tensor of safetensors files by name, on the meta device: shapes and types without memory.

    Raises:
        InputError: for a damaged header.
    """
    found: dict[str, Tensor] = {}
    for file in files:
        for name, entry in read_header(Path(file)).entries.items():
            if entry.dtype in TORCH_DTYPES:
                found[name] = torch.empty(entry.shape, dtype=TORCH_DTYPES[entry.dtype], device="meta")
    return found


def untie(model: nn.Module, manifest: Manifest) -> None:
    """Let transformers forget ties whose float weight is gone: one side is packed now, the other stored by itself."""
    tied: dict[str, str] = getattr(model, "all_tied_weights_keys", {})
    gone = {f"{path}.weight" for path, entry in manifest.modules.items() if entry.weight is not None}
    broken = [target for target, source in tied.items() if target in gone or source in gone]
    for target in broken:
        del tied[target]
    config: Any = getattr(model, "config", None)
    if broken and config is not None:
        config.tie_word_embeddings = False


def _whole_names_only(rule: Any, names: Sequence[str]) -> Any:
    """A conversion whose patterns would match the start of ``names``, with patterns that end where a name ends."""
    patterns = [str(pattern) for pattern in rule.source_patterns]
    if not hasattr(rule, "operations") or not any(re.search(p, name) for p in patterns for name in names):
        return rule
    return rule.copy([f"{p}$" for p in patterns], rule.target_patterns, operations=list(rule.operations))


def _is_packed(name: str) -> bool:
    leaf = name.rpartition(".")[2]
    return leaf.startswith("weight_") or leaf in ("input_scale", "input_zero")


def _in_names_of(model: nn.Module, manifest: Manifest) -> tuple[Manifest, Callable[[Iterable[str]], dict[str, str]]]:
    """The manifest in the module names of ``model``, and a function that gives stored names by its tensor names.

    A folder of a model with a head also opens as the model without it, and back; then all names lose or gain the
    prefix of the base model, and modules of the head are left out.
    """
    present = {path for path, _ in model.named_modules()}
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    if manifest.modules and not any(path in present for path in manifest.modules) and prefix != ".":
        if any(path.startswith(prefix) for path in manifest.modules):
            return _without(prefix, manifest), partial(_stored_names, added="", cut=prefix)
        return _with(prefix, manifest), partial(_stored_names, added=prefix, cut="")
    return manifest, lambda _: {}


def _without(prefix: str, manifest: Manifest) -> Manifest:
    modules = {p.removeprefix(prefix): e for p, e in manifest.modules.items() if p.startswith(prefix)}
    removed = tuple(p.removeprefix(prefix) for p in manifest.removed if p.startswith(prefix))
    experts = {p.removeprefix(prefix): e for p, e in manifest.experts.items() if p.startswith(prefix)}
    return replace(manifest, modules=modules, removed=removed, experts=experts)


def _with(prefix: str, manifest: Manifest) -> Manifest:
    modules = {prefix + path: entry for path, entry in manifest.modules.items()}
    experts = {prefix + path: entry for path, entry in manifest.experts.items()}
    removed = tuple(prefix + path for path in manifest.removed)
    return replace(manifest, modules=modules, removed=removed, experts=experts)


def _stored_names(stored: Iterable[str], added: str, cut: str) -> dict[str, str]:
    return {added + name.removeprefix(cut): name for name in stored if name.startswith(cut)}
