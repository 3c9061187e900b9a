"""``bitwright demo``: the embedded model through a few recipes, offline, with a table and a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bitwright.cli.options import Json, Seed, Threads, use_threads
from bitwright.cli.output import Output


def command(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the models and report.html.")] = Path("demo"),
    seed: Seed = 0,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Quantize the embedded model with a few recipes, verify each, and show bits, size, quality and speed."""
    from bitwright.cli.progress import job_progress
    from bitwright.jobs.demo import run_demo

    with Output(json) as output:
        use_threads(threads)
        with job_progress() as progress:
            result = run_demo(out, seed, lambda text, share: progress(text, 0, 1, share))
        output.result(result)
        columns = [
            "recipe",
            "format",
            "bits_per_weight",
            "bytes",
            "perplexity",
            "kl",
            "top1_agreement",
            "tokens_per_second",
        ]
        output.table(
            columns,
            [[row[c] for c in columns] for row in result["rows"]],
            title="the embedded model",
            note=str(result["protocol"]),
        )
        output.show(f"page: {result['page']}")
