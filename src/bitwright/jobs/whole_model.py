"""Statistics that need a backward pass through the whole float model, gathered before the first unit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from bitwright.jobs.float_record import FloatRecord
from bitwright.jobs.opening import Job, Opened
from bitwright.statistics import Statistic


def weight_gradients(
    job: Job, opened: Opened, record: FloatRecord | None = None
) -> Mapping[str, Mapping[Statistic, Any]]:
    """Results of requests that read weight gradients (``Fisher``), by path; empty where no stage asks for one."""
    wanted: dict[str, list[Statistic]] = {}
    for path, choice in opened.choices.items():
        needs = choice.weight.needs if choice.weight is not None else ()
        requests = [r for r in needs if getattr(r, "reads", "input") == "weight gradient"]
        if requests:
            wanted[path] = requests
    if not wanted:
        return {}
    from bitwright.jobs.backward import fisher_of_weights

    if record is None:
        return fisher_of_weights(job, opened, wanted)
    return record.once(("fisher", repr(wanted)), lambda: fisher_of_weights(job, opened, wanted))


def unit_importance(job: Job, opened: Opened, record: FloatRecord | None = None) -> Callable[[str, int], Tensor | None]:
    """Mean squared gradients of the task loss at unit outputs, for learning losses that weigh by them."""
    if not any(learn.needs_importance for learn in job.recipe.learn):
        return lambda unit, index: None
    from bitwright.jobs.backward import output_gradients

    if record is None:
        return output_gradients(job, opened)
    return record.once("importance", lambda: output_gradients(job, opened))
