"""Operations that a module runs on its input before quantizing it: a table of kinds, run through the kernels."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from bitwright.errors import InputError, nearest_key
from bitwright.runtime.dispatch import Request, Table
from bitwright.stages.transforms import OnlineOperation

# Kind -> names of its options.
KINDS: dict[str, tuple[str, ...]] = {"hadamard": ("size", "seed"), "order": ("size", "last")}


def online_operation(entry: Mapping[str, Any]) -> OnlineOperation:
    """Read one ``{"kind": ..., "options": {...}}`` of a manifest.

    Raises:
        InputError: for an unknown kind or option, naming the nearest valid one.
    """
    if not isinstance(entry, Mapping) or not isinstance(entry.get("options") or {}, Mapping):
        raise InputError(f"{entry!r:.80} is no online operation; quantize again")
    kind = str(entry.get("kind"))
    if kind not in KINDS:
        raise InputError(f"unknown online operation {kind!r}; {nearest_key(kind, KINDS)}")
    options = dict(entry.get("options") or {})
    for name in options:
        if name not in KINDS[kind]:
            raise InputError(f"unknown option {name!r} of {kind}; {nearest_key(name, KINDS[kind])}")
    missing = [name for name in KINDS[kind] if name not in options]
    if missing:
        raise InputError(f"the online operation {kind} lacks {', '.join(missing)}; the checkpoint is incomplete")
    if kind == "order":
        return _order(options)
    for name, value in options.items():
        least = -1 if name == "seed" else 1  # a seed of -1: no signs
        if type(value) is not int or not least <= value < 2**63:
            raise InputError(f"the option {name} of {kind} must be a whole number, not {value!r:.80}; quantize again")
    return OnlineOperation(kind, tuple((name, int(options[name])) for name in KINDS[kind]))


def _order(options: Mapping[str, Any]) -> OnlineOperation:
    """Read the channels that go last."""
    size, last = options["size"], options["last"]
    if type(size) is not int or not 1 <= size < 2**31 or type(last) is not str:
        raise InputError("the order of channels is a size and a text of numbers; quantize again")
    channel_order(size, last)
    return OnlineOperation("order", (("size", size), ("last", last)))


@lru_cache(maxsize=512)
def channel_order(size: int, last: str) -> Tensor:
    """Return int64 ``[size]``: all channels but the named ones, then those (``"3,17"``), both in their order.

    Raises:
        InputError: for numbers that do not ascend or are no channels.
    """
    words = last.split(",") if last else []
    if not all(word.isascii() and word.isdigit() and len(word) <= 10 for word in words):
        raise InputError(f"{last!r:.80} is no list of channels; quantize again")
    numbers = [int(word) for word in words]
    if any(a >= b for a, b in itertools.pairwise(numbers)) or (numbers and numbers[-1] >= size):
        raise InputError(f"the channels that go last ascend and are below {size}; quantize again")
    places = torch.tensor(numbers, dtype=torch.int64)
    kept = torch.ones(size, dtype=torch.bool).index_fill_(0, places, 0)
    return torch.cat((kept.nonzero().view(-1), places))


def _reordered(x: Tensor, operation: OnlineOperation, inverse: bool) -> Tensor:
    size = int(operation.option("size"))
    if x.shape[-1] != size:
        raise InputError(f"an order of {size} channels does not fit an input of {x.shape[-1]}; quantize again")
    order = channel_order(size, str(operation.option("last"))).to(x.device)
    return x.index_select(-1, order.argsort() if inverse else order)


def online_operations(entries: Iterable[Mapping[str, Any]] | None) -> tuple[OnlineOperation, ...]:
    """Read the ``online`` list of a manifest."""
    if entries is not None and (isinstance(entries, str | Mapping) or not isinstance(entries, Iterable)):
        raise InputError("the online operations of a manifest must be a list; quantize again")
    return tuple(online_operation(entry) for entry in entries or ())


def online_entries(operations: Iterable[OnlineOperation]) -> list[dict[str, Any]]:
    """The ``online`` list of a manifest, as :func:`online_operations` reads it."""
    return [{"kind": operation.kind, "options": dict(operation.options)} for operation in operations]


def run_online(x: Tensor, operations: Sequence[OnlineOperation], table: Table, inverse: bool = False) -> Tensor:
    """Run operations on the last axis of ``x`` in order; ``inverse`` undoes them in reverse order."""
    for operation in reversed(operations) if inverse else operations:
        if operation.kind not in KINDS:
            raise InputError(f"unknown online operation {operation.kind!r}; {nearest_key(operation.kind, KINDS)}")
        if operation.kind == "order":
            x = _reordered(x, operation, inverse)
            continue
        size, seed = int(operation.option("size")), int(operation.option("seed"))
        request = Request(operation.kind, "", x.device.type, x.dtype, (size,))
        x = table.choose(request).kernel.run(x, size, seed, inverse)
    return x
