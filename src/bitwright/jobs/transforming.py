"""Applies a recipe's transforms to a unit, and keeps the float twin in the same coordinates."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from bitwright.errors import InputError
from bitwright.events import Events
from bitwright.jobs.choice import derived_seed
from bitwright.jobs.installing import install_online
from bitwright.jobs.units import Unit
from bitwright.jobs.view import UnitView
from bitwright.stages.transforms import TransformReport

if TYPE_CHECKING:
    from bitwright.jobs.engine import Engine


def transform_unit(engine: Engine, unit: Unit, view: UnitView, events: Events) -> list[TransformReport]:
    """Transforms of the model, then those of the block, which read float statistics.

    Raises:
        InputError: if a transform reads activations and there are no data.
    """
    reports: list[TransformReport] = []
    engine.untouched = not engine.transforms_model
    for transform in engine.transforms_model:
        seed = derived_seed(engine.seed, type(transform).__name__)
        reports.append(transform.apply(view, {}, seed, events))
    sync_twin(engine, view)
    if engine.transforms_block and not engine.batches:
        raise InputError(f"recipe {engine.recipe.name!r} reads activations; give it calibration data (--data)")
    for transform in engine.transforms_block:
        statistics = engine.sweep(unit, dict.fromkeys(view.linears, transform.needs), "float", on_work=True)
        seed = derived_seed(engine.seed, type(transform).__name__, unit.name)
        reports.append(transform.apply(view, statistics, seed, events))
        engine.untouched = False
    sync_twin(engine, view)
    return reports


def sync_twin(engine: Engine, view: UnitView) -> None:
    """Give the float twin the transformed weights, so that both streams live in the same coordinates."""
    for path in view.online:
        install_online(engine.model.module, path, view.online[path])
    if engine.twin is None:
        return
    for name in view.changed:
        parent, _, leaf = name.rpartition(".")
        value = engine.model.module.get_parameter(name).detach().clone()
        engine.twin.module.get_submodule(parent).register_parameter(leaf, torch.nn.Parameter(value, False))
    for path in view.removed:
        parent, _, leaf = path.rpartition(".")
        setattr(engine.twin.module.get_submodule(parent), leaf, torch.nn.Identity())
    for path in view.online:
        install_online(engine.twin.module, path, view.online[path])
