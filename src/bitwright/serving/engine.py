"""Answers wishes one token of each in turn, in one thread; knows no HTTP.

The model runs in the engine's own thread only. Answers that run at the same time take turns, so a short one does not
wait for a long one to end; those that find no place wait in a bounded queue.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from bitwright.errors import BitwrightError
from bitwright.runtime.continuation import Piece, Wish, continuation
from bitwright.runtime.decoder import Decoder, Decoders
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
        parallel: answers that take turns. queue: wishes that wait beside them.
        seconds: time limit of one answer, waiting included. cache_bytes: memory of the prompt cache; 0: none is kept.
    """

    parallel: int = 4
    queue: int = 32
    seconds: float = 600.0
    cache_bytes: int = 512 * 10**6


Deliver = Callable[[Piece | BaseException], None]
"""Takes the pieces of an answer, or the error that ended it; called in the engine's thread, must not block."""


@dataclass(eq=False)
class Ticket:
    """One wish in the engine. ``known`` is how many tokens of the prompt the cache had."""

    wish: Wish
    deliver: Deliver
    deadline: float
    known: int = 0
    cancelled: bool = False
    drawn: list[int] = field(default_factory=list)
    decoder: Decoder | None = None
    pieces: Iterator[Piece] | None = None


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
    def draining(self) -> bool:
        """Whether nothing new is taken."""
        return self._draining

    def submit(self, wish: Wish, deliver: Deliver) -> Ticket:
        """Queue a wish.

        Raises:
            BusyError: if the queue is full. ClosedError: if the engine is ending.
        """
        ticket = Ticket(wish, deliver, time.monotonic() + self.limits.seconds)
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
                for ticket in list(self._running):
                    if self._closing:
                        break
                    self._advance(ticket)
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

    def _advance(self, ticket: Ticket) -> None:
        """Read a part of the prompt or draw one token."""
        if ticket.cancelled:
            self._end(ticket, None)
            return
        if time.monotonic() > ticket.deadline:
            self._end(ticket, Piece(finish="length") if ticket.drawn else LateError(_LATE))
            return
        try:
            if ticket.pieces is None:
                ticket.decoder, ticket.known = self._slots.take(ticket.wish.ids)
                ticket.pieces = continuation(ticket.decoder, self._tokenizer, ticket.wish, ticket.known)
            piece = next(ticket.pieces)
        except Exception as error:
            # What the decoder holds is unknown now; it is not used again.
            self._end(ticket, error, keep=False)
            return
        if piece.token is not None:
            ticket.drawn.append(piece.token)
        if piece.finish is None:
            _deliver(ticket, piece)
        else:
            self._end(ticket, piece)

    def _end(self, ticket: Ticket, last: Piece | BaseException | None, keep: bool = True) -> None:
        with self._change:
            self._running.remove(ticket)
        decoder, ticket.decoder, ticket.pieces = ticket.decoder, None, None
        if last is not None:
            _deliver(ticket, last)
        if decoder is not None and keep:
            self._slots.give(decoder, (*ticket.wish.ids, *ticket.drawn))


def _deliver(ticket: Ticket, item: Piece | BaseException) -> None:
    if ticket.cancelled:
        return
    try:
        ticket.deliver(item)
    except Exception as error:  # the receiver is gone; its answer ends, the others do not
        logger.debug("an answer had no receiver any more (%s)", type(error).__name__)
        ticket.cancelled = True
