"""Builds the reconstruction problems of a unit and installs what was learned."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from bitwright.jobs.choice import derived_seed
from bitwright.jobs.hidden import HiddenStates
from bitwright.jobs.installing import install_module
from bitwright.jobs.regrouping import held, hidden_of, learning_groups, make_groups
from bitwright.jobs.result import UnitResult
from bitwright.jobs.sweep import StopSweep, input_hooks, stop_after
from bitwright.jobs.units import Unit
from bitwright.jobs.view import UnitView, shaped_like, swapped_weights
from bitwright.stages.learn.base import Learn, LearnTask

if TYPE_CHECKING:
    from bitwright.jobs.engine import Engine


def learn_unit(engine: Engine, learn: Learn, unit: Unit, view: UnitView, result: UnitResult) -> None:
    """Run one Learn entry over a unit: a block at once, or layer after layer.

    What lies before and behind the blocks is learned layer by layer at any scope, as BRECQ does with the first and the
    last layer.
    """
    coded = [s.path for s in unit.sites if s.path in result.modules and result.modules[s.path].weight is not None]
    coded = [path for path in coded if result.modules[path].kind != "embedding"]
    if not coded:
        return
    if engine.twin is None:
        raise RuntimeError("learning needs the float twin")
    if learn.scope == "block" and unit.kind in ("block", "whole"):
        _learn_block(engine, learn, unit, coded, result)
        return
    for path in coded:
        _learn_layer(engine, learn, unit, path, result)


@contextmanager
def _states(engine: Engine, count: int) -> Iterator[HiddenStates]:
    """Room for a tensor per batch or group; the files of what did not fit into memory go with it."""
    states = HiddenStates(count, engine.window_bytes, engine.spill)
    try:
        yield states
    finally:
        states.clear()


def _finish(engine: Engine, learn: Learn, task: LearnTask, result: UnitResult) -> None:
    with torch.enable_grad():
        learned = learn.run(task)
    for path, weight in learned.items():
        module = result.modules[path]
        module.weight = weight
        w = task.weights[path]
        module.error = float((weight.dequantize() - w).norm() / w.norm().clamp_min(1e-30))
        install_module(engine.model.module, module, cache_weights=True)


def _task(
    engine: Engine,
    name: str,
    paths: list[str],
    result: UnitResult,
    forward: Callable[[Mapping[str, Tensor], int], Tensor],
    target: Callable[[int], Tensor],
    importance: Callable[[int], Tensor | None],
    count: int,
) -> LearnTask:
    root = engine.float_runner.model.module
    sites = {s.path: s for s in engine.structure.sites}
    weights: dict[str, Tensor] = {}
    for path in paths:
        w = root.get_submodule(path).get_parameter("weight").detach().float()
        weights[path] = w.t().contiguous() if sites[path].transposed else w.reshape(w.shape[0], -1).clone()
    quantizers = {p: c.weight for p in paths if (c := engine.choices[p]).weight is not None}
    inputs = {p: c.input for p in paths if (c := engine.choices[p]).input is not None}
    return LearnTask(
        name=name,
        weights=weights,
        initial={p: q for p in paths if (q := result.modules[p].weight) is not None},
        quantizers=quantizers,
        input_quantizers=inputs,
        inputs=count,
        forward=forward,
        target=target,
        importance=importance,
        seed=derived_seed(engine.seed, engine.recipe.name, "learn", name),
        events=engine.events,
        progress=lambda done, total: engine.progress(name, done / max(1, total)),
    )


def _learn_block(engine: Engine, learn: Learn, unit: Unit, paths: list[str], result: UnitResult) -> None:
    """Reconstruct a unit's output: quantized stream in, float stream's output as the target."""
    groups, runner = learning_groups(engine, learn, unit)
    root = runner.model.module

    def forward(overrides: Mapping[str, Tensor], index: int) -> Tensor:
        with swapped_weights(root, _shaped(engine, root, overrides)):
            return runner.run(unit, index, hidden_of(groups, engine.quantized, unit, index))

    def importance(index: int) -> Tensor | None:
        if engine.importance(unit.name, 0) is None:
            return None
        return groups.take(lambda i: _there(engine.importance(unit.name, i)), index)

    with _states(engine, len(groups)) as targets:
        with torch.no_grad():
            for index in range(len(groups)):
                targets[index] = runner.run(unit, index, hidden_of(groups, engine.float, unit, index))
        task = _task(engine, unit.name, paths, result, forward, partial(held, targets), importance, len(groups))
        _finish(engine, learn, task, result)


def _learn_layer(engine: Engine, learn: Learn, unit: Unit, path: str, result: UnitResult) -> None:
    """Reconstruct one layer: inputs from the quantized stream, targets from the float stream."""
    if path in engine.routed:
        _learn_expert(engine, learn, unit, path, result)
        return
    root = engine.float_runner.model.module
    module = root.get_submodule(path)
    work, floating = engine.work_runner, engine.float_runner
    groups = make_groups(engine.batches, learn.batch)
    count = len(engine.batches)
    with _states(engine, count) as inputs, _states(engine, count) as targets:
        for index in range(count):
            run = partial(work.run, unit, index, engine.quantized[index])
            inputs[index] = _there(_input_of(work.model.module, path, run))
            x = _input_of(root, path, partial(floating.run, unit, index, engine.float[index]))
            with torch.no_grad():
                targets[index] = module(_there(x))

        def forward(overrides: Mapping[str, Tensor], index: int) -> Tensor:
            with swapped_weights(root, _shaped(engine, root, overrides)):
                output: Tensor = module(groups.take(partial(held, inputs), index))
                return output

        def target(index: int) -> Tensor:
            return groups.take(partial(held, targets), index)

        task = _task(engine, path, [path], result, forward, target, lambda index: None, len(groups))
        _finish(engine, learn, task, result)


def _learn_expert(engine: Engine, learn: Learn, unit: Unit, path: str, result: UnitResult) -> None:
    """Reconstruct an expert's layer on the tokens that the quantized stream routes to it.

    The float stream routes other tokens there, so the target is what the float layer answers to the same ones.
    """
    root = engine.float_runner.model.module
    module = root.get_submodule(path)
    work = engine.work_runner
    with _states(engine, len(engine.batches)) as inputs:
        count = 0
        for index in range(len(engine.batches)):
            x = _input_of(work.model.module, path, partial(work.run, unit, index, engine.quantized[index]))
            if x is not None:
                inputs[count] = x
                count += 1
        if not count:
            engine.events.record("no calibration signal", path, "no token is routed to it, so it is not learned")
            return

        def forward(overrides: Mapping[str, Tensor], index: int) -> Tensor:
            with swapped_weights(root, _shaped(engine, root, overrides)):
                output: Tensor = module(held(inputs, index))
                return output

        def target(index: int) -> Tensor:
            with torch.no_grad():
                output: Tensor = module(held(inputs, index))
                return output

        task = _task(engine, path, [path], result, forward, target, lambda index: None, count)
        _finish(engine, learn, task, result)


def _input_of(root: nn.Module, path: str, run: Callable[[], object]) -> Tensor | None:
    """The input of a module in one pass, which ends there; ``None`` where it is not called."""
    found: list[Tensor] = []

    def seen(_: str, module: nn.Module, x: Tensor) -> None:
        found.append(x.detach())

    with input_hooks(root, [path], seen), stop_after(root, path), torch.no_grad(), suppress(StopSweep):
        run()
    return found[0] if found else None


def _shaped(engine: Engine, root: nn.Module, overrides: Mapping[str, Tensor]) -> dict[str, Tensor]:
    transposed = {s.path: s.transposed for s in engine.structure.sites}
    return {p: shaped_like(root.get_submodule(p), w, transposed[p]) for p, w in overrides.items()}


def _there(x: Tensor | None) -> Tensor:
    if x is None:
        raise RuntimeError("the importance of a batch is missing")
    return x
