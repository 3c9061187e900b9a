"""The engine: takes a model unit by unit through the slots of a recipe.

For one unit the order is: model-scope transforms; block-scope transforms (they read float statistics); weights, group
of shared input after group, with the sweeps that their statistics ask for; learning; corrections; static input ranges;
then both streams move on to the next unit. A recipe pays only for the sweeps that its stages name.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from bitwright.errors import InputError
from bitwright.events import Events
from bitwright.jobs.choice import choose, stream_needs
from bitwright.jobs.coding import code_unit, early_requests
from bitwright.jobs.experts import loading_paths
from bitwright.jobs.hidden import HiddenStates
from bitwright.jobs.installing import forget_float, install_module, restore_float
from bitwright.jobs.replay import Replay, holders
from bitwright.jobs.result import UnitResult
from bitwright.jobs.runner import Batch, Runner
from bitwright.jobs.sharding import sweep_shards
from bitwright.jobs.stored import parameter_dtype, stored_dtype
from bitwright.jobs.sweep import Gatherer, Requests, Results, capture_inputs, input_hooks, stop_after
from bitwright.jobs.transforming import transform_unit
from bitwright.jobs.units import Unit, split_units
from bitwright.jobs.view import UnitView
from bitwright.jobs.workers import HERE, Workers
from bitwright.models import Model, Structure, WeightSite
from bitwright.recipes import Recipe
from bitwright.stages.transforms.base import transforms_by_scope
from bitwright.statistics import Statistic

if TYPE_CHECKING:
    from bitwright.jobs.float_record import FloatRecord

logger = logging.getLogger(__name__)

Progress = Callable[[str, float], None]
Stream = Literal["float", "quantized"]


@dataclass
class Engine:
    """State of one job over one model.

    Args:
        model: the working model; its modules are replaced by quantized ones as units finish.
        twin: a second, float copy of the model; needed by recipes that read the float stream beside the quantized one.
        batches: calibration batches (may be empty for a recipe that reads no data).
        given: results of statistics that need the whole model (weight gradients), by path.
        importance: mean squared gradients at unit outputs, by unit name and batch, for learning losses.
        probe: a tiny batch that is carried through every unit before its work (``original_output``), behind its
            transforms (``transformed_output``; not in a resumed job) and after it (``probe_output``).
        window_bytes: how much of each stream stays in memory; the rest goes to files under ``spill``.
        replay_bytes: how much of what a unit computed is kept for its later sweeps (``None``: all).
        record: what the untouched float model answered already, shared by the recipes of a comparison.
        release: give a unit's quantized modules back once it is finished (it was written).
        workers: where the rounding of weights runs.
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
    record: FloatRecord | None = None
    release: bool = False
    spill: Path | None = None
    window_bytes: int | None = None
    replay_bytes: int | None = None
    progress: Progress = lambda text, share: None
    workers: Workers = HERE

    def __post_init__(self) -> None:
        self.units = split_units(self.structure)
        self.choices = choose(self.recipe, self.structure)
        self.routed = frozenset(s.path for s in self.structure.sites if s.expert is not None)
        self.reads_float, self.reads_quantized = stream_needs(self.recipe, self.choices.values())
        if self.reads_float and self.reads_quantized and self.twin is None:
            raise ValueError("this recipe reads both streams, so the engine needs a float twin")
        self.work_runner = Runner(self.model, self.structure, self.batches)
        self.float_runner = self.work_runner if self.twin is None else Runner(self.twin, self.structure, self.batches)
        self.quantized = HiddenStates(len(self.batches), self.window_bytes, self.spill)
        self.float = HiddenStates(len(self.batches), self.window_bytes, self.spill)
        self.replay, self.twin_replay = Replay(self.replay_bytes), Replay(self.replay_bytes)
        self.probe_runner = None if self.probe is None else Runner(self.model, self.structure, [self.probe])
        self.probe_output: Tensor | None = None
        self.original_output: Tensor | None = None
        self.transformed_output: Tensor | None = None
        self.restored = False
        self.transforms_model = transforms_by_scope(self.recipe.transforms, "model")
        self.transforms_block = transforms_by_scope(self.recipe.transforms, "block")
        self.untouched = not self.transforms_model

    def coded(self, site: WeightSite) -> bool:
        """Whether a quantizer selects the site's weight or its input."""
        choice = self.choices[site.path]
        return choice.weight is not None or choice.input is not None

    # -- one unit -------------------------------------------------------------------------------------------------

    @contextmanager
    def loaded(self, unit: Unit) -> Iterator[None]:
        """Hold the unit's modules (of the model and its twin) in memory.

        Where nothing runs and nothing is rewritten, only the weights that will be coded are read.
        """
        runs = bool(self.batches) or self.probe is not None or bool(self.recipe.transforms)
        paths = unit.paths if runs else loading_paths(self.model.module, filter(self.coded, unit.sites))
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
            self.original_output = self._probed(unit, self.original_output)
            view = self._view(unit)
            notes = transform_unit(self, unit, view, self.events)
            if self.recipe.transforms and not self.restored:
                self.transformed_output = self._probed(unit, self.transformed_output)
            result = UnitResult(unit.name, notes=[n.as_json() for n in notes])
            after, early = self._before_rounding(unit)
            code_unit(self, unit, view, result, early)
            self._after_rounding(unit, view, result)
            self._changed(view, result)
            self._advance(unit, after)
            self._release(result)
        result.seconds = time.perf_counter() - started
        return result

    def restore(self, unit: Unit, result: UnitResult) -> None:
        """Install a unit that an earlier run finished, and move the streams past it."""
        with self.loaded(unit):
            self.original_output = self._probed(unit, self.original_output)
            self.restored = True
            view = self._view(unit)
            if self.twin is not None or not self.reads_quantized:
                # The float stream runs in the transformed coordinates, so the transforms are made again (exactly).
                transform_unit(self, unit, view, Events())  # its events are in the journal already
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

    def _probed(self, unit: Unit, hidden: Tensor | None) -> Tensor | None:
        """Carry the probe through the unit as it is now."""
        if self.probe_runner is None:
            return None
        with torch.no_grad():
            return self.probe_runner.run(unit, 0, hidden)

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
            hidden = self.float if self.reads_float else self.quantized
            return [self.work_runner.run(unit, i, hidden[i]) for i in range(count)]

        return UnitView(
            self.model.module,
            unit,
            self.structure,
            self._stored_dtype,
            weights,
            inputs,
            trial if self.batches else None,
        )

    def _stored_dtype(self, name: str) -> torch.dtype:
        checkpoint = self.model.checkpoint
        key = self.model.checkpoint_key(name) if checkpoint is not None else None
        if checkpoint is not None and key is not None and key in checkpoint.tensors:
            return stored_dtype(checkpoint, key)
        try:
            # An expert of a stored stack has no key of its own.
            return parameter_dtype(self.model, name) or self.model.module.get_parameter(name).dtype
        except AttributeError:  # a bias that did not exist takes the dtype of its weight
            return self._stored_dtype(name.rpartition(".")[0] + ".weight")

    def float_requests(self, unit: Unit) -> Requests:
        """What this recipe asks first of the untouched float unit."""
        if self.transforms_model:
            return {}
        if self.transforms_block:
            return dict.fromkeys(self._view(unit).linears, self.transforms_block[0].needs)
        return early_requests(self, unit, "float")

    # -- sweeps ---------------------------------------------------------------------------------------------------

    def sweep(
        self,
        unit: Unit,
        requests: Requests,
        stream: Stream,
        *,
        on_work: bool = False,
        stop: str | None = None,
        onto: HiddenStates | None = None,
    ) -> Results:
        """Run every batch through the unit once and return the statistics of ``requests``.

        Args:
            unit: where to run.
            requests: statistics by module path.
            stream: whose hidden states enter the unit, and whose modules run.
            on_work: run the working modules on the float stream (they are still float).
            stop: end each pass at the input of this module. What ran before it is not run again in later sweeps of the
                quantized stream that stop or move on.
            onto: receives the unit's outputs (may be the stream itself).
        """
        floating = stream == "float"
        runner = self.work_runner if on_work or not floating else self.float_runner
        known: Results = {path: {} for path in requests}
        if floating and self.untouched and self.record is not None:
            known, requests = self.record.split(unit.name, requests)
        gatherer = Gatherer(runner.model.module, requests)
        gatherer.alone = self.routed
        if not gatherer.requests and onto is None:
            return known
        if not self.batches:
            raise InputError(f"recipe {self.recipe.name!r} reads activations; give it calibration data (--data)")
        hidden = self.float if floating else self.quantized
        if (spread := sweep_shards(self, unit, runner, gatherer, hidden, stop, onto)) is not None:
            return {**known, **spread}
        replay = self.replay if not floating and (stop is not None or onto is not None) else None
        with ExitStack() as stack:
            stack.enter_context(input_hooks(runner.model.module, gatherer.requests, gatherer))
            if stop is not None:
                stack.enter_context(stop_after(runner.model.module, stop))
            for index in range(len(self.batches)):
                gatherer.keep = runner.keep(index)
                if gatherer.reads_twin:
                    gatherer.twins = self._twin_inputs(unit, index, gatherer.requests, stop)
                with self._replaying(replay, unit, runner.model.module, index, record=onto is None):
                    output = runner.until_stopped(unit, index, hidden[index])
                if replay is not None and stop is not None and output is not None:
                    # The layer was not called, so what lies behind it ran too, and will be rounded yet.
                    self.replay.forget(index)
                    self.twin_replay.forget(index)
                if onto is not None:
                    assert output is not None
                    onto[index] = output
                    if not floating:  # the unit is finished with this batch
                        self.replay.forget(index)
                        self.twin_replay.forget(index)
        for path, found in gatherer.results().items():
            known[path].update(found)
        return known

    def _replaying(
        self, replay: Replay | None, unit: Unit, root: torch.nn.Module, index: int, record: bool = True
    ) -> AbstractContextManager[None]:
        if replay is None:
            return nullcontext()
        within = unit.paths[0] if unit.kind == "block" else ""
        return replay.running(root, holders((s.path for s in unit.sites), within), index, record)

    def _twin_inputs(self, unit: Unit, index: int, paths: Iterable[str], stop: str | None) -> dict[str, list[Tensor]]:
        """What enters the float twin's layers for the same tokens."""
        root = self.float_runner.model.module
        with ExitStack() as stack:
            if stop is not None:
                stack.enter_context(self._replaying(self.twin_replay, unit, root, index))
            return capture_inputs(
                root, paths, partial(self.float_runner.until_stopped, unit, index, self.float[index]), stop
            )

    def _before_rounding(self, unit: Unit) -> tuple[HiddenStates | None, Results]:
        """The float stream behind the unit, and the statistics that do not depend on the unit's own rounding.

        One pass of the float stream serves both; the quantized prefix is read only where a stage names it.
        """
        after, onto = self._behind(unit)
        found = self.sweep(unit, early_requests(self, unit, "float"), "float", onto=onto)
        for path, more in self.sweep(unit, early_requests(self, unit, "block"), "quantized").items():
            found.setdefault(path, {}).update(more)
        return after, found

    def _float_outputs(self, unit: Unit) -> HiddenStates | None:
        after, onto = self._behind(unit)
        self.sweep(unit, {}, "float", onto=onto)
        return after

    def last_to_read(self, unit: Unit) -> bool:
        """Whether nothing behind the unit reads the streams, so that they need not move on."""
        sites = [site for later in self.units[unit.index + 1 :] for site in later.sites]
        return not (any(map(self.coded, sites)) or (sites and self.transforms_block))

    def _behind(self, unit: Unit) -> tuple[HiddenStates | None, HiddenStates | None]:
        """The float stream behind the unit, where the recipe reads on; and again if it has to be filled."""
        if not self.reads_float or self.last_to_read(unit):
            return None, None
        shared = None if self.record is None or self.transforms_model else self.record.behind(unit.name)
        if shared is not None:
            return shared, None
        fresh = HiddenStates(len(self.batches), self.window_bytes, self.spill)
        return fresh, fresh

    # -- after the rounding ---------------------------------------------------------------------------------------

    def _after_rounding(self, unit: Unit, view: UnitView, result: UnitResult) -> None:
        from bitwright.jobs.correcting import correct_unit
        from bitwright.jobs.input_ranges import fit_input_ranges
        from bitwright.jobs.learning import learn_unit

        inputs = [c.input for c in map(self.choices.__getitem__, result.modules) if c.input is not None]
        if self.recipe.learn or self.recipe.corrections or any(q.format.time == "static" for q in inputs):
            self.replay.clear()  # these change what the layers answer
        for learn in self.recipe.learn:
            learn_unit(self, learn, unit, view, result)
        for correction in self.recipe.corrections:
            correct_unit(self, correction, unit, view, result)
        fit_input_ranges(self, unit, result)

    def _changed(self, view: UnitView, result: UnitResult) -> None:
        coded = {f"{p}.weight" for p, m in result.modules.items() if m.weight is not None}
        coded |= {f"{p}.bias" for p, m in result.modules.items() if m.bias is not None}
        for name in sorted(view.changed - coded):
            value = self.model.module.get_parameter(name).detach()
            result.changed[name] = value.to(self._stored_dtype(name))
        result.removed = tuple(view.removed)
        result.cache_online = {k: tuple(v) for k, v in view.cache_online.items()}

    def _advance(self, unit: Unit, after: HiddenStates | None) -> None:
        if after is not None:
            if self.record is None or self.transforms_model:  # else it is the record's
                self.float.clear()
            self.float = after
        self.probe_output = self._probed(unit, self.probe_output)
        if self.reads_quantized and not self.last_to_read(unit):
            self.sweep(unit, {}, "quantized", onto=self.quantized)
        self.replay.clear()
        self.twin_replay.clear()
