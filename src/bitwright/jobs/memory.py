"""An estimate of a job's peak memory, made before any weight is read."""

from __future__ import annotations

from torch import Tensor

from bitwright.jobs.opening import Job, Opened
from bitwright.jobs.units import split_units
from bitwright.machine import memory

_FLOAT = 4


def estimate_peak(job: Job, opened: Opened) -> int:
    """Bytes of anonymous memory above the start.

    The largest unit in fp32 (twice where a float twin runs beside it), the dequantized copies that its quantized
    layers run on, the statistics of its widest group with the solver's working copies, and the hidden states in memory.
    """
    largest = 0
    for unit in split_units(opened.structure):
        weights = sum(s.shape[0] * s.shape[1] for s in unit.sites)
        copies = 1 + (opened.twin is not None) + opened.reads_data
        widest = max((s.shape[0] * s.shape[1] for s in unit.sites), default=0)
        # Codes, scaled values and error terms of the weight at hand.
        solver = 6 * widest * _FLOAT
        statistics = 0
        families: dict[str, int] = {}
        for group in unit.groups:
            for site in group:
                choice = opened.choices[site.path]
                needs = choice.weight.needs if choice.weight is not None else ()
                held = sum(r.memory_bytes(site.shape[1]) for r in needs)
                if site.family:  # the experts of a family share a sweep, as far as the window allows
                    families[site.family] = families.get(site.family, 0) + held
                    held = max(held, min(families[site.family], replay_window(job)))
                # Factorising a Hessian holds the damped copy, the factor and its ordered copy.
                statistics = max(statistics, held + 3 * _FLOAT * site.shape[1] ** 2 * bool(needs))
        largest = max(largest, copies * weights * _FLOAT + solver + statistics)
    return largest + _hidden_bytes(job, opened)


def _hidden_bytes(job: Job, opened: Opened) -> int:
    if not opened.reads_data:
        return 0
    width = opened.structure.residual.dim if opened.structure.residual is not None else _widest(opened)
    tokens = sum(_tokens(batch) for batch in opened.batches)
    streams = opened.reads_float + opened.reads_quantized + 1
    held = tokens * width * _FLOAT * streams
    window = activation_window(job)
    held = held if window is None or job.out is None else min(held, streams * window)
    return held + min(tokens * _FLOAT * _replayed_width(opened), replay_window(job))


def activation_window(job: Job) -> int | None:
    """Bytes of one stream that stay in memory; ``None``: all of it."""
    return None if job.max_memory is None else max(job.max_memory // 8, 16 << 20)


def replay_window(job: Job) -> int:
    """Bytes of what a unit's layers answered that are kept for its later sweeps: an eighth of what may be used."""
    allowed = job.max_memory if job.max_memory is not None else memory().available
    return max((allowed or 0) // 8, 16 << 20)


def _replayed_width(opened: Opened) -> int:
    """Channels per token that a unit keeps at most between its sweeps: its layers' outputs, except that of modules
    that are done with, only the last layer's output is left."""
    widest = 0
    for unit in split_units(opened.structure):
        late = [s for group in unit.groups for s in group if _reads_rounded(opened, s.path)]
        done: dict[str, list[int]] = {}
        for site in late:
            done.setdefault(site.path.rpartition(".")[0], []).append(site.shape[0])
        modules = list(done.values())
        for index, widths in enumerate(modules):
            widest = max(widest, sum(widths[:-1]) + sum(before[-1] for before in modules[:index]))
    return widest


def _reads_rounded(opened: Opened, path: str) -> bool:
    weight = opened.choices[path].weight
    return weight is not None and any(r.prefix == "layer" for r in weight.needs)


def _tokens(batch: dict[str, Tensor]) -> int:
    ids = batch.get("input_ids")
    return int(ids.numel()) if ids is not None else max(int(v.numel()) for v in batch.values())


def _widest(opened: Opened) -> int:
    return max((s.shape[1] for s in opened.structure.sites if s.kind == "linear" and s.role == "block"), default=1)
