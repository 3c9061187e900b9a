"""An estimate of a job's peak memory, made before any weight is read."""

from __future__ import annotations

from torch import Tensor

from bitwright.jobs.opening import Job, Opened
from bitwright.jobs.units import split_units

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
        for group in unit.groups:
            for site in group:
                choice = opened.choices[site.path]
                needs = choice.weight.needs if choice.weight is not None else ()
                held = sum(r.memory_bytes(site.shape[1]) for r in needs)
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
    window = None if job.max_memory is None else max(job.max_memory // 8, 16 << 20)
    return held if window is None or job.out is None else min(held, streams * window)


def _tokens(batch: dict[str, Tensor]) -> int:
    ids = batch.get("input_ids")
    return int(ids.numel()) if ids is not None else max(int(v.numel()) for v in batch.values())


def _widest(opened: Opened) -> int:
    return max((s.shape[1] for s in opened.structure.sites if s.kind == "linear" and s.role == "block"), default=1)
