"""The process that serves: a bound address, signals, and an end that lets running answers finish."""

from __future__ import annotations

import asyncio
import ipaddress
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from bitwright.errors import InputError
from bitwright.serving.engine import Engine

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Connections beside those that the engine's places and queue need: health checks, lists of models, late bodies.
_SPARE_CONNECTIONS = 64
# What is left after the grace time for the last bytes to go out.
_LAST_SECONDS = 5
# Seconds between two looks at running requests, and for the last bytes once there are none.
_TICK, _FLUSH = 0.05, 0.5


def bind(host: str, port: int) -> socket.socket:
    """A TCP socket on an address; ``port`` 0 takes a free one. Nobody can connect before it is served.

    Raises:
        InputError: if the address is unknown, in use, or not allowed.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        found = socket.socket(family, kind, protocol)
    except (OSError, OverflowError, UnicodeError) as error:
        raise InputError(f"there is no address {host}:{port} here ({error}); choose another --host") from error
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except OSError as error:
        found.close()
        reason = error.strerror or str(error)
        raise InputError(f"cannot listen on {host}:{port} ({reason}); choose another --host or --port") from error
    return found


def is_local(bound: socket.socket) -> bool:
    """Whether only this machine can reach the socket."""
    return ipaddress.ip_address(bound.getsockname()[0].partition("%")[0]).is_loopback


def url(bound: socket.socket) -> str:
    """Address of the server as clients write it."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(app: ASGIApp, bound: socket.socket, engine: Engine, grace: float, started: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT; then running answers get ``grace`` seconds. A second signal ends at once.

    ``started`` is called with the address as soon as clients can connect.
    """
    limits = engine.limits
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        lifespan="off",
        ws="none",
        loop="asyncio",
        limit_concurrency=4 * (limits.parallel + limits.queue) + _SPARE_CONNECTIONS,
        timeout_graceful_shutdown=int(grace) + _LAST_SECONDS,
    )
    _Server(config, engine, grace, lambda: started(url(bound))).run(sockets=[bound])


class _Server(uvicorn.Server):
    """uvicorn's server, which tells the engine of the end, and does not die of the signal that it has obeyed."""

    def __init__(self, config: uvicorn.Config, engine: Engine, grace: float, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._engine, self._grace, self._told_start = engine, grace, started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so."""
        await super().startup(sockets=sockets)
        self._told_start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Refuse what is new, then wait for what runs; connections that ask nothing are not waited for."""
        self._engine.drain(self._grace)
        leaving = asyncio.create_task(self._leave_idle())
        await super().shutdown(sockets=sockets)
        leaving.cancel()

    async def _leave_idle(self) -> None:
        while self.server_state.tasks:
            await asyncio.sleep(_TICK)
        await asyncio.sleep(_FLUSH)
        self.force_exit = True

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle the signals while the server runs."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End; at the second signal at once."""
        self.force_exit = self.should_exit
        self.should_exit = True
