"""Read a trace: the chain of blocks, and what every block does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from bitwright.runtime.module import QuantModule
from bitwright.runtime.native_decoder.attention import Past, Projections, read_attention
from bitwright.runtime.native_decoder.parts import as_matrix, as_norm
from bitwright.runtime.native_decoder.plan import (
    FeedPart,
    LayerPart,
    MatrixPart,
    NormPart,
    NotServedError,
    RotaryPart,
    Slot,
)
from bitwright.runtime.native_decoder.trace import TOKENS, Call, Trace, distance, factor_between, same

_NEAR = 2e-4
_SHAPES = {
    "silu": functional.silu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "gelu_erf": functional.gelu,
    "relu": functional.relu,
    "relu_squared": lambda x: functional.relu(x).square(),
    "gelu_sigmoid": lambda x: x * torch.sigmoid(1.702 * x),
    "none": lambda x: x,
}


def find_chain(trace: Trace, entry: Tensor) -> list[Call]:
    """Calls of which one's output is the next one's first argument, the outermost first, from ``entry`` on.

    Raises:
        NotServedError: if no module takes the entry.
    """
    chain: list[Call] = []
    at, current = -1, entry
    for call in trace.calls:
        if call.leaf or call.enter < at or not same(call.x, current):
            continue
        y = call.y
        if y is None or y.shape != current.shape:
            continue
        chain.append(call)
        at, current = call.exit, y
    if not chain:
        raise NotServedError("no chain of blocks was found behind the embedding")
    return chain


@dataclass(frozen=True, eq=False)
class _Inside:
    """The calls of a block with what they are."""

    calls: list[Call]
    norms: list[tuple[Call, NormPart]]
    matrices: list[tuple[Call, MatrixPart]]


def read_block(trace: Trace, call: Call, layer: Any, rotaries: tuple[RotaryPart, ...]) -> LayerPart:
    """What one block does; ``layer`` is its part of the cache.

    Raises:
        NotServedError: saying what the compiled step has no form for.
    """
    calls = trace.inside(call)
    norms = [(c, norm) for c in calls if (norm := as_norm(c)) is not None]
    matrices = [(c, matrix) for c in calls if (matrix := as_matrix(c)) is not None]
    inside = _Inside(calls, norms, matrices)
    x, y = call.x, call.y
    assert x is not None
    assert y is not None
    first = [(c, norm) for c, norm in norms if same(c.x, x)]
    if len(first) != 1:
        raise NotServedError(f"{call.path}: {len(first)} norms read the stream at its beginning; one is served")
    middle, feed_norm, output, output_norm, output_factor = _first_half(call, inside, x, first[0][0])
    down_call, down, down_norm, down_factor = _sum(call, inside, middle, y)
    readers = _readers(inside, first[0][0])
    mixed = output[0].x
    assert mixed is not None
    past = _past(layer)
    _check_heads(mixed, past)
    attention = read_attention(calls, readers, past, mixed.float().reshape(TOKENS, -1), rotaries)
    feed = _feed(call, _readers(inside, feed_norm[0]), down_call, down)
    made = LayerPart(
        call.path, first[0][1], attention, output[1], output_norm, output_factor, feed_norm[1], feed, down_norm,
        down_factor,
    )  # fmt: skip
    _check_complete(call, made)
    return made


def _first_half(
    call: Call, inside: _Inside, x: Tensor, first: Call
) -> tuple[Tensor, tuple[Call, NormPart], tuple[Call, MatrixPart], NormPart | None, float]:
    """The stream between attention and the feed part, the norm that reads it, and what was added before."""
    for norm_call, norm in inside.norms:
        middle = norm_call.x
        if norm_call is first or middle is None or middle.shape != x.shape:
            continue
        try:
            output_call, output, output_norm, factor = _sum(call, inside, x, middle)
        except NotServedError:
            continue
        return middle, (norm_call, norm), (output_call, output), output_norm, factor
    raise NotServedError(f"{call.path}: its parts are not added to the stream one after the other, each behind a norm")


def _sum(call: Call, inside: _Inside, before: Tensor, after: Tensor) -> tuple[Call, MatrixPart, NormPart | None, float]:
    """Which linear layer (through a norm, times a number) is ``after - before``."""
    added = after.double() - before.double()
    for matrix_call, matrix in inside.matrices:
        y = matrix_call.y
        if y is None or y.numel() != added.numel() or matrix.shape[0] != before.shape[-1]:
            continue
        factor = factor_between(y, added, _NEAR)
        if factor is not None:
            return matrix_call, matrix, None, factor
        for norm_call, norm in inside.norms:
            if same(norm_call.x, y) and norm_call.y is not None:
                factor = factor_between(norm_call.y, added, _NEAR)
                if factor is not None:
                    return matrix_call, matrix, norm, factor
    raise NotServedError(f"{call.path}: what it adds to the stream is not the output of one linear layer")


def _readers(inside: _Inside, norm: Call) -> Projections:
    """The linear layers that read a norm."""
    found = [(c, part) for c, part in inside.matrices if same(c.x, norm.y)]
    outputs = tuple(c.y.float().reshape(TOKENS, -1) for c, _ in found if c.y is not None)
    return Projections(tuple(part for _, part in found), outputs)


def _past(layer: Any) -> Past:
    keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
    if not isinstance(keys, Tensor) or not isinstance(values, Tensor) or keys.dim() != 4:
        raise NotServedError("a layer has no keys and values in its cache")
    if keys.shape != values.shape:
        raise NotServedError("keys and values have different shapes")
    window = getattr(layer, "sliding_window", None) if getattr(layer, "is_sliding", False) else None
    return Past(keys[0].float(), values[0].float(), int(window or 0))


def _check_heads(mixed: Tensor, past: Past) -> None:
    if mixed.shape[-1] % past.width:
        raise NotServedError("the heads of queries are no multiple of those of keys")


def _feed(call: Call, readers: Projections, down_call: Call, down: MatrixPart) -> FeedPart:
    """Gate, up and the function between them."""
    inner = down_call.x
    assert inner is not None
    width = down.shape[1]
    inner = inner.float().reshape(TOKENS, -1)
    slots = [
        (Slot(number, at), output[:, at : at + width])
        for number, output in enumerate(readers.outputs)
        for at in range(0, output.shape[1] - width + 1, width)
    ]
    found: list[tuple[float, FeedPart]] = []
    for name, shape in _SHAPES.items():
        for gate, value in slots:
            made = shape(value)
            found.append((distance(made, inner), FeedPart(readers.matrices, gate, None, name, down)))
            for up, factor in slots:
                if up != gate:
                    found.append((distance(made * factor, inner), FeedPart(readers.matrices, gate, up, name, down)))
    error, best = min(found, key=lambda item: item[0], default=(1.0, None))
    if best is not None and error <= _NEAR:
        return best
    raise NotServedError(f"{call.path}: the part behind {down.path} is no multilayer perceptron that is known here")


def holds_weights(module: nn.Module) -> bool:
    """Whether a module has weights of its own, float or packed."""
    return isinstance(module, QuantModule) or next(module.parameters(recurse=False), None) is not None


def _check_complete(call: Call, layer: LayerPart) -> None:
    """Every parameter of a block must have its place in the plan."""
    norms = (layer.norm, layer.output_norm, layer.feed_norm, layer.down_norm, layer.attention.query_norm,
             layer.attention.key_norm)  # fmt: skip
    matrices = (*layer.attention.group, layer.output, *layer.feed.group, layer.feed.down)
    known = {part.path for part in (*norms, *matrices) if part is not None}
    for name, module in call.module.named_modules(prefix=call.path):
        if name not in known and holds_weights(module):
            raise NotServedError(f"{name} has parameters whose part in the block was not recognised")
