"""Write text with a causal language model, piece by piece."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from bitwright.errors import InputError
from bitwright.runtime.continuation import Wish, continuation
from bitwright.runtime.decoder import Decoder, ModuleDecoder
from bitwright.runtime.sampling import Sampling

GREEDY = Sampling()


def generate(
    model: nn.Module,
    tokenizer: Any,
    prompt: str,
    max_new_tokens: int = 64,
    sampling: Sampling = GREEDY,
    stop: Sequence[str] = (),
    decoder: Decoder | None = None,
) -> Iterator[str]:
    """Yield the continuation of ``prompt`` in pieces of text as tokens are drawn.

    Args:
        model: a causal language model of transformers; its own cache is used (a quantized one where it has that).
        tokenizer: a tokenizer of transformers.
        max_new_tokens: upper limit; the end token, a stop string or a full context ends earlier.
        sampling: how tokens are drawn; the likeliest ones if not given.
        stop: strings that end the text; they are not part of it.
        decoder: what reads and continues the prompt; one over ``model`` if not given.

    Raises:
        InputError: for an empty prompt, one that fills the context, or a wrong number.
    """
    if max_new_tokens < 1:
        raise InputError(f"the number of new tokens must be at least 1, not {max_new_tokens}; correct it")
    ids = tuple(tokenizer(prompt)["input_ids"])
    if not ids:
        raise InputError("the prompt has no tokens; give at least one word")
    decoder = ModuleDecoder(model) if decoder is None else decoder
    if decoder.context is not None and len(ids) >= decoder.context:
        raise InputError(f"the prompt has {len(ids)} tokens and the model's context {decoder.context}; shorten it")
    wish = Wish(ids, max_new_tokens, sampling, end_tokens(model, tokenizer), tuple(stop))
    decoder.crop(0)
    return (piece.text for piece in continuation(decoder, tokenizer, wish) if piece.text)


def end_tokens(model: nn.Module, tokenizer: Any) -> frozenset[int]:
    """Ids that end a text, of the tokenizer and of the model's generation settings."""
    found: set[int] = set()
    for owner in (tokenizer, getattr(model, "generation_config", None)):
        given = getattr(owner, "eos_token_id", None)
        found.update([given] if isinstance(given, int) else given or [])
    return frozenset(found)
