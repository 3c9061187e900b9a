"""``bitwright plan``: what a job would do, before it reads a weight."""

from __future__ import annotations

from bitwright.cli.options import (
    Data,
    Engine,
    FloatModel,
    Json,
    OneRecipe,
    Parallel,
    RuleFile,
    Seed,
    Sequences,
    Settings,
    Threads,
    Weights,
    use_threads,
)
from bitwright.cli.output import Output
from bitwright.errors import InputError


def command(
    model: FloatModel,
    recipe: OneRecipe = "gptq",
    settings: Settings = None,
    weights: Weights = "",
    data: Data = "",
    sequences: Sequences = 0,
    engine: Engine = "",
    parallel: Parallel = 1,
    rules: RuleFile = None,
    seed: Seed = 0,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Show what each tensor would get and why, the size, the memory, the sweeps and the time."""
    from bitwright.jobs.plan import plan
    from bitwright.jobs.request import Request, build_job, parse_settings

    with Output(json) as out:
        use_threads(threads)
        pairs = parse_settings(settings or [])
        request = Request(
            model, recipe, pairs, weights, data, sequences, seed=seed, engine=engine, parallel=parallel,
            rules=str(rules) if rules else "",
        )  # fmt: skip
        planned = plan(build_job(request))
        out.result(planned.as_json())
        rows = [
            (r.path, r.role, r.shape, r.format or "float", r.input_format, r.bits_per_weight, r.reason)
            for r in planned.rows
        ]
        out.table(["tensor", "role", "shape", "weight", "input", "bits", "why float"], rows, title=planned.recipe)
        for sweep in planned.sweeps:
            out.show(f"- {sweep}")
        out.show(
            f"{planned.bytes:,} bytes, {planned.bits_per_weight:.3f} bits per quantized weight, about "
            f"{planned.peak_memory_bytes / 1e6:.0f} MB of memory and {planned.seconds:.0f} s"
        )
        for reason in planned.reasons:
            out.show(f"note: {reason}")
        if planned.legality is not None:
            if not planned.legality.legal:
                raise InputError(planned.legality.text)
            out.show(planned.legality.text)
