"""Answers wishes, one token of each at a time and all of them in one step, in one thread; knows no HTTP.

The model runs in the engine's own thread only. A turn is one step of all answers that draw, which reads the weights
once where the decoder can do that, then a piece of the prompts that are still read. So a short answer does not wait for
a long one to end, nor drawing for a long prompt; wishes that find no place wait in a bounded queue.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from bitwright.errors import BitwrightError
from bitwright.runtime.continuation import Continuation, Piece, Wish
from bitwright.runtime.decoder import PIECE, Decoder, Decoders, step_together
from bitwright.serving.slots import Slots

logger = logging.getLogger(__name__)

_LATE = "the time limit passed before the first token; ask for less, or try again later"
_STOPPING = "the server is stopping"


class BusyError(BitwrightError):
    """The queue is full."""


class ClosedError(BitwrightError):
    """The engine is ending and takes nothing new."""


class LateError(BitwrightError):
    """The time limit passed before the first token."""


@dataclass(frozen=True)
class Limits:
    """Bounds of an engine.

    Args:
        parallel: answers that run together. queue: wishes that wait beside them.
        seconds: time limit of one answer, waiting included. cache_bytes: memory of the prompt cache; 0: none is kept.
    """

    parallel: int = 4
    queue: int = 32
    seconds: float = 600.0
    cache_bytes: int = 512 * 10**6


@dataclass(frozen=True)
class Counts:
    """What an engine has done until now.

    ``steps`` were taken, together over ``rows`` sequences, ``last_rows`` in the last of them; ``read`` tokens of
    prompts were read beside ``known`` ones of the cache, ``drawn`` tokens drawn, ``answers`` ended, ``errors`` of them
    with an error.
    """

    steps: int = 0
    rows: int = 0
    last_rows: int = 0
    read: int = 0
    known: int = 0
    drawn: int = 0
    answers: int = 0
    errors: int = 0


Deliver = Callable[[Piece | BaseException], None]
"""Takes the pieces of an answer, or the error that ended it; called in the engine's thread, must not block."""


@dataclass(eq=False)
class Ticket:
    """One wish in the engine. ``known`` is how many tokens of the prompt the cache had.

    ``owner``: only what was read for the same owner is taken from the prompt cache.
    """

    wish: Wish
    deliver: Deliver
    deadline: float
    owner: str = ""
    known: int = 0
    cancelled: bool = False
    drawn: list[int] = field(default_factory=list)
    decoder: Decoder | None = None
    answer: Continuation | None = None
    # The turn in which a part of its prompt was read last.
    turn: int = 0


class Engine:
    """A queue and the thread that works it off. Use it as a context: leaving it stops everything.

    Args:
        decoders: makes the decoders of the model. tokenizer: for text; only this thread uses it.
    """

    def __init__(self, decoders: Decoders, tokenizer: Any, limits: Limits) -> None:
        self.limits = limits
        self._tokenizer = tokenizer
        self._slots = Slots(decoders, limits.cache_bytes)
        self._change = threading.Condition()
        self._waiting: deque[Ticket] = deque()
        self._running: list[Ticket] = []
        self._draining = self._closing = False
        self._counts = Counts()
        self._turn = 0
        self._thread = threading.Thread(target=self._work, name="bitwright-engine", daemon=True)

    def __enter__(self) -> Engine:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def load(self) -> tuple[int, int]:
        """Answers that run and wishes that wait."""
        with self._change:
            return len(self._running), len(self._waiting)

    @property
    def counts(self) -> Counts:
        """What was done until now."""
        return self._counts

    @property
    def draining(self) -> bool:
        """Whether nothing new is taken."""
        return self._draining

    def submit(self, wish: Wish, deliver: Deliver, owner: str = "") -> Ticket:
        """Queue a wish; owners share nothing of the prompt cache.

        Raises:
            BusyError: if the queue is full. ClosedError: if the engine is ending.
        """
        ticket = Ticket(wish, deliver, time.monotonic() + self.limits.seconds, owner)
        with self._change:
            if self._draining:
                raise ClosedError(_STOPPING)
            if len(self._running) + len(self._waiting) >= self.limits.parallel + self.limits.queue:
                raise BusyError("too many requests are waiting; try again later")
            self._waiting.append(ticket)
            self._change.notify()
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Stop an answer at its next token; nothing more of it is delivered. Does nothing after its end."""
        with self._change:
            ticket.cancelled = True
            if ticket in self._waiting:
                self._waiting.remove(ticket)

    def drain(self, grace: float) -> None:
        """Take nothing new, refuse what waits, and give what runs ``grace`` seconds to end."""
        with self._change:
            self._draining = True
            refused = list(self._waiting)
            self._waiting.clear()
            for ticket in self._running:
                ticket.deadline = min(ticket.deadline, time.monotonic() + grace)
        for ticket in refused:
            _deliver(ticket, ClosedError(_STOPPING))

    def close(self) -> None:
        """End everything now; what runs gets an error."""
        self.drain(0.0)
        with self._change:
            self._closing = True
            self._change.notify()
        if self._thread.is_alive():
            self._thread.join(timeout=30)

    def _work(self) -> None:
        try:
            while self._admit():
                self._turn += 1
                self._end_due()
                self._step()
                self._read()
        finally:
            # Also after an error of our own: nobody waits for a thread that has ended.
            self.drain(0.0)
            for ticket in list(self._running):
                self._end(ticket, ClosedError(_STOPPING), keep=False)
            self._slots.clear()

    def _admit(self) -> bool:
        """Wait for work and let wishes in while there is room; false when all is over."""
        with self._change:
            while not (self._closing or self._running or self._waiting):
                self._change.wait()
            while self._waiting and len(self._running) < self.limits.parallel:
                self._running.append(self._waiting.popleft())
            late = [ticket for ticket in self._waiting if time.monotonic() > ticket.deadline]
            for ticket in late:
                self._waiting.remove(ticket)
        for ticket in late:
            _deliver(ticket, LateError(_LATE))
        return not self._closing

    def _end_due(self) -> None:
        """End what nobody waits for any more, and what is late."""
        for ticket in list(self._running):
            if ticket.cancelled:
                self._end(ticket, None)
            elif time.monotonic() > ticket.deadline:
                self._end(ticket, Piece(finish="length") if ticket.drawn else LateError(_LATE))

    def _step(self) -> None:
        """The first token of every answer whose prompt has been read, then one token of every answer that draws."""
        for ticket in list(self._running):
            if ticket.answer is not None and not ticket.answer.reading and not ticket.drawn:
                self._draw(ticket, ticket.answer, None)
        found = [(t, t.answer) for t in self._running if t.answer is not None and t.drawn and not t.cancelled]
        if not found:
            return
        made = step_together([answer.decoder for _, answer in found], [answer.token for _, answer in found])
        self._count(steps=1, rows=len(found))
        self._counts = replace(self._counts, last_rows=len(found))
        for (ticket, answer), logits in zip(found, made, strict=True):
            if isinstance(logits, Exception):
                self._end(ticket, logits, keep=False)
            else:
                self._draw(ticket, answer, logits)

    def _read(self) -> None:
        """Pieces of the prompts, about ``PIECE`` tokens in all; who has waited longest comes first."""
        left = PIECE
        for ticket in sorted(self._running, key=lambda ticket: ticket.turn):
            if left <= 0 or self._closing:
                return
            if ticket.cancelled or (ticket.answer is not None and not ticket.answer.reading):
                continue
            left -= self._read_piece(ticket)

    def _read_piece(self, ticket: Ticket) -> int:
        """A piece of one prompt, and the first token behind its end; how many tokens were read."""
        ticket.turn = self._turn
        try:
            if ticket.answer is None:
                ticket.decoder, ticket.known = self._slots.take(ticket.wish.ids, ticket.owner)
                ticket.answer = Continuation(ticket.decoder, self._tokenizer, ticket.wish, ticket.known)
                self._count(known=ticket.known)
            before = ticket.answer.unread
            piece = ticket.answer.read()
        except Exception as error:
            # What the decoder holds is unknown now; it is not used again.
            self._end(ticket, error, keep=False)
            return 0
        _deliver(ticket, piece)
        read = before - ticket.answer.unread
        self._count(read=read)
        return read

    def _draw(self, ticket: Ticket, answer: Continuation, logits: Tensor | None) -> None:
        try:
            piece = answer.draw(logits)
        except Exception as error:
            self._end(ticket, error, keep=False)
            return
        ticket.drawn.append(answer.token)
        self._count(drawn=1)
        if piece.finish is None:
            _deliver(ticket, piece)
        else:
            self._end(ticket, piece)

    def _count(self, **more: int) -> None:
        self._counts = replace(self._counts, **{name: getattr(self._counts, name) + n for name, n in more.items()})

    def _end(self, ticket: Ticket, last: Piece | BaseException | None, keep: bool = True) -> None:
        with self._change:
            self._running.remove(ticket)
        decoder, ticket.decoder, ticket.answer = ticket.decoder, None, None
        self._count(answers=1, errors=int(isinstance(last, BaseException)))
        if last is not None:
            _deliver(ticket, last)
        if decoder is not None and keep:
            self._slots.give(decoder, (*ticket.wish.ids, *ticket.drawn), ticket.owner)


def _deliver(ticket: Ticket, item: Piece | BaseException) -> None:
    if ticket.cancelled:
        return
    try:
        ticket.deliver(item)
    except Exception as error:  # the receiver is gone; its answer ends, the others do not
        logger.debug("an answer had no receiver any more (%s)", type(error).__name__)
        ticket.cancelled = True
