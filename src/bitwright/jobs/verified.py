"""A run with its verification, as the command line and the Python interface use it."""

from __future__ import annotations

import copy
from pathlib import Path

from torch import nn

from bitwright.errors import CheckError
from bitwright.jobs.opening import Job
from bitwright.jobs.run import JobResult, Progress, no_progress, run
from bitwright.jobs.verify import verify


def run_and_verify(job: Job, progress: Progress = no_progress) -> JobResult:
    """Run a job into its folder; then read the folder back and compare.

    Raises:
        CheckError: if the result does not verify (the folder stays for inspection).
    """
    float_module = copy.deepcopy(job.model) if isinstance(job.model, nn.Module) else None
    result = run(job, progress)
    if job.out is None or not job.verify:
        return result
    verification = verify(Path(job.out), result, float_module)
    result.verification = verification.as_json()
    if not verification.ok:
        raise CheckError(f"{job.out} does not verify: {verification.text}")
    return result
