"""``bitwright resume``: continue an interrupted job."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bitwright.cli.options import Cluster, Json, NoVerify, Threads, use_threads
from bitwright.cli.output import Output


def command(
    folder: Annotated[Path, typer.Argument(help="The --out folder of the interrupted job, or its .partial folder.")],
    threads: Threads = None,
    cluster: Cluster = "",
    no_verify: NoVerify = False,
    json: Json = False,
) -> None:
    """Continue an interrupted job from its last finished unit, with as many threads as it had unless told otherwise."""
    from bitwright.cli.progress import job_progress
    from bitwright.jobs.command import interrupted_request, interrupted_threads, quantize_request
    from bitwright.jobs.workers import open_workers

    with Output(json) as output:
        request = interrupted_request(folder)
        used = use_threads(threads if threads is not None else interrupted_threads(folder))
        with open_workers(cluster, used) as workers, job_progress() as progress:
            summary = quantize_request(request, progress, not no_verify, workers)
        output.result(summary)
        output.show(f"{summary['out']}: {summary['bits_per_weight']:.3f} bits per weight, {summary['seconds']:.1f} s")
