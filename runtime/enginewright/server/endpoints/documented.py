"""What /openapi.json says of answers that every endpoint may give."""

from __future__ import annotations

from typing import Any

from enginewright.server.protocol.models import ErrorResponse

_TOLD = {
    400: "A field is wrong, or cannot be honoured",
    404: "There is no such model",
    405: "Another method is needed",
    408: "The body did not come in time",
    413: "The body is larger than allowed",
    499: "The client went away",
    500: "The engine failed",
    501: "A package that this needs is not installed",
    503: "Too many requests wait, or the server is about to end",
    504: "The request took too long",
}

ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse, "description": told} for status, told in _TOLD.items()
}
ERRORS[401] = {
    "description": "A key is needed",
    "content": {
        "application/json": {
            "schema": {"type": "object", "properties": {"error": {"type": "string"}}}
        }
    },
}


EVENTS: dict[str, Any] = {
    "text/event-stream": {
        "schema": {
            "type": "object",
            "description": "An event; its data is JSON, or [DONE]",
            "required": ["data"],
            "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
        }
    }
}


def answers(model: type[Any], *, stream: bool = False) -> dict[int | str, dict[str, Any]]:
    """Of an endpoint that answers with ``model``, or with a stream of events."""
    content: dict[str, Any] = {}
    if stream:
        content = {"content": EVENTS}
    return {200: {"model": model, "description": "The answer", **content}, **ERRORS}
