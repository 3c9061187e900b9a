"""``bitwright quantize``: a checkpoint in, a verified low-bit checkpoint out."""

from __future__ import annotations

from typing import Annotated

import typer

from bitwright.cli.options import (
    Cluster,
    Data,
    Engine,
    FloatModel,
    Json,
    Length,
    NoVerify,
    OneRecipe,
    Out,
    Parallel,
    RuleFile,
    Seed,
    Sequences,
    Settings,
    Strict,
    Threads,
    Weights,
    use_threads,
)
from bitwright.cli.output import Output


def command(
    model: FloatModel,
    recipe: OneRecipe = "gptq",
    settings: Settings = None,
    weights: Weights = "",
    bits: Annotated[int, typer.Option("--bits", help="Short for --weights 'intN g128 asym'.", min=0, max=8)] = 0,
    data: Data = "",
    sequences: Sequences = 0,
    length: Length = 0,
    out: Out = None,
    engine: Engine = "",
    parallel: Parallel = 1,
    rules: RuleFile = None,
    max_memory: Annotated[str, typer.Option("--max-memory", help="Cap of added memory, e.g. 2GB.")] = "",
    seed: Seed = 0,
    threads: Threads = None,
    cluster: Cluster = "",
    strict: Strict = False,
    no_verify: NoVerify = False,
    json: Json = False,
) -> None:
    """Quantize a model into a folder that transformers can load; the same command resumes after an interruption."""
    from bitwright.cli.progress import job_progress
    from bitwright.jobs.command import quantize_request, size
    from bitwright.jobs.request import Request, default_out, parse_settings
    from bitwright.jobs.workers import open_workers

    with Output(json) as output:
        used = use_threads(threads)
        request = Request(
            model, recipe, parse_settings(settings or []), weights or (f"int{bits} g128 asym" if bits else ""),
            data, sequences, length, str(out) if out else "", seed, size(max_memory), strict,
            engine=engine, parallel=parallel, rules=str(rules) if rules else "",
        )  # fmt: skip
        if not request.out:
            import dataclasses

            request = dataclasses.replace(request, out=str(default_out(request)))
        with open_workers(cluster, used) as workers, job_progress() as progress:
            summary = quantize_request(request, progress, not no_verify, workers)
        output.result(summary)
        output.table(
            ["", ""],
            [
                ("folder", summary["out"]), ("recipe", summary["recipe"]),
                ("bits per quantized weight", f"{summary['bits_per_weight']:.3f}"),
                ("bytes of tensors", f"{summary['bytes']:,}"), ("seconds", f"{summary['seconds']:.1f}"),
                ("peak memory added", f"{summary['peak_memory_bytes'] / 1e6:.0f} MB"),
                ("events", len(summary["events"])), ("verified", summary["verified"]),
            ],
        )  # fmt: skip
