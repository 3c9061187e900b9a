"""``bitwright generate``: text from a model, as it is drawn."""

from __future__ import annotations

from typing import Annotated

import typer

from bitwright.cli.options import Json, Seed, Threads, use_threads
from bitwright.cli.output import Output


def command(
    model: Annotated[str, typer.Argument(help="Folder of a language model, or `zoo`.")],
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="Text to continue.")],
    tokens: Annotated[int, typer.Option("--tokens", "-n", help="Most new tokens.", min=1)] = 64,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.", min=0.0)] = 0.0,
    seed: Seed = 0,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Continue a prompt; a quantized model runs on its packed weights and cache."""
    from bitwright.jobs.opened_model import open_runnable
    from bitwright.runtime.generate import generate

    with Output(json) as out:
        use_threads(threads)
        opened = open_runnable(model)
        pieces = []
        for piece in generate(opened.module, opened.tokenizer(), prompt, tokens, seed, temperature):
            pieces.append(piece)
            out.console.print(piece, end="", markup=False, highlight=False)
        out.console.print()
        out.result({"model": model, "prompt": prompt, "text": "".join(pieces)})
