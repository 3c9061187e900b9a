"""``bitwright compare``: several recipes and formats on one model, one table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bitwright.cli.options import Cluster, Data, FloatModel, Json, Length, Seed, Sequences, Threads, use_threads
from bitwright.cli.output import Output


def command(
    model: FloatModel,
    recipes: Annotated[str, typer.Option("--recipes", "-r", help="Recipes, joined by commas.")] = "rtn,gptq",
    weights: Annotated[str, typer.Option("--weights", "-w", help="Weight formats, joined by commas.")] = "",
    data: Data = "",
    sequences: Sequences = 0,
    length: Length = 0,
    on: Annotated[str, typer.Option("--on", help="Evaluation text or ids, as for eval --data.")] = "",
    count: Annotated[int, typer.Option("--count", help="Evaluation sequences or images; all if 0.", min=0)] = 0,
    report: Annotated[Path | None, typer.Option("--report", help="Write a page with table and Pareto plot.")] = None,
    seed: Seed = 0,
    threads: Threads = None,
    cluster: Cluster = "",
    json: Json = False,
) -> None:
    """Compare recipes and formats on one model: bits, quality and time in one table."""
    from bitwright.cli.progress import job_progress
    from bitwright.jobs.evaluate import check_formats, compare
    from bitwright.jobs.request import Request
    from bitwright.jobs.workers import open_workers

    with Output(json) as out:
        used = use_threads(threads)
        names = [r.strip() for r in recipes.split(",") if r.strip()]
        formats = [w.strip() for w in weights.split(",") if w.strip()]
        check_formats(names, formats)
        request = Request(model, data=data, sequences=sequences, length=length, seed=seed)
        with open_workers(cluster, used) as workers, job_progress() as progress:
            result = compare(
                request, names, formats, on, count or None, lambda text, share: progress(text, 0, 1, share), workers
            )
        out.result(result)
        quality = "accuracy" if "accuracy" in result["rows"][0] else "perplexity"
        columns = ["recipe", "format", "bits_per_weight", quality, "kl", "top1_agreement", "seconds"]
        out.table(columns, [[row[c] for c in columns] for row in result["rows"]], note=str(result["protocol"]))
        if report is not None:
            from bitwright.jobs.page import comparison_page
            from bitwright.models.writer import write_text

            write_text(report, comparison_page(result))
            out.show(f"page written to {report}")
