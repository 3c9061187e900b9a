"""The rounding of one weight as a task: what it reads is decided here, what it costs is paid where it runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bitwright.events import Event, Events
from bitwright.formats import QuantizedTensor
from bitwright.jobs.choice import derived_seed
from bitwright.jobs.result import ModuleResult
from bitwright.jobs.view import UnitView
from bitwright.jobs.workers import Noted, Shared
from bitwright.machine import return_free_memory
from bitwright.models import WeightSite
from bitwright.stages.quantizer import Quantizer, WeightContext
from bitwright.stages.solve import quantize_weight
from bitwright.statistics import Statistic

if TYPE_CHECKING:
    from bitwright.jobs.engine import Engine

Statistics = Mapping[Statistic, Any]

# Weights of fewer bytes are rounded without a look at what the process has freed.
_LARGE = 512 << 10


@dataclass(frozen=True)
class SolveTask:
    """A weight ``w[out, in]``, how to code it, and what is known of its input (shared by its group) and of itself."""

    where: str
    w: Tensor
    quantizer: Quantizer
    statistics: Shared[Statistics]
    own: Statistics
    seed: int


@dataclass(frozen=True)
class Solved:
    """A coded weight, its relative error, and what happened on the way."""

    weight: QuantizedTensor
    error: float
    events: tuple[Event, ...]


def solve(task: SolveTask | None) -> Solved | None:
    """Round one weight; a function of the task alone."""
    if task is None:  # a layer of which only the input is coded
        return None
    if task.w.nbytes > _LARGE:
        return_free_memory()  # what the sweep before left
    events = Noted()
    context = WeightContext(task.where, {**task.statistics.get(), **task.own}, task.seed, events)
    weight = quantize_weight(task.w, task.quantizer, context)
    error = float((weight.dequantize() - task.w).norm() / task.w.norm().clamp_min(1e-30))
    return Solved(weight, error, tuple(events.entries))


def code_sites(
    engine: Engine, view: UnitView, sites: Iterable[tuple[WeightSite, Shared[Statistics], Statistics]]
) -> Iterator[ModuleResult]:
    """Code layers in their order; each comes with what is known of its input, for tasks and for this process."""
    taken: list[tuple[WeightSite, list[Event]]] = []

    def tasks() -> Iterator[SolveTask | None]:
        for site, shared, statistics in sites:
            noted = Noted()
            taken.append((site, noted.entries))
            yield _task(engine, view, site, shared, statistics, noted)

    for solved in engine.workers.map(solve, tasks()):
        site, before = taken.pop(0)
        for event in (*before, *(solved.events if solved is not None else ())):
            engine.events.record(event.kind, event.where, event.message)
        yield _module(engine, view, site, solved)


def _task(
    engine: Engine, view: UnitView, site: WeightSite, shared: Shared[Statistics], statistics: Statistics, events: Events
) -> SolveTask | None:
    quantizer = engine.choices[site.path].weight
    if quantizer is None:
        return None
    w = view.weight(site.path)
    own = _gradients(engine, site, w, events)
    feasible = _feasible(quantizer, site, {*statistics, *own}, events)
    return SolveTask(site.path, w, feasible, shared, own, derived_seed(engine.seed, engine.recipe.name, site.path))


def _module(engine: Engine, view: UnitView, site: WeightSite, solved: Solved | None) -> ModuleResult:
    choice = engine.choices[site.path]
    module = ModuleResult(
        site.path,
        site.kind,
        bool(getattr(site, "transposed", False)),
        solved.weight if solved is not None else None,
        view.bias(site.path) if site.kind != "embedding" else None,
        online=tuple(view.online.get(site.path, ())),
        error=solved.error if solved is not None else 0.0,
    )
    if choice.input is not None and choice.input.format.time == "dynamic":
        module.input_format = choice.input.format
    return module


def _gradients(engine: Engine, site: WeightSite, w: Tensor, events: Events) -> Statistics:
    """What a backward pass told of a weight; all weights of an expert without tokens count alike, as an event."""
    weight = engine.choices[site.path].weight
    wanted = [r for r in weight.needs if getattr(r, "reads", "input") == "weight gradient"] if weight else []
    given = engine.given.get(site.path, {})
    if site.expert is None or not wanted or all(r in given and bool(given[r].any()) for r in wanted):
        return given
    events.record("no calibration signal", site.path, "no token is routed to it; its weights count alike")
    return {**given, **{r: torch.ones_like(w) for r in wanted}}


def _feasible(quantizer: Quantizer, site: WeightSite, known: set[Statistic], events: Events) -> Quantizer:
    """Round to nearest, as an event, where a statistic of this site could not be gathered."""
    missing = [r for r in quantizer.needs if r not in known]
    if not missing:
        return quantizer
    events.record(
        "no calibration signal", site.path,
        f"{', '.join(type(r).__name__ for r in missing)} could not be gathered "
        f"({'a grouped convolution' if site.groups > 1 else 'the layer was not called'}); "
        "its weights are rounded to nearest",
    )  # fmt: skip
    return Quantizer(quantizer.format)
