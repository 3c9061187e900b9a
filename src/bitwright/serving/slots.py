"""Prompt cache: decoders that have answered are kept, and read only what is new in a prompt that begins the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bitwright.runtime.decoder import Decoder, Decoders

MOST = 32
"""Decoders that are kept; a prompt is compared with each."""


@dataclass(frozen=True)
class Kept:
    """A decoder that nobody uses, the tokens that it holds, and whose they are."""

    decoder: Decoder
    ids: tuple[int, ...]
    bytes: int
    owner: str = ""


class Slots:
    """Kept decoders within ``limit`` bytes; the one that was used least lately goes first. For one thread."""

    def __init__(self, make: Decoders, limit: int) -> None:
        self._make = make
        self._limit = limit
        self._kept: list[Kept] = []

    def take(self, ids: Sequence[int], owner: str = "") -> tuple[Decoder, int]:
        """A decoder for the prompt ``ids``, and how many tokens at its beginning it has read already for this owner.

        One token at least is left to read: its logits are wanted. A kept decoder that shares less than half of what it
        holds, and of the prompt, stays as it is.
        """
        own = (kept for kept in self._kept if kept.owner == owner)
        best = max(own, key=lambda kept: common(kept.ids, ids), default=None)
        shared = 0 if best is None else min(common(best.ids, ids), len(ids) - 1)
        if best is None or shared == 0 or 2 * shared < min(len(best.ids), len(ids)):
            return self._make(), 0
        self._kept.remove(best)
        left = best.decoder.crop(shared)
        return best.decoder, left

    def give(self, decoder: Decoder, ids: Sequence[int], owner: str = "") -> None:
        """Keep a decoder that holds ``ids``, where it can go back and there is room; else its memory is given back."""
        size = decoder.bytes()
        if decoder.piece is None or decoder.tokens == 0 or size > self._limit:
            decoder.crop(0)
            return
        self._kept.append(Kept(decoder, tuple(ids[: decoder.tokens]), size, owner))
        while len(self._kept) > MOST or self.bytes > self._limit:
            self._kept.pop(0).decoder.crop(0)

    @property
    def bytes(self) -> int:
        """Bytes of all kept decoders."""
        return sum(kept.bytes for kept in self._kept)

    def clear(self) -> None:
        """Give all memory back."""
        while self._kept:
            self._kept.pop().decoder.crop(0)


def common(first: Sequence[int], second: Sequence[int]) -> int:
    """Length of the longest beginning that two sequences share."""
    return next(
        (place for place, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )
