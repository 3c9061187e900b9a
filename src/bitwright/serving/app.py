"""The routes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from bitwright.serving.answers import Answer, EventStream, GoneError, whole
from bitwright.serving.bodies import Chat, Completion, read_body
from bitwright.serving.engine import Engine
from bitwright.serving.failures import RefusedError, refused_by, response
from bitwright.serving.guard import CLIENT, HEALTH, Guard
from bitwright.serving.metrics import KIND, METRICS, exposition
from bitwright.serving.replies import Reply
from bitwright.serving.served import Served

# Seconds in which the body of a request must have come.
_BODY_SECONDS = 30.0


@dataclass(frozen=True)
class Door:
    """Who may come in. ``body_bytes`` is the largest body; ``origins`` are the web pages that may ask (CORS).

    ``shared_cache``: clients with different keys use one another's beginnings of prompts.
    """

    keys: tuple[str, ...] = ()
    local: bool = True
    body_bytes: int = 4 * 10**6
    origins: tuple[str, ...] = ()
    shared_cache: bool = False


class Api:
    """The endpoints over one engine. Close it: it has a thread for reading prompts."""

    def __init__(self, engine: Engine, served: Served, door: Door) -> None:
        self._engine, self._served, self._door = engine, served, door
        self._reader = ThreadPoolExecutor(1, "bitwright-prompts")
        self._created = int(time.time())

    def close(self) -> None:
        """End the thread."""
        self._reader.shutdown(wait=False, cancel_futures=True)

    def app(self) -> Starlette:
        """The application; every answer of it, errors too, is JSON or a stream of events."""
        routes = [
            Route(HEALTH, self.health, methods=["GET"]),
            Route(METRICS, self.metrics, methods=["GET"]),
            Route("/v1/models", _told(self.models), methods=["GET"]),
            Route("/v1/models/{name:path}", _told(self.model), methods=["GET"]),
            Route("/v1/completions", _told(self.completions), methods=["POST"]),
            Route("/v1/chat/completions", _told(self.chats), methods=["POST"]),
        ]
        door = self._door
        pages = [Middleware(CORSMiddleware, allow_origins=door.origins, allow_methods=["*"], allow_headers=["*"])]
        return Starlette(
            routes=routes,
            middleware=[*(pages if door.origins else ()), Middleware(Guard, keys=door.keys, local=door.local)],
            exception_handlers={HTTPException: _routing_error},
        )

    async def health(self, request: Request) -> Response:
        """Whether requests are taken, and how many there are."""
        running, waiting = self._engine.load
        stopping = self._engine.draining
        found = {
            "status": "stopping" if stopping else "ok", "running": running, "waiting": waiting,
            "together": self._engine.counts.last_rows if running else 0,
        }  # fmt: skip
        return JSONResponse(found, 503 if stopping else 200)

    async def metrics(self, request: Request) -> Response:
        """The same and what was done until now, as Prometheus reads it."""
        return Response(exposition(self._engine.load, self._engine.counts), media_type=KIND)

    async def models(self, request: Request) -> Response:
        """The one model that is served."""
        return JSONResponse({"object": "list", "data": [self._card()]})

    async def model(self, request: Request) -> Response:
        """The same, by name."""
        self._served.check_name(request.path_params["name"])
        return JSONResponse(self._card())

    async def completions(self, request: Request) -> Response:
        """Continue a text."""
        return await self._answer(request, read_body(Completion, await self._body(request)))

    async def chats(self, request: Request) -> Response:
        """Answer a chat."""
        return await self._answer(request, read_body(Chat, await self._body(request)))

    async def _answer(self, request: Request, body: Completion | Chat) -> Response:
        self._served.check_name(body.model)
        wish = await asyncio.get_running_loop().run_in_executor(self._reader, self._served.wish, body)
        counted = bool(body.stream and body.usage_at_end)
        reply = Reply(self._served.name, isinstance(body, Chat), wish.scores is not None, counted)
        owner = "" if self._door.shared_cache else str(request.scope.get(CLIENT, ""))
        answer = Answer(self._engine, wish, request.receive, owner)
        handed_over = False
        try:
            first = await answer.next()
            if body.stream:
                handed_over = True
                return EventStream(answer, first, reply, 2 * self._engine.limits.seconds)
            return await whole(answer, first, reply)
        finally:
            if not handed_over:
                answer.close()

    async def _body(self, request: Request) -> bytes:
        """Read the body, not more of it than is allowed.

        Raises:
            RefusedError: status 413 or 408.
        """
        most = self._door.body_bytes
        too_large = RefusedError(413, f"the body is larger than {most} bytes; send less")
        length = request.headers.get("content-length", "")
        if length.isdecimal() and int(length[:20]) > most:
            raise too_large
        found = bytearray()
        try:
            async with asyncio.timeout(_BODY_SECONDS):
                async for part in request.stream():
                    found += part
                    if len(found) > most:
                        raise too_large
        except TimeoutError as error:
            raise RefusedError(408, f"the body did not come within {_BODY_SECONDS:.0f} seconds") from error
        return bytes(found)

    def _card(self) -> dict[str, Any]:
        card = {"id": self._served.name, "object": "model", "created": self._created, "owned_by": "bitwright"}
        return {**card, "context_length": self._served.context}


Endpoint = Callable[[Request], Awaitable[Response]]


def _told(endpoint: Endpoint) -> Endpoint:
    """An endpoint whose errors are answers."""

    async def run(request: Request) -> Response:
        try:
            return await endpoint(request)
        except (GoneError, ClientDisconnect):
            return Response(status_code=499)  # nobody reads it
        except Exception as error:
            return response(refused_by(error))

    return run


async def _routing_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    words = {404: "there is no such path; see /v1/models, /v1/completions, /v1/chat/completions",
             405: "the path does not take this method"}  # fmt: skip
    refused = RefusedError(error.status_code, words.get(error.status_code, error.detail))
    refused.headers.update(error.headers or {})
    return response(refused)
