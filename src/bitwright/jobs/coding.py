"""Rounds the weights of a unit, group of shared input after group, with the statistics that their stages ask for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bitwright.jobs.choice import Choice, derived_seed
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
from bitwright.jobs.sweep import Requests, Results
from bitwright.jobs.units import Unit
from bitwright.jobs.view import UnitView
from bitwright.models import WeightSite
from bitwright.stages.quantizer import Quantizer, WeightContext
from bitwright.stages.solve import quantize_weight
from bitwright.statistics import Prefix, Statistic

if TYPE_CHECKING:
    from bitwright.jobs.engine import Engine


def code_unit(engine: Engine, unit: Unit, view: UnitView, result: UnitResult, early: Results) -> None:
    """Round every selected weight of a unit and install it; ``early`` holds what is known before any rounding."""
    groups = coded_groups(engine, unit)
    sizes = {g[0].path: sum(r.memory_bytes(g[0].shape[1]) for r in _late_needs(engine, g)) for g in groups}
    done = 0
    for wave in waves(groups, sizes, engine.replay_bytes):
        gathered = _wave_statistics(engine, unit, wave, early)
        if wave[0][0].expert is not None:
            _note_experts(engine, wave, gathered, result)
        for group in wave:
            for site in group:
                _install(engine, _code(engine, view, site, gathered[group[0].path]), result)
            done += len(group)
            engine.progress(unit.name, done / max(1, sum(map(len, groups))))
    for site in unit.sites:
        if site.kind == "embedding" and engine.coded(site):
            engine.replay.clear()  # an embedding lies before layers that are rounded already
            _install(engine, _code(engine, view, site, {}), result)


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


def _code(engine: Engine, view: UnitView, site: WeightSite, statistics: Mapping[Statistic, Any]) -> ModuleResult:
    w = view.weight(site.path)
    choice: Choice = engine.choices[site.path]
    context = WeightContext(
        where=site.path,
        statistics={**statistics, **_gradients(engine, site, w)},
        seed=derived_seed(engine.seed, engine.recipe.name, site.path),
        events=engine.events,
    )
    weight = None
    error = 0.0
    if choice.weight is not None:
        weight = quantize_weight(w, _feasible(choice.weight, site, context), context)
        error = float((weight.dequantize() - w).norm() / w.norm().clamp_min(1e-30))
    module = ModuleResult(
        site.path, site.kind, bool(getattr(site, "transposed", False)), weight, view.bias(site.path)
        if site.kind != "embedding" else None, online=tuple(view.online.get(site.path, ())), error=error,
    )  # fmt: skip
    if choice.input is not None and choice.input.format.time == "dynamic":
        module.input_format = choice.input.format
    return module


def _gradients(engine: Engine, site: WeightSite, w: Tensor) -> Mapping[Statistic, Any]:
    """What a backward pass told of a weight; all weights of an expert without tokens count alike, as an event."""
    weight = engine.choices[site.path].weight
    wanted = [r for r in weight.needs if getattr(r, "reads", "input") == "weight gradient"] if weight else []
    given = engine.given.get(site.path, {})
    if site.expert is None or not wanted or all(r in given and bool(given[r].any()) for r in wanted):
        return given
    engine.events.record("no calibration signal", site.path, "no token is routed to it; its weights count alike")
    return {**given, **{r: torch.ones_like(w) for r in wanted}}


def _feasible(quantizer: Quantizer, site: WeightSite, context: WeightContext) -> Quantizer:
    """Round to nearest, as an event, where a statistic of this site could not be gathered."""
    missing = [r for r in quantizer.needs if r not in context.statistics]
    if not missing:
        return quantizer
    context.events.record(
        "no calibration signal", site.path,
        f"{', '.join(type(r).__name__ for r in missing)} could not be gathered "
        f"({'a grouped convolution' if site.groups > 1 else 'the layer was not called'}); "
        "its weights are rounded to nearest",
    )  # fmt: skip
    return Quantizer(quantizer.format)
