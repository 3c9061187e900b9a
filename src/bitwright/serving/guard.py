"""What every request passes first: the key, the name that it calls the server by, the type of its body."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from bitwright.serving.failures import RefusedError, response

HEALTH = "/health"
"""The path that needs no key."""
CLIENT = "bitwright.client"
"""Where a request's scope says whose it is: a digest of the key, or nothing where nobody needs one."""
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


class Guard:
    """Refuses requests before anything of their bodies is read.

    Args:
        keys: clients must send one of them as bearer token; none: nobody needs a key.
        local: whether the server listens on loopback only. Then requests must call it by a loopback name: a page in a
            browser, whose own name was made to point here, cannot reach it.
    """

    def __init__(self, app: ASGIApp, keys: Sequence[str] = (), local: bool = True) -> None:
        self._app = app
        self._keys = [_digest(key) for key in keys]
        self._local = local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer with an error."""
        if scope["type"] == "http":
            try:
                self._check(scope, Headers(scope=scope))
            except RefusedError as error:
                await response(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check(self, scope: Scope, headers: Headers) -> None:
        if self._local and not self._keys and _name(headers.get("host", "")) not in _LOOPBACK:
            raise RefusedError(403, "this server is called localhost; use that name, or give the server a key")
        if scope["path"] == HEALTH:
            return
        client = self._client(headers.get("authorization", "")) if self._keys else ""
        scope[CLIENT] = client
        if self._keys and not client:
            raise RefusedError(401, "a valid API key is needed", code="invalid_api_key", header="Bearer")
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        # Pages of a browser cannot send this type to another server without asking it first.
        if scope["method"] == "POST" and kind != "application/json":
            raise RefusedError(415, "send the body as JSON, with the header Content-Type: application/json")

    def _client(self, header: str) -> str:
        """The digest of a known key, or nothing; every key is compared, in a time that tells nothing about them."""
        scheme, _, given = header.partition(" ")
        digest = _digest(given.strip() if scheme.lower() == "bearer" else "")
        known = sum(hmac.compare_digest(digest, key) for key in self._keys)  # any() would stop at the first
        return digest.hex() if known else ""


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _name(host: str) -> str:
    """The name in a ``Host`` header, without the port."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.rpartition(":")[0].lower() if ":" in host else host.lower()
