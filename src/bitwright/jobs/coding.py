"""Rounds the weights of a unit, group of shared input after group, with the statistics that their stages ask for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bitwright.jobs.choice import Choice, derived_seed
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
    done = 0
    for group in groups:
        statistics = _group_statistics(engine, unit, group, early)
        for site in group:
            _install(engine, _code(engine, view, site, statistics), result)
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
    groups = coded_groups(engine, unit)
    return {g[0].path: [r for r in _weight_needs(engine, g) if r.prefix == prefix] for g in groups}


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


def _group_statistics(engine: Engine, unit: Unit, group: Sequence[WeightSite], early: Results) -> dict[Statistic, Any]:
    path = group[0].path
    found = dict(early.get(path, {}))
    late = [r for r in _weight_needs(engine, group) if r.prefix == "layer"]
    if late:
        found.update(engine.sweep(unit, {path: late}, "quantized", stop=path)[path])
    return found


def _code(engine: Engine, view: UnitView, site: WeightSite, statistics: Mapping[Statistic, Any]) -> ModuleResult:
    w = view.weight(site.path)
    choice: Choice = engine.choices[site.path]
    context = WeightContext(
        where=site.path,
        statistics={**statistics, **engine.given.get(site.path, {})},
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
