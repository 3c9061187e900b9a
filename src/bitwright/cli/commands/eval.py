"""``bitwright eval``: measure one model, printing the protocol with the number."""

from __future__ import annotations

from typing import Annotated

import typer

from bitwright.cli.options import Json, Threads, use_threads
from bitwright.cli.output import Output


def command(
    model: Annotated[str, typer.Argument(help="Folder of a float or quantized model, or `zoo`, `zoo:digits`.")],
    against: Annotated[str, typer.Option("--against", help="Float model to compare with (KL, top-1 agreement).")] = "",
    task: Annotated[str, typer.Option("--task", help="perplexity, kl or accuracy.")] = "",
    data: Annotated[str, typer.Option("--data", help="Text file, jsonl, token ids, `zoo` or `zoo:heldout`.")] = "",
    count: Annotated[int, typer.Option("--count", help="Sequences or images; all if 0.", min=0)] = 0,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Measure a model; the protocol is printed with every number."""
    from bitwright.jobs.evaluate import evaluate

    with Output(json) as out:
        use_threads(threads)
        result = evaluate(model, against, task, data, count or None)
        out.result(result)
        rows = [
            (key, result[key])
            for key in ("metric", "value", "kl", "top1_agreement", "bits_per_weight", "bytes")
            if key in result
        ]
        out.table(["", ""], rows, title=model, note=str(result["protocol"]))
