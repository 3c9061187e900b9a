"""The engine: takes a model unit by unit through the slots of a recipe.

For one unit the order is: model-scope transforms; block-scope transforms (they read float statistics); weights, group
of shared input after group, with the sweeps that their statistics ask for; learning; corrections; static input ranges;
then both streams move on to the next unit. A recipe pays only for the sweeps that its stages name.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bitwright.errors import InputError
from bitwright.events import Events
from bitwright.jobs.choice import Choice, choose, derived_seed, stream_needs
from bitwright.jobs.hidden import HiddenStates
from bitwright.jobs.installing import forget_float, install_module, restore_float
from bitwright.jobs.result import ModuleResult, UnitResult
from bitwright.jobs.runner import Batch, Runner, stop_after
from bitwright.jobs.stored import stored_dtype
from bitwright.jobs.sweep import Gatherer, Requests, Results, capture_inputs, input_hooks
from bitwright.jobs.units import Unit, split_units
from bitwright.jobs.view import UnitView
from bitwright.models import Model, Structure, WeightSite
from bitwright.recipes import Recipe
from bitwright.runtime.kernels.table import TABLE
from bitwright.runtime.online import run_online
from bitwright.stages.quantizer import Quantizer, WeightContext
from bitwright.stages.solve import quantize_weight
from bitwright.stages.transforms import OnlineOperation, TransformReport
from bitwright.stages.transforms.base import transforms_by_scope
from bitwright.statistics import Statistic

logger = logging.getLogger(__name__)

Progress = Callable[[str, float], None]


@dataclass
class Engine:
    """State of one job over one model.

    Args:
        model: the working model; its modules are replaced by quantized ones as units finish.
        twin: a second, float copy of the model; needed by recipes that read the float stream beside the quantized one.
        batches: calibration batches (may be empty for a recipe that reads no data).
        given: results of statistics that need the whole model (weight gradients), by path.
        importance: mean squared gradients at unit outputs, by unit name and batch, for learning losses.
        probe: a tiny batch that is carried through every finished unit; ``probe_output`` is then what the quantized
            model in memory answers, to be compared with the model that is read back from disk.
        release: give a unit's quantized modules back once it is finished (it was written).
    """

    recipe: Recipe
    model: Model
    structure: Structure
    batches: Sequence[Batch]
    seed: int = 0
    events: Events = field(default_factory=Events)
    twin: Model | None = None
    given: Mapping[str, Mapping[Statistic, Any]] = field(default_factory=dict)
    importance: Callable[[str, int], Tensor | None] = lambda unit, index: None
    probe: Batch | None = None
    release: bool = False
    spill: Path | None = None
    window_bytes: int | None = None
    progress: Progress = lambda text, share: None

    def __post_init__(self) -> None:
        self.units = split_units(self.structure)
        self.choices = choose(self.recipe, self.structure)
        self.reads_float, self.reads_quantized = stream_needs(self.recipe, self.choices.values())
        if self.reads_float and self.reads_quantized and self.twin is None:
            raise ValueError("this recipe reads both streams, so the engine needs a float twin")
        self.work_runner = Runner(self.model, self.structure, self.batches)
        self.float_runner = self.work_runner if self.twin is None else Runner(self.twin, self.structure, self.batches)
        self.quantized = HiddenStates(len(self.batches), self.window_bytes, self.spill)
        self.float = HiddenStates(len(self.batches), self.window_bytes, self.spill)
        self.probe_runner = None if self.probe is None else Runner(self.model, self.structure, [self.probe])
        self.probe_output: Tensor | None = None
        self.transforms_model = transforms_by_scope(self.recipe.transforms, "model")
        self.transforms_block = transforms_by_scope(self.recipe.transforms, "block")

    # -- one unit -------------------------------------------------------------------------------------------------

    @contextmanager
    def loaded(self, unit: Unit) -> Iterator[None]:
        """Hold the unit's modules (of the model and its twin) in memory.

        Where nothing runs and nothing is rewritten, only the weights that will be coded are read.
        """
        runs = bool(self.batches) or self.probe is not None or bool(self.recipe.transforms)
        paths = unit.paths if runs else tuple(s.path for s in unit.sites if self._coded(s))
        with ExitStack() as stack:
            for model in (self.model, self.twin):
                if model is not None:
                    for path in paths:
                        stack.enter_context(model.unit(path))
            yield

    def work(self, unit: Unit) -> UnitResult:
        """Take one unit through the recipe and move the streams past it."""
        started = time.perf_counter()
        with self.loaded(unit):
            view = self._view(unit)
            notes = self._transform(unit, view, self.events)
            result = UnitResult(unit.name, notes=[_note(n) for n in notes])
            after = self._float_outputs(unit)
            self._quantize(unit, view, result)
            self._learn(unit, view, result)
            self._correct(unit, view, result)
            self._static_ranges(unit, result)
            self._changed(view, result)
            self._advance(unit, after)
            self._release(result)
        result.seconds = time.perf_counter() - started
        return result

    def restore(self, unit: Unit, result: UnitResult) -> None:
        """Install a unit that an earlier run finished, and move the streams past it."""
        with self.loaded(unit):
            view = self._view(unit)
            if self.twin is not None or not self.reads_quantized:
                # The float stream runs in the transformed coordinates, so the transforms are made again (exactly).
                self._transform(unit, view, Events())  # its events are in the journal already
            after = self._float_outputs(unit)
            for name, value in result.changed.items():
                parent, _, leaf = name.rpartition(".")
                module = self.model.module.get_submodule(parent)
                module.register_parameter(leaf, torch.nn.Parameter(value.float(), requires_grad=False))
            for path in result.removed:
                parent, _, leaf = path.rpartition(".")
                setattr(self.model.module.get_submodule(parent), leaf, torch.nn.Identity())
            for module_result in result.modules.values():
                install_module(self.model.module, module_result, cache_weights=True)
            self._advance(unit, after)
            self._release(result)

    def _release(self, result: UnitResult) -> None:
        """Let go of what the unit held: its float modules, or (written to disk) its quantized ones."""
        if self.release:
            restore_float(self.model.module, list(result.modules))
        else:
            forget_float(self.model.module, list(result.modules))

    def _view(self, unit: Unit) -> UnitView:
        weights = {p: c.weight for p, c in self.choices.items() if c.weight is not None}
        inputs = {p: c.input for p, c in self.choices.items() if c.input is not None}

        def trial(batches: int | None) -> list[Tensor]:
            count = len(self.batches) if batches is None else min(batches, len(self.batches))
            return [self.work_runner.run(unit, i, self._trial_stream()[i]) for i in range(count)]

        return UnitView(
            self.model.module,
            unit,
            self.structure,
            self._stored_dtype,
            weights,
            inputs,
            trial if self.batches else None,
        )

    def _trial_stream(self) -> HiddenStates:
        return self.float if self.reads_float else self.quantized

    def _stored_dtype(self, name: str) -> torch.dtype:
        checkpoint = self.model.checkpoint
        key = self.model.checkpoint_key(name) if checkpoint is not None else None
        if checkpoint is not None and key is not None and key in checkpoint.tensors:
            return stored_dtype(checkpoint, key)
        try:
            return self.model.module.get_parameter(name).dtype
        except AttributeError:  # a bias that did not exist takes the dtype of its weight
            return self._stored_dtype(name.rpartition(".")[0] + ".weight")

    def _transform(self, unit: Unit, view: UnitView, events: Events) -> list[TransformReport]:
        reports: list[TransformReport] = []
        for transform in self.transforms_model:
            seed = derived_seed(self.seed, type(transform).__name__)
            reports.append(transform.apply(view, {}, seed, events))
        self._sync_twin(unit, view)
        if self.transforms_block and not self.batches:
            raise InputError(f"recipe {self.recipe.name!r} reads activations; give it calibration data (--data)")
        for transform in self.transforms_block:
            statistics = self._sweep(unit, dict.fromkeys(view.linears, transform.needs), "float", on_work=True)
            seed = derived_seed(self.seed, type(transform).__name__, unit.name)
            reports.append(transform.apply(view, statistics, seed, events))
        self._sync_twin(unit, view)
        return reports

    def _sync_twin(self, unit: Unit, view: UnitView) -> None:
        """Give the float twin the transformed weights, so that both streams live in the same coordinates."""
        for path in view.online:
            install_online(self.model.module, path, view.online[path])
        if self.twin is None:
            return
        for name in view.changed:
            parent, _, leaf = name.rpartition(".")
            value = self.model.module.get_parameter(name).detach().clone()
            self.twin.module.get_submodule(parent).register_parameter(leaf, torch.nn.Parameter(value, False))
        for path in view.removed:
            parent, _, leaf = path.rpartition(".")
            setattr(self.twin.module.get_submodule(parent), leaf, torch.nn.Identity())
        for path in view.online:
            install_online(self.twin.module, path, view.online[path])

    # -- sweeps ---------------------------------------------------------------------------------------------------

    def _sweep(
        self, unit: Unit, requests: Requests, stream: str, *, on_work: bool = False, stop: str | None = None
    ) -> Results:
        """Run every batch through the unit once and return the statistics of ``requests``."""
        floating = stream == "float"
        runner = self.work_runner if on_work or not floating else self.float_runner
        gatherer = Gatherer(runner.model.module, requests)
        if not gatherer.requests:
            return {path: {} for path in requests}
        if not self.batches:
            raise InputError(f"recipe {self.recipe.name!r} reads activations; give it calibration data (--data)")
        hidden = self.float if floating else self.quantized
        with ExitStack() as stack:
            stack.enter_context(input_hooks(runner.model.module, gatherer.requests, gatherer))
            if stop is not None:
                stack.enter_context(stop_after(runner.model.module, stop))
            for index in range(len(self.batches)):
                gatherer.keep = runner.keep(index)
                if gatherer.reads_twin:
                    gatherer.twins = capture_inputs(
                        self.float_runner.model.module,
                        gatherer.requests,
                        partial(self.float_runner.until_stopped, unit, index, self.float[index]),
                    )
                runner.until_stopped(unit, index, hidden[index])
        return gatherer.results()

    # -- weights --------------------------------------------------------------------------------------------------

    def _quantize(self, unit: Unit, view: UnitView, result: UnitResult) -> None:
        groups = [g for g in ([s for s in group if self._coded(s)] for group in unit.groups) if g]
        early = self._early_statistics(unit, groups)
        done = 0
        for group in groups:
            statistics = self._group_statistics(unit, group, early)
            for site in group:
                choice = self.choices[site.path]
                module = self._code(view, site, choice, statistics, unit)
                result.modules[site.path] = module
                install_module(self.model.module, module, cache_weights=True)
            done += len(group)
            self.progress(unit.name, done / max(1, sum(map(len, groups))))
        for site in unit.sites:
            if site.kind == "embedding" and self._coded(site):
                module = self._code(view, site, self.choices[site.path], {}, unit)
                result.modules[site.path] = module
                install_module(self.model.module, module, cache_weights=True)

    def _coded(self, site: WeightSite) -> bool:
        choice = self.choices[site.path]
        return choice.weight is not None or choice.input is not None

    def _weight_needs(self, group: Sequence[WeightSite]) -> tuple[Statistic, ...]:
        found: dict[Statistic, None] = {}
        for site in group:
            weight = self.choices[site.path].weight
            for request in weight.needs if weight is not None else ():
                # A grouped convolution has no single matrix of columns; what needs one falls back, as an event.
                columns = request.view == "columns" and site.groups > 1
                if getattr(request, "reads", "input") == "input" and not columns:
                    found[request] = None
        return tuple(found)

    def _early_statistics(self, unit: Unit, groups: Sequence[Sequence[WeightSite]]) -> dict[str, dict[Statistic, Any]]:
        """Statistics that do not depend on this unit's own rounding: one sweep of each stream for all groups."""
        merged: dict[str, dict[Statistic, Any]] = {}
        for stream, prefix in (("float", "float"), ("quantized", "block")):
            requests = {
                g[0].path: [r for r in self._weight_needs(g) if r.prefix == prefix] for g in groups
            }  # fmt: skip
            for path, found in self._sweep(unit, requests, stream).items():
                merged.setdefault(path, {}).update(found)
        return merged

    def _group_statistics(
        self, unit: Unit, group: Sequence[WeightSite], early: Mapping[str, Mapping[Statistic, Any]]
    ) -> dict[Statistic, Any]:
        found = dict(early.get(group[0].path, {}))
        late = [r for r in self._weight_needs(group) if r.prefix == "layer"]
        if late:
            path = group[0].path
            found.update(self._sweep(unit, {path: late}, "quantized", stop=path)[path])
        return found

    def _code(
        self, view: UnitView, site: WeightSite, choice: Choice, statistics: Mapping[Statistic, Any], unit: Unit
    ) -> ModuleResult:
        w = view.weight(site.path)
        quantizer = choice.weight
        context = WeightContext(
            where=site.path,
            statistics={**statistics, **self.given.get(site.path, {})},
            seed=derived_seed(self.seed, self.recipe.name, site.path),
            events=self.events,
        )
        weight = None if quantizer is None else quantize_weight(w, self._feasible(quantizer, site, context), context)
        error = 0.0
        if weight is not None:
            error = float((weight.dequantize() - w).norm() / w.norm().clamp_min(1e-30))
        module = ModuleResult(
            site.path, site.kind, bool(getattr(site, "transposed", False)), weight, view.bias(site.path)
            if site.kind != "embedding" else None, online=tuple(view.online.get(site.path, ())), error=error,
        )  # fmt: skip
        if choice.input is not None and choice.input.format.time == "dynamic":
            module.input_format = choice.input.format
        return module

    def _feasible(self, quantizer: Quantizer, site: WeightSite, context: WeightContext) -> Quantizer:
        """Round to nearest, as an event, where a statistic of this site could not be gathered."""
        missing = [r for r in quantizer.needs if r not in context.statistics]
        if not missing:
            return quantizer
        self.events.record(
            "no calibration signal", site.path,
            f"{', '.join(type(r).__name__ for r in missing)} could not be gathered "
            f"({'a grouped convolution' if site.groups > 1 else 'the layer was not called'}); "
            "its weights are rounded to nearest",
        )  # fmt: skip
        return Quantizer(quantizer.format)

    # -- after the rounding ---------------------------------------------------------------------------------------

    def _learn(self, unit: Unit, view: UnitView, result: UnitResult) -> None:
        from bitwright.jobs.learning import learn_unit

        for learn in self.recipe.learn:
            learn_unit(self, learn, unit, view, result)

    def _correct(self, unit: Unit, view: UnitView, result: UnitResult) -> None:
        from bitwright.jobs.correcting import correct_unit

        for correction in self.recipe.corrections:
            correct_unit(self, correction, unit, view, result)

    def _static_ranges(self, unit: Unit, result: UnitResult) -> None:
        from bitwright.jobs.input_ranges import fit_input_ranges

        fit_input_ranges(self, unit, result)

    def _changed(self, view: UnitView, result: UnitResult) -> None:
        coded = {f"{p}.weight" for p, m in result.modules.items() if m.weight is not None}
        coded |= {f"{p}.bias" for p, m in result.modules.items() if m.bias is not None}
        for name in sorted(view.changed - coded):
            value = self.model.module.get_parameter(name).detach()
            result.changed[name] = value.to(self._stored_dtype(name))
        result.removed = tuple(view.removed)
        result.cache_online = {k: tuple(v) for k, v in view.cache_online.items()}

    def _float_outputs(self, unit: Unit) -> HiddenStates | None:
        """The float stream behind the unit, taken while its weights are still float."""
        if not self.reads_float or unit.kind in ("suffix", "whole"):
            return None
        after = HiddenStates(len(self.batches), self.window_bytes, self.spill)
        with torch.no_grad():
            for index in range(len(self.batches)):
                after[index] = self.float_runner.run(unit, index, self.float[index])
        return after

    def _advance(self, unit: Unit, after: HiddenStates | None) -> None:
        if after is not None:
            self.float.clear()
            self.float = after
        if self.probe_runner is not None:
            with torch.no_grad():
                self.probe_output = self.probe_runner.run(unit, 0, self.probe_output)
        if not self.reads_quantized or unit.kind in ("suffix", "whole"):
            return
        with torch.no_grad():
            for index in range(len(self.batches)):
                self.quantized[index] = self.work_runner.run(unit, index, self.quantized[index])


def install_online(root: torch.nn.Module, path: str, operations: Sequence[OnlineOperation]) -> None:
    """Run operations on a float module's input, until a quantized module that owns them takes its place."""
    module = root.get_submodule(path)
    earlier = module.__dict__.get("bitwright_online")
    if earlier is not None:
        earlier.remove()
    kept = tuple(operations)
    handle = module.register_forward_pre_hook(lambda _, args: (run_online(args[0], kept, TABLE), *args[1:]))
    module.__dict__["bitwright_online"] = handle


def _note(report: TransformReport) -> dict[str, Any]:
    return {"transform": report.name, "places": [{"where": w, **dict(v)} for w, v in report.places]}
