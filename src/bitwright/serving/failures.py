"""Errors of a request, in the JSON shape of OpenAI's API."""

from __future__ import annotations

import logging
import traceback
from typing import Any

from starlette.responses import JSONResponse

from bitwright.errors import BitwrightError, InputError
from bitwright.serving.engine import BusyError, ClosedError, LateError

logger = logging.getLogger(__name__)

# Seconds after which a refused client may try again.
_RETRY = {"retry-after": "2"}


class RefusedError(BitwrightError):
    """A request that is not answered: HTTP status, a sentence, the field that is wrong, a word for programs."""

    def __init__(
        self, status: int, message: str, param: str | None = None, code: str | None = None, header: str = ""
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code
        self.headers = {"www-authenticate": header} if header else _RETRY if status == 503 else {}


def refused_by(error: BaseException) -> RefusedError:
    """What a client is told of an error; anything unexpected is status 500.

    Its message is neither told nor logged, for it may quote the text of a user; the log gets its type and place.
    """
    if isinstance(error, RefusedError):
        return error
    if isinstance(error, BusyError | ClosedError | LateError):
        return RefusedError(503, str(error), code=_CODES[type(error)])
    if isinstance(error, InputError):
        return RefusedError(400, str(error))
    place = "".join(traceback.format_tb(error.__traceback__))
    logger.error("%s while answering, at\n%s", type(error).__name__, place)
    return RefusedError(500, "the server failed at this request; its log says where", code="internal_error")


def body(error: RefusedError) -> dict[str, Any]:
    """``{"error": ...}``."""
    return {"error": {"message": str(error), "type": _kind(error), "param": error.param, "code": error.code}}


def response(error: RefusedError) -> JSONResponse:
    """The HTTP response of an error."""
    return JSONResponse(body(error), error.status, error.headers)


_CODES = {BusyError: "queue_full", ClosedError: "stopping", LateError: "time_limit"}


def _kind(error: RefusedError) -> str:
    if error.status == 401:
        return "authentication_error"
    return "server_error" if error.status >= 500 else "invalid_request_error"
