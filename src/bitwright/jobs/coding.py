"""Rounds the weights of a unit, group of shared input after group, with the statistics that their stages ask for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from bitwright.jobs.experts import (
    Group,
    count_requests,
    has_second_moments,
    say_few_tokens,
    steadied,
    tokens_of,
    waves,
)
from bitwright.jobs.installing import install_module
from bitwright.jobs.result import ModuleResult, UnitResult
from bitwright.jobs.solving import Statistics, code_sites
from bitwright.jobs.sweep import Requests, Results
from bitwright.jobs.units import Unit
from bitwright.jobs.view import UnitView
from bitwright.jobs.workers import Shared
from bitwright.models import WeightSite
from bitwright.statistics import Prefix, Statistic

if TYPE_CHECKING:
    from bitwright.jobs.engine import Engine


def code_unit(engine: Engine, unit: Unit, view: UnitView, result: UnitResult, early: Results) -> None:
    """Round every selected weight of a unit and install it; ``early`` holds what is known before any rounding."""
    groups = coded_groups(engine, unit)
    sizes = {g[0].path: sum(r.memory_bytes(g[0].shape[1]) for r in _late_needs(engine, g)) for g in groups}
    count = sum(map(len, groups))
    for stretch in _stretches(engine, waves(groups, sizes, engine.replay_bytes)):
        gathered: Results = {}
        for wave in stretch:
            gathered.update(_wave_statistics(engine, unit, wave, early))
            if wave[0][0].expert is not None:
                _note_experts(engine, wave, gathered, result)
        for module in code_sites(engine, view, _with_statistics(engine, stretch, gathered)):
            _install(engine, module, result)
            engine.progress(unit.name, len(result.modules) / max(1, count))
    for site in unit.sites:
        if site.kind == "embedding" and engine.coded(site):
            engine.replay.clear()  # an embedding lies before layers that are rounded already
            for module in code_sites(engine, view, [(site, engine.workers.share({}), {})]):
                _install(engine, module, result)


def _stretches(engine: Engine, found: Sequence[Sequence[Group]]) -> list[list[Sequence[Group]]]:
    """Waves whose layers can be rounded side by side: none but the first waits for a sweep behind earlier ones.

    Waves of experts stay apart: they bound what is held of the experts' statistics.
    """
    stretches: list[list[Sequence[Group]]] = []
    for wave in found:
        waits = any(_late_needs(engine, group) for group in wave) or wave[0][0].expert is not None
        if stretches and not waits:
            stretches[-1].append(wave)
        else:
            stretches.append([wave])
    return stretches


def _with_statistics(
    engine: Engine, stretch: Sequence[Sequence[Group]], gathered: Results
) -> Iterator[tuple[WeightSite, Shared[Statistics], Statistics]]:
    """The layers of a stretch in order; a group's statistics are sent out once."""
    for wave in stretch:
        for group in wave:
            statistics = gathered[group[0].path]
            shared = engine.workers.share(statistics)
            for site in group:
                yield site, shared, statistics


def coded_groups(engine: Engine, unit: Unit) -> list[list[WeightSite]]:
    """The sites that some quantizer selects, by shared input, in call order."""
    return [g for g in ([s for s in group if engine.coded(s)] for group in unit.groups) if g]


def early_requests(engine: Engine, unit: Unit, prefix: Prefix) -> Requests:
    """What the rounding wants to know of the inputs before the first weight of the unit is rounded."""
    requests: dict[str, list[Statistic]] = {}
    for group in coded_groups(engine, unit):
        wanted = requests[group[0].path] = [r for r in _weight_needs(engine, group) if r.prefix == prefix]
        if prefix == ("float" if engine.reads_float else "block") and not _counted_late(engine, group):
            wanted += count_requests(group, prefix) if engine.reads_float or engine.reads_quantized else []
    return requests


def _install(engine: Engine, module: ModuleResult, result: UnitResult) -> None:
    result.modules[module.path] = module
    install_module(engine.model.module, module, cache_weights=True)


def _weight_needs(engine: Engine, group: Sequence[WeightSite]) -> tuple[Statistic, ...]:
    found: dict[Statistic, None] = {}
    for site in group:
        weight = engine.choices[site.path].weight
        for request in weight.needs if weight is not None else ():
            # A grouped convolution has no single matrix of columns; what needs one falls back, as an event.
            columns = request.view == "columns" and site.groups > 1
            if getattr(request, "reads", "input") == "input" and not columns:
                found[request] = None
    return tuple(found)


def _late_needs(engine: Engine, group: Sequence[WeightSite]) -> list[Statistic]:
    """What must be known of a group behind the layers of the unit that are rounded already."""
    return [r for r in _weight_needs(engine, group) if r.prefix == "layer"]


def _counted_late(engine: Engine, group: Sequence[WeightSite]) -> bool:
    """Whether a sweep that the group needs anyway can count its tokens, when no float stream does."""
    return not engine.reads_float and bool(_late_needs(engine, group))


def _wave_statistics(engine: Engine, unit: Unit, wave: Sequence[Group], early: Results) -> Results:
    found: Results = {g[0].path: dict(early.get(g[0].path, {})) for g in wave}
    late = {g[0].path: _late_needs(engine, g) for g in wave}
    if not any(late.values()):
        return found
    for group in wave:
        late[group[0].path] += count_requests(group, "layer") if _counted_late(engine, group) else []
    # Experts are not called in every batch, and others run behind them: such a pass goes to the unit's end.
    stop = wave[0][0].path if wave[0][0].expert is None else None
    for path, more in engine.sweep(unit, late, "quantized", stop=stop).items():
        found[path].update(more)
    return found


def _note_experts(engine: Engine, wave: Sequence[Group], gathered: Results, result: UnitResult) -> None:
    """Count the experts' tokens, steady what few of them made, and say so."""
    if not (engine.reads_float or engine.reads_quantized):
        return
    for group in wave:
        found = gathered[group[0].path]
        result.tokens.update(dict.fromkeys((site.path for site in group), tokens_of(found)))
        gathered[group[0].path] = steadied(found, group[0].shape[1])
    if any(has_second_moments(gathered[g[0].path]) for g in wave):
        say_few_tokens(wave, result.tokens, engine.events)
    if any(r.reads_twin for g in wave for r in _weight_needs(engine, g)):
        engine.events.record(
            "one stream", wave[0][0].family,
            "the float model routes other tokens to its experts, so these read the quantized stream alone",
        )  # fmt: skip
