"""Which weights are routers and which belong to experts, from the flow of a recorded run.

A router is a linear layer whose output, value by value, is what a top-k (or argmax, sort) chooses from. Experts are the
layers of an opened stack, and layers whose input's rows were picked by what a router chose; all experts of one layer
are one family, also those that got no token in the example.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from torch import nn

from bitwright.models.expert_stack import ExpertStack
from bitwright.models.flow import MOVES
from bitwright.models.record import Op, Ref, Run
from bitwright.models.sites import Use
from bitwright.models.structure import Pair, ResidualStream, StreamParameter, Structure, WeightSite

_CHOICES = frozenset({"topk", "argmax", "sort", "argsort", "max"})
_PICKS = frozenset({"__getitem__", "index_select", "gather", "take", "take_along_dim", "index"})
_PRODUCTS = frozenset({
    "linear", "matmul", "__matmul__", "mm", "bmm", "baddbmm", "addmm", "einsum", "scaled_dot_product_attention",
})  # fmt: skip


def mark_experts(module: nn.Module, run: Run, uses: tuple[Use, ...]) -> tuple[Use, ...]:
    """Give routers their role, and the weights of experts their number and family."""
    by_op = {use.op: use for use in uses}
    routers: set[str] = set()
    chosen: list[int] = []
    for op in run.ops:
        router = _router_of(op, run, by_op)
        if router is not None:
            routers.add(router.site.name)
            chosen += [ref.key for ref in op.outputs if not ref.floating]
    routing = _integers_from(chosen, run)
    linears = [use for use in uses if use.site.kind == "linear"]
    held = stacks(module)
    picked = {use.site.path for use in linears if _picked(use.entry, run, routing)}
    picked = {path for path in picked if path.rpartition(".")[0] not in held}
    blocks = {use.site.path: use.site.block for use in linears}
    held |= {prefix for path in picked if (prefix := _container(module, path, picked, blocks)) is not None}
    marked = (replace(use, site=_numbered(use.site, held)) for use in uses)
    return tuple(
        replace(use, site=replace(use.site, role="router")) if use.site.name in routers else use for use in marked
    )


def stacks(module: nn.Module) -> set[str]:
    """Paths of the opened stacks."""
    return {path for path, item in module.named_modules() if isinstance(item, ExpertStack)}


def _container(module: nn.Module, path: str, picked: set[str], blocks: Mapping[str, int | None]) -> str | None:
    """The list of experts around a layer: the innermost one whose other items hold the same layer, picked as well.

    ``blocks``: the block of every layer that was seen; experts of one list lie in one block.
    """
    parts = path.split(".")
    for level in range(len(parts) - 1, 0, -1):
        if not parts[level].isdigit():
            continue
        prefix, tail = ".".join(parts[:level]), parts[level + 1 :]
        shape = _shape(module, path)
        items = (name for name, _ in module.get_submodule(prefix).named_children())
        alike = [p for name in items if _shape(module, p := ".".join([prefix, name, *tail])) == shape]
        seen = [p for p in alike if p in blocks]
        if len(alike) > 1 and all(p in picked and blocks[p] == blocks[path] for p in seen):
            return prefix
    return None


def _shape(module: nn.Module, path: str) -> tuple[int, ...] | None:
    """Shape of a layer's own matrix; None where there is no such layer."""
    try:
        own = module.get_submodule(path).parameters(recurse=False)
    except AttributeError:
        return None
    return next((tuple(p.shape) for p in own if p.dim() == 2), None)


def _numbered(site: WeightSite, held: Iterable[str]) -> WeightSite:
    """The site with its expert's number, where it lies in one of the containers of experts."""
    for prefix in held:
        if site.path.startswith(f"{prefix}."):
            number, _, tail = site.path.removeprefix(f"{prefix}.").partition(".")
            if number.isdigit():
                family = f"{prefix}.*.{tail}" if tail else f"{prefix}.*"
                return replace(site, expert=int(number), family=family)
    return site


def _router_of(op: Op, run: Run, by_op: dict[int, Use]) -> Use | None:
    """The linear layer whose output the operation chooses from."""
    if op.name not in _CHOICES or not op.inputs or not op.inputs[0][1].floating:
        return None
    if not any(run.readers.get(ref.key) for ref in op.outputs if not ref.floating):
        return None
    waiting, seen = [op.inputs[0][1]], set()
    while waiting:
        ref = waiting.pop()
        index = run.producer.get(ref.key)
        if index is None or ref.key in seen:
            continue
        seen.add(ref.key)
        use = by_op.get(index)
        if use is not None:
            if use.site.kind == "linear" and use.site.role in ("block", "outside"):
                return use
            continue
        made = run.ops[index]
        if made.name not in _PRODUCTS:
            # Value by value, or a part of the values: a reduction would lead on to what the layer itself reads.
            most = math.inf if made.name in MOVES else _count(ref)
            waiting += [other for _, other in made.inputs if other.floating and _count(ref) <= _count(other) <= most]
    return None


def _integers_from(keys: Iterable[int], run: Run) -> set[int]:
    """Every value without fractions that follows from ``keys``: masks, counts, positions."""
    waiting = list(keys)
    seen = set(waiting)
    while waiting:
        for index in run.readers.get(waiting.pop(), ()):
            for ref in run.ops[index].outputs:
                if not ref.floating and ref.key not in seen:
                    seen.add(ref.key)
                    waiting.append(ref.key)
    return seen


def _picked(entry: Ref, run: Run, routing: set[int]) -> bool:
    """Whether the rows of a layer's input were picked by a router's choice."""
    key = entry.key
    for _ in range(8):
        index = run.producer.get(key)
        if index is None:
            return False
        op = run.ops[index]
        if op.name in _PICKS and any(ref.key in routing for _, ref in op.inputs[1:]):
            return True
        if op.name not in MOVES or not op.inputs:
            return False
        key = op.inputs[0][1].key
    return False


def _count(ref: Ref) -> int:
    result = 1
    for size in ref.shape:
        result *= size
    return result


def complete_experts(module: nn.Module, found: Structure) -> Structure:
    """Give every expert the pairs that were proved for one of its family, and those without a token their place.

    What was proved for one expert holds for all: they are the same code on other weights. A norm's pair must name all
    readers and a residual stream all that touch it, so without this an expert without tokens would be left behind.
    """
    held = {prefix for site in found.sites if site.expert is not None and (prefix := _prefix(site))} | stacks(module)
    sites = tuple(s if s.expert is not None else _numbered(s, held) for s in found.sites)
    families: dict[str, list[WeightSite]] = {}
    for site in sites:
        if site.expert is not None:
            families.setdefault(site.family, []).append(site)
    member = {s.path: s for members in families.values() for s in members}
    pairs = [_widened(pair, member, families) for pair in found.pairs]
    for pair in found.pairs:
        source = member.get(pair.source)
        if source is not None and all(p in member and member[p].expert == source.expert for p in pair.sinks):
            have = {p.source for p in pairs}
            missing = [s for s in families[source.family] if s.path not in have]
            moved = (_moved(pair, source, s) for s in missing)
            # One stack of a layer may hold more experts than the next.
            pairs += [p for p in moved if all(sink in member for sink in p.sinks)]
    residual = found.residual and _widened_stream(found.residual, member, families)
    return replace(found, sites=sites, pairs=tuple(pairs), residual=residual)


def _prefix(site: WeightSite) -> str:
    return site.family.partition(".*")[0]


def _widened(pair: Pair, member: dict[str, WeightSite], families: dict[str, list[WeightSite]]) -> Pair:
    """A norm's pair with all experts of a family that reads it."""
    if pair.kind != "norm_linear":
        return pair
    sinks = dict.fromkeys(pair.sinks)
    for path in pair.sinks:
        if path in member:
            sinks.update(dict.fromkeys(s.path for s in families[member[path].family]))
    return replace(pair, sinks=tuple(sinks))


def _moved(pair: Pair, source: WeightSite, other: WeightSite) -> Pair:
    """A pair inside one expert, for another expert of the family."""
    return replace(pair, source=other.path, sinks=tuple(_of_expert(s, source, other) for s in pair.sinks))


def _of_expert(path: str, source: WeightSite, other: WeightSite) -> str:
    """The layer of another expert that plays the part of ``path`` (in a list of experts, or in a stack beside)."""
    before, after = f".{source.expert}", f".{other.expert}"
    prefix = _prefix(source)
    if path.startswith(f"{prefix}{before}."):
        return prefix + after + path.removeprefix(prefix + before)
    return path.removesuffix(before) + after


def _widened_stream(
    stream: ResidualStream, member: dict[str, WeightSite], families: dict[str, list[WeightSite]]
) -> ResidualStream:
    def paths(given: Sequence[str]) -> tuple[str, ...]:
        names = dict.fromkeys(given)
        for path in given:
            if path in member:
                names.update(dict.fromkeys(s.path for s in families[member[path].family]))
        return tuple(names)

    def touches(given: Sequence[StreamParameter]) -> tuple[StreamParameter, ...]:
        entries = {t.name: t for t in given}
        for touch in given:
            path, _, leaf = touch.name.rpartition(".")
            for sibling in families[member[path].family] if path in member else ():
                name = f"{sibling.path}.{leaf}"
                entries.setdefault(name, replace(touch, name=name))
        return tuple(entries.values())

    return replace(
        stream, readers=paths(stream.readers), writers=paths(stream.writers), writes=touches(stream.writes),
        reads=touches(stream.reads),
    )  # fmt: skip
