"""What the data code asks of a tokenizer, and how special tokens at the start are found."""

from __future__ import annotations

from typing import Any, Protocol

from bitwright.errors import InputError


class Tokenizer(Protocol):
    """The part of a transformers tokenizer that is used: called with texts, it returns ``input_ids``."""

    bos_token_id: int | None
    eos_token_id: int | None

    def __call__(self, text: Any, **options: Any) -> Any: ...

    def __len__(self) -> int: ...


def encode(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    """Return the ids of each text without special tokens."""
    ids = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    return [list(row) for row in ids]


def begin_tokens(tokenizer: Tokenizer) -> list[int]:
    """Return ``[BOS]`` where the tokenizer has one, otherwise an empty list."""
    return [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]


def check_length(length: int) -> None:
    """Raise :class:`InputError` for a context in which nothing can be predicted."""
    if length < 2:
        raise InputError(f"a context of {length} tokens leaves nothing to predict; use 2 or more")
