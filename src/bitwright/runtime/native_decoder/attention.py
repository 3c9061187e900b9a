"""Which channels are queries, keys and values of a block, and how they meet: told from what its cache holds."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bitwright.runtime.native_decoder.parts import as_norm, run_norm
from bitwright.runtime.native_decoder.plan import AttentionPart, MatrixPart, NormPart, NotServedError, RotaryPart, Slot
from bitwright.runtime.native_decoder.rotary import turned
from bitwright.runtime.native_decoder.trace import TOKENS, Call, distance

NEAR = 2e-4


@dataclass(frozen=True, eq=False)
class Projections:
    """The matrices that read a block's first norm, with their outputs ``[tokens, out]``."""

    matrices: tuple[MatrixPart, ...]
    outputs: tuple[Tensor, ...]

    def slots(self, width: int, head: int) -> Iterator[tuple[Slot, Tensor]]:
        """Every run of ``width`` channels that begins with a head, as ``[tokens, heads, head]``."""
        for number, output in enumerate(self.outputs):
            for at in range(0, output.shape[-1] - width + 1, head):
                yield Slot(number, at), output[:, at : at + width].reshape(len(output), -1, head)


@dataclass(frozen=True, eq=False)
class Past:
    """Keys and values ``[kv heads, tokens, head]`` of a layer's cache after the trace, and its window (0: none)."""

    keys: Tensor
    values: Tensor
    window: int

    @property
    def width(self) -> int:
        """Channels of all key heads."""
        return self.keys.shape[0] * self.keys.shape[2]


def read_attention(
    inner: list[Call], projections: Projections, past: Past, mixed: Tensor, rotaries: tuple[RotaryPart, ...]
) -> AttentionPart:
    """Find queries, keys and values; ``mixed[tokens, heads * head]`` is what attention made of them.

    Raises:
        NotServedError: saying what was not recognised.
    """
    head = past.keys.shape[2]
    values = past.values.transpose(0, 1)
    value = _find(projections, past.width, head, values)
    if value is None:
        raise NotServedError("the cached values are no channels of a linear layer")
    key, key_norm, rotary = _find_keys(inner, projections, past, rotaries, value)
    taken = {(slot.matrix, at) for slot in (key, value) for at in range(slot.at, slot.at + past.width)}
    full = unturned(projections, key, past.width, head)
    keys = turned(full if key_norm is None else run_norm(key_norm, full), rotary)
    assert keys is not None
    held = projections.outputs[value.matrix][:, value.at : value.at + past.width].reshape(TOKENS, -1, head)
    for query, raw in projections.slots(mixed.shape[-1], head):
        if any((query.matrix, at) in taken for at in range(query.at, query.at + mixed.shape[-1])):
            continue
        norm = _norm_of(inner, raw)
        queries = turned(raw if norm is None else run_norm(norm, raw), rotary)
        assert queries is not None
        scale = _scale(queries, keys, held, mixed, past.window)
        if scale is not None:
            parts = (projections.matrices, query, key, value, head, past.width, norm, key_norm, rotary)
            return AttentionPart(*parts, scale[0], past.window, scale[1])
    raise NotServedError("attention is not the plain one: its output does not follow from queries, keys and values")


def unturned(projections: Projections, slot: Slot, width: int, head: int) -> Tensor:
    return projections.outputs[slot.matrix][:, slot.at : slot.at + width].reshape(TOKENS, -1, head)


def _find(projections: Projections, width: int, head: int, wanted: Tensor) -> Slot | None:
    seen = wanted.shape[0]
    for slot, raw in projections.slots(width, head):
        if distance(raw[-seen:], wanted) <= NEAR:
            return slot
    return None


def _find_keys(
    inner: list[Call], projections: Projections, past: Past, rotaries: tuple[RotaryPart, ...], value: Slot
) -> tuple[Slot, NormPart | None, RotaryPart | None]:
    wanted = past.keys.transpose(0, 1)
    for slot, raw in projections.slots(past.width, past.keys.shape[2]):
        if slot == value and len(projections.matrices) > 1:
            continue
        norm = _norm_of(inner, raw)
        plain = raw if norm is None else run_norm(norm, raw)
        for rotary in (None, *rotaries):
            made = turned(plain, rotary)
            if made is not None and distance(made[-wanted.shape[0] :], wanted) <= NEAR:
                return slot, norm, rotary
    raise NotServedError("the cached keys are no linear layer with a norm and a rotary embedding that are known here")


def _norm_of(inner: list[Call], raw: Tensor) -> NormPart | None:
    """The norm that was given the heads ``raw[tokens, heads, head]``, in either order."""
    for call in inner:
        x = call.x
        if x is None or not call.leaf or x.numel() != raw.numel() or x.shape[-1] != raw.shape[-1]:
            continue
        orders = (raw, raw.transpose(0, 1))
        if any(torch.equal(order.reshape(-1), x.float().reshape(-1)) for order in orders):
            norm = as_norm(call)
            if norm is not None:
                return norm
    return None


def _scale(queries: Tensor, keys: Tensor, values: Tensor, mixed: Tensor, window: int) -> tuple[float, float] | None:
    """(scale, cap) of the scores with which attention gives ``mixed``, or ``None``."""
    usual = 1 / math.sqrt(queries.shape[-1])
    for scale in (usual, _fitted(queries, keys, values, mixed)):
        if scale is None:
            continue
        if distance(attend(queries, keys, values, scale, window), mixed) <= NEAR:
            return scale, 0.0
        cap = fitted_cap(queries, keys, values, mixed, scale, window)
        if cap is not None:
            return scale, cap
    return None


def fitted_cap(queries: Tensor, keys: Tensor, values: Tensor, mixed: Tensor, scale: float, window: int) -> float | None:
    """The cap of the scores with which attention gives ``mixed``, or ``None``: a search over its logarithm."""

    def error(place: float) -> float:
        return distance(attend(queries, keys, values, scale, window, math.exp(place)), mixed)

    places = [0.1 * step for step in range(70)]
    best = min(places, key=error)
    low, high = best - 0.1, best + 0.1
    for _ in range(50):
        first, second = low + 0.382 * (high - low), low + 0.618 * (high - low)
        low, high = (low, second) if error(first) < error(second) else (first, high)
    return math.exp(low) if error(low) <= NEAR else None


def attend(queries: Tensor, keys: Tensor, values: Tensor, scale: float, window: int, cap: float = 0.0) -> Tensor:
    """Causal attention by its definition; all ``[tokens, heads, head]``, result ``[tokens, heads * head]``."""
    repeat = queries.shape[1] // keys.shape[1]
    keys, values = (t.repeat_interleave(repeat, 1) for t in (keys, values))
    scores = torch.einsum("qhd,khd->hqk", queries, keys) * scale
    scores = cap * torch.tanh(scores / cap) if cap else scores
    place = torch.arange(queries.shape[0])
    behind = place[:, None] - place[None]
    hidden = (behind < 0) | (behind >= window if window else behind < 0)
    weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, values).reshape(queries.shape[0], -1)


def _fitted(queries: Tensor, keys: Tensor, values: Tensor, mixed: Tensor) -> float | None:
    """The scale that the second token tells, which sees two tokens only: p = sigmoid(scale * (score 1 - score 0))."""
    repeat = queries.shape[1] // keys.shape[1]
    keys, values = (t.repeat_interleave(repeat, 1)[:2].double() for t in (keys, values))
    made = mixed[1].reshape(queries.shape[1], -1).double()
    step = values[1] - values[0]
    share = ((made - values[0]) * step).sum(-1) / step.pow(2).sum(-1).clamp_min(1e-30)
    gap = (queries[1].double() * (keys[1] - keys[0])).sum(-1)
    good = (share > 1e-6) & (share < 1 - 1e-6)
    if not bool(good.any()):
        return None
    odds = torch.logit(share[good])
    return float((odds * gap[good]).sum() / gap[good].pow(2).sum().clamp_min(1e-30))
