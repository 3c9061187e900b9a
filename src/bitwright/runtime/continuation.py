"""One answer: a prompt is read by a decoder, then tokens are drawn until something ends it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from bitwright.runtime.decoder import Decoder
from bitwright.runtime.pieces import StopStrings, TextStream
from bitwright.runtime.sampling import Sampler, Sampling, log_probabilities

Finish = Literal["stop", "length"]
"""Why an answer ended: an end token or a stop string, or a limit."""


@dataclass(frozen=True)
class Wish:
    """What is asked of a model.

    Args:
        ids: tokens of the prompt, at least one.
        limit: most new tokens, at least 1.
        ends: tokens that end the answer; they give no text. stops: strings that end it; they are cut off.
        scores: ``None``, or how many of the likeliest tokens are told with their log-probabilities at every token.
    """

    ids: tuple[int, ...]
    limit: int
    sampling: Sampling = field(default_factory=Sampling)
    ends: frozenset[int] = frozenset()
    stops: tuple[str, ...] = ()
    scores: int | None = None


@dataclass(frozen=True)
class Score:
    """A token, its own text, and its log-probability (natural) before penalties and temperature.

    ``top``: the likeliest tokens of the same step, the best first.
    """

    token: int
    text: str
    value: float
    top: tuple[Score, ...] = ()


@dataclass(frozen=True)
class Piece:
    """One step of an answer: a part of the prompt was read (``token`` is ``None``), or one token drawn.

    ``text`` is what can be shown now: less or more than the token's own where characters or stop strings are
    undecided. ``finish`` is set in the last piece only.
    """

    text: str = ""
    token: int | None = None
    score: Score | None = None
    finish: Finish | None = None


class Continuation:
    """One answer on its way, step by step: parts of the prompt are read, then tokens are drawn.

    Who drives it reads while :attr:`reading`, draws, and hands the logits of :attr:`token` to the next draw, so that
    the steps of several answers can be one.

    Args:
        decoder: its first ``known`` tokens are those of ``wish.ids``, and it has no others.
        known: how many tokens need not be read, fewer than the prompt has.
    """

    def __init__(self, decoder: Decoder, tokenizer: Any, wish: Wish, known: int = 0) -> None:
        self.decoder = decoder
        self.token = -1
        self._tokenizer, self._wish = tokenizer, wish
        self._read, self._left = known, wish.limit
        self._logits: Tensor | None = None
        self._sampler = Sampler(wish.sampling, wish.ids)
        self._stream, self._stops = TextStream(tokenizer, wish.ids), StopStrings(wish.stops)

    @property
    def unread(self) -> int:
        """Tokens of the prompt that are left to read."""
        return len(self._wish.ids) - self._read

    @property
    def reading(self) -> bool:
        """Whether there are any."""
        return self.unread > 0

    def read(self) -> Piece:
        """Read the next part of the prompt.

        Raises:
            InputError: if it does not fit the decoder's context.
        """
        stop = self._read + (self.decoder.piece or len(self._wish.ids))
        self._logits = self.decoder.extend(self._wish.ids[self._read : stop])
        self._read = min(stop, len(self._wish.ids))
        return Piece()

    def draw(self, logits: Tensor | None = None) -> Piece:
        """Draw :attr:`token` from the logits after the last one (of the prompt's end where none are given).

        Raises:
            InputError: if a bias does not fit the vocabulary.
            CheckError: if the logits are not numbers.
        """
        logits = self._logits if logits is None else logits
        assert logits is not None
        self._logits = None
        wish, stops = self._wish, self._stops
        token = self.token = self._sampler.draw(logits)
        self._left -= 1
        score = _score(self._tokenizer, logits, token, wish.scores)
        ended = token in wish.ends
        text = stops.push(self._stream.finish() if ended else self._stream.push(token))
        full = self.decoder.context is not None and self.decoder.tokens + 1 >= self.decoder.context
        if not ended and not stops.found and self._left and not full:
            return Piece(text, token, score)
        if not ended and not stops.found:
            text += stops.push(self._stream.finish())
        stopped = ended or stops.found
        return Piece(text + ("" if stops.found else stops.finish()), token, score, "stop" if stopped else "length")


def continuation(decoder: Decoder, tokenizer: Any, wish: Wish, known: int = 0) -> Iterator[Piece]:
    """Answer a wish alone, step by step; a caller may leave between two pieces. See :class:`Continuation`.

    Raises:
        InputError, CheckError: as there.
    """
    answer = Continuation(decoder, tokenizer, wish, known)
    while answer.reading:
        yield answer.read()
    piece = answer.draw()
    while piece.finish is None:
        yield piece
        piece = answer.draw(decoder.step(answer.token))
    yield piece


def _score(tokenizer: Any, logits: Tensor, token: int, count: int | None) -> Score | None:
    if count is None:
        return None
    value, likeliest = log_probabilities(logits, token, count)
    top = tuple(Score(other, tokenizer.decode([other]), score) for other, score in likeliest)
    return Score(token, tokenizer.decode([token]), value, top)
