"""The parts that a job works on one at a time: what runs before the blocks, each block, what runs after."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bitwright.models import Structure, WeightSite

UnitKind = Literal["prefix", "block", "suffix", "whole"]


@dataclass(frozen=True)
class Unit:
    """One part of the network.

    ``paths`` are the modules to hold in memory while it is worked on; ``sites`` its weights in call order; ``index``
    its place among the units.
    """

    name: str
    kind: UnitKind
    index: int
    paths: tuple[str, ...]
    sites: tuple[WeightSite, ...]
    block: int | None = None

    @property
    def groups(self) -> tuple[tuple[WeightSite, ...], ...]:
        """Linear and convolution sites that read the same tensor, in call order."""
        found: dict[int, list[WeightSite]] = {}
        for site in self.sites:
            if site.kind != "embedding":
                # What the example run did not reach shares its input with nobody known.
                number = site.shared_input if site.seen else -2 - len(found)
                found.setdefault(number, []).append(site)
        return tuple(tuple(group) for group in found.values())


def split_units(structure: Structure) -> tuple[Unit, ...]:
    """Cut a network into units; a network without a chain of blocks is one unit."""
    if not structure.blocks:
        return (Unit("model", "whole", 0, ("",), structure.sites),)
    inside = [i for i, site in enumerate(structure.sites) if site.block is not None]
    first = inside[0] if inside else len(structure.sites)
    before = tuple(s for i, s in enumerate(structure.sites) if s.block is None and i < first)
    after = tuple(s for i, s in enumerate(structure.sites) if s.block is None and i > first)
    late = _norms_behind(structure, {s.path for s in after})
    early = tuple(n.path for n in structure.norms if n.block is None and n.path not in late)
    units = [Unit("prefix", "prefix", 0, (*(s.path for s in before), *early, *_tables(structure)), before)]
    for number, path in enumerate(structure.blocks):
        sites = tuple(s for s in structure.sites if s.block == number)
        units.append(Unit(path, "block", len(units), (path,), sites, number))
    units.append(Unit("suffix", "suffix", len(units), (*(s.path for s in after), *late), after))
    return tuple(units)


def _tables(structure: Structure) -> tuple[str, ...]:
    """Owners of parameters that are added to the stream before the blocks and belong to no layer (positions)."""
    writes = () if structure.residual is None else structure.residual.writes
    layers = {name for site in structure.sites for name in (site.name, site.bias)}
    return tuple(dict.fromkeys(touch.name.rpartition(".")[0] for touch in writes if touch.name not in layers))


def _norms_behind(structure: Structure, suffix: set[str]) -> tuple[str, ...]:
    """Norms outside the blocks that a layer behind the blocks reads."""
    found = {p.source for p in structure.pairs if p.kind == "norm_linear" and suffix.intersection(p.sinks)}
    if structure.residual is not None:
        for touch in structure.residual.reads:
            if touch.norm is not None and touch.name.rpartition(".")[0] in suffix:
                found.add(touch.norm)
    return tuple(n.path for n in structure.norms if n.block is None and n.path in found)
