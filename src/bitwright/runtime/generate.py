"""Write text with a causal language model, piece by piece."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from bitwright.errors import InputError

# A tokenizer writes this sign where the bytes of a character are not all there yet.
_UNFINISHED = "\N{REPLACEMENT CHARACTER}"


def generate(
    model: nn.Module,
    tokenizer: Any,
    prompt: str,
    max_new_tokens: int = 64,
    seed: int = 0,
    temperature: float = 0.0,
) -> Iterator[str]:
    """Yield the continuation of ``prompt`` in pieces of text as tokens are drawn.

    Args:
        model: a causal language model of transformers; its own cache is used (a quantized one where it has that).
        tokenizer: a tokenizer of transformers.
        max_new_tokens: upper limit; the end token or a full context ends earlier.
        seed: of the random draws. temperature: 0 takes the likeliest token, else logits are divided by it.

    Raises:
        InputError: for an empty prompt, one that fills the context, or a wrong number.
    """
    if max_new_tokens < 1 or not 0 <= temperature < float("inf"):
        raise InputError("the number of new tokens must be at least 1 and the temperature at least 0; correct them")
    ids = list(tokenizer(prompt)["input_ids"])
    room = _room(model, len(ids))
    if not ids:
        raise InputError("the prompt has no tokens; give at least one word")
    if room < 1:
        raise InputError(f"the prompt of {len(ids)} tokens fills the context of the model; shorten it")
    ends = _end_tokens(model, tokenizer)
    return _pieces(model, tokenizer, ids, min(max_new_tokens, room), seed, temperature, ends)


def _pieces(
    model: nn.Module, tokenizer: Any, ids: list[int], count: int, seed: int, temperature: float, ends: frozenset[int]
) -> Iterator[str]:
    """Decode the whole continuation at every step and yield what is new, so that spaces come out right."""
    written: list[int] = []
    shown = 0
    for token in draw_tokens(model, torch.tensor([ids]), count, seed, temperature):
        if token in ends:
            break
        written.append(token)
        text: str = tokenizer.decode([*ids, *written], skip_special_tokens=True)
        start = len(tokenizer.decode(ids, skip_special_tokens=True))
        if not text.endswith(_UNFINISHED) and len(text) - start > shown:
            yield text[start + shown :]
            shown = len(text) - start


def draw_tokens(model: nn.Module, ids: Tensor, count: int, seed: int = 0, temperature: float = 0.0) -> Iterator[int]:
    """Yield ``count`` token ids that continue ``ids[1, tokens]``."""
    device = next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    random = torch.Generator().manual_seed(seed)
    step, cache = ids.to(device), None
    for _ in range(count):
        with torch.no_grad():
            options: dict[str, Any] = {} if cache is None else {"past_key_values": cache}
            output = model(input_ids=step, use_cache=True, **options)
        cache = output.past_key_values
        token = _choose(output.logits[0, -1].float().cpu(), temperature, random)
        yield token
        step = torch.tensor([[token]], device=device)


def _choose(logits: Tensor, temperature: float, random: torch.Generator) -> int:
    if temperature == 0:
        return int(logits.argmax())
    return int(torch.multinomial(torch.softmax(logits / temperature, dim=-1), 1, generator=random))


def _room(model: nn.Module, tokens: int) -> int:
    """New tokens that fit into the context after a prompt."""
    limit = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    return int(limit) - tokens if isinstance(limit, int) else 1 << 30


def _end_tokens(model: nn.Module, tokenizer: Any) -> frozenset[int]:
    """Ids that end a text, of the tokenizer and of the model's generation settings."""
    found: set[int] = set()
    for owner in (tokenizer, getattr(model, "generation_config", None)):
        given = getattr(owner, "eos_token_id", None)
        found.update([given] if isinstance(given, int) else given or [])
    return frozenset(found)
