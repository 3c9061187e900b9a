"""Evaluation of one model, and of many recipes against the same float predictions."""

from __future__ import annotations

import copy
import dataclasses
import tempfile
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from bitwright.data import ImageData, TokenData, evaluation
from bitwright.data.images import zoo_digits
from bitwright.errors import InputError
from bitwright.evaluation import ReferenceLogits, image_scores, logits_of, score_lm
from bitwright.evaluation.images import class_logits
from bitwright.formats import parse
from bitwright.jobs.float_record import FloatRecord, gather_float
from bitwright.jobs.memory import replay_window
from bitwright.jobs.opened_model import RunnableModel, open_runnable
from bitwright.jobs.opening import Job
from bitwright.jobs.request import ID_FILES, Request, build_job, build_recipe
from bitwright.jobs.run import data_digest, run
from bitwright.jobs.workers import HERE, Shared, Workers
from bitwright.models import open_model
from bitwright.recipes.registry import with_weight_format
from bitwright.runtime.cache import cache_factory

TASKS = ("perplexity", "kl", "accuracy")
_HELD_OUT = 16


def evaluation_data(model: RunnableModel, source: str, count: int | None) -> TokenData | ImageData:
    """Text (or stored ids) for a language model, the digits' test split for the embedded classifier.

    ``source`` empty: the embedded model's committed ids for that model and what was made of it (their vocabularies
    agree), else the held-out files of the installed Python.
    """
    if model.folder is None or not hasattr(model.module, "config"):
        data = zoo_digits("test").for_module(model.module)
        return data if count is None else data.first(count)
    own = getattr(model.module.config, "vocab_size", 0)
    embedded = getattr(open_model(_zoo(), stream=True).module.config, "vocab_size", -1)
    if not source and own == embedded and _same_tokenizer(model):
        return evaluation(None, "zoo", count=count)
    if Path(source).suffix in ID_FILES:  # stored ids need no tokenizer
        stored = evaluation(None, source, count=count)
        stored.check_vocabulary(own)
        return stored
    tokenizer = model.tokenizer()
    length = min(512, int(getattr(model.module.config, "max_position_embeddings", 512)))
    return evaluation(tokenizer, source or "zoo:heldout", length, count if source else (count or _HELD_OUT))


def _zoo() -> Any:
    from bitwright.zoo import lm_path

    return lm_path()


def _same_tokenizer(model: RunnableModel) -> bool:
    assert model.folder is not None
    ours, theirs = _zoo() / "tokenizer.json", model.folder / "tokenizer.json"
    return theirs.is_file() and theirs.read_bytes() == ours.read_bytes()


def evaluate(
    name: str, against: str = "", task: str = "", source: str = "", count: int | None = None
) -> dict[str, Any]:
    """Measure one model; with ``against`` also KL and top-1 agreement. The keys are those of ``eval --json``.

    Raises:
        InputError: for an unknown task or a model that the task does not fit.
    """
    model = open_runnable(name)
    data = evaluation_data(model, source, count)
    reference = open_runnable(against) if against else None
    if isinstance(data, ImageData):
        return _image_result(model, reference, data, task)
    if task not in ("", "perplexity", "kl"):
        raise InputError(f"the task {task!r} does not fit a language model; choose perplexity or kl")
    if task == "kl" and reference is None:
        raise InputError("the task kl compares two models; give the float one with --against")
    twin = logits_of(reference.module, reference.cache_factory) if reference is not None else None
    scores = score_lm(logits_of(model.module, model.cache_factory), data, twin)
    result = {
        "model": name, "task": task or "perplexity", "metric": task or "perplexity",
        "value": scores.kl if task == "kl" else scores.perplexity, "protocol": scores.protocol,
        "bits_per_weight": model.bits_per_weight, "bytes": model.stored_bytes, "perplexity": scores.perplexity,
        "tokens": scores.tokens, "seconds": scores.seconds,
    }  # fmt: skip
    if reference is not None:
        result |= {"against": against, "kl": scores.kl, "top1_agreement": scores.top1_agreement}
    return result


def _image_result(model: RunnableModel, reference: RunnableModel | None, data: ImageData, task: str) -> dict[str, Any]:
    if task not in ("", "accuracy"):
        raise InputError(f"the task {task!r} does not fit an image classifier; choose accuracy")
    expected = class_logits(reference.module, data) if reference is not None else None
    scores = image_scores(model.module, data, expected)
    result = {
        "model": model.name, "task": "accuracy", "metric": "top-1 %", "value": scores.top1, "protocol": scores.protocol,
        "bits_per_weight": model.bits_per_weight, "bytes": model.stored_bytes,
    }  # fmt: skip
    if reference is not None:
        result |= {"against": reference.name, "kl": scores.kl, "top1_agreement": scores.top1_agreement}
    return result


def compare(
    request: Request,
    recipes: Sequence[str],
    formats: Sequence[str],
    source: str = "",
    count: int | None = None,
    say: Callable[[str, float], None] = lambda text, share: None,
    workers: Workers = HERE,
) -> dict[str, Any]:
    """Quantize a model by several recipes and formats in memory and measure all against the same float predictions.

    The float predictions, and the statistics and streams of the float model that several recipes read, are made once.
    On a cluster every row is a task, which reads the float model by itself, with the same figures.
    The keys are those of ``compare --json``.
    """
    model = open_runnable(request.model)
    data = evaluation_data(model, source, count)
    rows = [_float_row(model, data)]
    pairs = [(r, f) for r in recipes for f in (formats or [""])]
    jobs = [build_job(dataclasses.replace(request, recipe=name, weights=text, out="")) for name, text in pairs]
    reference = _predictions(model, data)
    shared = workers.share((data, reference))
    with _float_records([] if workers.remote else jobs) as records:

        def tasks() -> Iterator[_RowTask]:
            for (name, text), job in zip(pairs, jobs, strict=True):
                say(f"{name} {text}".strip(), (len(rows) - 1) / len(pairs))
                yield _RowTask(_anywhere(job), name, text, shared, records.get(_data_key(job)) if records else None)

        for row in workers.map(_row, tasks()):
            rows.append(row)
    return {"model": request.model, "protocol": data.protocol, "rows": rows}


def _anywhere(job: Job) -> Job:
    """The job as it can be run from any folder."""
    return job if isinstance(job.model, nn.Module) else dataclasses.replace(job, model=Path(job.model).resolve())


@contextmanager
def _float_records(jobs: Sequence[Job]) -> Iterator[dict[Hashable, FloatRecord]]:
    """What the float model answers, once for all jobs with equal calibration data; streams go to a passing folder."""
    groups: dict[Hashable, list[Job]] = {}
    for job in jobs:
        if job.data is not None:
            groups.setdefault(_data_key(job), []).append(job)
    window = replay_window(jobs[0]) if jobs else None
    with tempfile.TemporaryDirectory(prefix="bitwright-") as folder:
        found = {key: gather_float(group, window, Path(folder)) for key, group in groups.items() if len(group) > 1}
        yield {key: record for key, record in found.items() if record is not None}


def _data_key(job: Job) -> Hashable:
    return data_digest(job), job.batch_size


def _predictions(model: RunnableModel, data: TokenData | ImageData) -> Any:
    if isinstance(data, ImageData):
        return class_logits(model.module, data)
    return ReferenceLogits.gather(logits_of(model.module, model.cache_factory), data)


def _scores(module: Any, factory: Any, data: TokenData | ImageData, reference: Any) -> dict[str, Any]:
    if isinstance(data, ImageData):
        found = image_scores(module, data, reference)
        return {"accuracy": found.top1, "kl": found.kl, "top1_agreement": found.top1_agreement}
    scores = score_lm(logits_of(module, factory), data, reference)
    return {"perplexity": scores.perplexity, "kl": scores.kl, "top1_agreement": scores.top1_agreement}


def _float_row(model: RunnableModel, data: TokenData | ImageData) -> dict[str, Any]:
    scores = _scores(model.module, model.cache_factory, data, None)
    scores |= {"kl": 0.0, "top1_agreement": 1.0}
    bits = model.stored_bits_per_parameter
    return {
        "recipe": "float",
        "format": "",
        "bits_per_weight": bits,
        "bytes": model.stored_bytes,
        **scores,
        "seconds": 0.0,
    }


@dataclasses.dataclass(frozen=True)
class _RowTask:
    """A recipe and format to measure; ``shared`` holds the evaluation data and the float predictions."""

    job: Job
    name: str
    text: str
    shared: Shared[tuple[TokenData | ImageData, Any]]
    record: FloatRecord | None


def _row(task: _RowTask) -> dict[str, Any]:
    job = task.job
    data, reference = task.shared.get()
    module: Any = copy.deepcopy(job.model) if isinstance(job.model, nn.Module) else open_model(job.model).module
    started = time.perf_counter()
    result = run(dataclasses.replace(job, model=module, out=None), record=task.record)
    seconds = time.perf_counter() - started
    factory = None
    if result.manifest["kv_cache"] is not None:
        factory = cache_factory(result.manifest["kv_cache"], module.config)
    coded_bits = sum(q.storage_bits() for q in result.coded.values())
    return {
        "recipe": task.name, "format": task.text or _format_of(result), "bits_per_weight": result.bits_per_weight,
        "bytes": coded_bits // 8, **_scores(module, factory, data, reference), "seconds": seconds,
    }  # fmt: skip


def _format_of(result: Any) -> str:
    formats = sorted({str(q.codes.format) for q in result.coded.values() if q.codes is not None})
    return " | ".join(formats)


def check_formats(recipes: Sequence[str], formats: Sequence[str]) -> None:
    """Refuse unknown recipes and formats before anything runs.

    Raises:
        InputError: naming the nearest valid word.
    """
    for name in recipes:
        recipe = build_recipe(name)
        for text in formats:
            with_weight_format(recipe, parse(text))
