"""Plan a job, run it, and put what was planned beside what was measured."""

from __future__ import annotations

import json
import os
import resource
import shutil
import time
from dataclasses import replace
from pathlib import Path

from bitwright.jobs.opening import Job
from bitwright.jobs.plan import plan
from bitwright.jobs.run import run


def planned_run(job: Job, cap: int = 0) -> dict[str, object]:
    """Plan and run a job in this process, which has run nothing else; its output folder is removed again.

    Args:
        job: what to do, into a folder.
        cap: bytes of memory that it may use; 0 for a fifth more than the plan says it needs.
    """
    assert job.out is not None
    shutil.rmtree(job.out, ignore_errors=True)
    wide = plan(replace(job, max_memory=1 << 40))
    job = replace(job, max_memory=cap or wide.peak_memory_bytes * 6 // 5)
    started = time.perf_counter()
    planned = plan(job, probe=True)
    planning, before = time.perf_counter() - started, _processor_seconds()
    result = run(job)
    processor = _processor_seconds() - before
    written = sum(p.stat().st_size for p in job.out.rglob("*") if p.is_file())
    tensors = sum(_tensor_bytes(p) for p in job.out.glob("*.safetensors"))
    shutil.rmtree(job.out)
    return {
        "recipe": job.recipe.name, "cap": job.max_memory, "planned_peak": planned.peak_memory_bytes,
        "measured_peak": result.peak_memory_bytes,
        "peak_ratio": round(planned.peak_memory_bytes / max(1, result.peak_memory_bytes), 3),
        "planned_seconds": round(planned.seconds, 1), "measured_seconds": round(result.seconds, 1),
        "processor_seconds": round(processor, 1), "seconds_ratio": round(planned.seconds / result.seconds, 2),
        "processor_ratio": round(planned.seconds / processor, 2), "planning_seconds": round(planning, 1),
        "planned_bytes": planned.bytes, "written_bytes": tensors, "planned_disk": planned.disk_bytes,
        "written_disk": written, "load": round(os.getloadavg()[0], 1),
    }  # fmt: skip


def _processor_seconds() -> float:
    """Seconds of processor that this process and its children took: what one thread needs on a machine of its own."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def _tensor_bytes(shard: Path) -> int:
    """Bytes of the tensors in a safetensors file."""
    with shard.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return sum(int(e["data_offsets"][1]) - int(e["data_offsets"][0]) for n, e in header.items() if n != "__metadata__")
