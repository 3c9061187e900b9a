"""A decoder and a tokenizer whose answers can be computed by hand, and an application over them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from bitwright.errors import InputError
from bitwright.runtime.continuation import Piece, Wish
from bitwright.runtime.decoder import Decoders
from bitwright.serving.engine import Engine, Limits
from bitwright.serving.served import Served

END = 127
LETTERS = 128


class Alphabet:
    """Says the letter after the last one, and after ``z`` the end token; remembers all that it read.

    ``gate``: every step waits until it is set.
    """

    context: int | None = 64
    piece: int | None = 4
    fault: int | None = None

    def __init__(self, gate: threading.Event | None = None) -> None:
        self.ids: list[int] = []
        self.read: list[list[int]] = []
        self.gate = gate
        self.turns: list[Alphabet] = []

    @property
    def tokens(self) -> int:
        return len(self.ids)

    def start(self, ids: Sequence[int]) -> Tensor:
        self.crop(0)
        return self.extend(ids)

    def extend(self, ids: Sequence[int]) -> Tensor:
        if self.gate is not None and not self.gate.wait(timeout=20):
            raise AssertionError("the test never opened the gate")
        if self.fault in ids:
            raise RuntimeError(f"cannot read {bytes(ids)!r}")
        if len(self.ids) + len(ids) > 64:
            raise InputError("too long")
        self.read.append(list(ids))
        self.turns.append(self)
        self.ids += ids
        logits = torch.full((LETTERS,), -20.0)
        last = self.ids[-1]
        logits[END if last == ord("z") else (last + 1) % LETTERS] = 5.0
        return logits

    def step(self, token: int) -> Tensor:
        return self.extend([token])

    def crop(self, tokens: int) -> int:
        self.ids = self.ids[: tokens if self.piece is not None else 0]
        return len(self.ids)

    def bytes(self) -> int:
        return 10 * len(self.ids)


class Rounded(Alphabet):
    """The same, over a cache that cannot go back."""

    piece = None


class Faulty(Alphabet):
    """The same, but there is a token that it cannot read."""

    fault = ord("!")


class Bytes:
    """One token per byte of ASCII; a chat is ``role:content`` lines."""

    eos_token_id = END
    chat_template = "given"

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": list(text.encode("ascii"))}

    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        return bytes(token for token in ids if token != END or not skip_special_tokens).decode()

    def apply_chat_template(self, messages: list[dict[str, Any]], **options: bool) -> list[int]:
        assert options == {"add_generation_prompt": True, "tokenize": True, "return_dict": False}
        if messages[0]["role"] == "tool":
            raise ValueError("a chat begins with the user")
        return self("|".join(f"{message['role']}:{message['content']}" for message in messages))["input_ids"]


def served(**changes: Any) -> Served:
    """The toy as a server knows it."""
    fields: dict[str, Any] = {
        "name": "toy", "tokenizer": Bytes(), "ends": frozenset({END}), "context": 64, "vocabulary": LETTERS,
        "most_prompt": 40, "most_tokens": 30,
    }  # fmt: skip
    return Served(**{**fields, **changes})


class Toys:
    """Makes decoders, and remembers them and whose turns it was."""

    def __init__(self, make: Callable[[threading.Event | None], Alphabet] = Alphabet, gated: bool = False) -> None:
        self.gate = threading.Event()
        self.made: list[Alphabet] = []
        self.turns: list[Alphabet] = []
        self._make, self._gated = make, gated

    def __call__(self) -> Alphabet:
        self.made.append(self._make(self.gate if self._gated else None))
        self.made[-1].turns = self.turns
        return self.made[-1]


def engine(decoders: Decoders, **limits: Any) -> Engine:
    """An engine over toys."""
    return Engine(decoders, Bytes(), Limits(**limits))


class Collected:
    """The pieces of one answer of an engine."""

    def __init__(self, engine: Engine, prompt: str, limit: int = 30) -> None:
        self.items: list[Piece | BaseException] = []
        self._ended = threading.Event()
        self.ticket = engine.submit(Wish(tuple(prompt.encode()), limit, ends=frozenset({END})), self._take)

    def _take(self, item: Piece | BaseException) -> None:
        self.items.append(item)
        if isinstance(item, BaseException) or item.finish is not None:
            self._ended.set()

    def wait(self) -> tuple[str, str | BaseException | None]:
        """Text and finish, or the error."""
        assert self._ended.wait(timeout=20)
        text = "".join(item.text for item in self.items if isinstance(item, Piece))
        last = self.items[-1]
        return text, last.finish if isinstance(last, Piece) else last


def until(true: Callable[[], bool]) -> None:
    """Wait for another thread."""
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.002)
