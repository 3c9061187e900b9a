"""``bitwright resume``: continue an interrupted job."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bitwright.cli.options import Json, NoVerify, Threads, use_threads
from bitwright.cli.output import Output


def command(
    folder: Annotated[Path, typer.Argument(help="The --out folder of the interrupted job, or its .partial folder.")],
    threads: Threads = None,
    no_verify: NoVerify = False,
    json: Json = False,
) -> None:
    """Continue an interrupted job from its last finished unit, with as many threads as it had unless told otherwise."""
    from bitwright.cli.progress import job_progress
    from bitwright.jobs.command import interrupted_request, interrupted_threads, quantize_request

    with Output(json) as output:
        request = interrupted_request(folder)
        use_threads(threads if threads is not None else interrupted_threads(folder))
        with job_progress() as progress:
            summary = quantize_request(request, progress, check=not no_verify)
        output.result(summary)
        output.show(f"{summary['out']}: {summary['bits_per_weight']:.3f} bits per weight, {summary['seconds']:.1f} s")
