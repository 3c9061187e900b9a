"""One answer on its way from the engine's thread to a client: whole, or as server-sent events."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from typing import Any

from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from bitwright.runtime.continuation import Piece, Score, Wish
from bitwright.serving.engine import Engine, Ticket
from bitwright.serving.failures import body, refused_by
from bitwright.serving.replies import Reply, Usage

logger = logging.getLogger(__name__)


class GoneError(Exception):
    """The client has closed the connection."""


class Answer:
    """The pieces of an answer, in the event loop. Close it: an answer that nobody reads is stopped.

    Raises:
        BusyError, ClosedError: as :meth:`Engine.submit`.
    """

    def __init__(self, engine: Engine, wish: Wish, receive: Receive, owner: str = "") -> None:
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._arrived: asyncio.Queue[Piece | BaseException] = asyncio.Queue()
        self._started = time.monotonic()
        self._finish: str | None = None
        self._ticket: Ticket = engine.submit(wish, self._deliver, owner)
        self._watch = asyncio.create_task(self._wait_for_leaving(receive))

    @property
    def usage(self) -> Usage:
        """Counts until now."""
        return Usage(len(self._ticket.wish.ids), len(self._ticket.drawn), self._ticket.known)

    async def next(self) -> Piece:
        """The next piece that has a token or is the last.

        Raises:
            GoneError: if the client has left. Any error of the engine.
        """
        while True:
            item = await self._arrived.get()
            if isinstance(item, BaseException):
                raise item
            self._finish = item.finish
            if item.token is not None or item.finish is not None:
                return item

    def close(self) -> None:
        """Stop what still runs and write the line of the log: counts, no text."""
        self._watch.cancel()
        self._engine.cancel(self._ticket)
        usage, seconds = self.usage, time.monotonic() - self._started
        logger.info(
            "answer: %d prompt tokens (%d known), %d drawn, %s, %.2f s",
            usage.prompt, usage.known, usage.drawn, self._finish or "cut off", seconds,
        )  # fmt: skip

    def _deliver(self, item: Piece | BaseException) -> None:
        self._loop.call_soon_threadsafe(self._arrived.put_nowait, item)

    async def _wait_for_leaving(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._engine.cancel(self._ticket)
        self._arrived.put_nowait(GoneError())


async def whole(answer: Answer, first: Piece, reply: Reply) -> Response:
    """Wait for all pieces."""
    texts, scores, piece = [first.text], _scores(first), first
    while piece.finish is None:
        piece = await answer.next()
        texts.append(piece.text)
        scores += _scores(piece)
    return JSONResponse(reply.whole("".join(texts), scores, piece.finish, answer.usage))


class EventStream(Response):
    """An answer as server-sent events; it closes the answer. ``seconds`` bounds a client that reads too slowly."""

    media_type = "text/event-stream"

    def __init__(self, answer: Answer, first: Piece, reply: Reply, seconds: float) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._answer, self._first, self._reply, self._seconds = answer, first, reply, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events until the answer ends or the client leaves."""
        try:
            async with asyncio.timeout(self._seconds):
                await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                await self._send_pieces(send)
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        except (GoneError, TimeoutError, OSError) as error:
            logger.debug("an answer was not read to its end (%s)", type(error).__name__)
        finally:
            self._answer.close()

    async def _send_pieces(self, send: Send) -> None:
        opening = self._reply.opening()
        if opening is not None:
            await _event(send, opening)
        piece, offset = self._first, 0
        try:
            while True:
                if piece.text or piece.score or piece.finish:
                    await _event(send, self._reply.chunk(piece.text, _scores(piece), piece.finish, offset))
                offset += len(piece.text)
                if piece.finish is not None:
                    break
                piece = await self._answer.next()
        except GoneError:
            raise
        except Exception as error:
            await _event(send, body(refused_by(error)))
            return
        if self._reply.counted:
            await _event(send, self._reply.count(self._answer.usage))
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": True})


async def _event(send: Send, value: dict[str, Any]) -> None:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    await send({"type": "http.response.body", "body": f"data: {text}\n\n".encode(), "more_body": True})


def _scores(piece: Piece) -> list[Score]:
    return [] if piece.score is None else [piece.score]
