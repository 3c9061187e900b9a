"""``bitwright claims run``: re-measure what the recipes promise."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bitwright.cli.options import Assets, Cluster, Json, Threads, use_threads
from bitwright.cli.output import Output

if TYPE_CHECKING:
    from bitwright.claims.run import ClaimResult

app = typer.Typer(add_completion=False, help="Measure the recipes' claims and show the ledger.", no_args_is_help=True)


@app.command("run")
def run(
    names: Annotated[list[str] | None, typer.Argument(help="Recipes; with --all every one that has a claim.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Run every claim.")] = False,
    assets: Assets = None,
    quick: Annotated[bool, typer.Option("--quick", help="Small data; for tests, never for the ledger.")] = False,
    ledger: Annotated[Path | None, typer.Option("--ledger", help="Ledger file to update.")] = None,
    threads: Threads = None,
    cluster: Cluster = "",
    json: Json = False,
) -> None:
    """Measure claims on their assets; exit code 1 if one fails."""
    from bitwright.claims.ledger import read_ledger, write_ledger
    from bitwright.claims.run import run_claims
    from bitwright.errors import CheckError, InputError
    from bitwright.jobs.workers import open_workers
    from bitwright.recipes import all_recipes

    with Output(json) as out:
        threads_used = use_threads(threads)
        chosen = [i.name for i in all_recipes() if i.claim is not None] if everything else list(names or [])
        if not chosen:
            raise InputError("name the recipes whose claims to run, or give --all")
        if quick and ledger is not None:
            raise InputError("--quick measures too little for a ledger; leave one of the two out")
        results = []
        with open_workers(cluster, threads_used) as workers:
            for result in run_claims(chosen, assets, quick, out.show, workers):
                results.append(result)
                rows = [(c.text, c.measured, c.baseline, "pass" if c.passed else "FAIL") for c in result.checks]
                out.table(["check", "measured", "baseline", "verdict"], rows, title=f"{result.name}: {result.verdict}")
                if ledger is not None:
                    claims = read_ledger(ledger)
                    claims[result.name] = {**result.as_json(), "threads": threads_used}
                    write_ledger(ledger, claims)
        out.result([_row(r) for r in results])
    failed = [r.name for r in results if r.verdict != "pass"]
    if failed:
        raise CheckError(f"{len(failed)} of {len(results)} claims fail: {', '.join(failed)}")


def _row(result: ClaimResult) -> dict[str, object]:
    """The keys of the ledger; ``measured``, ``baseline`` and ``bits`` are those of the first check."""
    first = result.checks[0]
    bits = next(iter(result.measurements.values()), {}).get("bits")
    return {**result.as_json(), "measured": first.measured, "baseline": first.baseline, "bits": bits}


@app.command("show")
def show(
    ledger: Annotated[Path, typer.Option("--ledger", help="Ledger file.")] = Path("claims/ledger.jsonl"),
    json: Json = False,
) -> None:
    """Print the ledger."""
    from bitwright.claims.ledger import read_ledger

    with Output(json) as out:
        claims = read_ledger(ledger)
        out.result(list(claims.values()))
        rows = [
            (claim["name"], c["text"], c["measured"], c["baseline"], "pass" if c["passed"] else "FAIL")
            for claim in claims.values()
            for c in claim["checks"]
        ]
        out.table(["recipe", "check", "measured", "baseline", "verdict"], rows)
