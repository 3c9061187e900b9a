"""Attention of transformers' models straight from a coded cache, where a kernel of the table reads one.

A layer of the cache hands out :class:`CodedStates` instead of decoded keys and values. Attention goes through the
function that is registered with transformers under :data:`NAME`: it gives a decoding step to the kernel and everything
else to transformers' ``sdpa``. Any other operation on coded states decodes them first, so that code which does not know
of them sees what it always saw.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from bitwright.runtime.dispatch import Kernel, Request, Table, UnsupportedError
from bitwright.runtime.states import States

_LOG = logging.getLogger(__name__)

NAME = "bitwright"
"""The attention implementation, as transformers' configs name it."""

OWN = "sdpa"
"""The implementation that this one takes the place of, and falls back on: masks and shapes are as it takes them."""

MOST_QUERIES = 8
"""New tokens up to which a call is a decoding step; prompts are faster over decoded keys and values."""

# Arguments that change nothing at these values.
_NEUTRAL: dict[str, tuple[object, ...]] = {"dropout": (0, 0.0), "softcap": (None,), "s_aux": (None,), "sinks": (None,)}


class CodedStates(Tensor):
    """Keys or values ``[batch, heads, tokens, head_dim]`` that are decoded when an operation asks for numbers."""

    states: States
    table: Table
    _decoded: Tensor | None
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, states: States, table: Table, dtype: torch.dtype) -> CodedStates:
        """Stand for all tokens of ``states``; ``table`` holds the kernels that may read them."""
        assert states.tail is not None
        batch, heads, _, dim = states.tail.shape
        shape = (batch, heads, states.tokens, dim)
        made: CodedStates = Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=states.tail.device)  # type: ignore[attr-defined]
        made.states, made.table, made._decoded = states, table, None
        return made

    def decoded(self) -> Tensor:
        """The numbers, decoded once."""
        if self._decoded is None:
            self._decoded = self.states.values(self.dtype)
        return self._decoded

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Decode, then run the operation."""
        args, kwargs = pytree.tree_map_only(CodedStates, lambda t: t.decoded(), (args, kwargs or {}))
        return func(*args, **kwargs)


def direct_kernel(table: Table, device: torch.device, dtype: torch.dtype) -> Kernel | None:
    """The kernel that reads a coded cache on a device, ``None`` where only the definition would."""
    try:
        kernel = table.choose(Request("attention", "", device.type, dtype)).kernel
    except UnsupportedError:
        return None
    return kernel if kernel.priority > 0 else None


def use_direct_attention(model: nn.Module) -> str | None:
    """Let attention of ``model`` go through :func:`attend`; return why that is not possible, else ``None``."""
    config: Any = getattr(model, "config", None)
    implementation = getattr(config, "_attn_implementation", None)
    if implementation == NAME:
        return None
    choose = getattr(model, "set_attn_implementation", None)
    if implementation != OWN or not callable(choose):
        return (
            f"attention runs as {implementation!r}, and coded keys and values can be read in the place of {OWN!r} only"
        )
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    choose(NAME)
    return None


def refusal(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, options: dict[str, Any]) -> str | None:
    """Why a call is not served from the coded cache, or ``None``."""
    if not isinstance(key, CodedStates) or not isinstance(value, CodedStates):
        return "its keys and values are floats"
    if query.shape[2] > MOST_QUERIES:
        return f"a prompt: it has more than {MOST_QUERIES} new tokens"
    if module.training:
        return "the model is trained"
    for name, neutral in _NEUTRAL.items():
        if name in options and options[name] not in neutral:
            return f"attention with {name} is not served"
    return None


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    scaling: float | None = None, **options: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Attention as transformers asks for it: ``[batch, queries, heads, head_dim]``, and no weights.

    ``attention_mask`` is ``None`` (causal) or true where ``[batch, 1, queries, tokens]`` is seen.
    """
    why = refusal(module, query, key, value, options)
    if why is None:
        assert isinstance(key, CodedStates)
        assert isinstance(value, CodedStates)
        kernel = direct_kernel(key.table, query.device, query.dtype)
        try:
            if kernel is not None:
                made = kernel.run(
                    query, key.states, value.states, scaling, attention_mask is None, 0, _whole(attention_mask, query)
                )
                return made.transpose(1, 2).contiguous(), None
        except UnsupportedError as refused:
            why = str(refused)
    _LOG.debug("attention is not read from the coded cache: %s", why)
    key, value = (t.decoded() if isinstance(t, CodedStates) else t for t in (key, value))
    found, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
    return found, None


def _whole(mask: Tensor | None, query: Tensor) -> Tensor | None:
    """The rows of a mask that belong to the queries."""
    return None if mask is None else mask[:, :, -query.shape[2] :]
