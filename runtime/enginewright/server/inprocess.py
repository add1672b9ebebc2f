"""One request to an application of this process: no socket, and all that a socket would meet."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from starlette.types import ASGIApp, Message

Headers = list[tuple[bytes, bytes]]


def http_scope(method: str, path: str, query: bytes, headers: Headers) -> dict[str, Any]:
    """A request as an ASGI application gets it."""
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": query,
        "headers": headers,
        "client": None,
        "server": None,
    }


async def post(app: ASGIApp, path: str, body: bytes) -> tuple[int, Any]:
    """The status and the JSON of the answer."""
    length = str(len(body)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", length)]
    scope = http_scope("POST", path, b"", headers)
    sent = False
    status = 0
    parts: list[bytes] = []

    async def receive() -> Message:
        nonlocal sent
        if sent:  # the caller stays; it is cancelled with the task that waits for it
            await asyncio.Event().wait()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        else:
            parts.append(message.get("body", b""))

    await app(scope, receive, send)
    return status, json.loads(b"".join(parts))
