"""Propose equivalences between neighbouring layers from the flow, and keep those that are proved.

Scaling the output channels of a source by s and the input channels of everything that reads them by 1/s must not move
the output; scaling the source alone must (else the proof would say nothing). What held and what failed in one block is
remembered: in the next block of the same shape the claims that held are proved in one run, those that failed are not
made again.

Where the channels lie in heads, it is also tried whether the channels of a head may be mixed: an orthogonal matrix on
the rows of every head and its transpose on the columns that read them must not move the output (section 4.1 of QuaRot
needs it; a gate between value and output projection forbids it).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from bitwright.models.edits import scale_gain, scale_inputs, scale_outputs, turn_inputs, turn_outputs
from bitwright.models.flow import Flow, rows_of_view
from bitwright.models.model import Model
from bitwright.models.prove import Prover
from bitwright.models.record import ModuleCall, Ref
from bitwright.models.scales import power_scales
from bitwright.models.sites import Use
from bitwright.models.structure import NormSite, Pair, WeightSite

TOLERANCE = 1e-4
CONTROL = 1e-3
MAX_VIEWS = 4
POWERS = 6
# What is remembered of a claim: it failed, scales may move, scales may move and heads may be turned.
_FAILED, _SCALES, _TURNS = "failed", "scales", "turns"


@dataclass(frozen=True)
class Candidate:
    """A pair that is not proved yet: its source (a norm or a linear) and sinks; ``rows`` are None for all rows."""

    source: NormSite | WeightSite
    sinks: tuple[WeightSite, ...]
    block: int | None
    first: int
    last: int
    rows: tuple[int, ...] | None = None
    repeat: int = 1
    head: int = 0

    @property
    def channels(self) -> int:
        """Number of scales."""
        if isinstance(self.source, NormSite):
            return self.source.dim
        return self.source.shape[0] if self.rows is None else len(self.rows)

    def likeness(self, block: str) -> str:
        """Equal for the same claim about another block of the same shape."""
        names = [self.source.path.removeprefix(block), *(sink.path.removeprefix(block) for sink in self.sinks)]
        return f"{names} {self.channels} {self.rows} {self.repeat} {self.head} {[sink.shape for sink in self.sinks]}"

    @property
    def in_heads(self) -> bool:
        """Whether the channels lie in more than one head."""
        return isinstance(self.source, WeightSite) and 1 < self.head < self.channels

    def pair(self, error: float, turns: bool = False) -> Pair:
        """The proved pair; ``turns``: the channels of a head may be mixed, too."""
        kind = "norm_linear" if isinstance(self.source, NormSite) else "linear_linear"
        paths = tuple(dict.fromkeys(sink.path for sink in self.sinks))
        head = self.head if self.repeat > 1 or self.in_heads else 0
        return Pair(kind, self.source.path, paths, self.repeat, head, error, self.rows, (), self.block, turns)


class PairFinder:
    """Proposes and proves norm→linear and linear→linear pairs."""

    def __init__(self, model: Model, flow: Flow, prover: Prover) -> None:
        self.model = model
        self.flow = flow
        self.prover = prover
        self.reasons: list[str] = []
        self._generator = torch.Generator().manual_seed(0)
        self._known: dict[str, str] = {}

    def in_block(self, block: int, call: ModuleCall) -> list[Pair]:
        """The proved pairs inside one block (its parameters may be loaded)."""
        candidates = [item for norm in self.flow.norms if norm.block == block for item in self._of_norm(norm)]
        for use in self.flow.uses:
            if use.site.kind == "linear" and use.site.block == block:
                candidates += self._of_linear(use, call.enter)
        candidates = _one_expert_each(candidates)
        known = {id(item): self._known.get(item.likeness(call.path)) for item in candidates}
        held = [item for item in candidates if known[id(item)] is not None and known[id(item)] != _FAILED]
        error = self._error(held)
        turned = [item for item in held if known[id(item)] == _TURNS] if error <= TOLERANCE else []
        turns = self._turn_error(turned) <= TOLERANCE
        pairs = []
        for item in candidates:
            found: Pair | None = None
            if error <= TOLERANCE and known[id(item)] in (_SCALES, _TURNS):
                found = item.pair(error, known[id(item)] == _TURNS and (turns or self._turns(item)))
            elif known[id(item)] != _FAILED:
                found = self._proved(item)
            self._known[item.likeness(call.path)] = _FAILED if found is None else _TURNS if found.turns else _SCALES
            if found is not None:
                pairs.append(found)
        return pairs

    def of_norm(self, norm: NormSite) -> list[Pair]:
        """The norm (outside the blocks) with the linears that read it, proved by itself."""
        found = [self._proved(item) for item in self._of_norm(norm)]
        return [pair for pair in found if pair is not None]

    def _of_norm(self, norm: NormSite) -> list[Candidate]:
        """The norm with every linear that reads it, if nobody else does."""
        call = self.flow.norm_calls[norm.path]
        if norm.kind == "batch" or call.result is None:
            return []
        sinks, other = self.flow.norm_readers(norm)
        if not sinks:
            return []
        if other is not None:
            self.reasons.append(f"{norm.path}: not joined with the linears behind it, because {other}")
            return []
        if norm.weight is None:
            self.reasons.append(f"{norm.path}: has no gain that could take a scale")
            return []
        tied = [use.site.path for use in sinks if self._is_shared(use.site)]
        if tied:
            self.reasons.append(f"{norm.path}: not joined with {tied[0]}, whose weight is tied to another layer")
            return []
        return [Candidate(norm, tuple(use.site for use in sinks), norm.block, call.enter, sinks[-1].op)]

    def _of_linear(self, sink: Use, begin: int) -> list[Candidate]:
        """Linears whose output channels may reach the input channels of ``sink`` one by one."""
        found: list[Candidate] = []
        if self._is_shared(sink.site):
            return found
        for source, views in self.flow.sources(sink, begin).values():
            site = source.site
            if site.kind != "linear" or site.block != sink.site.block or self._is_shared(site):
                continue
            for rows, head in _row_sets(source, views, sink.site.shape[1]):
                chosen = None if rows == tuple(range(site.shape[0])) else rows
                repeat = sink.site.shape[1] // len(rows)
                found.append(Candidate(site, (sink.site,), site.block, source.op, sink.op, chosen, repeat, head))
        return found

    def _proved(self, item: Candidate) -> Pair | None:
        error = self._error([item])
        if not error <= TOLERANCE:
            return None
        if self._error([item], alone=True) <= CONTROL:
            self.reasons.append(
                f"{item.source.path}: a scale of it does not reach the output of the example, so nothing is proved"
            )
            return None
        return item.pair(error, self._turns(item))

    def _turns(self, item: Candidate) -> bool:
        """Whether the channels of a head of ``item`` may be mixed by an orthogonal matrix."""
        return item.in_heads and self._turn_error([item]) <= TOLERANCE

    def _turn_error(self, items: list[Candidate]) -> float:
        """How far the output moves when the heads of all ``items`` are turned."""
        if not items:
            return 0.0
        edits: dict[str, torch.Tensor] = {}
        for item in items:
            source = item.source
            assert isinstance(source, WeightSite)
            rows = torch.tensor(range(source.shape[0]) if item.rows is None else item.rows)
            draw = torch.randn(item.head, item.head, generator=self._generator, dtype=torch.float64)
            matrix = torch.linalg.qr(draw)[0].float()
            edits[source.name] = turn_outputs(self._value(source.name, edits), source, matrix, rows)
            if source.bias is not None:
                plain = replace(source, transposed=False)
                edits[source.bias] = turn_outputs(self._value(source.bias, edits), plain, matrix, rows)
            for sink in item.sinks:
                edits[sink.name] = turn_inputs(self._value(sink.name, edits), sink, matrix)
        return self.prover.error(self._region(items), edits)

    def _region(self, items: list[Candidate]) -> int:
        blocks = {block for item in items for block in (item.block, *(sink.block for sink in item.sinks))}
        return self.prover.region(min(i.first for i in items), max(i.last for i in items), blocks)

    def _error(self, items: list[Candidate], alone: bool = False) -> float:
        """How far the output moves when all ``items`` are scaled (only their sources, where ``alone``)."""
        if not items:
            return 0.0
        edits: dict[str, torch.Tensor] = {}
        for item in items:
            scale = power_scales(item.channels, POWERS, self._generator)
            self._scale_source(item, scale, edits)
            spread = 1 / spread_heads(scale, item.repeat, item.head)
            for sink in () if alone else item.sinks:
                edits[sink.name] = scale_inputs(self._value(sink.name, edits), sink, spread)
        return self.prover.error(self._region(items), edits)

    def _scale_source(self, item: Candidate, scale: torch.Tensor, edits: dict[str, torch.Tensor]) -> None:
        source = item.source
        if isinstance(source, NormSite):
            name = f"{source.path}.{source.weight}"
            edits[name] = scale_gain(self._value(name, edits), source, scale)
            bias = None if source.bias is None else f"{source.path}.{source.bias}"
        else:
            if item.rows is not None:
                full = torch.ones(source.shape[0])
                full[list(item.rows)] = scale
                scale = full
            edits[source.name] = scale_outputs(self._value(source.name, edits), source, scale)
            bias = source.bias
        if bias is not None:
            value = self._value(bias, edits)
            edits[bias] = value * scale.to(value)

    def _value(self, name: str, edits: dict[str, torch.Tensor]) -> torch.Tensor:
        return edits[name] if name in edits else self.model.read_parameter(name)

    def _is_shared(self, site: WeightSite) -> bool:
        if site.tied_to is not None:
            return True
        return any(use.site.tied_to == site.name for use in self.flow.uses)


def _one_expert_each(candidates: list[Candidate]) -> list[Candidate]:
    """The candidates with one expert for all of its family: they are the same code, and there may be hundreds."""
    found: dict[object, Candidate] = {}
    for item in candidates:
        source = item.source
        key: object = id(item)
        if isinstance(source, WeightSite) and source.expert is not None:
            inside = all(sink.expert == source.expert for sink in item.sinks)
            key = (source.family, *(sink.family for sink in item.sinks)) if inside else key
        found.setdefault(key, item)
    return list(found.values())


def spread_heads(scale: torch.Tensor, repeat: int, head: int) -> torch.Tensor:
    """Scales of source rows [heads * head] repeated for every query head of a group: [heads * repeat * head]."""
    if repeat == 1:
        return scale
    return scale.reshape(-1, 1, head).expand(-1, repeat, head).reshape(-1)


def _row_sets(source: Use, views: list[Ref], width: int) -> Iterator[tuple[tuple[int, ...], int]]:
    """Distinct sets of source rows that could be the ``width`` input channels of a sink, with the size of a head.

    Where no head repeats, all views of the same rows agree and the one with the smallest heads tells most.
    """
    found: dict[tuple[int, ...], int] = {}
    out = source.site.shape[0]
    for view in views:
        rows, head = rows_of_view(view, source.result)
        if not 0 < len(rows) <= out or len(set(rows)) != len(rows) or width % len(rows):
            continue
        if len(rows) != width and not head:
            continue
        finer = rows in found and len(rows) == width and 1 < head < found[rows]
        if finer or (rows not in found and len(found) < MAX_VIEWS):
            found[rows] = head
    yield from found.items()
