"""How the compiled step keeps keys and values: floats, or the codes of a model's quantized cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bitwright.formats import IntGrid, granularity
from bitwright.native.buffers import FLOAT_CODES
from bitwright.runtime.cache import QuantizedLayer
from bitwright.runtime.native_decoder.plan import NotServedError
from bitwright.runtime.states import StateCoder

_FLOATS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class CacheForm:
    """Floats of a type; keys and values that are coded have their numbers for compiled code (empty: floats).

    ``clips``: shares of the ranges of keys and values that their scales cover. The last ``window`` tokens stay float.
    ``plain``: every token is coded by itself at once, so that pieces of a prompt and ways back are exact.
    """

    floats: torch.dtype = torch.float32
    keys: tuple[int, ...] = ()
    values: tuple[int, ...] = ()
    clips: tuple[float, float] = (1.0, 1.0)
    window: int = 0
    plain: bool = True

    def arguments(self) -> tuple[Any, ...]:
        """As compiled code takes it."""
        return FLOAT_CODES[self.floats], list(self.keys), list(self.values), list(self.clips), self.window


FLOATS = CacheForm()
"""Keys and values in fp32."""


def cache_of(model: nn.Module, head_dim: int) -> CacheForm:
    """The form of the cache that a model makes by itself.

    Raises:
        NotServedError: where it codes in a way that has no compiled form.
    """
    factory = getattr(model, "bitwright_cache_factory", None)
    if factory is None:
        return FLOATS
    layers = list(factory().layers)
    if not layers or not all(isinstance(layer, QuantizedLayer) for layer in layers):
        raise NotServedError("some layers of its quantized cache are of another kind")
    first = layers[0]
    sides = first.key_states.coder, first.value_states.coder
    keys, values = (coding_numbers(coder, head_dim) for coder in sides)
    clips = tuple(1.0 if coder is None else coder.format.clip for coder in sides)
    return CacheForm(
        torch.float32, keys, values, (clips[0], clips[1]), first.key_states.window, bool(first.is_croppable)
    )


def coding_numbers(coder: StateCoder | None, head_dim: int) -> tuple[int, ...]:
    """Bits, across, group, signed, narrow, with zero, zero is a code, type of the zero, type of the scale."""
    if coder is None:
        return ()
    fmt = coder.format
    if coder.side.online:
        raise NotServedError("its cache is transformed before it is coded")
    if not isinstance(fmt.grid, IntGrid) or fmt.scale.storage not in _FLOATS:
        raise NotServedError(f"a cache in '{fmt}' is not served")
    form = fmt.granularity
    across = isinstance(form, granularity.Group) and form.axis == 0
    group = form.size if isinstance(form, granularity.Group) else head_dim
    if not across and head_dim % group:
        raise NotServedError(f"groups of {group} do not divide heads of {head_dim} channels")
    zero = None if fmt.zero is None else fmt.zero.storage
    zero_type = FLOAT_CODES[_FLOATS[zero]] if zero in _FLOATS else 0
    return (
        fmt.grid.bits, int(across), group, int(fmt.grid.signed), int(fmt.grid.narrow), int(zero is not None),
        int(zero == "code"), zero_type, FLOAT_CODES[_FLOATS[fmt.scale.storage]],
    )  # fmt: skip
