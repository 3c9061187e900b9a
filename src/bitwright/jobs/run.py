"""Run a job: unit by unit, journalled, resumable."""

from __future__ import annotations

import copy
import dataclasses
import gc
import hashlib
import logging
import platform
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bitwright import __version__
from bitwright.data import ImageData, TokenData
from bitwright.errors import CheckError, InputError
from bitwright.evaluation.memory import peak_memory
from bitwright.events import Event, Events
from bitwright.jobs.engine import Engine
from bitwright.jobs.float_record import FloatRecord
from bitwright.jobs.journal import Journal
from bitwright.jobs.legality import check_engine
from bitwright.jobs.locking import only_writer
from bitwright.jobs.memory import activation_window, estimate_peak, replay_window
from bitwright.jobs.opening import Job, Opened, open_job, probe_batch
from bitwright.jobs.output import MANIFEST_VERSION, REQUEST_NAME, Output, prepare_folder, publish, working_folder
from bitwright.jobs.report import PAGE, REPORT, report_files
from bitwright.jobs.result import UnitResult
from bitwright.jobs.sizes import check_disk
from bitwright.jobs.verify import Probe, verify
from bitwright.jobs.whole_model import unit_importance, weight_gradients
from bitwright.machine import return_free_memory
from bitwright.models import open_model
from bitwright.models.writer import write_text
from bitwright.native import chosen
from bitwright.runtime.online import online_entries

logger = logging.getLogger(__name__)

Progress = Callable[[str, int, int, float], None]
"""``progress(unit, done, total, share of the unit)``."""


@dataclass
class JobResult:
    """What a finished job knows: units, events, bits, time, memory, the manifest, and the model in memory."""

    job: Job
    opened: Opened
    units: list[UnitResult]
    events: list[Event]
    seconds: float
    peak_memory_bytes: int
    manifest: dict[str, Any]
    resumed: int = 0
    verification: dict[str, Any] | None = None
    probe: Probe | None = None

    @property
    def coded(self) -> dict[str, Any]:
        """Every coded weight by path: the tensor of a job in memory, its facts where it was written."""
        found = {p: m.weight if m.weight is not None else m.facts for u in self.units for p, m in u.modules.items()}
        return {path: weight for path, weight in found.items() if weight is not None}

    @property
    def bits_per_weight(self) -> float:
        """Stored bits over weights of the quantized tensors."""
        coded = self.coded.values()
        weights = sum(q.shape[0] * q.shape[1] for q in coded)
        return float(sum(q.storage_bits() for q in coded) / max(1, weights))


def no_progress(unit: str, done: int, total: int, share: float) -> None:
    """Say nothing."""


def data_digest(job: Job) -> str:
    """A hash of the calibration data."""
    if isinstance(job.data, TokenData | ImageData):
        return job.data.sha256
    digest = hashlib.sha256()
    for batch in job.data or ():
        for key in sorted(batch):
            digest.update(key.encode())
            digest.update(batch[key].contiguous().numpy().tobytes())
    return digest.hexdigest()


def identity(job: Job, opened: Opened) -> dict[str, Any]:
    """Everything that the bytes of the result depend on; a resumed job must agree in all of it."""
    checkpoint = opened.model.checkpoint
    return {
        "recipe": repr(job.recipe),
        "model": checkpoint.fingerprint() if checkpoint is not None else "module in memory",
        "data": data_digest(job),
        "seed": job.seed,
        "batch_size": job.batch_size,
        "rules": [[pattern, list(words)] for pattern, words in job.rules.lines],
        "version": __version__,
    }


def machine() -> dict[str, Any]:
    """What rounding of sums depends on beside the inputs; a resumed job that differs here continues with an event."""
    return {
        "torch": str(torch.__version__).split("+")[0],
        "threads": torch.get_num_threads(),
        "instructions": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "kernels": chosen(),
    }


def run(job: Job, progress: Progress = no_progress, record: FloatRecord | None = None) -> JobResult:
    """Run a job to its end; the same call continues after an interruption.

    ``record`` holds what the float model answered already; only jobs in memory read it.

    Raises:
        InputError: for wrong input, a folder in use, or a cap that cannot be kept.
        CheckError: for an event under strict mode, or a result that does not verify (it stays in the working folder).
    """
    started = time.perf_counter()
    if not isinstance(job.model, nn.Module):
        open_model(job.model, stream=True)  # imports the network's code, which is not the job's memory
    return_free_memory()  # what the process has freed before is no room that the job gets for nothing
    with peak_memory() as memory:
        opened = open_job(job)
        return_free_memory()
        check_memory(job, opened)
        check_disk(job, opened)
        if job.engine and not (legality := check_engine(job, opened)).legal:
            raise InputError(legality.text)
        if job.out is None:
            result = _run_units(job, opened, None, progress, record)
        else:
            result = _run_in_folder(job, opened, progress)
    result.seconds = time.perf_counter() - started
    result.peak_memory_bytes = memory.above_start
    return result


def check_memory(job: Job, opened: Opened) -> None:
    """Refuse a cap that the plan says cannot be kept."""
    if job.max_memory is None:
        return
    need = estimate_peak(job, opened)
    return_free_memory()
    if need > job.max_memory:
        raise InputError(
            f"this job needs about {need / 1e6:.0f} MB and --max-memory allows {job.max_memory / 1e6:.0f} MB; "
            "allow more, use fewer or shorter calibration sequences per batch, or a recipe without a Hessian"
        )


def _run_in_folder(job: Job, opened: Opened, progress: Progress) -> JobResult:
    """Run into the working folder, verify it there, and only then give it its name."""
    assert job.out is not None
    # A module in memory is changed by the run; its float form rebuilds the network when the folder is read back.
    skeleton = copy.deepcopy(job.model) if isinstance(job.model, nn.Module) and job.verify else None
    with only_writer(working_folder(job.out), job.out, "job"):
        fresh = not working_folder(job.out).exists()
        work = prepare_folder(job.out)
        try:
            result = _run_units(job, opened, work, progress)
            if job.verify:
                _verify_in_place(job, opened, work, result, skeleton)
                return_free_memory()  # the report's drawings come on top of what is held
            for name, text in report_files(result).items():
                write_text(work / name, text)
        except InputError as error:
            # A full disk can be mended and the job resumed; after wrong input nothing half-written may stay.
            if fresh and not isinstance(error.__cause__, OSError):
                shutil.rmtree(work, ignore_errors=True)
            raise
        publish(work, job.out)
    return result


def _verify_in_place(job: Job, opened: Opened, work: Path, result: JobResult, skeleton: nn.Module | None) -> None:
    verification = verify(work, result, skeleton)
    result.verification = verification.as_json()
    source = opened.model.checkpoint
    spoiled = [name for name in verification.bad_tensors if source is not None and name in source.tensors]
    if spoiled:  # copied as they are
        raise InputError(f"{job.model}: tensor {spoiled[0]!r} holds NaN or Inf; download or train the model again")
    if not verification.ok:
        raise CheckError(f"{work} does not verify and keeps its name: {verification.text}")


def _run_units(
    job: Job, opened: Opened, work: Path | None, progress: Progress, record: FloatRecord | None = None
) -> JobResult:
    events = Events(job.strict, list(job.events))
    engine = _engine(job, opened, events, work, record)
    total = len(engine.units)
    output = Output(work, opened.model, opened.structure, engine.units, opened.untied) if work is not None else None
    journal = Journal(work, identity(job, opened), machine()) if work is not None else None
    finished = []
    if journal is not None:
        assert output is not None
        journal.open()
        if journal.moved:
            events.record("another machine", "job", f"{'; '.join(journal.moved)}; the last bits may differ")
        finished = output.unchanged(journal.verified())
        journal.truncate(len(finished))
        if job.request:
            write_text(journal.path.with_name(REQUEST_NAME), job.request + "\n")
    _record_ties(opened, events)
    results: list[UnitResult] = []
    for unit in engine.units:
        engine.progress = partial(_unit_progress, progress, unit.index, total)
        progress(unit.name, unit.index, total, 0.0)
        if unit.index < len(finished) and output is not None:
            result = output.restore(unit, finished[unit.index])
            events.entries.extend(Event(**e) for e in finished[unit.index].facts.get("events", []))
            engine.restore(unit, result)
        else:
            before = len(events.entries)
            result = engine.work(unit)
            if output is not None and journal is not None:
                entry = output.write(unit, result)
                fresh = [dataclasses.asdict(e) for e in events.entries[before:]]
                journal.add(dataclasses.replace(entry, facts={**entry.facts, "events": fresh}))
        if output is not None:
            result.let_go()
        results.append(result)
        _unit_progress(progress, unit.index + 1, total, unit.name, 1.0)
    for words in job.workers.strangers():
        events.record("another machine", "cluster", f"{words}; the last bits may differ")
    manifest = build_manifest(job, results)
    job_result = JobResult(job, opened, results, events.entries, 0.0, 0, manifest, resumed=len(finished))
    if engine.probe is not None:
        assert engine.original_output is not None
        assert engine.probe_output is not None
        moved = None if engine.restored else engine.transformed_output
        job_result.probe = Probe(engine.probe, engine.original_output.float(), engine.probe_output.float(), moved)
    if output is not None:
        output.finish(manifest, (REPORT, PAGE))
    return job_result


def _record_ties(opened: Opened, events: Events) -> None:
    """Say what became of tied tensors that the recipe wanted changed."""
    if opened.untied:
        events.record(
            "untied", ", ".join(opened.untied), "the ends of the tie are changed apart; the file holds both of them"
        )
    for path, choice in opened.choices.items():
        if choice.held_back:
            events.record("tied", path, f"{choice.reason}; select both ends to code them, or none")


def _engine(job: Job, opened: Opened, events: Events, work: Path | None, record: FloatRecord | None) -> Engine:
    given, importance = weight_gradients(job, opened, record), unit_importance(job, opened, record)
    gc.collect()  # the float model that they were gathered on refers to itself
    return Engine(
        recipe=job.recipe,
        model=opened.model,
        structure=opened.structure,
        batches=opened.batches if opened.reads_data else [],
        seed=job.seed,
        events=events,
        twin=opened.twin,
        given=given,
        importance=importance,
        record=record,
        probe=probe_batch(job, opened) if job.verify and job.out is not None else None,
        release=work is not None and opened.model.streamed,
        spill=None if work is None else work / "hidden",
        window_bytes=activation_window(job),
        replay_bytes=replay_window(job),
        workers=job.workers,
    )


def _unit_progress(progress: Progress, done: int, total: int, text: str, share: float) -> None:
    return_free_memory()
    progress(text, done, total, share)


def build_manifest(job: Job, results: list[UnitResult]) -> dict[str, Any]:
    """The manifest of a native checkpoint (``quantization_config``); its keys are documented in docs/formats.md."""
    modules: dict[str, Any] = {}
    online: dict[str, list[dict[str, Any]]] = {}
    for unit in results:
        for path, module in unit.modules.items():
            modules[path] = module.manifest()
        for site, operations in unit.cache_online.items():
            online[site] = online_entries(operations)
    return {
        "quant_method": "bitwright",
        "format_version": MANIFEST_VERSION,
        "bitwright_version": __version__,
        "recipe": job.recipe.name,
        "modules": modules,
        "removed": [path for unit in results for path in unit.removed],
        "kv_cache": _cache_manifest(job, online),
    }


def _cache_manifest(job: Job, online: Mapping[str, list[dict[str, Any]]]) -> dict[str, Any] | None:
    from bitwright.stages.site import Target, select

    found: dict[str, Any] = {}
    for site in ("key", "value"):
        quantizer = select(job.recipe.kv_cache, Target(site, site, "cache"))
        if quantizer is not None:
            found[site] = {"format": str(quantizer.format), "online": online.get(site, [])}
    return {**found, "window": job.recipe.kv_window} if found else None
