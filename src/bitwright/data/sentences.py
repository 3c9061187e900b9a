"""Sentences as inputs of an encoder: the tokenizer's own special tokens, cut, padded on the right."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from bitwright.data.tokenizing import Tokenizer, check_length
from bitwright.data.tokens import TokenData, token_data
from bitwright.errors import InputError


def sentence_tokens(
    tokenizer: Tokenizer, texts: Sequence[str], length: int = 256, source: str = "sentences"
) -> TokenData:
    """Tokenise each text with special tokens, at most ``length`` tokens; nothing is scored (calibrates encoders).

    Raises:
        InputError: if there is no text.
    """
    check_length(length)
    if not texts:
        raise InputError("there is no sentence to tokenise; give at least one")
    rows = tokenizer(list(texts), truncation=True, max_length=length)["input_ids"]
    mark = hashlib.sha256("\0".join(texts).encode()).hexdigest()[:12]
    protocol = f"{len(rows)} sentences of {source} ({mark}), special tokens added, cut at {length} tokens"
    return token_data(rows, source, protocol, score_from=None)
