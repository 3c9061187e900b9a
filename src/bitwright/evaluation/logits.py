"""Models as functions from token ids to logits, so that measuring does not care what runs inside."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

LOGITS_BYTES = 1 << 28  # of one batch: with a vocabulary of 128 k these are 512 tokens


class LogitsFunction(Protocol):
    """``input_ids`` and ``attention_mask`` int64 ``[batch, length]`` to logits ``[batch, length, vocabulary]``."""

    def __call__(self, input_ids: Tensor, attention_mask: Tensor, /) -> Tensor: ...


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Run a block in evaluation mode and without gradients; every submodule gets its own mode back."""
    training = [m for m in module.modules() if m.training]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for m in training:
            m.training = True


def device_of(module: nn.Module) -> torch.device:
    """Return the device of the first parameter or buffer (CPU for a module without any)."""
    for tensor in (*module.parameters(), *module.buffers()):
        return tensor.device
    return torch.device("cpu")


def dtype_text(module: nn.Module) -> str:
    """Return the dtype of the largest floating-point parameter or buffer, as in ``fp32``."""
    names = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.float64: "fp64"}
    floats = [t for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()]
    if not floats:
        return "unknown dtype"
    dtype = max(floats, key=lambda t: t.numel()).dtype
    return names.get(dtype, str(dtype).removeprefix("torch."))


@dataclass(frozen=True)
class CausalLogits:
    """A causal language model as a :class:`LogitsFunction`.

    Padding stands on the right, where a causal model cannot see it from any real token, so the attention mask is not
    handed on: results are equal and the fast attention kernels stay in use. With a cache the batches hold sequences
    of one length only (``equal_lengths``), as padding inside a quantized group of tokens could move its scale.
    """

    module: nn.Module
    cache_factory: Callable[[], Any] | None = None

    @property
    def equal_lengths(self) -> bool:
        """True if no batch may be padded."""
        return self.cache_factory is not None

    @property
    def dtype(self) -> str:
        """Name of the number type, for the protocol."""
        return dtype_text(self.module)

    @property
    def vocabulary(self) -> int | None:
        """Number of logits per token where the module's config tells."""
        size = getattr(getattr(self.module, "config", None), "vocab_size", None)
        return size if isinstance(size, int) else None

    def __call__(self, input_ids: Tensor, attention_mask: Tensor, /) -> Tensor:
        """Run one forward pass over the whole sequences."""
        del attention_mask
        options: dict[str, Any] = {}
        if self.cache_factory is not None:
            options = {"past_key_values": self.cache_factory(), "use_cache": True}
        elif "use_cache" in inspect.signature(self.module.forward).parameters:
            options = {"use_cache": False}
        with evaluating(self.module):
            output = self.module(input_ids.to(device_of(self.module)), **options)
        logits = output if isinstance(output, Tensor) else output.logits
        if not isinstance(logits, Tensor):
            raise TypeError(f"{type(self.module).__name__} returns no logits; wrap it in a function that does")
        return logits


def logits_of(module: nn.Module, cache_factory: Callable[[], Any] | None = None) -> CausalLogits:
    """Wrap a causal language model of transformers, or any module from ids to logits.

    Args:
        cache_factory: makes a fresh ``past_key_values`` object for every batch, so that a quantized cache is
            exercised in one forward pass over the whole window.
    """
    return CausalLogits(module, cache_factory)


def needs_equal_lengths(model: object) -> bool:
    """True if the model function asks for batches without padding."""
    return bool(getattr(model, "equal_lengths", False))


def batch_budget(model: object, batch_tokens: int) -> int:
    """Return how many tokens one forward pass may take so that its logits stay below ``LOGITS_BYTES``."""
    vocabulary = getattr(model, "vocabulary", None)
    return min(batch_tokens, max(1, LOGITS_BYTES // (4 * vocabulary))) if isinstance(vocabulary, int) else batch_tokens


def dtype_of(model: object) -> str:
    """Return the number type a model function states, or ``dtype not stated``."""
    return str(getattr(model, "dtype", "dtype not stated"))
