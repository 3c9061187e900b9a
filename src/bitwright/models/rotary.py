"""Find by experiment which query and key projections meet a rotary position embedding, and in which layout.

A product of queries and keys does not change when both are turned by the same orthogonal matrix, unless something that
depends on the position stands between: a rotary embedding turns pairs of channels by an angle per position, so it
commutes with turns inside those pairs (and with any turn of the channels that it leaves alone), and with nothing else.
So the projections' rows are turned, head by head, in the planes that a layout says; where the block's output stays and
an arbitrary turn moves it, that is the layout (RoPE: Su et al. 2021, equation 15; halves: Hugging Face's layout).

A norm on the heads of queries or keys does not commute with turns unless its gain is one number: for the experiment all
its gains are made equal.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from bitwright.models.edits import turn_outputs
from bitwright.models.flow import Flow, rows_of_view
from bitwright.models.model import Model
from bitwright.models.prove import Prover, relative_error
from bitwright.models.record import ModuleCall, Op, Ref
from bitwright.models.sites import Use
from bitwright.models.structure import RotaryPair, WeightSite

TOLERANCE = 1e-4
CONTROL = 1e-3
ROUNDING = 1e-6
# operation -> places of the two factors whose product is a score
_SCORES = {
    "scaled_dot_product_attention": (0, 1), "matmul": (0, 1), "__matmul__": (0, 1), "bmm": (0, 1),
    "baddbmm": (1, 2), "einsum": (1, 2),
}  # fmt: skip
_NAMED = {"query": 0, "key": 1, "input": 0, "other": 1, "mat2": 1}
LAYOUTS = ("half", "interleaved")


@dataclass(frozen=True)
class _Rows:
    """Output rows of a projection that are one factor of the scores, in order, ``head`` of them together."""

    site: WeightSite
    rows: tuple[int, ...]
    head: int


@dataclass(frozen=True)
class _Candidate:
    query: _Rows
    key: _Rows
    norms: tuple[str, ...]

    def likeness(self, block: str) -> str:
        """Equal for the same claim about another block of the same shape."""
        parts = [(p.site.path.removeprefix(block), p.site.shape, p.rows, p.head) for p in (self.query, self.key)]
        return f"{parts} {[norm.removeprefix(block) for norm in self.norms]}"


class RotaryFinder:
    """Proposes and proves rotary pairs, block by block."""

    def __init__(self, model: Model, flow: Flow, prover: Prover) -> None:
        self.model = model
        self.flow = flow
        self.prover = prover
        self._generator = torch.Generator().manual_seed(2)
        self._known: dict[str, tuple[str, int] | None] = {}
        self._products = {use.result.storage: use for use in flow.uses if use.site.kind == "linear"}
        self._writes = _writes(flow.run.ops)

    def in_block(self, block: int, call: ModuleCall) -> list[RotaryPair]:
        """The rotary pairs of one block (its parameters may be loaded)."""
        found: dict[tuple[str, str], RotaryPair] = {}
        for item in self._candidates(block, call):
            names = (item.query.site.path, item.key.site.path)
            if names in found:
                continue
            likeness = item.likeness(call.path)
            known = self._known.get(likeness)
            if likeness in self._known and known is None:
                continue
            layout, size, error = self._layout(item, block, [known] if known else list(_layouts(item.query.head)))
            self._known[likeness] = (layout, size) if layout else None
            if layout:
                head, rows = item.query.head, (item.query.rows, item.key.rows)
                allowed = _allowed(layout, size, head, item.norms)
                found[names] = RotaryPair(*names, layout, size, head, *rows, item.norms, error, block, allowed)
        return list(found.values())

    def _layout(self, item: _Candidate, block: int, choices: list[tuple[str, int]]) -> tuple[str, int, float]:
        """(layout, rotary channels, error) that hold; layout "" where none does or any turn is free."""
        level = self._level(item)
        plain = self.prover.output(block, level) if level else self.prover.output(block)

        def moved(turn: torch.Tensor, alone: bool = False) -> float:
            edits = dict(level)
            for part in (item.query,) if alone else (item.query, item.key):
                self._turn(part, turn, edits)
            return relative_error(self.prover.output(block, edits), plain)

        free = _orthogonal(item.query.head, self._generator)
        if moved(free) <= TOLERANCE or moved(free, alone=True) <= CONTROL:
            return "", 0, 0.0
        errors = {choice: moved(self._planes(item.query.head, *choice)) for choice in choices}
        # The last planes hardly turn within a few tokens: fewer channels than there are may come near, not as near.
        best = min(errors.values())
        held = [choice for choice in choices if errors[choice] <= min(TOLERANCE, 4 * best + ROUNDING)]
        return (*held[0], errors[held[0]]) if held else ("", 0, 0.0)

    def _planes(self, head: int, layout: str, size: int) -> torch.Tensor:
        """A turn by a random angle in each plane of the layout; the channels behind ``size`` are turned freely."""
        turn = torch.eye(head)
        first = torch.arange(size // 2) * (2 if layout == "interleaved" else 1)
        second = first + (1 if layout == "interleaved" else size // 2)
        angle = 0.3 + 2.5 * torch.rand(size // 2, generator=self._generator)
        turn[first, first] = turn[second, second] = angle.cos()
        turn[first, second], turn[second, first] = -angle.sin(), angle.sin()
        turn[size:, size:] = _orthogonal(head - size, self._generator)
        return turn

    def _turn(self, part: _Rows, turn: torch.Tensor, edits: dict[str, torch.Tensor]) -> None:
        rows = torch.tensor(part.rows)
        site = part.site
        edits[site.name] = turn_outputs(self._value(site.name, edits), site, turn, rows)
        if site.bias is not None:
            plain = replace(site, transposed=False)
            edits[site.bias] = turn_outputs(self._value(site.bias, edits), plain, turn, rows)

    def _level(self, item: _Candidate) -> dict[str, torch.Tensor]:
        """All gains of the norms on the way made equal, their shifts taken away."""
        edits: dict[str, torch.Tensor] = {}
        for norm in self.flow.norms:
            if norm.path in item.norms and norm.weight is not None:
                gain = self.model.read_parameter(f"{norm.path}.{norm.weight}")
                edits[f"{norm.path}.{norm.weight}"] = torch.ones_like(gain) * (gain + norm.offset).mean() - norm.offset
                if norm.bias is not None:
                    shift = self.model.read_parameter(f"{norm.path}.{norm.bias}")
                    edits[f"{norm.path}.{norm.bias}"] = torch.zeros_like(shift)
        return edits

    def _value(self, name: str, edits: dict[str, torch.Tensor]) -> torch.Tensor:
        return edits[name] if name in edits else self.model.read_parameter(name)

    def _candidates(self, block: int, call: ModuleCall) -> Iterator[_Candidate]:
        """Pairs of projections whose rows are the two factors of a score, those with most rows first."""
        seen: set[str] = set()
        for op in self.flow.run.ops[call.enter : call.exit]:
            if op.name not in _SCORES or op.index in self.flow.by_op:
                continue
            factors = _factors(op)
            if len(factors) != 2 or not factors[0].shape or factors[0].shape[-1] < 2:
                continue
            width = factors[0].shape[-1]
            sides = [self._rows(ref, width, call.enter, block) for ref in factors]
            for query, first in sides[0]:
                for key, second in sides[1]:
                    item = _Candidate(query, key, tuple(sorted({*first, *second})))
                    known = item.likeness("")
                    if query.head == key.head and not len(query.rows) % len(key.rows) and known not in seen:
                        seen.add(known)
                        yield item

    def _rows(self, factor: Ref, width: int, begin: int, block: int) -> list[tuple[_Rows, set[str]]]:
        """Row sets of the linear layers that one factor is made of, each with the norms on the way.

        ``width``: channels of a head in the score.
        """
        found: dict[tuple[str, tuple[int, ...]], tuple[_Rows, set[str]]] = {}
        norms: set[str] = set()
        waiting, seen = [factor], {(factor.key, factor.shape)}
        while waiting:
            ref = waiting.pop()
            source = self._products.get(ref.storage)
            if source is not None and source.site.block == block and ref.floating:
                _add(found, source, ref, width, norms)
            index = self.flow.run.producer.get(ref.key)
            for made in self._writes.get(ref.storage, ()) if index is None else (index,):
                op = self.flow.run.ops[made]
                if made < begin or made in self.flow.by_op or op.name in _SCORES:
                    continue
                if made in self.flow.in_norm:
                    norms.add(self.flow.in_norm[made])
                fresh = [other for _, other in op.inputs if (other.key, other.shape) not in seen]
                seen.update((other.key, other.shape) for other in fresh)
                waiting += fresh
        return sorted(found.values(), key=lambda item: -len(item[0].rows))


def _add(
    found: dict[tuple[str, tuple[int, ...]], tuple[_Rows, set[str]]], source: Use, ref: Ref, width: int, norms: set[str]
) -> None:
    rows, head = rows_of_view(ref, source.result)
    if len(rows) < 2 or len(set(rows)) != len(rows):
        return
    run = _run(rows)  # a view may cut a head further: a complex number is a pair of channels
    head = width if run % width == 0 else run if 1 < run <= width else head
    if head < 2 or head % 2 or len(rows) % head:
        return
    key = (source.site.path, rows)
    if key not in found or found[key][0].head < head <= width:
        found[key] = (_Rows(source.site, rows, head), norms)


def _writes(ops: list[Op]) -> dict[int, list[int]]:
    """Operations that changed a memory in place, through whatever view of it."""
    found: dict[int, list[int]] = {}
    for op in ops:
        before = {(ref.storage, ref.offset, ref.shape): ref.key for _, ref in op.inputs}
        for ref in op.outputs:
            if before.get((ref.storage, ref.offset, ref.shape), ref.key) != ref.key:
                found.setdefault(ref.storage, []).append(op.index)
    return found


def _run(rows: tuple[int, ...]) -> int:
    """Length of the runs of neighbours that the rows consist of, 1 where these differ."""
    ends = [i + 1 for i in range(len(rows)) if i + 1 == len(rows) or rows[i + 1] != rows[i] + 1]
    return ends[0] if all(end % ends[0] == 0 for end in ends) and len(rows) == ends[0] * len(ends) else 1


def _factors(op: Op) -> list[Ref]:
    places = {(_NAMED.get(slot, -1) if isinstance(slot, str) else slot): ref for slot, ref in reversed(op.inputs)}
    refs = [places.get(place) for place in _SCORES[op.name]]
    return [ref for ref in refs if ref is not None and ref.floating]


def _layouts(head: int) -> Iterator[tuple[str, int]]:
    """Layouts and numbers of rotary channels that are worth a try, fewest first.

    With too few of them a free turn of the rest fails; with too many a pair of free channels would pass for a plane.
    """
    sizes = [head // 4, head // 2, 3 * head // 4, head, 16, 32, 64]
    for size in sorted({size // 2 * 2 for size in sizes}):
        if 2 <= size <= head:
            yield from ((layout, size) for layout in LAYOUTS if size > 2 or layout == "half")


def _allowed(layout: str, size: int, head: int, norms: tuple[str, ...]) -> str:
    planes = f"(i, i + {size // 2})" if layout == "half" else "(2i, 2i + 1)"
    rest = f", freely in the last {head - size}" if size < head else ""
    gains = f", where the gains of {' and '.join(n.rpartition('.')[2] for n in norms)} are equal there" if norms else ""
    return f"turns in the planes {planes} of the first {size} of {head} channels{rest}{gains}"


def _orthogonal(size: int, generator: torch.Generator) -> torch.Tensor:
    """A random orthogonal matrix (the identity for one channel or none)."""
    if size < 2:
        return torch.eye(size)
    return torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))[0].float()
