"""A key-value cache of transformers that holds coded keys and values."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import (
    DYNAMIC_LAYER_TYPE_MAPPING,
    Cache,
    DynamicCache,
    DynamicLayer,
    get_layer_types_and_kwargs,
)

from bitwright.errors import InputError
from bitwright.runtime.direct_attention import CodedStates, direct_kernel, use_direct_attention
from bitwright.runtime.dispatch import Table, UnsupportedError
from bitwright.runtime.kernels.table import TABLE
from bitwright.runtime.manifest import CacheManifest, CacheSide, read_cache
from bitwright.runtime.states import StateCoder, States

_LOG = logging.getLogger(__name__)

# Layers that keep the keys and values of past tokens. Those that would drop old tokens keep them all here: the
# attention mask hides what lies outside of their window.
_ATTENTION = frozenset({"full_attention", "sliding_attention", "reference_sliding_attention", "chunked_attention"})


class QuantizedLayer(DynamicLayer):  # type: ignore[misc]
    """Coded keys and values of one layer.

    Every token is seen dequantized by later calls and by its own: a forward pass over a whole window and one token
    after the other then agree for formats with a scale per token. Where tokens are coded in groups (``gN axis=0``)
    or a float ``window`` is kept, a token is seen as float until it is coded, as in generation.
    """

    is_croppable = True

    def __init__(self, key: StateCoder | None, value: StateCoder | None, window: int = 0, table: Table = TABLE) -> None:
        super().__init__()
        self.table = table
        # Attention reads what is coded; set by the model's hook where its attention can.
        self.direct = False
        self.key_states = States(key, window)
        self.value_states = States(value, window)
        groups = {1 if coder is None else coder.group for coder in (key, value)}
        # A rolled back group of several tokens is not what it was before: its first tokens have been rounded.
        self.is_croppable = groups == {1} and window == 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Remember dtype and device."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append ``[batch, heads, tokens, head_dim]`` and return all keys and values as attention sees them.

        They are not decoded where attention reads codes (:mod:`bitwright.runtime.direct_attention`).
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.key_states.take(key_states)
        self.value_states.take(value_states)
        return self._seen(self.key_states, key_states.dtype), self._seen(self.value_states, value_states.dtype)

    def _seen(self, states: States, dtype: torch.dtype) -> Tensor:
        return CodedStates(states, self.table, dtype) if self.direct else states.values(dtype)

    def get_seq_length(self) -> int:
        """Number of cached tokens."""
        return self.key_states.tokens

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last ``-tokens_to_remove`` tokens (a count of zero or below, as transformers passes it)."""
        if tokens_to_remove > 0:
            raise InputError(f"crop takes minus the number of tokens to remove, not {tokens_to_remove}")
        for states in (self.key_states, self.value_states):
            states.drop(-tokens_to_remove)

    def reset(self) -> None:
        """Forget all tokens."""
        for states in (self.key_states, self.value_states):
            states.clear()
        self.is_initialized = False

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep the beams ``beam_idx``."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the batch entries ``indices`` (positions, or a mask)."""
        if indices.dtype == torch.bool:
            indices = indices.nonzero().flatten()
        for states in (self.key_states, self.value_states):
            states.select(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every batch entry."""
        tail = self.key_states.tail
        if tail is not None:
            self.batch_select_indices(torch.arange(tail.shape[0]).repeat_interleave(repeats))

    def offload(self) -> None:
        """Move to main memory."""
        for states in (self.key_states, self.value_states):
            states.to("cpu")

    def prefetch(self) -> None:
        """Move back to the device of the layer."""
        if self.is_initialized:
            for states in (self.key_states, self.value_states):
                states.to(self.device)

    def bytes(self) -> int:
        """Bytes that keys and values take."""
        return self.key_states.bytes() + self.value_states.bytes()


class QuantizedCache(Cache):  # type: ignore[misc]
    """The cache of all layers; see :class:`QuantizedLayer`.

    Args:
        manifest: formats of keys and values, and the float window.
        config: a transformers config; gives the kind of every layer. ``None``: all are plain attention.

    Raises:
        InputError: for a format that cannot grow token by token.
        UnsupportedError: for a layer kind that has no keys and values (state-space layers), naming it.
    """

    def __init__(self, manifest: CacheManifest, config: Any = None, table: Table = TABLE) -> None:
        self.table = table
        sides = _coder(manifest.key, table), _coder(manifest.value, table)
        make = partial(QuantizedLayer, *sides, manifest.window, table)
        if config is None:
            super().__init__(layer_class_to_replicate=make)
            return
        kinds, options = get_layer_types_and_kwargs(config.get_text_config(decoder=True))
        layers = []
        for kind, given in zip(kinds, options, strict=True):
            if kind == "dummy":
                layers.append(DYNAMIC_LAYER_TYPE_MAPPING[kind](**given))
            elif kind in _ATTENTION:
                layers.append(make())
            else:
                raise UnsupportedError(
                    f"a quantized cache serves the layers {', '.join(sorted(_ATTENTION))}, not {kind}; "
                    "quantize this network without kv_cache"
                )
        super().__init__(layers=layers)

    def read_directly(self) -> None:
        """Let attention read what is coded; for models whose attention can."""
        for layer in self.layers:
            if isinstance(layer, QuantizedLayer):
                layer.direct = True

    def bytes(self) -> int:
        """Bytes that all layers take."""
        return sum(layer.bytes() for layer in self.layers if isinstance(layer, QuantizedLayer))


def cache_factory(
    manifest: CacheManifest | Mapping[str, Any], config: Any = None, table: Table = TABLE
) -> Callable[[], QuantizedCache]:
    """Return a function that makes an empty cache; the first one is made here, so that errors come early.

    Raises:
        InputError, UnsupportedError: as :class:`QuantizedCache` and :func:`read_cache`.
    """
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedError("a quantized cache serves decoders, not encoder-decoder networks; leave kv_cache out")
    checked = manifest if isinstance(manifest, CacheManifest) else read_cache(manifest)
    if checked is None:
        raise InputError("there is no kv_cache in the manifest; use the model's own cache")
    factory = partial(QuantizedCache, checked, config, table)
    factory()
    return factory


def attach_cache(model: nn.Module, factory: Callable[[], QuantizedCache]) -> None:
    """Make a quantized cache the default of ``model``: in forward passes with ``use_cache`` and in ``generate``.

    A hook before the forward pass puts a new cache where none is given, or where an empty ``DynamicCache`` is (which
    ``generate`` makes); any other cache that a caller passes is used as it is, and ``use_cache=False`` leaves keys and
    values float. ``model.bitwright_cache_factory`` holds the factory, for measurements that pass caches themselves.
    """
    model.__dict__["bitwright_cache_factory"] = factory
    model.register_forward_pre_hook(_use_quantized_cache, with_kwargs=True)


def _use_quantized_cache(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    given = kwargs.get("past_key_values")
    use_cache = kwargs.get("use_cache")
    if use_cache is None:
        use_cache = bool(getattr(getattr(model, "config", None), "use_cache", False)) and not model.training
    empty = given is None or (type(given) is DynamicCache and given.get_seq_length() == 0)
    if use_cache and empty:
        given = model.__dict__["bitwright_cache_factory"]()
        kwargs = {**kwargs, "past_key_values": given, "use_cache": True}
    if isinstance(given, QuantizedCache):
        _read_directly(model, given)
    return args, kwargs


def _read_directly(model: nn.Module, cache: QuantizedCache) -> None:
    """Let attention read the codes of a cache where a kernel does that on the model's device."""
    weight = next((p for p in model.parameters() if p.is_floating_point()), None)
    if weight is None or direct_kernel(cache.table, weight.device, weight.dtype) is None:
        return
    reason = use_direct_attention(model)
    if reason is None:
        cache.read_directly()
    else:
        _LOG.debug("keys and values are decoded at every token: %s", reason)


def _coder(side: CacheSide | None, table: Table) -> StateCoder | None:
    return None if side is None else StateCoder(side, table)
