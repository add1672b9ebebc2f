"""What a body may take: bytes and time.

One that says it is larger is refused at once, another when it proves so.
"""

from __future__ import annotations

import asyncio

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from enginewright.server.error_answers import error_answer
from enginewright.server.errors import Failure


class BodyLimit:
    """Middleware: 413 for a body of more than ``most`` bytes."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        self._app, self._most = app, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        stated = dict(scope["headers"]).get(b"content-length", b"0")
        if stated.isdigit() and int(stated) > self._most:
            await error_answer(self._refusal(), scope)(scope, receive, send)
            return
        got = 0

        async def counting() -> Message:
            nonlocal got
            message = await receive()
            got += len(message.get("body", b""))
            if got > self._most:
                refusal = self._refusal()
                raise HTTPException(refusal.status, refusal.message, refusal.headers)
            return message

        await self._app(scope, counting, send)

    def _refusal(self) -> Failure:
        told = f"the body is larger than {self._most} bytes, which is what this server takes"
        return Failure(413, told, headers={"Connection": "close"})


class BodyTime:
    """Middleware: 408 for a body that has not come after so many seconds; 0: no limit."""

    def __init__(self, app: ASGIApp, seconds: float) -> None:
        self._app, self._seconds = app, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self._seconds:
            await self._app(scope, receive, send)
            return
        deadline: float | None = asyncio.get_running_loop().time() + self._seconds

        async def in_time() -> Message:
            nonlocal deadline
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError as error:
                told = f"the body did not come within {self._seconds:g} seconds"
                raise HTTPException(408, told, {"Connection": "close"}) from error
            if not message.get("more_body", False):
                deadline = None  # what comes now is that the client goes away, whenever it does
            return message

        await self._app(scope, in_time, send)
