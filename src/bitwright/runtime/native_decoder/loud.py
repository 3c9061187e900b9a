"""Attention with large scores: a cap that small scores do not show appears when queries are multiplied by a number."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from bitwright.runtime.native_decoder.attention import NEAR, attend, fitted_cap
from bitwright.runtime.native_decoder.parts import run_norm
from bitwright.runtime.native_decoder.plan import LayerPart, NormPart, NotServedError, Slot
from bitwright.runtime.native_decoder.rotary import turned
from bitwright.runtime.native_decoder.trace import TOKENS, Trace, distance, trace

LOUD = 60.0
"""The largest score of the experiment: beyond the caps that are in use."""


def louder_trace(
    model: nn.Module, plain: Trace, layers: tuple[LayerPart, ...], last: NormPart
) -> tuple[Trace, tuple[LayerPart, ...]]:
    """A trace with large scores and large logits, and the layers with the caps of their scores.

    What was read from the trace ``plain`` is proved on large scores; ``last`` is the norm in front of the head.

    Raises:
        NotServedError: if large scores give something else than plain or capped attention does.
    """
    factors = [LOUD / max(_largest_score(plain, layer), 1e-6) for layer in layers]
    louder = {_source(layer): (_channels(layer), factor) for layer, factor in zip(layers, factors, strict=True)}
    if len(louder) != len(layers):
        raise NotServedError("layers share a module that makes their queries")
    louder[last.path] = slice(None), LOUD / max(float(plain.logits.abs().max()), 1e-6)
    loud = trace(model, louder)
    return loud, tuple(_with_cap(loud, layer, factor) for layer, factor in zip(layers, factors, strict=True))


def _with_cap(loud: Trace, layer: LayerPart, factor: float) -> LayerPart:
    part = layer.attention
    queries, keys, values, mixed = _parts(loud, layer)
    if part.query_norm is not None:
        queries = queries * factor
    if distance(attend(queries, keys, values, part.scale, part.window, part.cap), mixed) <= 10 * NEAR:
        return layer
    cap = fitted_cap(queries, keys, values, mixed, part.scale, part.window)
    if cap is None:
        raise NotServedError(f"{layer.path}: large scores are neither kept nor capped by tanh")
    return replace(layer, attention=replace(part, cap=cap))


def _source(layer: LayerPart) -> str:
    """The module whose output the queries are, but for the rotary embedding."""
    part = layer.attention
    return part.group[part.query.matrix].path if part.query_norm is None else part.query_norm.path


def _channels(layer: LayerPart) -> slice:
    part = layer.attention
    return slice(part.query.at, part.query.at + layer.output.shape[1]) if part.query_norm is None else slice(None)


def _largest_score(found: Trace, layer: LayerPart) -> float:
    queries, keys, _, _ = _parts(found, layer)
    keys = keys.repeat_interleave(queries.shape[1] // keys.shape[1], 1)
    return float(torch.einsum("qhd,khd->hqk", queries, keys).abs().max()) * layer.attention.scale


def _parts(found: Trace, layer: LayerPart) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries, keys and values ``[tokens, heads, head]`` of a layer in a trace, and what attention made of them."""
    part = layer.attention
    calls = {call.path: call for call in found.calls}
    mixed = calls[layer.output.path].x
    assert mixed is not None

    def heads(slot: Slot, width: int, norm: NormPart | None) -> Tensor:
        y = calls[part.group[slot.matrix].path].y
        assert y is not None
        raw = y.float().reshape(TOKENS, -1)[:, slot.at : slot.at + width].reshape(TOKENS, -1, part.head)
        return raw if norm is None else run_norm(norm, raw)

    queries = turned(heads(part.query, layer.output.shape[1], part.query_norm), part.rotary)
    keys = turned(heads(part.key, part.width, part.key_norm), part.rotary)
    assert queries is not None
    assert keys is not None
    return queries, keys, heads(part.value, part.width, None), mixed.float().reshape(TOKENS, -1)
