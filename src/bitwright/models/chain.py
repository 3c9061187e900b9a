"""Find the chain of blocks in a recorded run.

A chain is a row of module calls in which one call's output is the next one's first argument and nothing else that
depends on the stream crosses the cut (a residual, a mask made before the first block or per-layer tables may; so may
what a block returns beside the hidden state without reading it, as T5's first block makes the position bias of all).
So each block can be run alone from its recorded arguments. Of all chains the one is taken that spares the most
memory: weights in the chain less the largest block; among equals the finer one. But parts of unlike kinds that repeat
inside layers of one kind (attention, then a multilayer perceptron) are taken together: a block is a whole layer. One
block alone counts only where it holds half of all weights.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

from torch import nn

from bitwright.models.record import ModuleCall, Run, Slot

_EMBEDDING_OPS = frozenset({"embedding", "embedding_bag"})


@dataclass(frozen=True)
class Chain:
    """Calls of the blocks, in order.

    ``aside``: (number of a block, places) where a later block reads more of its output tuple than the hidden state:
    the argument that each item is (None: nobody reads it), or no places where the block makes such an item itself.
    """

    calls: tuple[ModuleCall, ...]
    aside: tuple[tuple[int, tuple[Slot | None, ...]], ...] = ()

    @property
    def paths(self) -> tuple[str, ...]:
        """Module paths of the blocks."""
        return tuple(call.path for call in self.calls)


@dataclass(frozen=True)
class _Candidate:
    call: ModuleCall
    entry: int
    result: int
    weights: int
    foreign: frozenset[int]
    made: frozenset[int]


def find_chains(module: nn.Module, run: Run, excluded: Collection[str] = ()) -> list[Chain]:
    """Chains of blocks of a recorded run, best first; empty where no module can be cut out.

    Modules whose paths are ``excluded`` are no blocks.
    """
    candidates = [item for item in _candidates(module, run) if item.call.path not in excluded]
    by_entry: dict[int, list[_Candidate]] = {}
    for candidate in candidates:
        by_entry.setdefault(candidate.entry, []).append(candidate)
    scored: list[tuple[int, int, list[_Candidate]]] = []
    inside: set[int] = set()
    whole = _product_weights(run, run.calls[0])
    for start in candidates:
        if start.call.index in inside:
            continue  # a part of a chain that began earlier
        chain = _trim(_closed_chain(start, candidates, by_entry, run))
        if not chain:
            continue
        inside.update(item.call.index for item in chain)
        weights = [item.weights for item in chain]
        if len(chain) > 1 or 2 * sum(weights) >= whole:
            scored.append((sum(weights) - max(weights, default=0), len(chain), _layers(chain, candidates, module, run)))
    scored.sort(key=lambda item: item[:2], reverse=True)
    return [Chain(tuple(item.call for item in chain), _aside(chain)) for _, _, chain in scored]


def _candidates(module: nn.Module, run: Run) -> list[_Candidate]:
    counts: dict[str, int] = {}
    for call in run.calls:
        counts[call.path] = counts.get(call.path, 0) + 1
    result = []
    for call in run.calls:
        hidden, output = call.hidden, call.result
        if counts[call.path] != 1 or not call.path or hidden is None or output is None or call.exit < 0:
            continue
        if call.items < 0:
            continue  # nobody but the module itself can make what it returns
        if len(hidden.shape) != len(output.shape) or next(module.get_submodule(call.path).children(), None) is None:
            continue
        weights = _product_weights(run, call)
        if not weights or output.key == hidden.key:
            continue
        produced = {ref.key for op in run.ops[call.enter : call.exit] for ref in op.outputs}
        read = {ref.key for op in run.ops[call.enter : call.exit] for _, ref in op.inputs}
        given = {ref.key for _, ref in call.inputs}
        foreign = frozenset(key for key in read if key not in run.constants and (key in given or key not in produced))
        if any(key in run.producer and key not in given and run.producer[key] < call.enter for key in foreign):
            continue  # it reads a computed tensor that is not among its arguments, so it cannot be run alone
        made = frozenset(produced) - foreign
        result.append(_Candidate(call, hidden.key, output.key, weights, foreign, made))
    return result


def _product_weights(run: Run, call: ModuleCall) -> int:
    """Elements of the matrices and kernels that a call used, tables that are only looked up aside."""
    used: dict[str, int] = {}
    for op in run.ops[call.enter : call.exit]:
        if op.name in _EMBEDDING_OPS:
            continue
        shapes = dict(op.inputs)
        for slot, name in op.parameters:
            if len(shapes[slot].shape) >= 2:
                used[name] = math.prod(shapes[slot].shape)
    return sum(used.values())


def _closed_chain(
    start: _Candidate, candidates: list[_Candidate], by_entry: dict[int, list[_Candidate]], run: Run
) -> list[_Candidate]:
    """The longest chain from ``start`` in which no block reads what an earlier block made on the side."""
    stream = downstream(start.entry, start.call.enter, run)
    allowed = [c for c in candidates if c is start or not (c.foreign & stream) - {c.entry}]
    while True:
        chain = _longest_from(start, allowed, by_entry)
        made: set[int] = set()
        for item in chain:
            if (item.foreign - {item.entry}) & made:
                allowed = [other for other in allowed if other is not item]
                break
            made.update(item.made - (set(item.call.item_keys) - stream))
        else:
            leak = _leak(chain, run)
            if leak is None or leak is start:
                return chain if leak is None else []
            allowed = [other for other in allowed if other is not leak]


def _layers(chain: list[_Candidate], candidates: list[_Candidate], module: nn.Module, run: Run) -> list[_Candidate]:
    """The calls around the blocks, where these are unlike parts that every one of them has; else the chain itself."""
    parts: dict[int, list[type[nn.Module]]] = {}
    for item in chain:
        parts.setdefault(item.call.parent, []).append(type(module.get_submodule(item.call.path)))
    around = {item.call.index: item for item in candidates if item.call.index in parts}
    kinds = list(parts.values())
    same = all(kind == kinds[0] for kind in kinds) and len(set(kinds[0])) == len(kinds[0]) > 1
    classes = {type(module.get_submodule(item.call.path)) for item in around.values()}
    if len(parts) < 2 or not same or len(around) != len(parts) or len(classes) != 1:
        return chain
    layers = [around[index] for index in parts]
    by_entry: dict[int, list[_Candidate]] = {}
    for item in layers:
        by_entry.setdefault(item.entry, []).append(item)
    closed = _closed_chain(layers[0], layers, by_entry, run)
    return layers if closed == layers and layers[-1].result == chain[-1].result else chain


def _aside(chain: list[_Candidate]) -> tuple[tuple[int, tuple[Slot | None, ...]], ...]:
    """What blocks hand to later ones beside the hidden state."""
    found: list[tuple[int, tuple[Slot | None, ...]]] = []
    made: set[int] = set()
    for index, item in enumerate(chain):
        made |= item.made
        later = {key for other in chain[index + 1 :] for key in other.foreign - {other.entry}}
        wanted = set(item.call.item_keys) & made & later
        if not wanted:
            continue
        given = {ref.key: slot for slot, ref in item.call.inputs}
        places = tuple(given.get(key) if key in wanted else None for key in item.call.item_keys)
        found.append((index, places if wanted <= set(given) else ()))
    return tuple(found)


def _leak(chain: list[_Candidate], run: Run) -> _Candidate | None:
    """The first block of which layers outside of the chain read more than the chain's result, or None.

    That is what it reads (a residual around it) or makes on the side.
    """
    inside = {index for item in chain for index in range(item.call.enter, item.call.exit)}
    for item in chain:
        keys = {item.entry, *item.made} - {item.result}
        if any(index >= item.call.exit and index not in inside for key in keys for index in run.readers.get(key, ())):
            return item
    return None


def _longest_from(
    start: _Candidate, allowed: list[_Candidate], by_entry: dict[int, list[_Candidate]]
) -> list[_Candidate]:
    """The heaviest (then longest) chain of ``allowed`` calls that begins with ``start``."""
    best: dict[int, tuple[int, int, _Candidate | None]] = {}
    for candidate in sorted(allowed, key=lambda item: -item.call.index):
        if candidate.call.index < start.call.index:
            break
        tail: tuple[int, int, _Candidate | None] = (0, 0, None)
        for following in by_entry.get(candidate.result, ()):
            known = best.get(following.call.index) if _fits(candidate.call, following.call) else None
            if known is not None and following.call.enter >= candidate.call.exit and known[:2] > tail[:2]:
                tail = (known[0], known[1], following)
        best[candidate.call.index] = (candidate.weights + tail[0], 1 + tail[1], tail[2])
    chain: list[_Candidate] = []
    current: _Candidate | None = start
    while current is not None:
        chain.append(current)
        current = best[current.call.index][2]
    return chain


def _fits(before: ModuleCall, after: ModuleCall) -> bool:
    """Whether one block's result can be given to the next one as it is (it may have been reshaped between them)."""
    assert before.result is not None
    assert after.hidden is not None
    return before.result.shape == after.hidden.shape and before.result.stride == after.hidden.stride


def downstream(key: int, begin: int, run: Run) -> set[int]:
    """Every value that depends on ``key`` through operations from number ``begin`` on, itself included."""
    reached = {key}
    for op in run.ops[begin:]:
        if any(ref.key in reached for _, ref in op.inputs):
            reached.update(ref.key for ref in op.outputs)
    return reached


def _trim(chain: list[_Candidate]) -> list[_Candidate]:
    """Drop modules at the ends of a token chain that change the width (a projection, a prediction head)."""

    def changes(item: _Candidate) -> bool:
        hidden, output = item.call.hidden, item.call.result
        assert hidden is not None
        assert output is not None
        return len(hidden.shape) <= 3 and hidden.shape[-1] != output.shape[-1]

    while len(chain) > 1 and changes(chain[-1]):
        chain = chain[:-1]
    while len(chain) > 1 and changes(chain[0]):
        chain = chain[1:]
    return chain
