"""How fast a language model reads a prompt and writes new tokens."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from bitwright.data.seeds import stream
from bitwright.errors import InputError
from bitwright.evaluation.logits import device_of, dtype_text, evaluating


@dataclass(frozen=True)
class GenerationSpeed:
    """Tokens per second, best of the repeats (other load on the machine can only slow a run down)."""

    tokens_per_second: float
    prefill_tokens_per_second: float
    prompt: int
    new_tokens: int
    batch: int
    threads: int
    repeats: int
    protocol: str


def generation_speed(
    module: nn.Module,
    vocabulary: int,
    prompt: int = 128,
    new_tokens: int = 64,
    batch: int = 1,
    repeats: int = 3,
    seed: int = 0,
    cache_factory: Callable[[], Any] | None = None,
) -> GenerationSpeed:
    """Time greedy generation of a causal language model of transformers on a random prompt.

    Args:
        vocabulary: prompt ids are drawn below it.
        prompt, new_tokens, batch: sizes of the run; ``new_tokens`` forward passes of one token follow the prompt.
        cache_factory: makes the ``past_key_values`` object (None: the model's own).

    Raises:
        InputError: if a size is not positive.
    """
    if min(prompt, new_tokens, batch, repeats, vocabulary) < 1:
        raise InputError("prompt, new tokens, batch, repeats and vocabulary must be at least 1; raise them")
    ids = torch.randint(0, vocabulary, (batch, prompt), generator=stream(seed, "speed")).to(device_of(module))
    with evaluating(module):
        _once(module, ids, min(2, new_tokens), cache_factory)  # first call: lazy allocation, kernel choice
        times = [_once(module, ids, new_tokens, cache_factory) for _ in range(repeats)]
    prefill, decode = min(t[0] for t in times), min(t[1] for t in times)
    return GenerationSpeed(
        tokens_per_second=batch * new_tokens / decode,
        prefill_tokens_per_second=batch * prompt / prefill,
        prompt=prompt,
        new_tokens=new_tokens,
        batch=batch,
        threads=torch.get_num_threads(),
        repeats=repeats,
        protocol=(
            f"greedy, batch {batch}, random prompt of {prompt} tokens (seed {seed}), {new_tokens} new tokens, best of "
            f"{repeats}, {torch.get_num_threads()} threads, {dtype_text(module)}"
        ),
    )


class Reader(Protocol):
    """One sequence that is read token by token (a decoder of the runtime)."""

    def start(self, ids: Sequence[int]) -> Tensor:
        """Forget everything, read ``ids``, return ``logits[vocabulary]``."""
        ...

    def step(self, token: int) -> Tensor:
        """Read one more token."""
        ...


def decoder_speed(
    reader: Reader, vocabulary: int, prompt: int = 128, new_tokens: int = 64, repeats: int = 3, seed: int = 0
) -> GenerationSpeed:
    """Time greedy generation with a decoder, as :func:`generation_speed` does with a module (batch 1).

    Raises:
        InputError: if a size is not positive.
    """
    if min(prompt, new_tokens, repeats, vocabulary) < 1:
        raise InputError("prompt, new tokens, repeats and vocabulary must be at least 1; raise them")
    ids = torch.randint(0, vocabulary, (prompt,), generator=stream(seed, "speed")).tolist()
    _read(reader, ids, min(2, new_tokens))
    times = [_read(reader, ids, new_tokens) for _ in range(repeats)]
    prefill, decode = min(t[0] for t in times), min(t[1] for t in times)
    return GenerationSpeed(
        tokens_per_second=new_tokens / decode,
        prefill_tokens_per_second=prompt / prefill,
        prompt=prompt,
        new_tokens=new_tokens,
        batch=1,
        threads=torch.get_num_threads(),
        repeats=repeats,
        protocol=(
            f"greedy, batch 1, random prompt of {prompt} tokens (seed {seed}), {new_tokens} new tokens, best of "
            f"{repeats}, {torch.get_num_threads()} threads, compiled step"
        ),
    )


def _read(reader: Reader, ids: Sequence[int], new_tokens: int) -> tuple[float, float]:
    started = time.perf_counter()
    token = int(reader.start(ids).argmax())
    read = time.perf_counter()
    for _ in range(new_tokens):
        token = int(reader.step(token).argmax())
    return read - started, time.perf_counter() - read


def _once(
    module: nn.Module, ids: Tensor, new_tokens: int, cache_factory: Callable[[], Any] | None
) -> tuple[float, float]:
    cache = None if cache_factory is None else cache_factory()
    started = _clock(ids)
    output = module(input_ids=ids, past_key_values=cache, use_cache=True)
    token = output.logits[:, -1:].argmax(-1)
    read = _clock(ids)
    for _ in range(new_tokens):
        output = module(input_ids=token, past_key_values=output.past_key_values, use_cache=True)
        token = output.logits[:, -1:].argmax(-1)
    return read - started, _clock(ids) - read


def _clock(ids: Tensor) -> float:
    if ids.is_cuda:
        torch.cuda.synchronize(ids.device)
    return time.perf_counter()
