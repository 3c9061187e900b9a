"""Propose equivalences between neighbouring layers from the flow, and keep those that are proved.

Scaling the output channels of a source by s and the input channels of everything that reads them by 1/s must not move
the output; scaling the source alone must (else the proof would say nothing). What held and what failed in one block is
remembered: in the next block of the same shape the claims that held are proved in one run, those that failed are not
made again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from bitwright.models.edits import scale_gain, scale_inputs, scale_outputs
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

    def pair(self, error: float) -> Pair:
        """The proved pair."""
        kind = "norm_linear" if isinstance(self.source, NormSite) else "linear_linear"
        paths = tuple(dict.fromkeys(sink.path for sink in self.sinks))
        head = self.head if self.repeat > 1 else 0
        return Pair(kind, self.source.path, paths, self.repeat, head, error, self.rows, (), self.block)


class PairFinder:
    """Proposes and proves norm→linear and linear→linear pairs."""

    def __init__(self, model: Model, flow: Flow, prover: Prover) -> None:
        self.model = model
        self.flow = flow
        self.prover = prover
        self.reasons: list[str] = []
        self._generator = torch.Generator().manual_seed(0)
        self._known: dict[str, bool] = {}

    def in_block(self, block: int, call: ModuleCall) -> list[Pair]:
        """The proved pairs inside one block (its parameters may be loaded)."""
        candidates = [item for norm in self.flow.norms if norm.block == block for item in self._of_norm(norm)]
        for use in self.flow.uses:
            if use.site.kind == "linear" and use.site.block == block:
                candidates += self._of_linear(use, call.enter)
        candidates = _one_expert_each(candidates)
        held = [item for item in candidates if self._known.get(item.likeness(call.path), False)]
        error = self._error(held)
        proved = {id(item): item.pair(error) for item in held} if error <= TOLERANCE else {}
        pairs = []
        for item in candidates:
            if self._known.get(item.likeness(call.path), True) and id(item) not in proved:
                found = self._proved(item)
                if found is not None:
                    proved[id(item)] = found
                self._known[item.likeness(call.path)] = found is not None
            if id(item) in proved:
                pairs.append(proved[id(item)])
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
        return item.pair(error)

    def _error(self, items: list[Candidate], alone: bool = False) -> float:
        """How far the output moves when all ``items`` are scaled (only their sources, where ``alone``)."""
        if not items:
            return 0.0
        edits: dict[str, torch.Tensor] = {}
        blocks: set[int | None] = set()
        for item in items:
            scale = power_scales(item.channels, POWERS, self._generator)
            self._scale_source(item, scale, edits)
            spread = 1 / spread_heads(scale, item.repeat, item.head)
            for sink in () if alone else item.sinks:
                edits[sink.name] = scale_inputs(self._value(sink.name, edits), sink, spread)
            blocks.update({item.block, *(sink.block for sink in item.sinks)})
        region = self.prover.region(min(i.first for i in items), max(i.last for i in items), blocks)
        return self.prover.error(region, edits)

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
    """Distinct sets of source rows that could be the ``width`` input channels of a sink."""
    seen: set[tuple[int, ...]] = set()
    out = source.site.shape[0]
    for view in views:
        rows, head = rows_of_view(view, source.result)
        if not 0 < len(rows) <= out or len(set(rows)) != len(rows) or width % len(rows) or rows in seen:
            continue
        if len(rows) != width and not head:
            continue
        seen.add(rows)
        if len(seen) <= MAX_VIEWS:
            yield rows, head
