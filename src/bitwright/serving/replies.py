"""Answers in the JSON of OpenAI's API, whole and in chunks."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from bitwright.runtime.continuation import Finish, Score

# JSON has no infinity.
_LEAST = -9999.0


@dataclass(frozen=True)
class Usage:
    """Token counts; ``known`` tokens of the prompt were in the cache."""

    prompt: int
    drawn: int
    known: int

    def json(self) -> dict[str, Any]:
        """``usage``."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.drawn,
            "total_tokens": self.prompt + self.drawn,
            "prompt_tokens_details": {"cached_tokens": self.known},
        }


@dataclass(frozen=True)
class Reply:
    """What all parts of one answer share. ``scored``: whether log-probabilities are told."""

    model: str
    chat: bool
    scored: bool
    counted: bool = False
    identity: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, text: str, scores: Sequence[Score], finish: Finish | None, usage: Usage) -> dict[str, Any]:
        """The answer in one piece."""
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish, "logprobs": self._scores(scores, 0)}
        if self.chat:
            choice["message"] = {"role": "assistant", "content": text, "refusal": None}
        else:
            choice["text"] = text
        kind = "chat.completion" if self.chat else "text_completion"
        return {**self._envelope(kind), "choices": [choice], "usage": usage.json()}

    def opening(self) -> dict[str, Any] | None:
        """The first chunk of a chat names the role; completions have none."""
        return self._chunk({"delta": {"role": "assistant", "content": ""}}, None) if self.chat else None

    def chunk(self, text: str, scores: Sequence[Score], finish: Finish | None, offset: int = 0) -> dict[str, Any]:
        """A part of the answer; ``offset`` is the number of characters before it."""
        said: dict[str, Any] = {"delta": {"content": text} if text or scores else {}} if self.chat else {"text": text}
        return self._chunk({**said, "logprobs": self._scores(scores, offset)}, finish)

    def count(self, usage: Usage) -> dict[str, Any]:
        """The chunk with the token counts, which comes last where a client asked for it."""
        return {**self._envelope(self._chunk_kind), "choices": [], "usage": usage.json()}

    def _chunk(self, said: dict[str, Any], finish: Finish | None) -> dict[str, Any]:
        counts = {"usage": None} if self.counted else {}
        choice = {"index": 0, "finish_reason": finish, **said}
        return {**self._envelope(self._chunk_kind), "choices": [choice], **counts}

    @property
    def _chunk_kind(self) -> str:
        return "chat.completion.chunk" if self.chat else "text_completion"

    def _envelope(self, kind: str) -> dict[str, Any]:
        prefix = "chatcmpl" if self.chat else "cmpl"
        return {"id": f"{prefix}-{self.identity}", "object": kind, "created": self.created, "model": self.model}

    def _scores(self, scores: Sequence[Score], offset: int) -> dict[str, Any] | None:
        if not self.scored or not scores:
            return None
        if self.chat:
            return {"content": [_entry(score, deep=True) for score in scores], "refusal": None}
        lengths = [0]
        for score in scores:
            lengths.append(lengths[-1] + len(score.text))
        return {
            "tokens": [score.text for score in scores],
            "token_logprobs": [_number(score.value) for score in scores],
            "top_logprobs": [{other.text: _number(other.value) for other in score.top} for score in scores],
            "text_offset": [offset + length for length in lengths[:-1]],
        }


def _entry(score: Score, deep: bool) -> dict[str, Any]:
    top = {"top_logprobs": [_entry(other, deep=False) for other in score.top]} if deep else {}
    return {"token": score.text, "logprob": _number(score.value), "bytes": list(score.text.encode()), **top}


def _number(value: float) -> float:
    return max(value, _LEAST)
