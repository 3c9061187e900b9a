"""``bitwright serve``: a model behind OpenAI's HTTP interface."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bitwright.cli.options import Exact, Json, NoNative, Threads, use_threads
from bitwright.cli.output import Output
from bitwright.errors import InputError

if TYPE_CHECKING:
    from bitwright.jobs.opened_model import RunnableModel
    from bitwright.serving.engine import Limits
    from bitwright.serving.served import Served


def command(
    model: Annotated[str, typer.Argument(help="Folder of a language model, or `zoo`.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.", min=0, max=65535)] = 8000,
    name: Annotated[str, typer.Option(help="What clients call the model; the folder's name if not given.")] = "",
    api_key: Annotated[
        str | None, typer.Option(help="Key that clients must send; other users of the machine can see it here.")
    ] = None,
    api_key_file: Annotated[Path | None, typer.Option(help="File with one key per line.")] = None,
    no_api_key: Annotated[bool, typer.Option("--no-api-key", help="Let everybody ask who reaches --host.")] = False,
    origin: Annotated[
        list[str] | None, typer.Option(help="Web page that may ask (CORS), e.g. https://example.org; may be repeated.")
    ] = None,
    parallel: Annotated[int, typer.Option(help="Answers that run together.", min=1, max=64)] = 4,
    queue: Annotated[int, typer.Option(help="Requests that may wait.", min=0, max=4096)] = 32,
    max_prompt: Annotated[int, typer.Option(help="Most tokens of a prompt; 0: the context.", min=0)] = 0,
    max_tokens: Annotated[int, typer.Option(help="Most new tokens of an answer.", min=1)] = 4096,
    max_body: Annotated[str, typer.Option(help="Largest body of a request.")] = "4MB",
    time_limit: Annotated[float, typer.Option(help="Seconds for one answer, waiting included.", min=0.1)] = 600.0,
    grace: Annotated[float, typer.Option(help="Seconds for running answers at the end.", min=0.0, max=3600)] = 30.0,
    prompt_cache: Annotated[str, typer.Option(help="Memory for beginnings of prompts; 0MB: none.")] = "512MB",
    share_prompt_cache: Annotated[
        bool, typer.Option("--share-prompt-cache", help="Let clients with different keys share beginnings of prompts.")
    ] = False,
    unpack: Annotated[
        bool, typer.Option("--unpack", help="Keep float copies of the weights: for formats that no fast kernel serves.")
    ] = False,
    exact: Exact = False,
    no_native: NoNative = False,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Answer completions and chats over HTTP until SIGTERM or SIGINT; needs the extra `serve`."""
    _need("starlette", "uvicorn")
    from bitwright.jobs.command import size
    from bitwright.jobs.opened_model import open_runnable
    from bitwright.runtime.native_decoder import find_decoders
    from bitwright.serving.app import Api, Door
    from bitwright.serving.engine import Engine, Limits
    from bitwright.serving.keys import check_open, read_keys
    from bitwright.serving.server import bind, is_local, serve

    with Output(json) as out:
        use_threads(threads)
        keys = read_keys(api_key, api_key_file)
        limits = Limits(parallel, queue, time_limit, size(prompt_cache))
        bound = bind(host, port)
        with bound:
            check_open(is_local(bound), keys, no_api_key)
            door = Door(
                keys, is_local(bound) and not no_api_key, size(max_body), tuple(origin or ()), share_prompt_cache
            )
            opened = open_runnable(model, cache_weights=unpack, exact=exact)
            decoders = find_decoders(opened.module, native=not (no_native or unpack)).decoders
            served = _served(opened, name, decoders().context, max_prompt, max_tokens)
            with Engine(decoders, opened.tokenizer(), limits) as engine:
                api = Api(engine, served, door)
                serve(api.app(), bound, engine, grace, lambda url: _tell(out, url, served, limits, bool(keys)))
                api.close()


def _need(*modules: str) -> None:
    from importlib.util import find_spec

    for module in modules:
        if find_spec(module) is None:
            raise InputError(f"serving needs {module}; run: pip install 'bitwright[serve]'")


def _served(opened: RunnableModel, name: str, context: int | None, max_prompt: int, max_tokens: int) -> Served:
    """What the server knows of the model; the tokenizer is another one than the engine's, which has its own thread."""
    from bitwright.runtime.generate import end_tokens
    from bitwright.serving.served import Served

    tokenizer = opened.tokenizer()
    vocabulary = getattr(getattr(opened.module, "config", None), "vocab_size", None)
    return Served(
        name=name or Path(opened.name).name or opened.name,
        tokenizer=tokenizer,
        ends=end_tokens(opened.module, tokenizer),
        context=context,
        vocabulary=vocabulary if isinstance(vocabulary, int) else 0,
        most_prompt=max_prompt or context or 1 << 30,
        most_tokens=max_tokens if context is None else min(max_tokens, context),
    )


def _tell(out: Output, url: str, served: Served, limits: Limits, keys: bool) -> None:
    """Say where the server is, as soon as it can be reached."""
    out.result({"url": url, "base_url": f"{url}/v1", "model": served.name, "context": served.context, "key": keys})
    out.show(f"{served.name} answers at {url}/v1 ({limits.parallel} at once, {limits.queue} waiting); Ctrl-C ends it")
