"""Errors as answers, each in the shape of the API whose path was asked for."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Scope

from enginewright.runtime.errors import EnginewrightError
from enginewright.server.errors import Failure, failure_of
from enginewright.server.wire import json_response

_ANTHROPICS = "/v1/messages"
_KINDS = {
    401: "authentication_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    503: "overloaded_error",
    504: "timeout_error",
}


def anthropic_body(failure: Failure) -> dict[str, Any]:
    """As Anthropic's clients read it."""
    other = "invalid_request_error" if failure.status < 500 else "api_error"
    kind = _KINDS.get(failure.status, other)
    return {"type": "error", "error": {"type": kind, "message": failure.message}}


def error_answer(failure: Failure, scope: Scope) -> Response:
    """The answer with this error to what was asked."""
    told = anthropic_body(failure) if is_anthropics(scope) else failure.body()
    return json_response(told, failure.status, failure.headers)


def is_anthropics(scope: Scope) -> bool:
    """Whether a path of Anthropic's API was asked for."""
    path = str(scope["path"]).removeprefix(scope.get("root_path", ""))
    return path == _ANTHROPICS or path.startswith(_ANTHROPICS + "/")


def install(app: FastAPI) -> None:
    """Answer every error so."""

    async def answer(request: Request, error: Exception) -> Response:
        return error_answer(failure_of(error), request.scope)

    told = (EnginewrightError, RequestValidationError, HTTPException, TimeoutError)
    for kind in (*told, ClientDisconnect, Exception):
        app.add_exception_handler(kind, answer)
