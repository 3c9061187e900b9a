"""Corrections of biases, layer after layer in call order."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bitwright.jobs.hidden import HiddenStates
from bitwright.jobs.installing import install_module
from bitwright.jobs.result import UnitResult
from bitwright.jobs.runner import Runner
from bitwright.jobs.sweep import output_hooks
from bitwright.jobs.units import Unit
from bitwright.jobs.view import UnitView
from bitwright.stages.corrections.base import Correction

if TYPE_CHECKING:
    from bitwright.jobs.engine import Engine


def correct_unit(engine: Engine, correction: Correction, unit: Unit, view: UnitView, result: UnitResult) -> None:
    """Compare mean outputs of float and quantized layers and let the correction choose new biases.

    A layer is measured after the layers before it were corrected, so every layer costs one sweep of the quantized
    stream; the float means of all layers are gathered in one.
    """
    order = [s.path for s in unit.sites if s.path in result.modules and result.modules[s.path].weight is not None]
    order = [path for path in order if result.modules[path].kind != "embedding"]
    expected = mean_outputs(engine.float_runner, unit, engine.float, order)
    for path in order:
        measured = mean_outputs(engine.work_runner, unit, engine.quantized, [path])
        if path not in expected or path not in measured:
            continue
        module = result.modules[path]
        bias = None if module.bias is None else module.bias.float()
        corrected = correction.correct(bias, expected[path], measured[path])
        if corrected is not None:
            module.bias = corrected
            install_module(engine.model.module, module, cache_weights=True)


def mean_outputs(runner: Runner, unit: Unit, hidden: HiddenStates, paths: list[str]) -> dict[str, Tensor]:
    """Mean output per channel of each module over all batches, ``[out]``."""
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    kinds = {s.path: s.kind for s in unit.sites}

    def seen(path: str, y: Tensor) -> None:
        rows = y.detach().movedim(1, -1) if kinds[path] == "conv" else y.detach()
        rows = rows.reshape(-1, rows.shape[-1])
        sums[path] = sums.get(path, torch.zeros(rows.shape[-1], dtype=torch.float64)) + rows.double().sum(0)
        counts[path] = counts.get(path, 0) + rows.shape[0]

    with output_hooks(runner.model.module, paths, seen):
        for index in range(runner.count):
            runner.until_stopped(unit, index, hidden[index])
    return {path: (sums[path] / counts[path]).float() for path in sums}
