"""Opens everything that a job names: model, structure, float twin, batches, activation window."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from bitwright.data import ImageData, TokenData
from bitwright.errors import InputError
from bitwright.events import Event
from bitwright.jobs.choice import Choice, choose, coded_ties, stream_needs
from bitwright.jobs.runner import Batch
from bitwright.jobs.untie import untie
from bitwright.jobs.workers import HERE, Workers
from bitwright.machine import keep_large_blocks_apart
from bitwright.models import Model, Structure, discover, open_model
from bitwright.models.calling import example_inputs, first_rows
from bitwright.models.discover import chain_holds
from bitwright.models.experts import open_experts, open_stacks
from bitwright.models.rules import NO_RULES, Rules
from bitwright.recipes import Recipe

Calibration = TokenData | ImageData | Sequence[Batch] | None


@dataclass(frozen=True)
class Job:
    """What to do: a recipe on a model with data, into a folder.

    Attributes:
        model: checkpoint folder, or a module of the caller (which is then changed in place).
        data: calibration data; recipes that read activations need it.
        out: output folder; ``None`` keeps the result in memory.
        max_memory: cap of anonymous memory above the start, bytes; ``None`` for no cap.
        batch_size: sequences (images) per forward pass.
        rules: what the user says about the model's structure.
        verify: carry a probe through the job and compare it with the model that is read back from disk.
        fresh_process: read the result back in a process of its own (a plain module, which no config rebuilds, is read
            back in this one).
        engine: the program that has to serve the result (``--for``); an illegal plan is refused. Empty: none.
        parallel: how many devices it cuts every layer for.
        request: the request behind the job as JSON, kept in the working folder until the job is finished (for resume).
        events: what happened while the data were read; they belong to the job's report.
        workers: where its tasks run; the result does not depend on it.
    """

    model: str | Path | nn.Module
    recipe: Recipe
    data: Calibration = None
    out: Path | None = None
    seed: int = 0
    strict: bool = False
    max_memory: int | None = None
    batch_size: int = 8
    rules: Rules = NO_RULES
    verify: bool = True
    fresh_process: bool = False
    engine: str = ""
    parallel: int = 1
    request: str = ""
    events: tuple[Event, ...] = ()
    workers: Workers = HERE


@dataclass
class Opened:
    """A job's model with what was found in it."""

    model: Model
    structure: Structure
    choices: dict[str, Choice]
    batches: list[Batch]
    reads_float: bool
    reads_quantized: bool
    twin: Model | None = None
    untied: tuple[str, ...] = ()

    @property
    def reads_data(self) -> bool:
        """Whether the recipe reads activations at all."""
        return self.reads_float or self.reads_quantized


def make_batches(data: Calibration, batch_size: int) -> list[Batch]:
    """Calibration data as model inputs."""
    if data is None:
        return []
    if isinstance(data, TokenData | ImageData):
        return [dict(batch) for batch in data.batches(batch_size)]
    return [dict(batch) for batch in data]


def open_job(job: Job) -> Opened:
    """Open the model (streamed where it is a folder), discover its structure, choose quantizers.

    Raises:
        InputError: if the recipe needs data and none were given, or the recipe selects nothing.
    """
    folder = not isinstance(job.model, nn.Module)
    if folder:
        keep_large_blocks_apart()
    model = _opened(job)
    batches = make_batches(job.data, job.batch_size)
    example = one_row(batches[0]) if batches else None
    experts = open_experts(model, example)
    # Proofs run the model; a recipe that moves nothing between layers needs blocks and sites only.
    structure = discover(model, example, bool(job.recipe.transforms), job.rules)
    choices = choose(job.recipe, structure)
    runs = any(stream_needs(job.recipe, choices.values()))
    if runs and not job.recipe.transforms and not chain_holds(model, structure, example):
        # Blocks that shapes alone suggest cannot be run; the proofs find others.
        structure = discover(model, example, True, job.rules)
        choices = choose(job.recipe, structure)
    if not any(c.weight is not None or c.input is not None for c in choices.values()) and not job.recipe.kv_cache:
        held = "".join(f" ({path} is {c.reason}: select both)" for path, c in choices.items() if c.held_back)
        raise InputError(
            f"recipe {job.recipe.name!r} selects no layer of this model{held}; `bitwright inspect MODEL --structure` "
            "lists them, and select= chooses others"
        )
    reads_float, reads_quantized = stream_needs(job.recipe, choices.values())
    if (reads_float or reads_quantized) and not batches:
        raise InputError(f"recipe {job.recipe.name!r} reads activations; give it calibration data (--data)")
    opened = Opened(model, structure, choices, batches, reads_float, reads_quantized)
    if reads_float and reads_quantized:
        opened.twin = _opened(job) if folder else copy_model(model)
        if folder:
            open_stacks(opened.twin, experts)
    moved = any(t.unties for t in job.recipe.transforms)
    apart = [name for name, _ in structure.ties] if moved else coded_ties(choices, structure)
    if apart:
        opened.untied = untie(model, structure, apart)
        if opened.twin is not None:
            untie(opened.twin, structure, apart)
    return opened


def _opened(job: Job) -> Model:
    """The job's model, streamed where it is a folder; under a cap few parameters stay in memory after a use."""
    model = open_model(job.model, stream=not isinstance(job.model, nn.Module))
    if job.max_memory is not None:
        model.kept_bytes = min(model.kept_bytes, job.max_memory // 8)
    return model


def copy_model(model: Model) -> Model:
    """A float twin of a module in memory."""
    assert isinstance(model.module, nn.Module)
    return open_model(copy.deepcopy(model.module))


def one_row(batch: Batch) -> Batch:
    """The first sequence (image) of a batch."""
    return dict(first_rows(batch, 1))


def probe_batch(job: Job, opened: Opened) -> Batch:
    """A tiny input: at most 64 tokens of one calibration sequence, one image, or what the model's config suggests."""
    if opened.batches:
        row = one_row(opened.batches[0])
        images = any(v.is_floating_point() for v in row.values())  # they have their places among the tokens
        return row if images else {k: v[:, :64] if v.dim() == 2 else v for k, v in row.items()}
    return {k: v for k, v in example_inputs(opened.model.module).items() if isinstance(v, Tensor)}
