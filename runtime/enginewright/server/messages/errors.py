"""Errors in Anthropic's shape."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from enginewright.server.endpoints.documented import ERRORS
from enginewright.server.errors import Failure, failure_of
from enginewright.server.messages.schema import AnthropicError
from enginewright.server.wire import json_response

_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    413: "request_too_large",
    503: "overloaded_error",
    504: "timeout_error",
}

TOLD: dict[int | str, dict[str, Any]] = {
    status: {**told, "model": AnthropicError} if "model" in told else told
    for status, told in ERRORS.items()
}
"""What /openapi.json says of them."""


def error_body(failure: Failure) -> dict[str, Any]:
    """As Anthropic's clients read it."""
    kind = _KINDS.get(failure.status, "api_error")
    return {"type": "error", "error": {"type": kind, "message": failure.message}}


class AnthropicRoute(APIRoute):
    """A route whose errors have this shape."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def told(request: Request) -> Response:
            try:
                return await handle(request)
            except Exception as error:  # noqa: BLE001 - every one is answered
                failure = failure_of(error)
                return json_response(error_body(failure), failure.status, failure.headers)

        return told
