"""From tokens to text, piece by piece: every token is decoded a bounded number of times, and stop strings are cut."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# A tokenizer writes this sign where the bytes of a character are not all there yet.
_UNFINISHED = "\N{REPLACEMENT CHARACTER}"
# Tokens that are looked at again, so that spaces between words come out right.
_CONTEXT = 6
# A character has at most four bytes: what is not whole after so many tokens never will be.
_PATIENCE = 8


class TextStream:
    """Text of the tokens that follow ``prompt``.

    A few tokens before the new ones are decoded with them: tokenizers write the first token of a text without the
    space before it. The cost of a token does not grow with the text.
    """

    def __init__(self, tokenizer: Any, prompt: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        # Rules for spaces before punctuation would change text that has been given out.
        cleans = getattr(tokenizer, "clean_up_tokenization_spaces", False)
        self._options = {"clean_up_tokenization_spaces": False} if cleans else {}
        self._shown = list(prompt[-_CONTEXT:])
        self._new: list[int] = []

    def push(self, token: int) -> str:
        """Take a token; return the text that it completes, empty where a character is not whole yet."""
        self._new.append(token)
        text = self._text()
        if text.endswith(_UNFINISHED) and len(self._new) < _PATIENCE:
            return ""
        return self._show(text)

    def finish(self) -> str:
        """Text of the tokens that never made a whole character."""
        return self._show(self._text()) if self._new else ""

    def _text(self) -> str:
        """Text that the new tokens add to that of the shown ones."""
        before, after = self._decode(self._shown), self._decode(self._shown + self._new)
        # They differ in the middle where the shown tokens end with half a character.
        if after.startswith(before):
            return after[len(before) :]
        same = next((place for place, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), len(after))
        return after[same:]

    def _show(self, text: str) -> str:
        self._shown = (self._shown + self._new)[-_CONTEXT:]
        self._new = []
        return text

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True, **self._options)
        return text


class StopStrings:
    """Lets text through up to the first of some strings, wherever the borders of the pieces are.

    The end of a piece that may be the beginning of a stop string is held back until that is known.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self.found = False

    def push(self, text: str) -> str:
        """Take a piece; return what can be shown. ``found`` is true from the piece on that completes a stop string."""
        if self.found:
            return ""
        text, self._held = self._held + text, ""
        places = [place for place in (text.find(stop) for stop in self._stops) if place >= 0]
        if places:
            self.found = True
            return text[: min(places)]
        held = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def finish(self) -> str:
        """What was held back and did not become a stop string."""
        text, self._held = self._held, ""
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` with which ``stop`` begins."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
