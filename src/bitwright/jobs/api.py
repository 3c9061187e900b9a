"""The short Python interface: ``plan``, ``quantize``, ``load``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from bitwright.jobs.opening import Calibration, Job
from bitwright.jobs.plan import Plan
from bitwright.jobs.plan import plan as plan_job
from bitwright.jobs.request import Request, build_recipe, calibration_data, model_source, recipe_reads_data
from bitwright.jobs.run import JobResult, run
from bitwright.models.rules import parse_rules
from bitwright.recipes import Recipe
from bitwright.runtime.load import load as load_native


@dataclass(frozen=True)
class PlannedJob:
    """A job with its plan; ``run`` executes it."""

    job: Job
    plan: Plan

    def run(self, out: str | Path) -> FinishedJob:
        """Quantize into folder ``out`` and verify it.

        Raises:
            InputError: for wrong input; CheckError: if the result does not verify.
        """
        return FinishedJob(run(dataclasses.replace(self.job, out=Path(out), fresh_process=True)), Path(out))


@dataclass(frozen=True)
class FinishedJob:
    """A finished job and its folder."""

    result: JobResult
    folder: Path

    def load(self) -> nn.Module:
        """Load the quantized model."""
        return load_native(self.folder)


def plan(
    model: str | Path,
    recipe: str | Recipe = "gptq",
    *,
    weights: str = "",
    data: Calibration | str = "",
    settings: Mapping[str, str] | None = None,
    seed: int = 0,
) -> PlannedJob:
    """Plan the quantization of a checkpoint folder (or an embedded model).

    Args:
        model: folder, ``zoo`` or ``zoo:digits``.
        recipe: name of a recipe, or a recipe.
        weights: weight format in text form; the recipe's own if empty.
        data: calibration data, or what :class:`~bitwright.jobs.request.Request` takes as ``data``.
        settings: parameters of the recipe and slots from other recipes.

    Raises:
        InputError: for anything wrong in the request.
    """
    pairs = tuple((settings or {}).items())
    built = recipe if isinstance(recipe, Recipe) else build_recipe(recipe, pairs, weights)
    if isinstance(data, str):
        request = Request(str(model), data=data, seed=seed)
        from bitwright.events import Events

        data = calibration_data(request, built, Events()) if recipe_reads_data(built) else None
    job = Job(model_source(str(model)), built, data, seed=seed)
    return PlannedJob(job, plan_job(job))


def quantize(
    module: nn.Module,
    recipe: str | Recipe = "rtn",
    batches: Sequence[Mapping[str, Tensor]] | Sequence[Tensor] | Calibration = None,
    *,
    weights: str = "",
    settings: Mapping[str, str] | None = None,
    seed: int = 0,
    rules: Mapping[str, str | list[str]] | None = None,
) -> JobResult:
    """Quantize a module in place.

    ``batches`` are dicts of the forward's arguments; at least one is needed to see how the module runs. The result
    holds bits, errors and events; the module's layers are quantized ones afterwards. ``rules`` are lines of a rule file
    (:mod:`bitwright.models.rules`): patterns and what the modules are.

    Raises:
        InputError: if the recipe reads data and none were given.
    """
    built = recipe if isinstance(recipe, Recipe) else build_recipe(recipe, tuple((settings or {}).items()), weights)
    return run(Job(module, built, _as_batches(module, batches), seed=seed, rules=parse_rules(rules or {})))


def _as_batches(module: nn.Module, batches: Any) -> Calibration:
    if not isinstance(batches, list | tuple) or not batches or isinstance(batches[0], Mapping):
        return batches
    import inspect

    name = next(iter(inspect.signature(module.forward).parameters))
    return [{name: x} for x in batches]


def load(folder: str | Path, module: nn.Module | None = None) -> nn.Module:
    """Load a native checkpoint; ``module`` is the float network where the folder has no transformers config."""
    return load_native(folder, module)
