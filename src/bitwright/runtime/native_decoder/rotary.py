"""Tables of angles that a model makes, found in a trace and made again for all positions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from bitwright.runtime.native_decoder.plan import NotServedError, RotaryPart
from bitwright.runtime.native_decoder.trace import TOKENS, Call, Trace, distance

_NEAR = 1e-5


def tables(trace: Trace, positions: int) -> tuple[RotaryPart, ...]:
    """Every pair of tables that the trace holds, in both layouts, for ``positions`` positions.

    Raises:
        NotServedError: if the angles of a position depend on the length of the text.
    """
    found: list[RotaryPart] = []
    for call in trace.calls:
        pair = _angles(call.outputs)
        if pair is None or not call.leaf:
            continue
        longer = _angles(_again(call, positions))
        if longer is None:
            continue
        if any(distance(a[:TOKENS], b) > _NEAR for a, b in zip(longer, pair, strict=True)):
            raise NotServedError("the rotary embedding of a position depends on the length of the text")
        found += list(_layouts(*longer))
    return tuple(found)


def _angles(outputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor] | None:
    """Cosines and sines ``[positions, channels]``, if that is what a module returned."""
    if len(outputs) != 2 or outputs[0].shape != outputs[1].shape or outputs[0].dim() not in (2, 3):
        return None
    cosine, sine = (t.float().reshape(-1, t.shape[-1]) for t in outputs)
    radius = cosine.pow(2) + sine.pow(2)
    if outputs[0].numel() != cosine.shape[0] * cosine.shape[1] or float(radius.min()) <= 0:
        return None
    return (cosine, sine) if float((radius / radius[0, 0] - 1).abs().max()) < 1e-3 else None


def _again(call: Call, positions: int) -> tuple[Tensor, ...]:
    """What the module returns for more positions."""
    wanted = torch.arange(positions)[None]

    def longer(value: Any) -> Any:
        if isinstance(value, Tensor) and not value.is_floating_point() and value.shape[-1:] == (TOKENS,):
            return wanted.expand(*value.shape[:-1], -1) if value.dim() > 1 else wanted[0]
        return value

    args, kwargs = call.given
    with torch.no_grad():
        made = call.module(*(longer(a) for a in args), **{name: longer(value) for name, value in kwargs.items()})
    return tuple(made) if isinstance(made, tuple) else ()


def _layouts(cosine: Tensor, sine: Tensor) -> Iterator[RotaryPart]:
    """Both ways in which a table may name its planes: twice behind each other, or every one twice."""
    half = cosine.shape[-1] // 2
    for interleaved, names in ((False, (slice(0, half), slice(half, None))), (True, (slice(0, None, 2),) * 2)):
        first, second = names
        if interleaved:
            second = slice(1, None, 2)
        if torch.equal(cosine[:, first], cosine[:, second]):
            yield RotaryPart(cosine[:, first].contiguous(), sine[:, first].contiguous(), interleaved)
            # A module may name its planes in one order and turn the channels in the other.
            yield RotaryPart(cosine[:, first].contiguous(), sine[:, first].contiguous(), not interleaved)
    yield RotaryPart(cosine.contiguous(), sine.contiguous(), False)
    yield RotaryPart(cosine.contiguous(), sine.contiguous(), True)


def turned(x: Tensor, rotary: RotaryPart | None) -> Tensor | None:
    """``x[tokens, heads, dim]`` at the positions 0, 1, ...; ``None`` where the planes do not fit."""
    if rotary is None:
        return x
    planes = rotary.cosine.shape[1]
    if 2 * planes > x.shape[-1]:
        return None
    cosine, sine = (t[: x.shape[0], None] for t in (rotary.cosine, rotary.sine))
    y = x.clone()
    if rotary.interleaved:
        a, b = slice(0, 2 * planes, 2), slice(1, 2 * planes, 2)
    else:
        a, b = slice(0, planes), slice(planes, 2 * planes)
    y[..., a] = x[..., a] * cosine - x[..., b] * sine
    y[..., b] = x[..., b] * cosine + x[..., a] * sine
    return y
