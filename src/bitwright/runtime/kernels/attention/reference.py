"""Attention by definition: decode all keys and values, then softmax(q k^T) v in float32. The oracle of the others."""

from __future__ import annotations

import torch
from torch import Tensor

from bitwright.errors import InputError
from bitwright.runtime.dispatch import Kernel
from bitwright.runtime.states import States


def prepare() -> None:
    """Nothing to prepare: keys and values grow at every call."""


def run(
    q: Tensor,
    key: States,
    value: States,
    scale: float | None = None,
    causal: bool = True,
    window: int = 0,
    mask: Tensor | None = None,
) -> Tensor:
    """Return ``[batch, heads, queries, head_dim]`` in the dtype of ``q[batch, heads, queries, head_dim]``.

    The queries are the last tokens of the cache; query heads lie in equal groups on the heads of the keys. ``scale``
    is ``head_dim ** -0.5`` unless given. ``causal`` hides later tokens, ``window`` (0: none) those that lie as far or
    farther back, ``mask[batch or 1, heads or 1, queries, tokens]`` is added to the scores (or true where a token is
    seen). A query that sees nothing gives zeros.

    Raises:
        InputError: shapes that do not fit together.
    """
    heads, tokens = check(q, key, value, mask)
    keys, values = (s.values(q.dtype).float().repeat_interleave(q.shape[1] // heads, dim=1) for s in (key, value))
    scores = q.float() @ keys.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    place = torch.arange(tokens, device=q.device)
    at = place[tokens - q.shape[2] :].unsqueeze(-1)
    hidden = (place > at) if causal else torch.zeros_like(place > at)
    if window > 0:
        hidden = hidden | (place <= at - window)
    scores = scores.masked_fill(hidden, float("-inf"))
    if mask is not None:
        scores = scores + additive(mask)
    share = torch.softmax(scores, dim=-1).nan_to_num(0.0)
    return (share @ values).to(q.dtype)


def additive(mask: Tensor) -> Tensor:
    """Return the mask as float32 to add: 0 where a token is seen and minus infinity elsewhere for a bool mask."""
    if mask.dtype != torch.bool:
        return mask.float()
    return torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, float("-inf"))


def check(q: Tensor, key: States, value: States, mask: Tensor | None) -> tuple[int, int]:
    """Check that queries, cache and mask fit together; return the heads of the keys and the tokens of the cache.

    Raises:
        InputError: naming what does not fit.
    """
    if key.tail is None or value.tail is None:
        raise InputError("the cache is empty; append the keys and values of the queries first")
    batch, heads, _, dim = key.tail.shape
    if key.tokens != value.tokens or value.tail.shape[:2] != (batch, heads):
        raise InputError(f"{key.tokens} keys and {value.tokens} values do not fit together; append both")
    if q.dim() != 4 or q.shape[0] != batch or q.shape[1] % heads or q.shape[3] != dim or q.shape[2] > key.tokens:
        raise InputError(
            f"queries of shape {tuple(q.shape)} do not fit {key.tokens} keys of {batch} x {heads} heads of size {dim}"
        )
    if mask is not None:
        wanted = (q.shape[0], q.shape[1], q.shape[2], key.tokens)
        fits = mask.dim() == 4 and all(have in (1, want) for have, want in zip(mask.shape[:2], wanted[:2], strict=True))
        if not fits or tuple(mask.shape[2:]) != wanted[2:]:
            raise InputError(f"a mask of shape {tuple(mask.shape)} does not fit scores of shape {wanted}")
    return heads, key.tokens


KERNEL = Kernel(
    name="attention/reference",
    op="attention",
    priority=0,
    why="serves every format and device; decodes the whole cache at every call",
    prepare=prepare,
    run=run,
)
