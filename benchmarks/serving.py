"""Tokens per second of a server with 1, 2, 4 and 8 clients: steps of answers together, and one after the other.

    python -m benchmarks.serving --work DIR [--out benchmarks/results/serving.json]

A random Llama of 100 million weights in int4 g128 is served on loopback; clients of OpenAI's library run in a process
of their own and stream greedy answers of 64 tokens. Both ways run in one process, in alternation, on the same weights;
the second gives the engine decoders without a common step, as it was before there was one. ``steps`` are the same
steps without server and clients.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.random_llama import Shape, write_checkpoint

SHAPE = Shape(layers=14, hidden=768, mlp=2048, vocabulary=1024, heads=12, key_heads=12, tied=True)
CLIENTS = (1, 2, 4, 8)
TOKENS, ROUNDS = 64, 2
PROMPT = "def main(arguments):\n    for name in arguments:"


def prepare(work: Path) -> Path:
    """The quantized folder, with the tokenizer of the embedded model."""
    import bitwright as bw
    from bitwright.jobs.request import model_source

    source, out = work / "float", work / "int4"
    if not out.is_dir():
        write_checkpoint(source, SHAPE)
        for file in Path(str(model_source("zoo"))).glob("*token*"):
            shutil.copy(file, source)
        bw.plan(str(source), "rtn", weights="int4 g128").run(str(out))
    return out


@contextmanager
def served(tokenizer: Any, decoders: Any) -> Iterator[str]:
    """An application on a free port of loopback; its address."""
    from bitwright.serving.app import Api, Door
    from bitwright.serving.engine import Engine, Limits
    from bitwright.serving.served import Served
    from bitwright.serving.server import bind, serve

    known = Served("model", tokenizer, frozenset(), 2048, SHAPE.vocabulary, 2047, 2048)
    found: list[str] = []
    ready = threading.Event()

    def tell(url: str) -> None:
        found.append(url)
        ready.set()

    bound = bind("127.0.0.1", 0)
    with Engine(decoders, tokenizer, Limits(parallel=max(CLIENTS), cache_bytes=0)) as engine:
        api = Api(engine, known, Door())
        thread = threading.Thread(target=serve, args=(api.app(), bound, engine, 1.0, tell), daemon=True)
        thread.start()
        ready.wait(timeout=60)
        yield found[0]
        engine.drain(0.0)
        api.close()


def ask(url: str, clients: int) -> float:
    """Tokens per second of all clients together, told by a process of its own."""
    command = [sys.executable, "-m", "benchmarks.serving", "--client", url, "--clients", str(clients)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def client(url: str, clients: int) -> float:
    """Stream answers; one unmeasured answer of every client comes first."""
    from openai import OpenAI

    def one(number: int, rounds: int) -> int:
        with OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as found:
            drawn = 0
            for _ in range(rounds):
                for event in found.completions.create(
                    model="model", prompt=f"{PROMPT} {number}", max_tokens=TOKENS, temperature=0, stream=True,
                    stream_options={"include_usage": True},
                ):  # fmt: skip
                    drawn += event.usage.completion_tokens if event.usage else 0
            return drawn

    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(lambda number: one(number, 1), range(clients)))
        start = time.perf_counter()
        drawn = sum(pool.map(lambda number: one(number, ROUNDS), range(clients)))
        return drawn / (time.perf_counter() - start)


def bare(network: Any, sequences: int, together: bool, steps: int = 48) -> float:
    """Tokens per second of steps of some sequences, without a server."""
    from bitwright.runtime.native_decoder import NativeDecoder

    decoders = [NativeDecoder(network) for _ in range(sequences)]
    for place, decoder in enumerate(decoders):
        decoder.start([1 + place, 2, 3, 4])
    start = time.perf_counter()
    for step in range(steps):
        if together:
            NativeDecoder.step_together(decoders, [5 + step] * sequences)
        else:
            for decoder in decoders:
                decoder.step(5 + step)
    return steps * sequences / (time.perf_counter() - start)


def measure(work: Path, repeats: int) -> dict[str, Any]:
    """Both ways in alternation, for every number of clients."""
    from bitwright.jobs.opened_model import open_runnable
    from bitwright.machine import processor
    from bitwright.runtime.native_decoder import NativeDecoder
    from bitwright.runtime.native_decoder.build import build
    from bitwright.runtime.native_decoder.cache import cache_of
    from bitwright.runtime.native_decoder.read import read_plan

    class Alone(NativeDecoder):
        step_together = None  # type: ignore[assignment]

    opened = open_runnable(str(prepare(work)), cache_weights=False, exact=False)
    # Not proved against the modules here: random weights of 14 layers carry a flipped 8-bit code to the logits.
    plan = read_plan(opened.module)
    network = build(plan, cache_of(opened.module, plan.head_dim))
    rows = []
    ways = {"together": lambda: NativeDecoder(network), "one after the other": lambda: Alone(network)}
    for clients in CLIENTS:
        speeds: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(repeats):
            for way, make in ways.items():
                with served(opened.tokenizer(), make) as url:
                    speeds[way].append(ask(url, clients))
        for way, values in speeds.items():
            best, median = max(values), statistics.median(values)
            rows.append({"clients": clients, "way": way, "tokens_per_second": best, "median": median})
    steps = []
    for count in CLIENTS:
        pairs = [(bare(network, count, together=True), bare(network, count, together=False)) for _ in range(5)]
        both, apart = (max(values) for values in zip(*pairs, strict=True))
        steps.append({"sequences": count, "together": both, "one after the other": apart})
    commit = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True).stdout.strip()
    return {
        "commit": commit, "date": datetime.date.today().isoformat(), "load": round(os.getloadavg()[0], 2),
        "processor": processor().name,
        "model": "random Llama, 100 million weights, int4 g128, tied head in bf16", "answer_tokens": TOKENS,
        "threads": torch.get_num_threads(),
        "protocol": f"greedy, streamed over loopback by the official client; {repeats} runs in alternation, best and "
        "median; the clients' process shares the machine's cores",
        "rows": rows, "steps": steps,
    }  # fmt: skip


def main() -> None:
    """Measure, or be a client."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--client", default="")
    parser.add_argument("--clients", type=int, default=1)
    given = parser.parse_args()
    if given.client:
        sys.stdout.write(str(client(given.client, given.clients)))
        return
    found = measure(given.work, given.repeats)
    text = json.dumps(found, indent=1)
    if given.out:
        given.out.write_text(text + "\n", encoding="utf-8")
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
