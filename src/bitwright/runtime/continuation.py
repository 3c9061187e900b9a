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


def continuation(decoder: Decoder, tokenizer: Any, wish: Wish, known: int = 0) -> Iterator[Piece]:
    """Answer a wish step by step; a caller may leave between two pieces.

    Args:
        decoder: its first ``known`` tokens are those of ``wish.ids``, and it has no others.
        known: how many tokens need not be read, fewer than the prompt has.

    Raises:
        InputError: if the prompt does not fit the decoder's context, or a bias does not fit the vocabulary.
        CheckError: if the logits are not numbers.
    """
    piece = decoder.piece or len(wish.ids)
    for start in range(known, len(wish.ids), piece):
        logits = decoder.extend(wish.ids[start : start + piece])
        yield Piece()
    sampler, stream, stops = Sampler(wish.sampling, wish.ids), TextStream(tokenizer, wish.ids), StopStrings(wish.stops)
    for left in range(wish.limit - 1, -1, -1):
        token = sampler.draw(logits)
        score = _score(tokenizer, logits, token, wish.scores)
        ended = token in wish.ends
        text = stops.push(stream.finish() if ended else stream.push(token))
        full = decoder.context is not None and decoder.tokens + 1 >= decoder.context
        if not ended and not stops.found and left and not full:
            yield Piece(text, token, score)
            logits = decoder.step(token)
            continue
        if not ended and not stops.found:
            text += stops.push(stream.finish())
        stopped = ended or stops.found
        yield Piece(text + ("" if stops.found else stops.finish()), token, score, "stop" if stopped else "length")
        return


def _score(tokenizer: Any, logits: Tensor, token: int, count: int | None) -> Score | None:
    if count is None:
        return None
    value, likeliest = log_probabilities(logits, token, count)
    top = tuple(Score(other, tokenizer.decode([other]), score) for other, score in likeliest)
    return Score(token, tokenizer.decode([token]), value, top)
