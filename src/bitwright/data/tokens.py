"""Token sequences with what is real, what is scored, where they came from, and how to cut them into batches."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bitwright.errors import InputError


@dataclass(frozen=True, eq=False)
class TokenData:
    """Sequences of token ids, padded on the right.

    Attributes:
        ids: ``[sequences, length]`` int64; padding holds 0.
        mask: ``[sequences, length]`` bool, true on real tokens (always a prefix of the row).
        scored: ``[sequences, length]`` bool, true on the tokens whose prediction from the tokens before them is
            measured; the first column is always false. All false for data that only calibrates encoders.
        source: where the tokens come from (file name, ``zoo``, ``self``, ``texts``).
        protocol: one line for people: data set, split, tokenisation, context, stride, seed, number of tokens.
        sha256: hash of the lengths, ids and scored flags; equal hashes mean equal measurements.

    Raises:
        InputError: on empty or misshapen data.
    """

    ids: Tensor
    mask: Tensor
    scored: Tensor
    source: str
    protocol: str
    sha256: str

    def __post_init__(self) -> None:
        if self.ids.ndim != 2 or self.ids.dtype != torch.int64 or self.ids.numel() == 0:
            raise InputError(f"{self.source}: token ids are not a filled int64 matrix [sequences, length]; give some")
        if self.mask.shape != self.ids.shape or self.scored.shape != self.ids.shape:
            raise InputError(f"{self.source}: masks and token ids differ in shape; give one flag per token")
        lengths = self.mask.sum(1)
        prefix = torch.arange(self.ids.shape[1])[None, :] < lengths[:, None]
        if not bool((prefix == self.mask).all()) or int(lengths.min()) == 0:
            raise InputError(f"{self.source}: padding must be on the right and no sequence empty; reorder the tokens")
        if bool((self.scored & ~self.mask).any()) or bool(self.scored[:, 0].any()):
            raise InputError(f"{self.source}: only real tokens after the first can be scored; mend the scored flags")

    def __len__(self) -> int:
        return int(self.ids.shape[0])

    @property
    def lengths(self) -> Tensor:
        """Real tokens of each sequence, int64 ``[sequences]``."""
        return self.mask.sum(1)

    @property
    def tokens(self) -> int:
        """Number of real tokens."""
        return int(self.mask.sum())

    @property
    def scored_tokens(self) -> int:
        """Number of tokens whose prediction is measured."""
        return int(self.scored.sum())

    def check_vocabulary(self, vocabulary: int) -> None:
        """Raise :class:`InputError` if an id does not exist in a vocabulary of that size."""
        low, high = int(self.ids.min()), int(self.ids.max())
        if low < 0 or high >= vocabulary:
            wrong = low if low < 0 else high
            raise InputError(
                f"{self.source}: token id {wrong} is outside the vocabulary of {vocabulary}; "
                "tokenise with this model's own tokenizer"
            )

    def first(self, sequences: int) -> TokenData:
        """Return the first ``sequences`` sequences (all of them where there are fewer)."""
        if sequences < 1:
            raise InputError("a subset needs at least one sequence; ask for 1 or more")
        if sequences >= len(self):
            return self
        width = int(self.lengths[:sequences].max())
        ids, mask, scored = (t[:sequences, :width].clone() for t in (self.ids, self.mask, self.scored))
        protocol = f"{self.protocol}; only the first {sequences} sequences, {int(scored.sum()):,} scored tokens"
        return replace(self, ids=ids, mask=mask, scored=scored, protocol=protocol, sha256=digest(ids, mask, scored))

    def batches(self, batch_size: int = 8) -> Iterator[dict[str, Tensor]]:
        """Yield ``input_ids`` and ``attention_mask``, both int64 ``[batch, length]``, in the order of the data."""
        for start in range(0, len(self), batch_size):
            yield self.batch(torch.arange(start, min(start + batch_size, len(self))))

    def batch(self, rows: Tensor) -> dict[str, Tensor]:
        """Return the model inputs of the sequences ``rows``, cut to the longest of them."""
        width = int(self.lengths[rows].max())
        return {"input_ids": self.ids[rows, :width], "attention_mask": self.mask[rows, :width].long()}

    def plan(self, batch_tokens: int, equal_lengths: bool = False) -> list[Tensor]:
        """Group the sequences by length into batches of at most ``batch_tokens`` tokens, padding counted.

        With ``equal_lengths`` a batch holds sequences of one length only, so that nothing is ever padded (for models
        in which padding could move a result, such as a cache that is quantized in groups of tokens).
        """
        lengths = self.lengths
        order = torch.argsort(lengths, descending=True, stable=True).tolist()
        batches: list[list[int]] = []
        width = 0
        for row in order:
            length = int(lengths[row])
            full = bool(batches) and (len(batches[-1]) + 1) * width > batch_tokens
            if not batches or full or (equal_lengths and length != width):
                batches.append([])
                width = length
            batches[-1].append(row)
        return [torch.tensor(rows) for rows in batches]


def digest(ids: Tensor, mask: Tensor, scored: Tensor) -> str:
    """Return the sha256 over shapes, lengths, real ids and scored flags; padding does not count."""
    state = hashlib.sha256(f"{ids.shape[0]}".encode())
    for part in (mask.sum(1), ids[mask], scored[mask].to(torch.uint8)):
        state.update(part.contiguous().numpy().tobytes())
    return state.hexdigest()


def token_data(
    sequences: Sequence[Tensor | Sequence[int]],
    source: str,
    protocol: str,
    score_from: int | Sequence[int] | None = 1,
    vocabulary: int | None = None,
) -> TokenData:
    """Build :class:`TokenData` from ragged sequences of ids.

    Args:
        sequences: one list or 1-D tensor of ids per sequence.
        score_from: position of the first scored token, one for all or one per sequence; None scores nothing.
        vocabulary: if given, every id must be below it.

    Raises:
        InputError: if there is no sequence, one is empty, or an id is outside the vocabulary.
    """
    rows = [torch.as_tensor(s, dtype=torch.int64).reshape(-1) for s in sequences]
    if not rows or min(len(r) for r in rows) == 0:
        raise InputError(f"{source}: there is an empty sequence or none at all; give at least one token each")
    width = max(len(r) for r in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
    lengths = torch.tensor([len(r) for r in rows])
    position = torch.arange(width)[None, :]
    mask = position < lengths[:, None]
    if score_from is None:
        scored = torch.zeros_like(mask)
    else:
        first = torch.as_tensor(score_from, dtype=torch.int64).reshape(-1, 1)
        scored = mask & (position >= first.clamp(min=1))
    data = TokenData(ids, mask, scored, source, protocol, digest(ids, mask, scored))
    if vocabulary is not None:
        data.check_vocabulary(vocabulary)
    return data
