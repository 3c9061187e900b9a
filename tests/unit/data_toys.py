"""A tokenizer small enough to check by eye: one token per character."""

from __future__ import annotations

from collections.abc import Sequence

BOS, EOS, SPECIAL = 1, 2, 3


class LetterTokenizer:
    """Ids are 3 + the character's code below 125; ``begin`` and ``end`` are the special tokens (None: has none)."""

    def __init__(self, begin: int | None = BOS, end: int | None = None) -> None:
        self.bos_token_id = begin
        self.eos_token_id = end

    def __len__(self) -> int:
        return 128

    def __call__(
        self,
        text: Sequence[str],
        add_special_tokens: bool = True,
        truncation: bool = False,
        max_length: int | None = None,
        verbose: bool = True,
    ) -> dict[str, list[list[int]]]:
        del verbose
        start = [self.bos_token_id] if add_special_tokens and self.bos_token_id is not None else []
        rows = [start + [SPECIAL + ord(c) % 125 for c in t] for t in text]
        return {"input_ids": [r[:max_length] if truncation else r for r in rows]}

    def decode(self, ids: Sequence[int]) -> str:
        """The characters, special tokens as ``^`` and ``$``."""
        return "".join({BOS: "^", EOS: "$"}.get(i, chr(i - SPECIAL) if i >= SPECIAL else "?") for i in ids)
