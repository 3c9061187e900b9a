"""How a batch is given to a module, and a tiny example batch made from a config."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from bitwright.errors import InputError

EXAMPLE_BATCH = 2
EXAMPLE_TOKENS = 12


def call_module(module: nn.Module, batch: Any) -> Any:
    """Call ``module`` with a mapping (by name), a tuple or list (by position) or one tensor, without a cache."""
    extra = {"use_cache": False} if takes(module, "use_cache") else {}
    with _no_cache(module):
        if isinstance(batch, Mapping):
            return module(**{**extra, **batch})
        if isinstance(batch, tuple | list):
            return module(*batch, **extra)
        return module(batch, **extra)


@contextmanager
def _no_cache(module: nn.Module) -> Iterator[None]:
    """Some models take the choice of a cache from their config alone."""
    config: Any = getattr(module, "config", None)
    texts = [config, *(getattr(config, name, None) for name in ("text_config", "decoder"))]
    configs = [item for item in texts if getattr(item, "use_cache", None) is True]
    for item in configs:
        item.use_cache = False
    try:
        yield
    finally:
        for item in configs:
            item.use_cache = True


def experts_configs(module: nn.Module) -> list[Any]:
    """The configs under ``module`` that say how transformers runs experts."""
    configs = {id(c): c for m in module.modules() if (c := getattr(m, "config", None)) is not None}
    return [config for config in configs.values() if hasattr(config, "_experts_implementation")]


@contextmanager
def experts_run(module: nn.Module, implementation: str) -> Iterator[None]:
    """Have transformers run experts in one of its ways while the context lasts."""
    before = [(config, config._experts_implementation) for config in experts_configs(module)]
    for config, _ in before:
        config._experts_implementation = implementation
    try:
        yield
    finally:
        for config, given in before:
            config._experts_implementation = given


def on_device_of(module: nn.Module, batch: Any) -> Any:
    """The batch on the device where the module's parameters lie."""
    first = next((p for p in module.parameters() if not p.is_meta), None)
    if first is None:
        return batch
    if isinstance(batch, Mapping):
        return {key: on_device_of(module, value) for key, value in batch.items()}
    if isinstance(batch, tuple | list):
        return type(batch)(on_device_of(module, value) for value in batch)
    return batch.to(first.device) if isinstance(batch, torch.Tensor) else batch


def shrunk(batch: Any, rows: int = EXAMPLE_BATCH, tokens: int = EXAMPLE_TOKENS) -> Any:
    """A batch cut to a few rows and, where it holds token ids, to a few tokens (the end where the mask is fuller)."""
    items = batch if isinstance(batch, tuple | list) else [batch]
    named: dict[Any, Any] = dict(batch) if isinstance(batch, Mapping) else dict(enumerate(items))
    tensors = [value for value in named.values() if isinstance(value, torch.Tensor)]
    size = next((tuple(t.shape) for t in tensors if t.dim() == 2 and not t.is_floating_point()), None)
    mixed = any(tensor.is_floating_point() and tensor.dim() >= 2 for tensor in tensors)
    if len(tensors) > 1 and (size is None or mixed):
        return first_rows(batch, rows)  # images have their places among the tokens; tables belong to no row
    mask = named.get("attention_mask")
    late = isinstance(mask, torch.Tensor) and bool(mask[:rows, -tokens:].sum() > mask[:rows, :tokens].sum())

    def cut(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or value.dim() == 0:
            return value
        if size is not None and tuple(value.shape[:2]) == size:
            return value[:rows, -tokens:] if late else value[:rows, :tokens]
        return value[:rows] if size is None or value.shape[0] == size[0] else value

    cuts = {key: cut(value) for key, value in named.items()}
    if isinstance(batch, Mapping):
        return cuts
    return type(batch)(cuts.values()) if isinstance(batch, tuple | list) else cuts[0]


def first_rows(batch: Any, rows: int) -> Any:
    """The first rows of a batch; the whole batch where its tensors do not count the same rows (patches of images)."""
    named: dict[Any, Any] = dict(batch) if isinstance(batch, Mapping) else dict(enumerate(batch))
    counts = {v.shape[0] for v in named.values() if isinstance(v, torch.Tensor) and v.dim() > 0}
    if len(counts) != 1:
        return batch
    cuts = {k: v[:rows] if isinstance(v, torch.Tensor) and v.dim() > 0 else v for k, v in named.items()}
    return cuts if isinstance(batch, Mapping) else type(batch)(cuts.values())


def takes(module: nn.Module, name: str) -> bool:
    """Whether the module's forward names an argument ``name``."""
    return name in inspect.signature(module.forward).parameters


def example_inputs(module: nn.Module, seed: int = 0) -> dict[str, torch.Tensor]:
    """A tiny batch that the module accepts, from its config: token ids or random pixels.

    Raises:
        InputError: when the module has no config that says what it reads.
    """
    config: Any = getattr(module, "config", None)
    main = str(getattr(module, "main_input_name", "input_ids"))
    generator = torch.Generator().manual_seed(seed)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    vocabulary = getattr(text, "vocab_size", None)
    if main == "input_ids" and isinstance(vocabulary, int):
        low = min(8, vocabulary - 1)
        shape = (EXAMPLE_BATCH, EXAMPLE_TOKENS)
        ids = torch.randint(low, vocabulary, shape, generator=generator)
        batch = {"input_ids": ids}
        if takes(module, "attention_mask"):
            batch["attention_mask"] = torch.ones_like(ids)
        if takes(module, "decoder_input_ids"):
            batch["decoder_input_ids"] = torch.randint(low, vocabulary, shape, generator=generator)
        return batch
    size, channels = getattr(config, "image_size", None), getattr(config, "num_channels", None)
    if main == "pixel_values" and isinstance(channels, int) and size is not None:
        height, width = size if isinstance(size, list | tuple) else (size, size)
        return {main: torch.randn(EXAMPLE_BATCH, channels, int(height), int(width), generator=generator)}
    raise InputError("the model does not say what it reads; give a small example batch (a tensor, tuple or mapping)")
