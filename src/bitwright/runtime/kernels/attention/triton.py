"""Attention in Triton: reads coded keys and values as the cache holds them, split over the tokens."""

from __future__ import annotations

from torch import Tensor

from bitwright.runtime.dispatch import Kernel, Table
from bitwright.runtime.kernels.attention.reference import additive, check, prepare
from bitwright.runtime.kernels.hadamard import reference as hadamard_reference
from bitwright.runtime.kernels.hadamard import triton as hadamard_triton
from bitwright.runtime.kernels.triton.available import refuses_activations
from bitwright.runtime.online import run_online
from bitwright.runtime.states import States

_ROTATIONS = Table((hadamard_triton.KERNEL, hadamard_reference.KERNEL))


def run(
    q: Tensor,
    key: States,
    value: States,
    scale: float | None = None,
    causal: bool = True,
    window: int = 0,
    mask: Tensor | None = None,
    splits: int = 0,
) -> Tensor:
    """Return what :func:`bitwright.runtime.kernels.attention.reference.run` does, without decoding the cache.

    Where keys or values are rotated before they are coded the queries are rotated, or the result is rotated back: a
    rotation keeps products. Float tokens of such a side are rotated at every call.

    Raises:
        UnsupportedError: a dtype, device, format or size of heads that is not served.
        InputError: shapes that do not fit together.
    """
    from bitwright.runtime.kernels.triton.attend import attend, side_of

    check(q, key, value, mask)
    sides = [side_of(_rotated(states), q.dtype) for states in (key, value)]
    scale = float(q.shape[-1] ** -0.5 if scale is None else scale)
    if key.coded is not None and key.coder is not None:
        q = run_online(q, key.coder.side.online, _ROTATIONS)
    y = attend(q, sides[0], sides[1], scale, causal, window, None if mask is None else additive(mask), splits)
    if value.coded is not None and value.coder is not None:
        y = run_online(y, value.coder.side.online, _ROTATIONS, inverse=True)
    return y


def _rotated(states: States) -> States:
    """Return the states with the float tokens as the coded ones are."""
    if states.coded is None or states.coder is None or not states.coder.side.online:
        return states
    assert states.tail is not None
    tail = run_online(states.tail, states.coder.side.online, _ROTATIONS)
    return States(states.coder, states.window, states.coded, tail)


KERNEL = Kernel(
    name="attention/triton",
    op="attention",
    priority=50,
    why="reads the codes of the cache and turns them into numbers in registers",
    prepare=prepare,
    run=run,
    devices=frozenset({"cuda"}),
    refuses=refuses_activations,
)
