"""``bitwright generate``: text from a model, as it is drawn."""

from __future__ import annotations

from typing import Annotated

import typer

from bitwright.cli.options import Exact, Json, NoNative, Seed, Threads, use_threads
from bitwright.cli.output import Output


def command(
    model: Annotated[str, typer.Argument(help="Folder of a language model, or `zoo`.")],
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="Text to continue.")],
    tokens: Annotated[int, typer.Option("--tokens", "-n", help="Most new tokens.", min=1)] = 64,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.", min=0.0)] = 0.0,
    top_k: Annotated[int, typer.Option(help="Draw from so many of the likeliest tokens; 0: all.", min=0)] = 0,
    top_p: Annotated[float, typer.Option(help="Draw from the likeliest tokens that have this probability.")] = 1.0,
    min_p: Annotated[float, typer.Option(help="Draw tokens this many times as likely as the likeliest.")] = 0.0,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1 makes what was said less likely.")] = 1.0,
    presence_penalty: Annotated[float, typer.Option(help="Taken from the logits of tokens of the answer.")] = 0.0,
    frequency_penalty: Annotated[float, typer.Option(help="The same, for each time they were drawn.")] = 0.0,
    stop: Annotated[list[str] | None, typer.Option(help="A string that ends the text; may be repeated.")] = None,
    exact: Exact = False,
    seed: Seed = 0,
    no_native: NoNative = False,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Continue a prompt; a quantized model runs on its packed weights and cache."""
    from bitwright.jobs.opened_model import open_decoding
    from bitwright.runtime.generate import generate
    from bitwright.runtime.native_decoder import find_decoders
    from bitwright.runtime.sampling import Sampling

    with Output(json) as out:
        use_threads(threads)
        sampling = Sampling(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty,
            seed=seed,
        )
        opened = open_decoding(model, exact=exact)
        found = find_decoders(opened.module, native=not no_native)
        pieces = []
        read = found.decoders()
        for piece in generate(opened.module, opened.tokenizer(), prompt, tokens, sampling, stop or (), read):
            pieces.append(piece)
            out.console.print(piece, end="", markup=False, highlight=False)
        out.console.print()
        result = {"model": model, "prompt": prompt, "text": "".join(pieces)}
        out.result(result | {"decoder": "native" if found.native else "modules", "decoder_reason": found.reason})
