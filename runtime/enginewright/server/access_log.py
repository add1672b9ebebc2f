"""A line a request: ids, counts and times. Prompts are never in it."""

from __future__ import annotations

import logging
import time
import uuid
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger("enginewright.server.access")

_KEY = "enginewright.record"
_LONGEST_ID = 128
_AS_THEY_ARE = "/:@!$&'()*+,;=[]"
"""What a path may hold besides letters and digits, as it is logged."""


@dataclass
class Record:
    """What is noted of one request. Moments are of ``time.perf_counter()``.

    ``failed``: the status of what ended a stream, whose own was sent before. What no output was
    seen of has no count of outputs: it may have made some.
    """

    id: str
    arrived: float = field(default_factory=time.perf_counter)
    model: str = ""
    status: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    first_token_at: float | None = None

    def line(self, method: str, path: str) -> str:
        """As it is logged."""
        parts = [f"{method} {path} {self.status} id={self.id}"]
        if self.failed:
            parts.append(f"failed={self.failed}")
        if self.model:
            parts.append(f"model={self.model} prompt={self.prompt_tokens}")
        if self.first_token_at is not None:
            parts.append(f"cached={self.cached_tokens} output={self.output_tokens}")
            parts.append(f"first={1000 * (self.first_token_at - self.arrived):.1f}ms")
        parts.append(f"total={1000 * (time.perf_counter() - self.arrived):.1f}ms")
        return " ".join(parts)


def for_log(text: str) -> str:
    """A client's text in a form that neither ends its line of the log nor passes for more of it."""
    return quote(text, safe=_AS_THEY_ARE, errors="replace")


def record_of(request: Request) -> Record:
    """That of the request; one of its own where no middleware made one."""
    found: Any = request.scope.get(_KEY)
    return found if isinstance(found, Record) else Record(_new_id(request.scope))


class AccessLog:
    """Middleware: makes each request's record and logs it at the end.

    ``headers``: answers carry the id as X-Request-Id. ``log``: whether lines are written.
    """

    def __init__(self, app: ASGIApp, *, log: bool = True, headers: bool = False) -> None:
        self._app, self._log, self._headers = app, log, headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = scope[_KEY] = Record(_new_id(scope))

        async def noting(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                if self._headers:
                    message["headers"] = [
                        *message.get("headers", ()),
                        (b"x-request-id", record.id.encode()),
                    ]
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            if self._log:
                logger.info("%s", record.line(scope["method"], for_log(scope["path"])))


def _new_id(scope: Scope) -> str:
    """The client's X-Request-Id, if it can stand in a header and a line of the log."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and 0 < len(value) <= _LONGEST_ID:
            text = str(value.decode("latin-1"))
            if text.isascii() and text.isprintable() and " " not in text:
                return text
    return uuid.uuid4().hex
