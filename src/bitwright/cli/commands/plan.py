"""``bitwright plan``: what a job would do, before it reads a weight."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import TYPE_CHECKING, Annotated

import typer

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

if TYPE_CHECKING:
    from bitwright.jobs.cluster_plan import ClusterPlan
    from bitwright.jobs.plan import Plan


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
    cluster: Annotated[
        str, typer.Option("--cluster", help="Simulate equal machines: nodes=8,mem=512GB[,cpus=64][,net=25Gb].")
    ] = "",
    no_probe: Annotated[
        bool, typer.Option("--no-probe", help="Do not time this machine; count operations only.")
    ] = False,
    json: Json = False,
) -> None:
    """Show what each tensor would get and why, the size, the disk, the memory, the sweeps and the time."""
    from bitwright.jobs.cluster_plan import parse_nodes, plan_cluster
    from bitwright.jobs.plan import plan
    from bitwright.jobs.request import Request, build_job, parse_settings

    with Output(json) as out:
        use_threads(threads)
        pairs = parse_settings(settings or [])
        request = Request(
            model, recipe, pairs, weights, data, sequences, seed=seed, engine=engine, parallel=parallel,
            rules=str(rules) if rules else "",
        )  # fmt: skip
        job = build_job(request)
        nodes = parse_nodes(cluster) if cluster else None
        planned = plan(job, probe=not no_probe)
        simulated = plan_cluster(job, nodes) if nodes is not None else None
        more = {"cluster": dataclasses.asdict(simulated)} if simulated is not None else {}
        out.result({**planned.as_json(), **more})
        _show_rows(out, planned)
        _show_serving(out, planned)
        for sweep in planned.sweeps:
            out.show(f"- {sweep}")
        exact = "" if planned.bytes_exact else "about "
        out.show(f"{exact}{planned.bytes:,} bytes, {planned.bits_per_weight:.3f} bits per quantized weight")
        out.show(
            f"about {planned.disk_bytes / 1e6:,.0f} MB of disk, {planned.peak_memory_bytes / 1e6:,.0f} MB of memory "
            f"and {planned.seconds:.0f} s; the time rests on {planned.time_basis}"
        )
        if simulated is not None:
            out.show(_cluster_words(simulated))
        for reason in planned.reasons:
            out.show(f"note: {reason}")
        if planned.legality is not None:
            if not planned.legality.legal:
                raise InputError(planned.legality.text)
            out.show(planned.legality.text)


def _show_rows(out: Output, planned: Plan) -> None:
    """What each tensor gets."""
    rows = [
        (r.path, r.role, r.shape, r.format or "float", r.input_format, r.bits_per_weight, r.kernel, r.kernel_exact,
         r.reason)
        for r in planned.rows
    ]  # fmt: skip
    columns = ["tensor", "role", "shape", "weight", "input", "bits", "kernel", "exact", "why float"]
    out.table(columns, rows, title=planned.recipe)


def _show_serving(out: Output, planned: Plan) -> None:
    """What stays float beside the rows, and how the result will decode."""
    reasons = Counter(why for _, why in planned.floats)
    for why, count in reasons.items():
        out.show(f"float: {count} parameter{'s' if count > 1 else ''} ({why})")
    found = planned.decoding
    for name in found["online"]:
        out.show(f"runs with the model: what {name} leaves")
    if found["attention"] is not None:
        sides = " and ".join(f"{side}s in {found['attention'][side] or 'floats'}" for side in ("key", "value"))
        out.show(f"cache: {sides}; attention: {found['attention']['kernel']} ({found['attention']['why']})")
    if found["decoder"] is not None:
        reason = found["decoder"]["reason"]
        words = (
            "expected to serve, if the network has a form for it" if reason is None else f"will not serve ({reason})"
        )
        out.show(f"compiled decoding step: {words}")


def _cluster_words(plan: ClusterPlan) -> str:
    fits = "" if plan.fits else "; that is more memory than the machines have"
    return (
        f"{plan.nodes} machines, {plan.tasks_at_a_time} tasks at a time: about {plan.seconds:.0f} s (one process by "
        f"the same count: {plan.seconds_alone:.0f} s, of them {plan.serial_seconds:.0f} s that stay in it), "
        f"{plan.sent_bytes / 1e9:.1f} GB over the network, {plan.driver_bytes / 1e9:.1f} GB of memory where the job "
        f"runs and {plan.node_bytes / 1e9:.1f} GB on the others{fits}"
    )
