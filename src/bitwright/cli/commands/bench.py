"""``bitwright bench``: tokens per second beside the machine's memory bandwidth."""

from __future__ import annotations

from typing import Annotated

import typer

from bitwright.cli.options import Exact, Json, NoNative, Threads, use_threads
from bitwright.cli.output import Output


def command(
    model: Annotated[str, typer.Argument(help="Folder of a language model, or `zoo`.")],
    prompt: Annotated[int, typer.Option(help="Prompt tokens.", min=1)] = 128,
    tokens: Annotated[int, typer.Option(help="New tokens.", min=1)] = 64,
    repeats: Annotated[int, typer.Option(help="Repetitions; the best is shown.", min=1)] = 3,
    exact: Exact = False,
    no_native: NoNative = False,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Measure decoding and prefill on the kernels that serve the model."""
    from bitwright.jobs.opened_model import open_runnable
    from bitwright.runtime.bench import bench

    with Output(json) as out:
        use_threads(threads)
        module = open_runnable(model, cache_weights=False, exact=exact).module
        result = bench(module, prompt, tokens, repeats, native=not no_native)
        out.result(result)
        out.table(
            ["", ""], [(k, v) for k, v in result.items() if k != "protocol"], title=model, note=str(result["protocol"])
        )
