"""Propose equivalences between neighbouring layers from the flow, and keep those that are proved.

Scaling the output channels of a source by s and the input channels of everything that reads them by 1/s must not move
the output; scaling the source alone must (else the proof would say nothing).
"""

from __future__ import annotations

from collections.abc import Iterator

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
MAX_VIEWS = 4
POWERS = 6


class PairFinder:
    """Proposes and proves norm→linear and linear→linear pairs."""

    def __init__(self, model: Model, flow: Flow, prover: Prover) -> None:
        self.model = model
        self.flow = flow
        self.prover = prover
        self.reasons: list[str] = []
        self._generator = torch.Generator().manual_seed(0)

    def in_block(self, block: int, call: ModuleCall) -> list[Pair]:
        """The proved pairs inside one block (its parameters may be loaded)."""
        pairs = [pair for norm in self.flow.norms if norm.block == block for pair in self.norm_pairs(norm)]
        for use in self.flow.uses:
            if use.site.kind == "linear" and use.site.block == block:
                pairs += self.linear_pairs(use, call.enter)
        return pairs

    def norm_pairs(self, norm: NormSite) -> list[Pair]:
        """The norm with every linear that reads it, if nobody else does."""
        call = self.flow.norm_calls[norm.path]
        if norm.kind == "batch" or call.result is None:
            return []
        sinks, other = self.flow.norm_readers(norm)
        if not sinks and other is None:
            return []
        if other is not None:
            if sinks:
                self.reasons.append(f"{norm.path}: not joined with the linears behind it, because {other}")
            return []
        if norm.weight is None:
            self.reasons.append(f"{norm.path}: has no gain that could take a scale")
            return []
        tied = [use.site.path for use in sinks if self._is_shared(use.site)]
        if tied:
            self.reasons.append(f"{norm.path}: not joined with {tied[0]}, whose weight is tied to another layer")
            return []
        scale = self._scale(norm.dim)
        source = self._norm_edits(norm, scale)
        blocks = {norm.block, *(use.site.block for use in sinks)}
        region = self.prover.region(call.enter, sinks[-1].op, blocks)
        edits = {use.site.name: scale_inputs(self._value(use.site.name), use.site, 1 / scale) for use in sinks}
        return self._judge("norm_linear", norm.path, [use.site for use in sinks], source, edits, region, norm.block)

    def linear_pairs(self, sink: Use, begin: int) -> list[Pair]:
        """Linears whose output channels reach the input channels of ``sink`` one by one."""
        pairs = []
        for entries in self.flow.sources(sink, begin).values():
            source, views = entries[0]
            if source.site.kind != "linear" or source.site.block != sink.site.block or self._is_shared(sink.site):
                continue
            for rows, head in _row_sets(source, views, sink.site.shape[1]):
                pair = self._linear_pair(source, sink, rows, head)
                if pair is not None:
                    pairs.append(pair)
                    break
        return pairs

    def _linear_pair(self, source: Use, sink: Use, rows: tuple[int, ...], head: int) -> Pair | None:
        width, out = sink.site.shape[1], source.site.shape[0]
        repeat = width // len(rows)
        scale = self._scale(len(rows))
        spread = spread_heads(scale, repeat, head)
        full = torch.ones(out)
        full[list(rows)] = scale
        edits = {source.site.name: scale_outputs(self._value(source.site.name), source.site, full)}
        if source.site.bias is not None:
            edits[source.site.bias] = self._value(source.site.bias) * full
        sinks = {sink.site.name: scale_inputs(self._value(sink.site.name), sink.site, 1 / spread)}
        region = self.prover.region(source.op, sink.op, {source.site.block, sink.site.block})
        found = self._judge("linear_linear", source.site.path, [sink.site], edits, sinks, region, sink.site.block)
        if not found:
            return None
        whole = rows == tuple(range(out))
        pair = found[0]
        return Pair(
            pair.kind, pair.source, pair.sinks, repeat, head if repeat > 1 else 0, pair.error,
            None if whole else rows, (), pair.block,
        )  # fmt: skip

    def _judge(
        self, kind: str, path: str, sinks: list[WeightSite], source: dict[str, torch.Tensor],
        edits: dict[str, torch.Tensor], region: int, block: int | None,
    ) -> list[Pair]:  # fmt: skip
        error = self.prover.error(region, {**source, **edits})
        if not error <= TOLERANCE:
            return []
        if self.prover.error(region, source) <= 10 * TOLERANCE:
            self.reasons.append(f"{path}: its scale does not reach the output of the example, so nothing is proved")
            return []
        return [Pair(kind, path, tuple(dict.fromkeys(site.path for site in sinks)), error=error, block=block)]

    def _norm_edits(self, norm: NormSite, scale: torch.Tensor) -> dict[str, torch.Tensor]:
        name = f"{norm.path}.{norm.weight}"
        edits = {name: scale_gain(self._value(name), norm, scale)}
        if norm.bias is not None:
            bias = f"{norm.path}.{norm.bias}"
            edits[bias] = self._value(bias) * scale
        return edits

    def _is_shared(self, site: WeightSite) -> bool:
        if site.tied_to is not None:
            return True
        return any(use.site.tied_to == site.name for use in self.flow.uses)

    def _value(self, name: str) -> torch.Tensor:
        return self.model.read_parameter(name)

    def _scale(self, count: int) -> torch.Tensor:
        return power_scales(count, POWERS, self._generator)


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
        if len(rows) > out or len(set(rows)) != len(rows) or width % len(rows) or rows in seen:
            continue
        if len(rows) != width and not head:
            continue
        seen.add(rows)
        if len(seen) <= MAX_VIEWS:
            yield rows, head
