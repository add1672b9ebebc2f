"""What goes wrong, as a client is told it; none shows a stack trace.

| raised | status | type |
|---|---|---|
| RequestError, a body that does not fit | 400 | BadRequestError |
| HTTPException | its own | by its status |
| ModelNotFoundError | 404 | NotFoundError |
| MissingDependencyError | 501 | NotImplementedError |
| OverloadedError, UnavailableError | 503, with Retry-After | ServiceUnavailableError |
| TimeoutError | 504 | TimeoutError |
| anything else | 500 | InternalServerError |
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from enginewright.runtime.errors import (
    EnginewrightError,
    MissingDependencyError,
    OverloadedError,
    RequestError,
)

logger = logging.getLogger(__name__)

RETRY_AFTER = "1"
_NAMED = re.compile(
    r"(?:prompt \d+: )?([a-z_]+)(?:\.\w+|\[\w+\])*(?:=|, but | and | has the keys )"
)
_TYPES = {
    400: "BadRequestError",
    401: "AuthenticationError",
    404: "NotFoundError",
    405: "MethodNotAllowedError",
    408: "RequestTimeoutError",
    413: "RequestTooLargeError",
    415: "UnsupportedMediaTypeError",
    422: "UnprocessableEntityError",
    499: "ClientClosedRequestError",
    500: "InternalServerError",
    501: "NotImplementedError",
    503: "ServiceUnavailableError",
    504: "TimeoutError",
}


class FieldError(RequestError):
    """A field of the request that is not legal; ``param`` names it."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(message)
        self.param = param


class ModelNotFoundError(EnginewrightError):
    """The request names a model that is not served."""


class UnavailableError(EnginewrightError):
    """The server is about to end, and takes no more requests."""


_STATUS: tuple[tuple[tuple[type[BaseException], ...], int], ...] = (
    ((RequestError,), 400),
    ((ModelNotFoundError,), 404),
    ((MissingDependencyError,), 501),
    ((OverloadedError, UnavailableError), 503),
    ((ClientDisconnect,), 499),
)
_GONE = "the client went away"


@dataclass(frozen=True)
class Failure:
    """An error as it is answered."""

    status: int
    message: str
    param: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def body(self) -> dict[str, Any]:
        """The shape that OpenAI's clients read; ``code`` is the status, as vLLM has it."""
        error = {
            "message": self.message,
            "type": _TYPES.get(self.status) or HTTPStatus(self.status).phrase.replace(" ", ""),
            "param": self.param,
            "code": self.status,
        }
        return {"error": error}


def failure_of(error: BaseException) -> Failure:
    """How the error is told to the client."""
    if isinstance(error, RequestValidationError):
        return _invalid(error)
    if isinstance(error, HTTPException):
        return Failure(error.status_code, str(error.detail), headers=error.headers or {})
    if isinstance(error, TimeoutError):
        told = "the request took longer than this server allows (request_timeout)"
        return Failure(504, told, headers={"x-should-retry": "false"})
    for kinds, status in _STATUS:
        if isinstance(error, kinds):
            headers = {"Retry-After": RETRY_AFTER} if status == 503 else {}
            return Failure(status, str(error) or _GONE, field_of(error), headers)
    logger.error("a request failed", exc_info=error)
    if isinstance(error, EnginewrightError):
        return Failure(500, str(error))
    return Failure(500, "internal error; the server's log says more")


def _invalid(error: RequestValidationError) -> Failure:
    """The first thing that does not fit, by the path of its field."""
    found = error.errors()[0]
    place = [str(part) for part in found["loc"] if part != "body"]
    if found["type"] == "json_invalid":
        reason = found.get("ctx", {}).get("error", "")
        return Failure(400, f"the body is not JSON: {reason}")
    if not place:
        told = "the body must be a JSON object, with the content type application/json"
        return Failure(400, told)
    told = str(found["msg"]).removeprefix("Value error, ")
    if found["type"] != "missing":
        told += f" (it is {found.get('input')!r:.80})"
    return Failure(400, f"{'.'.join(place)}: {told}", place[0])


def field_of(error: BaseException) -> str | None:
    """The field that is wrong; errors of the runtime begin with its name."""
    if isinstance(error, FieldError):
        return error.param
    if isinstance(error, ModelNotFoundError):
        return "model"
    found = _NAMED.match(str(error)) if isinstance(error, RequestError) else None
    return found.group(1) if found else None
